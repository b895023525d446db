"""Before the first night: a shop that has put items and has no version yet, over a real Redis, API and consumer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import redis

from feature_repo.contracts.decisions import read_decision
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import change_stream_key, pointer_key
from feature_repo.contracts.times import to_micros
from serving.adapters.decision_log import MemoryDecisionLog
from serving.api import list_schemas, schemas
from serving.main import create_app
from serving.settings import ServingSettings
from serving.speed.change_records import compact_changes
from serving.speed.consumer import Consumer
from tests.serving_builders import TENANT, Shop

NOON = datetime.now(UTC).replace(microsecond=0)
"""Trend tables expire by Redis's own clock, so this is no day of the past."""


def days_ago(days: int) -> str:
    return (NOON - timedelta(days=days)).isoformat()


ITEMS = [
    # the newest comes first; without created_at an item is as old as what was said of it
    {
        "item_id": "hoe",
        "title": "A hoe",
        "category": "Garden > Tools",
        "price": 9,
        "created_at": days_ago(7),
    },
    {
        "item_id": "pan",
        "title": "A pan",
        "category": "Home > Kitchen",
        "price": 5,
        "created_at": days_ago(3),
    },
    {"item_id": "cup", "title": "A cup", "category": "Home > Tea", "price": 2, "created_at": days_ago(5)},
    {"item_id": "pot", "title": "A pot", "category": "Home > Tea", "price": 4},
    {"item_id": "tin", "title": "A tin", "category": "Home > Tea", "price": 1, "created_at": days_ago(1)},
]
NEWEST = ["pot", "tin", "pan", "cup", "hoe"]


class NewShop:
    """API, event log and consumer over one Redis, and no version. `now` is the API's clock."""

    def __init__(self, environment: Environment, url: str) -> None:
        self.place = environment._replace(redis_online_url=url, redis_log_url=url)
        self.redis = redis.Redis.from_url(url)
        self.now = NOON
        self.decisions = MemoryDecisionLog()
        self.sent = itertools.count(1)
        self.running = contextlib.AsyncExitStack()
        self.consumer = Consumer(self.redis, self.redis, tenant=TENANT, batch=100, session_ttl_seconds=1000)
        self.consumer.resume()

    async def open(self) -> None:
        """A worker as a server starts it."""
        app = create_app(
            self.place,
            ServingSettings(online_timeout_ms=2000),
            decisions=self.decisions,
            wall_micros=lambda: to_micros(self.now),
            timer=lambda: to_micros(self.now) * 1000,
        )
        self.overlay = app.state.services.overlay
        await self.running.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.api = await self.running.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://api"))

    async def put(self, *items: dict[str, Any]) -> None:
        await self.change("PUT", *items)

    async def change(self, method: str, *items: Any) -> None:
        answer = await self.api.request(method, "/v1/items", json=list(items))
        assert [result["status"] for result in answer.json()["results"]] == ["accepted"] * len(items), answer.text
        self.now += timedelta(seconds=2)  # long enough for a new item

    async def send(self, event_type: str, item: str, user: str, **more: Any) -> None:
        event = {"event_id": f"e{next(self.sent)}", "event_type": event_type, "item_id": item, "user_id": user}
        answer = await self.api.post("/v1/events", json={**event, "timestamp": self.now.isoformat(), **more})
        assert answer.json()["results"][0]["status"] == "accepted"
        self.consumer.consume(block_ms=None)
        self.now += timedelta(seconds=2)  # votes are read again

    async def send_all(self, events: list[dict[str, Any]]) -> None:
        answer = await self.api.post("/v1/events", json={"events": events})
        assert [result["status"] for result in answer.json()["results"]] == ["accepted"] * len(events), answer.text
        while self.consumer.consume(block_ms=None):
            pass
        self.now += timedelta(seconds=2)

    async def ask(self, path: str = "/v1/recommendations", **question: Any) -> dict[str, Any]:
        answer = await self.api.post(path, json=question)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def shown(self, **question: Any) -> list[str]:
        return ids(await self.ask(**question))


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def words(answer: dict[str, Any]) -> list[str]:
    return [item["reasons"][0]["text"] for item in answer["items"]]


