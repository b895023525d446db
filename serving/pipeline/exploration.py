"""Places left to chance, with the exact probability of everything that is shown.

Each explorable place is, with probability `share` and independently of the others, given to an item of the pool, drawn
without repetition; else it keeps its own. An item of the pool then has the probability share / |pool| at every such
place, by symmetry, and the item that belongs there has 1 - share. Both are logged, so off-policy estimates are fair.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

EXPLORED_POOL = 50
"""The next best items of which one is drawn."""


class Explored(NamedTuple):
    """`explored`: the positions (from 0) that were given to chance."""

    slate: list[int]
    propensities: list[float]
    explored: list[int]


def explore(slate: Sequence[int], pool: Sequence[int], *, share: float, seed: str) -> Explored:
    """The slate with some places given to items of `pool`, which has none of the slate's.

    When the pool has fewer items than the slate has places, only so many last places are explorable. Equal arguments
    give equal answers.
    """
    chance = random.Random(f"exploration/{seed}")  # noqa: S311 - no secret
    shown, propensities = list(slate), [1.0] * len(slate)
    drawn, explored = list(pool), list[int]()
    for position in range(max(0, len(slate) - len(pool)), len(slate)):
        if chance.random() >= share:
            propensities[position] = 1.0 - share
            continue
        at = len(explored)
        other = at + int(chance.random() * (len(drawn) - at))
        drawn[at], drawn[other] = drawn[other], drawn[at]
        shown[position] = drawn[at]
        propensities[position] = share / len(pool)
        explored.append(position)
    return Explored(shown, propensities, explored)
