"""Sessions and interactions, worked out by hand."""

from __future__ import annotations

from datetime import date

import pytest
from pyspark.sql import SparkSession

from spark_jobs.transforms.interactions import select_interactions
from spark_jobs.transforms.sessions import assign_sessions, summarise_sessions
from tests.builders import make_events, make_frame, utc

pytestmark = pytest.mark.spark

EVENTS = [
    # u1: a gap of 29:59, then one of exactly 30 minutes
    ("a1", "u1", "view_item", "2024-03-01T10:00:00", "i1"),
    ("a2", "u1", "view_item", "2024-03-01T10:29:59", "i1"),
    ("a3", "u1", "purchase", "2024-03-01T10:59:59", "i2"),
    # u1 at the same time on another device, whose client names its session: its own session
    ("a4", "u1", "view_item", "2024-03-01T10:10:00", "i3", {"session_id": "phone"}),
    ("a5", "u1", "view_item", "2024-03-02T10:09:59", "i3", {"session_id": "phone"}),  # 23:59:59 later: the same
    ("a6", "u1", "view_item", "2024-03-03T10:09:59", "i3", {"session_id": "phone"}),  # 24 h later: another
    # u2 has the same session id: still somebody else
    ("b1", "u2", "search", "2024-03-01T10:10:00", None, {"session_id": "phone"}),
    # u3 over midnight; delivered out of order; two events at one instant
    ("c2", "u3", "view_item", "2024-03-02T00:10:00", "i2"),
    ("c1", "u3", "view_item", "2024-03-01T23:50:00", "i1"),
    ("c3", "u3", "view_item", "2024-03-02T00:10:00", "i1"),
    # an anonymous visitor called u1 is not the user u1
    ("d1", None, "view_item", "2024-03-01T10:01:00", "i1", {"anonymous_id": "u1"}),
    ("e1", "bot", "view_item", "2024-03-01T10:00:00", "i1", {"is_bot": True}),
]


def test_sessions_by_hand(spark: SparkSession) -> None:
    assigned = assign_sessions(make_events(spark, EVENTS))
    together: dict[str, list[str]] = {}
    for row in sorted(assigned.collect(), key=lambda row: row["event_id"]):
        together.setdefault(row["session_key"], []).append(row["event_id"])
    assert sorted(together.values()) == [
        ["a1", "a2"], ["a3"], ["a4", "a5"], ["a6"], ["b1"], ["c1", "c2", "c3"], ["d1"]
    ]  # fmt: skip

    sessions = {together[row["session_key"]][0]: row for row in summarise_sessions(assigned).collect()}
    assert len(sessions) == 7
    shown = ("user_id", "session_id", "event_count", "item_count", "duration_seconds", "has_purchase", "session_date")
    assert {first: tuple(row[name] for name in shown) for first, row in sessions.items()} == {
        "a1": ("u1", None, 2, 1, 1799.0, False, date(2024, 3, 1)),
        "a3": ("u1", None, 1, 1, 0.0, True, date(2024, 3, 1)),
        "a4": ("u1", "phone", 2, 1, 86_399.0, False, date(2024, 3, 1)),
        "a6": ("u1", "phone", 1, 1, 0.0, False, date(2024, 3, 3)),
        "b1": ("u2", "phone", 1, 0, 0.0, False, date(2024, 3, 1)),
        "c1": ("u3", None, 3, 2, 1200.0, False, date(2024, 3, 1)),  # belongs to its first day
        "d1": (None, None, 1, 1, 0.0, False, date(2024, 3, 1)),
    }
    assert sessions["c1"]["ended_at"] == utc("2024-03-02T00:10:00").replace(tzinfo=None)


def test_a_session_key_depends_on_nothing_but_its_session(spark: SparkSession) -> None:
    def keys(rows: list) -> dict[str, str]:
        return {row["event_id"]: row["session_key"] for row in assign_sessions(make_events(spark, rows)).collect()}

    whole, alone = keys(EVENTS), keys([row for row in reversed(EVENTS) if row[0] in ("c1", "c3")])
    assert len(alone) == 2
    assert alone == {event_id: whole[event_id] for event_id in alone}
    assert len(whole["a1"]) == 32


def test_interactions_are_what_may_be_learned_from(spark: SparkSession) -> None:
    events = make_events(
        spark,
        [
            ("e1", "u1", "view_item", "2024-03-01T10:00:00", "i1"),
            ("e2", "u1", "purchase", "2024-03-01T10:01:00", "i1", {"price": 2.5, "quantity": 3}),
            ("e3", "u1", "refund", "2024-03-01T10:02:00", "i1"),  # takes nothing back
            ("e4", "u1", "impression", "2024-03-01T10:03:00", "i2"),  # was shown: no preference
            ("e5", "u1", "dislike", "2024-03-01T10:03:00", "i2"),
            ("e6", "u1", "share", "2024-03-01T10:04:00", None),  # no item
            ("e7", "u1", "like", "2024-03-01T10:05:00", "i3", {"consent_train": False}),
            ("e8", "u1", "like", "2024-03-01T10:05:00", "i3", {"consent_train": True}),
            ("e9", "denier", "view_item", "2024-03-01T10:00:00", "i1", {"consent_train": True}),  # the user said no
            ("e10", None, "view_item", "2024-03-01T10:00:00", "i1", {"anonymous_id": "denier"}),  # somebody else
            ("e11", "bot", "view_item", "2024-03-01T10:00:00", "i1", {"is_bot": True}),
        ],
    )
    denied = make_frame(spark, "bronze.users", [{"user_id": "denier"}, {"user_id": "denier"}]).select("user_id")
    found = {row["event_id"]: row for row in select_interactions(assign_sessions(events), denied).collect()}
    assert sorted(found) == ["e1", "e10", "e2", "e8"]
    assert (found["e2"]["price"], found["e2"]["quantity"], found["e2"]["subject_key"]) == (2.5, 3, "u:u1")
    assert (found["e10"]["subject_key"], found["e10"]["user_id"]) == ("a:denier", None)
    assert found["e1"]["session_key"] == found["e2"]["session_key"] != found["e10"]["session_key"]
