"""How an answer blends what the night knew with the running session: the numbers, and the formulas.

An answer works by them, and the night measures what answers would be by them (`with_session`). For a candidate
    base   its place in the person's own list, in (0, 1]: `normaliser` of the list's scores
    vote   what the session index says, summed over the session's last places, divided by the largest such sum
    score  (base + w x vote) / (1 + w), w = `session_loudness`
"""

from __future__ import annotations

from collections.abc import Callable

SESSION_WEIGHT = 4.0
"""How loud the session may get beside the person's own list; a setting of serving, this is its default."""
SESSION_WEIGHT_ALONE = 10_000.0
"""The same beside lists that are nobody's own."""
HALF_LIFE_SECONDS = 1_800.0
"""Age, counted back from the newest voting event, at which an event of the session counts half; likewise."""

BELOW = 0.999
"""A rung's best item scores this share of the worst item of the rung above, so rungs never mix by themselves."""
FLOOR = 0.001
"""The lowest normalised score: zero would lose the order of everything below it."""


def session_loudness(total: float, most: float) -> float:
    """most x total / (total + 1), `total` the sum of the weights of the session's voting places.

    One click speaks at half of the full weight, three at nearly three quarters; nobody voting is 0.
    """
    return most * total / (total + 1)


def normaliser(top: float, last: float) -> Callable[[float], float]:
    """Scores of a list from `top` down to `last`, divided by the best one; in [FLOOR, 1].

    A list that goes down to zero or below is stretched between its last and its first score instead, so that its order
    survives; when all are equal, all are 1.
    """
    if last > 0:
        return lambda score: max(score / top, FLOOR)
    span = top - last
    if span > 0:
        return lambda score: max((score - last) / span, FLOOR)
    return lambda _: 1.0
