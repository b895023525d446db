"""Events folded into packed records leave what the twin leaves: the same records, trend tables, counters."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from feature_repo.contracts.events import EVENT_TYPES
from feature_repo.contracts.session_record import pack_session, unpack_session
from serving.native import parts
from serving.speed import applier as applier_module
from serving.speed import bot_guard, session_state, trends
from serving.speed.applier import Applier
from tests.consumer_world import NOON, MemoryWorld, click, drain

pytestmark = pytest.mark.skipif(parts.folding is None, reason="serving/native is not compiled (make setup)")

ITEMS = [*(f"i{n}" for n in range(40)), "ü", "日本", "𝔸", "i" * 256, "I1"]
CONTEXTS: tuple[Any, ...] = (
    {"device": "phone"}, {"device": "tv", "language": "de"}, {"language": "en"}, {"colour": 7}, {}, {"device": ""},
    {"user_agent": "curl/8"}, {"region": "DE"}, {"device": {"type": "tv"}}, {"referrer": "https://a.example/b"},
    {"device": "x" * 65}, {"language": "dé"}, {"locale": "fr"},
)  # fmt: skip
COMMON = ["view_item"] * 6 + ["page_view", "search", "impression", "click", "like", "add_to_wishlist", "view_item_list"]


def some_events(drawn: random.Random, count: int) -> list[dict[str, Any]]:
    """Mostly in order, of a few people, over minutes, hours or days; some late, some of the rarer kinds."""
    events: list[dict[str, Any]] = []
    pause = drawn.choice([0.2, 2.0, 90.0, 4_000.0, 40_000.0])
    second = -pause * count
    rare = drawn.choice([0.0, 0.03])
    plain = CONTEXTS[: drawn.choice([6, 6, 7])]
    for number in range(count):
        second += drawn.random() * pause
        kind = drawn.choice(sorted(EVENT_TYPES) if drawn.random() < rare else COMMON)
        is_late = drawn.random() < (0.5 if kind == "impression" else rare)  # what was shown may come in any order
        late = drawn.choice([1, 100, 90_000]) if is_late else 0
        event = click(f"e{number}", drawn.choice(ITEMS), 0, user_id=drawn.choice(["u1", "u2", "u3"]))
        event["timestamp"] = (NOON + timedelta(milliseconds=int((second - late) * 1000))).isoformat()
        event["event_type"] = kind
        if drawn.random() < 0.1 and event["event_type"] in ("page_view", "search"):
            del event["item_id"]
        if drawn.random() < 0.7:
            event["session_id"] = f"s{number // 9}"
        if drawn.random() < 0.3:
            event["context"] = drawn.choice(plain if drawn.random() > rare else CONTEXTS)
        if drawn.random() < rare:
            event["consent"] = drawn.choice([{"train": False}, {"personalize": False}])
        events.append(event)
    return events


def left_of(events: Sequence[dict[str, Any]], batch: int, seed: int) -> tuple[Any, ...]:
    """What a world of its own holds after these events."""
    drawn, world = random.Random(seed), MemoryWorld()
    applier = world.alone(batch=batch)
    for event in events:
        world.deliver(event)
        if drawn.random() < 1 / batch:
            drain(applier)
    drain(applier)
    return world.twin.strings, world.twin.until, world.twin.fields, world.counters(), world.letters()


def of_twin(monkeypatch: pytest.MonkeyPatch, events: Sequence[dict[str, Any]], batch: int, seed: int) -> Any:
    with monkeypatch.context() as python:
        python.setattr(applier_module, "fold_records", None)
        python.setattr(parts, "batches", None)
        python.setattr(applier_module, "fold_event", session_state.fold_event)
        python.setattr(applier_module, "pack_session", pack_session)
        python.setattr(applier_module, "unpack_session", unpack_session)
        python.setattr(applier_module, "stand_of", trends.stand_of)
        python.setattr(applier_module, "vote_changes", trends.vote_changes)
        python.setattr(applier_module, "BotGuard", bot_guard.BotGuard)
        return left_of(events, batch, seed)


def test_the_same_is_left_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, by_twin = Counter[str](), Counter[str]()
    fold_subject = Applier._fold_subject

    def counted(self: Applier, *arguments: Any) -> Any:
        by_twin["events"] += len(arguments[2])
        return fold_subject(self, *arguments)

    for seed in range(40):
        drawn = random.Random(seed)
        events, batch = some_events(drawn, drawn.choice([30, 400])), drawn.choice([1, 5, 60])
        with monkeypatch.context() as watched:
            watched.setattr(Applier, "_fold_subject", counted)
            ours = left_of(events, batch, seed)
        assert ours == of_twin(monkeypatch, events, batch, seed)
        counts.update(ours[3])
    assert counts["applied"] > 5_000
    assert counts["bot"] > 50
    assert 50 < by_twin["events"] < counts["applied"] / 2
