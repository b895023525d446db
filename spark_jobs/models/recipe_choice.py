"""Recipes that somebody chose for the nights: a file of its own form, or what `nightjar bench quality` would publish.

    {"format": 1,
     "recipes": {name: {"model", "weights", "half_life_days", "params"}},   these are trained, and popularity always
     "blend": "night"                        the night chooses modes and weights on its validation window (default)
            | "none"                         no blend takes part
            | {"mode", "weights": {slice: {name: weight}}, "second", "depth"},   this blend, and no trials
     "origin": {...}}                        where it comes from; read by people only

The bench's `*.shipped.json` (`recipes`, `weights`, `shipped`) is turned into that form: its blend with the weights it
shipped, the same in every slice, or its one model. Its event type `interaction` (files without types) stands for every
type that says a preference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.events import DEFAULT_PREFERENCE_WEIGHTS
from spark_jobs.models.activity import ACTIVITY_SLICES
from spark_jobs.models.blend_model import BLEND, FLOOR_PART
from spark_jobs.models.factory import build_model
from spark_jobs.models.recipes import blend_recipe, default_recipe, recipe_id

FORMAT = 1
BY_NIGHT, WITHOUT = "night", "none"
UNTYPED = "interaction"


@dataclass(frozen=True, slots=True)
class RecipeChoice:
    """What a night is told to train.

    recipes   name -> recipe, complete
    blend     the recipe of the blend; None: the night chooses, or there is none
    may_blend  False: no blend takes part
    origin    where the choice comes from
    """

    recipes: Mapping[str, Mapping[str, Any]]
    blend: Mapping[str, Any] | None = None
    may_blend: bool = True
    origin: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The file's form; `read_choice` is its inverse."""
        blend: Any = BY_NIGHT if self.may_blend else WITHOUT
        if self.blend is not None:
            blend = {name: self.blend["params"][name] for name in ("mode", "weights", "second", "depth")}
        return {"format": FORMAT, "recipes": dict(self.recipes), "blend": blend, "origin": dict(self.origin)}


def read_choice(values: Any) -> RecipeChoice:
    """A choice from its own form or the bench's. Raises DataError naming what is wrong and the nearest right answer."""
    if not isinstance(values, Mapping) or not isinstance(values.get("recipes"), Mapping) or not values["recipes"]:
        raise DataError("a choice of recipes is a JSON object with `recipes` {name: recipe}", field="recipes")
    if "shipped" in values:
        values = _of_bench(values)
    if values.get("format") != FORMAT:
        raise DataError(f"a choice of recipes has format {FORMAT}, got {values.get('format')!r}", field="format")
    recipes = {str(name): _complete(str(name), recipe) for name, recipe in values["recipes"].items()}
    wanted = values.get("blend", BY_NIGHT)
    if isinstance(wanted, str) and wanted not in (BY_NIGHT, WITHOUT):
        hint = nearest(wanted, (BY_NIGHT, WITHOUT))
        raise DataError(f"`blend` is {BY_NIGHT!r}, {WITHOUT!r} or an object, got {wanted!r}{hint}", field="blend")
    blend = None
    if isinstance(wanted, Mapping):
        blend = _blend(recipes, wanted)
    return RecipeChoice(recipes, blend, wanted != WITHOUT, dict(values.get("origin") or {}))


def read_choice_file(path: Path) -> RecipeChoice:
    """The choice in a JSON file. Raises DataError naming the file."""
    try:
        return read_choice(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"the recipes {path} cannot be read: {error}", field="recipes") from error
    except DataError as error:
        raise DataError(f"{path}: {error}", field="recipes") from error


def _blend(recipes: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Any]) -> dict[str, Any]:
    weights = wanted.get("weights")
    if not isinstance(weights, Mapping) or not all(isinstance(found, Mapping) for found in weights.values()):
        raise DataError("`blend` has `weights` {slice: {part: weight}}", field="blend")
    for by_part in [*weights.values(), wanted.get("second") or {}]:
        for name in by_part:
            if name not in recipes:
                raise DataError(
                    f"the blend weighs {name!r}, which has no recipe{nearest(name, recipes)}", field="blend"
                )
    made = blend_recipe(
        recipes, weights, mode=str(wanted.get("mode", "weighted")), second=wanted.get("second"),
        depth=wanted.get("depth"),
    )  # fmt: skip
    build_model(BLEND, made["params"])
    return made


