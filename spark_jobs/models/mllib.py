"""Spark's ALS: what it is given, how it is called, and what comes of it; and who asks it.

A process that has a session asks it by itself: the ratings go to Spark from there, and the vectors of all items come
back. A task of an executor has none, and is given another way (`asked_elsewhere`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.errors import DataError
from spark_jobs.models.base import InteractionMatrix

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Learn = Callable[[InteractionMatrix, Mapping[str, Any]], NDArray[np.float32]]
"""From a matrix and the params of als to item vectors."""

RATINGS_SCHEMA = "row int, item int, rating float"
_elsewhere: Learn | None = None


@contextmanager
def asked_elsewhere(learn: Learn) -> Iterator[None]:
    """Inside, this process asks `learn` instead of a session of its own."""
    global _elsewhere
    _elsewhere = learn
    try:
        yield
    finally:
        _elsewhere = None


def is_asked_here() -> bool:
    """Whether this process wants a session for a recipe that Spark fits."""
    return _elsewhere is None


def fit_mllib(matrix: InteractionMatrix, params: Mapping[str, Any]) -> NDArray[np.float32]:
    """Item vectors from Spark's ALS; items without interactions get zeros.

    Raises DataError when it is asked here and no session is active.
    """
    if _elsewhere is not None:
        return _elsewhere(matrix, params)
    from pyspark.sql import SparkSession

    spark = SparkSession.getActiveSession()
    if spark is None:
        raise DataError("als engine 'mllib' runs inside a Spark job, and no session is active", field="engine")
    factors = item_factors(spark.createDataFrame(pa.table(ratings_of(matrix))), params)
    return by_item_number(factors.toArrow(), matrix.item_count, int(params["factors"]))


def ratings_of(matrix: InteractionMatrix) -> dict[str, NDArray[Any]]:
    """The columns of RATINGS_SCHEMA, in the order of the matrix: by row, then by item."""
    pairs = matrix.preference.tocoo()
    return {"row": pairs.row.astype(np.int32), "item": pairs.col.astype(np.int32), "rating": np.log1p(pairs.data)}


def item_factors(ratings: DataFrame, params: Mapping[str, Any]) -> DataFrame:
    """id int, features array<float> of each item that has a rating, in any order."""
    from pyspark.ml.recommendation import ALS

    estimator = ALS(
        userCol="row",
        itemCol="item",
        ratingCol="rating",
        implicitPrefs=True,
        rank=int(params["factors"]),
        maxIter=int(params["iterations"]),
        regParam=float(params["regularization"]),
        alpha=float(params["alpha"]),
        seed=int(params["seed"]),
        numUserBlocks=4,
        numItemBlocks=4,
        checkpointInterval=5,
    )
    return estimator.fit(ratings).itemFactors


def by_item_number(learned: pa.Table, item_count: int, factors: int) -> NDArray[np.float32]:
    """What `item_factors` found as one array, a row an item; zeros for an item without."""
    vectors = np.zeros((item_count, factors), np.float32)
    if learned.num_rows:
        found = pc.list_flatten(learned["features"]).to_numpy().reshape(-1, factors)
        vectors[learned["id"].to_numpy()] = found
    return vectors
