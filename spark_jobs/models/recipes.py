"""Recipes: all that decides a model besides the data. The gate compares recipes; MLflow keeps them as one JSON text.

A recipe is {"model": name, "weights": {event type: weight}, "half_life_days": days or null, "params": {...}}.
That of a blend has the recipes of its parts in its params (`blend_model.Blend`); its own weights are theirs taken
together, so that whoever any part knows is in its matrix.
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
    "item_knn": {"half_life_days": 30.0, "params": {
        "neighbours": 100, "shrinkage": 10.0, "user_damping": 1.0, "weighting": "log",
    }},
    "als": {
        "half_life_days": 30.0,
        "params": {
            "engine": "native", "factors": 64, "iterations": 12, "regularization": 30.0, "alpha": 4.0, "seed": 7,
        },
    },
}  # fmt: skip
"""What a night trains. Half-lives are in days: raising one makes older events count for more."""

MORE_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "rp3beta": {"half_life_days": None, "params": {"alpha": 0.8, "beta": 0.5, "neighbours": 200}},
    "graph_filter": {"half_life_days": None, "params": {
        "factors": 256, "low_pass": 0.3, "sharpening": 2.5, "popular_power": 0.0, "seed": 7,
    }},
    "ease": {"half_life_days": None, "params": {"regularization": 200.0, "dropout": 0.0, "user_damping": 0.0}},
    "ials": {"half_life_days": None, "params": {
        "factors": 64, "iterations": 10, "regularization": 0.1, "ridge_power": 0.5, "unobserved": 0.05,
        "popular_power": 0.0, "seed": 7,
    }},
    "segment_popularity": {"half_life_days": 7.0, "params": {"subject_cap": 8.0}},
    "trending": {"half_life_days": 7.0, "params": {
        "window_days": 7.0, "damping": 20.0, "contrast": 0.5, "subject_cap": 8.0,
    }},
    "content": {"half_life_days": 30.0, "params": {
        "text": 1.0, "category": 1.0, "brand": 0.5, "price": 0.25, "tags": 1.0, "embedding": 1.0, "idf_power": 1.0,
        "popular_power": 0.25, "neighbours": 100,
    }},
}  # fmt: skip
"""Further models of the matrix, by the same interface."""

SEQUENCE_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "sequential_rules": {"params": {
        "steps": 10, "step_power": 1.0, "backward": 0.5, "source_power": 0.0, "target_power": 0.0, "last_items": 10,
        "place_power": 0.5, "half_gap_hours": None,
    }},
    "session_knn": {"params": {
        "neighbours": 500, "place_decay": 1.5, "distance_decay": 3.0, "length_power": 0.25, "idf_power": 2.0,
        "recency": 1.0, "ahead": 1.0, "behind": 1.0, "repeat": 1.25, "popular_power": 0.0, "last": 1.0,
    }},
    "session_transitions": {"params": {
        "reads": [40, 40, 32, 24, 24], "sessions_per_item": 500, "reach": 10, "hop": 0.3, "place_decay": 1.5,
        "distance_decay": 3.0, "length_power": 0.25, "idf_power": 2.0, "recency": 1.0, "ahead": 1.0, "behind": 1.0,
        "repeat": 1.25,
    }},
    "repurchase": {"params": {"half_life_days": 60.0, "due_power": 0.0, "prior": 2.0}},
}  # fmt: skip
"""Models of ordered histories (`sequences.SequenceModel`). Their weights of event types weigh what follows."""

SESSION_MANNERS: Mapping[str, Mapping[str, Any]] = {
    "stream": {},
    "broad": {"reads": [30] * 8, "place_decay": 4.0, "distance_decay": 5.0},
    "basket": {
        "reads": [20] * 15, "reach": 20, "place_decay": 20.0, "distance_decay": 10.0, "length_power": 0.5, "hop": 0.0,
    },
}  # fmt: skip
"""How people move in a shop: what `session_transitions` takes instead of its defaults. In a stream of views the last
few say most of what comes next; in a basket of groceries or gifts, where all is about one errand, each item does. The
night picks the manner that foretells the shop's newest sessions best (`evaluation.session_choice`)."""

MLLIB_REGULARIZATION = 0.5
"""Spark scales its ridge by the number of ratings of a row, so its engine has a default of its own."""


