"""Native code draws what Python's generator draws, and seeds a day as its twin does."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from serving.native import described, parts
from serving.pipeline.rotation import DAY_MICROS, rotation_seed

pytestmark = pytest.mark.skipif(parts.chances is None, reason=f"serving answers from {described()}")


@pytest.mark.parametrize("seed", ["", "a", "exploration/id1", "ü 日本", "\x00", "x" * 3_000, *map(str, range(50))])
def test_draws_are_those_of_python(seed: str) -> None:
    twin = random.Random(seed)
    assert parts.chances.draws_of(seed, 1_000) == [twin.random() for _ in range(1_000)]  # three turns of the state


def test_a_seed_of_a_day_is_that_of_the_twin() -> None:
    found = []
    for subject in (None, "u:u1", "a:u1", "u:ü 日本", "u:" + "x" * 300):
        for now in (0, DAY_MICROS - 1, DAY_MICROS, 1_709_900_000_123_456):
            found.append(parts.chances.seed_of_day(subject, now))
            assert found[-1] == rotation_seed(subject, now)
    assert all(one != other for one, other in pairwise(found[1:4]))
    assert len(set(found)) == 5 * 3
    with pytest.raises(UnicodeError):  # left to the twin
        parts.chances.seed_of_day("u:\ud800", 0)
