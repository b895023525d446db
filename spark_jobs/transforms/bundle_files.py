"""The bytes of a bundle's files from item facts, neighbours and popularity. Formats: `contracts.publication`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.contracts.publication import (
    ITEMS_FILE,
    NEIGHBOURS_FILE,
    POPULAR_FILE,
    SESSION_INDEX_FILE,
    TOGETHER_FILE,
    canonical_json,
    pack_neighbours,
)
from feature_repo.contracts.times import format_timestamp
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.popularity import Popularity
from spark_jobs.models.ranking import top_items

_STORED_COLUMNS = (
    "item_number", "item_id", "title", "category", "price", "currency", "availability", "available_quantity",
    "created_at", "expire_time", "url", "image_url", "is_hidden", "brand",
)  # fmt: skip
_SAID_COLUMNS = ("tags", "group_id", "language", "attributes")
ITEM_COLUMNS = (*_STORED_COLUMNS, *_SAID_COLUMNS)

_NO_ATTRIBUTES = ("updated_at", "available_time")
"""Fields of an item that have no column of their own in bronze.items, and that no filter asks for."""

NEIGHBOURS_PER_ITEM = 50
POPULAR_LENGTH = 500
POPULAR_BY_GROUP_LENGTH = 200
STATIC_LENGTH = 1_000
LEAST_REGION_SUBJECTS = 10
"""A region with fewer active people has no list of its own: it would be somebody's history."""

CATEGORY_SEPARATOR = " > "

PopularList = list[list[Any]]


def eligible_items(items: pa.Table, *, item_count: int, cut_off: datetime) -> NDArray[np.bool_]:
    """By item number: may it be published at `cut_off`.

    No: hidden items, items that expired before or at `cut_off`, items created at or after it, and numbers without an
    item in the catalogue. Stock plays no part: it changes by the minute, so serving filters by it. Null is_hidden,
    expire_time or created_at do not exclude.

    items  item_number and the columns of bronze.items
    """
    eligible = np.zeros(item_count, bool)
    columns = (items[name].to_pylist() for name in ("item_number", "is_hidden", "created_at", "expire_time"))
    for number, is_hidden, created_at, expire_time in zip(*columns, strict=True):
        has_begun = created_at is None or created_at < cut_off
        has_ended = expire_time is not None and expire_time <= cut_off
        eligible[number] = not is_hidden and has_begun and not has_ended
    return eligible


def neighbour_rows(
    model: Model, eligible: NDArray[np.bool_], *, count: int = NEIGHBOURS_PER_ITEM
) -> list[list[tuple[int, float]]]:
    """By item number: its `count` nearest eligible items, best first, ties by number. Ineligible items keep their own
    row: somebody may still look at them."""
    rows = []
    for number in range(len(eligible)):
        near = model.similar(number, len(eligible))
        rows.append([(other, similarity) for other, similarity in near if eligible[other]][:count])
    return rows


def items_json(items: pa.Table) -> bytes:
    """items.json: every item of the catalogue, hidden and expired ones too (histories name them), by item number.

    Times are RFC 3339 UTC; a price that is no number is null. Tags, group_id and language, which bronze.items keeps
    among the attributes, are columns.
    """
    columns = {name: items.sort_by("item_number")[name].to_pylist() for name in _STORED_COLUMNS}
    columns["price"] = [p if p is not None and math.isfinite(p) else None for p in columns["price"]]
    for name in ("created_at", "expire_time"):
        columns[name] = [None if moment is None else format_timestamp(moment) for moment in columns[name]]
    columns["is_hidden"] = [bool(hidden) for hidden in columns["is_hidden"]]
    return canonical_json(columns | _said_in_attributes(items.sort_by("item_number")["attributes"].to_pylist()))


def _said_in_attributes(attributes: Sequence[str | None]) -> dict[str, list[Any]]:
    """The columns tags (lists of texts), group_id, language (texts) and attributes (JSON text of an object with sorted
    keys: what is left; null for nothing)."""
    said: dict[str, list[Any]] = {name: [] for name in _SAID_COLUMNS}
    for text in attributes:
        rest = json.loads(text) if text else {}
        tags = rest.pop("tags", None)
        said["tags"].append([tag for tag in tags if isinstance(tag, str) and tag] if isinstance(tags, list) else None)
        for name in ("group_id", "language"):
            word = rest.pop(name, None)
            said[name].append(word if isinstance(word, str) and word else None)
        for name in _NO_ATTRIBUTES:
            rest.pop(name, None)
        said["attributes"].append(json.dumps(rest, sort_keys=True) if rest else None)
    return said


