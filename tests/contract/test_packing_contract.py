"""Packed records: golden bytes of every format, inverses, refusal of what is cut, foreign or of another version."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contracts.errors import ContractError, MixedVersionError
from feature_repo.contracts.packing import (
    CANDIDATE_ROW,
    CANDIDATES_HEADER_BYTES,
    FLAG_PERSONALIZE_DENIED,
    PackedCandidate,
    open_candidates,
    pack_candidates,
    read_candidates_header,
    unpack_candidates,
)
from feature_repo.contracts.session_record import (
    EVENT_TYPE_ORDER,
    MAX_CART_CHANGES,
    MAX_EVENTS,
    MAX_INTERESTS,
    MAX_MARKS,
    MAX_SEEN,
    MAX_SHOWINGS,
    MAX_STEPS,
    WORD_ORDER,
    CartChange,
    ItemMark,
    SessionEvent,
    SessionState,
    Word,
    event_hash,
    pack_session,
    read_session,
    session_hash,
    unpack_session,
)
from feature_repo.contracts.trend_record import (
    MAX_VOTES,
    WINDOWS,
    TrendTable,
    pack_regions,
    pack_trend,
    unpack_regions,
    unpack_trend,
)

GOLDEN = Path(__file__).parents[1] / "golden"
VERSION = "2024-03-08-1a2b3c4d"
CANDIDATES = [
    PackedCandidate(7, 1.5, 3, 2, None),
    PackedCandidate(300, 0.25, 1, None, None),
    PackedCandidate(4_000_000_000, 0.25, 2, 0, 65_536),
]
SESSION_V1 = SessionState(
    events=[
        SessionEvent(1_709_895_600_000_000, "view_item", 0, "i1"),
        SessionEvent(1_709_895_600_000_001, "purchase", session_hash("s1"), "ä" * 128),
    ],
    bought=[ItemMark(1_709_895_600_000_001, "ä" * 128)],
    dismissed=[ItemMark(-5, "i9")],
    flags=FLAG_PERSONALIZE_DENIED,
    consent_micros=1_709_895_599_000_000,
)
SESSION = SessionState(
    events=[
        SessionEvent(1_709_895_600_000_000, "view_item", 0, "i1", event_hash("e1")),
        SessionEvent(1_709_895_600_000_001, "purchase", session_hash("s1"), "ä" * 128, 7),
    ],
    steps=[SessionEvent(1_709_895_599_000_000, "search", session_hash("s1"), "", 2**32 - 1)],
    cart=[
        CartChange(1_709_895_600_000_000, False, 65_535, "i1", 3),
        CartChange(1_709_895_600_000_005, True, 0, "i2", 4),
    ],
    bought=[ItemMark(1_709_895_600_000_001, "ä" * 128)],
    dismissed=[ItemMark(-5, "i9")],
    seen={"i1": 1_709_895_600_000_000},
    interests={(19_790, "i1"): 2, (19_789, "ä" * 128): 65_535},
    votes={(2, 19_790): {"i1": 11}, (0, 5_699_652): {"i1": 4}},
    counts={"view_item": 1, "purchase": 2**32 - 1, "search": 3},
    words={"device": Word(1_709_895_600_000_000, "mobile"), "channel": Word(5, "web")},
    flags=FLAG_PERSONALIZE_DENIED,
    consent_micros=1_709_895_599_000_000,
    first_micros=1_709_895_599_000_000,
    last_micros=1_709_895_600_000_005,
    shown={(19_790, "i7"): 3, (19_789, "i1"): 65_535},
)
SESSION_V2 = replace(SESSION, shown={})
SESSION_V4 = replace(SESSION, regions={(2, 19_790, "i1"): "DE"})
TREND = TrendTable(1, 5_699_652, {"i1": 3, "ä": 4_000_000_000}, 4_000_000_010, 7)


def test_candidates_read_what_older_code_wrote() -> None:
    record = (GOLDEN / "candidates_v1.bin").read_bytes()
    assert unpack_candidates(record, expected_version=VERSION) == (CANDIDATES, FLAG_PERSONALIZE_DENIED)
    assert pack_candidates(VERSION, CANDIDATES, flags=FLAG_PERSONALIZE_DENIED) == record


def test_the_header_by_hand() -> None:
    """2024-03-08 is day 19,790 since 1970 (0x4d4e); the hash is stored little-endian."""
    record = pack_candidates(VERSION, [CANDIDATES[0]])
    assert record[:12].hex() == "01000100" + "4e4d0000" + "4d3c2b1a"
    assert record[12:].hex() == "07000000" + "0000c03f" + "03" + "02000000" + "ffffffff"
    assert read_candidates_header(record) == (VERSION, 0, 1)


def test_a_session_reads_what_older_code_wrote() -> None:
    assert unpack_session((GOLDEN / "session_v1.bin").read_bytes()) == SESSION_V1
    assert unpack_session((GOLDEN / "session_v2.bin").read_bytes()) == SESSION_V2
    record = (GOLDEN / "session_v3.bin").read_bytes()
    assert unpack_session(record) == SESSION
    assert pack_session(SESSION) == record
    placed = (GOLDEN / "session_v4.bin").read_bytes()
    assert unpack_session(placed) == SESSION_V4
    assert pack_session(SESSION_V4) == placed


def test_the_region_of_each_vote_by_hand() -> None:
    """The vote of window 0 comes first and went to no region; that of window 2 to the name after the seven others."""
    record, plain = pack_session(SESSION_V4), pack_session(SESSION)
    assert record[-4:].hex() == "ffff" + "0700"
    names_end = 52 + int.from_bytes(plain[26:30], "little")
    assert record[:26] == b"\4" + plain[1:26]
    assert (record[26:32], plain[26:32]) == (bytes([26, 1, 0, 0, 8, 0]), bytes([23, 1, 0, 0, 7, 0]))
    assert record[32 : names_end + 3] == plain[32:names_end] + b"\0DE"
    assert record[names_end + 3 : -4] == plain[names_end:]


def test_a_list_of_regions_reads_what_older_code_wrote() -> None:
    record = (GOLDEN / "trend_regions_v1.bin").read_bytes()
    assert record == b"\1DE\0\xc3\x85land\0de"
    assert unpack_regions(record) == ["DE", "Åland", "de"]
    assert pack_regions(["DE", "Åland", "de"]) == record
    assert unpack_regions(pack_regions([])) == []


@pytest.mark.parametrize("record", [b"", b"\2DE", b"\1DE\0", b"\1DE\0DE", b"\1\xff"])
def test_a_damaged_list_of_regions_is_refused(record: bytes) -> None:
    with pytest.raises(ContractError, match="region"):
        unpack_regions(record)


def test_a_trend_table_reads_what_older_code_wrote() -> None:
    record = (GOLDEN / "trend_v1.bin").read_bytes()
    assert unpack_trend(record) == TREND
    assert pack_trend(TREND) == record
    assert unpack_trend(pack_trend(TrendTable(2, 1))) == TrendTable(2, 1)
    shuffled = TrendTable(2, 1, {"pan": 1, "hoe": 9, "mug": 4}, 14)
    assert unpack_trend(pack_trend(shuffled)).votes == {"pan": 1, "hoe": 9, "mug": 4}  # each its own


def test_a_trend_table_cut_lengthened_or_of_another_format_is_refused() -> None:
    record = pack_trend(TREND)
    assert len(record) == 22 + 5 + 8
    for cut in range(35):
        with pytest.raises(ContractError, match=r"cut short or damaged|bytes, got"):
            unpack_trend(record[:cut])
    with pytest.raises(ContractError, match="bytes, got 36"):
        unpack_trend(record + b"\0")
    with pytest.raises(ContractError, match="format 3, expected 1"):
        unpack_trend(b"\3" + record[1:])
    with pytest.raises(ContractError, match="2 items promised, 3 named"):
        unpack_trend(record.replace(b"i1\0", b"\0i\0"))


def test_the_session_header_by_hand() -> None:
    """One event of 1970-01-01T00:00:01Z (1,000,000 us = 0xf4240) on item "a", which was shown 258 times that day; all
    numbers little-endian."""
    events = [SessionEvent(1_000_000, "click", 0, "a", 9)]
    state = SessionState(events=events, first_micros=1, last_micros=2, shown={(0, "a"): 258})
    record = pack_session(state)
    assert record[:30].hex() == "0300" + "00" * 8 + "01" + "00" * 7 + "02" + "00" * 7 + "01000000"
    assert record[30:52].hex() == "0100" + "0100" + "0000" * 7 + "0000" + "0100"
    assert record[52:].hex() == "61" + "40420f0000000000" + "0c" + "00" * 8 + "09000000" + "0000" + "000000000201"


def test_the_documented_size_holds() -> None:
    def ids(kind: str, count: int) -> list[str]:
        return [f"{kind}{number:03d}".ljust(256, "x") for number in range(count)]

    largest = SessionState(
        events=[SessionEvent(1, "click", 1, item, 1) for item in ids("e", MAX_EVENTS)],
        steps=[SessionEvent(1, "search", 1, "", 1)] * MAX_STEPS,
        cart=[CartChange(1, False, 1, item, 1) for item in ids("c", MAX_CART_CHANGES)],
        bought=[ItemMark(1, item) for item in ids("b", MAX_MARKS)],
        dismissed=[ItemMark(1, item) for item in ids("d", MAX_MARKS)],
        seen=dict.fromkeys(ids("s", MAX_SEEN), 1),
        interests=dict.fromkeys(((1, item) for item in ids("i", MAX_INTERESTS)), 1),
        votes={(0, 1): dict.fromkeys(ids("v", MAX_VOTES * 2 * len(WINDOWS)), 1)},
        counts=dict.fromkeys(EVENT_TYPE_ORDER, 1),
        words={name: Word(1, ("w" + name).ljust(256, "x")) for name in WORD_ORDER},
        shown=dict.fromkeys(((1, item) for item in ids("z", MAX_SHOWINGS)), 1),
        regions={(0, 1, item): ("r" + item[1:4]).ljust(64, "x") for item in ids("v", MAX_VOTES * 2 * len(WINDOWS))},
    )
    record = pack_session(largest)
    names = int.from_bytes(record[30:32], "little")
    of_regions = MAX_VOTES * 2 * len(WINDOWS)
    assert (names, len(record) - (names - of_regions) * 257 - of_regions * 65 + 1) == (1015, 10_380)
    assert 262_000 < len(record) < 263_000
    assert unpack_session(record) == largest


def test_another_version_is_refused() -> None:
    record = pack_candidates(VERSION, CANDIDATES)
    with pytest.raises(MixedVersionError, match="serving 2024-03-09-1a2b3c4d, but the record belongs to 2024-03-08"):
        unpack_candidates(record, expected_version="2024-03-09-1a2b3c4d")


@pytest.mark.parametrize("cut", [0, 5, 11, 12, 28, 62])
def test_a_cut_candidates_record_is_refused(cut: int) -> None:
    record = pack_candidates(VERSION, CANDIDATES)
    assert len(record) == 12 + 3 * 17 == 63
    with pytest.raises(ContractError, match="bytes, got"):
        unpack_candidates(record[:cut])


def test_a_longer_or_foreign_candidates_record_is_refused() -> None:
    record = pack_candidates(VERSION, CANDIDATES)
    with pytest.raises(ContractError, match="63 bytes, got 64"):
        unpack_candidates(record + b"\0")
    with pytest.raises(ContractError, match="format 3, expected 1 or 2"):
        unpack_candidates(b"\x03" + record[1:])
    with pytest.raises(ContractError, match="tells how many parts"):
        unpack_candidates(b"\x02" + record[1:])  # nothing behind its rows


def test_a_session_record_cut_anywhere_is_refused() -> None:
    older, record = (GOLDEN / "session_v1.bin").read_bytes(), pack_session(SESSION)
    second = (GOLDEN / "session_v2.bin").read_bytes()
    assert len(older) == 16 + (19 + 2) + (19 + 256) + (10 + 256) + (10 + 2) == 590
    rows = 2 * 23 + 21 + 2 * 17 + 3 * 10 + 2 * 6 + 2 * 8 + 3 * 5 + 2 * 11
    assert len(second) == 50 + len("i1 i2 i9 mobile web") + 1 + 256 + rows
    assert len(record) == 52 + len("i1 i2 i9 mobile web i7") + 1 + 256 + rows + 2 * 6
    placed = pack_session(SESSION_V4)
    assert len(placed) == len(record) + len(" DE") + 2 * 2
    for whole in (older, second, record, placed):
        for cut in range(len(whole)):
            with pytest.raises(ContractError, match=r"cut short or damaged|ends at byte"):
                unpack_session(whole[:cut])


def test_a_longer_or_foreign_session_record_is_refused() -> None:
    record = pack_session(SESSION)
    older = [(GOLDEN / f"session_v{number}.bin").read_bytes() for number in (1, 2, 4)]
    for whole in (record, *older):
        with pytest.raises(ContractError, match="ends at byte"):
            unpack_session(whole + b"\0")
    with pytest.raises(ContractError, match="format 9, expected 1 to 4"):
        unpack_session(b"\x09" + record[1:])
    with pytest.raises(ContractError, match="7 names promised, 8 found"):
        unpack_session(record.replace(b"mobile", b"mob\0le"))


def test_an_unknown_event_type_is_never_stored() -> None:
    with pytest.raises(ContractError, match="'teleport' has no number"):
        pack_session(SessionState(events=[SessionEvent(0, "teleport", 0, "i")]))


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_name_that_would_be_read_back_as_another_is_never_stored(name: str) -> None:
    with pytest.raises(ContractError, match="cannot name"):
        pack_session(SessionState(bought=[ItemMark(0, name)]))
    with pytest.raises(ContractError, match="cannot hold this state"):
        pack_session(SessionState(interests={(1, "i"): 65_536}))


rows = st.lists(
    st.builds(
        PackedCandidate,
        item_number=st.integers(0, 2**32 - 1),
        score=st.floats(width=32, allow_nan=False),
        source=st.integers(1, 255),
        first_reason=st.none() | st.integers(0, 2**32 - 2),
        second_reason=st.none() | st.integers(0, 2**32 - 2),
    ),
    max_size=30,
)


@given(rows=rows, flags=st.integers(0, 255))
def test_candidates_round_trip(rows: list[PackedCandidate], flags: int) -> None:
    record = pack_candidates(VERSION, rows, flags=flags)
    assert unpack_candidates(record) == (rows, flags)
    opened, found_flags = open_candidates(record, VERSION)
    whole = [CANDIDATE_ROW.unpack(row) for row in batched(record[CANDIDATES_HEADER_BYTES:])]
    assert (list(opened), len(opened), found_flags) == (whole, len(rows), flags)
    assert [opened[at] for at in range(-len(rows), len(rows))] == whole * 2
    assert opened[1:3] == whole[1:3]
    some = {row[0] for row in whole[::3]}
    assert opened.of_items(some) == [row for row in whole if row[0] in some]
    with pytest.raises(IndexError):
        opened[len(rows)]
    if rows:
        with pytest.raises(ContractError):
            open_candidates(record[:-1], VERSION)
    with pytest.raises(MixedVersionError, match="2024-03-08-00000002"):
        open_candidates(record, "2024-03-08-00000002")


def batched(data: bytes) -> list[bytes]:
    return [data[at : at + CANDIDATE_ROW.size] for at in range(0, len(data), CANDIDATE_ROW.size)]


ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
micros = st.integers(-(2**63), 2**63 - 1)
small, hashes, numbers = st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
marks = st.lists(st.builds(ItemMark, micros, ids), max_size=5)
types = st.sampled_from(EVENT_TYPE_ORDER)


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        SessionState,
        events=st.lists(st.builds(SessionEvent, micros, types, hashes, ids, numbers), max_size=8),
        steps=st.lists(st.builds(SessionEvent, micros, types, hashes, st.just(""), numbers), max_size=3),
        cart=st.lists(st.builds(CartChange, micros, st.booleans(), small, ids, numbers), max_size=3),
        bought=marks,
        dismissed=marks,
        seen=st.dictionaries(ids, micros, max_size=4),
        interests=st.dictionaries(st.tuples(small, ids), small, max_size=3),
        votes=st.dictionaries(
            st.tuples(st.integers(0, 2), numbers),
            st.dictionaries(ids, st.integers(0, 255), min_size=1, max_size=2),
            max_size=3,
        ),
        counts=st.dictionaries(types, numbers, max_size=4),
        words=st.dictionaries(st.sampled_from(WORD_ORDER), st.builds(Word, micros, ids)),
        shown=st.dictionaries(st.tuples(small, ids), small, max_size=3),
        flags=st.integers(0, 255),
        consent_micros=micros,
        first_micros=micros,
        last_micros=micros,
    ),
    st.lists(st.one_of(st.none(), ids), min_size=6, max_size=6),
)
def test_sessions_round_trip(state: SessionState, regions: list[str | None]) -> None:
    spoken = [(*period, item) for period, votes in state.votes.items() for item in votes]
    state.regions = {vote: region for vote, region in zip(spoken, regions, strict=False) if region is not None}
    record = pack_session(state)
    assert unpack_session(record) == state
    opened = read_session(record)
    names = [field.name for field in fields(SessionState)]
    assert len(names) == 16
    for name in reversed(names):  # the later ones first: they come of themselves
        assert getattr(opened, name) == getattr(state, name), name
    assert replace(read_session(record), flags=0).words == state.words


def test_what_a_request_reads_of_a_session_is_checked_as_the_whole_is() -> None:
    older, record = (GOLDEN / "session_v1.bin").read_bytes(), pack_session(SESSION)
    assert read_session(older) == unpack_session(older)
    assert read_session((GOLDEN / "session_v2.bin").read_bytes()) == SESSION_V2
    assert read_session(record).events == SESSION.events
    damaged = [record[:cut] for cut in range(len(record))]
    damaged += [b"\x09" + record[1:], record + b"\0", record.replace(b"mobile", b"mob\0le")]
    for whole in damaged:
        with pytest.raises(ContractError) as said:
            unpack_session(whole)
        with pytest.raises(ContractError) as read:
            read_session(whole)
        assert str(read.value) == str(said.value)
    broken = record[:-4] + b"\xff\xff" + record[-2:]  # what was shown is a name that is not there
    with pytest.raises(ContractError, match="damaged"):
        unpack_session(broken)
    assert (read_session(broken).events, read_session(broken).words) == (SESSION.events, {})
    with pytest.raises(AttributeError):
        read_session(record).nothing  # type: ignore[attr-defined]  # noqa: B018


def test_sessions_are_told_apart() -> None:
    assert session_hash(None) == session_hash("") == 0
    assert len({session_hash(f"s{i}") for i in range(1000)} | {0}) == 1001


def test_scores_keep_float32_only() -> None:
    (row,), _ = unpack_candidates(pack_candidates(VERSION, [PackedCandidate(1, 0.1, 1)]))
    assert row.score != 0.1
    assert math.isclose(row.score, 0.1, rel_tol=1e-7)
