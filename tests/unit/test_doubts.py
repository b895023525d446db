"""Deliveries in doubt: held to the contract's rules, and firsts to a slow choice."""

from __future__ import annotations

import random
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.events import check_event
from spark_jobs.io.light_delta import arrow_schema
from spark_jobs.transforms.doubts import RULE_WORDS, Repeated, may_break_rule, sort_out_repeated
from tests.builders import EventRow, bronze_event, utc

DAY = "2024-03-01"
T = f"{DAY}T10:00:00"
LONG = "é" * 129
EARLY = {"received_at": utc("2024-02-29T09:59:59")}
GOOD: list[EventRow] = [
    ("e", "u1", "view_item", T, "i1"),
    ("e", None, "search", T, None, {"anonymous_id": "a"}),
    ("é" * 128, "u1", "purchase", T, "i1", {"price": 0.0, "quantity": 1, "value": -5.0}),
    ("e", "u1", "alias", T, None, {"anonymous_id": "a"}),
    ("e", "u1", "view_item", "2024-03-01T09:59:59", "i1", EARLY),  # 24 hours after its receipt
    ("e", "u1", "view_item", f"{DAY}T23:59:59.999999", "i1"),
    ("e", "u1", "view_item", T, "i1", {"session_id": "s", "currency": "EUR", "channel": "web", "received_at": None}),
]
BAD: list[EventRow] = [
    ("e", "u1", None, T),
    ("e", "u1", "veiw_item", T),
    (None, "u1", "view_item", T),
    ("", "u1", "view_item", T),
    (LONG, "u1", "view_item", T),
    ("nul\0", "u1", "view_item", T),
    ("e", None, "view_item", T),
    ("e", "u1", "alias", T, None),
    ("e", None, "alias", T, None, {"anonymous_id": "a"}),
    ("e", "", "view_item", T),
    ("e", "u1", "view_item", T, "i1", {"anonymous_id": LONG}),
    ("e", "u1", "view_item", T, "i1", {"session_id": LONG}),
    ("e", "u1", "search", T, LONG),
    ("e", "u1", "view_item", T, None),
    ("e", "u1", "view_item", None, "i1", {"event_date": date(2024, 3, 1)}),
    ("e", "u1", "view_item", T, "i1", EARLY),  # more than 24 hours after
    ("e", "u1", "view_item", "2024-03-02T00:00:00", "i1"),  # of another day than that of its file
    ("e", "u1", "purchase", T, "i1", {"quantity": 0}),
    ("e", "u1", "purchase", T, "i1", {"price": -0.01}),
    ("e", "u1", "purchase", T, "i1", {"price": float("nan")}),
    ("e", "u1", "purchase", T, "i1", {"price": float("inf")}),
    ("e", "u1", "purchase", T, "i1", {"value": float("-inf")}),
    ("e", "u1", "purchase", T, "i1", {"currency": ""}),
    ("e", "u1", "purchase", T, "i1", {"recommendation_id": "a\0"}),
    ("e", "u1", "purchase", T, "i1", {"placement": LONG}),
    ("e", "u1", "purchase", T, "i1", {"channel": LONG}),
]


def deliveries(rows: list[EventRow]) -> pa.Table:
    return pa.Table.from_pylist([bronze_event(n, row) for n, row in enumerate(rows)], arrow_schema("bronze.events"))


def arrays(rows: pa.Table, *, words: bool) -> dict[str, pa.Array]:
    found = {name: rows[name].combine_chunks() for name in rows.schema.names}
    return found | ({name: found[name].dictionary_encode() for name in RULE_WORDS} if words else {})


@pytest.mark.parametrize("words", [False, True])
def test_what_breaks_a_rule_is_in_doubt(words: bool) -> None:
    rows = arrays(deliveries([*GOOD, *BAD]), words=words)
    assert may_break_rule(rows, date(2024, 3, 1)).tolist() == [False] * len(GOOD) + [True] * len(BAD)
    assert may_break_rule(rows, None).all()  # who lies under no day has no timestamp, or a wrong one


def test_the_contract_says_so_too() -> None:
    for n, row in enumerate([*GOOD, *BAD]):
        said = bronze_event(n, row)
        event = {**said, "timestamp": said["event_timestamp"]}
        for name in ("event_timestamp", "received_at", "event_date", "source", "source_position", "properties"):
            event.pop(name)
        if said["event_id"] is None or said["event_date"] == date(2024, 3, 2):
            continue  # the entrance makes an id, and a day
        _, rejection = check_event(event, received_at=said["received_at"] or utc("2024-03-05"))
        assert (rejection is not None) == (n >= len(GOOD)), row


def test_too_old_is_in_doubt() -> None:
    rows = arrays(deliveries([("e", "u1", "view_item", "1994-12-31T23:59:59.999999")]), words=True)
    assert may_break_rule(rows, date(1994, 12, 31)).tolist() == [True]


def slow_choice(rows: list[dict[str, Any]], in_doubt: list[bool]) -> dict[int, str]:
    """Place -> firsts, duplicates or doubtful, by comparing each delivery with every other of its id."""
    order = ("event_timestamp", "source", "source_position", "received_at")
    groups: dict[Any, list[int]] = {}
    for n, row in enumerate(rows):
        groups.setdefault(row["event_id"], []).append(n)
    found = {}
    for event_id, places in groups.items():
        keys = [tuple(rows[n][name] for name in order) for n in places]
        unclear = event_id is None or any(in_doubt[n] for n in places) or any(None in key for key in keys)
        if unclear or len(set(keys)) < len(keys):
            found |= dict.fromkeys(places, "doubtful")
        else:
            best = min(keys)
            found |= {n: "firsts" if key == best else "duplicates" for n, key in zip(places, keys, strict=True)}
    return found


@pytest.mark.parametrize("seed", range(6))
def test_firsts_at_random(seed: int) -> None:
    drawn = random.Random(seed)
    rows: list[EventRow] = []
    for _ in range(drawn.choice([1, 2, 150])):
        other = {
            "source": drawn.choice(["s10", "s2", "S", "é", None] if drawn.random() < 0.3 else ["s10", "s2"]),
            "source_position": drawn.choice([1, 2, 3, 4]),
            "received_at": utc(drawn.choice([T, "2024-03-01T11:00:00"])),
        }
        event_id = drawn.choice(["a", "b", "b", "c", None, *map(str, range(40))])
        rows.append((event_id, "u1", "view_item", drawn.choice([T, "2024-03-01T09:00:00"]), "i1", other))
    table = deliveries(rows).append_column("place", pa.array(range(len(rows))))
    in_doubt = [drawn.random() < 0.05 for _ in rows]
    chosen = sort_out_repeated(table, np.array(in_doubt))
    found = {place: name for name in Repeated._fields for place in getattr(chosen, name)["place"].to_pylist()}
    assert found == slow_choice(table.to_pylist(), in_doubt)


def test_of_nothing_nothing_is_chosen() -> None:
    assert [rows.num_rows for rows in sort_out_repeated(deliveries([]), np.empty(0, bool))] == [0, 0, 0]
