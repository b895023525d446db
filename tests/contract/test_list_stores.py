"""The stores that only some lists need: one suite on the real Redis and on the twins in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis
import redis.asyncio

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import purchases_key
from feature_repo.contracts.purchase_record import Purchase, pack_purchases
from feature_repo.contracts.trend_record import TrendTable
from serving.adapters.purchases import (
    DAMAGED_PURCHASES,
    MemoryPurchaseStore,
    PurchaseStore,
    RedisPurchaseStore,
    read_purchases,
)
from serving.adapters.trend_board import TRENDS_DOWN, TrendBoard
from serving.adapters.trends import WindowTables
from serving.pipeline.trending import Votes

TENANT = "shop"
V1, V2 = "2024-03-08-00000001", "2024-03-09-00000002"
ROWS = [Purchase(7, 2, 1_709_000_000, 3.5, 1.5)]

Put = Callable[[str, bytes], Any]


@pytest.fixture(params=["redis", "memory"])
async def purchases(request: pytest.FixtureRequest) -> AsyncIterator[tuple[PurchaseStore, Put]]:
    """The store, and how a test writes a string into it."""
    if request.param == "memory":
        strings: dict[str, bytes] = {}
        yield MemoryPurchaseStore(strings, tenant=TENANT), strings.__setitem__
        return
    url = request.getfixturevalue("redis_url")
    asking = redis.asyncio.Redis.from_url(url)
    with redis.Redis.from_url(url) as client:
        yield RedisPurchaseStore(asking, tenant=TENANT, timeout_seconds=5), client.set
    await asking.aclose()


@pytest.mark.redis
async def test_the_purchases_of_one_user_in_one_version(purchases: tuple[PurchaseStore, Put]) -> None:
    store, put = purchases
    put(purchases_key(V1, "ü 1", TENANT), pack_purchases(V1, ROWS))
    put(purchases_key(V1, "ü 1", "other"), b"another tenant's")
    degraded: list[str] = []
    assert read_purchases(await store.read(V1, "ü 1"), V1, degraded) == ROWS
    assert await store.read(V2, "ü 1") is None
    assert await store.read(V1, "ü") is None
    assert read_purchases(None, V1, degraded) == []
    assert degraded == []
    assert read_purchases(pack_purchases(V2, ROWS), V1, degraded) == []
    assert degraded == [DAMAGED_PURCHASES]


async def test_a_store_that_is_down_says_so() -> None:
    client = redis.asyncio.Redis.from_url("redis://127.0.0.1:1/0")
    with pytest.raises(DependencyError, match="online store does not answer"):
        await RedisPurchaseStore(client, tenant=TENANT, timeout_seconds=0.2).read(V1, "u1")
    await client.aclose()


class Counted:
    """A trend store that counts its reads; `is_down` makes them raise."""

    def __init__(self) -> None:
        self.reads, self.is_down = 0, False
        self.regions: frozenset[str] = frozenset()
        self.places: list[str] = []
        self.unreadable: set[str] = set()

    async def read(self, window: str, *, now_micros: int, region: str = "") -> WindowTables:
        self.reads += 1
        self.places.append(window + region)
        if self.is_down or region in self.unreadable:
            raise DependencyError("gone")
        return WindowTables([TrendTable(1, now_micros, {window + region: self.reads}, 1, 2)], self.regions)


async def test_the_board_reads_each_window_once_in_a_while_and_outlives_the_store() -> None:
    store, clock = Counted(), [100.0]
    board = TrendBoard(store, refresh_seconds=2, wall_micros=lambda: 5, timer=lambda: clock[0])
    assert await board.votes("1h") == (Votes([("1h", 1)], 2), None)
    clock[0] += 1.5
    assert await board.votes("1h") == (Votes([("1h", 1)], 2), None)
    assert (await board.votes("1d"))[0].ranked == [("1d", 2)]
    clock[0] += 0.5
    assert (await board.votes("1h"))[0].ranked == [("1h", 3)]
    store.is_down = True
    clock[0] += 299
    assert await board.votes("1h") == (Votes([("1h", 3)], 2), TRENDS_DOWN)
    clock[0] += 2
    assert await board.votes("1h") == (Votes((), 0), TRENDS_DOWN)
    store.is_down = False
    assert (await board.votes("1h"))[1] is None
    assert store.reads == 6


async def test_a_window_that_is_asked_for_is_read_again_before_anybody_has_to_wait() -> None:
    store, clock = Counted(), [100.0]
    board = TrendBoard(store, refresh_seconds=2, wall_micros=lambda: 5, timer=lambda: clock[0])
    first = (await board.votes("1h"))[0]
    clock[0] += 1.5
    assert board.fresh("1h") is first
    await asyncio.sleep(0.05)
    assert store.reads == 1  # a quarter of its time is left
    clock[0] += 0.2
    assert board.fresh("1h") is first
    assert board.fresh("1h") is first
    while (second := board.fresh("1h")) is first:
        await asyncio.sleep(0.001)
    assert second is not None
    assert (second.ranked, store.reads) == ([("1h", 2)], 2)


async def test_a_store_that_is_down_is_asked_once_before_a_copy_is_old() -> None:
    store, clock = Counted(), [100.0]
    board = TrendBoard(store, refresh_seconds=2, wall_micros=lambda: 5, timer=lambda: clock[0])
    first = (await board.votes("1h"))[0]
    store.is_down = True
    clock[0] += 1.7
    for _ in range(5):
        assert board.fresh("1h") is first
        await asyncio.sleep(0.01)
    assert store.reads == 2
    clock[0] += 0.3
    assert board.fresh("1h") is None
    assert await board.votes("1h") == (first, TRENDS_DOWN)


async def test_the_votes_of_a_region_come_with_those_of_all_and_only_where_there_are_any() -> None:
    store, clock = Counted(), [100.0]
    store.regions = frozenset({"DE", "FR"})
    board = TrendBoard(store, refresh_seconds=2, wall_micros=lambda: 5, timer=lambda: clock[0])
    assert board.fresh("1h", "DE") is None
    found, stale = await board.votes("1h", "DE")
    assert (found.ranked, found.regions, stale) == ([("1h", 1)], {"DE", "FR"}, None)
    assert found.regional is not None
    assert found.regional.ranked == [("1hDE", 2)]
    assert board.fresh("1h", "DE") is found  # the same object: what is worked out of it is kept
    for made_up in range(50):
        assert (await board.votes("1h", f"made up {made_up}"))[0].regional is None
    assert board.fresh("1h", "NL") is board.fresh("1h")
    assert store.places == ["1h", "1hDE"]
    store.regions = frozenset({"FR"})
    clock[0] += 2
    again, _ = await board.votes("1h", "FR")
    assert (again.ranked, again.regional and again.regional.ranked) == ([("1h", 3)], [("1hFR", 4)])
    assert (await board.votes("1h", "DE"))[0].regional is None  # all its votes are over
    assert {place for place in board._copies if place[1]} == {("1h", "FR")}


async def test_a_region_that_cannot_be_read_is_answered_by_its_last_copy_then_by_all() -> None:
    store, clock = Counted(), [100.0]
    store.regions = frozenset({"DE", "FR"})
    board = TrendBoard(store, refresh_seconds=2, wall_micros=lambda: 5, timer=lambda: clock[0])
    await board.votes("1h", "DE")
    store.unreadable = {"DE"}
    clock[0] += 3
    half, stale = await board.votes("1h", "DE")
    assert (half.ranked, half.regional and half.regional.ranked, stale) == ([("1h", 3)], [("1hDE", 2)], TRENDS_DOWN)
    store.is_down = True
    clock[0] += 3
    held, stale = await board.votes("1h", "DE")
    assert (held.regional and held.regional.ranked, stale) == ([("1hDE", 2)], TRENDS_DOWN)
    never, stale = await board.votes("1h", "FR")
    assert (never.ranked, never.regional and never.regional.ranked, stale) == ([("1h", 3)], (), TRENDS_DOWN)
    clock[0] += 300
    assert await board.votes("1h", "DE") == (Votes((), 0), TRENDS_DOWN)


async def test_a_region_for_which_nobody_asks_any_more_is_left() -> None:
    store, clock = Counted(), [100.0]
    store.regions = frozenset({"DE"})
    board = TrendBoard(store, refresh_seconds=2, wall_micros=lambda: 5, timer=lambda: clock[0])
    await board.votes("1h", "DE")
    clock[0] += 250
    await board.votes("1h")
    assert ("1h", "DE") in board._copies
    clock[0] += 51
    await board.votes("1h")
    assert list(board._copies) == [("1h", "")]
    assert board._joined == {}
