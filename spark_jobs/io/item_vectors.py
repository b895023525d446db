"""gold.item_factors: the item vectors of a night's factorizations, from which the next night's begin."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import Run
from spark_jobs.io.light_delta import arrow_schema, read_table
from spark_jobs.io.light_tables import replace_rows
from spark_jobs.io.night_before import stored_rows
from spark_jobs.models.warm_start import ItemVectors
from spark_jobs.transforms.touched import oldest_kept

VECTORS = "gold.item_factors"


class Starts(NamedTuple):
    """By `recipe_id`: item vectors to begin from, and the night whose fit began their chain from nothing."""

    vectors: Mapping[str, ItemVectors]
    cold_as_of: Mapping[str, date]


def read_starts(environment: Environment, run: Run, *, item_count: int) -> Starts:
    """The vectors of the day before; none of a chain that began OLDEST_DAYS ago."""
    columns = ["recipe", "item_number", "vector", "cold_as_of"]
    wanted = pa.schema([arrow_schema(VECTORS).field(column) for column in columns])
    rows = pa.Table.from_batches(stored_rows(environment, run, VECTORS, columns), wanted)
    young = pa.scalar(oldest_kept(run.as_of_day), pa.date32())
    rows = rows.filter(pc.and_(pc.greater(rows["cold_as_of"], young), pc.less(rows["item_number"], item_count)))
    vectors, cold = {}, {}
    for recipe in sorted(pc.unique(rows["recipe"]).to_pylist()):
        own = rows.filter(pc.equal(rows["recipe"], recipe))
        values = own["vector"].combine_chunks().flatten().to_numpy().reshape(own.num_rows, -1)
        vectors[recipe] = np.zeros((item_count, values.shape[1]), np.float32)
        vectors[recipe][own["item_number"].to_numpy()] = values
        cold[recipe] = own["cold_as_of"][0].as_py()
    return Starts(vectors, cold)


def write_vectors(environment: Environment, run: Run, learned: Mapping[str, ItemVectors], starts: Starts) -> None:
    """gold.item_factors of this as_of: a row for every item that has a vector. A night whose model has none writes only
    where an earlier run of the same day had some."""
    day = run.as_of_day
    if not learned and not read_table(environment, VECTORS, None, ["recipe"], [("as_of", "=", day)]).num_rows:
        return
    tables = [arrow_schema(VECTORS).empty_table()]
    for recipe, vectors in sorted(learned.items()):
        numbers = np.flatnonzero(vectors.any(axis=1))
        offsets = np.arange(len(numbers) + 1, dtype=np.int32) * vectors.shape[1]
        flat = pa.array(vectors[numbers].astype(np.float32).ravel())
        columns = {
            "recipe": pa.array([recipe] * len(numbers), pa.string()),
            "item_number": pa.array(numbers.astype(np.int32)),
            "vector": pa.ListArray.from_arrays(pa.array(offsets), flat),
            "cold_as_of": pa.array([starts.cold_as_of.get(recipe, day)] * len(numbers), pa.date32()),
            "as_of": pa.array([day] * len(numbers), pa.date32()),
        }
        tables.append(pa.table(columns, schema=arrow_schema(VECTORS)))
    replace_rows(environment, VECTORS, pa.concat_tables(tables).combine_chunks(), day)
