"""Native code for requests and events: an optional extra. Each part has a twin in Python that gives the same bytes.

`parts` has the compiled modules, or None in the place of each: then the twins answer, and `why_not` says why. So it is
where nothing was compiled (there was no C compiler), where what was compiled is not the source that lies here, and
where NIGHTJAR_PURE_PYTHON=1 forbids it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

PURE_PYTHON = "NIGHTJAR_PURE_PYTHON"
PARTS = (
    "answers",
    "arranged",
    "begun",
    "chances",
    "filters",
    "fresh",
    "given",
    "columns",
    "decided",
    "ids",
    "names",
    "opening",
    "order",
    "page_work",
    "pages",
    "pieces",
    "questions",
    "ranking",
    "reads",
    "reasons",
    "records",
    "ruled",
    "sessions",
    "shelves",
    "shelving",
    "showings",
    "slates",
    "subjects",
    "trees",
    "variety",
    "votes",
    "work",
    "writing",
)
"""All of them work, or none does: some are made of others."""


def digest_of(source: Path) -> str:
    """What stands for a source and for the declarations that it may have used, in hex digits."""
    found = hashlib.sha256(source.read_bytes())
    for declarations in sorted(source.parent.glob("*.pxd")):
        found.update(declarations.read_bytes())
    return found.hexdigest()


def _reason(name: str) -> str | None:
    """Why this part may not be used, or None."""
    if os.environ.get(PURE_PYTHON, "") not in ("", "0"):
        return f"{PURE_PYTHON} is set"
    if sys.byteorder != "little":
        return "records are little-endian, this machine is not"
    folder = Path(__file__).parent
    compiled, mark = folder / f"{name}{EXTENSION_SUFFIXES[0]}", folder / f"{name}.compiled"
    if not compiled.exists() or not mark.exists():
        return "not compiled"
    source = folder / f"{name}.pyx"
    if source.exists() and mark.read_text().partition("\n")[0] != digest_of(source):
        return "compiled from another source"
    return None


why_not: str | None = next(filter(None, map(_reason, PARTS)), None)


def described() -> str:
    """Which of the two answers, in words."""
    return "native code" if why_not is None else f"Python ({why_not})"