def _complete(name: str, recipe: Any) -> dict[str, Any]:
    """The recipe with what it leaves out taken from the default. Raises DataError when it builds no model."""
    if not isinstance(recipe, Mapping) or not isinstance(recipe.get("params"), Mapping):
        raise DataError(f"recipe {name} is an object with `params`, got {recipe!r}", field="recipes")
    model = str(recipe.get("model", name))
    if model == BLEND:
        raise DataError("a blend is no recipe of its own here: say its weights under `blend`", field="recipes")
    found = default_recipe(model)
    unknown = sorted(set(recipe) - {"model", "weights", "half_life_days", "params"})
    if unknown:
        raise DataError(f"recipe {name} has no {unknown[0]!r}{nearest(unknown[0], found)}", field="recipes")
    weights = {str(kind): float(weight) for kind, weight in (recipe.get("weights") or found["weights"]).items()}
    if not all(0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
        raise DataError(f"recipe {name} has weights {weights}: at least one above 0, none below", field="weights")
    made = {
        "model": model,
        "weights": weights,
        "half_life_days": recipe.get("half_life_days", found["half_life_days"]),
        "params": {**found["params"], **recipe["params"]},
    }
    build_model(model, made["params"])
    return made


def _of_bench(values: Mapping[str, Any]) -> dict[str, Any]:
    shipped = str(values["shipped"])
    if shipped != BLEND and shipped not in values["recipes"]:
        hint = nearest(shipped, values["recipes"])
        raise DataError(f"the bench shipped {shipped!r}, which has no recipe{hint}", field="shipped")
    weights = {name: float(weight) for name, weight in (values.get("weights") or {}).items() if weight}
    used = sorted(weights) if shipped == BLEND else [shipped]
    missing = [name for name in used if name not in values["recipes"]]
    if missing or not used:
        raise DataError(f"the bench shipped a blend of {used or 'nothing'}; no recipe of {missing}", field="weights")
    names = {*used, FLOOR_PART} & set(values["recipes"])
    recipes = {name: {"half_life_days": None, **values["recipes"][name]} for name in sorted(names)}
    same = {"mode": "weighted", "weights": dict.fromkeys(ACTIVITY_SLICES, weights)}
    return {
        "format": FORMAT,
        "recipes": {name: {**recipe, "weights": _typed(recipe["weights"])} for name, recipe in recipes.items()},
        "blend": same if shipped == BLEND else WITHOUT,
        "origin": {
            "bench": values.get("protocol"), "k": values.get("k"), "repeats": values.get("repeats"),
            "train_sha256": values.get("train_sha256"), "target": (values.get("validation") or {}).get("target"),
        },
    }  # fmt: skip


def _typed(weights: Mapping[str, float]) -> dict[str, float]:
    if set(weights) != {UNTYPED}:
        return dict(weights)
    return {str(kind): float(weights[UNTYPED]) for kind in DEFAULT_PREFERENCE_WEIGHTS}


def describe_choice(choice: RecipeChoice) -> list[str]:
    """What it says, a line each, for a terminal."""
    lines = [f"{name}: {recipe['model']} {recipe_id(recipe)}" for name, recipe in sorted(choice.recipes.items())]
    if choice.blend is not None:
        lines.append(f"blend, {choice.blend['params']['mode']}: {recipe_id(choice.blend)}")
        for part, by_part in choice.blend["params"]["weights"].items():
            lines.append(f"  {part:>4} events  " + "  ".join(f"{name} {weight:g}" for name, weight in by_part.items()))
    else:
        lines.append("blend: chosen by each night" if choice.may_blend else "blend: none")
    return lines
