"""Whose an event is: the rule by hand, against a slow oracle, and the algebra that makes order irrelevant."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.identity import (
    ALWAYS,
    NEVER,
    Edge,
    claim_of,
    current_name,
    merge_edges,
    owner_at,
    pack_edge,
    stretches,
    unpack_edge,
)
from tests.builders import utc

GOLDEN = Path(__file__).parents[1] / "golden" / "edge_v1.bin"
EDGES = [
    Edge(1_709_895_600_000_000, 1_709_895_600_000_001),
    Edge(-5, 7, 3, is_alias=True),
    Edge(undone_micros=9),
]

Word = tuple[str, str, int]
"""seen or undone, user, micros."""


def edges_of(words: Sequence[Word]) -> dict[str, Edge]:
    edges: dict[str, Edge] = {}
    for kind, user, micros in words:
        said = Edge(micros, micros) if kind == "seen" else Edge(undone_micros=micros)
        edges[user] = merge_edges(edges.get(user, Edge()), said)
    return edges


@pytest.mark.parametrize(
    ("words", "owners"),
    [
        # instants 0..9; "-" is nobody
        ([], "----------"),
        ([("seen", "u", 5)], "uuuuuuuuuu"),  # the sessions before the login, and those after it
        ([("seen", "u", 3), ("seen", "v", 6)], "uuuu--vvvv"),  # a shared tablet: what lies between is nobody's
        ([("seen", "u", 3), ("seen", "v", 3)], "----------"),  # at one instant: neither
        ([("seen", "u", 1), ("seen", "v", 4), ("seen", "u", 7)], "uu--v--uuu"),
        ([("seen", "u", 1), ("seen", "u", 4), ("seen", "v", 4)], "uu--------"),  # the tie ends the run of u
        ([("seen", "u", 5), ("undone", "u", 6)], "----------"),
        ([("seen", "u", 5), ("undone", "u", 5)], "----------"),  # an undo counts at its own instant
        ([("seen", "u", 5), ("undone", "u", 4)], "-----uuuuu"),  # seen again after an undo: from the undo on
        ([("seen", "u", 2), ("seen", "v", 6), ("undone", "v", 7)], "uuuuuuuuuu"),  # as if v had never been
        ([("undone", "u", 5)], "----------"),
        ([("seen", "u", 2), ("seen", "u", 8), ("undone", "u", 3), ("seen", "v", 5)], "vvvvvv--uu"),  # 2 was not u, 8 is
        ([("seen", f"u{n}", 5) for n in range(9)], "----------"),
        ([("seen", "u", 1), *(("seen", f"v{n}", 5) for n in range(7))], "uu--------"),  # eight users: still a device
        ([("seen", "u", 1), *(("seen", f"v{n}", 5) for n in range(8))], "----------"),  # nine: a kiosk
    ],
)
def test_whose_an_instant_is(words: list[Word], owners: str) -> None:
    edges = edges_of(words)
    assert "".join(owner_at(edges, micros) or "-" for micros in range(10)) == owners


def slow_owner(words: Sequence[Word], micros: int) -> str | None:
    """The rule as it is said: what was seen last before and first after, by looking at every word again."""
    undone = {user: max((m for k, u, m in words if (k, u) == ("undone", user)), default=None) for _, user, _ in words}
    live: list[tuple[int, str]] = []
    for user, until in undone.items():
        seen = [m for k, u, m in words if (k, u) == ("seen", user)]
        if seen and (until is None or max(seen) > until):
            live += [(m, user) for m in (min(seen), max(seen)) if until is None or m > until]
    if len({user for _, user in live}) > 8:
        return None
    before = [m for m, _ in live if m <= micros]
    after = [m for m, _ in live if m >= micros]
    told = [{user for m, user in live if m == edge} for edge in ([max(before)] if before else [])]
    told += [{user for m, user in live if m == edge} for edge in ([min(after)] if after else [])]
    if not told or any(users != told[0] for users in told) or len(told[0]) != 1:
        return None
    (user,) = told[0]
    until = undone[user]
    return user if until is None or micros > until else None


WORDS = st.lists(
    st.tuples(st.sampled_from(["seen", "seen", "seen", "undone"]), st.sampled_from("uvw"), st.integers(0, 12)),
    max_size=12,
)


@given(words=WORDS)
def test_the_rule_is_what_the_oracle_says(words: list[Word]) -> None:
    edges = edges_of(words)
    assert [owner_at(edges, m) for m in range(-1, 14)] == [slow_owner(words, m) for m in range(-1, 14)]
    spans = stretches(edges)
    assert all(one.until_micros < other.from_micros for one, other in pairwise(spans))


@given(words=WORDS)
def test_an_undo_of_everything_is_as_if_nobody_had_been_seen(words: list[Word]) -> None:
    without_u = [word for word in words if word[1] != "u"]
    undone = [*words, ("undone", "u", 99)]
    assert [owner_at(edges_of(undone), m) for m in range(14)] == [owner_at(edges_of(without_u), m) for m in range(14)]


def test_neither_order_nor_repetition_matters() -> None:
    words: list[Word] = [("seen", "u", 3), ("undone", "u", 4), ("seen", "u", 6), ("seen", "u", 6)]
    said = [Edge(m, m) if kind == "seen" else Edge(undone_micros=m) for kind, _, m in words]
    merged = {reduce(merge_edges, order, Edge()) for order in permutations(said)}
    assert merged == {Edge(3, 6, 4)}


def event(kind: str, **more: Any) -> dict[str, Any]:
    return {"event_id": "e", "event_type": kind, "timestamp": utc("1970-01-01T00:00:01"), **more}


def test_what_an_event_claims() -> None:
    both = {"user_id": "u", "anonymous_id": "a"}
    second = 1_000_000
    assert claim_of(event("view_item", **both)) == ("a", "u", Edge(second, second))
    assert claim_of(event("identify", **both)) == ("a", "u", Edge(second, second))
    assert claim_of(event("alias", **both)) == ("a", "u", Edge(second, second, is_alias=True))
    assert claim_of(event("unmerge", **both)) == ("a", "u", Edge(ALWAYS, NEVER, second))
    assert claim_of(event("identify", user_id="u")) is None
    assert claim_of(event("view_item", anonymous_id="a")) is None


@pytest.mark.parametrize(
    ("renames", "name"),
    [
        ({}, "u0"),
        ({"u0": ["u1"], "u1": ["u2"]}, "u2"),
        ({"u0": ["u0"]}, "u0"),
        ({"u0": ["u1"], "u1": ["u0"]}, "u0"),  # a circle is not followed
        ({"u0": ["u1"], "u1": ["u2"], "u2": ["u1"]}, "u0"),  # nor one further on
        ({"u0": ["u1", "u2"]}, "u0"),  # two users: neither
        ({f"u{n}": [f"u{n + 1}"] for n in range(4)}, "u4"),  # four steps
        ({f"u{n}": [f"u{n + 1}"] for n in range(5)}, "u0"),  # five are too many
    ],
)
def test_the_end_of_a_chain_of_names(renames: dict[str, list[str]], name: str) -> None:
    assert current_name("u0", lambda user: renames.get(user, [])) == name


def test_an_undone_alias_is_never_followed_again() -> None:
    assert Edge(1, 1, is_alias=True).renames
    assert not Edge(1, 9, 5, is_alias=True).renames
    assert not Edge(1, 9).renames


def test_edges_read_what_older_code_wrote() -> None:
    record = GOLDEN.read_bytes()
    assert [unpack_edge(record[at : at + 26]) for at in range(0, len(record), 26)] == EDGES
    assert b"".join(map(pack_edge, EDGES)) == record
    assert pack_edge(Edge(1, 2, 3, is_alias=True)).hex() == "0101" + "01" + "00" * 7 + "02" + "00" * 7 + "03" + "00" * 7


@pytest.mark.parametrize("record", [b"", b"\x02" + bytes(25), pack_edge(Edge(1, 1))[:-1], pack_edge(Edge(1, 1)) + b"x"])
def test_a_damaged_edge_is_refused(record: bytes) -> None:
    with pytest.raises(ContractError, match="a v1 edge has 26 bytes"):
        unpack_edge(record)
