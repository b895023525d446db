"""Native code for requests and events: an optional extra. Each part has a twin in Python that gives the same bytes.

`parts` has the compiled modules, or None in the place of each: then the twins answer, and `why_not` says why. So it is
where nothing was compiled (there was no C compiler), where what was compiled is not the source that lies here, and
where NIGHTJAR_PURE_PYTHON=1 forbids it.
"""

from __future__ import annotations

from pathlib import Path

from feature_repo.contracts.native_code import why_no_native_code

PARTS = (
    "answers",
    "arranged",
    "batches",
    "begun",
    "chances",
    "filters",
    "folding",
    "fresh",
    "given",
    "columns",
    "decided",
    "features",
    "groups",
    "decision_frames",
    "ids",
    "intake",
    "meetings",
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
    "refusals",
    "rows",
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


why_not: str | None = why_no_native_code(Path(__file__).parent, PARTS)


def described() -> str:
    """Which of the two answers, in words."""
    return "native code" if why_not is None else f"Python ({why_not})"
