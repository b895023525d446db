"""What trees say of the candidates of an answer: the sum of the leaves that a candidate falls into, as LightGBM has it.

The twin of `native/trees.pyx`, which does the same some seventy times as fast. Rules: `contracts.tree_text`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from feature_repo.contracts.tree_text import DEFAULT_LEFT, IS_CATEGORY, MISSING_NAN, MISSING_ZERO, ZERO, Trees


class Inputs(NamedTuple):
    """The values of `size` candidates, as 32-bit floats. A candidate's row is made of four parts:

    own          own_width values of its own
    numbers      item number; items has item_width values of each. Of a number beyond them all are missing
    user         the same for all
    places       which row of by_category, category_width values each
    """

    size: int
    own_width: int
    own: array[float]
    numbers: array[int]
    item_width: int
    items: Sequence[float]
    user: array[float]
    category_width: int
    places: array[int]
    by_category: array[float]

    def row(self, at: int) -> list[float]:
        """The values of one candidate."""
        number, place = self.numbers[at], self.places[at]
        of_item = list(self.items[number * self.item_width : (number + 1) * self.item_width])
        return [
            *self.own[at * self.own_width : (at + 1) * self.own_width],
            *(of_item or [float("nan")] * self.item_width),
            *self.user,
            *self.by_category[place * self.category_width : (place + 1) * self.category_width],
        ]


def score_trees(trees: Trees, inputs: Inputs) -> list[float]:
    """By candidate."""
    return [score_row(trees, inputs.row(at)) for at in range(inputs.size)]


def score_row(trees: Trees, values: Sequence[float]) -> float:
    """The score of one row."""
    values = [0.0 if -ZERO <= value <= ZERO else value for value in values]
    total = 0.0
    for tree in range(len(trees.roots) - 1):
        root, node = trees.roots[tree], 0
        if trees.roots[tree + 1] == root:
            node = -1
        while node >= 0:
            at = root + node
            value, kind = values[trees.inputs[at]], trees.kinds[at]
            if kind & IS_CATEGORY:
                is_left = _is_among(trees, tree, int(trees.thresholds[at]), value)
            else:
                missing = kind >> 2 & 3
                if value != value and missing != MISSING_NAN:
                    value = 0.0
                if (missing == MISSING_NAN and value != value) or (missing == MISSING_ZERO and value == 0.0):
                    is_left = bool(kind & DEFAULT_LEFT)
                else:
                    is_left = value <= trees.thresholds[at]
            node = trees.lefts[at] if is_left else trees.rights[at]
        total += trees.outputs[trees.leaves[tree] + ~node]
    return total


def _is_among(trees: Trees, tree: int, number: int, value: float) -> bool:
    """Whether the category is in this set of the tree."""
    if not -1.0 < value < 2147483648.0:  # NaN is not, either; what is cut to zero is category 0
        return False
    category = int(value)
    first = trees.sets[trees.first_sets[tree] + number]
    size = trees.sets[trees.first_sets[tree] + number + 1] - first
    word = category >> 5
    return word < size and bool(trees.bits[first + word] >> (category & 31) & 1)
