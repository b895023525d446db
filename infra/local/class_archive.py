"""The classes of Spark and Delta, parsed and verified once: a class data sharing archive for the jobs' Java.

A job of the night loads some fifteen thousand classes, a quarter of its life on a small shop. The archive is made by
running a program that uses what the jobs use; Java writes it as that program ends. It belongs to one Java and one class
path: its name says which, and a job whose class path differs starts without it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from infra.local.jars import jar_paths
from infra.local.spark_conf import SETTINGS_FILE, write_spark_conf

PROGRAM = Path(__file__).with_name("class_archive_program.py")
TIMEOUT_SECONDS = 600
_LAST_LINES = 3
_ERRORS_ONLY = "-Xlog:cds=error -Xlog:cds+dynamic=error"


def archive_path(jars_folder: Path, java_home: str) -> Path:
    """Where the archive of this Java and this class path lies, made or not.

    The name covers what Java compares when it starts: its own build, the jars in their order, their sizes and times.
    """
    import pyspark

    seen = hashlib.sha256()
    java = Path(java_home).resolve()
    release = java / "release"
    seen.update(release.read_bytes() if release.is_file() else str(java).encode())
    for jar in [*sorted((Path(pyspark.__file__).parent / "jars").glob("*.jar")), *jar_paths(jars_folder)]:
        stat = jar.stat()
        seen.update(f"{jar.absolute()} {stat.st_size} {int(stat.st_mtime)}\n".encode())
    return jars_folder / f"classes-{seen.hexdigest()[:12]}.jsa"


def ensure_archive(jars_folder: Path, *, java_home: str, variables: Mapping[str, str]) -> tuple[Path | None, str]:
    """(the archive, in a few words where it comes from). Makes it when it is missing, and removes those of another Java
    or class path. None, with the reason, where Java cannot make one: jobs then start slower, and do the same.
    """
    path = archive_path(jars_folder, java_home)
    if path.is_file():
        return path, "already there"
    for old in jars_folder.glob("classes-*.jsa"):
        old.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=".classes-", dir=jars_folder) as folder:
        partial = Path(folder) / "classes.jsa"
        problem = _dump(partial, Path(folder), jars_folder, java_home, variables)
        if problem is not None:
            return None, problem
        os.replace(partial, path)
    return path, "made"


def _dump(archive: Path, folder: Path, jars_folder: Path, java_home: str, variables: Mapping[str, str]) -> str | None:
    import pyspark

    conf = write_spark_conf(
        folder / "spark", jars_folder, java_options=f"-XX:ArchiveClassesAtExit={archive} {_ERRORS_ONLY}"
    )
    command = [
        str(Path(pyspark.__file__).parent / "bin" / "spark-submit"), "--master", "local[2]",
        "--properties-file", str(conf / SETTINGS_FILE), str(PROGRAM), str(folder / "table"),
    ]  # fmt: skip
    child = {
        **variables, "JAVA_HOME": java_home, "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_CONF_DIR": str(folder / "none"), "SPARK_LOCAL_IP": "127.0.0.1",
    }  # fmt: skip
    try:
        done = subprocess.run(
            command, env=child, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"none: not made within {TIMEOUT_SECONDS} s"
    if done.returncode == 0 and archive.is_file():
        return None
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return f"none, jobs start slower: {' | '.join(lines[-_LAST_LINES:])}"