def popular_json(
    matrix: InteractionMatrix,
    params: Mapping[str, Any],
    items: pa.Table,
    eligible: NDArray[np.bool_],
    regions: Mapping[str, str],
) -> bytes:
    """popular.json, best first, ties by item number, eligible items only.

    `all`, `by_category` (every prefix of a path) and `by_region` hold items that somebody preferred, by the decayed
    popularity of the model `popularity` fitted on `matrix` (its half-life is in there). `static` holds the best of all
    and then, in order of number, items nobody touched: it is empty only when no item is eligible.

    regions  subject key -> region
    """
    everyone = _popularity(matrix, params)
    members = _members_by_category(items)
    rows_by_region: dict[str, list[int]] = {}
    for row, subject in enumerate(matrix.subjects.tolist()):
        if (region := regions.get(subject)) is not None:
            rows_by_region.setdefault(region, []).append(row)
    lists = {
        "all": _popular(everyone, eligible, POPULAR_LENGTH),
        "by_category": {
            category: found
            for category in sorted(members)
            if (found := _popular(everyone, eligible, POPULAR_BY_GROUP_LENGTH, among=members[category]))
        },
        "by_region": {
            region: found
            for region, rows in sorted(rows_by_region.items())
            if len(rows) >= LEAST_REGION_SUBJECTS
            and (found := _popular(_popularity(_take(matrix, rows), params), eligible, POPULAR_BY_GROUP_LENGTH))
        },
        "static": _popular(everyone, eligible, STATIC_LENGTH, untouched=True),
    }
    return canonical_json(lists)


def bundle_files(
    items: bytes,
    neighbours: Sequence[Sequence[tuple[int, float]]],
    popular: bytes,
    session_index: bytes,
    together: Sequence[Sequence[tuple[int, float]]],
) -> dict[str, bytes]:
    """File name -> bytes of a whole bundle, but for its manifest."""
    return {
        ITEMS_FILE: items,
        NEIGHBOURS_FILE: pack_neighbours(neighbours),
        POPULAR_FILE: popular,
        SESSION_INDEX_FILE: session_index,
        TOGETHER_FILE: pack_neighbours(together),
    }


def category_prefixes(path: str | None) -> list[str]:
    """`A > B > C` -> [`A`, `A > B`, `A > B > C`]; nothing for null or blank."""
    parts = [part for part in (path or "").split(CATEGORY_SEPARATOR) if part.strip()]
    return [CATEGORY_SEPARATOR.join(parts[: depth + 1]) for depth in range(len(parts))]


def _members_by_category(items: pa.Table) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {}
    for number, path in zip(items["item_number"].to_pylist(), items["category"].to_pylist(), strict=True):
        for prefix in category_prefixes(path):
            members.setdefault(prefix, []).append(number)
    return members


def _popularity(matrix: InteractionMatrix, params: Mapping[str, Any]) -> NDArray[np.float32]:
    model = Popularity(params)
    model.fit(matrix)
    return model.item_scores


def _take(matrix: InteractionMatrix, rows: list[int]) -> InteractionMatrix:
    """Some subjects of the matrix, which stay in order."""
    starts, ends = matrix.preference.indptr[rows], matrix.preference.indptr[np.asarray(rows) + 1]
    pairs = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
    return InteractionMatrix(matrix.subjects[rows], matrix.preference[rows], matrix.last_micros[pairs])


def _popular(
    scores: NDArray[np.float32],
    eligible: NDArray[np.bool_],
    length: int,
    *,
    among: list[int] | None = None,
    untouched: bool = False,
) -> PopularList:
    """[[item number, score], ...] of the eligible items `among` these (None: all) with a score; `untouched` lets
    those without one follow."""
    allowed = eligible if untouched else eligible & (scores > 0)
    if among is not None:
        chosen = np.zeros(len(scores), bool)
        chosen[among] = True
        allowed = allowed & chosen
    numbers, values = top_items(np.where(allowed, scores, -np.inf)[None, :].astype(np.float32), length)
    return [[n, v] for n, v in zip(numbers[0].tolist(), values[0].tolist(), strict=True) if v != -math.inf]
