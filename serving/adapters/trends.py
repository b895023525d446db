"""Trend tables as they lie in Redis `online`, for the pipeline to add up (`pipeline.trending`)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import redis.asyncio
from redis.exceptions import RedisError

from feature_repo.contracts.errors import ContractError, DependencyError
from feature_repo.contracts.keys import EVENT_PARTITIONS, trend_key
from feature_repo.contracts.trend_record import TrendTable, trend_window, unpack_trend
from serving.observability import REFUSED_RECORDS

DAMAGED_TREND = "trend_damaged"


class TrendStore(Protocol):
    """Raises DependencyError when the store does not answer in time."""

    async def read(self, window: str, *, now_micros: int) -> list[TrendTable]:
        """The tables that cover the window ("5m", "1h", "1d") at that instant; those nobody wrote are left out.

        At most 4 x 24 of them with 2,000 items each: for a process to read now and then, not for every request.
        """


class RedisTrendStore:
    """Redis role `online`, over a client that the caller owns."""

    def __init__(self, client: redis.asyncio.Redis, *, tenant: str, timeout_seconds: float) -> None:
        self._redis = client
        self._tenant = tenant
        self._timeout = timeout_seconds

    async def read(self, window: str, *, now_micros: int) -> list[TrendTable]:
        keys = _keys(window, now_micros, self._tenant)
        try:
            async with asyncio.timeout(self._timeout):
                records: Sequence[bytes | None] = await self._redis.mget(keys)
        except (RedisError, OSError, TimeoutError) as error:
            raise DependencyError(f"the online store does not answer: {type(error).__name__}") from error
        return _tables(records)


class MemoryTrendStore:
    """The twin: a dict that has the layout of Redis."""

    def __init__(self, strings: Mapping[str, bytes], *, tenant: str) -> None:
        self._strings = strings
        self._tenant = tenant

    async def read(self, window: str, *, now_micros: int) -> list[TrendTable]:
        return _tables([self._strings.get(key) for key in _keys(window, now_micros, self._tenant)])


def _keys(window: str, now_micros: int, tenant: str) -> list[str]:
    found = trend_window(window)
    return [
        trend_key(found.number, bucket, partition, tenant)
        for bucket in found.buckets_at(now_micros)
        for partition in range(EVENT_PARTITIONS)
    ]


def _tables(records: Sequence[bytes | None]) -> list[TrendTable]:
    tables = []
    for record in records:
        if record is None:
            continue
        try:
            tables.append(unpack_trend(record))
        except ContractError:
            REFUSED_RECORDS.labels(DAMAGED_TREND).inc()
    return tables
