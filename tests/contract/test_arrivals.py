"""Items that a shop puts while a version is served, over a real Redis, two workers and a consumer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import change_stream_key, pointer_key
from serving.speed.change_records import compact_changes
from tests.contract.test_first_rung import NOON, NewShop, days_ago, ids, words
from tests.serving_builders import TENANT, Shop

pytestmark = pytest.mark.redis
TEA, GARDEN = "Home > Tea", "Garden"
OLD: dict[str, dict[str, Any]] = {
    "mug": {"title": "A mug", "category": TEA, "price": 2.0, "created_at": days_ago(1)},
    "pan": {"title": "A pan", "category": "Home", "price": 5.0, "created_at": days_ago(3)},
    "hoe": {"title": "A hoe", "category": GARDEN, "price": 9.0, "created_at": days_ago(6), "brand": "Acme"},
}
ARRIVED: list[dict[str, Any]] = [
    {"item_id": "vat", "title": "A vat", "category": "Home", "price": 6, "created_at": days_ago(2)},
    {"item_id": "urn", "title": "An urn", "category": TEA, "price": 8},  # as old as what was said of it
    {"item_id": "jug", "title": "A jug", "category": GARDEN, "price": 3, "brand": "Zeta",
     "created_at": (NOON - timedelta(hours=1)).isoformat()},
]  # fmt: skip
NEWEST = ["urn", "jug", "mug", "vat", "pan", "hoe"]


class LiveShop(NewShop):
    """One with a version, and any number of workers."""

    workers: list[httpx.AsyncClient]

    async def begin(self) -> None:
        self.workers = []
        self.publish(OLD)
        for _ in range(2):
            await self.begin_worker()

    async def begin_worker(self) -> httpx.AsyncClient:
        await self.open()
        self.workers.append(self.api)
        return self.api

    def publish(self, items: dict[str, dict[str, Any]]) -> str:
        offered = Shop(
            items, popular=[("hoe", 9.0), ("pan", 6.0)], by_category={GARDEN: [("hoe", 9.0)]}, as_of=f"{NOON:%Y-%m-%d}",
        )  # fmt: skip
        version = offered.write(self.place.publications)
        self.redis.set(pointer_key(), version)
        return version

    async def until_new(self, expected: list[str], **question: Any) -> dict[str, Any]:
        """What the last worker answers, once all workers show these as new; within a second on a machine of its own."""
        deadline = time.monotonic() + 10
        answer: dict[str, Any] = {}
        for worker in self.workers:
            while True:
                answer = (await worker.post("/v1/new", json={"num_results": 12, **question})).json()
                if ids(answer) == expected:
                    break
                assert time.monotonic() < deadline, ids(answer)
                await asyncio.sleep(0.005)
        return answer


@pytest.fixture
async def shop(environment: Environment, redis_url: str) -> AsyncIterator[LiveShop]:
    live = LiveShop(environment, redis_url)
    await live.begin()
    yield live
    await live.running.aclose()
    live.redis.close()


async def test_every_worker_shows_it_at_once_and_a_worker_that_starts_finds_it_again(shop: LiveShop) -> None:
    await shop.until_new(["mug", "pan", "hoe"])  # every worker has looked at the version before they come
    await shop.put(*ARRIVED)
    answer = await shop.until_new(NEWEST)
    assert answer["items"][1]["attributes"] == {"title": "A jug", "category": GARDEN, "price": 3.0}
    assert words(answer)[1] == f"new since {NOON - timedelta(hours=1):%Y-%m-%d}"
    assert (answer["fallback_level"], answer["degraded"], answer["filtered"]) == ("new", False, {})
    assert {item["source"] for item in answer["items"]} == {"new"}

    entries: Any = shop.redis.xrange(change_stream_key(TENANT))
    compact_changes(shop.redis, [(at.decode(), fields) for at, fields in entries], tenant=TENANT)
    shop.redis.delete(change_stream_key(TENANT))
    await shop.begin_worker()  # it has the compacted records alone
    assert ids(await shop.until_new(NEWEST)) == NEWEST


async def test_what_may_not_be_shown_leaves_at_once(shop: LiveShop) -> None:
    await shop.put(*ARRIVED, {"item_id": "box", "category": TEA})
    await shop.until_new(["box", *NEWEST])
    await shop.change(
        "PATCH",
        {"item_id": "urn", "available_quantity": 0},
        {"item_id": "jug", "expire_time": NOON.isoformat()},
        {"item_id": "vat", "available_time": days_ago(-1)},
    )
    assert (await shop.api.delete("/v1/items/box")).status_code == 202
    answer = await shop.until_new(["mug", "pan", "hoe"])
    assert answer["filtered"] == {"expired": 1, "hidden": 1, "not_yet_available": 1, "out_of_stock": 1}
    await shop.change("PATCH", {"item_id": "urn", "available_quantity": 7}, {"item_id": "jug", "price": 1})
    await shop.until_new(["urn", "mug", "pan", "hoe"])


async def test_filters_know_category_price_and_stock_and_refuse_where_they_ask_for_more(shop: LiveShop) -> None:
    await shop.put(*ARRIVED)
    await shop.until_new(NEWEST)
    assert ids(await shop.until_new(["jug", "hoe"], filter=f'category == "{GARDEN}"')) == ["jug", "hoe"]
    await shop.until_new(["jug", "mug"], filter="price < 4")
    answer = await shop.until_new(["mug", "pan"], filter='not brand == "Acme"')
    assert answer["filtered"] == {"filter": 4}
    within = await shop.ask("/v1/new", num_results=2, context={"category": TEA})
    assert ids(within) == ["urn", "mug"]


async def test_other_lists_pages_and_people_know_it(shop: LiveShop) -> None:
    await shop.until_new(["mug", "pan", "hoe"])
    await shop.put(*ARRIVED)
    await shop.until_new(NEWEST)
    ranked = await shop.ask("/v1/rank", item_ids=["jug", "zzz", "hoe"])
    assert (ids(ranked), ranked["unknown_item_ids"]) == (["hoe", "jug", "zzz"], ["zzz"])
    similar = await shop.ask("/v1/similar", item_id="jug", num_results=2)
    assert (ids(similar), similar["fallback_level"]) == (["hoe", "pan"], "category")
    page = await shop.ask(
        "/v1/pages/home", placements=[{"kind": "new", "num_results": 2}, {"kind": "new", "num_results": 2}]
    )
    assert [ids(place) for place in page["placements"]] == [["urn", "jug"], ["mug", "vat"]]
    given = await shop.ask(num_results=12, filter='category == "Garden" and price < 4')
    assert ids(given) == ["jug"]  # no list has it, so it is looked for in the catalogue
    await shop.send("not_interested", "jug", "ann")
    mine = await shop.ask("/v1/new", user_id="ann", num_results=3)
    assert ids(mine) == ["urn", "mug", "vat"]
    theirs = await shop.ask("/v1/new", user_id="bob", num_results=3)
    assert ids(theirs) == ["urn", "jug", "mug"]


async def test_the_version_that_has_it_replaces_it(shop: LiveShop) -> None:
    await shop.put(*ARRIVED)
    before = await shop.until_new(NEWEST)
    made = {**OLD, "jug": {"title": "The jug", "category": GARDEN, "brand": "Zeta", "created_at": days_ago(4)}}
    version = shop.publish(made)
    # jug: what the items API said of title and price is newer than this night; its place is the night's
    answer = await shop.until_new(["urn", "mug", "vat", "pan", "jug", "hoe"])
    assert (answer["model_version"], version != before["model_version"]) == (version, True)
    assert answer["items"][4]["attributes"] == {"title": "A jug", "category": GARDEN, "price": 3.0}
    await shop.until_new(["jug"], filter='brand == "Zeta"')


async def test_a_replay_says_when_newer_items_have_come(shop: LiveShop) -> None:
    answer = await shop.ask("/v1/new", num_results=3)
    path = f"/v1/decisions/{answer['recommendation_id']}"
    replay = (await shop.api.get(path)).json()["replay"]
    assert (replay["why_not"], replay["is_same"]) == ([], True)
    shop.now += timedelta(seconds=1)
    await shop.put(*ARRIVED)
    await shop.until_new(NEWEST)
    assert (await shop.api.get(path)).json()["replay"]["why_not"] == ["items_arrived"]
