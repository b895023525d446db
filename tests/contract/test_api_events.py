"""The API over HTTP, in process, on stores in memory: errors, events, the document, metrics."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import partition_of, stream_key
from serving.api import schemas
from tests.http_world import NOW, SECOND, Installation, click, metric, problem_of, shop


@pytest.fixture
async def shop_floor(environment: Environment) -> AsyncIterator[Installation]:
    installation = Installation(environment)
    yield installation
    await installation.client.aclose()


@pytest.fixture
async def api(shop_floor: Installation) -> Installation:
    shop_floor.publish(shop())
    return shop_floor


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "field", "seen", "expected"),
        [
            ({"user": "u1"}, "user", "user", "did you mean 'user_id'"),
            ({"context": {"categry": "x"}}, "context.categry", "categry", "did you mean 'category'"),
            ({"consent": {"personalise": True}}, "consent.personalise", "personalise", "did you mean 'personalize'"),
            ({"recent_events": [{"event_type": "view_item", "item": "x", "item_id": "x"}]}, "recent_events.0.item",
             "item", "did you mean 'item_id'"),
            ({"num_results": 0}, "num_results", 0, "greater than or equal to 1"),
            ({"num_results": 101}, "num_results", 101, "less than or equal to 100"),
            ({"num_results": "10"}, "num_results", "10", "valid integer"),
            ({"num_results": 10**300}, "num_results", "1" + "0" * 79, "less than or equal to 100"),
            ({"context": -(2**63) - 1}, "context", "-9223372036854775809", "an object"),
            ({"user_id": ""}, "user_id", "", "1 to 256 bytes"),
            ({"user_id": "ü" * 129}, "user_id", "ü" * 80, "1 to 256 bytes"),
            ({"session_items": "i1"}, "session_items", "i1", "valid array"),
            ({"consent": {"personalize": "no"}}, "consent.personalize", "no", "valid boolean"),
            ({"recent_events": [{"event_type": "veiw_item", "item_id": "x"}]}, "recent_events.0.event_type",
             "veiw_item", "did you mean 'view_item'"),
            ({"recent_events": [{"event_type": "view_item", "item_id": "x", "timestamp": "noon"}]},
             "recent_events.0.timestamp", "noon", "RFC 3339"),
        ],
    )  # fmt: skip
    async def test_a_wrong_field_is_named_with_what_was_seen_and_expected(
        self, api: Installation, body: dict, field: str, seen: object, expected: str
    ) -> None:
        found = problem_of(await api.client.post("/v1/recommendations", json=body), 422)
        assert len(found["errors"]) == 1
        assert (found["errors"][0]["field"], found["errors"][0]["seen"]) == (field, seen)
        assert expected in found["errors"][0]["expected"]

    async def test_all_wrong_fields_are_named_at_once(self, api: Installation) -> None:
        found = problem_of(await api.client.get("/v1/recommendations?num_results=-1&user=u&explain=maybe"), 422)
        assert sorted(error["field"] for error in found["errors"]) == ["explain", "num_results", "user"]
        nested = problem_of(await api.client.get("/v1/recommendations?recent_events=[]"), 422)
        assert nested["errors"][0]["expected"] == "only in the body of the POST form"

    async def test_other_errors_are_problems_too(self, api: Installation) -> None:
        post = api.client.post
        problem_of(await post("/v1/recommendations", content=b"{"), 400)
        problem_of(await post("/v1/recommendations", content=b"x" * 5001), 413)
        assert "i99" in problem_of(await post("/v1/similar", json={"item_id": "i99"}), 404)["detail"]
        misspelt = problem_of(await api.client.get("/v1/recomendations"), 404)
        assert "did you mean '/v1/recommendations'" in misspelt["detail"]
        problem_of(await api.client.delete("/v1/events"), 405)

    async def test_a_bug_is_a_500_that_gives_nothing_away(self, api: Installation, monkeypatch: Any) -> None:
        async def broken(**_: Any) -> None:
            raise ZeroDivisionError("the secret")

        monkeypatch.setattr(api.store, "read", broken)
        response = await api.client.post("/v1/recommendations", json={}, headers={"X-Request-Id": "mine-1"})
        assert problem_of(response, 500)["request_id"] == "mine-1"
        assert "secret" not in response.text

    async def test_a_strange_request_id_is_replaced(self, api: Installation) -> None:
        response = await api.client.get("/health/live", headers={"X-Request-Id": 'a b"<script>'})
        assert response.headers["x-request-id"].startswith("id")


class TestEvents:
    async def test_each_event_gets_its_own_status_in_order(self, api: Installation) -> None:
        bad = {"event_id": "e2", "event_type": "veiw_item", "user_id": "u1"}
        response = await api.client.post("/v1/events", json={"events": [click("e1"), bad, click("e1", "i42")]})
        assert response.status_code == 202
        assert response.json() == {
            "results": [
                {"index": 0, "event_id": "e1", "status": "accepted"},
                {
                    "index": 1,
                    "event_id": "e2",
                    "status": "quarantined",
                    "reason": "unknown_event_type",
                    "field": "event_type",
                    "detail": "unknown event_type 'veiw_item'; did you mean 'view_item'?",
                },
                {"index": 2, "event_id": "e1", "status": "duplicate"},
            ]
        }
        schemas.EventsResponse.model_validate(response.json())
        stream = api.log.streams[stream_key(partition_of("u:u1"))]
        assert [json.loads(event)["item_id"] for event, _ in stream] == ["i41", "i42"]
        assert len({nonce for _, nonce in stream}) == 2
        assert json.loads(stream[0][0])["timestamp"] == "2024-03-08T12:59:00Z"
        assert [json.loads(event.raw) for event in api.log.quarantined] == [bad]

    @pytest.mark.parametrize("form", ["object", "list", "envelope"])
    async def test_three_forms_of_a_body(self, api: Installation, form: str) -> None:
        one = click("e1")
        body = {"object": one, "list": [one], "envelope": {"events": [one]}}[form]
        response = await api.client.post("/v1/events", json=body)
        assert response.json()["results"] == [{"index": 0, "event_id": "e1", "status": "accepted"}]

    async def test_a_missing_id_is_derived_and_a_retry_is_a_duplicate(self, api: Installation) -> None:
        results = [(await api.client.post("/v1/events", json=click(None))).json()["results"][0] for _ in range(2)]
        assert [result["status"] for result in results] == ["accepted", "duplicate"]
        assert results[0]["event_id"] == results[1]["event_id"]
        assert results[0]["event_id"].startswith("h-")

    async def test_an_event_of_a_known_user_goes_with_the_user(self, api: Installation) -> None:
        await api.client.post("/v1/events", json=click("e1", anonymous_id="somebody else"))
        assert list(api.log.streams) == [stream_key(partition_of("u:u1"))]

    async def test_a_single_events_own_bytes_are_quarantined(self, api: Installation) -> None:
        raw = b'{ "event_type":"veiw_item",\n "event_id":"\\ud800"}'
        response = await api.client.post("/v1/events", content=raw)
        assert response.status_code == 202
        assert response.json()["results"][0]["event_id"] is None  # it has no UTF-8
        assert [(event.raw, event.reason) for event in api.log.quarantined] == [(raw, "unknown_event_type")]

    async def test_a_time_in_the_future_is_judged_by_the_clock(self, api: Installation) -> None:
        api.now = NOW - 25 * 3600 * SECOND
        response = await api.client.post("/v1/events", json=click("e1"))
        assert response.json()["results"][0]["reason"] == "timestamp_in_future"

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"17",
            b'"text"',
            b"[]",
            b'{"events": []}',
            b'{"events": 5}',
            b'[{"price": NaN}]',
            b"\xff",
            b'{"price": 1e400}',
        ],
    )
    async def test_400_only_when_the_body_cannot_be_parsed(self, api: Installation, body: bytes) -> None:
        problem_of(await api.client.post("/v1/events", content=body), 400)
        assert (api.log.streams, api.log.quarantined) == ({}, [])

    async def test_what_is_no_object_is_quarantined_beside_its_neighbours(self, api: Installation) -> None:
        response = await api.client.post("/v1/events", json=[17, click("e1")])
        assert [result["status"] for result in response.json()["results"]] == ["quarantined", "accepted"]
        assert [(event.raw, event.reason) for event in api.log.quarantined] == [(b"17", "unreadable")]

    async def test_too_much_at_once(self, api: Installation) -> None:
        four = [click(f"e{number}") for number in range(4)]
        assert "at most 3 events" in problem_of(await api.client.post("/v1/events", json=four), 413)["detail"]
        problem_of(await api.client.post("/v1/events", content=b" " * 5001), 413)
        assert api.log.streams == {}

    async def test_a_log_that_is_down_promises_nothing(self, api: Installation) -> None:
        api.log.is_down = True
        response = await api.client.post("/v1/events", json=click("e1"))
        problem_of(response, 503)
        assert response.headers["retry-after"] == "1"
        # Reading goes on, and the same event can be sent again.
        assert (await api.ask(user_id="u1"))["degraded"] is False
        api.log.is_down = False
        again = await api.client.post("/v1/events", json=click("e1"))
        assert again.json()["results"][0]["status"] == "accepted"


class TestDocs:
    async def test_the_document_describes_every_route_with_bodies_and_answers(self, api: Installation) -> None:
        document = (await api.client.get("/openapi.json")).json()
        assert set(document["paths"]) == {
            "/v1/recommendations", "/v1/similar", "/v1/events", "/v1/pixel.gif", "/v1/track", "/v1/identify",
            "/v1/alias", "/v1/page", "/v1/batch", "/mp/collect", "/health/live", "/health/ready", "/metrics",
            "/v1/items", "/v1/items/{item_id}", "/v1/users", "/v1/users/{user_id}", "/v1/nightjar.js",
            "/v1/recommendations/batch", "/v1/rank", "/v1/pages/{page}", "/v1/trending", "/v1/bought-together",
            "/v1/buy-again", "/v1/continue", "/v1/new", "/v1/users/{user_id}/profile",
            "/v1/decisions/{recommendation_id}",
        }  # fmt: skip
        text = json.dumps(document)
        names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
        assert names >= {"RecommendationRequest", "RecommendationResponse", "SimilarRequest", "Problem", "Context"}
        assert names <= set(document["components"]["schemas"])  # no reference leads nowhere

    async def test_the_examples_work(self, api: Installation) -> None:
        examples = schemas.RecommendationRequest.model_config["json_schema_extra"]["examples"]
        assert len(examples) == 2
        for example in examples:
            assert (await api.client.post("/v1/recommendations", json=example)).status_code == 200

    async def test_the_page_needs_nothing_from_elsewhere(self, api: Installation) -> None:
        page = (await api.client.get("/docs")).text
        assert "openapi.json" in page
        assert "://" not in page


async def test_metrics_tell_what_happened(api: Installation) -> None:
    names = (
        'nightjar_api_requests_total{route="/v1/recommendations",status="200"}',
        'nightjar_api_slates_total{fallback_level="personal"}',
    )
    before = [await metric(api, name) for name in names]
    await api.ask(user_id="u1")
    assert [await metric(api, name) for name in names] == [value + 1 for value in before]
