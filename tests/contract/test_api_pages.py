"""Pages, batches, profiles and decisions that are asked for again, over HTTP, on real Redis."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from feature_repo.contracts.decisions import read_decision
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.feature_table import FEATURE_VIEWS
from feature_repo.contracts.keys import (
    candidates_key,
)
from feature_repo.contracts.packing import (
    FLAG_PERSONALIZE_DENIED,
    ItemMark,
    SessionEvent,
    session_hash,
)
from feature_repo.contracts.purchase_record import Purchase
from feature_repo.contracts.session_record import CartChange
from serving.adapters.feast_online import entity_key, feature_field, timestamp_field
from serving.api import list_schemas
from serving.api.profile_schemas import DecisionResponse, ProfileResponse
from tests.lists_world import DAY, GARDEN, NOW, SECOND, TEA, Installation, N, event, ids
from tests.serving_builders import Shop

pytestmark = pytest.mark.redis


@pytest.fixture
async def api(environment: Environment, redis_url: str) -> AsyncIterator[Installation]:
    installation = Installation(environment, redis_url)
    yield installation
    await installation.close()


class TestPages:
    async def test_no_item_twice_one_reading_and_a_decision_for_each_place(self, api: Installation) -> None:
        await api.post("/v1/similar", item_id="mug")  # the version is loaded
        api.decisions.payloads.clear()
        api.remember(events=[event("mug", 60)])
        places = [
            {"kind": "continue", "num_results": 2}, {"kind": "recommendations", "placement": "main", "num_results": 2},
            {"kind": "trending", "num_results": 2}, {"kind": "new", "num_results": 9},
        ]  # fmt: skip
        page = await api.post("/v1/pages/landing", user_id="u1", session_id="s1", placements=places, explain=True)
        list_schemas.PageResponse.model_validate(page)
        shown = [ids(one) for one in page["placements"]]
        assert shown[0] == ["mug"]
        assert len(shown) == 4
        for place, sources in enumerate([{"continued"}, {"session", "list"}, {"popularity"}, {"new"}]):
            items = page["placements"][place]["items"]
            assert {source["name"] for item in items for source in item["sources"]} <= sources
            assert all(sum(source["share"] for source in item["sources"]) == 1.0 for item in items)
        flat = [item for one in shown for item in one]
        assert len(flat) == len(set(flat))
        assert set(flat) == {"mug", "cup", "tin", "pan", "hoe", "pot"}
        assert (page["page"], page["online_reads"], page["model_version"]) == ("landing", 1, api.version)
        assert [one["placement"] for one in page["placements"]] == ["continue", "main", "trending", "new"]
        said = [read_decision(payload) for payload in api.decisions.payloads]
        assert [one["id"] for one in said] == [one["recommendation_id"] for one in page["placements"]]
        assert [one["kind"] for one in said] == ["continue", "recommendations", "trending", "new"]
        assert [(one["inputs"]["page"], one["inputs"]["place"]) for one in said] == [("landing", n) for n in range(4)]

    async def test_presets_by_name(self, api: Installation) -> None:
        product = await api.get("/v1/pages/product?item_id=pot&user_id=u1")
        assert [one["placement"] for one in product["placements"]] == [
            "product.similar", "product.bought_together", "product_page",
        ]  # fmt: skip
        assert all("pot" not in ids(one) for one in product["placements"])
        assert len((await api.get("/v1/pages/home"))["placements"]) == 4
        wrong = await api.client.get("/v1/pages/hom")
        assert (wrong.status_code, "did you mean 'home'" in wrong.text) == (422, True)
        needs_item = await api.client.get("/v1/pages/product")
        assert needs_item.json()["errors"][0]["field"] == "item_id"


class TestBatch:
    async def test_each_as_if_asked_alone_and_a_bad_one_disturbs_nobody(self, api: Installation) -> None:
        alone = await api.post("/v1/recommendations", user_id="u1", num_results=2)
        requests = [{"user_id": "u1", "num_results": 2}, {"user_id": "u1", "num": 2}, {"num_results": 1}]
        batch = await api.post("/v1/recommendations/batch", requests=requests)
        list_schemas.BatchResponse.model_validate(batch)
        first, second, third = batch["results"]
        assert [one["index"] for one in batch["results"]] == [0, 1, 2]
        assert first["answer"]["items"] == alone["items"]
        assert (second["status"], second["problem"]["errors"][0]["field"]) == (422, "num")
        assert (third["status"], ids(third["answer"])) == (200, ["hoe"])
        assert len(api.decisions.payloads) == 3
        too_many = await api.client.post("/v1/recommendations/batch", json={"requests": [{}] * 101})
        assert too_many.status_code == 422


class TestProfile:
    async def test_what_we_believe_and_why(self, api: Installation) -> None:
        day = NOW // SECOND // DAY
        api.buy(Purchase(N["tin"], 4, NOW // SECOND - 10 * DAY, 10.0, 2.0))
        api.remember(
            events=[event("mug", 60), event("hoe", 30)], interests={(day, "mug"): 6, (day, "hoe"): 2},
            cart=[CartChange(NOW - SECOND, False, 2, "cup")], first_micros=1, last_micros=NOW - 30 * SECOND,
        )  # fmt: skip
        profile = await api.get("/v1/users/u1/profile")
        ProfileResponse.model_validate(profile)
        beliefs = profile["beliefs"]
        assert (profile["known"], profile["withheld"], profile["model_version"]) == (True, None, api.version)
        assert beliefs["top_categories"]["lately"] == [
            {"category": TEA, "share": 0.75}, {"category": GARDEN, "share": 0.25},
        ]  # fmt: skip
        assert [one["item_id"] for one in beliefs["session"]["events"]] == ["hoe", "mug"]
        assert beliefs["session"]["signals"]["cart_item_count"] == 1
        assert beliefs["cart"] == [{"item_id": "cup", "title": "Tea Cup", "quantity": 2}]
        assert beliefs["purchases"][0]["why"] == "you bought it 4 times; you buy it about every 10 days"
        assert beliefs["list"]["count"] == 3
        assert beliefs["list"]["head"][0] == {
            "item_id": "tin", "title": "Tea Tin", "score": 4.0, "because_of": ["pot"],
        }  # fmt: skip
        assert profile["consent"] == {
            "personalize": True, "store": True, "decided_by": "nobody", "said_at": None, "is_bot": False,
        }  # fmt: skip
        assert profile["freshness"]["session"] == 30.0

    async def test_the_features_of_the_night_each_with_what_it_is(self, api: Installation) -> None:
        view = FEATURE_VIEWS["user_features"]
        assert (await api.get("/v1/users/u1/profile"))["beliefs"]["features"] == {"as_of": None, "values": []}
        stored = {
            feature_field(view.name, "user_top_category_90d"): b"\x12\x01A",
            feature_field(view.name, "user_view_count_7d"): b"\x20\x0c",
            timestamp_field(view.name): b"\x08\x80\xaa\xa9\xaf\x06",
        }
        key = entity_key(["user_id"], ["u1"])
        api.redis.hset(key, mapping=stored)
        profile = await api.get("/v1/users/u1/profile")
        ProfileResponse.model_validate(profile)
        found = profile["beliefs"]["features"]
        assert found["as_of"] == "2024-03-08T00:00:00Z"
        assert [(one["name"], one["value"], one["window_days"]) for one in found["values"]] == [
            ("user_view_count_7d", 12, 7), ("user_top_category_90d", "A", 90),
        ]  # fmt: skip
        assert found["values"][0]["why"] == "Item views: view_item, select_item and click."
        api.redis.hset(key, feature_field(view.name, "user_view_count_7d"), b"\x20")
        damaged = await api.get("/v1/users/u1/profile")
        assert (damaged["degraded_reasons"], damaged["beliefs"]["features"]["values"]) == (["features_damaged"], [])

    async def test_without_consent_nothing_is_told(self, api: Installation) -> None:
        api.remember(
            events=[event("mug", 60)], flags=FLAG_PERSONALIZE_DENIED, consent_micros=NOW - 7 * SECOND, first_micros=1
        )
        profile = await api.get("/v1/users/u1/profile")
        ProfileResponse.model_validate(profile)
        assert (profile["beliefs"], profile["withheld"]) == (None, "consent")
        assert (profile["consent"]["decided_by"], profile["consent"]["said_at"]) == ("event", "2024-03-08T12:59:53Z")
        assert "mug" not in json.dumps(profile)

    async def test_a_name_that_nobody_has(self, api: Installation) -> None:
        profile = await api.get("/v1/users/who%2Fever/profile")
        assert (profile["user_id"], profile["known"]) == ("who/ever", False)
        assert profile["beliefs"]["list"]["count"] == 0


class TestDecisions:
    async def replayed(self, api: Installation, answer: dict[str, Any]) -> dict[str, Any]:
        found = await api.get(f"/v1/decisions/{answer['recommendation_id']}")
        DecisionResponse.model_validate(found)
        assert found["decision"]["item_ids"] == ids(answer)
        return dict(found["replay"])

    async def test_the_same_slate_again_hours_later_and_after_other_clicks(self, api: Installation) -> None:
        api.remember(events=[event("mug", 60)], bought=[ItemMark(NOW - SECOND, "tin")])
        question = {"user_id": "u1", "session_id": "s1", "session_items": ["hoe"], "num_results": 3}
        answers = [
            await api.post("/v1/recommendations", **question, exclude_item_ids=["pot"]),
            await api.post("/v1/rank", **question, item_ids=["pan", "zzz", "cup", "mug"]),
            await api.post("/v1/similar", item_id="mug"),
            await api.post("/v1/bought-together", item_id="pot"),
            await api.post("/v1/recommendations", num_results=2, context={"category": TEA}),
            await api.post("/v1/new", num_results=4),
        ]
        api.now = NOW + 5 * 3600 * SECOND
        later = SessionEvent(NOW + 3600 * SECOND, "view_item", session_hash("s1"), "cup")
        api.remember(
            events=[event("mug", 60), later], bought=[ItemMark(NOW - SECOND, "tin"), ItemMark(later.micros, "pan")]
        )
        api.publish(Shop({"else": {}}, popular=[("else", 1.0)]))
        for answer in answers:
            replay = await self.replayed(api, answer)
            assert (replay["is_possible"], replay["is_same"], replay["differences"]) == (True, True, []), answer
            assert replay["item_ids"] == ids(answer)
        assert len(answers) == 6
        changed = await api.post("/v1/recommendations", user_id="u1", session_id="s1", num_results=1)
        assert changed["model_version"] != answers[0]["model_version"]

    async def test_what_cannot_be_had_any_more_is_said(self, api: Installation) -> None:
        api.remember(events=[event("mug", 60)])
        personal = await api.post("/v1/recommendations", user_id="u1", session_id="s1", num_results=2)
        unnamed = await api.post("/v1/recommendations", user_id="u1", num_results=2, consent={"store": False})
        assert (await self.replayed(api, personal))["is_same"] is True
        assert (await self.replayed(api, unnamed))["why_not"] == ["subject_not_logged"]
        api.remember(events=[event("hoe", 60)])
        assert (await self.replayed(api, personal))["why_not"] == ["session_gone"]
        api.remember(events=[event("mug", 60)], flags=FLAG_PERSONALIZE_DENIED)
        withdrawn = await api.get(f"/v1/decisions/{personal['recommendation_id']}")
        assert withdrawn["replay"]["why_not"] == ["consent_withdrawn"]
        assert (withdrawn["decision"]["subject"], withdrawn["decision"]["inputs"]) == (None, {})
        api.remember(events=[event("mug", 60)])
        api.redis.delete(candidates_key(api.version, "u1"))
        assert (await self.replayed(api, personal))["why_not"] == ["personal_list_gone"]
        missing = await api.client.get("/v1/decisions/nobody-made-this")
        assert (missing.status_code, missing.json()["type"]) == (404, "urn:nightjar:problem:unknown-decision")

    async def test_stock_is_not_logged_so_a_difference_says_what_may_not_be_shown_now(self, api: Installation) -> None:
        answer = await api.post("/v1/recommendations", num_results=2)
        catalogue = api.app.state.services.recommender._shelf.current
        catalogue.refusals[N["hoe"]] = "hidden"
        replay = await self.replayed(api, answer)
        assert (replay["is_possible"], replay["is_same"]) == (True, False)
        assert replay["differences"][0] == {"rank": 1, "decided": "hoe", "replayed": "pan", "why": "hidden"}


async def test_a_page_keeps_to_placements_and_a_replay_to_the_policy_and_its_chance(api: Installation) -> None:
    places = [
        {"placement": "cart", "num_results": 5},  # its preset: two of one category at most, nothing from the cart
        {"kind": "new", "num_results": 3},
    ]
    api.remember(cart=[CartChange(NOW - 9 * SECOND, False, 1, "tin")], seen={"pan": NOW - 9 * SECOND})
    page = await api.post("/v1/pages/basket", user_id="u1", placements=places)
    first = page["placements"][0]
    kinds = [item["attributes"]["category"] for item in first["items"]]
    assert "tin" not in ids(first)
    assert kinds.count(TEA) == 2
    explored = await api.post("/v1/recommendations", user_id="u1", num_results=3, exploration=0.2, item_ids=list(N))
    assert min(api.last_decision()["propensities"]) < 1
    api.remember(cart=[CartChange(NOW + SECOND, False, 1, "mug")], seen={"pan": NOW - 9 * SECOND, "cup": NOW + SECOND})
    found = await api.get(f"/v1/decisions/{explored['recommendation_id']}")
    assert (found["replay"]["why_not"], found["replay"]["is_same"]) == ([], True)
