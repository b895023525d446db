"""The lists of their own kind, a given list in order, pages and batches, over HTTP, on real Redis.

The shop is small and lopsided: every expected order is worked out by hand from the numbers below.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import redis

from feature_repo.contracts.decisions import read_decision
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.feature_table import FEATURE_VIEWS
from feature_repo.contracts.keys import (
    candidates_key,
    partition_of,
    pointer_key,
    purchases_key,
    session_key,
    trend_key,
)
from feature_repo.contracts.packing import (
    FLAG_PERSONALIZE_DENIED,
    ItemMark,
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
from feature_repo.contracts.session_record import CartChange
from feature_repo.contracts.trend_record import TrendTable, pack_trend
from serving.adapters.decision_log import MemoryDecisionLog
from serving.adapters.feast_online import entity_key, feature_field, timestamp_field
from serving.adapters.memory_event_log import MemoryEventLog
from serving.api import list_schemas, schemas
from serving.api.profile_schemas import DecisionResponse, ProfileResponse
from serving.main import create_app
from serving.pipeline.own_items import buy_again_slate
from serving.pipeline.values import Person, SlateRequest
from serving.settings import ServingSettings
from tests.serving_builders import Shop

pytestmark = pytest.mark.redis

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

    def vote(self, window: int, bucket: int, votes: dict[str, int], partition: int = 0) -> None:
        table = TrendTable(window, bucket, votes, sum(votes.values()))
        self.redis.set(trend_key(window, bucket, partition), pack_trend(table))

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


@pytest.fixture
async def api(environment: Environment, redis_url: str) -> AsyncIterator[Installation]:
    installation = Installation(environment, redis_url)
    yield installation
    await installation.close()


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def words(answer: dict[str, Any]) -> list[str]:
    return [item["reasons"][0]["text"] for item in answer["items"]]


def event(item: str, seconds_ago: int, kind: str = "view_item", session: str = "s1") -> SessionEvent:
    return SessionEvent(NOW - seconds_ago * SECOND, kind, session_hash(session), item)


class TestRank:
    async def test_the_list_then_popularity_then_the_given_order_then_the_unknown(self, api: Installation) -> None:
        given = ["pot", "zzz", "cup", "old", "hoe", "mug", "pot", "tin", "aaa", "out"]
        answer = await api.post("/v1/rank", user_id="u1", item_ids=given)
        # tin and mug are on the list (4.0, 1.0); hoe (9) and cup (3) are popular; pot is nothing; old and out may not
        # be shown; zzz and aaa are unknown, in the order given.
        assert ids(answer) == ["tin", "mug", "hoe", "cup", "pot", "zzz", "aaa"]
        assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5, 6, 7]
        scores = [item["score"] for item in answer["items"]]
        assert scores == [1.0, 0.25, round(0.25 * 0.999, 6), round(0.25 * 0.999 / 3, 6), 0.0, 0.0, 0.0]
        assert [item["source"] for item in answer["items"]] == [
            "als", "als", "popularity", "popularity", "given", "given", "given",
        ]  # fmt: skip
        assert answer["unknown_item_ids"] == ["zzz", "aaa"]
        assert answer["items"][-1]["attributes"] == {"title": None, "category": None, "price": None}
        assert (answer["fallback_level"], answer["fallback_reason"]) == ("personal", None)
        assert answer["filtered"] == {"hidden": 1, "out_of_stock": 1}
        list_schemas.RankResponse.model_validate(answer)

    async def test_the_session_votes_and_what_was_dismissed_goes_behind(self, api: Installation) -> None:
        api.remember(events=[event("mug", 60)], dismissed=[ItemMark(NOW - 90 * SECOND, "tin")])
        answer = await api.post("/v1/rank", user_id="u1", item_ids=["tin", "pot", "cup"], explain=True)
        assert ids(answer) == ["cup", "pot", "tin"]
        assert answer["items"][0]["source"] == "session"
        assert words(answer)[0] == "because you viewed Blue Mug"
        assert words(answer)[1] == "in the order given"
        silent = await api.post("/v1/rank", user_id="u1", item_ids=["tin", "pot", "cup"])
        assert ids(silent) == ids(answer)
        assert [item["reasons"] for item in silent["items"]] == [[], [], []]

    async def test_without_consent_and_for_nobody_it_is_popularity_then_the_given_order(
        self, api: Installation
    ) -> None:
        asked = {"item_ids": ["tin", "pot", "mug", "hoe"], "num_results": 3}
        nobody = await api.post("/v1/rank", **asked)
        assert (ids(nobody), nobody["fallback_level"]) == (["hoe", "tin", "pot"], "popular")
        assert nobody["fallback_reason"] == "no_user"
        api.remember(events=[event("mug", 60)], flags=FLAG_PERSONALIZE_DENIED)
        refusing = await api.post("/v1/rank", user_id="u1", **asked)
        assert (refusing["items"], refusing["fallback_reason"]) == (nobody["items"], "consent")
        nothing_known = await api.post("/v1/rank", item_ids=["pot", "mug"])
        assert (ids(nothing_known), nothing_known["fallback_level"]) == (["pot", "mug"], "given")

    async def test_five_hundred_are_taken_and_no_more(self, api: Installation) -> None:
        many = [f"x{n}" for n in range(499)] + ["mug"]
        answer = await api.post("/v1/rank", item_ids=many)
        assert (len(answer["items"]), ids(answer)[0], ids(answer)[1]) == (500, "mug", "x0")
        response = await api.client.post("/v1/rank", json={"item_ids": [*many, "y"]})
        assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "item_ids")
        assert (await api.client.post("/v1/rank", json={"item_ids": []})).status_code == 422

    async def test_the_decision_names_what_was_given(self, api: Installation) -> None:
        answer = await api.post("/v1/rank", user_id="u1", item_ids=["mug", "zzz", "tin"], placement="search")
        said = api.last_decision()
        assert (said["id"], said["kind"], said["placement"]) == (answer["recommendation_id"], "rank", "search")
        assert (said["items"], said["subject"]) == (["tin", "mug", "zzz"], "u:u1")
        assert said["inputs"]["item_ids"] == ["mug", "zzz", "tin"]
        assert said["numbers"] == [N["tin"], N["mug"], -1]


class TestTrending:
    hour = NOW // SECOND // 300

    def count(self, api: Installation) -> None:
        """Two partitions, two buckets of the last hour, one of the hour before, one of five minutes."""
        api.vote(1, self.hour, {"cup": 2, "old": 9, "mug": 1})
        api.vote(1, self.hour - 11, {"pan": 4, "cup": 1, "gone": 7}, partition=2)
        api.vote(1, self.hour - 12, {"hoe": 50})
        api.vote(0, NOW // SECOND // 60, {"tin": 1})

    async def test_the_votes_of_the_window_for_everything_a_category_a_region(self, api: Installation) -> None:
        self.count(api)
        answer = await api.post("/v1/trending", num_results=3)
        assert (ids(answer), answer["fallback_level"]) == (["pan", "cup", "mug"], "trending")
        assert answer["trend"] == {
            "window": "1h", "votes": {"pan": 4, "cup": 3, "mug": 1}, "error": 0, "is_regional": False,
        }  # fmt: skip
        assert words(answer) == ["trending in the last hour"] * 3
        assert {item["source"] for item in answer["items"]} == {"trending"}
        list_schemas.TrendingResponse.model_validate(answer)
        tea = await api.get("/v1/trending?category=Home+%3E+Tea&num_results=3")
        assert ids(tea) == ["cup", "mug", "tin"]  # the last one is popular there
        assert words(tea)[2] == "popular in Home > Tea"
        german = await api.get("/v1/trending?region=DE&num_results=2")
        assert (ids(german), german["trend"]["is_regional"]) == (["cup", "hoe"], True)
        five = await api.get("/v1/trending?window=5m&num_results=1")
        assert ids(five) == ["tin"]

    async def test_a_quiet_shop_shows_what_is_popular_and_says_so(self, api: Installation) -> None:
        answer = await api.post("/v1/trending", num_results=2, window="1d")
        assert (ids(answer), answer["fallback_level"]) == (["hoe", "pan"], "popular")
        assert answer["fallback_reason"] == "no_eligible_candidates"
        assert api.last_decision()["inputs"]["window"] == "1d"
        wrong = await api.client.post("/v1/trending", json={"window": "2h"})
        assert wrong.status_code == 422

    async def test_what_a_person_bought_leaves_theirs_alone(self, api: Installation) -> None:
        self.count(api)
        api.remember(bought=[ItemMark(NOW - SECOND, "pan")])
        assert ids(await api.post("/v1/trending", num_results=1, user_id="u1")) == ["cup"]
        assert ids(await api.post("/v1/trending", num_results=1)) == ["pan"]

    async def test_votes_are_read_once_a_second_whoever_asks(self, api: Installation) -> None:
        self.count(api)
        await api.post("/v1/trending")
        api.vote(1, self.hour, {"tin": 99})
        assert ids(await api.post("/v1/trending", num_results=1)) == ["pan"]
        board = api.app.state.services.lists._board
        board._timer = lambda timer=board._timer: timer() + 1.5
        assert ids(await api.post("/v1/trending", num_results=1)) == ["tin"]


class TestBoughtTogether:
    async def test_with_an_item_and_topped_up_in_its_category(self, api: Installation) -> None:
        answer = await api.post("/v1/bought-together", item_id="pot", num_results=4)
        assert ids(answer) == ["cup", "mug", "tin", "hoe"]  # old is hidden
        assert words(answer) == ["often bought together with Tea Pot"] * 2 + [
            "popular in Home > Tea", "popular with everybody",
        ]  # fmt: skip
        assert (answer["fallback_level"], answer["item_ids"]) == ("bought_together", ["pot"])
        list_schemas.BoughtTogetherResponse.model_validate(answer)
        lonely = await api.get("/v1/bought-together?item_id=hoe&num_results=1")
        assert (lonely["fallback_level"], lonely["fallback_reason"]) == ("popular", "no_eligible_candidates")

    async def test_with_a_cart_scores_add_up_and_the_loudest_is_named(self, api: Installation) -> None:
        answer = await api.post("/v1/bought-together", item_ids=["tin", "pot", "zzz"], num_results=2)
        # cup 0.5 + 0.2, mug 0.25 + 0.3
        assert ids(answer) == ["cup", "mug"]
        assert [item["reasons"][0]["item_id"] for item in answer["items"]] == ["pot", "tin"]
        assert answer["items"][1]["score"] == round(0.55 / 0.7, 6)
        assert answer["unknown_item_ids"] == ["zzz"]
        assert api.last_decision()["inputs"]["item_ids"] == ["tin", "pot", "zzz"]

    async def test_without_items_the_cart_that_we_know(self, api: Installation) -> None:
        api.remember(cart=[CartChange(NOW - 9 * SECOND, False, 1, "tin"), CartChange(NOW - SECOND, False, 1, "pan")])
        answer = await api.post("/v1/bought-together", user_id="u1", num_results=2)
        assert (answer["item_ids"], ids(answer)) == (["pan", "tin"], ["mug", "cup"])
        assert api.last_decision()["inputs"]["item_ids"] == []  # theirs, and not said in the request
        empty = await api.post("/v1/bought-together", user_id="u2", num_results=1)
        assert (empty["fallback_level"], empty["fallback_reason"]) == ("popular", "unknown_item")

    async def test_what_cannot_be_asked(self, api: Installation) -> None:
        post = api.client.post
        assert (await post("/v1/bought-together", json={"item_id": "zzz"})).status_code == 404
        both = await post("/v1/bought-together", json={"item_id": "pot", "item_ids": ["tin"]})
        assert "not both" in both.json()["errors"][0]["expected"]
        assert (await post("/v1/bought-together", json={})).status_code == 422

    async def test_a_version_without_the_file_answers_without_it(self, api: Installation) -> None:
        api.publish(Shop({"pot": {"category": TEA}, "cup": {"category": TEA}}, popular=[("cup", 1.0)]))
        answer = await api.post("/v1/bought-together", item_id="pot")
        assert (ids(answer), answer["fallback_level"]) == (["cup"], "popular")


class TestBuyAgain:
    def last(self, days: float) -> int:
        return NOW // SECOND - int(days * DAY)

    async def test_worth_and_due_by_hand(self, api: Installation) -> None:
        api.buy(
            Purchase(N["tin"], 4, self.last(10), 10.0, 2.0),  # due now: 2 x 1
            Purchase(N["cup"], 6, self.last(1), 20.0, 3.0),  # d = 0.05: 3 x sqrt(0.05 e^0.95) = 1.078689
            Purchase(N["mug"], 1, self.last(40), 20.0, 1.0),  # d = 2: 1 x sqrt(2 e^-1) = 0.8578
            Purchase(N["out"], 9, self.last(5), 5.0, 9.0),
        )
        answer = await api.post("/v1/buy-again", user_id="u1")
        assert ids(answer) == ["tin", "cup", "mug"]
        scores = [item["score"] for item in answer["items"]]
        assert scores == [pytest.approx(s, abs=2e-6) for s in (2 / 9, 1.078689 / 9, 0.857764 / 9)]
        assert words(answer) == [
            "you bought it 4 times; you buy it about every 10 days",
            "you bought it 6 times; you buy it about every 20 days",
            "you bought it once; people buy it about every 20 days",
        ]
        assert (answer["fallback_level"], answer["fallback_reason"]) == ("buy_again", None)
        assert answer["filtered"] == {"out_of_stock": 1}
        assert {item["source"] for item in answer["items"]} == {"repurchase"}

    async def test_what_was_bought_since_the_night_is_not_due_and_the_cart_leaves(self, api: Installation) -> None:
        api.buy(Purchase(N["tin"], 4, self.last(10), 10.0, 2.0), Purchase(N["cup"], 2, self.last(20), 20.0, 1.0),
                Purchase(N["mug"], 2, self.last(20), 20.0, 0.5))  # fmt: skip
        api.remember(
            bought=[ItemMark(NOW - 60 * SECOND, "tin")],
            cart=[CartChange(NOW - SECOND, False, 1, "mug")],
        )
        answer = await api.post("/v1/buy-again", user_id="u1")
        assert ids(answer) == ["cup", "tin"]  # tin: worth 3, but d = 7e-5
        assert words(answer)[1].startswith("you bought it 5 times")
        assert answer["filtered"] == {"in_cart": 1}

    async def test_nothing_tops_it_up_and_it_says_why_it_is_empty(self, api: Installation) -> None:
        reasons = {}
        questions: dict[str, dict[str, Any]] = {
            "nobody": {}, "unknown": {"user_id": "u9"},
            "refusing": {"user_id": "u1", "consent": {"personalize": False}},
        }  # fmt: skip
        for name, question in questions.items():
            answer = await api.post("/v1/buy-again", **question)
            assert (answer["items"], answer["fallback_level"]) == ([], "none")
            reasons[name] = answer["fallback_reason"]
        assert reasons == {"nobody": "no_user", "unknown": "no_purchases", "refusing": "consent"}

    async def test_consent_that_was_said_to_the_session_is_heard_and_nothing_is_read(self, api: Installation) -> None:
        bought = Purchase(N["tin"], 4, self.last(10), 10.0, 2.0)
        api.buy(bought)
        reads: list[Any] = []
        purchases = api.app.state.services.purchases
        read = purchases.read

        async def watched(*asked: str) -> Any:
            reads.append(asked)
            return await read(*asked)

        purchases.read = watched
        assert len((await api.post("/v1/buy-again", user_id="u1"))["items"]) == 1
        api.remember(flags=FLAG_PERSONALIZE_DENIED)
        answer = await api.post("/v1/buy-again", user_id="u1")
        assert (answer["items"], answer["fallback_reason"]) == ([], "consent")
        assert reads == [(api.version, "u1")]
        catalogue = api.app.state.services.recommender._shelf.current
        question = SlateRequest(5, user_id="u1", personalize=False)
        slate = buy_again_slate([bought], question, Person(), catalogue, due_power=0.5, now_micros=NOW)
        assert (slate.items, slate.fallback_reason) == ([], "consent")

    async def test_a_damaged_record_and_one_of_another_version_degrade(self, api: Installation) -> None:
        key = purchases_key(api.version, "u1")
        other = pack_purchases("2024-03-08-00000001", [Purchase(N["tin"], 1, 0, 1.0, 1.0)])
        for record in (b"\x01\x00", other):
            api.redis.set(key, record)
            answer = await api.post("/v1/buy-again", user_id="u1")
            assert answer["degraded_reasons"] == ["purchases_damaged"]
            assert answer["fallback_reason"] == "purchases_damaged"


class TestContinue:
    async def test_cart_then_wishes_then_looks_the_newest_first(self, api: Installation) -> None:
        api.remember(
            events=sorted(
                [
                    event("pan", 600), event("mug", 500), event("cup", 400, "add_to_wishlist"), event("hoe", 300),
                    event("tin", 250), event("pot", 200, "add_to_cart"), event("tin", 100, "purchase"),
                ]
            ),
            cart=[CartChange(NOW - 200 * SECOND, False, 1, "pot")],
            bought=[ItemMark(NOW - 100 * SECOND, "tin")],
            dismissed=[ItemMark(NOW - 50 * SECOND, "hoe")],
        )  # fmt: skip
        answer = await api.post("/v1/continue", user_id="u1", session_id="s1")
        assert ids(answer) == ["pot", "cup", "mug", "pan"]
        assert words(answer) == ["still in your cart", "you put it on your wishlist"] + ["you looked at it"] * 2
        assert (answer["fallback_level"], answer["filtered"]) == ("continue", {"dismissed": 1})

    async def test_a_new_session_continues_the_last_one(self, api: Installation) -> None:
        api.remember(
            events=[event("pan", 9 * DAY, session="s0"), event("cup", 2 * DAY), event("mug", 2 * DAY - 60)],
        )
        fresh = await api.get("/v1/continue?user_id=u1&session_id=s2")
        assert ids(fresh) == ["mug", "cup"]
        running = await api.post("/v1/continue", user_id="u1", session_id="s2", session_items=["pot"])
        assert ids(running) == ["pot"]
        brought = [{"event_type": "add_to_cart", "item_id": "hoe"}, {"event_type": "view_item", "item_id": "pot"}]
        cart = await api.post("/v1/continue", anonymous_id="new", recent_events=brought)
        assert (ids(cart), words(cart)) == (["hoe", "pot"], ["still in your cart", "you looked at it"])

    async def test_nothing_begun(self, api: Installation) -> None:
        assert (await api.post("/v1/continue", user_id="u1"))["fallback_reason"] == "nothing_begun"
        assert (await api.post("/v1/continue"))["fallback_reason"] == "no_user"


class TestNew:
    async def test_the_newest_first_then_older_ones_then_what_is_popular(self, api: Installation) -> None:
        answer = await api.post("/v1/new", num_results=6)
        assert ids(answer) == ["mug", "hoe", "cup", "pot", "tin", "pan"]  # old is hidden; pan has no date
        assert words(answer)[0] == "new since 2024-03-07"
        assert [item["source"] for item in answer["items"]] == ["new"] * 5 + ["popularity"]
        # as_of is the 8th: mug is a day old, hoe two; the scale is set by the hidden vase, half a day old
        assert [item["score"] for item in answer["items"][:2]] == [
            pytest.approx(0.5 ** (0.5 / 7), abs=1e-6), pytest.approx(0.5 ** (1.5 / 7), abs=1e-6),
        ]  # fmt: skip
        young = await api.get("/v1/new?max_age_days=3&num_results=3")
        assert ids(young) == ["mug", "hoe", "cup"]
        assert ids(await api.post("/v1/new", context={"category": GARDEN}, num_results=1)) == ["hoe"]

    async def test_in_this_persons_order(self, api: Installation) -> None:
        day = NOW // SECOND // DAY
        api.remember(interests={(day, "out"): 8}, first_micros=1)  # all of their interest is in the garden
        answer = await api.post("/v1/new", user_id="u1", num_results=2)
        assert ids(answer) == ["hoe", "mug"]
        assert words(answer) == ["new since 2024-03-06, in Garden, where you look", "new since 2024-03-07"]
        refusing = await api.post("/v1/new", user_id="u1", num_results=2, consent={"personalize": False})
        assert ids(refusing) == ["mug", "hoe"]


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
        trend = await api.post("/v1/trending", num_results=2)
        assert (await self.replayed(api, personal))["is_same"] is True
        assert (await self.replayed(api, unnamed))["why_not"] == ["subject_not_logged"]
        assert (await self.replayed(api, trend))["why_not"] == ["inputs_not_kept"]
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


async def test_every_example_works_and_every_list_has_the_common_shape(api: Installation) -> None:
    document = (await api.client.get("/openapi.json")).json()
    paths = {"rank", "trending", "bought-together", "buy-again", "continue", "new", "recommendations", "similar"}
    common = set(schemas.RecommendationResponse.model_fields) - {"degraded_reasons", "filtered", "trace"}
    tried = 0
    for path, call in document["paths"].items():
        if path.removeprefix("/v1/") not in paths:
            continue
        name = call["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for example in document["components"]["schemas"][name]["examples"]:
            response = await api.client.post(path, content=json.dumps(example).replace('"i7"', '"pot"'))
            assert response.status_code == 200, (path, response.text)
            assert set(response.json()) >= common, path
            tried += 1
    assert tried == 15


async def test_trends_go_on_from_the_last_copy_when_the_store_is_gone(api: Installation) -> None:
    assert partition_of("u:u1") < 4
    TestTrending().count(api)
    await api.post("/v1/trending")
    lists = api.app.state.services.lists
    timer = lists._board._timer
    lists._board._timer = lambda: timer() + 2

    class Gone:
        async def read(self, *_: Any, **__: Any) -> Any:
            from feature_repo.contracts.errors import DependencyError

            raise DependencyError("gone")

    lists._board._store = Gone()
    answer = await api.post("/v1/trending", num_results=1)
    assert (ids(answer), answer["degraded_reasons"]) == (["pan"], ["trends_unavailable"])
    lists._board._timer = lambda: timer() + 400
    answer = await api.post("/v1/trending", num_results=1)
    assert (ids(answer), answer["fallback_level"]) == (["hoe"], "popular")


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


async def test_a_parameter_of_another_route_is_a_422_in_words(api: Installation) -> None:
    answer = await api.client.get("/v1/similar?context=NaN&category=%00")
    assert answer.status_code == 422
    fields = {problem["field"] for problem in answer.json()["errors"]}
    assert {"context", "category"} <= fields
