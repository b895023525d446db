"""A fitted model on disk: plain arrays and a manifest with their SHA-256. Nothing here can run code when it is read.

Folder:
    manifest.json   {"format": 1, "model": name, "params": {...}, "files": {"x.npy": {"sha256", "shape", "dtype"}}}
    *.npy           one array each, never pickled
    parts/<name>/   of a model made of others: each part's own folder; "parts" in the manifest has the SHA-256 of its
                    manifest
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.torn_commits import sync
from feature_repo.contracts.whole_files import make_folder, write_whole

MANIFEST_FILE = "manifest.json"
PARTS_FOLDER = "parts"
FORMAT = 1


def save_arrays(
    folder: Path,
    *,
    model: str,
    params: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    parts: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Write one model, and its `parts`, each by its own `save`. The folder appears whole or not at all, and is on disk
    when this returns; what lay there before is replaced."""
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    make_folder(draft)
    files = {}
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        path = draft / f"{name}.npy"
        np.save(path, array, allow_pickle=False)
        sync(path)
        files[path.name] = {"sha256": _sha256(path), "shape": list(array.shape), "dtype": array.dtype.str}
    manifest: dict[str, Any] = {"format": FORMAT, "model": model, "params": dict(params), "files": files}
    for name, save in sorted((parts or {}).items()):
        save(part_folder(draft, name))
        manifest.setdefault("parts", {})[name] = manifest_digest(part_folder(draft, name))
    write_whole(draft / MANIFEST_FILE, json.dumps(manifest, indent=1, sort_keys=True).encode("utf-8"))
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    sync(folder.parent)


def part_folder(folder: Path, name: str) -> Path:
    """Where a part of a model lies. Raises ContractError on a name that is no plain folder name."""
    if Path(name).name != name or name.startswith("."):
        raise ContractError(f"{folder}: {name!r} is no name of a part")
    return folder / PARTS_FOLDER / name


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a saved model, its files not yet read. Raises ContractError when it is none."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        form = manifest["format"]
        complete = isinstance(manifest["model"], str) and isinstance(manifest["params"], dict)
        complete = complete and isinstance(manifest.get("parts", {}), dict)
        complete = complete and all({"sha256", "shape", "dtype"} <= set(f) for f in manifest["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"{path} is no model manifest: {error!r}") from error
    if form != FORMAT or not complete:
        raise ContractError(f"{path}: model format {form!r}, expected {FORMAT} with model, params and files")
    return manifest


def manifest_digest(folder: Path) -> str:
    """SHA-256 hex of the manifest, which holds those of all arrays: the fingerprint of the whole model."""
    return _sha256(folder / MANIFEST_FILE)


def verify_folder(folder: Path) -> dict[str, Any]:
    """The manifest, after every file it names, its parts' too, was found to match. Raises ContractError naming one that
    does not."""
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ContractError(f"{folder}: the manifest names {name!r}, which is not there")
        found = _sha256(path)
        if found != entry["sha256"]:
            raise ContractError(f"{path} has SHA-256 {found[:12]}..., its manifest says {str(entry['sha256'])[:12]}...")
    for name, digest in manifest.get("parts", {}).items():
        part = part_folder(folder, name)
        verify_folder(part)
        if manifest_digest(part) != digest:
            raise ContractError(f"{part}: not the part that the manifest of {folder} names")
    return manifest


def load_arrays(folder: Path, *, model: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """(params, arrays by name) of a model saved by `save_arrays`.

    Raises ContractError when a file does not match its SHA-256, shape or type, or when it is another model.
    """
    manifest = verify_folder(folder)
    if manifest["model"] != model:
        raise ContractError(f"{folder} holds model {manifest['model']!r}, expected {model!r}")
    arrays = {}
    for name, entry in manifest["files"].items():
        try:
            array = np.load(folder / name, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ContractError(f"{folder / name} is no plain array: {error}") from error
        if list(array.shape) != entry["shape"] or array.dtype.str != entry["dtype"]:
            found = f"{array.dtype.str}{list(array.shape)}"
            raise ContractError(f"{folder / name} is {found}, its manifest says {entry['dtype']}{entry['shape']}")
        arrays[name.removesuffix(".npy")] = array
    return manifest["params"], arrays


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
