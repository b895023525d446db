"""Native session records are those of their twins in Python, byte by byte and event by event."""

from __future__ import annotations

import copy
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from feature_repo.contracts.bots import BotCounters
from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.events import EVENT_FIELDS, EVENT_TYPES, check_event
from feature_repo.contracts.packing import FLAG_BOT
from feature_repo.contracts.session_record import SessionEvent, SessionState, Word, pack_session, unpack_session
from feature_repo.contracts.times import MAX_FUTURE_SKEW, to_micros
from serving.native import parts
from serving.speed import session_state as twin
from tests.conftest import ROOT

native = parts.subjects
pytestmark = pytest.mark.skipif(native is None, reason="serving/native is not compiled (make setup)")

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
CONTEXTS = (
    {"device": "phone", "language": "de-DE"}, {"device": "phone"}, {}, {"device": {"type": "tv"}}, {"locale": "fr"},
    {"device": 7, "language": None}, {"referrer": "https://a.example/b", "device": "x" * 70}, {"device": "a\0b"},
    {"page": {"referrer": "https://c.example"}, "language": "é" * 40}, {"user_agent": "curl/8"}, {"language": "de-AT"},
    {"region": "DE"}, {"region": "FR", "device": "phone"}, {"region": "de"}, {"region": "x" * 65}, {"region": 7},
    {"country": "NL"}, {"location": {"country": "PL"}, "region": ""}, {"region": "Åland"}, {"region": "\ud800"},
    {"region": "a\0b"}, {"region": True, "country": 0}, {"region": "é" * 33}, {"region": None},
)  # fmt: skip


def some_event(drawn: random.Random, number: int) -> dict[str, Any]:
    """Mostly in order and common; every kind, a few ids, so that everything meets everything."""
    late = drawn.choice([0, 0, 0, 0, 0, -1, -40, -90_000]) * drawn.choice([0, 1, 60])
    event: dict[str, Any] = {
        "event_id": f"e{drawn.randrange(10_000)}",
        "event_type": drawn.choice(["view_item", "impression", "page_view", *sorted(EVENT_TYPES)]),
        "user_id": "u1",
        "timestamp": NOON + timedelta(seconds=number * 7 + late, microseconds=drawn.choice([0, 0, 1, 999_999])),
    }
    if drawn.random() < 0.7:
        event["session_id"] = drawn.choice(["s1", "s2", ""])
    lines = drawn.choice([0, 1, 1, 1, 2, 6])
    if lines == 1:
        event["item_id"] = f"i{drawn.randrange(150)}"
    elif lines:
        event["items"] = [{"item_id": f"i{drawn.randrange(30)}", "quantity": number % 3 + 1} for _ in range(lines)]
    if drawn.random() < 0.6:
        event["context"] = drawn.choice(CONTEXTS)
    if drawn.random() < 0.1:
        event["consent"] = drawn.choice([{}, {"personalize": False}, {"personalize": True}, {"train": False}])
    if drawn.random() < 0.1:
        event["channel"] = drawn.choice(["app", "web"])
    return event


def test_every_event_does_the_same_and_every_record_has_the_same_bytes() -> None:
    drawn, folded = random.Random(5), 0
    for _ in range(12):
        ours, theirs = SessionState(), SessionState()
        for number in range(drawn.choice([5, 60, 500])):
            event = some_event(drawn, number)
            if drawn.random() < 0.01:
                ours.flags ^= FLAG_BOT
                theirs.flags ^= FLAG_BOT
            kept = copy.deepcopy(event)
            native.fold_event(ours, event)
            twin.fold_event(theirs, event)
            assert event == kept
            assert ours == theirs, event
            if number % 17 == 0:
                assert native.pack_session(ours) == pack_session(theirs)
                ours = unpack_session(native.pack_session(ours))
            folded += 1
        assert native.pack_session(ours) == pack_session(theirs)
    assert folded > 1_500