@pytest.fixture
async def shop(environment: Environment, redis_url: str) -> AsyncIterator[NewShop]:
    new = NewShop(environment, redis_url)
    await new.open()
    yield new
    await new.running.aclose()
    new.redis.close()


async def test_with_nothing_put_it_says_what_to_do(shop: NewShop) -> None:
    await shop.change("PATCH", {"item_id": "hoe", "price": 3})  # a change alone makes no item
    answer = await shop.api.post("/v1/recommendations", json={})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "put items" in answer.json()["detail"]
    assert "run the night" in answer.json()["detail"]
    ready = await shop.api.get("/health/ready")  # or a balancer would never let the first items in
    assert (ready.status_code, ready.json()["degraded_reasons"]) == (200, ["no_published_version", "no_item"])
    assert (ready.json()["status"], ready.json()["model_version"]) == ("ready", "none")


async def test_the_newest_items_are_shown_as_soon_as_they_are_put(shop: NewShop) -> None:
    await shop.put(*ITEMS)
    answer = await shop.ask(user_id="ann", num_results=4)
    schemas.RecommendationResponse.model_validate(answer)
    assert ids(answer) == NEWEST[:4]
    assert answer["items"][1]["attributes"] == {"title": "A tin", "category": "Home > Tea", "price": 1.0}
    assert words(answer) == ["new in the shop"] * 4
    assert {item["source"] for item in answer["items"]} == {"new"}
    assert [item["score"] for item in answer["items"]] == [1.0, 0.8002, 0.6004, 0.4006]  # 1 - 0.999 x place / 5
    assert (answer["fallback_level"], answer["fallback_reason"]) == ("new", "no_published_version")
    assert (answer["degraded"], answer["degraded_reasons"]) == (True, ["no_published_version"])
    assert answer["model_version"] == "none"
    freshness = answer["freshness"]
    assert (freshness["model"], freshness["data"], freshness["candidates"]) == (None, None, None)
    assert freshness["catalogue"] is not None
    ready = await shop.api.get("/health/ready")
    assert (ready.status_code, ready.json()["degraded_reasons"]) == (200, ["no_published_version"])


async def test_what_may_not_be_shown_leaves_at_once(shop: NewShop) -> None:
    await shop.put(*ITEMS)
    assert await shop.shown() == NEWEST
    changes = [
        {"item_id": "tin", "available_quantity": 0},
        {"item_id": "pan", "expire_time": NOON.isoformat()},
        {"item_id": "cup", "available_time": days_ago(-1)},
    ]
    assert (await shop.api.patch("/v1/items", json=changes)).status_code == 202
    assert (await shop.api.delete("/v1/items/pot")).status_code == 202
    answer = await shop.ask()
    assert (ids(answer), answer["filtered"]) == (
        ["hoe"],
        {"hidden": 1, "out_of_stock": 1, "expired": 1, "not_yet_available": 1},
    )
    await shop.change("PATCH", {"item_id": "tin", "available_quantity": 7}, {"item_id": "pot", "is_hidden": False})
    assert await shop.shown() == ["pot", "tin", "hoe"]


async def test_what_people_touch_comes_first_and_the_newest_behind_it(shop: NewShop) -> None:
    await shop.put(*ITEMS)
    for user, item in (("ann", "hoe"), ("bob", "hoe"), ("cid", "hoe"), ("bob", "cup"), ("cid", "cup"), ("cid", "gone")):
        await shop.send("view_item", item, user)
    answer = await shop.ask(num_results=5)
    assert ids(answer) == ["hoe", "cup", "pot", "tin", "pan"]
    assert words(answer) == ["trending in the last day"] * 2 + ["new in the shop"] * 3
    assert (answer["fallback_level"], answer["fallback_reason"]) == ("trending", "no_published_version")
    within = await shop.ask(num_results=5, context={"category": "Home"})
    assert ids(within) == ["cup", "pot", "tin", "pan", "hoe"]  # of the category, then of all
    shop.now += timedelta(days=2)
    assert await shop.shown() == NEWEST  # nobody touched anything in the last day


