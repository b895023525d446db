"""Packed records: golden bytes of format 1, inverses, and refusal of whatever is cut, foreign or of another version."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.contracts.errors import ContractError, MixedVersionError
from feature_repo.contracts.packing import (
    EVENT_TYPE_ORDER,
    FLAG_PERSONALIZE_DENIED,
    ItemMark,
    PackedCandidate,
    SessionEvent,
    SessionState,
    pack_candidates,
    pack_session,
    read_candidates_header,
    session_hash,
    unpack_candidates,
    unpack_session,
)

GOLDEN = Path(__file__).parents[1] / "golden"
VERSION = "2024-03-08-1a2b3c4d"
CANDIDATES = [
    PackedCandidate(7, 1.5, 3, 2, None),
    PackedCandidate(300, 0.25, 1, None, None),
    PackedCandidate(4_000_000_000, 0.25, 2, 0, 65_536),
]
SESSION = SessionState(
    events=[
        SessionEvent(1_709_895_600_000_000, "view_item", 0, "i1"),
        SessionEvent(1_709_895_600_000_001, "purchase", session_hash("s1"), "ä" * 128),
    ],
    bought=[ItemMark(1_709_895_600_000_001, "ä" * 128)],
    dismissed=[ItemMark(-5, "i9")],
    flags=FLAG_PERSONALIZE_DENIED,
    consent_micros=1_709_895_599_000_000,
)


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
    record = (GOLDEN / "session_v1.bin").read_bytes()
    assert unpack_session(record) == SESSION
    assert pack_session(SESSION) == record


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
    with pytest.raises(ContractError, match="format 2, expected 1"):
        unpack_candidates(b"\x02" + record[1:])


def test_a_session_record_cut_anywhere_is_refused() -> None:
    record = pack_session(SESSION)
    assert len(record) == 16 + (19 + 2) + (19 + 256) + (10 + 256) + (10 + 2) == 590
    for cut in range(590):
        with pytest.raises(ContractError, match=r"cut short or damaged|ends at byte"):
            unpack_session(record[:cut])


def test_a_longer_or_foreign_session_record_is_refused() -> None:
    record = pack_session(SESSION)
    with pytest.raises(ContractError, match="ends at byte"):
        unpack_session(record + b"\0")
    with pytest.raises(ContractError, match="format 9, expected 1"):
        unpack_session(b"\x09" + record[1:])


def test_an_unknown_event_type_is_never_stored() -> None:
    with pytest.raises(ContractError, match="'teleport' has no number"):
        pack_session(SessionState(events=[SessionEvent(0, "teleport", 0, "i")]))


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
    assert unpack_candidates(pack_candidates(VERSION, rows, flags=flags)) == (rows, flags)


ids = st.text(min_size=1, max_size=40).filter(lambda s: not any(0xD800 <= ord(c) < 0xE000 for c in s))
micros = st.integers(-(2**63), 2**63 - 1)
marks = st.lists(st.builds(ItemMark, micros, ids), max_size=5)


@given(
    st.builds(
        SessionState,
        events=st.lists(
            st.builds(SessionEvent, micros, st.sampled_from(EVENT_TYPE_ORDER), st.integers(0, 2**64 - 1), ids),
            max_size=8,
        ),
        bought=marks,
        dismissed=marks,
        flags=st.integers(0, 255),
        consent_micros=micros,
    )
)
def test_sessions_round_trip(state: SessionState) -> None:
    assert unpack_session(pack_session(state)) == state


def test_sessions_are_told_apart() -> None:
    assert session_hash(None) == session_hash("") == 0
    assert len({session_hash(f"s{i}") for i in range(1000)} | {0}) == 1001


def test_scores_keep_float32_only() -> None:
    (row,), _ = unpack_candidates(pack_candidates(VERSION, [PackedCandidate(1, 0.1, 1)]))
    assert row.score != 0.1
    assert math.isclose(row.score, 0.1, rel_tol=1e-7)
