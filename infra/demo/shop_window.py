"""What the demo needs to know of a published shop: titles, categories, who to show and what to click.

Reads only what the night published: the bundle's files and the Delta tables, pinned to one version.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.publication import ITEMS_FILE, NEIGHBOURS_FILE, POPULAR_FILE, unpack_neighbours
from feature_repo.contracts.tables import table_path
from feature_repo.contracts.times import parse_as_of

CLICKS = 3
SLATE_SIZE = 10
MIN_HISTORY = 8
"""Users with fewer interactions make a thin story: nothing to read in their history."""


@dataclass(frozen=True, slots=True)
class ShopWindow:
    """One published version as a person would see it. `items` maps item id to its facts, `number` to its id."""

    version: str
    items: dict[str, dict[str, Any]]
    number_to_id: dict[int, str]
    popular_by_category: dict[str, list[str]]
    popular: list[str]
    neighbour_count: dict[str, int]

    def title(self, item_id: str) -> str:
        """The item's title, or its id when it has none."""
        return self.items.get(item_id, {}).get("title") or item_id

    def category(self, item_id: str) -> str:
        """The item's category path, or an empty text."""
        return self.items.get(item_id, {}).get("category") or ""

    def is_offered(self, item_id: str) -> bool:
        """Whether the item can stand in a slate: visible and in stock."""
        facts = self.items.get(item_id)
        return facts is not None and not facts.get("is_hidden") and facts.get("availability") != "OUT_OF_STOCK"


def open_shop_window(env: Environment, version: str) -> ShopWindow:
    """Read the bundle of `version`. Raises DataError when it is not on disk."""
    folder = Path(env.publications) / env.tenant / version
    if not folder.is_dir():
        raise DataError(f"version {version} has no bundle in {folder.parent}; see `nightjar versions`")
    columns = json.loads((folder / ITEMS_FILE).read_bytes())
    names = [name for name, values in columns.items() if isinstance(values, list)]
    items, number_to_id = {}, {}
    for row in zip(*(columns[name] for name in names), strict=True):
        facts = dict(zip(names, row, strict=True))
        items[facts["item_id"]] = facts
        number_to_id[facts["item_number"]] = facts["item_id"]
    popular = json.loads((folder / POPULAR_FILE).read_bytes())
    offsets, _, _ = unpack_neighbours((folder / NEIGHBOURS_FILE).read_bytes())
    counts = {
        item_id: offsets[number + 1] - offsets[number]
        for number, item_id in number_to_id.items()
        if number + 1 < len(offsets)
    }

    def ids(rows: list[list[Any]]) -> list[str]:
        return [number_to_id[number] for number, _ in rows if number in number_to_id]

    return ShopWindow(
        version=version,
        items=items,
        number_to_id=number_to_id,
        popular_by_category={name: ids(rows) for name, rows in popular["by_category"].items()},
        popular=ids(popular["all"]),
        neighbour_count=counts,
    )


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays in the demo: a user, somebody who does nothing, and what the user clicks."""

    user_id: str
    control_user_id: str
    history: list[dict[str, Any]]
    category: str
    clicks: list[str]


def choose_cast(env: Environment, window: ShopWindow, as_of: str, slates: Callable[[str], list[str]]) -> Cast:
    """Two users with a history worth reading, and three items of a category that is foreign to the first one's slate.

    Deterministic: users are tried by descending number of distinct items (at most 60), ties by id.
    `slates` gives the items of a personal slate, none for who has no such.
    Raises DataError when no user has at least MIN_HISTORY interactions.
    """
    histories = user_histories(env, as_of)
    eligible = sorted(
        (u for u, rows in histories.items() if MIN_HISTORY <= len({r["item_id"] for r in rows}) <= 60),
        key=lambda u: (-len({r["item_id"] for r in histories[u]}), u),
    )
    for position, user_id in enumerate(eligible):
        slate = slates(user_id)
        seen = {r["item_id"] for r in histories[user_id]} | set(slate)
        choice = _foreign_category(window, seen, slate)
        if len(slate) == SLATE_SIZE and choice and position + 1 < len(eligible):
            category, clicks = choice
            return Cast(user_id, eligible[position + 1], histories[user_id], category, clicks)
    raise DataError(f"no user with {MIN_HISTORY} to 60 items and a slate of {SLATE_SIZE} to show; load more events")


def user_histories(env: Environment, as_of: str) -> dict[str, list[dict[str, Any]]]:
    """Interactions of every known user before `as_of`, newest first; ties by event id."""
    from deltalake import DeltaTable

    columns = ["user_id", "item_id", "event_type", "event_timestamp", "event_id"]
    table = DeltaTable(table_path(env.lakehouse, "silver.interactions", tenant=env.tenant))
    rows = table.to_pyarrow_table(columns=columns, filters=[("event_date", "<", parse_as_of(as_of))]).to_pylist()
    histories: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["event_timestamp"], r["event_id"]), reverse=True):
        if row["user_id"]:
            histories.setdefault(row["user_id"], []).append(row)
    return histories


def _foreign_category(window: ShopWindow, seen: set[str], slate: list[str]) -> tuple[str, list[str]] | None:
    """The most popular deepest category without an item in the slate, and its three most popular unseen items."""
    in_slate = {window.category(item_id) for item_id in slate}
    best: tuple[int, str, list[str]] | None = None
    for category, ids in sorted(window.popular_by_category.items()):
        if category in in_slate or any(c.startswith(category + " > ") for c in window.popular_by_category):
            continue
        clicks = [
            i for i in ids if i not in seen and window.is_offered(i) and window.neighbour_count.get(i, 0) >= SLATE_SIZE
        ][:CLICKS]
        if len(clicks) == CLICKS and (best is None or len(ids) > best[0]):
            best = (len(ids), category, clicks)
    return (best[1], best[2]) if best else None
