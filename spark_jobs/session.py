"""The Spark session of every job and test. Its settings are in one place, the spark-defaults.conf in SPARK_CONF_DIR."""

from __future__ import annotations

from pyspark.sql import SparkSession

from feature_repo.contracts.errors import DependencyError

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
