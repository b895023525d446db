"""Frames that are computed once, where planning would cost more than work."""

from __future__ import annotations

from pyspark import StorageLevel
from pyspark.sql import DataFrame


def computed(frame: DataFrame) -> DataFrame:
    """`frame`, computed now, without its past: every query over it is planned as one over a plain list, however long
    the way to it was.

    The rows stay where they were computed; on a cluster a second executor keeps them too, because without their past
    they cannot be made again when a machine is lost. Should both be lost, the job fails and is tried again.
    """
    is_cluster = not (frame.sparkSession.sparkContext.master or "").startswith("local")
    return frame.localCheckpoint(storageLevel=StorageLevel.MEMORY_AND_DISK_2 if is_cluster else None)
