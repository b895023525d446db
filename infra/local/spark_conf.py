"""The one place with Spark's settings on one machine: a generated spark-defaults.conf.

Every process that starts Spark finds it by SPARK_CONF_DIR; sessions are built without further settings. A cluster
brings its own file.

The Delta jars stand on the class path instead of in `spark.jars`: only classes that Java itself loads from there can
come from the class archive. Those for an object store stand in `spark.jars`: so the class path, and with it the
archive, is the same with and without them.
"""

from __future__ import annotations

import os
from pathlib import Path

from feature_repo.contracts.object_store import ObjectStore
from infra.local.jars import jar_paths
from infra.local.store_jars import S3A

_JAVA_OPTIONS = "-Duser.timezone=UTC -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -Xss4m"


SETTINGS_FILE = "spark-defaults.conf"
_QUIET_WITHOUT_ARCHIVE = "-Xlog:cds=off -Xlog:cds+dynamic=off"


def write_spark_conf(
    folder: Path,
    jars_folder: Path,
    *,
    driver_memory: str = "3g",
    class_archive: Path | None = None,
    java_options: str = "",
    store: ObjectStore | None = None,
) -> Path:
    """Write `folder`/spark-defaults.conf for the jars in `jars_folder`; returns `folder`, the SPARK_CONF_DIR.

    Drivers take their classes from `class_archive` when it fits them, silently from the jars otherwise; they get
    `java_options` besides. With a `store` the jars of `store_jars.S3A` must lie in `jars_folder` too.
    """
    jars = [str(path.absolute()) for path in jar_paths(jars_folder)]
    archive = f"-XX:SharedArchiveFile={class_archive.absolute()} {_QUIET_WITHOUT_ARCHIVE}" if class_archive else ""
    settings = {
        # `spark-submit --master`, and so the connection spark_default, takes precedence
        "spark.master": "local[*]",
        "spark.driver.extraClassPath": ":".join(jars),
        "spark.executor.extraClassPath": ":".join(jars),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.ansi.enabled": "true",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": driver_memory,
        # A job of the night lives for half a minute: the optimising compiler would cost more than it could win back.
        # (Tasks of large runs leave this one out: dags/job_operators.py.)
        # Without it the code cache has 48 MB, and once wide queries have filled that, nothing more is compiled.
        # The lineage of an iterative fit is deep: it is cut at checkpoints, and read on stacks that hold it.
        "spark.driver.extraJavaOptions": " ".join(filter(None, [_JAVA_OPTIONS, archive, java_options])),
        # executors of a cluster are no different
        "spark.executor.extraJavaOptions": _JAVA_OPTIONS,
        "spark.executor.memory": "2g",
        "spark.checkpoint.dir": str((folder / "checkpoints").absolute()),
        "spark.cleaner.referenceTracking.cleanCheckpoints": "true",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "WARN",
        "spark.sql.debug.maxToStringFields": "200",
        "spark.sql.warehouse.dir": str((folder / "warehouse").absolute()),
        # One machine, small tables: a task costs more than the rows in it.
        "spark.sql.shuffle.partitions": "4",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "4",
        "spark.databricks.delta.snapshotPartitions": "2",
        # Rows that are written as they lie: a file of each partition is open, and nothing is sorted.
        "spark.sql.maxConcurrentOutputFileWriters": "200",
        # ... and holds what it has until it is over: large pages and dictionaries of hundreds of files fill the memory.
        "spark.hadoop.parquet.page.size": "131072",
        "spark.hadoop.parquet.dictionary.page.size": "262144",
        # No two are alike: a dictionary of them is made for nothing.
        "spark.hadoop.parquet.enable.dictionary#event_id": "false",
        # What is kept is read a few times: finding out how each column packs best takes as long as keeping it.
        "spark.sql.inMemoryColumnarStorage.compressed": "false",
    }
    if store is not None:
        settings["spark.jars"] = ",".join(str(path.absolute()) for path in jar_paths(jars_folder, S3A))
        settings |= store.spark_settings()
    text = "# Written by infra/local/spark_conf.py; changes are lost.\n"
    text += "".join(f"{name} {value}\n" for name, value in settings.items())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS_FILE
    partial = folder / f".spark-defaults.{os.getpid()}"
    partial.write_text(text)
    partial.replace(path)
    return folder
