"""Which models a task allows, where their search starts, and which of their values are searched.

What decides is the form of the data: whether it has times, an order, several types of event, and how many items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo.contracts.events import DEFAULT_PREFERENCE_WEIGHTS, EVENT_TYPES
from infra.bench.quality.tasks import Task
from infra.bench.quality.training import Training
from spark_jobs.models.ease import MOST_ITEMS
from spark_jobs.models.item_pairs import PRODUCTS_PER_ENTRY
from spark_jobs.models.recipes import default_recipe, default_sequence_recipe
from spark_jobs.models.search_spaces import GRIDS, HALF_LIVES, OTHER_WEIGHTS, Grid, Path, searched_params

EASE_SECONDS_PER_CUBE = 3e-11
"""Of a fit, times items cubed: a large catalogue is left out where one fit would take a tenth of the budget."""


FACTOR_CELLS = 200_000_000
"""Vectors of all people and items have at most so many entries: several such arrays stand in memory at once."""


SESSION_START = {"popular_power": 0.2, "repeat": 2.0, "distance_decay": 4.0}
"""Where the search of session kNN starts among sessions: better than the defaults on the newest clicks of two shops."""


LEAST_HALF_SPAN, MOST_HALF_SPAN = 150.0, 540.0
"""Days: a history between twice the one and twice the other begins with a half-life."""


@dataclass(frozen=True, slots=True)
class Family:
    """A model to tune: where the search starts, and for each path in the recipe its grid."""

    name: str
    start: Mapping[str, Any]
    grids: Mapping[Path, Grid]


def families(task: Task, budget_seconds: float) -> list[Family]:
    """The models that this task allows, those first that are cheap and usually good."""
    training = task.training
    has_repeats = task.protocol == "events" and not task.removes_seen
    names = ["popularity", "item_knn"]
    if training.has_order:
        names += ["sequential_rules"] if task.protocol == "events" else ["sequential_rules", "session_knn"]
    if has_repeats and training.has_time:
        names.append("repurchase")
    if training.item_count <= MOST_ITEMS and _ease_seconds(task) < 0.1 * budget_seconds:
        names.append("ease")
    names += ["rp3beta", "ials"]
    if task.protocol == "events" and training.has_order:
        names.append("session_knn")  # the history of a shopper is long for a session: it costs more than rules
    names.append("graph_filter")  # its first trial costs most
    if training.content is not None:
        names.append("content")
    return [family for family in (_family(name, task) for name in names) if _has_room(family)]


def _ease_seconds(task: Task) -> float:
    """Of one trial: a fit for each slice."""
    return len(task.validations) * task.training.item_count**3 * EASE_SECONDS_PER_CUBE


def _family(name: str, task: Task) -> Family:
    training = task.training
    is_sequential = name in ("sequential_rules", "session_knn", "repurchase")
    recipe = default_sequence_recipe(name) if is_sequential else default_recipe(name)
    recipe["weights"] = {kind: _first_weight(kind) for kind in training.types}
    grids: dict[Path, Grid] = {("params", param): grid for param, grid in GRIDS[name].items()}
    if name == "content" and training.content is not None:
        grids = {path: grid for path, grid in grids.items() if path[1] in searched_params(training.content)}
    if ("params", "factors") in grids:
        by_items_alone = name == "graph_filter" and _has_short_sessions(training)
        rows = training.item_count + (0 if by_items_alone else training.people_count)
        widths = [width for width in grids["params", "factors"] if width * rows <= FACTOR_CELLS]
        grids["params", "factors"] = widths
        recipe["params"]["factors"] = min(recipe["params"]["factors"], max(widths, default=0))
    if name == "popularity":
        grids = {}  # the baseline stays as it is
    if not is_sequential:
        recipe["half_life_days"] = None
        if training.has_time:
            recipe["half_life_days"] = 90.0 if name == "popularity" else _first_half_life(training)
            grids = {("half_life_days",): HALF_LIVES, **grids}
    if name == "sequential_rules" and not training.has_time:
        grids.pop(("params", "half_gap_hours"))
    if name == "session_knn" and task.protocol == "sessions":
        recipe["params"] |= SESSION_START
    if name == "session_knn" and task.protocol != "sessions":
        recipe["params"]["recency"] = 0.0  # the order of users means nothing
        recipe["params"]["repeat"] = 0.0 if task.removes_seen else 1.0
        grids.pop(("params", "recency"))
        if task.removes_seen:
            grids.pop(("params", "repeat"))
            grids.pop(("params", "last"))
    if name != "repurchase":
        for kind in training.types:
            if kind not in training.target_types and recipe["weights"][kind]:
                grids[("weights", kind)] = OTHER_WEIGHTS
    return Family(name, recipe, grids)


def _first_half_life(training: Training) -> float | None:
    """About half the days that the history spans, where that is 150 to 540: in a year or two what sells drifts. In less
    time all events say much the same, and in far more a half-life would leave little but the last of them."""
    assert training.table is not None
    micros = np.asarray(training.table["micros"])
    days = float(micros.max() - micros.min()) / 86_400_000_000 / 2
    if not LEAST_HALF_SPAN <= days <= MOST_HALF_SPAN:
        return None
    return float(min((life for life in HALF_LIVES if life is not None), key=lambda life: abs(life - days)))


def _has_short_sessions(training: Training) -> bool:
    """Whether a graph filter multiplies pairs of items (`item_pairs`), and has no array of people."""
    if training.sessions is None:
        return False
    lengths = np.diff(training.sessions.starts)
    return int((lengths**2).sum()) <= PRODUCTS_PER_ENTRY * int(lengths.sum())


def _has_room(family: Family) -> bool:
    """Whether vectors of any width fit."""
    return all(len(grid) > 0 for grid in family.grids.values())


def _first_weight(kind: str) -> float:
    """1 for everything, but nothing for types that say no preference."""
    return 0.0 if kind in EVENT_TYPES and kind not in DEFAULT_PREFERENCE_WEIGHTS else 1.0
