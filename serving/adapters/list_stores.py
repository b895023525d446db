"""The stores that only some lists need, behind one client that connects when the first of them is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from feature_repo.contracts.environment import Environment
from serving.adapters.decision_log import DecisionLog, MemoryDecisionLog
from serving.adapters.decision_reader import DecisionReader, LoggedDecisions, MemoryDecisions
from serving.adapters.feature_store import FeatureStore, MemoryFeatureStore, RedisFeatureStore
from serving.adapters.online import MemoryOnlineStore, OnlineStore
from serving.adapters.purchases import MemoryPurchaseStore, PurchaseStore, RedisPurchaseStore
from serving.adapters.ranker_features import RankerFeatures
from serving.adapters.trend_board import TrendBoard
from serving.adapters.trends import MemoryTrendStore, RedisTrendStore, TrendStore
from serving.settings import ServingSettings

MOST_CONNECTIONS = 16


class ListStores(NamedTuple):
    """`close` gives the connections back."""

    board: TrendBoard
    purchases: PurchaseStore
    features: FeatureStore
    ranker_features: RankerFeatures
    decided: DecisionReader
    close: Callable[[], Awaitable[None]]


def open_list_stores(
    environment: Environment,
    settings: ServingSettings,
    store: OnlineStore,
    decisions: DecisionLog,
    *,
    wall_micros: Callable[[], int],
    timer: Callable[[], int],
) -> ListStores:
    """On Redis role `online` and the lakehouse; in memory where `store` or `decisions` is."""
    tenant = environment.tenant
    trends: TrendStore
    purchases: PurchaseStore
    features: FeatureStore
    in_request: FeatureStore
    decided: DecisionReader
    if isinstance(store, MemoryOnlineStore):
        trends = MemoryTrendStore(store.strings, tenant=tenant)
        purchases = MemoryPurchaseStore(store.strings, tenant=tenant)
        features = in_request = MemoryFeatureStore(store.hashes)
        close = _nothing_to_close
    else:
        timeout = settings.online_timeout_ms / 1000
        client = redis.asyncio.Redis(
            connection_pool=redis.asyncio.BlockingConnectionPool.from_url(
                environment.redis_online_url,
                max_connections=MOST_CONNECTIONS,
                timeout=timeout,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                # An idle connection may have been closed by a restart of the server: one more try, on a new one.
                retry=Retry(NoBackoff(), 1),
            )
        )
        trends = RedisTrendStore(client, tenant=tenant, timeout_seconds=2 * timeout)
        purchases = RedisPurchaseStore(client, tenant=tenant, timeout_seconds=2 * timeout)
        features = over_redis = RedisFeatureStore(environment.redis_online_url, timeout_seconds=2 * timeout)
        in_request = RedisFeatureStore(
            environment.redis_online_url,
            timeout_seconds=timeout,
            keep_bytes=settings.kept_features_bytes,
            tenant=tenant,
        )

        async def close() -> None:
            await over_redis.close()
            await ranker_features.close()
            await client.aclose()
            await client.connection_pool.disconnect()

    ranker_features = RankerFeatures(in_request)
    if isinstance(decisions, MemoryDecisionLog):
        decided = MemoryDecisions(decisions.payloads)
    else:
        decided = LoggedDecisions(
            environment.decisions,
            lakehouse=environment.lakehouse,
            tenant=tenant,
            storage_options=environment.storage_options,
        )
    board = TrendBoard(
        trends,
        refresh_seconds=settings.trend_refresh_ms / 1000,
        wall_micros=wall_micros,
        timer=lambda: timer() / 1_000_000_000,
    )
    return ListStores(board, purchases, features, ranker_features, decided, close)


async def _nothing_to_close() -> None:
    """Nothing to give back."""
