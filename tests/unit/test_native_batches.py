"""A batch in native code does what its twins in Python do: the same events, records, counters, letters and bytes."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from redis.connection import Encoder

from feature_repo.contracts.events import EVENT_TYPES
from feature_repo.contracts.keys import dedup_key, partition_of
from feature_repo.contracts.session_record import SessionState
from serving.native import parts
from serving.speed import applier as applier_module
from serving.speed import bot_guard, trends
from serving.speed import entries as twin
from serving.speed.entries import Entry, LoggedEvent, read_logged
from serving.speed.session_state import fold_event
from serving.speed.stores import Write, marks_command, set_commands
from serving.speed.trends import Stand
from tests.consumer_world import NOON, TENANT, MemoryWorld, click, drain

native = parts.batches
pytestmark = pytest.mark.skipif(native is None, reason="serving/native is not compiled (make setup)")

ODD_IDS = ("ü", "a b", "{a}", "a:b", "%41", "\ud800", "a" * 256, "~._-", "1709899200000-1")
UNREADABLE = (
    b"", b"{", b"[]", b"7", b"{}", b"\xff\xfe", b'{"event_id":"p"}', b'{"event_id":"\\ud800","user_id":"u1"}',
    b'{"event_id":"p","user_id":"u1","event_type":"view_item","item_id":7,"timestamp":"2024-03-08T12:00:00Z"}',
    b'{"event_id":"p","user_id":"u1","event_type":"view_item","item_id":"a","timestamp":"2031-03-08T12:00:00Z"}',
    b'{"event_id":"p","user_id":"u1","event_type":"unheard_of","item_id":"a","timestamp":"2024-03-08T12:00:00Z"}',
)  # fmt: skip


def some_events(drawn: random.Random, count: int) -> list[dict[str, Any]]:
    """Of a few people and items: in order, late, of one instant, again, with and without whatever an event may have."""
    events = []
    for number in range(count):
        second = number * 3 + drawn.choice([0, 0, 0, 0, -1, -3, -40, -4_000, -90_000])
        event = click(
            f"e{number}", f"i{drawn.randrange(12)}", second, user_id=drawn.choice(["u1", "u2", "u3", *ODD_IDS[:4]])
        )
        event["event_type"] = drawn.choice(["view_item", "view_item", "page_view", "purchase", *sorted(EVENT_TYPES)])
        if drawn.random() < 0.2:
            event["anonymous_id"] = drawn.choice(["a1", "a2", ODD_IDS[0]])
        if drawn.random() < 0.5:
            event["session_id"] = f"s{number // 9}"
        if drawn.random() < 0.4:
            event["context"] = drawn.choice(
                [
                    {"device": "phone"},
                    {"region": drawn.choice(["DE", "FR"])},
                    {"language": "de", "device": {"type": "tv"}},
                    {"user_agent": "curl/8"},
                    {},
                ]
            )
        if drawn.random() < 0.1:
            event["consent"] = drawn.choice([{"train": False}, {"personalize": False}])
        if drawn.random() < 0.2:
            event["items"] = [{"item_id": f"i{n}"} for n in range(drawn.choice([1, 2, 25]))]
            del event["item_id"]
        if drawn.random() < 0.03:
            event["colour"] = "red"
        events.append(event)
    return events


def some_entries(drawn: random.Random) -> list[Entry]:
    raws = [json.dumps(event).encode() for event in some_events(drawn, 60)] + list(UNREADABLE)
    drawn.shuffle(raws)
    found = []
    while raws:
        several, raws = raws[:7], raws[7:]
        position = drawn.choice(
            ["1709899200000-1", "1709899200000-77", "1719899200000-0", "odd", "1-", "9" * 30 + "-1"]
        )
        found.append(Entry(position, [(raw, b"n") for raw in several]))
    return found


def test_events_in_the_log_are_read_alike() -> None:
    drawn, read = random.Random(1), Counter[bool]()
    for _ in range(60):
        entries = some_entries(drawn)
        expected = twin.read_entries(2, entries)
        assert native.read_entries(2, entries, read_logged) == expected
        assert [type(one) for one in native.read_entries(2, entries, read_logged)] == [LoggedEvent] * len(expected)
        read.update(one.problem is None for one in expected)
    assert read[True] > 500 < read[False]


def test_a_common_event_is_read_without_the_twin() -> None:
    def read_one(*_: object) -> Any:
        raise AssertionError("the twin was asked")

    raws = [
        json.dumps(click("e1", "a")).encode(),
        json.dumps({**click("e2", "b", context={"device": "phone"}), "timestamp": "2024-03-08T12:00:00.5Z"}).encode(),
        b'{"event_id":"e3","event_type":"page_view","anonymous_id":"a1","timestamp":"2024-03-08T12:00:00Z"}',
    ]
    raws[0] = raws[0].replace(b"+00:00", b"Z")
    found = native.read_entries(0, [Entry("1709899200000-1", [(raw, b"n") for raw in raws])], read_one)
    assert [(one.subject, one.number, one.micros) for one in found] == [
        ("u:u1", 0, 1_709_899_200_000_000), ("u:u1", 1, 1_709_899_200_500_000), ("a:a1", 2, 1_709_899_200_000_000),
    ]  # fmt: skip


def test_session_keys_are_made_alike_and_in_the_same_order() -> None:
    drawn = random.Random(2)
    subjects = [kind + name for kind in ("u:", "a:") for name in (*ODD_IDS[:5], "u1", "Z", "a" * 256, "~._-")]
    live = [LoggedEvent(0, "1-1", number, b"", b"", {}, drawn.choice(subjects), None, number) for number in range(400)]
    found, expected = native.by_session_key(live, TENANT), twin.by_session_key(live, TENANT)
    assert list(found.items()) == list(expected.items())
    assert len(found) == len(subjects)


def test_commands_are_the_bytes_of_the_client_library() -> None:
    encoder = Encoder("utf-8", "strict", decode_responses=False)
    drawn = random.Random(3)
    writes = [
        Write(drawn.choice(["k", "nj:t:ü", "x" * 300]), drawn.randbytes(drawn.choice([0, 1, 9, 10, 4_000])), *lifetime)
        for lifetime in [(None, None), (1, None), (86_400, None), (None, 4_000_000_000), (9, 10), (0, None)] * 20
    ]
    assert native.packed_sets(writes) == set_commands(writes)
    assert native.packed_sets(writes[2:3]) == b"".join(
        b"$%d\r\n%s\r\n" % (len(part), part) if number else b"*5\r\n" + b"$%d\r\n%s\r\n" % (len(part), part)
        for number, part in enumerate(
            [b"SET", encoder.encode(writes[2].key), writes[2].value, b"EX", b"86400"]  # type: ignore[arg-type]
        )
    )
    assert native.packed_sets([]) == set_commands([]) == b""
    with pytest.raises(ValueError, match="negative"):
        native.packed_sets([Write("k", b"v", -1)])
    names = [name for name in ODD_IDS if name != "\ud800"]
    events, begin = [(0, name) for name in names], dedup_key(0, "", TENANT)
    for places in ([0], [2, 1], list(range(len(events))), [3] * 256):
        assert native.packed_marks(events, places, begin) == marks_command(events, places, begin)


def test_guards_judge_alike() -> None:
    drawn, verdicts = random.Random(4), Counter[bool]()
    for _ in range(30):
        kinds = (native.BotGuard(max_subjects=3), bot_guard.BotGuard(max_subjects=3))
        states: dict[str, tuple[SessionState, SessionState]] = {}
        micros, position = 1_709_899_200_000_000, 5 << 36
        for number in range(drawn.choice([40, 400])):
            micros += drawn.choice([0, 1_000, 400_000, 2_000_000, 2_000_000, 90_000_000_000, -86_400_000_000])
            position = max(0, position + drawn.choice([0, 1, 1, 1, 65_536, 70_000, -3]))
            event = some_events(drawn, 1)[0] | {"event_id": f"{number}", "timestamp": NOON + timedelta(seconds=number)}
            subject = drawn.choice(["u:1", "u:1", "u:1", "u:2", "u:3", "u:4"])
            ours, theirs = states.setdefault(subject, (SessionState(), SessionState()))
            found, expected = (
                guard.judge(state, event, subject, micros=micros, position=position)
                for guard, state in zip(kinds, (ours, theirs), strict=True)
            )
            assert (bool(found), ours.flags) == (expected, theirs.flags)
            for state in (ours, theirs):
                fold_event(state, event)
            verdicts[expected] += 1
            assert list(kinds[0]._subjects) == list(kinds[1]._subjects)
    assert verdicts[True] > 300 < verdicts[False]


def test_votes_change_the_tables_alike() -> None:
    drawn, seen = random.Random(5), Counter[bool]()
    for _ in range(300):
        stands = [
            Stand(
                {
                    (window, period): {f"i{n}": drawn.randrange(3) for n in drawn.sample(range(9), drawn.randrange(8))}
                    for window in range(3)
                    for period in drawn.sample(range(3), 2)
                },
                {
                    (window, period, f"i{n}"): drawn.choice(["DE", "FR"])
                    for window in range(3)
                    for period in range(3)
                    for n in range(drawn.choice([0, 3]))
                },
            )
            for _ in range(2)
        ]
        before, after = drawn.choice([stands, stands[:1] * 2])
        newest = drawn.choice([0, 800, 4_000])
        found = native.vote_changes(before, after, newest=newest)
        assert found == trends.vote_changes(before, after, newest=newest)
        seen.update(change.is_withdrawn for change in found)
        assert all(type(change) is trends.VoteChange for change in found)
    assert seen[True] > 500 < seen[False]
    state = SessionState(votes={(0, 1): {"a": 1}}, regions={(0, 1, "a"): "DE"})
    found, copied = native.stand_of(state), trends.stand_of(state)
    state.votes[0, 1]["b"] = 2
    state.regions.clear()
    assert found == copied == Stand({(0, 1): {"a": 1}}, {(0, 1, "a"): "DE"})
    assert type(found) is Stand


def applied(events: Sequence[dict[str, Any]], seed: int) -> tuple[Any, ...]:
    """All that is left of these events: a world of its own, the same draws."""
    drawn, world = random.Random(seed), MemoryWorld()
    applier = world.alone(batch=drawn.choice([1, 7, 100]))
    for event in events:
        chance = drawn.random()
        if chance < 0.05:
            world.deliver(event, raw=drawn.choice(UNREADABLE))
        elif chance < 0.1:
            world.deliver(event, event)
        elif chance < 0.13:
            world.deliver(event)
            world.unmark(partition_of(f"u:{event['user_id']}"), event["event_id"])
        else:
            world.deliver(event)
        if chance > 0.98:
            damaged = [key for key in world.twin.strings if ":sess:" in key]
            if damaged:
                world.put(drawn.choice(damaged), b"\x03damaged")
        if chance > 0.8:
            drain(applier)
    drain(applier)
    return world.twin.strings, world.twin.until, world.twin.fields, world.counters(), world.letters()


def test_a_batch_leaves_the_same_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where some events fail, once or always, and some records cannot be written."""
    calls = Counter[str]()

    def fold(state: SessionState, event: Any) -> None:
        fold_event(state, event)
        calls[event["event_id"]] += 1
        if event["event_id"] in ("e7", "e40") or (event["event_id"] == "e9" and calls["e9"] == 1):
            raise RecursionError("too deep")

    def pack(state: SessionState) -> bytes:
        if any(event.item_id == "i11" and event.event_type == "like" for event in state.events):
            raise ValueError("cannot be packed")
        return pack_session(state)

    pack_session = applier_module.pack_session
    monkeypatch.setattr(applier_module, "fold_event", fold)
    monkeypatch.setattr(applier_module, "pack_session", pack)
    monkeypatch.setattr(applier_module, "fold_records", None)  # it calls neither
    letters = bots = damaged = 0
    for seed in range(25):
        events = some_events(random.Random(seed), 150)
        calls.clear()
        ours, our_calls = applied(events, seed), Counter(calls)
        with monkeypatch.context() as python:
            python.setattr(parts, "batches", None)
            python.setattr(applier_module, "read_entries", twin.read_entries)
            python.setattr(applier_module, "by_session_key", twin.by_session_key)
            python.setattr(applier_module, "stand_of", trends.stand_of)
            python.setattr(applier_module, "vote_changes", trends.vote_changes)
            python.setattr(applier_module, "BotGuard", bot_guard.BotGuard)
            calls.clear()
            theirs = applied(events, seed)
        assert ours == theirs
        assert our_calls == calls
        letters, bots = letters + ours[3].get("dead_lettered", 0), bots + ours[3].get("bot", 0)
        damaged += ours[3].get("damaged_session", 0)
    assert letters > 100 < bots
    assert damaged > 5
