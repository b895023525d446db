"""The API over HTTP, in process, on stores in memory: answers, consent, versions, degraded answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from feature_repo.contracts.decisions import read_decision
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import candidates_key, pointer_key, session_key
from feature_repo.contracts.list_shares import ListPart, pack_shares
from feature_repo.contracts.packing import (
    FLAG_PERSONALIZE_DENIED,
    ItemMark,
    PackedCandidate,
    Source,
    pack_candidates,
    unpack_candidates,
)
from serving.adapters.feast_online import entity_key
from serving.adapters.memory_event_log import MemoryEventLog
from serving.adapters.online import SEGMENT_FIELD, SEGMENT_TIME_FIELD, MemoryOnlineStore
from serving.api import schemas
from serving.main import create_app
from serving.settings import ServingSettings
from serving.settled import STALE_FEATURE
from tests.http_world import ITEMS, Installation, click, ids, metric, shop
from tests.serving_builders import TENANT


@pytest.fixture
async def shop_floor(environment: Environment) -> AsyncIterator[Installation]:
    installation = Installation(environment)
    yield installation
    await installation.client.aclose()


@pytest.fixture
async def api(shop_floor: Installation) -> Installation:
    shop_floor.publish(shop())
    return shop_floor


class TestRecommendations:
    async def test_an_answer_from_end_to_end(self, api: Installation) -> None:
        response = await api.client.post("/v1/recommendations", json={"user_id": "u1", "num_results": 2})
        version = api.store.strings[pointer_key()].decode()
        assert response.json() == {
            "recommendation_id": "id2",
            "placement": "default",
            "items": [
                {
                    "item_id": item,
                    "score": score,
                    "rank": rank,
                    "source": "als",
                    "reasons": [
                        {"item_id": "i05", "title": "Item i05", "text": "because of your interest in Item i05"}
                    ],
                    "attributes": {"title": f"Item {item}", "category": "Home > Kitchen", "price": 2.5},
                }
                for rank, item, score in ((1, "i10", 1.0), (2, "i11", 0.966667))
            ],
            "model_version": version,
            "took_ms": response.json()["took_ms"],
            "fallback_level": "personal",
            "fallback_reason": None,
            "degraded": False,
            "freshness": {
                "model": 46800.0,
                "data": 54000.0,
                "candidates": 36000.0,
                "features": None,
                "session": None,
                "catalogue": None,
            },
            "experiments": [],
        }
        assert response.json()["took_ms"] > 0
        assert response.headers["x-request-id"] == "id1"
        assert response.headers["content-type"] == "application/json"

    async def test_answers_follow_the_declared_schema(self, api: Installation) -> None:
        api.remember("i41")
        questions: list[dict[str, Any]] = [
            {"user_id": "u1"},
            {"user_id": "u1", "session_id": "s1", "explain": True, "num_results": 100},
            {"consent": {"personalize": False}, "context": {"category": "Toys"}},
        ]
        declared = schemas.RecommendationResponse
        levels = [declared.model_validate(await api.ask(**question)).fallback_level for question in questions]
        assert levels == ["personal", "personal", "category"]
        similar = await api.client.post("/v1/similar", json={"item_id": "i59", "explain": True})
        assert declared.model_validate(similar.json()).fallback_level == "category"

    async def test_three_clicks_in_a_category_change_the_slate_and_say_why(self, api: Installation) -> None:
        clicks = ["i40", "i45", "i50"]  # toys: not one of u1's thirty candidates
        before = await api.ask(user_id="u1", session_id="s0")
        api.remember(*clicks)
        during = await api.ask(user_id="u1", session_id="s1")
        new = [item for item in during["items"] if item["item_id"] not in ids(before)]
        assert len(new) >= 3
        assert all(item["source"] == "session" for item in new)
        assert {reason["item_id"] for item in new for reason in item["reasons"]} <= set(clicks)
        assert new[0]["reasons"][0]["text"].startswith("because you viewed Item i")
        assert not set(ids(during)) & set(clicks)
        # A new session restores the first slate; somebody else never noticed.
        after = await api.ask(user_id="u1", session_id="s2")
        assert json.dumps(after["items"]) == json.dumps(before["items"])

    async def test_the_request_may_bring_the_session_itself(self, api: Installation) -> None:
        stored = Installation.remember
        stored(api, "i40", "i45")
        by_store = await api.ask(user_id="u1", session_id="s1")
        del api.store.strings[session_key("u:u1")]
        brought = [
            {"event_type": "detail-page-view", "item_id": "i40", "timestamp": "2024-03-08T12:58:00Z"},
            {"event_type": "view_item", "item_id": "i45", "timestamp": "2024-03-08T12:59:00Z"},
        ]
        by_request = await api.ask(user_id="u1", session_id="s1", recent_events=brought)
        assert by_request["items"] == by_store["items"]
        short = await api.ask(user_id="u1", session_items=["i40", "i45"], explain=True)
        assert [event["item_id"] for event in short["trace"]["session"]] == ["i40", "i45"]
        assert short["freshness"]["session"] == 0.0

    async def test_an_anonymous_visitors_session_is_their_own(self, api: Installation) -> None:
        api.remember("i40", subject="a:visitor")
        theirs = await api.ask(anonymous_id="visitor", num_results=3)
        assert (theirs["items"][0]["item_id"], theirs["items"][0]["source"]) == ("i41", "session")
        assert theirs["freshness"]["session"] == 60.0
        known = await api.ask(anonymous_id="visitor", user_id="u1", num_results=3)  # a user is a user
        assert known["fallback_level"] == "personal"
        assert known["freshness"]["session"] is None

    async def test_get_asks_the_same(self, api: Installation) -> None:
        await api.ask()  # the version is loaded
        api.remember("i40")
        query = (
            "user_id=u1&session_id=s1&num_results=4&category=Toys&region=DE&session_items=i41&session_items=i45"
            "&exclude_item_ids=i42&explain=true&placement=home&personalize=1"
        )
        got = (await api.client.get(f"/v1/recommendations?{query}")).json()
        posted = await api.ask(
            user_id="u1", session_id="s1", num_results=4, context={"category": "Toys", "region": "DE"},
            session_items=["i41", "i45"], exclude_item_ids=["i42"], explain=True, placement="home",
            consent={"personalize": True},
        )  # fmt: skip
        for volatile in ("recommendation_id", "took_ms"):
            got.pop(volatile), posted.pop(volatile)
        assert got == posted
        assert len(got["items"]) == 4

    async def test_get_can_say_that_nothing_is_to_be_kept(self, api: Installation) -> None:
        def logged() -> tuple[Any, Any, Any]:
            decision = read_decision(api.decisions.payloads[-1])
            return decision["subject"], decision["session"], decision["inputs"].get("store")

        for path in ("/v1/recommendations?", "/v1/trending?", "/v1/similar?item_id=i00&", "/v1/pages/search?"):
            for text, kept in (("false", False), ("0", False), ("true", True)):
                answer = await api.client.get(f"{path}user_id=u1&store={text}")
                assert answer.status_code == 200, answer.text
                assert logged()[0] == ("u:u1" if kept else None)
                assert logged()[2] is (None if kept else False)
        wrong = await api.client.get("/v1/recommendations?store=never")
        assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "consent.store")

    async def test_a_short_answer_counts_what_was_filtered(self, api: Installation) -> None:
        answer = await api.ask(user_id="u1", num_results=5, exclude_item_ids=ITEMS[2:])
        assert sorted(ids(answer)) == ["i00", "i01"]
        assert answer["filtered"] == {"excluded": 58}
        assert "trace" not in answer
        assert "filtered" not in await api.ask(user_id="u1", num_results=5)

    async def test_explain_shows_the_way(self, api: Installation) -> None:
        api.remember("i40")
        trace = (await api.ask(user_id="u1", session_id="s1", num_results=2, explain=True))["trace"]
        assert list(trace["stages_ms"]) == ["consent", "identify", "session", "candidates", "score", "order", "explain"]
        assert trace["rungs"] == [{"rung": "personal", "offered": 30, "eligible": 30}]
        assert trace["session"] == [{"event_type": "view_item", "item_id": "i40", "age_seconds": 60.0}]
        assert (trace["session_weight"], trace["personalized"]) == (2.0, True)
        assert trace["scores"]["i41"] == {"base": 0.0, "vote": 1.0}
        # Without a session two candidates would have been enough to look at; who asks for the way sees all of it.
        calm = await api.ask(user_id="u1", session_id="s9", num_results=2, explain=True, exclude_item_ids=["i39"])
        assert calm["trace"]["rungs"] == [{"rung": "personal", "offered": 30, "eligible": 29}]
        assert calm["filtered"] == {"excluded": 1}

    async def test_explain_tells_what_each_source_has_of_an_item(self, api: Installation) -> None:
        """Of all that the list says als has .7, the graph filter .2, popularity .1; the rest is the session's."""
        version = api.store.strings[pointer_key()].decode()
        key = candidates_key(version, "u1")
        rows, _ = unpack_candidates(api.store.strings[key])
        parts = (ListPart.ALS, ListPart.GRAPH_FILTER, ListPart.POPULARITY)
        told = pack_shares(parts, [(175, 50, 25)] * len(rows))
        api.remember("i24")
        question = {"user_id": "u1", "session_id": "s1", "num_results": 20, "explain": True}
        before = {item["item_id"]: item for item in (await api.ask(**question))["items"]}
        assert before["i10"]["sources"] == [{"name": "list", "share": 1.0}]
        api.store.strings[key] = pack_candidates(version, rows, shares=told)
        answer = await api.ask(**question)
        assert schemas.RecommendationResponse.model_validate(answer).degraded is False
        weight, scores = answer["trace"]["session_weight"], answer["trace"]["scores"]
        compared = 0
        for item in answer["items"]:
            base, said = scores[item["item_id"]]["base"], weight * scores[item["item_id"]]["vote"]
            expected = {"als": 0.7 * base, "graph_filter": 0.2 * base, "popularity": 0.1 * base, "session": said}
            found = {source["name"]: source["share"] for source in item["sources"]}
            assert found.keys() == {name for name, value in expected.items() if value > 0}
            assert found == pytest.approx({name: expected[name] / (base + said) for name in found}, abs=2e-4)
            assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)
            compared += "session" in found and "als" in found
        assert compared >= 3
        first = {item["item_id"]: item for item in answer["items"]}
        assert first["i10"]["sources"] == [
            {"name": "als", "share": 0.7}, {"name": "graph_filter", "share": 0.2}, {"name": "popularity", "share": 0.1},
        ]  # fmt: skip
        assert first["i10"]["explanation"] == (
            "Liked by people with a taste like yours (70 %), like items that you chose (20 %), popular with everybody "
            "(10 %), because of your interest in Item i05."
        )
        plain = await api.ask(**{**question, "explain": False})
        assert ids(plain) == ids(answer)
        assert all(item.keys().isdisjoint({"sources", "explanation"}) for item in plain["items"])
        named = await api.ask(**question, include=["brand"])
        assert [item["sources"] for item in named["items"]] == [item["sources"] for item in answer["items"]]

    async def test_the_segment_comes_from_feast_unless_it_is_too_old(self, api: Installation) -> None:
        def feature(category: bytes, as_of_day: int) -> None:
            stamp = (1_709_856_000 + (as_of_day - 8) * 86_400).to_bytes(5, "little")
            seconds = int.from_bytes(stamp, "little")
            varint = bytes([(seconds >> s & 0x7F) | 0x80 for s in (0, 7, 14, 21)] + [seconds >> 28])
            api.store.hashes[entity_key(["user_id"], ["u2"])] = {
                SEGMENT_FIELD: b"\x12" + bytes([len(category)]) + category,
                SEGMENT_TIME_FIELD: b"\x08" + varint,
            }

        feature(b"Toys", as_of_day=8)
        answer = await api.ask(user_id="u2", num_results=2)
        assert (answer["fallback_level"], ids(answer)) == ("segment", ["i40", "i41"])
        assert answer["items"][0]["source"] == "segment"
        assert answer["freshness"]["features"] == 46800.0
        feature(b"Toys", as_of_day=5)  # exactly the view's three days before the version's as_of: still good
        assert (await api.ask(user_id="u2"))["fallback_level"] == "segment"
        feature(b"Toys", as_of_day=4)
        stale = await api.ask(user_id="u2")
        assert (stale["fallback_level"], stale["degraded"], stale["degraded_reasons"]) == (
            "popular",
            True,
            [STALE_FEATURE],
        )


