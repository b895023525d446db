"""What a real shop's history tells, with real titles: bought together, buy again, a customer's seasons, cold items.

Counted from the tables that the night made (silver.events, gold.candidates, gold.item_neighbours), not from the file.
Everything is a pure function of a frame of purchase lines; `read_purchases` and `read_lists` are the only reading.

Purchase lines: a pandas frame, one row per purchase line of a person before `as_of`, with `user_id` (None for
anonymous), `basket` (the client's session: an invoice), `item_id`, `moment` (UTC), `quantity`, `price`.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.tables import table_path
from feature_repo.contracts.times import parse_as_of, start_of_day

if TYPE_CHECKING:
    import pandas as pd

LEAST_BASKETS = 40
"""A pair that was bought together less often is an anecdote."""

MOST_LINES = 60
"""Baskets with more lines are a trader's stock, not a choice; they say nothing about two items."""

COLD_DAYS = 30
LEAST_REPEATS = 3
SEASONS = ("winter", "winter", "spring", "spring", "spring", "summer",
           "summer", "summer", "autumn", "autumn", "autumn", "winter")  # fmt: skip
"""By month, January first."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two items in the same baskets. `lift`: how many times more often than if they were bought independently."""

    item_id: str
    other_id: str
    baskets: int
    share: float
    lift: float


@dataclass(frozen=True, slots=True)
class Repurchase:
    """An item that a customer buys again and again. `interval_days` is the median gap between days of purchase."""

    item_id: str
    times: int
    interval_days: float
    last: date
    due: date


@dataclass(frozen=True, slots=True)
class Season:
    """A season of a customer's year: lines, money, and the category of most lines (ties: alphabetical)."""

    name: str
    lines: int
    value: float
    top_category: str


@dataclass(frozen=True, slots=True)
class Customer:
    """The customer whose story is told."""

    user_id: str
    baskets: int
    months: list[tuple[str, float]]
    seasons: list[Season]
    again: list[Repurchase]


@dataclass(frozen=True, slots=True)
class ColdItem:
    """An item that was first sold shortly before as_of, how often since, and in how many users' lists it stands."""

    item_id: str
    first: date
    lines: int
    listed_for: int


def read_purchases(env: Environment, as_of: str) -> pd.DataFrame:
    """Purchase lines before `as_of`, bots left out, ordered by time, basket and item."""
    from deltalake import DeltaTable

    columns = ["user_id", "session_id", "item_id", "event_timestamp", "quantity", "price"]
    table = DeltaTable(table_path(env.lakehouse, "silver.events", tenant=env.tenant)).to_pyarrow_table(
        columns=columns,
        filters=[("event_date", "<", parse_as_of(as_of)), ("event_type", "=", "purchase"), ("is_bot", "=", False)],
    )
    frame = table.to_pandas().rename(columns={"session_id": "basket", "event_timestamp": "moment"})
    return frame[frame["item_id"].notna()].sort_values(["moment", "basket", "item_id"], ignore_index=True)


