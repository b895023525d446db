"""The ladder: where candidates come from, best rung first, and how a short rung is topped up from the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from feature_repo.contracts.packing import NO_REASON, Source
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.values import Person, Pool, RungReport, SlateRequest

BELOW = 0.999
"""A rung's best item scores this share of the worst item of the rung above, so rungs never mix by themselves."""
FLOOR = 0.001
"""The lowest normalised score: zero would lose the order of everything below it."""


class Rung(NamedTuple):
    """Rows are sorted best first and begin with item number and score. With `source` None they are whole `Row`s."""

    name: str
    rows: Sequence[Sequence[Any]]
    source: Source | None = None


def ladder(catalogue: Catalogue, request: SlateRequest, person: Person) -> Iterator[Rung]:
    """The rungs in the order they are tried; a rung without a list is left out.

    personal (the night's list) -> segment (popular in the user's top category) -> popular in the category, then in the
    region, of the request -> popular -> the static list of the version. Without consent the person is empty, and so the
    first two rungs are not there.
    A category without a list of its own stands for its nearest ancestor that has one.
    """
    if person.candidates:
        yield Rung("personal", person.candidates)
    if person.segment and (found := catalogue.popular_in_category(person.segment)):
        yield Rung("segment", found[1], Source.SEGMENT)
    if found := catalogue.popular_in_category(request.category):
        yield Rung("category", found[1], Source.CATEGORY)
    if request.region and request.region in catalogue.popular_by_region:
        yield Rung("region", catalogue.popular_by_region[request.region], Source.REGION)
    if catalogue.popular:
        yield Rung("popular", catalogue.popular, Source.POPULARITY)
    if catalogue.static:
        yield Rung("static", catalogue.static, Source.STATIC)


def fill_candidates(
    rungs: Iterator[Rung], *, wanted: int, admits: Callable[[int], bool], whole: bool
) -> tuple[Pool, list[RungReport]]:
    """Eligible candidates from the first rung that has any and, while fewer than `wanted`, from the next ones.

    With `whole` a rung is taken to its end: its tail is what a session may lift. Otherwise it is left where nothing
    behind can be among the best `wanted` any more (ties are kept, so that the item id decides between them).
    Every item of a later rung scores below every item of an earlier one; an item that two rungs offer belongs to the
    first. A row whose score is no number is not eligible.
    """
    pool, reports = Pool(), []
    bases, origins = pool.bases, pool.origins
    ceiling = 1.0
    for rung in rungs:
        if not rung.rows:
            reports.append(RungReport(rung.name, 0, 0))
            continue
        scale = normaliser(rung.rows[0][1], rung.rows[-1][1])
        origin = None if rung.source is None else (int(rung.source), NO_REASON, NO_REASON)
        before, lowest = len(bases), ceiling
        for row in rung.rows:
            base = ceiling * scale(row[1])
            if not whole and base < lowest and len(bases) >= wanted:
                break
            number = row[0]
            if base > 0 and number not in bases and admits(number):
                bases[number] = lowest = base
                origins[number] = origin or (row[2], row[3], row[4])
        reports.append(RungReport(rung.name, len(rung.rows), len(bases) - before))
        if len(bases) >= wanted:
            break
        if len(bases) > before:
            ceiling = lowest * BELOW
    return pool, reports


def normaliser(top: float, last: float) -> Callable[[float], float]:
    """Scores of a list from `top` down to `last`, divided by the best one; in [FLOOR, 1].

    A list that goes down to zero or below is stretched between its last and its first score instead, so that its order
    survives; when all are equal, all are 1.
    """
    if last > 0:
        return lambda score: max(score / top, FLOOR)
    span = top - last
    if span > 0:
        return lambda score: max((score - last) / span, FLOOR)
    return lambda _: 1.0
