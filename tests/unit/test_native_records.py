"""Session records that native code reads are those of its twin, whatever their bytes are."""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.session_record import (
    CartChange,
    ItemMark,
    OpenedSession,
    SessionEvent,
    SessionState,
    Word,
    pack_session,
    read_session,
)
from serving.native import described, parts

pytestmark = pytest.mark.skipif(parts.records is None, reason=f"serving answers from {described()}")

NAMES = ("i1", "ü", "x" * 256, "日本", "a b", "i2")
GOLDEN = Path(__file__).parents[1] / "golden"


def outcome(read: Any, record: bytes) -> Any:
    """All fields, or the error in words."""
    try:
        state = read(record)
    except ContractError as error:
        return str(error)
    return {field.name: getattr(state, field.name) for field in fields(SessionState)}


def same(record: bytes) -> Any:
    """What both read."""
    found = outcome(parts.records.read_session, record)
    assert found == outcome(read_session, record)
    return found


def state(drawn: random.Random) -> SessionState:
    def item() -> str:
        return drawn.choice(NAMES)

    def moment() -> int:
        return drawn.choice([0, -1, 2**62, drawn.randrange(2**50)])

    events = [SessionEvent(moment(), "view_item", drawn.getrandbits(64), item(), drawn.getrandbits(32)) for _ in "abc"]
    votes = {(1, 2): {item(): 3, item(): 4}, (2, 2): {item(): 3}}
    spoken = [(*period, one) for period, items in votes.items() for one in items]
    regions = {vote: drawn.choice(["DE", item()]) for vote in spoken if drawn.random() < 0.4}
    return SessionState(
        events=events[: drawn.randrange(4)],
        bought=[ItemMark(moment(), item()) for _ in range(drawn.randrange(3))],
        dismissed=[ItemMark(moment(), item()) for _ in range(drawn.randrange(3))],
        flags=drawn.randrange(256),
        consent_micros=moment(),
        steps=[SessionEvent(moment(), "search", 7, "", 1)][: drawn.randrange(2)],
        cart=[CartChange(moment(), True, 3, item(), 9)][: drawn.randrange(2)],
        seen={item(): 5},
        interests={(19_000, item()): 4},
        votes=votes,
        counts={"view_item": 2**32 - 1},
        words={"device": Word(5, item())},
        first_micros=moment(),
        last_micros=moment(),
        shown={(19_000, item()): 2},
        regions=regions,
    )


def test_whole_records() -> None:
    drawn = random.Random(1)
    for _ in range(200):
        record = pack_session(state(drawn))
        assert same(record)["counts"] == {"view_item": 2**32 - 1}
        assert type(parts.records.read_session(record)) is OpenedSession
    assert same(pack_session(SessionState()))["events"] == []


def test_older_formats_and_golden_records() -> None:
    records = sorted(GOLDEN.glob("*session*"))
    assert len(records) >= 3
    for path in records:
        same(path.read_bytes())


def test_records_cut_short_or_garbled() -> None:
    drawn = random.Random(2)
    refused = 0
    for _ in range(40):
        record = pack_session(state(drawn))
        for size in range(0, len(record), 7):
            refused += isinstance(same(record[:size]), str)
        for _ in range(150):
            garbled = bytearray(record)
            for _ in range(drawn.choice([1, 1, 3])):
                garbled[drawn.randrange(len(garbled))] = drawn.randrange(256)
            refused += isinstance(same(bytes(garbled)), str)
    assert refused > 2000
    same(b"")
    same(record + b"\0")


def test_other_kinds_of_bytes() -> None:
    record = pack_session(state(random.Random(3)))
    assert outcome(parts.records.read_session, bytearray(record)) == outcome(read_session, bytearray(record))  # type: ignore[arg-type]
