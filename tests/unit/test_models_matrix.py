"""From events to the preference matrix: expected values worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import sparse

from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.times import to_micros
from spark_jobs.models.matrix import COLUMNS, LEAST_PREFERENCE, build_matrix, dense_part, sort_interactions
from tests.builders import utc

CUT_OFF = utc("2024-03-08")
WEIGHTS = {"view_item": 1.0, "purchase": 8.0, "like": 0.0}

ROWS = [
    ("u:b", 2, "view_item", "2024-03-07"),  # 1 day old: 1/2 at a half-life of a day
    ("u:b", 2, "purchase", "2024-03-06"),  # 2 days: 8/4
    ("u:b", 0, "view_item", "2024-03-07T12:00:00"),  # half a day: 2 ** -0.5
    ("u:b", 1, "purchase", "2024-03-08"),  # at the cut-off: not seen
    ("u:a", 1, "view_item", "2024-03-05"),  # 3 days: 1/8
    ("u:a", 1, "view_item", "2024-03-05"),  # the same instant again: counts again
    ("u:c", 1, "like", "2024-03-07"),  # a type of weight 0: no row for u:c
    ("u:d", 1, "share", "2024-03-07"),  # a type without a weight: no row for u:d
    ("u:e", 3, "view_item", "2021-03-08"),  # faded beyond float32, yet it happened
]


def table(rows: list[tuple[str, int, str, str]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    return pa.table(
        {
            "subject_key": pa.array(columns[0], pa.string()),
            "item_number": pa.array(columns[1], pa.int32()),
            "event_type": pa.array(columns[2], pa.string()),
            "micros": pa.array([to_micros(utc(t)) for t in columns[3]], pa.int64()),
        }
    )


def build(rows: list[tuple[str, int, str, str]], **other: object):
    values = {"item_count": 5, "weights": WEIGHTS, "half_life_days": 1.0, "cut_off": CUT_OFF}
    return build_matrix(table(rows), **{**values, **other})


def test_a_dense_part_is_what_indexing_gives() -> None:
    """Rows and columns repeat, stand in any order, or are none; the matrix has an empty row and an empty column."""
    rng = np.random.default_rng(3)
    dense = (rng.random((9, 7)) < 0.4) * rng.random((9, 7)).astype(np.float32)
    dense[4], dense[:, 2] = 0, 0
    found = sparse.csr_matrix(dense)
    for rows, columns in (([3, 4, 0, 3], [6, 2, 2, 0]), ([8], [5, 1]), ([], [1]), ([1, 2], []), ([4], [2])):
        chosen = np.array(rows, np.int64), np.array(columns, np.int32)
        np.testing.assert_array_equal(dense_part(found, *chosen), dense[np.ix_(*chosen)])


def test_preferences_by_hand() -> None:
    matrix = build(ROWS)
    assert matrix.subjects.tolist() == ["u:a", "u:b", "u:e"]
    expected = [[0, 0.25, 0, 0, 0], [2**-0.5, 0, 0.5 + 2.0, 0, 0], [0, 0, 0, LEAST_PREFERENCE, 0]]
    np.testing.assert_allclose(matrix.preference.toarray(), expected, rtol=1e-6)
    assert matrix.preference.dtype == np.float32
    assert matrix.preference.nnz == 4
    assert matrix.last_micros.tolist() == [
        to_micros(utc(t)) for t in ("2024-03-05", "2024-03-07T12:00:00", "2024-03-07", "2021-03-08")
    ]


def test_without_decay() -> None:
    matrix = build(ROWS, half_life_days=None)
    assert matrix.preference.toarray().tolist() == [[0, 2, 0, 0, 0], [1, 0, 9, 0, 0], [0, 0, 0, 1, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_order_of_rows_changes_no_bit(seed: int) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (f"u:{rng.integers(6)}", int(rng.integers(5)), str(rng.choice(["view_item", "purchase"])),
         f"2024-02-{rng.integers(1, 29):02d}T00:00:{rng.integers(3):02d}")
        for _ in range(300)
    ]  # fmt: skip
    first = build(rows)
    second = build([rows[k] for k in np.random.default_rng(seed).permutation(len(rows))])
    assert first.subjects.tolist() == second.subjects.tolist()
    assert first.preference.data.tobytes() == second.preference.data.tobytes()
    assert first.preference.indices.tolist() == second.preference.indices.tolist()
    assert first.last_micros.tolist() == second.last_micros.tolist()


def test_pandas_and_dictionaries_are_the_same() -> None:
    plain = table(ROWS)
    frame: pd.DataFrame = plain.to_pandas()
    for same in (frame, sort_interactions(plain), sort_interactions(plain).slice(2)):
        assert sort_interactions(same).num_rows == len(same)
    matrix = build_matrix(frame, item_count=5, weights=WEIGHTS, half_life_days=1.0, cut_off=CUT_OFF)
    np.testing.assert_array_equal(matrix.preference.toarray(), build(ROWS).preference.toarray())


def test_sorted_by_subject_item_time_and_type() -> None:
    rows = [*ROWS, ("u:a", 1, "purchase", "2024-03-05")]  # as old as two views of the same pair
    ordered = sort_interactions(table(rows)).to_pydict()
    keys = list(zip(*(ordered[c] for c in ("subject_key", "item_number", "micros", "event_type")), strict=True))
    assert len(keys) == len(rows)
    assert keys == sorted(keys)


@pytest.mark.parametrize("swapped", range(4))
def test_rows_in_order_but_for_one_column_are_sorted(swapped: int) -> None:
    first = ["u:a", 1, 10, "click"]
    second = [*first]
    second[swapped] = ["u:b", 2, 11, "view_item"][swapped]
    rows = [("u:", 5, 5, "a"), second, first, ("u:c", 0, 0, "a")]
    columns = ("subject_key", "item_number", "micros", "event_type")
    found = sort_interactions(pa.table({name: [row[n] for row in rows] for n, name in enumerate(columns)}))
    keys = list(zip(*(found[name].to_pylist() for name in columns), strict=True))
    assert keys == [rows[0], tuple(first), tuple(second), rows[3]]


def test_nothing_gives_an_empty_matrix() -> None:
    matrix = build([])
    assert matrix.preference.shape == (0, 5)
    assert matrix.subjects.tolist() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_count": 3}, r"1 of 9 interactions have an item number outside 0\.\.2 \(seen 0\.\.3\)"),
        ({"half_life_days": 0.0}, "half_life_days must be positive or null, got 0.0"),
        ({"weights": {"view_item": -1.0}}, "event weights must be finite and >= 0"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(ROWS, **change)


def test_missing_columns_and_nulls_are_named() -> None:
    with pytest.raises(ContractError, match="missing: micros"):
        sort_interactions(table(ROWS).select(COLUMNS[:3]))
    holed = table(ROWS).set_column(1, "item_number", pa.array([None, *range(8)], pa.int32()))
    with pytest.raises(DataError, match=r"must not have nulls, found \{'item_number': 1\}"):
        sort_interactions(holed)