def test_common_events_need_no_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    def fold(*_: object) -> None:
        raise AssertionError("the twin was asked")

    monkeypatch.setattr(twin, "fold_event", fold)
    monkeypatch.setattr(twin, "_hear_words", fold)
    monkeypatch.setattr(twin, "voting_region", fold)
    state = SessionState()
    for seconds, kind in enumerate(("view_item", "page_view", "search", "impression", "click"), 1):
        event = {"event_id": f"{seconds}", "event_type": kind, "timestamp": NOON + timedelta(seconds=seconds)}
        native.fold_event(state, {**event, "item_id": "i1", "context": {"device": "phone", "region": "DE"}})
    assert (len(state.events), len(state.steps), sum(state.counts.values())) == (2, 2, 5)
    assert set(state.regions.values()) == {"DE"}


@pytest.mark.parametrize(
    "moment",
    [
        NOON, datetime(1970, 1, 1, tzinfo=UTC), datetime(2000, 3, 1, tzinfo=UTC),
        datetime(2000, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2100, 3, 1, tzinfo=UTC), datetime(1995, 1, 1, tzinfo=UTC), datetime(2024, 12, 31, 1, tzinfo=UTC),
        datetime(2024, 3, 1, 1, tzinfo=timezone(timedelta(hours=2))),
    ],
)  # fmt: skip
def test_microseconds_are_counted_by_the_calendar(moment: datetime) -> None:
    assert native.micros_of(moment) == to_micros(moment)


@pytest.mark.parametrize(
    "state",
    [
        SessionState(events=[SessionEvent(1, "unheard_of", 0, "i", 1)]),
        SessionState(events=[SessionEvent(1, "view_item", 0, "", 1)]),
        SessionState(events=[SessionEvent(1, "view_item", 0, "a\0b", 1)]),
        SessionState(events=[SessionEvent(2**63, "view_item", 0, "i", 1)]),
        SessionState(events=[SessionEvent(1, "view_item", 2**64, "i", 1)]),
        SessionState(interests={(70_000, "i"): 1}),
        SessionState(votes={(0, 1): {"i": 300}}),
        SessionState(counts={"view_item": 2**32}),
        SessionState(words={"shoe": Word(1, "x")}),
        SessionState(words={"device": Word(1, "\ud800")}),
        SessionState(flags=-1),
        SessionState(seen={f"i{n}": n for n in range(70_000)}),
    ],
)
def test_what_a_record_cannot_hold_is_refused_in_the_same_words(state: SessionState) -> None:
    said = []
    for pack in (native.pack_session, pack_session):
        with pytest.raises(ContractError) as caught:
            pack(state)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_counters_of_a_day_are_the_same() -> None:
    drawn, names = random.Random(3), [name for name in BotCounters.__slots__ if not name.startswith("_")]
    assert len(names) == 10
    for _ in range(40):
        ours, theirs, micros = native.BotCounters(), BotCounters(), to_micros(NOON)
        for _ in range(drawn.choice([3, 300])):
            micros += drawn.choice([0, 1, 300_000, 2_000_000, 2_010_000, 61_000_000, 3_600_000_000, -5_000_000])
            line = (drawn.choice(["view_item", "search", "purchase"]), micros, drawn.choice([None, "a", f"{micros}"]))
            context = drawn.choice([None, None, None, {"user_agent": "Mozilla/5.0"}, {"userAgent": ""}, {"a": 1}])
            ours.add(*line, context=context)
            theirs.add(*line, context=context)
        agent = {"userAgent": drawn.choice(["Mozilla/5.0", "Googlebot/2.1 (+http://a)"])}
        ours.add("page_view", micros, None, context=agent)
        theirs.add("page_view", micros, None, context=agent)
        assert [getattr(ours, name) for name in names] == [getattr(theirs, name) for name in names]


