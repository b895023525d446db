"""From a name or a folder to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.contracts.errors import ContractError, DataError, nearest
from spark_jobs.models.als import AfterSweep, Als
from spark_jobs.models.artifacts import read_manifest
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.blend_model import BLEND, Blend
from spark_jobs.models.content import Content
from spark_jobs.models.ease import Ease
from spark_jobs.models.graph_filter import GraphFilter
from spark_jobs.models.ials import Ials
from spark_jobs.models.item_knn import ItemKnn
from spark_jobs.models.ordered import OrderedModel
from spark_jobs.models.popularity import Popularity
from spark_jobs.models.ranker import RANKER, Ranker
from spark_jobs.models.recipes import MORE_RECIPES, RECIPES, SEQUENCE_RECIPES, recipe_id
from spark_jobs.models.repurchase import Repurchase
from spark_jobs.models.rp3beta import Rp3Beta
from spark_jobs.models.segment_popularity import SegmentPopularity
from spark_jobs.models.sequences import SequenceModel
from spark_jobs.models.sequential_rules import SequentialRules
from spark_jobs.models.session_knn import SessionKnn
from spark_jobs.models.session_transitions import SessionTransitions
from spark_jobs.models.training_data import TrainingData
from spark_jobs.models.trending import Trending

AnyModel = Popularity | ItemKnn | Als | Rp3Beta | GraphFilter | Ease | Ials | Content | SegmentPopularity | Trending
AnySequenceModel = SequentialRules | SessionKnn | SessionTransitions | Repurchase

MODELS: Mapping[str, type[AnyModel]] = {
    m.name: m
    for m in (Popularity, ItemKnn, Als, Rp3Beta, GraphFilter, Ease, Ials, Content, SegmentPopularity, Trending)
}
SEQUENCE_MODELS: Mapping[str, type[AnySequenceModel]] = {
    m.name: m for m in (SequentialRules, SessionKnn, SessionTransitions, Repurchase)
}


def build_model(name: str, params: Mapping[str, Any]) -> Model:
    """An unfitted model; parameters not given take the recipe's default. One of sequences comes as an `OrderedModel`.

    Raises DataError naming the nearest model or parameter.
    """
    if name == BLEND:
        for part in params["parts"].values():
            build_model(part["model"], part["params"])
        return Blend(params)
    if name == RANKER:
        build_model(params["first"]["model"], params["first"]["params"])
        return Ranker(params)
    if name in SEQUENCE_MODELS:
        return OrderedModel(build_sequence_model(name, params))
    if name not in MODELS:
        names = [*MODELS, *SEQUENCE_MODELS, BLEND]
        raise DataError(f"no model {name!r}; there are {', '.join(names)}{nearest(name, names)}", field="model")
    return MODELS[name](_complete(name, params, {**MORE_RECIPES, **RECIPES}[name]["params"]))


def build_sequence_model(name: str, params: Mapping[str, Any]) -> SequenceModel:
    """An unfitted sequence model; parameters not given take the recipe's default.

    Raises DataError naming the nearest model or parameter.
    """
    if name not in SEQUENCE_MODELS:
        hint = nearest(name, SEQUENCE_MODELS)
        raise DataError(f"no sequence model {name!r}; there are {', '.join(SEQUENCE_MODELS)}{hint}", field="model")
    return SEQUENCE_MODELS[name](_complete(name, params, SEQUENCE_RECIPES[name]["params"]))


def _complete(name: str, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(params) - set(defaults))
    if unknown:
        raise DataError(f"{name} has no parameter {unknown[0]!r}{nearest(unknown[0], defaults)}", field=unknown[0])
    return {**defaults, **params}


def load_model(folder: Path) -> Model:
    """The model saved in a folder, whichever it is. Raises ContractError when a file does not match its SHA-256."""
    name = read_manifest(folder)["model"]
    if name == BLEND:
        return Blend.load(folder)
    if name == RANKER:
        return Ranker.load(folder)
    if name in SEQUENCE_MODELS:
        return OrderedModel.load(folder)
    if name not in MODELS:
        known = ", ".join([*MODELS, *SEQUENCE_MODELS, BLEND])
        raise ContractError(f"{folder} holds model {name!r}, which is none of {known}")
    return MODELS[name].load(folder)


def load_sequence_model(folder: Path) -> SequenceModel:
    """The sequence model saved in a folder. Raises ContractError when a file does not match its SHA-256."""
    name = read_manifest(folder)["model"]
    if name not in SEQUENCE_MODELS:
        raise ContractError(f"{folder} holds model {name!r}, which is none of {', '.join(SEQUENCE_MODELS)}")
    return SEQUENCE_MODELS[name].load(folder)


class Fitted(NamedTuple):
    """A fitted model, and the matrix whose rows are its people."""

    model: Model
    matrix: InteractionMatrix


WatchSweeps = Callable[[InteractionMatrix], AfterSweep]
"""Given the matrix, makes what watches the sweeps of a model that has any (native als)."""


def fit_recipe(
    recipe: Mapping[str, Any],
    interactions: pa.Table,
    *,
    item_count: int,
    cut_off: datetime,
    after_sweep: WatchSweeps | None = None,
) -> Fitted:
    """The recipe applied to all interactions before `cut_off`."""
    return fit(recipe, TrainingData(interactions, item_count=item_count, cut_off=cut_off), after_sweep=after_sweep)


def fit(
    recipe: Mapping[str, Any],
    data: TrainingData,
    *,
    after_sweep: WatchSweeps | None = None,
    fitted: Mapping[str, Fitted] | None = None,
    starts: Mapping[str, NDArray[np.float32]] | None = None,
) -> Fitted:
    """The recipe applied to the data. What it is made of comes from `fitted` (by `recipe_id`, on the same data) where
    it is there. Factorizations begin from the item vectors in `starts` (by `recipe_id`): they may have been learned
    from anything before the cut-off of `data`, so give none to what is to be tested."""
    model = build_model(recipe["model"], recipe["params"])
    if isinstance(model, Ranker):
        return _fit_ranker(model, recipe, data, fitted or {}, starts)
    matrix = data.matrix(recipe)
    if isinstance(model, Blend):
        have = fitted or {}
        parts = {name: model.params["parts"][name] for name in model.part_names()}
        model.assemble(
            matrix,
            data.event_counts(matrix.subjects),
            {name: have.get(recipe_id(part)) or fit(part, data, starts=starts) for name, part in parts.items()},
        )
    elif isinstance(model, OrderedModel):
        sequences = data.sequences(recipe)[1]
        model.inner.fit(sequences)
        model.remember(sequences)
    elif isinstance(model, Als):
        watch = after_sweep(matrix) if after_sweep is not None else None
        model.fit(matrix, watch, (starts or {}).get(recipe_id(recipe)))
    elif isinstance(model, Ials):
        model.fit(matrix, (starts or {}).get(recipe_id(recipe)))
    elif isinstance(model, Trending):
        start = data.cut_off - timedelta(days=float(model.params["window_days"]))
        recent = TrainingData(data.since(start, recipe["weights"]), item_count=data.item_count, cut_off=data.cut_off)
        model.learn(recent.matrix(recipe), data.before(start).matrix({**recipe, "half_life_days": None}))
    else:
        model.fit(matrix)
    return Fitted(model, matrix)


def _fit_ranker(
    model: Ranker,
    recipe: Mapping[str, Any],
    data: TrainingData,
    fitted: Mapping[str, Fitted],
    starts: Mapping[str, NDArray[np.float32]] | None,
) -> Fitted:
    """Learn on the last days before the cut-off, then take the first stage fitted on everything.

    Only the latter may begin from `starts`: they know those last days.
    """
    first = model.params["first"]
    start = data.cut_off - timedelta(days=int(model.params["label_days"]))
    by_category = model.reads_categories
    then = data.features_at(start, by_category=by_category)
    now = data.features_at(data.cut_off, by_category=by_category)
    past = fit(first, data.before(start))
    model.learn(past.model, past.matrix, data.since(start, recipe["weights"]), then)
    whole = fitted.get(recipe_id(first)) or fit(first, data, fitted=fitted, starts=starts)
    model.assemble(whole.model, whole.matrix, now)
    return Fitted(model, whole.matrix)


def remember(model: Model, recipe: Mapping[str, Any], data: TrainingData) -> InteractionMatrix:
    """Give a loaded model the people of `data`, as it had them when it was fitted on it; returns the matrix whose rows
    they are. A model that keeps its people itself, or needs none, is left as it is."""
    matrix = data.matrix(recipe)
    if isinstance(model, OrderedModel):
        model.remember(data.sequences(recipe)[1])
    elif isinstance(model, Ranker):
        assert model.first is not None
        matrix = remember(model.first, model.params["first"], data)
        now = data.features_at(data.cut_off, by_category=model.reads_categories)
        model.assemble(model.first, matrix, now)
    elif isinstance(model, Blend):
        parts = {name: part.model for name, part in model.parts.items()}
        recipes = model.params["parts"]
        model.assemble(
            matrix,
            data.event_counts(matrix.subjects),
            {name: Fitted(part, remember(part, recipes[name], data)) for name, part in parts.items()},
        )
    return matrix


def newest_learned(fitted: Fitted) -> int | None:
    """us since 1970 UTC of the newest event that the model holds, by what it holds; None of nothing."""
    model, matrix = fitted
    found = [int(matrix.last_micros.max())] if len(matrix.last_micros) else []
    if isinstance(model, Ranker) and model.first is not None:
        model = model.first
    inner = [part.model for part in model.parts.values()] if isinstance(model, Blend) else [model]
    for one in inner:
        if isinstance(one, OrderedModel) and len(one.sequences.micros):
            found.append(int(one.sequences.micros.max()))
    return max(found, default=None)
