"""What a search may change in a recipe: for each parameter its grid, an ordered list of values.

The quality bench walks the grids from value to neighbouring value; `nightjar tune` draws from them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from spark_jobs.models.item_content import EMBEDDING, KINDS, ItemContent
from spark_jobs.models.recipes import SEQUENCE_RECIPES

Grid = Sequence[Any]

HALF_LIVES: Grid = (None, 360.0, 180.0, 90.0, 45.0, 20.0, 10.0, 5.0)
OTHER_WEIGHTS: Grid = (0.0, 0.05, 0.15, 0.4, 1.0, 2.5)
"""Of an event type that is not the target, whose own weight is 1."""

GRIDS: Mapping[str, Mapping[str, Grid]] = {
    "popularity": {"subject_cap": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)},
    "als": {
        "factors": (16, 32, 64, 96, 128),
        "regularization": (1.0, 3.0, 10.0, 20.0, 30.0, 40.0, 60.0, 100.0),
        "alpha": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    },
    "item_knn": {
        "weighting": ("log", "tfidf", "bm25"),
        "user_damping": (0.0, 0.5, 1.0, 1.5),
        "shrinkage": (0.0, 1.0, 4.0, 10.0, 30.0, 100.0),
        "neighbours": (20, 50, 100, 200, 500),
    },
    "rp3beta": {
        "beta": (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        "alpha": (0.4, 0.6, 0.8, 1.0, 1.2, 1.5),
        "neighbours": (50, 100, 200, 500, 1000),
    },
    "segment_popularity": {"subject_cap": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)},
    "trending": {
        "window_days": (1.0, 2.0, 4.0, 7.0, 14.0, 28.0),
        "damping": (1.0, 5.0, 20.0, 80.0, 320.0),
        "contrast": (0.0, 0.25, 0.5, 0.75, 1.0),
        "subject_cap": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    },
    "content": {
        "popular_power": (0.0, 0.1, 0.25, 0.5, 1.0),
        "idf_power": (0.0, 0.5, 1.0, 1.5, 2.0),
        "text": (0.0, 0.25, 0.5, 1.0, 2.0),
        "category": (0.0, 0.25, 0.5, 1.0, 2.0),
        "brand": (0.0, 0.25, 0.5, 1.0, 2.0),
        "price": (0.0, 0.1, 0.25, 0.5, 1.0),
        "embedding": (0.0, 0.5, 1.0, 2.0, 4.0),
        "neighbours": (50, 100, 200, 500),
    },
    "graph_filter": {
        "sharpening": (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0),
        "low_pass": (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.5, 3.0),
        "popular_power": (-0.1, 0.0, 0.1, 0.2, 0.3),
        "factors": (32, 64, 128, 256, 512),
    },
    "ease": {
        "regularization": (1.0, 3.0, 10.0, 25.0, 50.0, 100.0, 200.0, 400.0, 800.0, 1600.0, 3200.0),
        "dropout": (0.0, 0.1, 0.2, 0.33, 0.5),
        "user_damping": (0.0, 0.25, 0.5, 0.75, 1.0),
    },
    "ials": {
        "unobserved": (0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
        "regularization": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        "ridge_power": (0.0, 0.5, 1.0),
        "popular_power": (-0.2, -0.1, 0.0, 0.1, 0.2, 0.3),
        "factors": (16, 32, 64, 128, 192),
        "iterations": (6, 10, 16),
    },
    "sequential_rules": {
        "half_gap_hours": (None, 2160.0, 720.0, 168.0, 48.0, 12.0, 3.0, 0.75),
        "backward": (0.0, 0.15, 0.3, 0.5, 0.75, 1.0),
        "target_power": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
        "source_power": (0.0, 0.25, 0.5, 0.75, 1.0),
        "place_power": (0.0, 0.25, 0.5, 1.0, 1.5, 2.0),
        "last_items": (1, 3, 5, 10, 20, 50),
        "step_power": (0.25, 0.5, 1.0, 1.5, 2.0),
        "steps": (1, 3, 5, 10, 20, 40),
    },
    "session_knn": {
        "repeat": (0.0, 0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 4.5, 6.0, 9.0),
        "popular_power": (-0.4, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
        "last": (0.0, 0.15, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5),
        "recency": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
        "place_decay": (0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0),
        "distance_decay": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 12.0),
        "behind": (0.25, 0.5, 0.75, 1.0, 1.25),
        "idf_power": (0.0, 0.5, 1.0, 2.0, 3.0),
        "length_power": (0.0, 0.125, 0.25, 0.5, 0.75),
        "neighbours": (100, 250, 500, 1000, 2000),
    },
    "repurchase": {
        "half_life_days": (None, 360.0, 180.0, 90.0, 60.0, 30.0, 15.0),
        "due_power": (0.0, 0.1, 0.25, 0.5, 1.0),
        "prior": (0.5, 2.0, 8.0),
    },
}  # fmt: skip


def searched_params(content: ItemContent) -> set[str]:
    """The params of the content model that can change anything with what is said of these items: only proportions of
    the weights of kinds matter, so with one kind none does."""
    present = {kind for number, kind in enumerate(KINDS) if (content.kinds == number).any()}
    if content.vectors.any():
        present.add(EMBEDDING)
    others = set(GRIDS["content"]) - {*KINDS, EMBEDDING}
    return others | (present if len(present) > 1 else set())


Path = tuple[str, ...]
"""Where a value stands in a recipe: ("params", "factors")."""


def search_space(recipe: Mapping[str, Any]) -> dict[Path, Grid]:
    """The grids of a recipe of the night, by path: its parameters, the half-life of recency, the weights of types.

    The most valued type keeps its weight: only proportions matter. Empty for a model without any parameter.
    """
    name = str(recipe["model"])
    space: dict[Path, Grid] = {("params", param): grid for param, grid in GRIDS.get(name, {}).items()}
    if name not in SEQUENCE_RECIPES:
        space[("half_life_days",)] = HALF_LIVES
    weights = recipe["weights"]
    most = max(weights.values(), default=0.0)
    if name != "repurchase":
        for kind in sorted(weights):
            if weights[kind] and weights[kind] < most:
                space[("weights", kind)] = tuple(most * share for share in OTHER_WEIGHTS if share <= 1)
    return space


def value_at(recipe: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = recipe
    for key in path:
        found = found[key]
    return found


def changed(recipe: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of the recipe with one value changed."""
    made = copy.deepcopy(dict(recipe))
    place = made
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return made