class TestConsent:
    """personalize=false, from wherever it comes: the non-personal rung, in the same shape."""

    @pytest.mark.parametrize("where", ["request", "session record", "candidates record"])
    async def test_personalize_false_gets_the_popular_slate(self, api: Installation, where: str) -> None:
        nobody = await api.ask()
        shape = await api.ask(user_id="u1", session_id="s1")
        question: dict[str, Any] = {"user_id": "u1", "session_id": "s1", "session_items": ["i41"]}
        flags = FLAG_PERSONALIZE_DENIED if where == "session record" else 0
        api.remember("i40", flags=flags, bought=[ItemMark(1, "i59")])
        if where == "request":
            question["consent"] = {"personalize": False}
        elif where == "candidates record":
            version = api.store.strings[pointer_key()].decode()
            record = pack_candidates(version, [], flags=FLAG_PERSONALIZE_DENIED)
            api.store.strings[candidates_key(version, "u1")] = record
        answer = await api.ask(**question)
        assert answer["items"] == nobody["items"]  # i59, bought, leads it: the person does not exist here
        assert (answer["fallback_level"], answer["fallback_reason"]) == ("popular", "consent")
        assert answer["freshness"]["session"] is None
        assert set(answer) == set(shape)

    async def test_a_yes_in_the_request_does_not_overrule_a_stored_no(self, api: Installation) -> None:
        api.remember("i40", flags=FLAG_PERSONALIZE_DENIED)
        answer = await api.ask(user_id="u1", consent={"personalize": True})
        assert answer["fallback_reason"] == "consent"

    async def test_a_no_in_the_request_reads_nothing_personal(self, api: Installation, monkeypatch: Any) -> None:
        await api.ask()
        asked: list[Any] = []
        read = api.store.read

        async def watched(**who: Any) -> Any:
            asked.append((who["user_id"], who["anonymous_id"]))
            return await read(**who)

        monkeypatch.setattr(api.store, "read", watched)
        await api.ask(user_id="u1", anonymous_id="a1", consent={"personalize": False})
        assert asked == [(None, None)]

    async def test_store_false_is_only_counted(self, api: Installation) -> None:
        before = await metric(api, "nightjar_api_events_not_stored_total")
        events = [
            click("e1", consent={"store": False}),
            {**click("e2"), "event_type": "?", "consent": {"store": False}},
        ]
        response = await api.client.post("/v1/events", json=events)
        results = response.json()["results"]
        assert results[0] == {"index": 0, "event_id": "e1", "status": "accepted", "stored": False}
        assert (results[1]["status"], results[1]["stored"]) == ("quarantined", False)
        assert (api.log.streams, api.log.marks, api.log.quarantined) == ({}, {}, [])
        assert await metric(api, "nightjar_api_events_not_stored_total") == before + 2


