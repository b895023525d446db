"""The column-wise path and `check_event` itself must say the same about any row, good or bad."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.bronze import bronze_row
from feature_repo.contracts.events import check_event
from infra.importing.checking import EventChecker, Tally
from infra.importing.fast_path import plainly_good
from infra.importing.mapping import ColumnMap
from infra.importing.reading import Batch, ImportFile
from infra.importing.values import event_of_row, plain_types

RECEIVED = datetime(2024, 3, 8, 12, tzinfo=UTC)
FILE = ImportFile(Path("a.csv"), "a.csv", ".csv")
ROWS = 3_000

IDS = ["u1", "u1", "u1", "u2", None, "", " ", "x" * 256, "x" * 257, "\u00fc" * 128, "\u00fc" * 129, "a\x00b", "0"]
TEXT_VALUES: dict[str, list[Any]] = {
    "event_id": IDS,
    "event_type": ["view_item", "view_item", "purchase", "search", "View", "Product Viewed", "veiw_item", None, ""],
    "user_id": IDS,
    "anonymous_id": [None, None, "d1", "x" * 257],
    "session_id": IDS,
    "item_id": IDS,
    "timestamp": [
        "2024-03-08T10:00:00Z", "2024-03-08T10:00:00Z", "2024-03-08 10:00:00", "2024-03-08T10:00:00.123Z",
        "2024-03-08T10:00:00.123456+05:30", "2024-03-08T10:00:00.1Z", "2024-03-08T10:00:00.1234567Z",
        "2024-03-08T10:00:00-14:00", "2024-03-08T10:00:00+24:00", "2024-03-08T10:00:00+0100", "2024-03-08",
        "2024-02-30T10:00:00Z", "2024-03-08T24:00:00Z", "2024-03-08T10:60:00Z", "2024-03-08T10:00:60Z",
        "2024-03-09T12:00:00Z", "2024-03-09T12:00:00.000001Z", "1995-01-01T00:00:00Z", "1994-12-31T23:59:59.999Z",
        "1709895600", "1709895600123", "-1", "2999-01-01T00:00:00Z", "20240308T100000Z", "2024-W10-5", "now", None,
        "2024-03-08T10:00:00z", " 2024-03-08T10:00:00Z ", "0001-01-01T00:00:00+14:00", "9" * 18, "2024-13-01T00:00:00Z",
    ],
    "quantity": [
        None, "1", "2", "0", "-1", "1.0", "1.5", "+3", "007", "2147483647", "2147483648", "1e3", "x", "", "\u0663",
    ],
    "price": [None, "1", "2.50", "0", "-0", "-0.01", "1e2", ".5", "5.", "nan", "inf", "1_000", "x", "9" * 20, "1e999"],
    "value": [None, "1", "-2.50", "nan", "", "0.1", "123456789012345.123456789012345"],
    "currency": [None, "EUR", "", "x" * 257],
    "channel": [None, "web"],
    "consent_train": [None, None, "true", "false", "TRUE", "1", "0", "no"],
    "consent_personalize": [None, None, None, "False"],
    "consent_store": [None, None, None, None, "true", "false", "maybe"],
    "properties": [None] * 6 + ['{"a": 1}', "{broken", "[1]", "x"],
    "items": [None] * 6 + ['[{"item_id": "i1", "quantity": 2}, {"item_id": "i2"}]', "[]", '[{"item_id": 7}]'],
    "colour": [None, None, "red"],
    "größe": [None, None, 'a "b", ', ", ", "\u2028"],
}  # fmt: skip

MOMENT = datetime(2024, 3, 8, 10, 0, 0, 123456, tzinfo=UTC)
TYPED_VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "event_id": (pa.string(), IDS),
    "event_type": (pa.dictionary(pa.int32(), pa.string()), TEXT_VALUES["event_type"]),
    "user_id": (pa.int64(), [1, 2, -3, None]),
    "anonymous_id": (pa.string(), [None, "d1", ""]),
    "item_id": (pa.large_string(), IDS),
    "timestamp": (
        pa.timestamp("us", "Europe/Berlin"),
        [MOMENT, MOMENT, None, datetime(2024, 3, 9, 12, 0, 0, 1, tzinfo=UTC), datetime(1995, 1, 1, tzinfo=UTC),
         datetime(1994, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2024, 3, 9, 12, tzinfo=UTC)],
    ),
    "quantity": (pa.float64(), [None, 1.0, 2.0, 0.0, 1.5, -1.0, float("nan"), 2.0**31, float("inf")]),
    "price": (pa.int64(), [None, 0, 1, -1, 2**53 + 1]),
    "value": (pa.float32(), [None, 0.1, -1.0, float("nan"), float("-inf")]),
    "consent_train": (pa.bool_(), [None, True, False]),
    "consent_store": (pa.bool_(), [None, None, True, False]),
    "consent_share": (pa.bool_(), [None, None, None, True]),
    "context": (pa.struct([("a", pa.int64()), ("b", pa.string())]), [None, None, {"a": 1, "b": None}]),
}  # fmt: skip


def drawn(seed: int, values: list[Any], name: str) -> list[Any]:
    """Random cells. Half of them are the column's first value, the plain one, so that many rows are wholly plain."""
    chosen = random.Random(f"{seed} {name}")
    return [values[0] if chosen.random() < 0.5 else chosen.choice(values) for _ in range(ROWS)]


