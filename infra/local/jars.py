"""Jars that Spark needs beside its own: pinned, fetched once by Spark's own Ivy, checked by SHA-256, kept.

The wheel of delta-spark holds no jars, and the closure that a resolver brings (33 jars) holds older copies of what
pyspark ships. So the seven that are needed are resolved once, everything else excluded, and named in `spark.jars`.
Other sets are fetched when something asks for them.

Where they are looked for, in order: the folder itself; NIGHTJAR_JARS_FROM (a folder, for closed networks); the cache
shared by all checkouts of this user; Ivy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from feature_repo.contracts.errors import DependencyError
from infra.local.trust_store import trust_options

JARS_FROM = "NIGHTJAR_JARS_FROM"
IVY_SETTINGS = "NIGHTJAR_IVY_SETTINGS"
FETCH_TIMEOUT_SECONDS = 600


class Jar(NamedTuple):
    """One pinned jar: its Maven name, size in bytes and SHA-256."""

    group: str
    artifact: str
    version: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    @property
    def ivy_file_name(self) -> str:
        """What Ivy calls it in its `jars` folder."""
        return f"{self.group}_{self.file_name}"


JARS = (
    Jar("io.delta", "delta-spark_4.2_2.13", "4.4.0", 9515916,
        "27d4fd8b1f879535c573ed1c718177d6a27f24d3e626ba02e216369725721ead"),
    Jar("io.delta", "delta-storage", "4.4.0", 113863,
        "c46735481fa8e326b0957be02b4420cbcab4b325bb08009b7f2045a95133f1cc"),
    Jar("io.delta", "delta-kernel-api", "4.4.0", 2838619,
        "ee9b5a14ac3b7efdff4d61a58478fe8eb0e5a3fbca43889dca7290795fe79a11"),
    Jar("io.delta", "delta-kernel-defaults", "4.4.0", 227185,
        "225c975199e4718b38ee5b7e6da7f19e9585024262b2cec2656b32151a856b0b"),
    Jar("io.delta", "delta-kernel-unitycatalog", "4.4.0", 43048,
        "cea22dfb4ac562b3cd27bf652697750e8336009d73fb06631363aaaad5345ffa"),
    Jar("io.unitycatalog", "unitycatalog-client", "0.6.0", 564136,
        "48257499a86b801a3e2372cec55ac226ca1c1c7eabe5c118e7302f29a1fdbc19"),
    Jar("io.unitycatalog", "unitycatalog-hadoop", "0.6.0", 78389,
        "c47b63c961c87102b9e1d63809a0915ba4c86b7652f57c8d39ca3a05b441a150"),
)  # fmt: skip


class JarSet(NamedTuple):
    """Jars that belong together. `resolved_by`: for Ivy, one after another, (packages, what to leave out of them)."""

    name: str
    jars: tuple[Jar, ...]
    resolved_by: tuple[tuple[str, str], ...]


DELTA = JarSet(
    "Delta", JARS, (("io.delta:delta-spark_4.2_2.13:4.4.0", "org.*:*,com.*:*,commons-*:*,javax.*:*,io.airlift:*"),)
)


def ensure_jars(folder: Path, *, java_home: str, variables: Mapping[str, str], jar_set: JarSet = DELTA) -> str:
    """Make `folder` hold the jars of the set, each with its SHA-256; says in a few words where they came from.

    Running it again is cheap (0.1 s) and repairs what is missing or damaged. Raises DependencyError with the remedy.
    """
    if not wrong_jars(folder, jar_set):
        return "already there"
    folder.mkdir(parents=True, exist_ok=True)
    given = variables.get(JARS_FROM)
    if given:
        _take_from(Path(given), folder, jar_set, setting=JARS_FROM)
        return f"copied from {given}"
    cache = cache_folder(variables)
    if not wrong_jars(cache, jar_set):
        _take_from(cache, folder, jar_set, setting="the cache")
        return f"copied from {cache}"
    with tempfile.TemporaryDirectory(prefix="nightjar-ivy-") as staging:
        for packages, excludes in jar_set.resolved_by:
            _fetch(Path(staging), packages, excludes, jar_set, java_home, variables)
        _take_from(Path(staging) / "jars", folder, jar_set, setting="Ivy")
    with contextlib.suppress(OSError):  # a home that cannot be written costs a download in the next checkout, no more
        cache.mkdir(parents=True, exist_ok=True)
        _take_from(folder, cache, jar_set, setting="the jar folder")
    return "fetched"


def jar_paths(folder: Path, jar_set: JarSet = DELTA) -> list[Path]:
    """Where the jars of the set lie in `folder`, in pinned order (not checked)."""
    return [folder / jar.file_name for jar in jar_set.jars]


def wrong_jars(folder: Path, jar_set: JarSet = DELTA) -> dict[str, str]:
    """File name -> what is wrong with it, for each of the set that is missing or is not the pinned one."""
    wrong: dict[str, str] = {}
    for jar in jar_set.jars:
        problem = _problem(folder / jar.file_name, jar)
        if problem:
            wrong[jar.file_name] = problem
    return wrong


def cache_folder(variables: Mapping[str, str]) -> Path:
    """The user's cache: `$XDG_CACHE_HOME/nightjar/jars`, by default under `~/.cache`."""
    base = variables.get("XDG_CACHE_HOME") or os.path.join(variables.get("HOME", str(Path.home())), ".cache")
    return Path(base) / "nightjar" / "jars"


