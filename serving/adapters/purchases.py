"""What users buy, as the night published it; read for the shelf of things to buy again only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import redis.asyncio
from redis.exceptions import RedisError

from feature_repo.contracts.errors import ContractError, DependencyError
from feature_repo.contracts.keys import purchases_key
from feature_repo.contracts.purchase_record import Purchase, unpack_purchases
from serving.observability import REFUSED_RECORDS

DAMAGED_PURCHASES = "purchases_damaged"


class PurchaseStore(Protocol):
    """Raises DependencyError when the store does not answer in time."""

    async def read(self, version: str, user_id: str) -> bytes | None:
        """The packed purchases of one user in one version; None when that version knows of none."""


class RedisPurchaseStore:
    """Redis role `online`, over a client that the caller owns."""

    def __init__(self, client: redis.asyncio.Redis, *, tenant: str, timeout_seconds: float) -> None:
        self._redis = client
        self._tenant = tenant
        self._timeout = timeout_seconds

    async def read(self, version: str, user_id: str) -> bytes | None:
        try:
            async with asyncio.timeout(self._timeout):
                record: bytes | None = await self._redis.get(purchases_key(version, user_id, self._tenant))
        except (RedisError, OSError, TimeoutError) as error:
            raise DependencyError(f"the online store does not answer: {type(error).__name__}") from error
        return record


class MemoryPurchaseStore:
    """The twin: a dict that has the layout of Redis."""

    def __init__(self, strings: Mapping[str, bytes], *, tenant: str) -> None:
        self._strings = strings
        self._tenant = tenant

    async def read(self, version: str, user_id: str) -> bytes | None:
        return self._strings.get(purchases_key(version, user_id, self._tenant))


def read_purchases(record: bytes | None, version: str, degraded: list[str]) -> list[Purchase]:
    """The rows; one that cannot be used, or is of another version, is counted, named in `degraded`, and is none."""
    if record is None:
        return []
    try:
        return unpack_purchases(record, expected_version=version)
    except ContractError:
        REFUSED_RECORDS.labels(DAMAGED_PURCHASES).inc()
        degraded.append(DAMAGED_PURCHASES)
        return []