def text_columns(seed: int) -> pa.Table:
    cells = {name: [c or None for c in drawn(seed, values, name)] for name, values in TEXT_VALUES.items()}
    return pa.table({name: pa.array(values, pa.string()) for name, values in cells.items()})


def typed_columns(seed: int) -> pa.Table:
    return pa.table({name: pa.array(drawn(seed, cells, name), kind) for name, (kind, cells) in TYPED_VALUES.items()})


def outcome(columns: pa.Table, *, is_text: bool, is_fast: bool) -> tuple[list[dict[str, Any]], Tally]:
    tally = Tally()
    batch = Batch(FILE, np.arange(1, ROWS + 1), lambda row: str(row).encode(), columns, is_text=is_text)
    checker = EventChecker(ColumnMap(), pa.array(["u2"]), RECEIVED, is_fast=is_fast)
    return checker.check(batch, tally).to_pylist(), tally


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("is_text", [True, False], ids=["text", "typed"])
def test_both_paths_agree_on_random_rows(seed: int, is_text: bool) -> None:
    columns = text_columns(seed) if is_text else typed_columns(seed)
    fast, fast_tally = outcome(columns, is_text=is_text, is_fast=True)
    slow, slow_tally = outcome(columns, is_text=is_text, is_fast=False)

    good, _ = plainly_good(plain_types(columns), is_text=is_text, received_at=RECEIVED)
    assert 30 < good.sum() < len(slow)  # both paths have work
    assert len(slow_tally.quarantined) >= (10 if is_text else 7)
    assert fast == slow
    by_position = lambda row: row["source_position"]  # noqa: E731
    assert sorted(fast_tally.quarantine_rows, key=by_position) == slow_tally.quarantine_rows
    for field in ("read", "accepted", "not_stored", "rows_written", "quarantined", "repeated"):
        assert getattr(fast_tally, field) == getattr(slow_tally, field), field
    assert fast_tally.read == ROWS
    assert fast_tally.read == fast_tally.accepted + fast_tally.not_stored + sum(fast_tally.quarantined.values())


def test_the_slow_path_is_check_event_row_by_row() -> None:
    columns = text_columns(4)
    rows, tally = outcome(columns, is_text=True, is_fast=False)
    expected, reasons = [], []
    for position, cells in enumerate(columns.to_pylist(), start=1):
        event = event_of_row(cells, is_text=True)
        refuses = isinstance(event.get("consent"), dict) and event["consent"].get("store") is False
        if event.get("user_id") == "u2" or refuses or "items" in event:
            continue
        good, rejection = check_event(event, received_at=RECEIVED)
        if good is None:
            reasons.append((position, str(rejection.reason)))
        else:
            expected.append(bronze_row(good, received_at=RECEIVED, source="a.csv", source_position=position))
    with_items = {p for p, items in enumerate(columns["items"].to_pylist(), start=1) if items}
    assert len(expected) > 50
    assert [row for row in rows if row["source_position"] not in with_items] == expected
    kept = [(row["source_position"], row["reason"]) for row in tally.quarantine_rows]
    assert [pair for pair in kept if pair[0] not in with_items] == reasons


def test_a_time_without_a_zone_is_utc_whatever_stands_in_the_row_before() -> None:
    """pandas 2 reads the second of these with the offset of the first."""
    columns = pa.table({"timestamp": ["2024-03-08T10:00:00-14:00", "2024-03-08 10:00:00"]})
    plain = {"event_id": "e1", "event_type": "view_item", "user_id": "u1", "item_id": "i1"}
    for name, value in plain.items():
        columns = columns.append_column(name, pa.array([value, value]))
    good, bronze = plainly_good(columns, is_text=True, received_at=RECEIVED)
    assert good.tolist() == [True, True]
    assert [moment.hour for moment in bronze["event_timestamp"].to_pylist()] == [0, 10]