def test_an_event_from_the_log_is_what_the_whole_rule_table_makes_of_it() -> None:
    """Whatever is accepted here is accepted there, with the same fields in the same order."""
    drawn, accepted, declined = random.Random(11), 0, 0
    odd = (
        None, "", "x" * 257, "é", "a\0b", 7, -1, 0, 2**63, 1.5, float("inf"), True, [], {}, {"a": {"b": 1}}, ["x"],
        [{"item_id": "i"}], [{"item_id": ""}], [{"item_id": "i", "quantity": -1}], [{"item_id": "i"}] * 201, "alias",
        "2024-03-01T12:00:00+02:00", "2024-03-01", "2031-01-01T00:00:00Z", "1990-01-01T00:00:00Z",
    )  # fmt: skip
    for _ in range(6_000):
        event: dict[str, Any] = {
            "event_id": "e1", "event_type": drawn.choice(["view_item", "impression", "page_view", "purchase"]),
            "user_id": "u1", "anonymous_id": "a1", "session_id": "s1", "item_id": "i1",
            "timestamp": "2024-03-01T12:00:00.5Z", "value": 3.5, "quantity": 2, "price": 9, "currency": "EUR",
            "items": [{"item_id": "i1"}, {"item_id": "i2"}], "placement": "home", "context": {"device": "phone"},
            "properties": {"a": None},
        }  # fmt: skip
        for name in drawn.sample(list(event), drawn.choice([0, 2, 6, 9])):
            del event[name]
        for _ in range(drawn.choice([0, 0, 1, 2])):
            event[drawn.choice([*EVENT_FIELDS, "colour"])] = drawn.choice(odd)
        if drawn.random() < 0.1:
            event = dict(sorted(event.items()))
        kept = copy.deepcopy(event)
        ours = native.check_common_event(event, latest=NOON + MAX_FUTURE_SKEW)
        assert event == kept
        if ours is None:
            declined += 1
            continue
        theirs, _ = check_event(event, received_at=NOON)
        assert theirs is not None, event
        assert list(ours.items()) == list(theirs.items())
        accepted += 1
    assert accepted > 1_000 < declined
    assert native.check_common_event(["no", "object"], latest=NOON) is None


def outcome(unpack: Any, record: bytes) -> Any:
    """The state, or the words of the refusal."""
    try:
        return unpack(record)
    except ContractError as error:
        return str(error)


def records() -> list[bytes]:
    """Of subjects who did all kinds of things, after few events and after many; and those of older formats."""
    drawn, found = random.Random(8), [pack_session(SessionState())]
    for _ in range(4):
        state = SessionState()
        for number in range(240):
            event, _ = check_event(some_event(drawn, number), received_at=NOON + timedelta(days=1))
            if event is not None:
                twin.fold_event(state, event)
            if number in (1, 8, 40, 239):
                found.append(pack_session(state))
    golden = ROOT / "tests" / "golden"
    return [*found, *((golden / f"session_v{form}.bin").read_bytes() for form in (1, 2, 3, 4))]


def test_a_record_is_opened_as_the_twin_does() -> None:
    sections = set()
    for record in records():
        found, expected = parts.opening.unpack_session(record), unpack_session(record)
        assert found == expected
        assert pack_session(found) == pack_session(expected)
        for name in SessionState.__slots__:
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert (repr(ours), type(ours)) == (repr(theirs), type(theirs))  # also kinds of rows, and their order
            sections |= {name} if theirs else set()
    assert sections == set(SessionState.__slots__)


def test_a_damaged_record_is_what_the_twin_says() -> None:
    drawn = random.Random(9)
    kept = records()
    assert len(kept) > 3
    for record in kept:
        damaged = [record[:cut] for cut in (0, 1, 20, 51, 52, len(record) // 2, len(record) - 1)]
        damaged += [record + b"\0", b"\x09" + record[1:]]
        for _ in range(300):
            at = drawn.randrange(len(record))
            damaged.append(
                record[:at] + bytes([drawn.choice([0, 1, 25, 128, 255, drawn.randrange(256)])]) + record[at + 1 :]
            )
        for one in damaged:
            assert outcome(parts.opening.unpack_session, one) == outcome(unpack_session, one), one
