"""The Spark session of every job and test. Its settings are in one place, the spark-defaults.conf in SPARK_CONF_DIR."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from feature_repo.contracts.errors import DependencyError
from spark_jobs.engine import is_this_machine

_REQUIRED = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",
}


def get_session(app_name: str) -> SparkSession:
    """The running session, or a new one named `app_name`; the caller stops it.

    Raises DependencyError when a setting that results depend on is missing: without the Delta extension tables cannot
    be read, and in another time zone every day would begin at another instant.
    """
    spark = SparkSession.builder.appName(app_name).getOrCreate()
    for setting, expected in _REQUIRED.items():
        found = spark.conf.get(setting, None)
        if found != expected:
            spark.stop()
            raise DependencyError(
                f"Spark runs with {setting}={found}, expected {expected}; "
                "set SPARK_CONF_DIR to the folder of Nightjar's spark-defaults.conf (`make setup` writes it)"
            )
    return spark


@contextmanager
def session_beside(app_name: str) -> Iterator[Callable[[], SparkSession]]:
    """A session that starts on a thread of its own, for seconds, while the caller does what needs none. Who calls what
    is yielded waits for it, or gets its error; at the end it is stopped."""
    with ThreadPoolExecutor(1) as beside:
        starting = beside.submit(get_session, app_name)
        try:
            yield starting.result
        finally:
            starting.result().stop()


def runs_here() -> bool:
    """Whether this process was submitted to Spark on this machine alone (`local`, `local[*]`, `local[2]`): then threads
    of this process can do what executors would, and no session has to be started to find that out."""
    return is_this_machine(_submitted_to())


def runs_on_cluster() -> bool:
    """Whether this process was submitted to a cluster: then it is a driver (`spark_jobs.engine`)."""
    master = _submitted_to()
    return master is not None and not is_this_machine(master)


def _submitted_to() -> str | None:
    """The master; None when this process was not submitted: a gateway would be another Java."""
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        return None
    return launch_gateway().jvm.java.lang.System.getProperty("spark.master") or None
