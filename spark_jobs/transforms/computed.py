"""Frames that are computed once, where planning would cost more than work."""

from __future__ import annotations

from pyspark import StorageLevel
from pyspark.sql import DataFrame

from spark_jobs.engine import is_cluster


def computed(frame: DataFrame) -> DataFrame:
    """`frame`, computed now, without its past: every query over it is planned as one over a plain list, however long
    the way to it was.

    The rows stay where they were computed; on a cluster a second executor keeps them too, because without their past
    they cannot be made again when a machine is lost. Should both be lost, the job fails and is tried again.
    """
    level = StorageLevel.MEMORY_AND_DISK_2 if is_cluster(frame.sparkSession) else None
    return frame.localCheckpoint(storageLevel=level)