async def test_what_a_region_touches_comes_before_what_all_do(shop: NewShop) -> None:
    """Through API and consumer. From FR 21 people look at the cup, two of them also at the tin; from DE 18 at the hoe;
    from nowhere 30 at the pan. One of FR looked at the cup from DE as well: DE sorts first, and has the vote."""
    await shop.put(*ITEMS)
    crowd: list[dict[str, Any]] = []
    for place, item, count in (("FR", "cup", 21), ("FR", "tin", 2), ("DE", "hoe", 18), (None, "pan", 30)):
        crowd += [
            {"event_type": "view_item", "item_id": item, "user_id": f"{place}{number}", "timestamp": NOON.isoformat(),
             "event_id": f"{place}{item}{number}", "context": {"region": place} if place else {}}
            for number in range(count)
        ]  # fmt: skip
    await shop.send_all(crowd)
    await shop.send_all([{**crowd[20], "event_id": "twice", "context": {"region": "DE"}}])
    assert await shop.shown(num_results=3) == ["pan", "cup", "hoe"]
    french = await shop.ask(num_results=5, context={"region": "FR"})
    assert (ids(french), french["fallback_level"]) == (["cup", "tin", "pan", "hoe", "pot"], "region")
    assert words(french)[:3] == ["popular in FR", "popular in FR", "trending in the last day"]
    within = await shop.ask(num_results=5, context={"region": "FR", "category": "Home > Tea"})
    assert ids(within) == ["cup", "tin", "pot", "pan", "hoe"]
    day = await shop.ask("/v1/trending", num_results=2, window="1d", context={"region": "FR"})
    assert (ids(day), words(day)) == (["cup", "tin"], ["trending in FR in the last day"] * 2)
    assert day["trend"]["votes"] == {"cup": 20, "tin": 2}
    assert (day["trend"]["scope"], day["trend"]["region_votes"]) == ("region", 22)

    too_few = await shop.ask(num_results=3, context={"region": "DE"})
    assert (ids(too_few), too_few["fallback_level"]) == (["pan", "cup", "hoe"], "trending")
    five = await shop.ask("/v1/trending", num_results=1, window="5m", context={"region": "DE"})
    assert (ids(five), five["trend"]["scope"], five["trend"]["region_votes"]) == (["pan"], "all", 19)
    assert await shop.shown(num_results=1, context={"region": "fr"}) == ["pan"]
    await shop.send_all([{**crowd[19], "event_id": "another", "context": {"region": "DE"}}])  # of all nothing changes
    enough = await shop.ask(num_results=3, context={"region": "DE"})
    assert (ids(enough), enough["fallback_level"]) == (["hoe", "cup", "pan"], "region")
    five = await shop.ask("/v1/trending", num_results=2, window="5m", context={"region": "DE"})
    assert (five["trend"]["votes"], five["trend"]["scope"]) == ({"hoe": 18, "cup": 2}, "region")


async def test_a_person_is_heard_where_they_allow_it(shop: NewShop) -> None:
    await shop.put(*ITEMS)
    for user in ("bob", "cid", "ann"):
        await shop.send("purchase", "hoe", user)
    await shop.send("not_interested", "pot", "ann")
    assert await shop.shown(user_id="ann") == ["tin", "pan", "cup"]  # bought, and dismissed
    assert await shop.shown(user_id="dan") == ["hoe", *NEWEST[:4]]
    silent = await shop.ask(user_id="ann", consent={"personalize": False}, explain=True)
    assert ids(silent) == ["hoe", *NEWEST[:4]]
    assert (silent["fallback_reason"], silent["trace"]["personalized"]) == ("consent", False)
    assert silent["degraded_reasons"] == ["no_published_version"]
    assert (await shop.api.patch("/v1/users/ann", json={"consent": {"personalize": False}})).status_code == 202
    assert await shop.shown(user_id="ann") == ["hoe", *NEWEST[:4]]


async def test_decisions_say_that_no_version_made_them(shop: NewShop) -> None:
    await shop.put(*ITEMS)
    answer = await shop.ask(user_id="ann", num_results=2)
    said = read_decision(shop.decisions.payloads[-1])
    assert (said["id"], said["version"], said["subject"]) == (answer["recommendation_id"], "none", "u:ann")
    assert (said["level"], said["reason"], said["degraded"]) == (
        "new",
        "no_published_version",
        ["no_published_version"],
    )
    assert (said["items"], said["propensities"]) == (["pot", "tin"], [1.0, 1.0])
    replay = await shop.api.get(f"/v1/decisions/{answer['recommendation_id']}")
    assert replay.json()["replay"]["why_not"] == ["no_version_then"]
    await shop.ask(user_id="ann", consent={"store": False})
    assert read_decision(shop.decisions.payloads[-1])["subject"] is None


