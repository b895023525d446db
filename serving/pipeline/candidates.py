"""The ladder: where candidates come from, best rung first, and how a short rung is topped up from the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from feature_repo.contracts.packing import NO_REASON, CandidateRows, Source
from feature_repo.contracts.session_blend import BELOW, FLOOR, normaliser
from serving.pipeline.catalogue import Catalogue, RankedList
from serving.pipeline.values import Person, Pool, RungReport, SlateRequest

NO_VOTES: Mapping[int, float] = MappingProxyType({})


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
    A category without a list of its own stands for its nearest ancestor that has one. Before the first version there
    are others (`first_rungs`).
    """
    if catalogue.is_first:
        yield from first_rungs(catalogue, request.category, request.region)
        return
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


def first_rungs(
    catalogue: Catalogue,
    category: str | None,
    region: str | None = None,
    *,
    voted: tuple[str, Source] = ("trending", Source.TRENDING),
) -> Iterator[Rung]:
    """The rungs before the first version: what is touched today, then the newest items; of the category first, then
    what is touched in the region, then of all. `voted`: what the first of them is called."""
    if category is not None:
        numbers = catalogue.facts.members["category"].get(category, ())
        among, size = set(numbers), len(numbers)
        if rows := [row for row in catalogue.popular if row[0] in among]:
            yield Rung(voted[0], rows, voted[1])
        if numbers:
            yield Rung("new", [(number, by_place(place, size)) for place, number in enumerate(numbers)], Source.NEW)
    if region is not None and region in catalogue.popular_by_region:
        yield Rung("region", catalogue.popular_by_region[region], Source.REGION)
    if catalogue.popular:
        yield Rung(voted[0], catalogue.popular, voted[1])
    if catalogue.static:
        yield Rung("new", catalogue.static, Source.NEW)


def by_place(place: int, size: int) -> float:
    """A score that falls evenly from 1 for the first of `size` towards FLOOR, so that no two of them are equal."""
    return 1 - (1 - FLOOR) * place / size


def fill_candidates(
    rungs: Iterator[Rung],
    *,
    wanted: int,
    admits: Callable[[int], bool],
    whole: bool,
    votes: Mapping[int, float] = NO_VOTES,
    weight: float = 0.0,
) -> tuple[Pool, list[RungReport]]:
    """Eligible candidates from the first rung that has any and, while fewer than `wanted`, from the next ones.

    With `whole` a rung is taken to its end. Otherwise it is left where nothing behind can be among the best `wanted`
    any more (ties are kept, so that the item id decides between them); of what is behind, only the items that `votes`
    (of eligible items, >= 0) may lift with `weight` are looked up.
    Every item of a later rung scores below every item of an earlier one; an item that two rungs offer belongs to the
    first. A row whose score is no number is not eligible.
    """
    pool, reports = Pool(), []
    bases, origins = pool.bases, pool.origins
    ceiling, share = 1.0, 1.0 + weight
    for rung in rungs:
        rows = rung.rows
        if not rows:
            reports.append(RungReport(rung.name, 0, 0))
            continue
        top, is_positive = rows[0][1], rows[-1][1] > 0
        scale = normaliser(top, rows[-1][1])
        origin = None if rung.source is None else (int(rung.source), NO_REASON, NO_REASON)
        before, lowest = len(bases), ceiling
        for row in rows:
            if is_positive:  # what `scale` does, without the call
                base = row[1] / top
                base = ceiling * (FLOOR if base < FLOOR else base)
            else:
                base = ceiling * scale(row[1])
            if not whole and len(bases) >= wanted and base / share < lowest / share:
                if votes:
                    least = _within_reach(bases, votes, weight, wanted)
                    for lifted in _rows_of(rows, votes):
                        number = lifted[0]
                        if is_positive:
                            base = lifted[1] / top
                            base = ceiling * (FLOOR if base < FLOOR else base)
                        else:
                            base = ceiling * scale(lifted[1])
                        if base > 0 and base + weight * votes[number] >= least and number not in bases:
                            bases[number] = base
                            origins[number] = origin or (lifted[2], lifted[3], lifted[4])
                break
            number = row[0]
            if base > 0 and number not in bases and admits(number):
                bases[number] = lowest = base
                origins[number] = origin or (row[2], row[3], row[4])
        reports.append(RungReport(rung.name, len(rows), len(bases) - before))
        if len(bases) >= wanted:
            break
        if len(bases) > before:
            ceiling = lowest * BELOW
    return pool, reports


def _within_reach(bases: Mapping[int, float], votes: Mapping[int, float], weight: float, wanted: int) -> float:
    """No base + weight x vote below this is among the best `wanted`, whatever the bases of voted items may be."""
    vote_of = votes.get
    sums = [base + weight * vote_of(number, 0.0) for number, base in bases.items()]
    sums += [weight * vote for number, vote in votes.items() if number not in bases]
    sums.sort(reverse=True)
    return sums[wanted - 1] * (1 - 1e-9) if len(sums) >= wanted else 0.0


def _rows_of(rows: Sequence[Sequence[Any]], votes: Mapping[int, float]) -> Sequence[Any]:
    """The rows of the voted items, from lists that know a short way to them or by looking at all."""
    if isinstance(rows, RankedList | CandidateRows):
        return rows.of_items(votes)
    return [row for row in rows if row[0] in votes]
