"""The feature tables that Feast reads, as arrays for a second stage."""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.feature_table import FeatureView, feature_view
from feature_repo.contracts.run import Run
from feature_repo.contracts.times import start_of_day
from spark_jobs.io.catalogue import categories_of_items, in_run
from spark_jobs.io.light_delta import read_table
from spark_jobs.models.entity_features import CategoryFeatures, EntityFeatures


def load_entity_features(
    environment: Environment, numbers: pa.Table, item_count: int, run: Run, day: date
) -> EntityFeatures | None:
    """All features that are numbers, of users, items and users by category, with `as_of` this day; None when there are
    none of users or none of items.

    `numbers` has item_id and item_number. The features of the run's own day are those that it has just made; of days
    before, it reads the versions that it pinned, and so finds the same when it runs again. It is what Feast's
    point-in-time join gives for that instant: a row is stamped with the beginning of its day.
    """
    users, items = feature_view("user_features"), feature_view("item_features")
    user_rows, item_rows = _rows(environment, run, users, day), _rows(environment, run, items, day)
    if not user_rows.num_rows or not item_rows.num_rows:
        return None
    ids = user_rows["user_id"].to_pylist()
    user_values = np.vstack([_values(user_rows, users), np.full((1, len(_numbers(users))), np.nan, np.float32)])
    known = pc.index_in(item_rows["item_id"].combine_chunks(), value_set=numbers["item_id"].combine_chunks())
    place = numbers["item_number"].combine_chunks().take(known)
    is_known = np.asarray(pc.is_valid(place))
    item_values = np.full((item_count, len(_numbers(items))), np.nan, np.float32)
    item_values[np.asarray(place.drop_null())] = _values(item_rows, items)[is_known]
    return EntityFeatures(
        {user: row for row, user in enumerate(ids)}, _numbers(users), user_values, _numbers(items), item_values,
        _by_category(environment, numbers, item_count, run, day, user_rows["user_id"]),
    )  # fmt: skip


def _by_category(
    environment: Environment, numbers: pa.Table, item_count: int, run: Run, day: date, users: pa.ChunkedArray
) -> CategoryFeatures | None:
    """None without rows or categories. An item's category is the pinned one, with the changes before that day."""
    view = feature_view("user_category_features")
    rows = _rows(environment, run, view, day)
    if not rows.num_rows:
        return None
    said = categories_of_items(environment, in_run(run.pins), cut_off=start_of_day(day))
    names = sorted({category for category in said.values() if category})
    if not names:
        return None
    place = {category: number for number, category in enumerate(names)}
    item_categories = np.full(item_count, -1, np.int64)
    for item_id, number in zip(*(numbers[c].to_pylist() for c in ("item_id", "item_number")), strict=True):
        item_categories[number] = place.get(said.get(item_id) or "", -1)
    columns = (("user_id", users.combine_chunks()), ("category", pa.array(names, pa.string())))
    user, category = (
        np.asarray(pc.fill_null(pc.index_in(rows[name].combine_chunks(), value_set=known), -1)).astype(np.int64)
        for name, known in columns
    )
    kept = np.flatnonzero((user >= 0) & (category >= 0))
    pairs = user[kept] * len(names) + category[kept]
    order = np.argsort(pairs, kind="stable")
    values = np.vstack([_values(rows, view)[kept][order], np.full((1, len(_numbers(view))), np.nan, np.float32)])
    return CategoryFeatures(_numbers(view), item_categories, len(names), pairs[order], values)


def _numbers(view: FeatureView) -> list[str]:
    return [feature.name for feature in view.features if feature.type in ("bigint", "double")]


def _rows(environment: Environment, run: Run, view: FeatureView, day: date) -> pa.Table:
    version = None if day == run.as_of_day else run.pins.get(view.table, -1)
    columns = [*view.join_keys, *_numbers(view)]
    return read_table(environment, view.table, version, columns, [("as_of", "=", day)])


def _values(rows: pa.Table, view: FeatureView) -> NDArray[np.float32]:
    columns = [rows[name].cast(pa.float32(), safe=False).to_numpy() for name in _numbers(view)]
    return np.column_stack(columns).astype(np.float32) if columns else np.empty((rows.num_rows, 0), np.float32)