async def test_lists_and_pages_answer_too(shop: NewShop) -> None:
    await shop.put(*ITEMS)
    await shop.send("view_item", "cup", "bob")
    trending = await shop.ask("/v1/trending", num_results=3)
    assert (ids(trending), trending["fallback_level"]) == (["cup", "pot", "tin"], "trending")
    assert words(trending) == ["trending in the last hour", "new in the shop", "new in the shop"]
    new = await shop.ask("/v1/new", num_results=6, max_age_days=4)
    assert (ids(new), new["fallback_level"]) == (NEWEST, "new")
    assert words(new)[1] == f"new since {days_ago(1)[:10]}"
    similar = await shop.ask("/v1/similar", item_id="pot", num_results=3)
    assert (ids(similar), similar["fallback_level"]) == (["cup", "tin", "pan"], "popular")  # of Home > Tea first
    assert words(similar) == ["popular with everybody", "new in the shop", "new in the shop"]
    assert ids(await shop.ask("/v1/bought-together", item_ids=["pot"], num_results=2)) == ["cup", "tin"]
    ranked = await shop.ask("/v1/rank", item_ids=["hoe", "unheard", "cup"])
    assert ids(ranked) == ["cup", "hoe", "unheard"]
    page = await shop.ask("/v1/pages/home", user_id="ann", placements=[
        {"kind": "trending", "num_results": 1}, {"kind": "recommendations", "num_results": 2}, {"kind": "new"},
    ])  # fmt: skip
    list_schemas.PageResponse.model_validate(page)
    assert [ids(place) for place in page["placements"]] == [["cup"], ["pot", "tin"], ["pan", "hoe"]]
    assert (page["degraded"], page["model_version"]) == (True, "none")
    profile = (await shop.api.get("/v1/users/bob/profile")).json()
    assert (profile["degraded_reasons"], profile["freshness"]["model"]) == (["no_published_version"], None)
    for answer in (trending, new, similar, ranked):
        assert answer["degraded_reasons"] == ["no_published_version"]


async def test_a_placement_keeps_its_policy(shop: NewShop) -> None:
    await shop.put(*ITEMS)
    answer = await shop.ask(num_results=2, filter='category != "Home > Tea" and price > 5')
    assert ids(answer) == ["hoe"]
    mixed = await shop.ask(num_results=2, exclude_item_ids=["pot"], diversity=0.9)
    assert ids(mixed)[0] == "tin"
    assert ids(mixed)[1] != "cup"  # of the shelf of the tin
    assert words(mixed) == ["new in the shop"] * 2


async def test_a_worker_that_starts_after_the_stream_was_compacted_knows_the_same(shop: NewShop) -> None:
    await shop.put(*ITEMS)
    stream = change_stream_key(TENANT)
    found: Any = shop.redis.xrange(stream)
    compact_changes(shop.redis, [(at.decode(), fields) for at, fields in found], tenant=TENANT)
    shop.redis.delete(stream)
    await shop.open()
    assert await shop.shown() == NEWEST
    assert (await shop.shown(context={"category": "Garden"}))[0] == "hoe"


async def test_the_first_version_takes_over(shop: NewShop) -> None:
    await shop.put(*ITEMS)
    assert await shop.shown(num_results=1) == ["pot"]
    made = Shop({"pan": {"title": "A pan", "category": "Home", "price": 5.0}}, popular=[("pan", 1.0)])
    version = made.write(shop.place.publications)
    shop.redis.set(pointer_key(), version)
    answer = await shop.ask()
    assert (ids(answer), answer["model_version"], answer["degraded"]) == (["pan"], version, False)
    assert answer["fallback_level"] == "popular"
    assert shop.overlay._first is None  # nothing of it is kept
    await shop.put({"item_id": "jug", "title": "A jug"})
    assert await shop.shown() == ["pan"]
