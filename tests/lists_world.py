"""What the tests of lists, pages and profiles share: a small lopsided shop behind the app on a real Redis.

Every expected order is worked out by hand from the numbers below.
"""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import redis

from feature_repo.contracts.decisions import read_decision
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import (
    candidates_key,
    pointer_key,
    purchases_key,
    region_trend_key,
    session_key,
    trend_key,
    trend_regions_key,
)
from feature_repo.contracts.packing import (
    PackedCandidate,
    SessionEvent,
    SessionState,
    Source,
    pack_candidates,
    pack_session,
    session_hash,
)
from feature_repo.contracts.publication import PURCHASES_PART
from feature_repo.contracts.purchase_record import Purchase, pack_purchases
from feature_repo.contracts.trend_record import TrendTable, pack_regions, pack_trend
from serving.adapters.decision_log import MemoryDecisionLog
from serving.adapters.memory_event_log import MemoryEventLog
from serving.main import create_app
from serving.settings import ServingSettings
from tests.serving_builders import Shop

SECOND = 1_000_000
NOW = 1_709_902_800 * SECOND  # 2024-03-08T13:00:00Z
DAY = 86_400
TEA, GARDEN = "Home > Tea", "Garden"

SHOP = Shop(
    {
        "mug": {"title": "Blue Mug", "category": TEA, "created_at": "2024-03-07T00:00:00Z"},
        "pot": {"title": "Tea Pot", "category": TEA, "created_at": "2024-03-01T00:00:00Z"},
        "cup": {"title": "Tea Cup", "category": TEA, "created_at": "2024-03-03T00:00:00Z"},
        "tin": {"title": "Tea Tin", "category": TEA, "created_at": "2023-06-01T00:00:00Z"},
        "hoe": {"title": "Hoe", "category": GARDEN, "created_at": "2024-03-06T00:00:00Z"},
        "pan": {"title": "Pan", "category": "Home"},
        "old": {"title": "Old Vase", "category": GARDEN, "is_hidden": True, "created_at": "2024-03-07T12:00:00Z"},
        "out": {"title": "Bench", "category": GARDEN, "availability": "OUT_OF_STOCK"},
    },
    neighbours={"mug": [("cup", 0.9), ("tin", 0.3)], "hoe": [("pan", 0.8)]},
    together={"pot": [("cup", 0.5), ("old", 0.4), ("mug", 0.25)], "tin": [("mug", 0.3), ("cup", 0.2)]},
    popular=[("hoe", 9.0), ("pan", 6.0), ("cup", 3.0)],
    by_category={TEA: [("cup", 3.0), ("tin", 1.0)], GARDEN: [("hoe", 9.0)], "Home": [("pan", 6.0), ("cup", 3.0)]},
    by_region={"DE": [("cup", 2.0), ("hoe", 1.0)]},
    static=[("hoe", 9.0), ("pan", 6.0), ("cup", 3.0), ("mug", 0.0), ("pot", 0.0)],
    parts={PURCHASES_PART: {"user_count": 1, "checksum": "0", "params": {"due_power": 0.5}}},
    first_number=3,
)
N = SHOP.numbers


class Installation:
    """The app on a real Redis: user u1 has a list of the night, purchases and what a test lets them do."""

    def __init__(self, environment: Environment, redis_url: str) -> None:
        self.environment = environment._replace(redis_online_url=redis_url)
        self.redis = redis.Redis.from_url(redis_url)
        self.decisions = MemoryDecisionLog()
        numbers = itertools.count(1)
        self.now = NOW
        self.app = create_app(
            self.environment,
            ServingSettings(online_timeout_ms=2000),
            log=MemoryEventLog(tenant="default"),
            decisions=self.decisions,
            wall_micros=lambda: self.now,
            new_id=lambda: f"id{next(numbers)}",
        )
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url="http://api"
        )
        self.version = self.publish(SHOP)

    def publish(self, shop: Shop) -> str:
        version = shop.write(self.environment.publications)
        rows = [(N["tin"], 4.0), (N["pan"], 2.0), (N["mug"], 1.0)]
        listed = [PackedCandidate(number, score, Source.ALS, N["pot"]) for number, score in rows]
        self.redis.set(candidates_key(version, "u1"), pack_candidates(version, listed))
        self.redis.set(pointer_key(), version)
        return version

    def buy(self, *purchases: Purchase) -> None:
        self.redis.set(purchases_key(self.version, "u1"), pack_purchases(self.version, purchases))

    def remember(self, subject: str = "u:u1", **state: Any) -> None:
        self.redis.set(session_key(subject), pack_session(SessionState(**state)))

    def vote(
        self, window: int, bucket: int, votes: dict[str, int], partition: int = 0, *, region: str | None = None
    ) -> None:
        """`region`: whose votes they are, the only one in that bucket and partition; None: of all together."""
        table = TrendTable(window, bucket, votes, sum(votes.values()))
        if region is None:
            self.redis.set(trend_key(window, bucket, partition), pack_trend(table))
        else:
            self.redis.set(region_trend_key(window, bucket, partition, region), pack_trend(table))
            self.redis.set(trend_regions_key(window, bucket, partition), pack_regions([region]))

    async def post(self, path: str, **question: Any) -> dict[str, Any]:
        response = await self.client.post(path, json=question)
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def get(self, path: str) -> dict[str, Any]:
        response = await self.client.get(path)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def last_decision(self) -> dict[str, Any]:
        return read_decision(self.decisions.payloads[-1])

    async def close(self) -> None:
        await self.client.aclose()
        await self.app.state.services.store.close()
        self.redis.close()


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def words(answer: dict[str, Any]) -> list[str]:
    return [item["reasons"][0]["text"] for item in answer["items"]]


def event(item: str, seconds_ago: int, kind: str = "view_item", session: str = "s1") -> SessionEvent:
    return SessionEvent(NOW - seconds_ago * SECOND, kind, session_hash(session), item)
