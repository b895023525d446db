"""New items that nobody had yet: no list of the night can have them, so exploration may show them."""

from __future__ import annotations

from itertools import islice, takewhile

from serving.pipeline.catalogue import Catalogue
from serving.pipeline.rotation import DAY_MICROS

UNTRIED_DAYS = 30
MOST_UNTRIED = 200


def untried_items(catalogue: Catalogue) -> list[int]:
    """Items made at most 30 days before the end of the version's data that are in none of its popular lists: the newest
    200, newest first, ties by number. Items that do not say when they were made are not new."""
    remembered = catalogue.remember("untried items")
    found: list[int] | None = remembered.get("numbers")
    if found is None:
        oldest = catalogue.as_of_micros - UNTRIED_DAYS * DAY_MICROS
        recent = takewhile(lambda row: row[1] >= oldest, catalogue.newest)
        untried = (number for number, _ in recent if number not in catalogue.popularity)
        found = remembered["numbers"] = list(islice(untried, MOST_UNTRIED))
    return found
