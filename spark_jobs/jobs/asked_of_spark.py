"""A task of an executor that may want a recipe fitted by Spark, which no task can ask (infra/adr/0028).

The task leaves its ratings in the run folder, in parts, and ends; the driver, which hears their digests, has Spark's
ALS learn from them, a part a task, and a task of Spark's leaves the item vectors there; then the task is begun again,
and finds them. So it is done once more for each fit that Spark makes, and `work` does the same each time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import Run
from spark_jobs.engine import on_executor
from spark_jobs.giving_way import give_way
from spark_jobs.io.parcels import Parcel, leave, take
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.mllib import RATINGS_SCHEMA, asked_elsewhere, by_item_number, item_factors, ratings_of

Done = TypeVar("Done")
Batches = Iterator[pa.RecordBatch]

MOST_RATINGS = 4_000_000
"""Of a part, 48 MB: a process of an executor holds one."""
_ROWS_PER_BATCH = 10_000


class Wanted(NamedTuple):
    """A fit that Spark is asked for. `key` names matrix and params; `parts`: the ratings, in order."""

    key: str
    parts: list[Parcel]
    params: dict[str, Any]
    rating_count: int
    item_count: int


class _Unlearned(BaseException):
    """Ends the task. No error: what handles errors on the way out must not take it for one."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted


def on_executor_with_spark(spark: SparkSession, environment: Environment, run: Run, work: Callable[[], Done]) -> Done:
    """`on_executor`, inside `parcels_of`, of `work` in which als on mllib is fitted by this session."""
    learned: dict[str, Parcel] = {}
    while True:
        task = partial(_work, environment, run, work, learned, spark.sparkContext.defaultParallelism)
        found: Done | Wanted = on_executor(spark, task)
        if not isinstance(found, Wanted):
            return found
        learned[found.key] = _learn(spark, environment, run, found)
        print(f"Spark learned als from {found.rating_count:,} ratings; the task begins again", flush=True)


def _work(
    environment: Environment, run: Run, work: Callable[[], Done], learned: Mapping[str, Parcel], least_parts: int
) -> Done | Wanted:
    def learn(matrix: InteractionMatrix, params: Mapping[str, Any]) -> NDArray[np.float32]:
        key = _key(matrix, params)
        if key not in learned:
            _stop(environment, run, key, matrix, params, least_parts)
        vectors: NDArray[np.float32] = take(learned[key])
        return vectors

    try:
        with asked_elsewhere(learn):
            return work()
    except _Unlearned as found:
        return found.wanted


def _key(matrix: InteractionMatrix, params: Mapping[str, Any]) -> str:
    found, named = matrix.preference, json.dumps([dict(params), list(matrix.preference.shape)], sort_keys=True)
    digest = hashlib.sha256(named.encode())
    for array in (found.indptr, found.indices, found.data):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _stop(
    environment: Environment, run: Run, key: str, matrix: InteractionMatrix, params: Mapping[str, Any], least: int
) -> NoReturn:
    ratings = ratings_of(matrix)
    count = len(ratings["row"])
    parts = max(least, -(-count // MOST_RATINGS))
    ends = [n * count // parts for n in range(parts + 1)]  # as Spark divides what a driver gives it
    left = [
        leave(environment, run, {name: column[first:last] for name, column in ratings.items()})
        for first, last in pairwise(ends)
    ]
    raise _Unlearned(Wanted(key, left, dict(params), count, matrix.item_count))


def _learn(spark: SparkSession, environment: Environment, run: Run, wanted: Wanted) -> Parcel:
    """The item vectors, left by a task: the driver holds none."""
    parts = spark.range(0, len(wanted.parts), 1, len(wanted.parts))
    factors = item_factors(parts.mapInArrow(_read_parts(wanted.parts), RATINGS_SCHEMA), wanted.params)
    left = factors.coalesce(1).mapInArrow(_leave_vectors(environment, run, wanted), "path string, sha256 string")
    return Parcel(*left.collect()[0])


def _read_parts(parts: list[Parcel]) -> Callable[[Batches], Batches]:
    def read(asked: Batches) -> Batches:
        give_way()
        for part in (part for batch in asked for part in batch["id"].to_pylist()):
            yield from pa.table(take(parts[part])).to_batches(_ROWS_PER_BATCH)

    return read


def _leave_vectors(environment: Environment, run: Run, wanted: Wanted) -> Callable[[Batches], Batches]:
    def write(learned: Batches) -> Batches:
        give_way()
        vectors = by_item_number(pa.Table.from_batches(learned), wanted.item_count, int(wanted.params["factors"]))
        yield pa.RecordBatch.from_pylist([leave(environment, run, vectors)._asdict()])

    return write
