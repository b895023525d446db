"""Compiles the native parts of serving and of the models (`*/native/*.pyx`), where there is a C compiler.

    python -m infra.native.compiling            beside their sources, what is not up to date
    python -m infra.native.compiling --force    all of them

Nothing else of Nightjar needs a compiler: without one, serving answers the same from Python, models from scipy. Imports
the standard library alone, because it also runs where a wheel is built.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("serving/native", "spark_jobs/native")
ARITHMETIC = ("-O2", "-fno-fast-math", "-ffp-contract=off")
"""No operation may be fused or reordered: answers are the same bytes as those of Python's floats."""


class NotCompiledError(Exception):
    """Says in one line why there is no native code."""


def sources() -> list[Path]:
    """The parts, by folder and name."""
    return [source for folder in FOLDERS for source in sorted((ROOT / folder).glob("*.pyx"))]


def compiled_name(source: Path) -> str:
    """The file that Python imports."""
    return f"{source.stem}{sysconfig.get_config_var('EXT_SUFFIX')}"


def mark_name(source: Path) -> str:
    """The file that says what the compiled one was made of: digests of the source, and of how it was compiled."""
    return f"{source.stem}.compiled"


def is_current(source: Path, root: Path = ROOT) -> bool:
    """Whether what lies under `root` was made of this source, in this way, for this Python."""
    folder = _folder_of(source, root)
    mark = folder / mark_name(source)
    return (folder / compiled_name(source)).exists() and mark.exists() and mark.read_text() == _made_of(source)


def compile_into(root: Path, *, force: bool = False) -> list[Path]:
    """Compile what is not up to date into the folders of the parts under `root`, or take what lies beside its source
    and is; the compiled files and their marks. Raises NotCompiledError."""
    stale = [source for source in sources() if force or not is_current(source, root)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda source: _compile_one(source, root, force=force), stale))
    return [
        _folder_of(source, root) / name for source in sources() for name in (compiled_name(source), mark_name(source))
    ]


def _folder_of(source: Path, root: Path) -> Path:
    return root / source.parent.relative_to(ROOT)


def _compile_one(source: Path, root: Path, *, force: bool) -> None:
    folder = _folder_of(source, root)
    folder.mkdir(parents=True, exist_ok=True)
    compiled, mark = folder / compiled_name(source), folder / mark_name(source)
    mark.unlink(missing_ok=True)
    if not force and root != ROOT and is_current(source):
        shutil.copyfile(source.with_name(compiled.name), compiled)
    else:
        _compile(source, compiled)
    mark.write_text(_made_of(source))


def _made_of(source: Path) -> str:
    way = hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode()).hexdigest()
    return f"{_digest_of(source)}\n{way}\n"


def _digest_of(source: Path) -> str:
    """As `contracts.native_code.digest_of`, which cannot be imported where a wheel is built."""
    found = hashlib.sha256(source.read_bytes())
    for declarations in sorted(source.parent.glob("*.pxd")):
        found.update(declarations.read_bytes())
    return found.hexdigest()


def _compile(source: Path, to: Path) -> None:
    compiler = shlex.split(os.environ.get("CC") or "")
    for other in (sysconfig.get_config_var("CC") or "", "cc", "gcc", "clang"):
        if not compiler and other and shutil.which(shlex.split(other)[0]):
            compiler = shlex.split(other)
    if not compiler or not shutil.which(compiler[0]):
        raise NotCompiledError("there is no C compiler (Debian, Ubuntu: apt install gcc libc6-dev)")
    headers = sysconfig.get_path("include")
    if not Path(headers, "Python.h").exists():
        raise NotCompiledError(f"there are no headers of Python in {headers} (Debian, Ubuntu: apt install python3-dev)")
    if importlib.util.find_spec("Cython") is None:
        raise NotCompiledError("Cython is not installed")
    link = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch, f"{source.stem}.c")
        _run([sys.executable, "-m", "cython", "-3", "-o", str(written), str(source)], "Cython")
        partial = to.with_name(f"{to.name}.{os.getpid()}.new")
        flags = [*ARITHMETIC, "-fPIC", *link, f"-I{headers}"]
        _run([*compiler, *flags, str(written), "-lm", "-o", str(partial)], compiler[0])
        partial.replace(to)


def _run(command: list[str], who: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise NotCompiledError(f"{who} failed: {(done.stderr or done.stdout).strip()[-2000:]}")


def main() -> int:
    """Entry point; exit 0 also where nothing could be compiled, because nothing depends on it."""
    parser = argparse.ArgumentParser(prog="python -m infra.native.compiling", description="Compile the native parts.")
    parser.add_argument("--force", action="store_true", help="also what is up to date")
    try:
        made = compile_into(ROOT, force=parser.parse_args().force)
    except NotCompiledError as error:
        print(f"serving answers from Python, models from scipy: {error}")
        return 0
    print(f"compiled: {', '.join(path.name for path in made[::2])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
