"""Attribution by hand: each row is there to break one plausible mistake."""

from __future__ import annotations

from datetime import date
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from feature_repo.contracts.times import to_micros
from spark_jobs.transforms.attribution import (
    OUTCOME_OF,
    arm_name,
    asked_slots,
    credit_outcomes,
    daily_metrics,
    distinct_slots,
    explode_slots,
    seen_slots,
)
from tests.builders import utc

V1, V2 = "2024-03-08-0000000a", "2024-03-09-0000000b"


def at(text: str) -> int:
    """`8T10:00:00` is the eighth of March 2024."""
    day, _, clock = text.partition("T")
    return to_micros(utc(f"2024-03-{int(day):02d}T{clock}"))


def decisions(*rows: tuple[Any, ...]) -> pd.DataFrame:
    """(id, subject, time, items[, {column: value}])"""
    found = []
    for recommendation_id, subject, moment, items, *rest in rows:
        decided_at = at(moment)
        found.append(
            {
                "recommendation_id": recommendation_id, "subject_key": subject, "decided_at": decided_at,
                "item_ids": items, "metric_date": date(2024, 3, int(moment.partition("T")[0])), "placement": "home",
                "model_version": V1, "fallback_level": "personal", "arm": "", **(rest[0] if rest else {}),
            }
        )  # fmt: skip
    return pd.DataFrame(found)


def outcomes(*rows: tuple[Any, ...]) -> pd.DataFrame:
    """(event id, subject, type, item, time[, recommendation id[, {column: value}]])"""
    found = []
    for event_id, subject, event_type, item, moment, *rest in rows:
        found.append(
            {
                "event_id": event_id, "outcome": OUTCOME_OF[event_type], "subject_key": subject, "item_id": item,
                "recommendation_id": rest[0] if rest else None, "at": at(moment), "amount": None, "currency": None,
                **(rest[1] if len(rest) > 1 else {}),
            }
        )  # fmt: skip
    return pd.DataFrame(found).astype({"amount": float, "recommendation_id": object, "currency": object})


def impressions(*rows: tuple[str, str | None, str, str]) -> pd.DataFrame:
    """(event id, recommendation id, item, time); seen by `a:` and the event's id"""
    columns = ["event_id", "recommendation_id", "item_id", "at", "seen_by"]
    return pd.DataFrame([(*row[:3], at(row[3]), f"a:{row[0]}") for row in rows], columns=columns).astype(
        {"at": "int64", "recommendation_id": object, "item_id": object, "event_id": object, "seen_by": object}
    )


def slots_of(answered: pd.DataFrame) -> pd.DataFrame:
    return distinct_slots(explode_slots(pa.Table.from_pandas(answered, preserve_index=False)))


def credits(
    events: pd.DataFrame, answered: pd.DataFrame, shown: pd.DataFrame | None = None
) -> dict[str, tuple[str, str]]:
    slots = slots_of(answered)
    found = credit_outcomes(events, slots, seen_slots(impressions() if shown is None else shown, slots))
    assert found["event_id"].is_unique
    assert set(found["item_id"]) <= set(events["item_id"])
    return {row.event_id: (row.recommendation_id, row.by) for row in found.itertuples()}


# --- slots and impressions -------------------------------------------------------------------------------------


def test_slots_have_positions_and_a_repeated_decision_counts_once() -> None:
    slots = slots_of(
        decisions(
            ("r2", "u:a", "8T10:00:00", ["i3"]),
            ("r1", "u:a", "8T09:00:00", ["i2", "i1", "i3"]),
            ("r1", "u:a", "8T09:00:01", ["i9"]),  # the same id again, later: not taken
            ("r3", None, "8T11:00:00", []),  # an empty slate has no slot
        )
    )
    found = [(row.recommendation_id, row.item_id, row.position) for row in slots.itertuples()]
    assert found == [("r1", "i1", 2), ("r1", "i2", 1), ("r1", "i3", 3), ("r2", "i3", 1)]


