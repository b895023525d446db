"""POST /v1/events as bytes: NDJSON, gzip, limits, clocks, room; and that no body at all is a 500 or loses an event."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.times import from_micros
from serving.api.clock import corrected_for_skew
from serving.api.event_routes import SEGMENT_KINDS
from tests.front_door import RECEIVED_MICROS, FrontDoor

LINES = {"content-type": "application/x-ndjson; charset=utf-8"}
GZIP = {"content-encoding": "gzip"}


def event(name: str, **more: Any) -> dict[str, Any]:
    return {
        "event_id": name, "event_type": "view_item", "user_id": "u1", "item_id": "i1",
        "timestamp": "2024-03-08T12:59:00Z", **more,
    }  # fmt: skip


@pytest.fixture
async def door(environment: Environment) -> AsyncIterator[FrontDoor]:
    door = FrontDoor(environment, max_events=5, max_body_bytes=20_000, max_inflated_bytes=1_500_000)
    yield door
    await door.client.aclose()


class TestLines:
    async def test_a_broken_line_is_quarantined_with_its_bytes_and_the_others_go_through(self, door: FrontDoor) -> None:
        lines = [
            json.dumps(event("e1")).encode(),
            b'{"event_id": "e2", \xff',
            b"",
            b"  \r",
            json.dumps(event("e3")).encode() + b"\r",
            b"17",
            b'{"event_id": "e4", "event_type": "veiw_item"}',
        ]
        response = await door.client.post("/v1/events", content=b"\n".join(lines), headers=LINES)
        assert response.status_code == 202
        results = response.json()["results"]
        assert [(r["index"], r["event_id"], r["status"], r.get("reason")) for r in results] == [
            (0, "e1", "accepted", None),
            (1, None, "quarantined", "unreadable"),
            (2, "e3", "accepted", None),
            (3, None, "quarantined", "unreadable"),
            (4, "e4", "quarantined", "unknown_event_type"),
        ]
        assert [q.raw for q in door.log.quarantined] == [lines[1], lines[5], lines[6]]
        assert [e["event_id"] for e in door.written()] == ["e1", "e3"]

    @pytest.mark.parametrize("content", [b"", b"\n \n", b"{", b"{\n[", b"nonsense"])
    async def test_400_when_no_line_is_json(self, door: FrontDoor, content: bytes) -> None:
        response = await door.client.post("/v1/events", content=content, headers=LINES)
        assert response.status_code == 400
        assert door.log.quarantined == []

    async def test_lines_are_counted_as_events_are(self, door: FrontDoor) -> None:
        six = b"\n".join(json.dumps(event(f"e{n}")).encode() for n in range(6))
        found = (await door.client.post("/v1/events", content=six, headers=LINES)).json()
        assert (found["status"], found["limit"], found["seen"], found["allowed"]) == (413, "max_events", 6, 5)

    async def test_a_line_that_nests_too_deeply_stands_alone(self, door: FrontDoor) -> None:
        for depth, reason in ((250, "nested_too_deeply"), (2000, "unreadable")):
            deep = b"[" * depth + b"]" * depth
            content = json.dumps(event(f"e{depth}")).encode() + b"\n" + deep
            results = (await door.client.post("/v1/events", content=content, headers=LINES)).json()["results"]
            assert [(r["status"], r.get("reason")) for r in results] == [("accepted", None), ("quarantined", reason)]
            assert door.log.quarantined[-1].raw == deep


class TestGzip:
    async def test_a_body_may_be_gzip_also_in_several_members(self, door: FrontDoor) -> None:
        body = json.dumps([event("e1"), event("e2")]).encode()
        for content in (
            gzip.compress(body, mtime=0),
            gzip.compress(body[:50], mtime=0) + gzip.compress(body[50:], mtime=0),
        ):
            response = await door.client.post("/v1/events", content=content, headers=GZIP)
            assert response.status_code == 202, response.text
        assert [e["event_id"] for e in door.written()] == ["e1", "e1", "e2", "e2"]
        for path in ("/v1/track", "/mp/collect"):
            assert (
                await door.client.post(path, content=gzip.compress(b"[]", mtime=0), headers=GZIP)
            ).status_code == 400

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "cut off"),
            (b"{}", "not gzip"),
            (gzip.compress(b"{}", mtime=0)[:-1], "cut off"),
            (gzip.compress(b"{}", mtime=0)[:12], "cut off"),
            (gzip.compress(b"{}", mtime=0)[:-8] + b"\0" * 8, "not gzip"),  # wrong checksum
            (gzip.compress(b"{}", mtime=0) + b"tail", "not gzip"),
            (zlib.compress(b"{}"), "not gzip"),
        ],
    )
    async def test_broken_gzip_is_a_400(self, door: FrontDoor, content: bytes, words: str) -> None:
        response = await door.client.post("/v1/events", content=content, headers=GZIP)
        assert (response.status_code, words in response.json()["detail"]) == (400, True)

    @pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "zstd"])
    async def test_another_coding_is_a_415_that_says_what_is_read(self, door: FrontDoor, coding: str) -> None:
        response = await door.client.post("/v1/events", content=b"{}", headers={"content-encoding": coding})
        assert (response.status_code, response.headers["accept-encoding"]) == (415, "gzip, identity")

    async def test_a_bomb_is_not_inflated(self, door: FrontDoor) -> None:
        noise = random.Random(5).randbytes(15_000)  # what does not shrink, so that the ratio stays small
        for bomb, limit, allowed in (
            (gzip.compress(noise + b" " * 1_485_001, mtime=0), "max_inflated_bytes", 1_500_000),
            (gzip.compress(b" " * 1_400_000, mtime=0), "max_inflate_ratio", 100),
        ):
            found = (await door.client.post("/v1/events", content=bomb, headers=GZIP)).json()
            assert (found["status"], found["limit"], found["allowed"]) == (413, limit, allowed)
            if limit == "max_inflated_bytes":
                assert allowed < found["seen"] <= allowed + 65_536
            else:
                assert found["seen"] > 100
        # Up to a mebibyte no ratio counts.
        honest = gzip.compress(json.dumps(event("e1", properties={"note": " " * 1_000_000})).encode())
        assert len(honest) * 100 < 1_000_000
        assert (await door.client.post("/v1/events", content=honest, headers=GZIP)).status_code == 202


class TestLimits:
    async def test_each_says_which_limit_what_was_seen_and_what_is_allowed(self, door: FrontDoor) -> None:
        six = [event(f"e{n}") for n in range(6)]
        for content, status, limit, seen, allowed in (
            (b" " * 20_001, 413, "max_body_bytes", 20_001, 20_000),
            (json.dumps(six).encode(), 413, "max_events", 6, 5),
            (b"[" * 201 + b"]" * 201, 400, "max_body_nesting", 201, 200),
        ):
            response = await door.client.post("/v1/events", content=content)
            found = response.json()
            assert (response.status_code, found["limit"], found["seen"], found["allowed"]) == (
                status, limit, seen, allowed,
            )  # fmt: skip
            assert str(allowed) in found["detail"]
        assert (door.log.streams, door.log.quarantined) == ({}, [])

    async def test_a_body_without_a_length_is_cut_off_too(self, door: FrontDoor) -> None:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while sent < 1_000_000:
                sent += 1000
                yield b" " * 1000

        found = (await door.client.post("/v1/events", content=endless())).json()
        assert (found["status"], found["limit"]) == (413, "max_body_bytes")
        assert found["seen"] == sent == 21_000

    async def test_ids_and_nesting_break_one_event_only(self, door: FrontDoor) -> None:
        deep: Any = 1
        for _ in range(32):
            deep = {"inner": deep}
        batch = [event("e1", user_id="x" * 257), event("e2", properties=deep), event("e3")]
        results = (await door.client.post("/v1/events", json=batch)).json()["results"]
        assert [(r["status"], r.get("reason"), r.get("field")) for r in results] == [
            ("quarantined", "invalid_subject", "user_id"),
            ("quarantined", "nested_too_deeply", "properties"),
            ("accepted", None, None),
        ]
        assert "1 to 256 bytes" in results[0]["detail"]
        assert results[0]["detail"].endswith("of 257 bytes")
        assert [json.loads(q.raw)["event_id"] for q in door.log.quarantined] == ["e1", "e2"]

    @pytest.mark.parametrize("path", ["/v1/events", "/v1/track", "/v1/batch", "/mp/collect"])
    async def test_a_full_log_refuses_before_the_body_is_read(self, door: FrontDoor, path: str) -> None:
        door.log.is_full = True

        async def never() -> AsyncIterator[bytes]:
            raise AssertionError("the body was read")
            yield b""

        response = await door.client.post(path, content=never())
        found = response.json()
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert found["type"] == "urn:nightjar:problem:overloaded"
        assert (await door.client.get("/v1/pixel.gif")).status_code == 503


RECEIVED = from_micros(RECEIVED_MICROS)


class TestClocks:
    @pytest.mark.parametrize(
        ("timestamp", "sent_at", "corrected"),
        [
            (
                "2024-03-08T09:00:00Z",
                "2024-03-08T09:00:10Z",
                "2024-03-08T12:59:50Z",
            ),  # four hours slow, sent after 10 s
            ("2024-03-08T20:00:00+01:00", 1709924400, "2024-03-08T13:00:00Z"),  # six hours fast, sent at once
            ("2024-03-07T13:00:00Z", "2024-03-07T13:00:00Z", "2024-03-08T13:00:00Z"),  # 24 hours slow: just corrected
            ("2024-03-01T00:00:00Z", "2024-03-08T13:00:30Z", "2024-02-29T23:59:30Z"),  # a week in an offline queue
            ("2024-03-07T12:59:59Z", "2024-03-07T12:59:59Z", None),  # a second more than 24 hours
            ("2024-03-08T09:00:11Z", "2024-03-08T09:00:10Z", None),  # happened after it was sent
            ("2024-03-08T09:00:00Z", "2024-03-08T13:00:00Z", None),  # the clock is right
            ("2024-03-08T09:00:00Z", "soon", None),
            ("soon", "2024-03-08T09:00:00Z", None),
            (None, "2024-03-08T09:00:00Z", None),
            ("2024-03-08T09:00:00Z", None, None),
            ("2024-03-08T09:00:00Z", True, None),
        ],
    )
    def test_the_rule(self, timestamp: Any, sent_at: Any, corrected: str | None) -> None:
        given_event = event("e1", timestamp=timestamp, sent_at=sent_at, properties={"a": 1})
        found = corrected_for_skew(given_event, received_at=RECEIVED)
        if corrected is None:
            assert found is given_event
        else:
            properties = {"a": 1, "original_timestamp": timestamp}
            assert found == {**given_event, "timestamp": corrected, "properties": properties}

    async def test_a_retry_of_a_corrected_event_without_id_is_a_duplicate(self, door: FrontDoor) -> None:
        body = event("", timestamp="2024-03-08T09:00:00Z", sent_at="2024-03-08T09:00:00Z")
        del body["event_id"]
        statuses = []
        for _ in range(2):
            statuses += [r["status"] for r in (await door.client.post("/v1/events", json=body)).json()["results"]]
            door.now_micros += 1_500_000
        assert statuses == ["accepted", "duplicate"]
        assert [e["timestamp"] for e in door.written()] == ["2024-03-08T13:00:00Z", "2024-03-08T13:00:01.500000Z"]

    async def test_out_of_bounds_is_quarantined_and_never_moved(self, door: FrontDoor) -> None:
        for happened, reason in (
            ("2024-03-09T13:00:01Z", "timestamp_in_future"),
            ("2099-01-01T00:00:00Z", "timestamp_in_future"),
            ("9999-12-31T23:59:59Z", "timestamp_in_future"),
            ("1970-01-01T00:00:00Z", "timestamp_too_old"),
        ):
            body = event("e1", timestamp=happened, sent_at=happened)
            (result,) = (await door.client.post("/v1/events", json=body)).json()["results"]
            assert (result["reason"], result["event_id"]) == (reason, "e1")
            assert json.loads(door.log.quarantined[-1].raw) == body  # as it came
        assert door.log.streams == {}


# --- properties -------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        "event_id", "event_type", "user_id", "anonymous_id", "session_id", "item_id", "timestamp", "sent_at", "value",
        "quantity", "price", "currency", "items", "context", "properties", "consent", "events", "batch", "type",
        "event", "messageId", "userId", "anonymousId", "previousId", "originalTimestamp", "sentAt", "traits",
        "product_id", "client_id", "timestamp_micros", "name", "params", "specversion", "id", "source", "data",
        "data_base64", "datacontenttype", "time", "store", "products", "train", "sessionId",
        "categoryPreferences", "writeKey",
    ]
)  # fmt: skip
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec=None), max_size=8),
    st.sampled_from(
        ["view_item", "alias", "identify", "purchase", "Product Viewed", "track", "page", "1.0", "u1", "e1", "\ud800",
         "2024-03-08T12:59:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-12:00", "application/json", "e30="]
    ),
)  # fmt: skip
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(NAMES, st.text(st.characters(codec=None), max_size=4)), inner, max_size=8),
    ),
    max_leaves=25,
)
PLAUSIBLE = st.fixed_dictionaries(
    {"user_id": st.sampled_from(["u1", "u2"]), "timestamp": st.just("2024-03-08T12:59:00Z")},
    optional={
        "event_id": st.sampled_from(["e1", "e2", "e3"]),
        "event_type": st.sampled_from(["view_item", "search", "veiw_item"]),
        "item_id": st.sampled_from(["i1", "i2"]),
        "sent_at": st.one_of(st.just("2024-03-08T12:59:30Z"), LEAVES),
        "consent": st.fixed_dictionaries({}, optional={"store": st.booleans(), "train": LEAVES}),
        "properties": DOCUMENTS,
    },
)
PATHS = ("/v1/events", "/mp/collect", *(f"/v1/{kind}" for kind in SEGMENT_KINDS))
TYPES = (
    "application/json", "application/x-ndjson", "application/cloudevents+json", "application/cloudevents-batch+json",
)  # fmt: skip
QUICK = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def send(door: FrontDoor, path: str, content: bytes, headers: dict[str, str]) -> Any:
    """One request to a door whose log is empty."""
    door.log.marks.clear()
    door.log.streams.clear()
    door.log.quarantined.clear()

    async def once() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(door.app), base_url="http://api") as client:
            return await client.post(path, content=content, headers=headers)

    return asyncio.run(once())


@pytest.fixture
def wide_door(environment: Environment) -> FrontDoor:
    return FrontDoor(environment)


def assert_conserved(door: FrontDoor, results: list[dict[str, Any]]) -> None:
    """received = accepted + duplicate + quarantined, and what is stored is in the log, once for each delivery."""
    kept = [r["status"] for r in results if r.get("stored") is not False]
    assert {r["status"] for r in results} <= {"accepted", "duplicate", "quarantined"}
    assert [r["index"] for r in results] == list(range(len(results)))
    assert len(door.log.quarantined) == kept.count("quarantined")
    assert sum(map(len, door.log.streams.values())) == kept.count("accepted") + kept.count("duplicate")
    assert len(door.log.marks) == kept.count("accepted")


@QUICK
@given(document=DOCUMENTS, path=st.sampled_from(PATHS), kind=st.sampled_from(TYPES), is_binary=st.booleans())
@example(document={"event_type": "x" * 100_000}, path="/v1/events", kind="application/json", is_binary=False)
@example(document={"batch": [{"type": ["track"], "context": []}, None]}, path="/v1/batch", kind="", is_binary=False)
def test_no_document_is_a_500(wide_door: FrontDoor, document: Any, path: str, kind: str, is_binary: bool) -> None:
    binary = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "view_item"} if is_binary else {}
    response = send(wide_door, path, json.dumps(document).encode(), {"content-type": kind, **binary})
    if response.is_success:
        assert_conserved(wide_door, response.json()["results"])
    else:
        assert response.status_code == 400
        assert (wide_door.log.streams, wide_door.log.quarantined) == ({}, [])


@QUICK
@given(content=st.binary(max_size=200), kind=st.sampled_from(TYPES), coding=st.sampled_from(["", "gzip"]))
@example(content=b"[" * 100_000, kind="application/json", coding="")
@example(content=b'{"a":' * 1000 + b"1" + b"}" * 1000, kind="application/json", coding="")
@example(content=b'{"price": 1e400}', kind="application/json", coding="")
@example(content=b"9" * 5000, kind="application/json", coding="")
def test_no_bytes_are_a_500(wide_door: FrontDoor, content: bytes, kind: str, coding: str) -> None:
    response = send(wide_door, "/v1/events", content, {"content-type": kind, "content-encoding": coding})
    assert response.status_code in (202, 400)
    if response.is_success:
        assert_conserved(wide_door, response.json()["results"])


@QUICK
@given(events=st.lists(st.one_of(PLAUSIBLE, DOCUMENTS), min_size=1, max_size=8))
def test_every_event_is_accounted_for(wide_door: FrontDoor, events: list[Any]) -> None:
    for content, headers in (
        (json.dumps(events).encode(), {"content-type": "application/json"}),
        (b"\n".join(json.dumps(one).encode() for one in events), LINES),
    ):
        response = send(wide_door, "/v1/events", content, headers)
        assert response.status_code == 202
        results = response.json()["results"]
        assert len(results) == len(events)
        assert_conserved(wide_door, results)
