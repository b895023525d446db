"""Native code is compiled where that can be done, goes into wheels, and never decides whether serving answers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from infra.native import compiling
from serving.native import PARTS, why_not
from spark_jobs.native import PARTS as MODEL_PARTS
from tests.conftest import ROOT

CAN_COMPILE = importlib.util.find_spec("Cython") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))
needs_compiler = pytest.mark.skipif(not CAN_COMPILE, reason="no C compiler, or no Cython")
SAYS = (
    "from serving.native import described, parts; "
    "print(described(), None not in (parts.answers, parts.slates, parts.writing, parts.records, parts.subjects))"
)

MODELS_SAY = "from spark_jobs.native import products, why_not; print(why_not, products is not None)"


def run(folder: Path, *arguments: str, **variables: str) -> str:
    found = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTJAR_")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**found, "PYTHONPATH": str(folder), **variables},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The sources alone: nothing is compiled."""
    folder = tmp_path / "checkout"
    left_out = shutil.ignore_patterns("*.so", "*.compiled", "__pycache__", "docs", "grafana", "k8s", "bench", "demo")
    for package in ("feature_repo", "serving", "infra"):
        shutil.copytree(ROOT / package, folder / package, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    for package in ("dags", "spark_jobs"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
    shutil.copytree(ROOT / "spark_jobs" / "native", folder / "spark_jobs" / "native", ignore=left_out)
    return folder


def wheel_of(checkout: Path, **variables: str) -> tuple[str, set[str], set[str]]:
    """Name of the wheel, names of what belongs to serving/native in it, and to spark_jobs/native."""
    shutil.rmtree(checkout / "dist", ignore_errors=True)
    run(checkout, "-m", "hatchling", "build", "-t", "wheel", **variables)
    (wheel,) = (checkout / "dist").iterdir()
    with zipfile.ZipFile(wheel) as opened:
        names = [name.rpartition("/") for name in opened.namelist()]
    of_serving, of_models = (
        {n for folder, _, n in names if folder == f"{p}/native"} for p in ("serving", "spark_jobs")
    )
    return wheel.name, of_serving, of_models


def test_python_answers_where_nothing_was_compiled(checkout: Path) -> None:
    assert run(checkout, "-c", SAYS) == "Python (not compiled) False\n"


def test_without_a_compiler_it_says_so_and_is_content(checkout: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    said = run(checkout, "-m", "infra.native.compiling", PATH=str(empty))
    assert said.startswith("serving answers from Python, models from scipy: there is no C compiler")
    assert not list((checkout / "serving" / "native").glob("*.so"))


@needs_compiler
def test_compiled_once_used_put_into_wheels_switched_off_and_never_used_when_old(
    checkout: Path, tmp_path: Path
) -> None:
    native = checkout / "serving" / "native"
    parts = [compiling.ROOT / "serving" / "native" / f"{name}.pyx" for name in PARTS]
    of_models = [compiling.ROOT / "spark_jobs" / "native" / f"{name}.pyx" for name in MODEL_PARTS]
    compiled = {compiling.compiled_name(part) for part in parts}
    for part in (*parts, *of_models):
        if part.stem != "records" and compiling.is_current(part):  # one is enough to compile here
            for name in (compiling.compiled_name(part), compiling.mark_name(part)):
                shutil.copy(part.with_name(name), checkout / part.parent.relative_to(compiling.ROOT))
    made = [*sorted(compiled), *(compiling.compiled_name(part) for part in of_models)]
    assert run(checkout, "-m", "infra.native.compiling") == f"compiled: {', '.join(made)}\n"
    assert run(checkout, "-c", MODELS_SAY) == "None True\n"
    assert run(checkout, "-c", MODELS_SAY, NIGHTJAR_PURE_PYTHON="1") == "NIGHTJAR_PURE_PYTHON is set False\n"
    assert run(checkout, "-c", SAYS) == "native code True\n"
    assert run(checkout, "-c", SAYS, NIGHTJAR_PURE_PYTHON="1") == "Python (NIGHTJAR_PURE_PYTHON is set) False\n"
    assert run(checkout, "-c", SAYS, NIGHTJAR_PURE_PYTHON="0") == "native code True\n"
    made_at = [(native / name).stat().st_mtime_ns for name in sorted(compiled)]
    run(checkout, "-m", "infra.native.compiling")
    assert [(native / name).stat().st_mtime_ns for name in sorted(compiled)] == made_at

    name, found, found_of_models = wheel_of(checkout)
    assert found_of_models == {"__init__.py"} | {
        name for part in of_models for name in (part.name, compiling.compiled_name(part), compiling.mark_name(part))
    }
    sources = {path.name for path in native.iterdir() if path.suffix in (".py", ".pyi", ".pyx", ".pxd")}
    assert sources >= {"parts.py", "work.pxd", "slates.pyi"} | {f"{name}.pyx" for name in PARTS}
    assert found == sources | compiled | {compiling.mark_name(part) for part in parts}
    assert not name.endswith("-none-any.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(checkout / "dist" / name) as opened:
        opened.extractall(installed)
    assert run(installed, "-c", SAYS) == "native code True\n"
    assert run(installed, "-c", MODELS_SAY) == "None True\n"
    name, found, _ = wheel_of(checkout, NIGHTJAR_PURE_PYTHON="1")
    assert name.endswith("-py3-none-any.whl")
    assert found == sources

    for changed in ("work.pxd", "slates.pyx"):  # declarations go into what is made of them
        before = (native / changed).read_text()
        (native / changed).write_text(f"{before}\n# changed\n")
        assert run(checkout, "-c", SAYS) == "Python (compiled from another source) False\n"
        if changed == "work.pxd":
            (native / changed).write_text(before)
            assert run(checkout, "-c", SAYS) == "native code True\n"
    empty = tmp_path / "empty"
    empty.mkdir()
    name, found, _ = wheel_of(checkout, PATH=str(empty))
    assert name.endswith("-py3-none-any.whl")
    assert found == sources


@pytest.mark.skipif(why_not is not None, reason="not compiled")
@pytest.mark.parametrize(
    "first",
    ["main", "ids", "recommender", "api.rendering", "speed.applier"]
    + [f"pipeline.{name}" for name in ("catalogue", "list_slate", "rank_given", "ranker", "ruled_slate", "slate")],
)
def test_native_code_is_loaded_whichever_module_comes_first(first: str) -> None:
    """Native code imports parts of the pipeline, which asks for native code."""
    words = (
        f"import serving.{first}; from serving.native import PARTS, parts; print([getattr(parts, p) for p in PARTS])"
    )
    found = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert found.stdout.count("<module") == len(PARTS)
    assert not found.stderr
