"""gold.candidates from the executors of a session: they rank and write its files, the driver commits their names.

A task ranks some blocks of people into one Parquet file of the table's folder; what comes back is the file's path, size
and row count (infra/adr/0028). Files of a task that failed are in no commit, and go with the next vacuum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from threadpoolctl import threadpool_limits

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import Run
from spark_jobs.giving_way import give_way
from spark_jobs.io.day_files import WrittenFile, commit_day, write_batches
from spark_jobs.io.night_before import kept_lists
from spark_jobs.io.parcels import Parcel, take
from spark_jobs.transforms.candidates import Scoring, denied_candidates, score_block

TABLE = "gold.candidates"
LEAST_TASKS = 8
_FILE_SCHEMA = "path string, size long, rows long"

Batches = Iterator[pa.RecordBatch]


@dataclass(frozen=True, slots=True)
class Lists:
    """All that the rows of a day are made of. `kept`: whose list of the night before still holds."""

    environment: Environment
    run: Run
    scoring: Scoring
    denied: list[str]
    kept: NDArray[np.str_]

    def of_block(self, block: int) -> Batches:
        """The rows of a block; the block after the last one is that of those who are not scored."""
        if block < self.scoring.block_count:
            yield score_block(self.scoring, block)
        else:
            yield from self.unscored()

    def unscored(self) -> Batches:
        yield from denied_candidates(self.denied, self.run.as_of_day).to_batches()
        if len(self.kept):
            yield from kept_lists(self.environment, self.run, self.kept, str(self.scoring.made_by))


def write_lists(spark: SparkSession, environment: Environment, run: Run, lists: Parcel, block_count: int) -> None:
    """Put the rows of `lists` (`Lists`, left by somebody) in the place of what the table has of the run's day."""
    tasks = min(max(LEAST_TASKS, spark.sparkContext.defaultParallelism), block_count + 1)

    def written() -> list[WrittenFile]:
        blocks = spark.range(0, block_count + 1, 1, tasks)
        found = blocks.mapInArrow(_write_blocks(environment, run, lists), _FILE_SCHEMA).collect()
        return [WrittenFile(row.path, row.size, row.rows) for row in found]

    commit_day(environment, TABLE, run.as_of_day, written)


def _write_blocks(environment: Environment, run: Run, parcel: Parcel) -> Callable[[Batches], Batches]:
    def write(asked: Batches) -> Batches:
        give_way()
        lists: Lists = take(parcel)
        blocks = (block for batch in asked for block in batch["id"].to_pylist())
        rows = (batch for block in blocks for batch in lists.of_block(block))
        with threadpool_limits(1, "blas"):  # two were slower, and one gives the same bits everywhere
            made = write_batches(environment, TABLE, run.as_of_day, rows)
        if made is not None:
            yield pa.RecordBatch.from_pylist([made._asdict()])

    return write