class TestVersions:
    async def test_nothing_published_yet(self, shop_floor: Installation) -> None:
        for method, path, body in (
            ("POST", "/v1/recommendations", {}),
            ("POST", "/v1/similar", {"item_id": "i1"}),
        ):
            response = await shop_floor.client.request(method, path, json=body)
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert response.headers["content-type"] == "application/problem+json"
            assert "put items" in response.json()["detail"]
            assert "run the night" in response.json()["detail"]
        assert (await shop_floor.client.get("/health/live")).status_code == 200
        assert (await shop_floor.client.get("/health/ready")).status_code == 200

    async def test_a_moved_pointer_costs_one_second_read_and_answers_never_mix(self, api: Installation) -> None:
        first = await api.ask(user_id="u1")
        api.store.reads = 0
        assert (await api.ask(user_id="u1", explain=True))["trace"]["online_reads"] == 1
        assert api.store.reads == 1
        second_version = api.publish(shop(model="knn"))
        moved = await api.ask(user_id="u1", explain=True)
        assert (moved["model_version"], moved["trace"]["online_reads"]) == (second_version, 2)
        assert (await api.ask(user_id="u1", explain=True))["trace"]["online_reads"] == 1
        api.store.strings[pointer_key()] = first["model_version"].encode()  # a rollback: the very next answer
        assert (await api.ask(user_id="u1"))["model_version"] == first["model_version"]

    async def test_a_record_of_another_version_is_refused(self, api: Installation) -> None:
        version = api.store.strings[pointer_key()].decode()
        stranger = pack_candidates("2024-03-08-00000001", [PackedCandidate(1, 1.0, Source.ALS)])
        api.store.strings[candidates_key(version, "u1")] = stranger
        answer = await api.ask(user_id="u1")
        assert (answer["fallback_level"], answer["fallback_reason"]) == ("popular", "candidates_of_another_version")
        assert (answer["degraded"], answer["degraded_reasons"]) == (True, ["candidates_of_another_version"])

    @pytest.mark.parametrize("damaged", ["candidates", "session"])
    async def test_a_damaged_record_degrades_to_the_popular_slate(self, api: Installation, damaged: str) -> None:
        """It might have said no to personalization, so nothing personal is used."""
        version = api.store.strings[pointer_key()].decode()
        key = candidates_key(version, "u1") if damaged == "candidates" else session_key("u:u1")
        api.store.strings[key] = b"\x01\x00\x09"
        answer = await api.ask(user_id="u1", session_items=["i40"])
        assert answer["items"] == (await api.ask())["items"]
        assert answer["degraded_reasons"] == [f"{damaged}_damaged"]
        assert answer["fallback_reason"] == f"{damaged}_damaged"

    async def test_a_bundle_that_cannot_be_loaded_leaves_the_old_version_serving(self, api: Installation) -> None:
        before = await api.ask(user_id="u1")
        api.store.strings[pointer_key()] = b"2024-03-09-00000000"
        answer = await api.ask(user_id="u1")
        assert (answer["items"], answer["model_version"]) == (before["items"], before["model_version"])
        assert answer["degraded_reasons"] == ["published_version_not_loaded"]

    async def test_the_store_goes_down_and_comes_back(self, api: Installation) -> None:
        personal = await api.ask(user_id="u1")
        api.store.is_down = True
        answer = await api.ask(user_id="u1", session_items=["i40"])
        assert answer["items"][0]["item_id"] == "i59"  # what everybody gets: consent cannot be read either
        assert (answer["fallback_level"], answer["fallback_reason"]) == ("popular", "online_store_unavailable")
        assert (answer["degraded"], answer["degraded_reasons"]) == (True, ["online_store_unavailable"])
        ready = await api.client.get("/health/ready")
        assert (ready.status_code, ready.json()["degraded"]) == (200, True)
        willing = await api.ask(user_id="u1", session_items=["i40"], consent={"personalize": True})
        assert "i41" in ids(willing)
        assert (await api.client.get("/metrics")).status_code == 200
        api.store.is_down = False
        assert (await api.ask(user_id="u1"))["items"] == personal["items"]


async def test_the_app_ends_although_its_store_loses_cancellations(environment: Environment) -> None:
    class Stubborn(MemoryOnlineStore):
        async def read(self, **_: Any) -> Any:
            for _ in range(20):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.02)
            raise DependencyError("late")

    settings = ServingSettings(pointer_poll_ms=1)
    app = create_app(environment, settings, store=Stubborn(tenant=TENANT), log=MemoryEventLog(tenant=TENANT))

    async def live_and_end() -> None:
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0.1)  # the watcher is in the middle of a read

    ended, _ = await asyncio.wait([asyncio.create_task(live_and_end())], timeout=20)
    assert len(ended) == 1
