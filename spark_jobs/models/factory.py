"""From a name or a folder to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.contracts.errors import ContractError, DataError, nearest
from feature_repo.contracts.times import to_micros
from spark_jobs.models.als import AfterSweep, Als
from spark_jobs.models.artifacts import read_manifest
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.ease import Ease
from spark_jobs.models.graph_filter import GraphFilter
from spark_jobs.models.ials import Ials
from spark_jobs.models.item_knn import ItemKnn
from spark_jobs.models.matrix import build_matrix
from spark_jobs.models.popularity import Popularity
from spark_jobs.models.recipes import MORE_RECIPES, RECIPES, SEQUENCE_RECIPES
from spark_jobs.models.repurchase import Repurchase
from spark_jobs.models.rp3beta import Rp3Beta
from spark_jobs.models.sequences import SequenceModel, Sequences, build_sequences
from spark_jobs.models.sequential_rules import SequentialRules
from spark_jobs.models.session_knn import SessionKnn
from spark_jobs.models.session_transitions import SessionTransitions

AnyModel = Popularity | ItemKnn | Als | Rp3Beta | GraphFilter | Ease | Ials
AnySequenceModel = SequentialRules | SessionKnn | SessionTransitions | Repurchase

MODELS: Mapping[str, type[AnyModel]] = {m.name: m for m in (Popularity, ItemKnn, Als, Rp3Beta, GraphFilter, Ease, Ials)}
SEQUENCE_MODELS: Mapping[str, type[AnySequenceModel]] = {
    m.name: m for m in (SequentialRules, SessionKnn, SessionTransitions, Repurchase)
}


def build_model(name: str, params: Mapping[str, Any]) -> Model:
    """An unfitted model; parameters not given take the recipe's default.

    Raises DataError naming the nearest model or parameter.
    """
    if name not in MODELS:
        raise DataError(f"no model {name!r}; there are {', '.join(MODELS)}{nearest(name, MODELS)}", field="model")
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
    if name not in MODELS:
        raise ContractError(f"{folder} holds model {name!r}, which is none of {', '.join(MODELS)}")
    return MODELS[name].load(folder)


def load_sequence_model(folder: Path) -> SequenceModel:
    """The sequence model saved in a folder. Raises ContractError when a file does not match its SHA-256."""
    name = read_manifest(folder)["model"]
    if name not in SEQUENCE_MODELS:
        raise ContractError(f"{folder} holds model {name!r}, which is none of {', '.join(SEQUENCE_MODELS)}")
    return SEQUENCE_MODELS[name].load(folder)


def fit_recipe(
    recipe: Mapping[str, Any],
    interactions: pa.Table,
    *,
    item_count: int,
    cut_off: datetime,
    after_sweep: Callable[[InteractionMatrix], AfterSweep] | None = None,
) -> tuple[Model, InteractionMatrix]:
    """The recipe applied to all interactions before `cut_off`: the fitted model and the matrix it learned from.

    `after_sweep`, given the matrix, makes what watches the sweeps of a model that has any (native als).
    """
    matrix = build_matrix(
        interactions,
        item_count=item_count,
        weights=recipe["weights"],
        half_life_days=recipe["half_life_days"],
        cut_off=cut_off,
    )
    model = build_model(recipe["model"], recipe["params"])
    if isinstance(model, Als) and after_sweep is not None:
        model.fit(matrix, after_sweep(matrix))
    else:
        model.fit(matrix)
    return model, matrix


def fit_sequence_recipe(
    recipe: Mapping[str, Any], interactions: pa.Table, *, item_count: int, cut_off: datetime
) -> tuple[SequenceModel, NDArray[np.str_], Sequences]:
    """As `fit_recipe` for a sequence model: (the fitted model, the subjects, the sequences it learned from)."""
    subjects, sequences = build_sequences(
        interactions, item_count=item_count, weights=recipe["weights"], cut_off_micros=to_micros(cut_off)
    )
    model = build_sequence_model(recipe["model"], recipe["params"])
    model.fit(sequences)
    return model, subjects, sequences
