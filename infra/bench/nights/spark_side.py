"""One side of a comparison with Spark: a process of its own, in a Spark as anybody would start it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feature_repo.contracts import environment as names
from feature_repo.contracts.errors import NightjarError
from infra.local.setup import prepare
from infra.local.spark_conf import SETTINGS_FILE
from infra.local.variables import REPOSITORY

LINE = "NIGHTJAR "
_OUR_JAVA_OPTIONS = "spark.driver.extraJavaOptions"
_PLAIN_JAVA_OPTIONS = "-Duser.timezone=UTC -Xss4m"
_LAST_CHARACTERS = 3_000


def spark_variables(home: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a side. Raises DependencyError with the remedy when Java or a jar is missing."""
    tools = prepare(variables)
    conf = plain_spark_conf(Path(tools.spark_conf), home / "spark-plain")
    return {
        **variables, names.HOME: str(home), "JAVA_HOME": tools.java.home, "SPARK_CONF_DIR": str(conf),
        "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1",
        "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip


def plain_spark_conf(ours: Path, folder: Path) -> Path:
    """The installation's settings without the Java options that suit short jobs; returns `folder`."""
    lines = (ours / SETTINGS_FILE).read_text().splitlines()
    kept = [line for line in lines if not line.startswith(_OUR_JAVA_OPTIONS)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS_FILE).write_text("\n".join([*kept, f"{_OUR_JAVA_OPTIONS} {_PLAIN_JAVA_OPTIONS}"]) + "\n")
    return folder


def ask_side(module: str, words: Sequence[str], variables: Mapping[str, str]) -> dict[str, Any]:
    """Run `python -m module words`; what it told. Raises NightjarError with its last words when it told nothing."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, env=dict(variables), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(LINE)]
    if done.returncode or not lines:
        raise NightjarError(f"{module} {words[0]} ended with {done.returncode}: {done.stderr[-_LAST_CHARACTERS:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(LINE))
    return found


def tell(found: Mapping[str, Any]) -> None:
    """What a side says to whoever asked."""
    print(LINE + json.dumps(found), flush=True)
