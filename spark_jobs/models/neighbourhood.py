"""Recipes near a recipe: what the trials of a family try."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

FACTORS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "popularity": {"half_life_days": (0.5, 2.0), "subject_cap": (0.25, 4.0)},
    "item_knn": {
        "half_life_days": (0.5, 2.0),
        "neighbours": (0.5, 2.0),
        "shrinkage": (0.25, 4.0),
        "user_damping": (0.5,),
    },
    "als": {
        "half_life_days": (0.5, 2.0),
        "factors": (0.5, 1.5),
        "regularization": (0.5, 2.0),
        "alpha": (0.5, 2.0),
    },
}
"""By model: what may change, and the factors it is multiplied by. Steps are wide: a small change is lost in the noise
of one validation window."""

SEED = 20_240_229


class Neighbour(NamedTuple):
    """A recipe and, in words, how it differs: `half_life_days 15, alpha 8`."""

    words: str
    recipe: Mapping[str, Any]


def neighbours(recipe: Mapping[str, Any], count: int, *, seed: int = SEED) -> list[Neighbour]:
    """At most `count` recipes around `recipe`, in an order that the seed alone decides.

    First those that differ in one value, shuffled, then those that differ in two. With one seed they are the same every
    night, so nights can be compared; more of them are the same ones and some more. A value that is not a positive
    number (no decay: null) is left as it is.
    """
    factors = FACTORS.get(recipe["model"], {})
    single = [(name, factor) for name, found in factors.items() if _is_scalable(recipe, name) for factor in found]
    double = [pair for pair in combinations(single, 2) if pair[0][0] != pair[1][0]]
    rng = np.random.default_rng(seed)
    first = [(single[n],) for n in rng.permutation(len(single))]
    second = [double[n] for n in rng.permutation(len(double))]
    return [_changed(recipe, changes) for changes in [*first, *second][: max(0, count)]]


def _changed(recipe: Mapping[str, Any], changes: Sequence[tuple[str, float]]) -> Neighbour:
    made = copy.deepcopy(dict(recipe))
    words = []
    for name, factor in changes:
        place = made if name == "half_life_days" else made["params"]
        old = place[name]
        place[name] = max(1, round(old * factor)) if isinstance(old, int) else float(f"{old * factor:.6g}")
        words.append(f"{name} {place[name]:g}")
    return Neighbour(", ".join(words), made)


def _is_scalable(recipe: Mapping[str, Any], name: str) -> bool:
    value = recipe["half_life_days"] if name == "half_life_days" else recipe["params"].get(name)
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
