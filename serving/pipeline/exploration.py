"""Places left to chance, with the exact probability of everything that is shown.

Each explorable place is, with probability `share` and independently of the others, given to an item of the pool, drawn
without repetition; else it keeps its own. An item of the pool then has the probability share / |pool| at every such
place, by symmetry, and the item that belongs there has 1 - share. Both are logged, so off-policy estimates are fair.
Of the places that are given away a share may go to items that nobody had yet: each of them then has the probability
share x untried_share / |untried|, and those of the pool share x (1 - untried_share) / |pool|.
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


def explore(
    slate: Sequence[int],
    pool: Sequence[int],
    *,
    share: float,
    seed: str,
    untried: Sequence[int] = (),
    untried_share: float = 0.0,
) -> Explored:
    """The slate with some places given to items of `pool` or `untried`, which have none of the slate's or each other's.

    When the pool has fewer items than the slate has places, only so many last places are explorable; likewise only so
    many last places can go to untried items as there are. Equal arguments give equal answers.
    """
    chance = random.Random(f"exploration/{seed}")  # noqa: S311 - no secret
    shown, propensities = list(slate), [1.0] * len(slate)
    drawn, explored, fresh = list(pool), list[int](), list(untried)
    first_new = len(slate) - len(fresh) if untried_share > 0 else len(slate)
    news = 0
    for position in range(max(0, len(slate) - len(pool)), len(slate)):
        if chance.random() >= share:
            propensities[position] = 1.0 - share
            continue
        may_be_new = position >= first_new
        if may_be_new and chance.random() < untried_share:
            shown[position] = _draw(fresh, news, chance)
            propensities[position] = share * untried_share / len(fresh)
            news += 1
        else:
            shown[position] = _draw(drawn, len(explored) - news, chance)
            propensities[position] = share * (1.0 - untried_share if may_be_new else 1.0) / len(pool)
        explored.append(position)
    return Explored(shown, propensities, explored)


def _draw(items: list[int], at: int, chance: random.Random) -> int:
    """One of those from `at` on, which comes to stand there."""
    other = at + int(chance.random() * (len(items) - at))
    items[at], items[other] = items[other], items[at]
    return items[at]