def test_only_slots_that_an_event_can_belong_to_are_kept() -> None:
    answered = decisions(
        ("r1", "u:a", "8T09:00:00", ["i1", "i2", "i3"]),
        ("r2", None, "8T09:00:00", ["i1"]),
        ("r3", "u:b", "8T09:00:00", ["i2", "i9"]),
        ("r4", "u:a", "8T09:00:00", []),
    )
    asked = asked_slots(
        outcomes(("p1", "u:b", "purchase", "i9", "8T10:00:00"), ("c1", "u:c", "click", "i3", "8T10:00:00", "r1")),
        impressions(("e1", "r2", "i1", "8T09:01:00"), ("e2", None, "i2", "8T09:01:00")),
    )
    found = explode_slots(pa.Table.from_pandas(answered, preserve_index=False), asked)
    assert [(row.recommendation_id, row.item_id, row.position) for row in found.itertuples()] == [
        ("r1", "i3", 3), ("r2", "i1", 1), ("r3", "i9", 2),
    ]  # fmt: skip


def test_an_impression_counts_once_per_decision_and_item() -> None:
    slots = slots_of(decisions(("r1", "u:a", "8T09:00:00", ["i1", "i2"]), ("r2", "u:a", "8T10:00:00", ["i1"])))
    seen = seen_slots(
        impressions(
            ("e2", "r1", "i2", "8T09:05:00"),
            ("e1", "r1", "i2", "8T09:04:00"),  # the same, scrolled by twice; came late
            ("e3", "r2", "i1", "9T23:00:00"),  # a day later: still the decision's own
            ("e4", "r1", "i7", "8T09:05:00"),  # not in that slate
            ("e5", "gone", "i1", "8T09:05:00"),  # nobody knows that decision
            ("e6", None, "i1", "8T09:05:00"),
            ("e7", "r1", "i1", "15T09:00:00"),  # seven days later, exactly: out
        ),
        slots,
    )
    columns = ["recommendation_id", "item_id", "position", "seen_by", "first_seen_at", "deliveries"]
    assert seen[columns].to_numpy().tolist() == [
        ["r1", "i2", 2, "a:e1", at("8T09:04:00"), 2], ["r2", "i1", 1, "a:e3", at("9T23:00:00"), 1],
    ]  # fmt: skip


# --- outcomes --------------------------------------------------------------------------------------------------


def test_what_names_its_recommendation_goes_there_and_nowhere_else() -> None:
    answered = decisions(
        ("r1", "u:a", "8T09:00:00", ["i1", "i2"]),
        ("r2", "u:a", "8T12:00:00", ["i1"]),  # later, the same item
    )
    found = credits(
        outcomes(
            ("c1", "u:a", "click", "i1", "8T13:00:00", "r1"),  # the id wins over the last touch
            ("c2", "a:x", "select_item", "i2", "8T13:00:00", "r1"),  # another subject: the id is enough
            ("c3", "u:a", "click", "i1", "15T08:59:59", "r1"),  # a second before seven days
            ("c4", "u:a", "click", "i2", "15T09:00:00", "r1"),  # seven days: out, and no touch either
            ("c5", "u:a", "click", "i1", "8T08:00:00", "r1"),  # a clock an hour behind
            ("c6", "u:a", "click", "i2", "8T13:00:00", "r2"),  # r2 never showed i2: by touch, r1
            ("c7", "u:a", "click", "i1", "8T13:00:00", "gone"),  # an unknown decision: by touch, r2
            ("c8", "u:b", "click", "i1", "8T13:00:00", "gone"),
        ),
        answered,
    )
    assert found == {
        "c1": ("r1", "id"), "c2": ("r1", "id"), "c3": ("r1", "id"), "c5": ("r1", "id"), "c6": ("r1", "touch"),
        "c7": ("r2", "touch"),
    }  # fmt: skip


