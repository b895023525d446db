"""`python -m infra.local.setup`: the part of `make setup` that comes after the Python packages.

Finds Java and a Redis-compatible server, fetches the Delta jars, makes the class archive, writes spark-defaults.conf,
compiles what serving has in native code.
Each part that is already done is left alone, so it may be killed and run again at any time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import NightjarError
from infra.local.class_archive import ensure_archive
from infra.local.jars import ensure_jars
from infra.local.java import Java, choose_java
from infra.local.redis_server import find_server
from infra.local.spark_conf import write_spark_conf
from infra.local.store_jars import S3A
from infra.native.compiling import ROOT, NotCompiledError, compile_into


class Tools(NamedTuple):
    """What this machine runs things with."""

    java: Java
    spark_conf: str


def prepare(variables: Mapping[str, str], *, say: bool = False) -> Tools:
    """Java, jars and spark-defaults.conf for the installation that `variables` describe; `say` prints what was found.

    Raises DependencyError with the remedy.
    """
    environment = Environment.from_mapping(variables)
    home = Path(environment.home)
    java = choose_java(variables, home / "java")
    origin = ensure_jars(Path(environment.jars), java_home=java.home, variables=variables)
    jars = Path(environment.jars)
    archive, archive_origin = ensure_archive(jars, java_home=java.home, variables=variables)
    store_origin = ""
    if environment.store is not None:
        store_origin = ensure_jars(jars, java_home=java.home, variables=variables, jar_set=S3A)
    spark_conf = write_spark_conf(home / "spark", jars, class_archive=archive, store=environment.store)
    if say:
        print(f"  java     {java.major} from {java.origin} ({java.home})")
        print(f"  jars     seven Delta jars, {origin} ({environment.jars})")
        if environment.store is not None:
            print(f"  jars     {len(S3A.jars)} for {environment.lakehouse}, {store_origin}")
        print(f"  classes  archive for Java, {archive_origin}")
    return Tools(java=java, spark_conf=str(spark_conf))


def main() -> int:
    """Exit 0 when everything is there, 3 with a message when something is missing."""
    try:
        prepare(os.environ, say=True)
        server = find_server(os.environ)
        print(f"  redis    {server.path} (from {server.origin})")
    except NightjarError as error:
        print(f"error {type(error).__name__}: {error}", file=sys.stderr)
        return 3
    print(f"  native   {compile_native()}")
    return 0


def compile_native() -> str:
    """Compile the native parts, where that can be done; what came of it, in words."""
    try:
        compile_into(ROOT)
    except NotCompiledError as error:
        return f"none, serving answers from Python: {error}"
    except OSError as error:
        return f"none, serving answers from Python: {ROOT} cannot be written: {error.strerror}"
    return "serving is compiled"


if __name__ == "__main__":
    sys.exit(main())
