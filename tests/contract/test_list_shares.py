"""What a list tells of its parts: golden bytes, bytes by hand, an inverse, and refusal of what is cut or does not add
up."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.list_shares import (
    MAX_PARTS,
    UNIT,
    ListPart,
    pack_shares,
    part_name,
    part_number,
    read_many_shares,
    read_shares,
    shares_size,
)
from feature_repo.contracts.packing import (
    PackedCandidate,
    open_candidates,
    pack_candidates,
    read_candidates_header,
    unpack_candidates,
)
from spark_jobs.transforms.record_checks import record_faults

GOLDEN = Path(__file__).parents[1] / "golden"
VERSION = "2024-03-08-1a2b3c4d"
ROWS = [
    PackedCandidate(7, 1.5, 3, 2, None),
    PackedCandidate(300, 0.25, 1, None, None),
    PackedCandidate(4_000_000_000, 0.25, 2, 0, 65_536),
]
PARTS = (ListPart.ALS, ListPart.ITEM_KNN, ListPart.OTHER)
SHARES = [(125, 100, 25), None, (0, 1, 249)]


def test_candidates_read_what_older_code_wrote() -> None:
    record = (GOLDEN / "candidates_v2.bin").read_bytes()
    assert unpack_candidates(record, expected_version=VERSION) == (ROWS, 0)
    assert pack_candidates(VERSION, ROWS, shares=pack_shares(PARTS, SHARES)) == record


def test_shares_by_hand() -> None:
    """Three parts, als 5, item_knn 4, other 0; then of each row the first two: 125 and 100 of 250, nobody, 0 and 1."""
    packed = pack_shares(PARTS, SHARES)
    assert packed.hex() == "03" + "050400" + "7d64" + "ffff" + "0001"
    assert read_shares(packed, 0) == [("als", 0.5), ("item_knn", 0.4), ("other", 0.1)]
    assert read_shares(packed, 1) == []
    assert read_shares(packed, 2) == [("item_knn", 0.004), ("other", 0.996)]
    assert read_shares(pack_shares([5], [(250,)] * 9), 8) == [("als", 1.0)]


@given(
    parts=st.lists(st.integers(0, 20), min_size=1, max_size=MAX_PARTS),
    table=st.binary(min_size=30, max_size=30), places=st.lists(st.integers(0, 9), max_size=12),
)  # fmt: skip
def test_many_are_read_like_one(parts: list[int], table: bytes, places: list[int]) -> None:
    """Whatever the bytes say: parts without a name, the same part twice, shares that are too many."""
    small = bytes(share if share == 255 else share // 2 for share in table)
    for rows in (table, small):
        packed = bytes([len(parts), *parts]) + rows
        assert read_many_shares(packed, places) == [read_shares(packed, place) for place in places]
    packed = pack_shares(PARTS, SHARES)
    assert read_many_shares(packed, [2, 1]) == [[("item_knn", 0.004), ("other", 0.996)], []]


def test_a_record_with_shares_is_read_like_one_without() -> None:
    plain, telling = (pack_candidates(VERSION, ROWS, shares=told) for told in (b"", pack_shares(PARTS, SHARES)))
    assert (plain[0], telling[0]) == (1, 2)
    assert telling[1 : len(plain)] == plain[1:]
    assert read_candidates_header(telling) == read_candidates_header(plain) == (VERSION, 0, 3)
    without, _ = open_candidates(plain, VERSION)
    rows, _ = open_candidates(telling, VERSION)
    assert list(rows) == list(without)
    assert bytes(rows.packed) == bytes(without.packed)
    assert rows[-1] == without[-1]
    assert rows.of_items({300, 5}) == without.of_items({300, 5})
    assert without.shares_of({7, 5, 300}) == {7: [], 300: []}
    assert rows.shares_of({7, 5, 300}) == {7: [("als", 0.5), ("item_knn", 0.4), ("other", 0.1)], 300: []}


@pytest.mark.parametrize("cut", range(1, 64))
def test_a_record_that_was_cut_is_refused(cut: int) -> None:
    record = pack_candidates(VERSION, ROWS, shares=pack_shares(PARTS, SHARES))
    assert len(record) == 12 + 3 * 17 + 10
    for read in (unpack_candidates, lambda cut: open_candidates(cut, VERSION)):
        with pytest.raises(ContractError):
            read(record[:-cut])
        with pytest.raises(ContractError):
            read(record + b"\0" * cut)


@pytest.mark.parametrize("parts", [0, 1, 2, 4, 5, 255])
def test_a_record_that_says_another_number_of_parts_is_refused(parts: int) -> None:
    record = bytearray(pack_candidates(VERSION, ROWS, shares=pack_shares(PARTS, SHARES)))
    record[12 + 3 * 17] = parts
    with pytest.raises(ContractError):
        open_candidates(bytes(record), VERSION)
    assert record_faults(VERSION, [bytes(record)]) == ["damaged record"]


@pytest.mark.parametrize(
    ("parts", "rows"),
    [
        ([], []),
        ([1, 2, 3, 4, 5], [(50, 50, 50, 50, 50)]),
        ([1, 2], [(100, 100)]),
        ([1, 2], [(251, -1)]),
        ([1, 2], [(100, 100, 50)]),
        ([1], [None]),
    ],
)
def test_shares_that_do_not_add_up_are_not_packed(parts: list[int], rows: list[tuple[int, ...] | None]) -> None:
    with pytest.raises(ContractError):
        pack_shares(parts, rows)


def test_shares_of_other_rows_are_not_packed() -> None:
    with pytest.raises(ContractError, match="no shares of 3 rows"):
        pack_candidates(VERSION, ROWS, shares=pack_shares(PARTS, SHARES[:2]))


def test_what_adds_up_to_more_than_the_whole_tells_nothing() -> None:
    assert read_shares(bytes([3, 5, 4, 0, 200, 51]), 0) == []


def test_part_names_are_those_of_models_and_stay() -> None:
    numbers = {part.name.lower(): int(part) for part in ListPart}
    assert [part_number(name) for name in ("als", "content", "graph_filter", "no such model")] == [5, 13, 8, 0]
    assert all(part_name(number) == name for name, number in numbers.items())
    assert part_name(200) == "other"  # of a later night
    assert read_shares(bytes([2, 0, 200, 100]), 0) == [("other", 1.0)]


def test_faults_are_found_in_rows_that_have_shares_behind_them() -> None:
    shares = pack_shares(PARTS, SHARES)
    swapped = [ROWS[1], ROWS[0], ROWS[2]]
    records = [
        pack_candidates(VERSION, ROWS, shares=shares),
        pack_candidates(VERSION, swapped, shares=shares),
        pack_candidates(VERSION, ROWS),
        pack_candidates(VERSION, [ROWS[0], ROWS[0]._replace(score=1.0)], shares=pack_shares(PARTS, SHARES[:2])),
    ]
    assert record_faults(VERSION, records) == [None, "rows out of order", None, "item listed twice"]


@given(st.data())
def test_what_is_packed_is_read(data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.integers(0, 14), min_size=1, max_size=MAX_PARTS, unique=True))
    marks = st.lists(st.integers(0, UNIT), min_size=len(parts) - 1, max_size=len(parts) - 1)
    rows: list[tuple[int, ...] | None] = []
    for one in data.draw(st.lists(st.none() | marks if len(parts) > 1 else marks, max_size=5)):
        ends = None if one is None else [0, *sorted(one), UNIT]
        rows.append(None if ends is None else tuple(b - a for a, b in pairwise(ends)))
    packed = pack_shares(parts, rows)
    assert shares_size(packed, 0, len(rows)) == len(packed)
    for place, row in enumerate(rows):
        expected = [(part_name(p), share / UNIT) for p, share in zip(parts, row or (), strict=False) if share]
        assert read_shares(packed, place) == expected
