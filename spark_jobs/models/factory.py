"""From a name or a folder to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from feature_repo.contracts.errors import ContractError, DataError, nearest
from spark_jobs.models.als import AfterSweep, Als
from spark_jobs.models.artifacts import read_manifest
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.item_knn import ItemKnn
from spark_jobs.models.matrix import build_matrix
from spark_jobs.models.popularity import Popularity
from spark_jobs.models.recipes import RECIPES

MODELS: Mapping[str, type[Popularity] | type[ItemKnn] | type[Als]] = {m.name: m for m in (Popularity, ItemKnn, Als)}


def build_model(name: str, params: Mapping[str, Any]) -> Model:
    """An unfitted model; parameters not given take the recipe's default.

    Raises DataError naming the nearest model or parameter.
    """
    if name not in MODELS:
        raise DataError(f"no model {name!r}; there are {', '.join(MODELS)}{nearest(name, MODELS)}", field="model")
    defaults = RECIPES[name]["params"]
    unknown = sorted(set(params) - set(defaults))
    if unknown:
        raise DataError(f"{name} has no parameter {unknown[0]!r}{nearest(unknown[0], defaults)}", field=unknown[0])
    return MODELS[name]({**defaults, **params})


def load_model(folder: Path) -> Model:
    """The model saved in a folder, whichever it is. Raises ContractError when a file does not match its SHA-256."""
    name = read_manifest(folder)["model"]
    if name not in MODELS:
        raise ContractError(f"{folder} holds model {name!r}, which is none of {', '.join(MODELS)}")
    return MODELS[name].load(folder)


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
