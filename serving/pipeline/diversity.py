"""Maximal marginal relevance: each next place goes to what is relevant and unlike the places above.

Carbonell and Goldstein, SIGIR 1998. The likeness of two items is the largest of: the share of category levels that
they have in common from the top, SAME_BRAND for one brand, their published neighbour similarity (at most 1), and 1 for
two variants of one product.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Mapping, Sequence

from serving.pipeline.catalogue import CATEGORY_SEPARATOR, Catalogue

SAME_BRAND = 0.6


@functools.lru_cache(maxsize=65_536)
def category_likeness(one: str, other: str) -> float:
    """Levels in common from the top, divided by those of the longer path: 1 for the same path, 0 from the root on."""
    if one == other:
        return 1.0
    mine, theirs = one.split(CATEGORY_SEPARATOR), other.split(CATEGORY_SEPARATOR)
    shared = 0
    for a, b in zip(mine, theirs, strict=False):
        if a != b:
            break
        shared += 1
    return shared / max(len(mine), len(theirs))


class Likeness:
    """How like each of these items is to the places given so far: the largest likeness to any one of them."""

    def __init__(self, item_numbers: Sequence[int], catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._category = {number: catalogue.category(number) or "" for number in item_numbers}
        facts, size = catalogue.facts, len(catalogue.item_ids)
        self._brand = facts.brand if len(facts.brand) == size else [None] * size
        self._group = facts.group_id if len(facts.group_id) == size else [None] * size
        self._to_category = dict.fromkeys(self._category.values(), 0.0)
        self._taken = {""}
        self._of_root: dict[str, list[str]] = {}
        for path in self._to_category:
            self._of_root.setdefault(path.partition(CATEGORY_SEPARATOR)[0], []).append(path)
        self._brands: set[str | None] = {None}
        self._groups: set[str | None] = {None}
        self._to_neighbour: dict[int, float] = {}

    def of(self, item_number: int) -> float:
        """In [0, 1]; 0 while there are no places."""
        if (group := self._group[item_number]) is not None and group in self._groups:
            return 1.0
        nearest = max(self._to_category[self._category[item_number]], self._to_neighbour.get(item_number, 0.0))
        if (brand := self._brand[item_number]) is not None and brand in self._brands:
            nearest = max(nearest, SAME_BRAND)
        return nearest

    def take(self, item_number: int) -> None:
        """The item has a place now."""
        mine = self._category[item_number]
        if mine not in self._taken:
            self._taken.add(mine)
            for other in self._of_root[mine.partition(CATEGORY_SEPARATOR)[0]]:  # the others have nothing in common
                if (likeness := category_likeness(mine, other)) > self._to_category[other]:
                    self._to_category[other] = likeness
        self._brands.add(self._brand[item_number])
        self._groups.add(self._group[item_number])
        similarities = self._catalogue.similarities_of(item_number)
        for number in similarities.keys() & self._category.keys():
            if self._to_neighbour.get(number, 0.0) < similarities[number]:
                self._to_neighbour[number] = min(1.0, similarities[number])


class DiverseOrder:
    """Hands out items by (1 - diversity) x relevance - diversity x likeness; the largest first.

    item_numbers  best first, ties already broken: of equal values the earlier one comes first
    relevance     by item number, divided here by the largest of them

    An item's value only falls while places are given, so only the one on top has to be valued again.
    """

    def __init__(
        self, item_numbers: Sequence[int], relevance: Mapping[int, float], catalogue: Catalogue, diversity: float
    ) -> None:
        self._numbers = item_numbers
        self._likeness = Likeness(item_numbers, catalogue)
        top = max((relevance[number] for number in item_numbers), default=0.0)
        self._worth = [(1 - diversity) * (relevance[n] / top if top > 0 else 0.0) for n in item_numbers]
        self._diversity = diversity
        self._heap = [(-worth, at) for at, worth in enumerate(self._worth)]
        heapq.heapify(self._heap)

    def next(self) -> int | None:
        """The item of largest value now, which leaves; None when all are gone. `take` says that it has a place."""
        heap = self._heap
        while heap:
            stale, at = heap[0]
            value = self._diversity * self._likeness.of(self._numbers[at]) - self._worth[at]
            if value > stale:
                heapq.heapreplace(heap, (value, at))
                continue
            heapq.heappop(heap)
            return self._numbers[at]
        return None

    def take(self, item_number: int) -> None:
        """The item has a place now: what is like it is worth less."""
        self._likeness.take(item_number)


def discounted(slate: Sequence[int], relevance: Mapping[int, float]) -> float:
    """Relevance of a slate with the discount of nDCG: the sum of relevance / log2(rank + 1)."""
    return sum(relevance[number] / math.log2(rank + 1) for rank, number in enumerate(slate, start=1))