def test_without_a_name_the_last_touch_within_a_day() -> None:
    answered = decisions(
        ("r1", "u:a", "8T09:00:00", ["i1", "i2"]),
        ("r2", "u:a", "8T10:00:00", ["i1"]),
        ("r3", "u:b", "8T11:00:00", ["i1"]),  # somebody else
        ("r4", None, "8T11:30:00", ["i1"]),  # nobody
    )
    found = credits(
        outcomes(
            ("p1", "u:a", "purchase", "i1", "8T12:00:00"),  # two decisions showed it: the later
            ("p2", "u:a", "purchase", "i1", "8T09:59:59"),  # before the later one
            ("p3", "u:a", "purchase", "i2", "9T08:59:59"),  # a second before 24 h
            ("p4", "u:a", "purchase", "i2", "9T09:00:00"),  # 24 h: out
            ("p5", "u:a", "purchase", "i2", "9T10:00:00"),  # 25 h
            ("p6", "u:a", "add_to_cart", "i2", "8T09:00:00"),  # at the very instant: in
            ("p7", "u:a", "purchase", "i2", "8T08:59:59"),  # before it was shown
            ("p8", "u:c", "purchase", "i1", "8T12:00:00"),
            ("p9", "u:a", "purchase", "i3", "8T12:00:00"),  # never shown
        ),
        answered,
    )
    assert found == {"p1": ("r2", "touch"), "p2": ("r1", "touch"), "p3": ("r1", "touch"), "p6": ("r1", "touch")}


def test_of_two_at_one_instant_the_seen_one_then_the_smaller_id() -> None:
    answered = decisions(
        ("r1", "u:a", "8T09:00:00", ["i1", "i2"]),
        ("r3", "u:a", "8T09:00:00", ["i1", "i2"]),
        ("r2", "u:a", "8T09:00:00", ["i1", "i2"]),
    )
    events = outcomes(
        ("p1", "u:a", "purchase", "i1", "8T09:30:00"),
        ("p2", "u:a", "purchase", "i2", "8T09:30:00"),
    )
    shown = impressions(("e1", "r3", "i1", "8T09:01:00"))
    for rows in (answered, answered.iloc[::-1]):
        assert credits(events, rows, shown) == {"p1": ("r3", "touch"), "p2": ("r1", "touch")}


def test_a_refund_follows_its_purchase() -> None:
    answered = decisions(("r1", "u:a", "8T09:00:00", ["i1"]), ("r2", "u:a", "9T08:00:00", ["i1"]))
    found = credits(
        outcomes(
            ("p1", "u:a", "purchase", "i1", "8T10:00:00"),
            ("p2", "u:a", "purchase", "i1", "9T10:00:00"),
            ("f1", "u:a", "refund", "i1", "9T09:00:00", "r2"),  # before the second purchase: of the first
            ("f2", "u:a", "refund", "i1", "14T10:00:00"),  # days later: of the second
            ("f3", "u:a", "refund", "i1", "16T08:00:00"),  # r2's seven days are over
            ("f4", "u:b", "refund", "i1", "9T11:00:00"),  # somebody else's
            ("f5", "u:a", "refund", "i1", "8T09:30:00"),  # before anything was bought
        ),
        answered,
    )
    assert found == {
        "p1": ("r1", "touch"), "p2": ("r2", "touch"), "f1": ("r1", "purchase"), "f2": ("r2", "purchase"),
    }  # fmt: skip


def test_nothing_brings_nothing() -> None:
    assert (
        credits(outcomes(("p1", "u:a", "purchase", "i1", "8T10:00:00")), decisions(("r1", None, "8T09:00:00", [])))
        == {}
    )


# --- the day ---------------------------------------------------------------------------------------------------


def answers(*rows: tuple[str, int, int]) -> pd.DataFrame:
    """(placement, slate size, how many)"""
    base = {"metric_date": date(2024, 3, 8), "model_version": V1, "fallback_level": "personal", "arm": ""}
    return pd.DataFrame([{**base, "placement": p, "item_count": size, "decisions": n} for p, size, n in rows])


