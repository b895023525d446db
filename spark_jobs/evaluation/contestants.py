"""Who enters the comparison of a night: a recipe of each family, the blend, the second stage, and the champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

from feature_repo.contracts.run import Run
from spark_jobs.evaluation.blend_choice import choose_blend
from spark_jobs.evaluation.split import TimeSplit
from spark_jobs.evaluation.trials import Choice, choose_recipes, validation_data, validation_split
from spark_jobs.models.blend_model import BLEND, FLOOR_PART
from spark_jobs.models.entity_features import FeaturesAt
from spark_jobs.models.item_content import ItemContent
from spark_jobs.models.night_models import Program
from spark_jobs.models.ranker import LEAST_PEOPLE, RANKER, why_no_trees
from spark_jobs.models.recipes import default_recipe, ranker_recipe

CHAMPION = "champion"
"""The name, in evaluations, of the live recipe when it is none of tonight's."""


def with_champion(
    recipes: Mapping[str, Mapping[str, Any]], live: Mapping[str, Any] | None
) -> tuple[dict[str, Mapping[str, Any]], str | None]:
    """(recipes by contestant, the contestant that has the live recipe; None before the first publication)."""
    if live is None:
        return dict(recipes), None
    for name, recipe in recipes.items():
        if recipe == live:
            return dict(recipes), name
    return {**recipes, CHAMPION: live}, CHAMPION


def choose_contestants(
    program: Program,
    split: TimeSplit,
    content: ItemContent,
    *,
    trials: int,
    trial_events: int,
    test_days: int,
    policy: str,
) -> dict[str, Choice]:
    """How each family enters, the blend, and the second stage, each with its reason printed.

    Recipes whose blend somebody chose are taken as they are, without trials.
    """
    item_count = len(split.known_items)
    count = 0 if program.blend is not None else trials
    is_wanted = program.may_blend and program.blend is None
    validation, data = None, None
    if count > 0 or is_wanted:
        validation = validation_split(
            split, item_count=item_count, days=test_days, exclude_seen=policy, most_events=trial_events
        )
    if validation is not None:
        data = validation_data(validation, item_count=item_count, content=content)
    choices = choose_recipes(
        program.recipes, validation, item_count=item_count, count=count, data=data, is_wanted=is_wanted
    )
    if program.blend is not None:
        choices[BLEND] = Choice(program.blend, (), None, "the blend of the recipes that were applied")
    elif program.may_blend:
        choices[BLEND] = choose_blend(choices, validation)
    if program.may_rank:
        choices[RANKER] = second_stage(choices, by_category=program.by_category)
    for name, choice in choices.items():
        print(f"{name}: {choice.why}", flush=True)
    return choices


def why_no_ranker(split: TimeSplit, run: Run, features: FeaturesAt) -> str:
    """Why a second stage cannot be learned tonight, or scored by tomorrow; empty when it can."""
    if words := why_no_trees():
        return words
    if len(split.subjects) < LEAST_PEOPLE:
        return f"there are {len(split.subjects)} test persons, and it wants {LEAST_PEOPLE}"
    missing = [f"{day}" for day in _days_read(split, run) if features(day) is None]
    return f"there are no features of {' and '.join(missing)}" if missing else ""


def why_no_categories(split: TimeSplit, run: Run, features: FeaturesAt) -> str:
    """Why a second stage that can be learned cannot read what users did in categories; empty when it can."""
    found = {day: features(day) for day in _days_read(split, run)}
    missing = [f"{day}" for day, one in found.items() if one is None or one.by_category is None]
    return f"there are no features of users by category of {' and '.join(missing)}" if missing else ""


def _days_read(split: TimeSplit, run: Run) -> list[date]:
    """The days whose features are read, tonight's refit included, in order."""
    label_days = timedelta(days=int(ranker_recipe(default_recipe(FLOOR_PART))["params"]["label_days"]))
    return sorted({moment.date() for end in (split.test_start, run.cut_off) for moment in (end - label_days, end)})


def with_categories(
    program: Program, live: Mapping[str, Any] | None, why_not: str
) -> tuple[Program, Mapping[str, Any] | None]:
    """(the program whose second stage reads what users did in categories, the live recipe); if there is a reason why
    not, neither reads it, and that is told."""
    if not why_not:
        return replace(program, by_category=True), live
    words = f"ranker goes without what users did in categories: {why_not}"
    print(words, flush=True)
    if live is not None and live["model"] == RANKER and live["params"].get("by_category"):
        live = {**live, "params": {name: v for name, v in live["params"].items() if name != "by_category"}}
    return replace(program, notes=[*program.notes, words]), live


def without_ranker(
    program: Program, live: Mapping[str, Any] | None, why: str
) -> tuple[Program, Mapping[str, Any] | None]:
    """(the program without its second stage, the live recipe, of a ranker that of its first stage), both told."""
    print(f"left out: ranker: {why}", flush=True)
    if live is not None and live["model"] == RANKER:
        print("the champion is a ranker: its first stage stands for it tonight", flush=True)
        live = live["params"]["first"]
    return replace(program, may_rank=False, notes=[*program.notes, f"ranker: {why}"]), live


def second_stage(choices: Mapping[str, Choice], *, by_category: bool = False) -> Choice:
    """A ranker over the blend, or, where there is none, over what did best on the validation window."""
    blend = choices.get(BLEND)
    if blend is not None and blend.recipe:
        return Choice(ranker_recipe(blend.recipe, by_category=by_category), (), None, "a second stage over the blend")
    tried = {name: one.validated.quality for name, one in choices.items() if one.recipe and one.validated is not None}
    name = max(sorted(tried), key=lambda n: tried[n]) if tried else next(iter(choices))
    recipe = ranker_recipe(choices[name].recipe, by_category=by_category)
    return Choice(recipe, (), None, f"a second stage over {name}")
