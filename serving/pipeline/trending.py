"""What is trending: the tables of a window added up, for everything or for one category."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from feature_repo.contracts.trend_record import TrendTable, most_votes
from serving.pipeline.catalogue import CATEGORY_SEPARATOR, Catalogue


class TrendingItem(NamedTuple):
    """`votes`: subjects that touched the item in the window (one counts twice when the window spans two periods)."""

    item_number: int
    item_id: str
    votes: int


class Trend(NamedTuple):
    """The most voted items first; ties by id. No item's votes are short by more than `error`, and an item that is not
    among them although it should be has at most `error` votes."""

    items: Sequence[TrendingItem]
    error: int


def trending_items(
    tables: Iterable[TrendTable], catalogue: Catalogue, *, limit: int, category: str | None = None, now_micros: int
) -> Trend:
    """The items with most votes in these tables (those of one window) that this version may show to anybody.

    category   a path such as "A > B": items in it or below it. None: all items
    limit      at most so many; fewer when fewer were touched
    """
    votes: dict[str, int] = {}
    error = 0
    for table in tables:
        error += table.lost
        for item_id, count in table.votes.items():
            votes[item_id] = votes.get(item_id, 0) + count
    found: list[TrendingItem] = []
    for item_id, count in most_votes(votes):
        if len(found) >= limit:
            break
        number = catalogue.numbers.get(item_id)
        if number is None or catalogue.refusal(number, now_micros) is not None:
            continue
        if category is None or is_within(catalogue.category(number), category):
            found.append(TrendingItem(number, item_id, count))
    return Trend(found, error)


def is_within(path: str | None, category: str) -> bool:
    """Whether a category path is `category` or lies below it."""
    return path is not None and (path == category or path.startswith(category + CATEGORY_SEPARATOR))
