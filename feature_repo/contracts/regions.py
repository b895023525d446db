"""Which region an event names. A region is a word such as DE, compared as it is: `de` is another one.

The same word is asked for as `context.region` of a question and kept as `region` of a user.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

REGION_FIELDS = ("region", "country", "location.country")
"""Where `context` says in which region the event was, as paths; the first that says it holds."""
_PATHS = tuple(tuple(path.split(".")) for path in REGION_FIELDS)

MAX_REGION_BYTES = 64
"""Of UTF-8. A longer word is no region that trends count: it would be somebody's text in a key."""


def named_region(context: object) -> str | None:
    """The region that the `context` of an event names, a text or an integer; None when it names none."""
    for path in _PATHS:
        value: Any = context
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def voting_region(context: object) -> str:
    """The region whose trends the event counts in; "" for none, and for a word that is too long, has a NUL or is no
    UTF-8: such an event counts for all regions together alone."""
    region = named_region(context)
    return region if region is not None and _is_short(region) else ""


@lru_cache(maxsize=4096)  # there are few regions
def _is_short(region: str) -> bool:
    try:
        return len(region.encode("utf-8")) <= MAX_REGION_BYTES and "\0" not in region
    except UnicodeEncodeError:  # a lone surrogate, from a JSON escape
        return False
