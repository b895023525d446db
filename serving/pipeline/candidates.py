"""The ladder: where candidates come from, best rung first, and how a short rung is topped up from the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from feature_repo.contracts.packing import PackedCandidate, Source
from serving.pipeline.catalogue import Catalogue, PopularList
from serving.pipeline.values import Candidate, Person, RungReport, SlateRequest

BELOW = 0.999
"""A rung's best item scores this share of the worst item of the rung above, so rungs never mix by themselves."""
FLOOR = 0.001
"""The lowest normalised score: zero would lose the order of everything below it."""


class Rung(NamedTuple):
    name: str
    rows: Sequence[PackedCandidate]


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
        yield Rung("segment", _rows(found[1], Source.SEGMENT))
    if found := catalogue.popular_in_category(request.category):
        yield Rung("category", _rows(found[1], Source.CATEGORY))
    if request.region and request.region in catalogue.popular_by_region:
        yield Rung("region", _rows(catalogue.popular_by_region[request.region], Source.REGION))
    if catalogue.popular:
        yield Rung("popular", _rows(catalogue.popular, Source.POPULARITY))
    if catalogue.static:
        yield Rung("static", _rows(catalogue.static, Source.STATIC))


def _rows(popular: PopularList, source: Source) -> list[PackedCandidate]:
    return [PackedCandidate(number, score, source) for number, score in popular]


def fill_candidates(
    rungs: Iterator[Rung], *, wanted: int, admits: Callable[[int], bool]
) -> tuple[dict[int, Candidate], list[RungReport]]:
    """Eligible candidates by item number, from the first rung and, while fewer than `wanted`, from the next ones.

    The first rung that has any is taken whole: its tail is what the session may lift. Base scores lie in [0, 1]; every
    item of a later rung scores below every item of an earlier one. An item that two rungs offer belongs to the first.
    """
    pool: dict[int, Candidate] = {}
    reports: list[RungReport] = []
    ceiling = 1.0
    for rung in rungs:
        eligible, lowest = 0, 1.0
        for row, base in zip(rung.rows, normalised(rung.rows), strict=True):
            number = row.item_number
            if number not in pool and admits(number):
                pool[number] = Candidate(
                    number, ceiling * base, Source(row.source), row.first_reason, row.second_reason
                )
                eligible, lowest = eligible + 1, base
        reports.append(RungReport(rung.name, len(rung.rows), eligible))
        if eligible:
            ceiling *= lowest * BELOW
        if len(pool) >= wanted:
            break
    return pool, reports


def normalised(rows: Sequence[PackedCandidate]) -> list[float]:
    """Scores of rows that are sorted best first, divided by the best one; in [FLOOR, 1].

    A list that goes down to zero or below is stretched between its last and its first score instead, so that its order
    survives; when all are equal, all are 1.
    """
    if not rows:
        return []
    top, last = rows[0].score, rows[-1].score
    if last > 0:
        return [max(row.score / top, FLOOR) for row in rows]
    span = top - last
    return [max((row.score - last) / span, FLOOR) if span > 0 else 1.0 for row in rows]
