"""Events in the forms of other systems, held to golden files: request -> native events in the log -> answer."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.environment import Environment
from serving.api import event_examples as examples
from serving.api.event_routes import GIF, SEGMENT_KINDS, basic_user
from tests.front_door import FrontDoor

GOLDEN = Path(__file__).parents[1] / "golden" / "dialects"
FILES = sorted(GOLDEN.glob("*.json"))
NOON = "2024-03-08T12:00:00Z"


@pytest.fixture
async def door(environment: Environment) -> AsyncIterator[FrontDoor]:
    door = FrontDoor(environment)
    yield door
    await door.client.aclose()


def test_every_dialect_has_golden_files() -> None:
    assert len(FILES) == 12
    assert {path.stem.partition("_")[0] for path in FILES} == {"segment", "ga4", "cloudevents", "pixel"}


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
async def test_golden(door: FrontDoor, path: Path) -> None:
    golden = json.loads(path.read_text(encoding="utf-8"))
    request, answer = golden["request"], golden["answer"]
    content = None if request["body"] is None else json.dumps(request["body"])
    method = "GET" if content is None else "POST"
    headers = {name: value.encode() for name, value in request["headers"].items()}
    for attempt in range(2):
        response = await door.client.request(method, request["path"], headers=headers, content=content)
        assert response.status_code == answer["status"], response.text
        if attempt == 0:
            assert {name: response.headers[name] for name in answer.get("headers", {})} == answer.get("headers", {})
            if "body" in answer:
                assert response.json() == answer["body"]
            expected = sorted(golden["events"], key=lambda event: event["event_id"])
            assert door.written() == expected
            bad = len(door.log.quarantined)
    # The same request again: nothing new, and the same number of bad ones.
    statuses = [r["status"] for r in response.json()["results"]] if "body" in answer else []
    assert "accepted" not in statuses
    assert (len(door.log.marks), len(door.log.quarantined)) == (len(golden["events"]), 2 * bad)


class TestOriginals:
    """What is quarantined is what came, enough to send it again."""

    async def test_a_foreign_event_is_kept_as_it_came(self, door: FrontDoor) -> None:
        message = {"messageId": "m1", "userId": "u1", "event": "Song Played", "timestamp": NOON}
        await door.client.post("/v1/track", json=message)
        batch = {"batch": [{"type": "track", **message}, 5], "context": {"locale": "de"}, "writeKey": "secret"}
        await door.client.post("/v1/batch", json=batch)
        await door.client.post(
            "/mp/collect", json={"client_id": "c1", "events": [{"name": "scroll"}, {"name": "page"}]}
        )
        await door.client.get("/v1/pixel.gif?event_type=x&%00")
        assert [json.loads(event.raw) for event in door.log.quarantined[:-1]] == [
            message,
            {"type": "track", **message, "context": {"locale": "de"}},
            5,
            {"client_id": "c1", "events": [{"name": "scroll"}]},
            {"client_id": "c1", "events": [{"name": "page"}]},
        ]
        assert door.log.quarantined[-1].raw == b"event_type=x&%00"

    async def test_who_said_no_is_not_kept_in_any_form(self, door: FrontDoor) -> None:
        no = {"store": False}
        answers = [
            await door.client.post(
                "/v1/track", json={"userId": "u", "event": "x", "context": {"consent": {"categoryPreferences": no}}}
            ),
            await door.client.post(
                "/mp/collect", json={"client_id": "c", "consent": no, "events": [{"name": "login"}, 5]}
            ),
            await door.client.post(
                "/v1/events",
                json={"specversion": "0.1", "data": {"user_id": "u", "consent": no}},
                headers={"content-type": "application/cloudevents+json"},
            ),
        ]
        results = [result for answer in answers for result in answer.json()["results"]]
        assert [(r["status"], r["stored"]) for r in results] == [
            ("quarantined", False), ("accepted", False), ("quarantined", False), ("quarantined", False),
        ]  # fmt: skip
        assert (await door.client.get("/v1/pixel.gif?user_id=u&consent_store=false")).content == GIF
        assert (door.log.streams, door.log.quarantined) == ({}, [])

    @pytest.mark.parametrize(
        ("path", "body", "words"),
        [
            ("/v1/track", [], "expected a message"),
            ("/v1/batch", {"batch": []}, "1 or more messages"),
            ("/v1/batch", {"batch": {}}, "1 or more messages"),
            ("/mp/collect", {"client_id": "c"}, "1 or more events"),
            ("/mp/collect", {"events": []}, "1 or more events"),
            ("/mp/collect", [], "1 or more events"),
        ],
    )
    async def test_a_body_of_another_kind_is_a_400(self, door: FrontDoor, path: str, body: Any, words: str) -> None:
        response = await door.client.post(path, json=body)
        assert response.status_code == 400
        assert words in response.json()["detail"]
        assert door.log.quarantined == []


class TestDetails:
    async def test_times_of_ga4(self, door: FrontDoor) -> None:
        for micros, expected in (
            (1709902740000001, "2024-03-08T12:59:00.000001Z"),
            (None, "2024-03-08T13:00:00Z"),
            ("soon", "timestamp_micros"),
            (10**30, "timestamp_micros"),
            (True, "timestamp_micros"),
        ):
            body = {"client_id": "c", "timestamp_micros": micros, "events": [{"name": "page_view"}]}
            (result,) = (await door.client.post("/mp/collect", json=body)).json()["results"]
            if result["status"] == "accepted":
                assert door.written()[0]["timestamp"] == expected
                door.log.streams.clear()
            else:
                assert (result["reason"], result["field"]) == ("invalid_timestamp", expected)

    async def test_dwell_of_ga4_is_in_seconds(self, door: FrontDoor) -> None:
        cases: list[tuple[dict[str, Any], float | None]] = [
            ({"engagement_time_msec": 1500}, 1.5),
            ({"engagement_time_msec": "2500", "item_id": "i"}, 2.5),
            ({"engagement_time_msec": 1500, "value": 7}, 7),
            ({"engagement_time_msec": "long"}, None),
            ({"engagement_time_msec": True}, None),
            ({}, None),
        ]
        assert len(cases) == 6
        for number, (params, expected) in enumerate(cases):
            params = {**params, "event_id": f"e{number}"}
            body = {"client_id": "c", "events": [{"name": "user_engagement", "params": params}]}
            (result,) = (await door.client.post("/mp/collect", json=body)).json()["results"]
            assert (result["status"], door.written()[number].get("value")) == ("accepted", expected)

    async def test_a_rating_is_the_value_of_a_review_only(self, door: FrontDoor) -> None:
        for event in ("Product Reviewed", "Product Viewed"):
            properties = {"product_id": "p", "rating": 4.5}
            await door.client.post("/v1/track", json={"userId": "u", "event": event, "properties": properties})
        values = {event["event_type"]: (event.get("value"), event.get("properties")) for event in door.written()}
        assert values == {"rating": (4.5, None), "view_item": (None, {"rating": 4.5})}

    async def test_a_long_source_and_id_become_a_hash(self, door: FrontDoor) -> None:
        envelope = {**examples.CLOUDEVENT_EXAMPLE, "source": "ü" * 127}  # 254 bytes, with "#42" 257
        headers = {"content-type": "application/cloudevents+json"}
        for source, start in (("ü" * 127, "ce-"), ("ü" * 126 + "x", "ü")):  # 257 bytes, 256 bytes
            response = await door.client.post("/v1/events", json={**envelope, "source": source}, headers=headers)
            (result,) = response.json()["results"]
            assert result["status"] == "accepted"
            assert result["event_id"].startswith(start)

    async def test_binary_data_that_is_no_json_is_kept(self, door: FrontDoor) -> None:
        headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "view_item"}
        response = await door.client.post("/v1/events", content=b"\xff\x00", headers=headers)
        assert response.json()["results"][0]["reason"] == "unreadable"
        kept = json.loads(door.log.quarantined[0].raw)
        assert base64.b64decode(kept["data_base64"]) == b"\xff\x00"
        assert (kept["id"], kept["type"]) == ("1", "view_item")

    async def test_formats_of_cloudevents_that_are_not_json_are_a_415(self, door: FrontDoor) -> None:
        headers = {"content-type": "application/cloudevents+xml"}
        response = await door.client.post("/v1/events", content=b"<e/>", headers=headers)
        assert (response.status_code, response.headers["accept-encoding"]) == (415, "gzip, identity")

    async def test_what_a_batch_shares_cannot_fill_the_log(self, environment: Environment) -> None:
        door = FrontDoor(environment, max_written_bytes=20_000)
        shared = {"context": {"note": "x" * 5000}}
        messages = [{"type": "page", "messageId": f"m{n}", "anonymousId": "a", "timestamp": NOON} for n in range(5)]
        response = await door.client.post("/v1/batch", json={**shared, "batch": messages})
        assert (response.status_code, response.json()["limit"]) == (413, "max_written_bytes")
        assert door.log.streams == {}
        assert (await door.client.post("/v1/batch", json={**shared, "batch": messages[:3]})).status_code == 200
        bad = {"client_id": "c" * 5000, "events": [{"name": "scroll"}] * 5}
        assert (await door.client.post("/mp/collect", json=bad)).json()["limit"] == "max_written_bytes"


class TestWriteKeys:
    async def test_only_known_keys_are_taken_when_there_are_any(self, environment: Environment) -> None:
        door = FrontDoor(environment, write_keys="one, two")
        message = examples.SEGMENT_EXAMPLES["track"]
        for user, status in (("one", 200), ("two", 200), ("on", 401), ("", 401), ("one, two", 401)):
            response = await door.client.post("/v1/track", json=message, auth=(user, ""))
            assert response.status_code == status, user
        assert response.headers["www-authenticate"].startswith("Basic")
        assert (await door.client.post("/v1/track", json=message)).status_code == 401
        assert (await door.client.post("/v1/track", json={**message, "writeKey": "two"})).status_code == 200
        assert (await door.client.post("/v1/track", content=b'{"writeKey": "\\ud800"}')).status_code == 401

    async def test_without_any_every_key_is_taken_and_none_is_kept(self, door: FrontDoor) -> None:
        message = {**examples.SEGMENT_EXAMPLES["track"], "writeKey": "secret"}
        assert (await door.client.post("/v1/track", json=message, auth=("whatever", ""))).status_code == 200
        assert "secret" not in json.dumps(door.written())

    def test_the_user_of_a_header(self) -> None:
        assert basic_user("Basic " + base64.b64encode(b"key:").decode()) == "key"
        assert basic_user("basic " + base64.b64encode(b"key").decode()) == "key"
        assert [basic_user(text) for text in ("", "Bearer x", "Basic %%%", "Basic /w==")] == [None] * 4


class TestPixel:
    async def test_the_image_is_one_transparent_pixel_that_nobody_keeps(self, door: FrontDoor) -> None:
        response = await door.client.get("/v1/pixel.gif?event_type=page_view&anonymous_id=a1")
        assert response.content == GIF
        assert response.headers["content-length"] == "42"  # as events.md says
        assert (GIF[:6], GIF[6:10], GIF[-1:]) == (b"GIF89a", b"\x01\x00\x01\x00", b";")
        assert "no-store" in response.headers["cache-control"]

    async def test_the_event_is_durable_before_the_image(self, door: FrontDoor) -> None:
        door.log.is_down = True
        response = await door.client.get("/v1/pixel.gif?event_type=page_view&anonymous_id=a1")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")

    @pytest.mark.parametrize("query", ["", "event_type", "&&&", "%ff=%ff&user_id=%ff", "item_id=%00&user_id=u1"])
    async def test_a_bad_pixel_gets_its_image(self, door: FrontDoor, query: str) -> None:
        response = await door.client.get(f"/v1/pixel.gif?{query}")
        assert (response.status_code, response.content) == (200, GIF)
        assert response.headers["x-nightjar-status"] == "quarantined"
        assert [event.raw for event in door.log.quarantined] == [query.encode()]

    async def test_numbers_and_times_are_read(self, door: FrontDoor) -> None:
        query = (
            "event_type=purchase&user_id=u1&item_id=i1&quantity=2&price=2.50&timestamp=1709902740&sent_at=1709902795"
        )
        await door.client.get(f"/v1/pixel.gif?{query}&price=3")
        (event,) = door.written()
        assert (event["quantity"], event["price"]) == (2, 3)  # of a repeated parameter the last counts
        assert event["timestamp"] == "2024-03-08T12:59:05Z"  # sent 5 s before the receipt
        assert event["event_id"].startswith("h-")

    async def test_a_query_has_a_limit(self, door: FrontDoor) -> None:
        response = await door.client.get("/v1/pixel.gif?x=" + "y" * 8191)
        found = response.json()
        assert (response.status_code, found["limit"], found["seen"], found["allowed"]) == (
            414, "max_query_bytes", 8193, 8192,
        )  # fmt: skip


async def test_all_examples_work(door: FrontDoor) -> None:
    """The reference at /docs shows what can be pasted."""
    document = (await door.client.get("/openapi.json")).json()
    tried = 0
    for path, methods in document["paths"].items():
        if "events" not in methods.get("post", {}).get("tags", []):
            continue
        for kind, form in methods["post"]["requestBody"]["content"].items():
            for example in form["examples"].values():
                value = example["value"]
                content = value if isinstance(value, str) else json.dumps(value)
                response = await door.client.post(path, content=content, headers={"content-type": kind})
                assert response.is_success, response.text
                assert {r["status"] for r in response.json()["results"]} == {"accepted"}, (path, kind)
                tried += 1
        assert set(methods["post"]["responses"]) >= {"400", "413", "415", "503"}
    pixel = document["paths"]["/v1/pixel.gif"]["get"]["parameters"]
    shown = {one["name"]: one["schema"]["examples"][0] for one in pixel if "examples" in one["schema"]}
    assert set(shown) == {"event_type", "user_id", "item_id", "timestamp"}
    response = await door.client.get("/v1/pixel.gif", params=shown)
    assert response.headers["x-nightjar-status"] == "accepted"
    assert tried == 3 + 1 + 2 + len(SEGMENT_KINDS) + 1
