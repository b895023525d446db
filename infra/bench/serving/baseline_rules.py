"""The rules of a placement as one would write them for the service that `nightjar bench serving` compares with: one of
a product, diversity, rotation, fatigue and exploration, with numpy where it helps.

What is left to chance follows from what both services are asked with:

    rotation     item number n loses rotation x r of its score, r in [0, 1) the SplitMix64 finaliser of n xor a seed;
                 the seed is the eight-byte BLAKE2b digest, little-endian, of "<days since 1970>/<subject>"
    exploration  draws of random.Random("exploration/<recommendation id>")
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAME_BRAND = 0.6
LOOKED_AT, POOL = 96, 50
DAY_SECONDS = 86_400


class Shelves:
    """What stands where, by item: numbers, and arrays over them. -1 stands for nothing."""

    def __init__(
        self,
        items: Mapping[str, Mapping[str, Any]],
        groups: Mapping[str, str | None],
        brands: Mapping[str, str | None],
        neighbours: Mapping[str, Mapping[str, float]],
    ) -> None:
        self.number = {item_id: int(item_id[1:]) for item_id in items}
        self.category = _codes([items[item_id]["category"] for item_id in items])
        self.group = _codes([groups[item_id] for item_id in items])
        self.brand = _codes([brands[item_id] for item_id in items])
        by_id = {item_id: rank for rank, item_id in enumerate(sorted(items))}
        self.place_of_id = np.array([by_id[item_id] for item_id in items])
        self.group_of = dict(zip(items, self.group.tolist(), strict=True))
        self.neighbours = neighbours


def _codes(values: Sequence[str | None]) -> NDArray[np.int64]:
    codes = {value: code for code, value in enumerate(sorted({value for value in values if value is not None}))}
    return np.array([-1 if value is None else codes[value] for value in values])


def has_places_to_give(rules: Mapping[str, Any]) -> bool:
    """Whether more is done than to take the best."""
    return bool(
        rules["one_per_group"] or rules["diversity"] or rules["rotation"] or rules["fatigue"] or rules["exploration"]
    )


def arrange(
    ordered: Sequence[str],
    scores: Mapping[str, float],
    rules: Mapping[str, Any],
    shelves: Shelves,
    *,
    size: int,
    subject: str,
    shown: Mapping[str, Mapping[str, Any]],
    recommendation_id: str,
    now: float,
) -> list[str]:
    """The slate of so many places from all candidates, best first.

    shown  item -> when it was last shown and how often, of what was left alone since
    now    seconds since 1970 UTC
    """
    depth = max(4 * size, LOOKED_AT)
    near, behind = list(ordered[:depth]), ordered[depth:]
    numbers = np.array([shelves.number[item_id] for item_id in near])
    worth = np.array([scores[item_id] for item_id in near])
    if rules["rotation"]:
        worth *= 1.0 - rules["rotation"] * _chances(numbers, subject, now)
    if rules["fatigue"]:
        place = {item_id: at for at, item_id in enumerate(near)}
        span = rules["fatigue_days"] * DAY_SECONDS
        for item_id in shown.keys() & place.keys():
            age = max(0.0, now - shown[item_id]["last"])
            if age < span:
                kept = 1.0 - rules["fatigue"] * (1.0 - age / span)
                worth[place[item_id]] *= kept ** shown[item_id]["times"]
    order = np.lexsort((shelves.place_of_id[numbers], -worth))
    near, numbers, worth = [near[at] for at in order], numbers[order], worth[order]
    groups: set[int] = set()
    taken = _diverse(near, numbers, worth, rules, shelves, size, groups)
    slate = [near[at] for at in taken]
    slate += _take(behind, rules, shelves, size - len(slate), groups)
    if rules["exploration"]:
        chosen = set(slate)
        line = [item_id for item_id in (*near, *behind) if item_id not in chosen]
        pool = _take(line, rules, shelves, POOL, groups)
        slate = _explored(slate, pool, rules["exploration"], recommendation_id)
    return slate


def _chances(numbers: NDArray[np.int64], subject: str, now: float) -> NDArray[np.float64]:
    text = f"{int(now) // DAY_SECONDS}/{subject}"
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    value = numbers.astype(np.uint64) ^ np.uint64(seed)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    chances: NDArray[np.float64] = ((value ^ (value >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return chances


def _diverse(
    near: Sequence[str],
    numbers: NDArray[np.int64],
    worth: NDArray[np.float64],
    rules: Mapping[str, Any],
    shelves: Shelves,
    size: int,
    groups: set[int],
) -> list[int]:
    """Places in `near`, one after another: that of the best by maximal marginal relevance that is of a new product."""
    diversity = rules["diversity"]
    relevance = (1 - diversity) * (worth / worth.max() if len(worth) and worth.max() > 0 else worth)
    category, brand, group = shelves.category[numbers], shelves.brand[numbers], shelves.group[numbers]
    likeness = np.zeros(len(near))
    place = {item_id: at for at, item_id in enumerate(near)}
    is_gone = np.zeros(len(near), bool)
    taken: list[int] = []
    while len(taken) < size and not is_gone.all():
        at = int(np.argmin(np.where(is_gone, np.inf, diversity * likeness - relevance)))
        is_gone[at] = True
        mine = int(group[at])
        if rules["one_per_group"] and mine >= 0:
            if mine in groups:
                continue
            groups.add(mine)
        taken.append(at)
        same = category == category[at]
        if mine >= 0:
            same |= group == mine
        likeness[same] = 1.0
        if brand[at] >= 0:
            likeness[brand == brand[at]] = np.maximum(likeness[brand == brand[at]], SAME_BRAND)
        for item_id, similarity in shelves.neighbours[near[at]].items():
            other = place.get(item_id)
            if other is not None and similarity > likeness[other]:
                likeness[other] = min(1.0, similarity)
    return taken


def _take(line: Sequence[str], rules: Mapping[str, Any], shelves: Shelves, size: int, groups: set[int]) -> list[str]:
    """The first of a line, each of a new product."""
    found: list[str] = []
    for item_id in line:
        if len(found) >= size:
            break
        group = shelves.group_of[item_id]
        if rules["one_per_group"] and group >= 0:
            if group in groups:
                continue
            groups.add(group)
        found.append(item_id)
    return found


def _explored(slate: Sequence[str], pool: Sequence[str], share: float, recommendation_id: str) -> list[str]:
    """Each place goes, with probability `share`, to one of the pool, drawn without repetition; when the pool is smaller
    than the slate, only so many last places do."""
    chance = random.Random(f"exploration/{recommendation_id}")  # noqa: S311 - no secret
    shown, rest, drawn = list(slate), list(pool), 0
    for place in range(max(0, len(slate) - len(pool)), len(slate)):
        if chance.random() < share:
            other = drawn + int(chance.random() * (len(rest) - drawn))
            rest[drawn], rest[other] = rest[other], rest[drawn]
            shown[place] = rest[drawn]
            drawn += 1
    return shown
