"""What batch jobs know of placements: how many items a slate has, and which the placement's filter lets in.

The file is that of `serving.pipeline.placements`, which says what else a placement has and refuses what is wrong in it;
here all else is passed over.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from feature_repo.contracts.errors import DataError, FilterError
from feature_repo.contracts.filter_language import parse_filter


class PlacementShape(NamedTuple):
    """`filter` None: every item."""

    num_results: int = 10
    filter: str | None = None


PRESET_SHAPES: Mapping[str, PlacementShape] = {
    "default": PlacementShape(),
    "home": PlacementShape(24),
    "product_page": PlacementShape(12),
    "cart": PlacementShape(6, "not in_cart(item)"),
    "search": PlacementShape(24),
    "email": PlacementShape(6),
    "raw": PlacementShape(),
}
"""What there is without a file."""


def read_shapes(path: str) -> dict[str, PlacementShape]:
    """All placements of an installation by name, those of the file over the presets; for an empty path the presets.

    Raises DataError for a file that cannot be read, and for a placement whose size or filter is none.
    """
    found = dict(PRESET_SHAPES)
    if not path:
        return found
    try:
        text = Path(path).read_text(encoding="utf-8")
        document: Any = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
        said = dict(document.get("placements", {}))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"the placements {path} cannot be read: {error}", field="placements") from error
    for name, keys in said.items():
        found[name] = _shape(name, keys)
    return found


def _shape(name: str, keys: Any) -> PlacementShape:
    if not isinstance(keys, Mapping):
        raise DataError(f"placements.{name} is no table", field="placements")
    preset = keys.get("preset", name if name in PRESET_SHAPES else "default")
    base = PRESET_SHAPES.get(preset) if isinstance(preset, str) else None
    if base is None:
        raise DataError(f"placements.{name}.preset is no preset: {str(preset)[:40]!r}", field="placements")
    size, text = keys.get("num_results", base.num_results), keys.get("filter", base.filter)
    if type(size) is not int or size < 1:
        raise DataError(f"placements.{name}.num_results is a whole number from 1", field="placements")
    if text is False or text is None:
        return PlacementShape(size)
    try:
        parse_filter(text)
    except (FilterError, TypeError) as error:
        raise DataError(f"placements.{name}.filter: {error}", field="placements") from error
    return PlacementShape(size, text)
