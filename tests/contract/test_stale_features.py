"""A feature that is too old: not used, said, counted; and named by `nightjar status`. On a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import redis

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.feature_table import FEATURE_VIEWS
from feature_repo.contracts.keys import candidates_key, feature_times_key, pointer_key
from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED, pack_candidates
from infra.cli.stack_commands import online_features
from serving.adapters.feast_online import entity_key
from serving.adapters.memory_event_log import MemoryEventLog
from serving.adapters.online import SEGMENT_FIELD, SEGMENT_TIME_FIELD, RedisOnlineStore
from serving.main import create_app
from serving.observability import DEGRADED, STALE_FEATURES
from serving.settings import ServingSettings
from tests.serving_builders import TENANT, Shop

MARCH_8 = 1_709_856_000
"""The as_of of the published version, in seconds."""
DAY = 86_400


def timestamp_message(seconds: int) -> bytes:
    """A google.protobuf.Timestamp by hand: field 1, varint."""
    return b"\x08" + bytes([(seconds >> shift & 0x7F) | 0x80 for shift in (0, 7, 14, 21)] + [seconds >> 28])


def remember(client: redis.Redis, user_id: str, *, age_seconds: int) -> None:
    client.hset(
        entity_key(["user_id"], [user_id]),
        mapping={SEGMENT_FIELD: b"\x12\x04Toys", SEGMENT_TIME_FIELD: timestamp_message(MARCH_8 - age_seconds)},
    )


@pytest.fixture
async def api(tmp_path: Path, redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    shop = Shop(
        {
            f"i{number}": {"title": f"Thing {number}", "category": "Toys" if number < 2 else "Home"}
            for number in range(4)
        },
        popular=[("i2", 2.0), ("i3", 1.0)],
        by_category={"Toys": [("i0", 2.0), ("i1", 1.0)]},
    )
    version = shop.write(tmp_path / "publications")
    with redis.Redis.from_url(redis_url) as client:
        client.set(pointer_key(TENANT), version)
    store = RedisOnlineStore(redis_url, tenant=TENANT, timeout_seconds=1.0)
    environment = Environment.from_mapping({"NIGHTJAR_HOME": str(tmp_path)})
    app = create_app(environment, ServingSettings(), store=store, log=MemoryEventLog(tenant=TENANT))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://nightjar") as client:
            yield client


def counted() -> tuple[float, float]:
    return (
        STALE_FEATURES.labels("user_features")._value.get(),
        DEGRADED.labels("feature_stale")._value.get(),
    )


async def test_a_stale_feature_is_absent_said_and_counted(api: httpx.AsyncClient, redis_url: str) -> None:
    before = counted()
    with redis.Redis.from_url(redis_url) as client:
        remember(client, "fresh", age_seconds=3 * DAY)
        remember(client, "stale", age_seconds=3 * DAY + 1)
    answers = {}
    for user_id in ("fresh", "stale"):
        answer = await api.post("/v1/recommendations", json={"user_id": user_id, "num_results": 2})
        assert answer.status_code == 200
        answers[user_id] = answer.json()
    assert answers["fresh"]["fallback_level"] == "segment"
    assert answers["fresh"]["degraded"] is False
    assert answers["stale"]["fallback_level"] == "popular"
    assert answers["stale"]["degraded_reasons"] == ["feature_stale"]
    await asyncio.sleep(0)  # counted together with what else this turn of the loop counts
    assert counted() == (before[0] + 1, before[1] + 1)


async def test_who_said_no_is_not_told_of_old_features(api: httpx.AsyncClient, redis_url: str) -> None:
    """Feast never removes what a person left behind: it grows old, and nothing is missing."""
    with redis.Redis.from_url(redis_url) as client:
        remember(client, "denied", age_seconds=9 * DAY)
        pointer = client.get(pointer_key(TENANT))
        assert isinstance(pointer, bytes)
        version = pointer.decode()
        client.set(candidates_key(version, "denied"), pack_candidates(version, [], flags=FLAG_PERSONALIZE_DENIED))
    answer = (await api.post("/v1/recommendations", json={"user_id": "denied", "num_results": 2})).json()
    assert (answer["degraded"], answer["fallback_reason"]) == (False, "consent")


def test_status_names_a_stale_view_with_age_and_remedy(redis_url: str, environment: Environment) -> None:
    env = environment._replace(redis_online_url=redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.hset(
            feature_times_key(env.tenant),
            mapping={
                "user_features": str((MARCH_8 - 3 * DAY) * 1_000_000),  # as old as it may be
                "item_features": str((MARCH_8 - 5 * DAY) * 1_000_000),
            },
        )
    found = {view["view"]: view for view in online_features(env, "2024-03-08-00c0ffee")}
    assert list(found) == list(FEATURE_VIEWS)
    assert found["user_features"] == {
        "view": "user_features",
        "as_of": "2024-03-05T00:00:00Z",
        "days_behind": 3.0,
        "is_stale": False,
        "problem": None,
    }
    stale = found["item_features"]["problem"]
    assert found["item_features"]["is_stale"]
    assert (
        "of 2024-03-03, 5 days behind the served version (3 are allowed); clear the task materialize_features" in stale
    )
    assert "nightjar run nightly" in stale
    never = found["user_category_features"]
    assert (never["as_of"], never["is_stale"]) == (None, True)
    assert "never brought online" in never["problem"]


def test_status_is_silent_where_nothing_is_served_or_answers(redis_url: str, environment: Environment) -> None:
    assert online_features(environment._replace(redis_online_url=redis_url), None) == []
    assert online_features(environment, "2024-03-08-00c0ffee") == []
