"""Recipes: all that decides a model besides the data. The gate compares recipes; MLflow keeps them as one JSON text.

A recipe is {"model": name, "weights": {event type: weight}, "half_life_days": days or null, "params": {...}}.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.events import DEFAULT_PREFERENCE_WEIGHTS

_WEIGHTS = {str(event_type): float(weight) for event_type, weight in DEFAULT_PREFERENCE_WEIGHTS.items()}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # What is wanted now; on two shops (one real) a week was the strongest baseline to beat, or within 2 % of it.
    "popularity": {"half_life_days": 7.0, "params": {"subject_cap": 8.0}},
    # Tuned on days of those shops before the ones that are reported. More regularization of als serves a large shop
    # better, but beyond 40 the vectors of a shop with a few thousand events shrink to nothing.
    "item_knn": {"half_life_days": 30.0, "params": {"neighbours": 100, "shrinkage": 10.0, "user_damping": 1.0}},
    "als": {
        "half_life_days": 30.0,
        "params": {
            "engine": "native", "factors": 64, "iterations": 12, "regularization": 30.0, "alpha": 4.0, "seed": 7,
        },
    },
}  # fmt: skip
"""Defaults by model name. Half-lives are in days: raising one makes older events count for more."""

MLLIB_REGULARIZATION = 0.5
"""Spark scales its ridge by the number of ratings of a row, so its engine has a default of its own."""


def default_recipe(name: str, *, engine: str | None = None) -> dict[str, Any]:
    """A fresh copy of the default recipe of a model. `engine` picks the engine of als.

    Raises DataError naming the nearest model.
    """
    if name not in RECIPES:
        raise DataError(f"no model {name!r}; there are {', '.join(RECIPES)}{nearest(name, RECIPES)}", field="model")
    recipe = {"model": name, "weights": dict(_WEIGHTS), **copy.deepcopy(dict(RECIPES[name]))}
    if engine is not None and "engine" in recipe["params"]:
        recipe["params"]["engine"] = engine
        if engine == "mllib":
            recipe["params"]["regularization"] = MLLIB_REGULARIZATION
    return recipe


def recipe_id(recipe: Mapping[str, Any]) -> str:
    """Eight hex digits that name a recipe: equal recipes, and only they, have one name in every night."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]


def flat_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as MLflow params: its own values, `weight.<event type>`, and the model's parameters by their names."""
    weights = {f"weight.{event_type}": weight for event_type, weight in recipe["weights"].items()}
    return {"model": recipe["model"], "half_life_days": recipe["half_life_days"], **weights, **recipe["params"]}
