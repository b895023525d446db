"""What is trending: the tables of a window added up, for everything, for one category, for one region."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from feature_repo.contracts.packing import Source
from feature_repo.contracts.trend_record import TrendTable, most_votes
from serving.pipeline.candidates import Rung
from serving.pipeline.catalogue import CATEGORY_SEPARATOR, Catalogue
from serving.pipeline.consent import as_allowed
from serving.pipeline.list_rules import OF_THE_SHOP, eligible_in_list
from serving.pipeline.list_slate import in_words, list_slate, popular_rungs, popular_words
from serving.pipeline.values import Person, Reason, Slate, SlateRequest, Tuning

WINDOW_WORDS: Mapping[str, str] = {"5m": "the last five minutes", "1h": "the last hour", "1d": "the last day"}
MOST_ROWS = 1000
"""How many voted items one answer looks at; beyond them it tops up."""


LEAST_REGION_VOTES = 20
"""A region with fewer votes in the window, for the items that an answer looks at, is answered by those of all regions:
they would be somebody's history. One person has at most 16."""


class Scope(StrEnum):
    """Whose votes an answer goes by. Stable words: they are shown."""

    REGION = "region"
    """Those of the region that was asked for."""
    REGION_LIST = "region_list"
    """Those of all regions, for items of the region's popular list."""
    ALL = "all"
    """Those of all regions."""


class Votes(NamedTuple):
    """The votes of one window: (item id, votes), most first, ties by id. No item's votes are short by more than
    `error`, and an item that is not among them although it should be has at most `error` votes.

    regions   that have votes of their own in the window      regional  those of the one that was asked about, if it has
    """

    ranked: Sequence[tuple[str, int]]
    error: int
    regions: frozenset[str] = frozenset()
    regional: Votes | None = None


class VotedRows(NamedTuple):
    """(item number, votes) of the items of a version that an answer looks at, most first; whose votes they are.
    `region_votes`: how many the region that was asked for has for such items; None: none was asked for."""

    rows: list[tuple[int, int]]
    scope: Scope
    region_votes: int | None


def add_up(tables: Iterable[TrendTable]) -> Votes:
    """The tables of one window as one."""
    votes: dict[str, int] = {}
    error = 0
    for table in tables:
        error += table.lost
        for item_id, count in table.votes.items():
            votes[item_id] = votes.get(item_id, 0) + count
    return Votes(most_votes(votes), error)


def trending_slate(
    voted: VotedRows,
    request: SlateRequest,
    person: Person,
    catalogue: Catalogue,
    tuning: Tuning,
    *,
    window: str,
    now_micros: int,
) -> Slate:
    """What most people touched in the window, in the category of the request if it names one.

    A region is answered by its own votes. Has it too few (LEAST_REGION_VOTES), then by those of all regions: for the
    items of its popular list where the night has one, else for all. `voted` says which, as `voted_rows` found them.
    Of somebody who is named and consents, what they bought or dismissed leaves. Topped up with what is popular.
    fallback_level is `trending`, or the first rung that had something.
    """
    allowed = as_allowed(request, person)
    request, person, personalized, _ = allowed
    words = popular_words(request.category, request.region)
    trending = trending_words(window, request.region if voted.scope is Scope.REGION else None)

    def tell(_: int, source: Source) -> tuple[Reason, ...]:
        return in_words(words.get(source, trending))

    return list_slate(
        _rungs(voted, catalogue, request.category, request.region),
        own="trending",
        wanted=request.num_results,
        eligible=eligible_in_list(allowed, catalogue, tuning, habits=OF_THE_SHOP, now_micros=now_micros),
        catalogue=catalogue,
        tell=tell,
        personalized=personalized,
        whole=request.explain,
    )


def is_within(path: str | None, category: str) -> bool:
    """Whether a category path is `category` or lies below it."""
    return path is not None and (path == category or path.startswith(category + CATEGORY_SEPARATOR))


def trending_words(window: str, region: str | None) -> str:
    """The reason of an item that trends: in a region where those are its votes."""
    return (
        f"trending in {WINDOW_WORDS[window]}" if region is None else f"trending in {region} in {WINDOW_WORDS[window]}"
    )


def voted_rows(votes: Votes, catalogue: Catalogue, category: str | None, region: str | None) -> VotedRows:
    """What an answer looks at in a category, a region, or both."""
    rows: list[tuple[int, int]] = []
    region_votes = None if region is None else 0
    if region is not None and votes.regional is not None:
        rows = list(islice(_rows(votes.regional, catalogue, category), MOST_ROWS))
        region_votes = sum(count for _, count in rows)
        if region_votes >= LEAST_REGION_VOTES:
            return VotedRows(rows, Scope.REGION, region_votes)
        rows = []
    among = None if region is None else catalogue.popular_by_region.get(region)
    regional = None if among is None else {number for number, _ in among}
    for number, count in _rows(votes, catalogue, category):
        if regional is None or number in regional:
            rows.append((number, count))
            if len(rows) == MOST_ROWS:
                break
    return VotedRows(rows, Scope.ALL if regional is None else Scope.REGION_LIST, region_votes)


def _rungs(voted: VotedRows, catalogue: Catalogue, category: str | None, region: str | None) -> Iterator[Rung]:
    if voted.rows:
        yield Rung("trending", voted.rows, Source.TRENDING)
    yield from popular_rungs(catalogue, category, region)


def _rows(votes: Votes, catalogue: Catalogue, category: str | None) -> Iterator[tuple[int, int]]:
    """(item number, votes) of the items of this version, most first."""
    for item_id, count in votes.ranked:
        number = catalogue.numbers.get(item_id)
        if number is not None and (category is None or is_within(catalogue.category(number), category)):
            yield number, count