def read_lists(env: Environment, as_of: str) -> dict[int, int]:
    """Item number -> users in whose candidates of `as_of` it stands."""
    import numpy as np
    from deltalake import DeltaTable

    table = DeltaTable(table_path(env.lakehouse, "gold.candidates", tenant=env.tenant)).to_pyarrow_table(
        columns=["item_numbers"], filters=[("as_of", "=", parse_as_of(as_of))]
    )
    numbers, counts = np.unique(table["item_numbers"].combine_chunks().flatten().to_numpy(), return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def bought_together(lines: pd.DataFrame, *, count: int = 6, least_baskets: int = LEAST_BASKETS) -> list[Pair]:
    """The pairs with the largest lift among those in at least `least_baskets` baskets, each item in one pair only.

    share  of the baskets with `item_id` (the rarer of the two, ties: the smaller id), how many hold `other_id` too
    lift   baskets(a and b) x baskets / (baskets(a) x baskets(b)); ties by baskets, then by ids
    """
    import numpy as np
    from scipy import sparse

    pairs = lines[["basket", "item_id"]].dropna().drop_duplicates()
    sizes = pairs.groupby("basket")["item_id"].transform("size")
    pairs = pairs[(sizes > 1) & (sizes <= MOST_LINES)]
    if pairs.empty:
        return []
    basket_codes, baskets = pairs["basket"].factorize(sort=True)
    item_codes, items = pairs["item_id"].factorize(sort=True)
    matrix = sparse.csr_matrix((np.ones(len(pairs), np.int32), (basket_codes, item_codes)))
    single = np.asarray(matrix.sum(axis=0)).ravel()
    together = sparse.triu(matrix.T @ matrix, k=1).tocoo()
    kept = together.data >= least_baskets
    rows, columns, both = together.row[kept], together.col[kept], together.data[kept]
    lift = both * len(baskets) / (single[rows] * single[columns])
    found: list[Pair] = []
    used: set[int] = set()
    for index in np.lexsort((columns, rows, -both, -lift)):
        pair = (int(rows[index]), int(columns[index]))
        if used & set(pair):
            continue
        used |= set(pair)
        rarer, other = sorted(pair, key=lambda code: (single[code], code))
        shared = int(both[index])
        found.append(Pair(items[rarer], items[other], shared, shared / int(single[rarer]), float(lift[index])))
        if len(found) == count:
            break
    return found


def choose_customer(lines: pd.DataFrame) -> str | None:
    """The known customer with the most items bought on at least three days; ties by id; None without any."""
    known = lines[lines["user_id"].notna()]
    days = known.assign(day=known["moment"].dt.date).groupby(["user_id", "item_id"])["day"].nunique()
    repeated = days[days >= LEAST_REPEATS].groupby("user_id").size()
    if repeated.empty:
        return None
    return str(min(repeated.index, key=lambda user: (-repeated[user], user)))


def tell_customer(lines: pd.DataFrame, user_id: str, as_of: str, categories: Mapping[str, str]) -> Customer:
    """One customer's months, seasons and items to buy again. `categories`: item id -> category."""
    own = lines[lines["user_id"] == user_id]
    value = own["price"].fillna(0.0) * own["quantity"].fillna(1)
    months = value.groupby(own["moment"].dt.strftime("%Y-%m")).sum()
    first, last = own["moment"].min(), start_of_day(parse_as_of(as_of)) - timedelta(microseconds=1)
    return Customer(
        user_id=user_id,
        baskets=int(own["basket"].nunique()),
        months=[(name, float(months.get(name, 0.0))) for name in _months_between(first, last)],
        seasons=_seasons(own, value, categories),
        again=buy_again(own, as_of),
    )


def buy_again(own: pd.DataFrame, as_of: str, *, count: int = 6) -> list[Repurchase]:
    """What one customer bought on at least three days, those that fall due nearest to `as_of` first; ties by item id.

    An item falls due one median gap after its last purchase.
    """
    today = parse_as_of(as_of)
    found = []
    for item_id, moments in own.groupby("item_id")["moment"]:
        days = sorted({moment.date() for moment in moments})
        if len(days) < LEAST_REPEATS:
            continue
        interval = float(statistics.median((later - earlier).days for earlier, later in pairwise(days)))
        found.append(
            Repurchase(str(item_id), len(days), interval, days[-1], days[-1] + timedelta(days=round(interval)))
        )
    return sorted(found, key=lambda r: (abs((r.due - today).days), r.item_id))[:count]


def cold_items(
    lines: pd.DataFrame, as_of: str, listed: Mapping[str, int], *, count: int = 6
) -> tuple[int, int, list[ColdItem]]:
    """(items first sold in the last 30 days, how many of them stand in somebody's list, the most listed ones).

    `listed`: item id -> users in whose list it stands. Ties: more lines first, then by item id.
    """
    start = start_of_day(parse_as_of(as_of)) - timedelta(days=COLD_DAYS)
    by_item = lines.groupby("item_id")["moment"].agg(["min", "size"])
    new = by_item[by_item["min"] >= start]
    found = [
        ColdItem(str(item_id), row["min"].date(), int(row["size"]), listed.get(str(item_id), 0))
        for item_id, row in new.iterrows()
    ]
    found.sort(key=lambda cold: (-cold.listed_for, -cold.lines, cold.item_id))
    return len(found), sum(cold.listed_for > 0 for cold in found), found[:count]


def _seasons(own: pd.DataFrame, value: pd.Series, categories: Mapping[str, str]) -> list[Season]:
    names = own["moment"].dt.month.map(lambda month: SEASONS[month - 1])
    kinds = own["item_id"].map(lambda item: categories.get(item) or "no category")
    found = []
    for name in _in_order(names):
        chosen = names == name
        counts = kinds[chosen].value_counts()
        top = min(counts.index, key=lambda kind: (-counts[kind], kind))
        found.append(Season(name, int(chosen.sum()), float(value[chosen].sum()), str(top)))
    return found


def _in_order(names: Collection[str]) -> list[str]:
    present = set(names)
    return [name for name in ("winter", "spring", "summer", "autumn") if name in present]


def _months_between(first: datetime, last: datetime) -> list[str]:
    year, month = first.year, first.month
    found = []
    while (year, month) <= (last.year, last.month):
        found.append(f"{year:04d}-{month:02d}")
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)
    return found
