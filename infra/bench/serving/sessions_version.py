"""A version made of sessions or events alone, for benches: the night's own session index beside popular items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.contracts.keys import DEFAULT_TENANT
from feature_repo.contracts.publication import (
    ITEMS_FILE,
    NEIGHBOURS_FILE,
    POPULAR_FILE,
    SESSION_INDEX_FILE,
    Manifest,
    canonical_json,
    pack_neighbours,
)
from serving.adapters.bundle import load_catalogue
from serving.pipeline.catalogue import Catalogue
from spark_jobs.io.bundle import file_hashes, write_bundle
from spark_jobs.models.sequences import Sequences
from spark_jobs.transforms.session_index import fit_session_index, session_index_bytes

AS_OF = "2024-03-08"
POPULAR_LENGTH = 500


def write_version(
    publications: str, item_names: Sequence[str], sessions: Sequences, recipe: Mapping[str, Any], *,
    popularity: NDArray[np.floating] | None = None,
) -> str:  # fmt: skip
    """Write a bundle whose session index is what the recipe learns from `sessions`; its version.

    popularity  score of each item; by default how often it is in the sessions
    """
    count = len(item_names)
    worth = np.bincount(sessions.items, minlength=count).astype(float) if popularity is None else popularity
    best = np.lexsort((np.arange(count), -worth))[:POPULAR_LENGTH]
    popular = [[int(number), float(worth[number])] for number in best if worth[number] > 0]
    lists = fit_session_index(recipe, sessions, np.ones(count, bool))
    nothing: dict[str, list[Any]] = {
        name: [None] * count
        for name in ("title", "category", "price", "currency", "availability", "available_quantity", "created_at")
    }
    columns = {**nothing, "item_number": list(range(count)), "item_id": list(item_names), "is_hidden": [False] * count}
    files = {
        ITEMS_FILE: canonical_json({**columns, "url": [None] * count, "image_url": [None] * count}),
        NEIGHBOURS_FILE: pack_neighbours([[] for _ in range(count)]),
        POPULAR_FILE: canonical_json({"all": popular, "by_category": {}, "by_region": {}, "static": popular}),
        SESSION_INDEX_FILE: session_index_bytes(recipe, lists, session_count=len(sessions)),
    }
    manifest = Manifest(
        as_of=AS_OF, model="bench", recipe={}, user_count=0, item_count=count, candidates_checksum="0" * 16,
        last_event_at=None, files=file_hashes(files),
    )  # fmt: skip
    write_bundle(publications, manifest, files, tenant=DEFAULT_TENANT)
    return manifest.version()


def load_version(publications: str, version: str) -> Catalogue:
    """As a serving process holds it."""
    return load_catalogue(publications, version, tenant=DEFAULT_TENANT)
