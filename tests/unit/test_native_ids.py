"""Ids that native code makes are those of its twin, of the same random bytes and the same time."""

from __future__ import annotations

import random
from typing import Any

import pytest

from serving.ids import Ids, Numbered, new_id
from serving.native import described, parts

native = pytest.mark.skipif(parts.ids is None, reason=f"serving answers from {described()}")


@pytest.mark.parametrize("kind", [Ids, pytest.param(parts.ids and parts.ids.Ids, marks=native)])
def test_time_first_then_what_was_drawn(kind: Any) -> None:
    drawn = iter([bytes(5_110) + bytes(range(240, 250))])
    ids = kind(lambda _: next(drawn), lambda: 0x0123456789AB * 1_000_000 + 999_999)
    assert ids.new() == "0123456789abf0f1f2f3f4f5f6f7f8f9"
    assert ids.new() == "0123456789ab" + 20 * "0"


@native
def test_native_ids_are_the_twins() -> None:
    made: list[list[str]] = []
    for kind in (Ids, parts.ids.Ids):
        bytes_of, clock = random.Random(7), random.Random(8)

        def later(clock: random.Random = clock) -> int:
            return clock.randrange(2**62)

        ids = kind(bytes_of.randbytes, later)
        made.append([ids.new() for _ in range(1_500)])
    assert made[0] == made[1]
    assert len(set(made[0])) == 1_500


@native
def test_too_few_random_bytes_are_an_error() -> None:
    with pytest.raises(ValueError, match="fewer random bytes"):
        parts.ids.Ids(lambda _: b"\0" * 5, lambda: 0).new()


def test_nobody_has_seen_an_id_before() -> None:
    made = {new_id() for _ in range(2_000)}
    assert len(made) == 2_000
    assert {len(one) for one in made} == {32}


@pytest.mark.parametrize("kind", [Numbered, pytest.param(parts.ids and parts.ids.Numbered, marks=native)])
@pytest.mark.parametrize("made", ["0123456789abcdef0123456789abcdef", "id7"])
def test_numbered_ids_have_the_end_of_an_id_and_a_number(kind: Any, made: str) -> None:
    make = kind(lambda: made)
    found = [make() for _ in range(1_000)]
    assert found[0] == made[-20:] + "000000000001"
    assert found[999] == made[-20:] + "0000000003e8"
    assert len(set(found)) == 1_000