def test_a_day_worked_out_by_hand() -> None:
    """home: five answers, two of three items, two of one, one of none; cart: one of one that brought nothing."""
    slots = slots_of(
        decisions(
            ("r1", "u:a", "8T09:00:00", ["i1", "i2", "i3"]),
            ("r2", "u:b", "8T09:00:00", ["i2", "i1", "i3"]),
            ("r3", "u:c", "8T09:00:00", ["i1"]),
        )
    )
    seen = seen_slots(
        impressions(
            ("e1", "r1", "i1", "8T09:01:00"), ("e2", "r1", "i1", "8T09:02:00"), ("e3", "r1", "i2", "8T09:01:00"),
            ("e4", "r2", "i2", "8T09:01:00"), ("e5", "r3", "i1", "8T09:01:00"),
        ),
        slots,
    )  # fmt: skip
    gbp, eur = {"currency": "GBP"}, {"currency": "EUR"}
    credited = credit_outcomes(
        outcomes(
            ("c1", "u:a", "click", "i1", "8T09:03:00", "r1"),
            ("c2", "u:a", "click", "i1", "8T09:04:00", "r1"),  # clicked twice: two clicks, one clicked impression
            ("c3", "u:b", "click", "i1", "8T09:03:00", "r2"),  # a click without an impression
            ("k1", "u:a", "add_to_cart", "i1", "8T09:05:00"),
            ("p1", "u:a", "purchase", "i1", "8T09:06:00", None, {"amount": 20.0, **gbp}),
            ("p2", "u:c", "purchase", "i1", "8T09:06:00", None, {"amount": 2.5, **gbp}),
            ("p3", "u:c", "purchase", "i1", "8T09:07:00", None, {"amount": 7.0, **eur}),
            ("p4", "u:c", "purchase", "i1", "8T09:08:00"),  # no price: a purchase, no revenue
            ("p5", "u:b", "purchase", "i3", "8T09:08:00", None, {"amount": 1.0}),
            ("f1", "u:a", "refund", "i1", "8T10:00:00", None, {"amount": 5.0, **gbp}),
        ),
        slots,
        seen,
    )
    found = daily_metrics(answers(("home", 3, 2), ("home", 1, 2), ("home", 0, 1), ("cart", 1, 1)), seen, credited)
    columns = [
        "placement", "position", "decisions", "impressions", "clicked_impressions", "converted_impressions", "clicks",
        "carts", "purchases", "refunds",
    ]  # fmt: skip
    assert found[columns].to_numpy().tolist() == [
        ["cart", 1, 1, 0, 0, 0, 0, 0, 0, 0],
        ["home", 0, 1, 0, 0, 0, 0, 0, 0, 0],
        ["home", 1, 4, 3, 1, 2, 2, 1, 4, 1],
        ["home", 2, 2, 1, 0, 0, 1, 0, 0, 0],
        ["home", 3, 2, 0, 0, 0, 0, 0, 1, 0],
    ]
    money = found[["currencies", "revenues", "refunded"]].to_numpy().tolist()
    assert money == [
        [[], [], []], [[], [], []], [["EUR", "GBP"], [7.0, 22.5], [0.0, 5.0]], [[], [], []], [["XXX"], [1.0], [0.0]],
    ]  # fmt: skip


def test_arms_have_one_name() -> None:
    assert arm_name(["e2", "e1"], ["b", "control"]) == "e1=control,e2=b"
    assert arm_name([], []) == arm_name(None, None) == ""
    with pytest.raises(ValueError, match="zip"):
        arm_name(["e1"], [])


def test_the_order_of_rows_does_not_matter() -> None:
    answered = decisions(*((f"r{n}", "u:a", f"8T09:0{n % 3}:00", ["i1", "i2"]) for n in range(9)))
    events = outcomes(*((f"p{n}", "u:a", "purchase", "i1", f"8T09:0{n}:30") for n in range(5)))
    expected = credits(events, answered)
    assert len(expected) == 5
    assert credits(events.sample(frac=1, random_state=7), answered.sample(frac=1, random_state=3)) == expected
