"""Whether the native code that lies in a folder may be used: an optional extra, each part with a twin in Python."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

PURE_PYTHON = "NIGHTJAR_PURE_PYTHON"


def digest_of(source: Path) -> str:
    """What stands for a source and for the declarations that it may have used, in hex digits."""
    found = hashlib.sha256(source.read_bytes())
    for declarations in sorted(source.parent.glob("*.pxd")):
        found.update(declarations.read_bytes())
    return found.hexdigest()


def why_no_native_code(folder: Path, parts: Sequence[str]) -> str | None:
    """Why none of these parts may be used, or None: all of them work, or none does."""
    return next(filter(None, (_reason(folder, name) for name in parts)), None)


def _reason(folder: Path, name: str) -> str | None:
    """Why this part may not be used, or None."""
    if os.environ.get(PURE_PYTHON, "") not in ("", "0"):
        return f"{PURE_PYTHON} is set"
    if sys.byteorder != "little":
        return "records are little-endian, this machine is not"
    compiled, mark = folder / f"{name}{EXTENSION_SUFFIXES[0]}", folder / f"{name}.compiled"
    if not compiled.exists() or not mark.exists():
        return "not compiled"
    source = folder / f"{name}.pyx"
    if source.exists() and mark.read_text().partition("\n")[0] != digest_of(source):
        return "compiled from another source"
    return None
