"""Who does the work of a job: this machine alone, or the executors of a cluster (infra/adr/0028).

On this machine alone (`local`, `local[*]`) the process of the job reads, fits, ranks and writes by itself: executors
would be the same processors, behind a copy of everything. On a cluster (any other master) that process is a driver: it
plans, asks and commits, and what grows with the number of people or events stays with the executors and in the
lakehouse. What a job does differs in nothing else.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import Any, TypeVar

from pyspark.sql import SparkSession

from feature_repo.contracts.errors import NightjarError
from spark_jobs.giving_way import give_way

Done = TypeVar("Done")


def is_this_machine(master: str | None) -> bool:
    """Whether a master is this machine alone; `local-cluster[...]` is a cluster of processes."""
    return master is not None and (master == "local" or master.startswith("local["))


def is_cluster(spark: SparkSession) -> bool:
    """Whether the executors of this session are other processes than its driver."""
    return not is_this_machine(spark.sparkContext.master)


def on_executor(spark: SparkSession, work: Callable[[], Done]) -> Done:
    """What `work` gives, done by one task of an executor. What it prints is printed here when it is over.

    It travels there and its result back, so both are small: functions of modules, and what they are told.
    An error of ours is raised here as it was there, and Spark does not try again; after any other it does, on another
    executor perhaps: `work` does the same when it is done twice.
    """
    said, done, error = spark.sparkContext.parallelize([0], 1).map(partial(_do, work)).collect()[0]
    print(said, end="", flush=True)
    if error is not None:
        raise error
    return done


def _do(work: Callable[[], Any], _: int) -> tuple[str, Any, NightjarError | None]:
    give_way()
    with redirect_stdout(io.StringIO()) as said:
        try:
            done, error = work(), None
        except NightjarError as found:
            done, error = None, found.with_traceback(None)
    return said.getvalue(), done, error