def _problem(path: Path, jar: Jar) -> str | None:
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != jar.size_bytes:
        return f"has {size:,} bytes, the pinned jar has {jar.size_bytes:,}"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    return None if found == jar.sha256 else f"has SHA-256 {found}, the pinned jar has {jar.sha256}"


def _take_from(source: Path, folder: Path, jar_set: JarSet, *, setting: str) -> None:
    """Copy the set, under either of their names, checked before and put in place by one rename each."""
    if not source.is_dir():
        raise DependencyError(f"{setting} names {source}, which is not a folder with the {jar_set.name} jars")
    for jar in jar_set.jars:
        found = next((source / n for n in (jar.file_name, jar.ivy_file_name) if (source / n).is_file()), None)
        if found is None:
            raise DependencyError(f"{setting}: {source} holds no {jar.file_name}; it needs all of: {_names(jar_set)}")
        problem = _problem(found, jar)
        if problem:
            raise DependencyError(f"{setting}: {found} {problem}; it was damaged or replaced, nothing was taken")
        descriptor, partial = tempfile.mkstemp(dir=folder, prefix=f".{jar.file_name}.")
        os.close(descriptor)
        shutil.copyfile(found, partial)
        os.chmod(partial, 0o644)
        os.replace(partial, folder / jar.file_name)


def _fetch(
    staging: Path, packages: str, excludes: str, jar_set: JarSet, java_home: str, variables: Mapping[str, str]
) -> None:
    """Let Spark's Ivy resolve the jars into `staging`/jars, by submitting a program that does nothing."""
    nothing = staging / "nothing.py"
    nothing.write_text("")
    settings = {"spark.jars.ivy": str(staging), "spark.jars.packages": packages, "spark.jars.excludes": excludes}
    if variables.get(IVY_SETTINGS):
        settings["spark.jars.ivySettings"] = variables[IVY_SETTINGS]
    import pyspark

    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    command = [str(submit), "--master", "local[1]"]
    for name, value in settings.items():
        command += ["--conf", f"{name}={value}"]
    given = [variables["SPARK_SUBMIT_OPTS"]] if variables.get("SPARK_SUBMIT_OPTS") else []
    options = " ".join([*given, *proxy_options(variables), *trust_options(staging, variables)])
    child = {**variables, "JAVA_HOME": java_home, "PYSPARK_PYTHON": sys.executable, "SPARK_SUBMIT_OPTS": options}
    child.pop("SPARK_CONF_DIR", None)  # its spark.jars are the ones that are missing
    try:
        done = subprocess.run(
            [*command, str(nothing)], env=child, capture_output=True, text=True, timeout=FETCH_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise DependencyError(_remedy(f"no answer in {FETCH_TIMEOUT_SECONDS} s", jar_set)) from error
    if done.returncode != 0:
        raise DependencyError(_remedy(_cause(done.stdout + done.stderr), jar_set))


def proxy_options(variables: Mapping[str, str]) -> list[str]:
    """HTTPS_PROXY and HTTP_PROXY as Java system properties: Ivy does not read the variables itself."""
    options = []
    for scheme in ("https", "http"):
        value = variables.get(f"{scheme}_proxy") or variables.get(f"{scheme.upper()}_PROXY")
        proxy = urllib.parse.urlsplit(value if value and "//" in value else f"//{value or ''}")
        if proxy.hostname:
            options.append(f"-D{scheme}.proxyHost={proxy.hostname}")
            options.append(f"-D{scheme}.proxyPort={proxy.port or (443 if scheme == 'https' else 80)}")
    return options


def _cause(output: str) -> str:
    for line in reversed(output.splitlines()):
        if any(word in line for word in ("Exception", "unresolved", "not found", "Server access error")):
            return line.strip()
    return output.strip().splitlines()[-1] if output.strip() else "spark-submit said nothing"


def _names(jar_set: JarSet) -> str:
    return ", ".join(jar.file_name for jar in jar_set.jars)


def _remedy(cause: str, jar_set: JarSet) -> str:
    return (
        f"the {jar_set.name} jars could not be fetched: {cause}\n"
        "What helps: behind a proxy set HTTPS_PROXY=http://host:port; with a repository of your own set "
        f"{IVY_SETTINGS}=/path/ivysettings.xml; without any network set {JARS_FROM}=/folder that holds "
        f"{_names(jar_set)}. Then run the same command again."
    )