def default_recipe(name: str, *, engine: str | None = None) -> dict[str, Any]:
    """A fresh copy of the default recipe of a model. `engine` picks the engine of als.

    Raises DataError naming the nearest model.
    """
    known = {**MORE_RECIPES, **RECIPES}
    if name in SEQUENCE_RECIPES:
        return {"half_life_days": None, **default_sequence_recipe(name)}
    if name not in known:
        names = [*known, *SEQUENCE_RECIPES]
        raise DataError(f"no model {name!r}; there are {', '.join(names)}{nearest(name, names)}", field="model")
    recipe = {"model": name, "weights": dict(_WEIGHTS), **copy.deepcopy(dict(known[name]))}
    if engine is not None and "engine" in recipe["params"]:
        recipe["params"]["engine"] = engine
        if engine == "mllib":
            recipe["params"]["regularization"] = MLLIB_REGULARIZATION
    return recipe


def blend_recipe(
    parts: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Mapping[str, float]],
    *,
    mode: str = "weighted",
    second: Mapping[str, float] | None = None,
    depth: int | None = None,
) -> dict[str, Any]:
    """The recipe of a blend. Parts that have no weight anywhere are left out, as nobody would see them.

    weights   slice -> part -> weight
    """
    stages = [*weights.values(), second or {}]
    used = sorted({name for by_part in stages for name, weight in by_part.items() if weight})
    together: dict[str, float] = {}
    for name in used:
        for event_type, weight in parts[name]["weights"].items():
            together[event_type] = max(together.get(event_type, 0.0), float(weight))

    def kept(by_part: Mapping[str, float]) -> dict[str, float]:
        return {name: float(by_part[name]) for name in sorted(by_part) if by_part[name]}

    return {
        "model": "blend",
        "weights": {event_type: together[event_type] for event_type in sorted(together)},
        "half_life_days": None,
        "params": {
            "mode": mode,
            "parts": {name: {"half_life_days": None, **copy.deepcopy(dict(parts[name]))} for name in used},
            "weights": {part: kept(by_part) for part, by_part in weights.items()},
            "second": None if second is None else kept(second),
            "depth": depth,
        },
    }


def ranker_recipe(first: Mapping[str, Any], *, by_category: bool = False) -> dict[str, Any]:
    """The default recipe of a second stage over this first one. `by_category`: it also reads what users did in the
    categories of items."""
    recipe: dict[str, Any] = {
        "model": "ranker",
        "weights": dict(first["weights"]),
        "half_life_days": first["half_life_days"],
        "params": {
            "first": copy.deepcopy(dict(first)), "depth": 100, "label_days": 7, "most_people": 3_000, "rounds": 60,
            "leaves": 7, "learning_rate": 0.08, "least_rows": 100, "seed": 7,
        },
    }  # fmt: skip
    if by_category:
        recipe["params"]["by_category"] = True
    return recipe


def default_sequence_recipe(name: str) -> dict[str, Any]:
    """A fresh copy of the default recipe of a sequence model: {"model", "weights", "params"}.

    Raises DataError naming the nearest model.
    """
    if name not in SEQUENCE_RECIPES:
        hint = nearest(name, SEQUENCE_RECIPES)
        raise DataError(f"no sequence model {name!r}; there are {', '.join(SEQUENCE_RECIPES)}{hint}", field="model")
    return {"model": name, "weights": dict(_WEIGHTS), **copy.deepcopy(dict(SEQUENCE_RECIPES[name]))}


def recipe_id(recipe: Mapping[str, Any]) -> str:
    """Eight hex digits that name a recipe: equal recipes, and only they, have one name in every night."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]


def is_fitted_by_spark(recipe: Mapping[str, Any]) -> bool:
    """Whether the recipe, or one that it is made of, wants a Spark session to be fitted: als on mllib."""
    params = recipe["params"]
    inner = [*params.get("parts", {}).values(), *([params["first"]] if "first" in params else [])]
    return params.get("engine") == "mllib" or any(map(is_fitted_by_spark, inner))


def flat_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as MLflow params: its own values, `weight.<event type>`, and the model's parameters by their names. Of a
    blend `part.<name>`, the id of the part's recipe, and `lt5.<name>`, `5to20.<name>`, `gt20.<name>`, `second.<name>`:
    its weights."""
    weights = {f"weight.{event_type}": weight for event_type, weight in recipe["weights"].items()}
    params = dict(recipe["params"])
    if recipe["model"] == "blend":
        stages = {_SLICE_WORDS[part]: by_part for part, by_part in params.pop("weights").items()}
        stages["second"] = params.pop("second") or {}
        params |= {f"part.{name}": recipe_id(part) for name, part in params.pop("parts").items()}
        params |= {f"{stage}.{name}": weight for stage, by_part in stages.items() for name, weight in by_part.items()}
    if recipe["model"] == "ranker":
        params["first"] = recipe_id(params["first"])
    return {"model": recipe["model"], "half_life_days": recipe["half_life_days"], **weights, **params}


_SLICE_WORDS = {"<5": "lt5", "5-20": "5to20", ">20": "gt20"}
"""Slices in the names of MLflow's params, which have no signs."""
