"""Which models a task allows, where their search starts, and which values each parameter may take.

What decides is the form of the data: whether it has times, an order, several types of event, and how many items.
A grid is ordered: the search looks at the neighbours of a value.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feature_repo.contracts.events import DEFAULT_PREFERENCE_WEIGHTS, EVENT_TYPES
from infra.bench.quality.tasks import Task
from spark_jobs.models.ease import MOST_ITEMS
from spark_jobs.models.recipes import default_recipe, default_sequence_recipe

Grid = Sequence[Any]

HALF_LIVES: Grid = (None, 360.0, 180.0, 90.0, 45.0, 20.0, 10.0, 5.0)
OTHER_WEIGHTS: Grid = (0.0, 0.05, 0.15, 0.4, 1.0, 2.5)
"""Of an event type that is not the target, whose own weight is 1."""

GRIDS: Mapping[str, Mapping[str, Grid]] = {
    "popularity": {},
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
        "repeat": (0.0, 0.5, 1.0, 1.25, 1.5, 2.0, 3.0),
        "recency": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
        "place_decay": (0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0),
        "distance_decay": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 12.0),
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

EASE_SECONDS_PER_CUBE = 3e-11
"""Of a fit, times items cubed: a large catalogue is left out where one fit would take a tenth of the budget."""


@dataclass(frozen=True, slots=True)
class Family:
    """A model to tune: where the search starts, and for each path in the recipe its grid."""

    name: str
    start: Mapping[str, Any]
    grids: Mapping[tuple[str, ...], Grid]


def families(task: Task, budget_seconds: float) -> list[Family]:
    """The models that this task allows, those first that are cheap and usually good."""
    training = task.training
    has_repeats = task.protocol == "events" and not task.removes_seen
    names = ["popularity", "item_knn"]
    if training.has_order:
        names += ["sequential_rules"] if task.protocol == "events" else ["sequential_rules", "session_knn"]
    if has_repeats and training.has_time:
        names.append("repurchase")
    if task.protocol != "sessions":
        if training.item_count <= MOST_ITEMS and training.item_count**3 * EASE_SECONDS_PER_CUBE < 0.1 * budget_seconds:
            names.append("ease")
        names += ["rp3beta", "ials", "graph_filter"]
    if task.protocol == "events" and training.has_order:
        names.append("session_knn")  # the history of a shopper is long for a session: it costs most
    return [_family(name, task) for name in names]


def _family(name: str, task: Task) -> Family:
    training = task.training
    is_sequential = name in ("sequential_rules", "session_knn", "repurchase")
    recipe = default_sequence_recipe(name) if is_sequential else default_recipe(name)
    recipe["weights"] = {kind: _first_weight(kind) for kind in training.types}
    grids: dict[tuple[str, ...], Grid] = {("params", param): grid for param, grid in GRIDS[name].items()}
    if not is_sequential:
        recipe["half_life_days"] = None
        if training.has_time:
            recipe["half_life_days"] = 90.0 if name == "popularity" else None
            grids = {("half_life_days",): HALF_LIVES, **grids}
    if name == "sequential_rules" and not training.has_time:
        grids.pop(("params", "half_gap_hours"))
    if name == "session_knn" and task.protocol != "sessions":
        recipe["params"]["recency"] = 0.0  # the order of users means nothing
        recipe["params"]["repeat"] = 0.0 if task.removes_seen else 1.0
        grids.pop(("params", "recency"))
        if task.removes_seen:
            grids.pop(("params", "repeat"))
    if name != "repurchase":
        for kind in training.types:
            if kind not in training.target_types and recipe["weights"][kind]:
                grids[("weights", kind)] = OTHER_WEIGHTS
    return Family(name, recipe, grids)


def _first_weight(kind: str) -> float:
    """1 for everything, but nothing for types that say no preference."""
    return 0.0 if kind in EVENT_TYPES and kind not in DEFAULT_PREFERENCE_WEIGHTS else 1.0


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
