"""Reads the placements of an installation (`pipeline.placements`) from the file that a setting names."""

from __future__ import annotations

from pathlib import Path

from feature_repo.contracts.errors import DataError
from serving.pipeline.placements import Placements, read_placements


def load_placements(path: str) -> Placements:
    """The placements of a .toml or .json file; for an empty path the presets. Raises DataError naming the file."""
    if not path:
        return Placements()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"NIGHTJAR_SERVING_PLACEMENTS: cannot read {path}: {error}", field="placements") from error
    try:
        return read_placements(text, is_json=path.endswith(".json"))
    except DataError as error:
        raise DataError(f"{path}: {error}", field=error.field) from error
