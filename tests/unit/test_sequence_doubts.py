"""Events in doubt for the rules on sequences: the rules find among them what they find among all."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from feature_repo.contracts.sequences import SequenceEvent, SequenceRule, find_breaks
from spark_jobs.transforms.sequence_doubts import Deeds, suspicious

KINDS = ("purchase", "refund", "add_to_cart", "remove_from_cart", "view_item")
HOUR = 3_600_000_000


def lopsided(seed: int, count: int) -> list[SequenceEvent]:
    drawn = random.Random(seed)
    events = []
    for n in range(count):
        said: dict[str, Any] = {}
        kind = drawn.choice(KINDS)
        item = drawn.choice(["i0", "i0", "i1", "i2", *([None] if kind in ("purchase", "view_item") else [])])
        if drawn.random() < 0.6:
            said = {"order_id": drawn.choice(["A", "B", ""])} if n % 2 else {"context": {"region": drawn.choice("DE")}}
        micros = drawn.choice([1, 20_000_000, HOUR]) * drawn.randint(0, 60)
        events.append(
            SequenceEvent(
                f"e{n}", kind, f"u:{drawn.choice([0, 0, 0, 1, 2])}",
                item, drawn.choice([None, "s0", "s0", "s1"]), micros,
                micros + drawn.randint(0, 60) * HOUR, "test", n, said,
            )
        )  # fmt: skip
    return events


def deeds_of(events: list[SequenceEvent]) -> Deeds:
    def numbers(values: list[str | None]) -> np.ndarray:
        return np.array([-1 if value is None else int(value[-1]) for value in values], np.int32)

    def are(kind: str) -> np.ndarray:
        return np.array([event.event_type == kind for event in events], bool)

    texts = [json.dumps(event.properties) for event in events]
    return Deeds(
        numbers([event.subject_key for event in events]), numbers([event.item_id for event in events]),
        numbers([event.session_id for event in events]), np.array([event.micros for event in events], np.int64),
        are("purchase"), are("refund"), are("add_to_cart"), are("remove_from_cart"),
        np.array(["order" in text for text in texts], bool), np.array(["region" in text for text in texts], bool),
    )  # fmt: skip


@pytest.mark.parametrize(("seed", "count"), [*((seed, 400) for seed in range(6)), (9, 3), (9, 1), (9, 0)])
def test_the_rules_find_the_same_among_these(seed: int, count: int) -> None:
    events = lopsided(seed, count)
    every = {(found.event_id, found.rule) for found in find_breaks(events)}
    doubts = suspicious(deeds_of(events))
    among = {
        (found.event_id, found.rule)
        for rule, places in doubts.items()
        for found in find_breaks([events[place] for place in places.tolist()])
        if found.rule == rule
    }
    assert among == every
    for rule in (SequenceRule.REFUND_WITHOUT_PURCHASE, SequenceRule.REMOVAL_WITHOUT_ADDITION):
        alone = {events[place].event_id for place in doubts.get(rule, np.empty(0, np.int64)).tolist()}
        assert alone == {event_id for event_id, broken in every if broken == rule}  # these are known for sure
    if count == 400:
        assert {rule for _, rule in every} == set(SequenceRule)


def test_short_sessions_and_single_orders_are_in_no_doubt() -> None:
    day = 24 * HOUR
    events = [
        SequenceEvent("a", "view_item", "u:0", "i0", "s0", 0, 0, "test", 0, {"context": {"region": "D"}}),
        SequenceEvent("b", "view_item", "u:0", "i0", "s0", day, 0, "test", 1, {}),  # a day, and no more
        SequenceEvent("c", "purchase", "u:0", "i0", None, 5, 0, "test", 2, {"order_id": "A"}),
        SequenceEvent("d", "purchase", "u:1", "i0", None, 9, 0, "test", 3, {"order_id": "A"}),
        SequenceEvent("e", "refund", "u:0", "i0", None, 5, 0, "test", 4, {}),  # at the instant of the purchase
    ]
    assert suspicious(deeds_of(events)) == {}
    longer = [*events[:1], events[1]._replace(micros=day + 1)]
    assert suspicious(deeds_of(longer))[SequenceRule.SESSION_TIME_BACKWARDS].tolist() == [0, 1]
