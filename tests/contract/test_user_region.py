"""The region that the shop gives a user, where a request names none: over a real Redis, API and consumer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from feature_repo.contracts.changes import PATCH, PUT, USERS
from feature_repo.contracts.decisions import read_decision
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import change_stream_key, pointer_key
from serving.pipeline import overlay as overlay_module
from serving.pipeline.overlay import CatalogueOverlay
from serving.speed.change_records import compact_changes
from tests.contract.test_first_rung import NOON, NewShop, ids
from tests.serving_builders import TENANT, Shop
from tests.unit.test_catalogue_overlay import change

TRENDING = [{"kind": "trending", "num_results": 1}]


@pytest.fixture
async def shop(environment: Environment, redis_url: str) -> AsyncIterator[NewShop]:
    """A published shop in which 21 people of FR looked at the cup, and 30 of nowhere at the pan."""
    new = NewShop(environment, redis_url)
    made = Shop(
        {item: {"title": item, "category": "A", "price": 1.0} for item in ("cup", "pan", "hoe")},
        popular=[("pan", 2.0), ("cup", 1.0)],
        by_region={"FR": [("hoe", 3.0)]},
    )
    new.redis.set(pointer_key(), made.write(new.place.publications))
    await new.open()
    await new.send_all([
        {"event_type": "view_item", "item_id": item, "user_id": f"{place}{number}", "timestamp": NOON.isoformat(),
         "event_id": f"{place}{item}{number}", "context": {"region": place} if place else {}}
        for place, item, count in (("FR", "cup", 21), ("", "pan", 30)) for number in range(count)
    ])  # fmt: skip
    yield new
    await new.running.aclose()
    new.redis.close()


async def say(shop: NewShop, method: str, user_id: str, **said: Any) -> None:
    answer = await shop.api.request(method, f"/v1/users/{user_id}", json=said or None)
    assert answer.status_code == 202, answer.text


async def trend(shop: NewShop, **question: Any) -> tuple[list[str], str, str | None, bool]:
    answer = await shop.ask("/v1/trending", num_results=1, **question)
    return ids(answer), answer["trend"]["scope"], answer["trend"]["region"], answer["trend"]["is_users_region"]


ALL = (["pan"], "all", None, False)
FRENCH = (["cup"], "region", "FR", True)


async def test_a_list_is_of_the_users_region(shop: NewShop) -> None:
    assert await trend(shop, user_id="ann") == ALL
    await say(shop, "PUT", "ann", region="FR")
    assert await trend(shop, user_id="ann") == FRENCH
    assert await trend(shop, user_id="bob") == ALL
    assert await trend(shop, user_id="ann", context={"region": "FR"}) == (["cup"], "region", "FR", False)
    assert await trend(shop, user_id="ann", context={"region": "DE"}) == (["pan"], "all", "DE", False)
    said = read_decision(shop.decisions.payloads[-3])
    assert "region" not in said["inputs"]  # of bob
    page = await shop.ask("/v1/pages/mine", user_id="ann", placements=TRENDING)
    assert ids(page["placements"][0]) == ["cup"]
    for payload in (shop.decisions.payloads[1], shop.decisions.payloads[-1]):
        said = read_decision(payload)
        assert (said["inputs"]["region"], said["inputs"]["trend"]["scope"]) == ("FR", "region")
        replay = (await shop.api.get(f"/v1/decisions/{said['id']}")).json()["replay"]
        assert (replay["why_not"], replay["is_same"]) == ([], True)
    slate = await shop.ask(user_id="ann", num_results=1)
    assert (ids(slate), slate["fallback_level"]) == (["hoe"], "region")  # popular there by the night
    assert ids(await shop.ask(user_id="bob", num_results=1)) == ["pan"]
    await say(shop, "PATCH", "ann", attributes={"plan": "gold"})
    assert await trend(shop, user_id="ann") == FRENCH
    await say(shop, "PATCH", "ann", region=None)
    assert await trend(shop, user_id="ann") == ALL


async def test_a_put_without_it_and_a_delete_take_it_away(shop: NewShop) -> None:
    for method, said in (("PUT", {"attributes": {"plan": "gold"}}), ("DELETE", {})):
        await say(shop, "PATCH", "ann", region="FR")
        assert await trend(shop, user_id="ann") == FRENCH
        await say(shop, method, "ann", **said)
        assert await trend(shop, user_id="ann") == ALL, method


async def test_nobody_is_placed_who_does_not_want_to_be_known(shop: NewShop) -> None:
    await say(shop, "PUT", "ann", region="FR")
    assert await trend(shop, user_id="ann", consent={"personalize": False}) == ALL
    await shop.send("view_item", "hoe", "ann", consent={"personalize": False})  # said by an event: the record knows
    assert await trend(shop, user_id="ann") == ALL
    page = await shop.ask("/v1/pages/mine", user_id="ann", placements=TRENDING)
    assert ids(page["placements"][0]) == ["pan"]
    assert ids(await shop.ask(user_id="ann", num_results=1)) == ["pan"]
    assert all("region" not in read_decision(one)["inputs"] for one in shop.decisions.payloads)
    await say(shop, "PUT", "bob", region="FR", consent={"personalize": False})
    assert await trend(shop, user_id="bob") == ALL


async def test_what_may_not_be_stored_is_in_no_decision(shop: NewShop) -> None:
    await say(shop, "PUT", "ann", region="FR")
    assert await trend(shop, user_id="ann", consent={"store": False}) == FRENCH
    await shop.ask("/v1/pages/mine", user_id="ann", placements=TRENDING, consent={"store": False})
    await shop.ask(user_id="ann", num_results=1, consent={"store": False})
    assert len(shop.decisions.payloads) == 3
    assert all("region" not in read_decision(one)["inputs"] for one in shop.decisions.payloads)
    await shop.ask(user_id="ann", num_results=1, consent={"store": False}, context={"region": "FR"})
    assert read_decision(shop.decisions.payloads[-1])["inputs"]["region"] == "FR"  # the request said it of itself


async def test_a_worker_that_starts_after_the_stream_was_compacted_knows_it(shop: NewShop) -> None:
    await say(shop, "PUT", "ann", region="FR")
    await say(shop, "PUT", "bob", attributes={"plan": "gold"})
    stream = change_stream_key(TENANT)
    found: Any = shop.redis.xrange(stream)
    compact_changes(shop.redis, [(at.decode(), fields) for at, fields in found], tenant=TENANT)
    shop.redis.delete(stream)
    await shop.open()
    assert await trend(shop, user_id="ann") == FRENCH


def test_the_last_ones_of_whom_it_was_said_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_module, "MAX_USERS_PLACED", 2)
    overlay = CatalogueOverlay()
    said = [("a", {"region": "FR"}), ("b", {"region": "DE"}), ("a", {"region": "IT"}), ("c", {"region": "ES"})]
    for position, (user_id, fields) in enumerate(said):
        overlay.take(change(PATCH, {"user_id": user_id, **fields}, USERS), position)
    assert [overlay.region_of(user_id) for user_id in ("a", "b", "c", None)] == ["IT", None, "ES", None]
    overlay.take(change(PUT, {"user_id": "c", "region": "x" * 65}, USERS), 9)  # no region that trends count
    assert overlay.region_of("c") is None
