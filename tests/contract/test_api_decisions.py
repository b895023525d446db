"""Every answer logs its decision: what it says of the answer, and what it says of the person."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from feature_repo.contracts.decisions import read_decision
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.identity import Edge, pack_edge
from feature_repo.contracts.keys import edges_key
from feature_repo.contracts.packing import SessionEvent, session_hash
from serving.api.decisions import session_digest, tuning_digest
from serving.main import new_id
from serving.pipeline.values import Tuning
from tests.http_world import NOW, Installation, ids, shop


@pytest.fixture
async def api(environment: Environment) -> AsyncIterator[Installation]:
    installation = Installation(environment)
    installation.publish(shop())
    yield installation
    await installation.client.aclose()


def logged(api: Installation) -> dict[str, Any]:
    """The only decision so far."""
    (one,) = api.decisions.payloads
    return read_decision(one)


async def test_a_decision_is_the_answer(api: Installation) -> None:
    api.remember("i20", "i21")
    answer = await api.ask(
        user_id="u1", session_id="s1", placement="start", num_results=4, context={"region": "DE"},
        exclude_item_ids=["i11", "i10"],
    )  # fmt: skip
    said = logged(api)
    assert len(answer["items"]) == 4
    assert said["items"] == ids(answer)
    assert [round(score, 6) for score in said["scores"]] == [item["score"] for item in answer["items"]]
    assert (said["id"], said["version"]) == (answer["recommendation_id"], answer["model_version"])
    assert (said["level"], said["placement"], said["kind"]) == ("personal", "start", "recommendations")
    assert (said["at"], said["subject"]) == (NOW, "u:u1")
    assert said["session"] == f"{session_hash('s1'):016x}"
    assert (said["propensities"], said["rules"], said["experiments"]) == ([1.0] * 4, [], [])
    session = said["inputs"].pop("session")
    assert (session["events"], session["newest"]) == (2, NOW - 60_000_000)
    assert said["inputs"] == {
        "num_results": 4, "region": "DE", "exclude_item_ids": ["i10", "i11"], "personalized": True,
        "tuning": tuning_digest(Tuning()),
    }  # fmt: skip


async def test_without_consent_to_store_nobody_is_in_it(api: Installation) -> None:
    api.remember("i20")
    question = {
        "user_id": "u1", "session_id": "s1", "num_results": 3, "exclude_item_ids": ["i11"], "session_items": ["i12"],
        "consent": {"store": False},
    }  # fmt: skip
    answer = await api.ask(**question)
    said = logged(api)
    assert said["items"] == ids(answer)
    assert (said["subject"], said["session"]) == (None, None)
    assert said["inputs"] == {
        "num_results": 3, "personalized": True, "store": False, "tuning": tuning_digest(Tuning())
    }  # fmt: skip
    assert "u1" not in json.dumps({**said, "items": []})


async def test_who_refuses_storing_through_the_users_api_is_in_none_under_any_of_their_names(api: Installation) -> None:
    at = Edge(NOW - 2, NOW - 1)
    api.store.hashes[edges_key("a:phone")] = {b"u:u1": pack_edge(at)}
    api.store.hashes[edges_key("u:u1")] = {b"a:phone": pack_edge(at)}
    async with api.app.router.lifespan_context(api.app):
        for question in ({"user_id": "u1", "session_id": "s1"}, {"anonymous_id": "phone"}):
            for stores in (False, True):
                said = {"consent": {"store": stores}}
                assert (await api.client.patch("/v1/users/u1", json=said)).status_code == 202
                api.decisions.payloads.clear()
                await api.ask(**question)
                assert (logged(api)["subject"] is not None) is stores, question
                assert logged(api)["inputs"].get("store") is (None if stores else False)


async def test_no_personalization_is_still_somebodys_answer(api: Installation) -> None:
    api.remember("i20")
    await api.ask(anonymous_id="a7", consent={"personalize": False})
    said = logged(api)
    assert (said["subject"], said["session"], said["reason"]) == ("a:a7", None, "consent")
    assert said["inputs"]["personalize"] is False
    assert said["inputs"]["personalized"] is False
    assert "session" not in said["inputs"]


async def test_a_degraded_answer_and_one_for_nobody(api: Installation) -> None:
    await api.ask()
    api.decisions.payloads.clear()
    api.store.is_down = True
    answer = await api.ask(recent_events=[{"event_type": "add_to_cart", "item_id": "i12"}])
    said = logged(api)
    assert answer["degraded_reasons"] == said["degraded"] == ["online_store_unavailable"]
    assert said["subject"] is None


async def test_similar_items_are_a_decision_about_an_item(api: Installation) -> None:
    response = await api.client.post(
        "/v1/similar", json={"item_id": "i05", "num_results": 3, "exclude_item_ids": ["i07"]}
    )
    answer = response.json()
    said = logged(api)
    assert len(answer["items"]) == 3
    assert (said["items"], said["id"]) == (ids(answer), answer["recommendation_id"])
    assert (said["kind"], said["placement"], said["subject"]) == ("similar", "similar", None)
    tuning = said["inputs"].pop("tuning")
    assert len(tuning) == 8
    assert said["inputs"] == {
        "num_results": 3, "item_id": "i05", "exclude_item_ids": ["i07"], "personalized": False
    }  # fmt: skip


async def test_what_is_refused_decides_nothing(api: Installation) -> None:
    assert (await api.client.post("/v1/recommendations", json={"num_results": 0})).status_code == 422
    assert (await api.client.post("/v1/similar", json={"item_id": "nowhere"})).status_code == 404
    assert api.decisions.payloads == []


def test_digests_and_ids() -> None:
    one, other = SessionEvent(1, "view_item", 0, "i1"), SessionEvent(2, "view_item", 0, "i2")
    assert len({session_digest(s) for s in ([], [one], [one, other], [other, one])}) == 4
    assert tuning_digest(Tuning()) != tuning_digest(Tuning(session_weight=2.0))
    made = [new_id() for _ in range(50)]
    assert len({len(one) for one in made} | {32}) == 1
    assert len(set(made)) == 50
    assert [one[:12] for one in made] == sorted(one[:12] for one in made)
