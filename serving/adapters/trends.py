"""Trend tables as they lie in Redis `online`, for the pipeline to add up (`pipeline.trending`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import redis.asyncio
from redis.exceptions import RedisError

from feature_repo.contracts.errors import ContractError, DependencyError
from feature_repo.contracts.keys import EVENT_PARTITIONS, region_trend_key, trend_key, trend_regions_key
from feature_repo.contracts.trend_record import TrendTable, trend_window, unpack_regions, unpack_trend
from serving.observability import REFUSED_RECORDS

DAMAGED_TREND = "trend_damaged"

T = TypeVar("T")


class WindowTables(NamedTuple):
    """The tables that cover a window; those nobody wrote are left out. `regions`: those that have tables of their own
    in it, where it is of all regions."""

    tables: list[TrendTable]
    regions: frozenset[str] = frozenset()


class TrendStore(Protocol):
    """Raises DependencyError when the store does not answer in time."""

    async def read(self, window: str, *, now_micros: int, region: str = "") -> WindowTables:
        """Those of the window ("5m", "1h", "1d") at that instant, of one region or of all ("") together.

        At most 4 x 24 of them with 2,000 items each (500 of a region): for a process to read now and then, not for
        every request, and of a region that has tables.
        """


class RedisTrendStore:
    """Redis role `online`, over a client that the caller owns."""

    def __init__(self, client: redis.asyncio.Redis, *, tenant: str, timeout_seconds: float) -> None:
        self._redis = client
        self._tenant = tenant
        self._timeout = timeout_seconds

    async def read(self, window: str, *, now_micros: int, region: str = "") -> WindowTables:
        keys = _keys(window, now_micros, self._tenant, region)
        try:
            async with asyncio.timeout(self._timeout):
                records: Sequence[bytes | None] = await self._redis.mget(keys)
        except (RedisError, OSError, TimeoutError) as error:
            raise DependencyError(f"the online store does not answer: {type(error).__name__}") from error
        return _tables(records, region)


class MemoryTrendStore:
    """The twin: a dict that has the layout of Redis."""

    def __init__(self, strings: Mapping[str, bytes], *, tenant: str) -> None:
        self._strings = strings
        self._tenant = tenant

    async def read(self, window: str, *, now_micros: int, region: str = "") -> WindowTables:
        keys = _keys(window, now_micros, self._tenant, region)
        return _tables([self._strings.get(key) for key in keys], region)


def _keys(window: str, now_micros: int, tenant: str, region: str) -> list[str]:
    """Those of tables; of all regions together those of their lists behind them."""
    found = trend_window(window)
    places = [(bucket, partition) for bucket in found.buckets_at(now_micros) for partition in range(EVENT_PARTITIONS)]
    if region:
        return [region_trend_key(found.number, *place, region, tenant) for place in places]
    tables = [trend_key(found.number, *place, tenant) for place in places]
    return [*tables, *(trend_regions_key(found.number, *place, tenant) for place in places)]


def _tables(records: Sequence[bytes | None], region: str) -> WindowTables:
    end = len(records) if region else len(records) // 2
    tables = _readable(records[:end], unpack_trend)
    lists = _readable(records[end:], unpack_regions)
    return WindowTables(tables, frozenset(name for names in lists for name in names))


def _readable(records: Sequence[bytes | None], unpack: Callable[[bytes], T]) -> list[T]:
    found = []
    for record in records:
        if record is None:
            continue
        try:
            found.append(unpack(record))
        except ContractError:
            REFUSED_RECORDS.labels(DAMAGED_TREND).inc()
    return found
