"""The raw route of POST /v1/events and the application behind it are one: same answers, same entries, same counts."""

from __future__ import annotations

import copy
import gzip
import json
from datetime import UTC, datetime
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from feature_repo.contracts import common_events
from feature_repo.contracts.changes import PATCH, USERS, check_change
from feature_repo.contracts.common_events import check_common_event
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.events import EVENT_FIELDS, EVENT_TYPES, check_event
from feature_repo.contracts.times import MAX_FUTURE_SKEW
from serving.api.hot_events import HotEvents
from serving.api.ingest import _entry_json
from serving.api.tally import observe_all
from serving.main import with_hot_routes
from serving.observability import REQUEST_SECONDS, render_metrics
from tests.front_door import FrontDoor

RECEIVED = datetime(2024, 3, 8, 13, tzinfo=UTC)
COMMON: dict[str, Any] = {
    "event_id": "e1", "event_type": "view_item", "user_id": "u1", "session_id": "s1", "item_id": "i1",
    "timestamp": "2024-03-08T12:00:00Z",
}  # fmt: skip


def odd(plain: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what belongs there, at times what does not."""
    other = st.sampled_from(
        [
            None, True, 0, -1, 2**31, 2**63, -(2**63), 1.5, -0.0, float("inf"), float("nan"), "", " ", "ä", "x" * 256,
            "x" * 257, "ä" * 129, "a\x00b", "\ud800", [], ["a"], {}, {"a": {"b": []}}, {"a": 1}, {"store": False},
        ]
    )  # fmt: skip
    return st.one_of(plain, plain, plain, other)


TIMES = st.sampled_from(
    [
        "2024-03-08T12:00:00Z", "2024-03-08T12:00:00.25Z", "2024-03-08T12:00:00+00:00", "2024-03-08T13:00:00+01:00",
        "2024-03-08T12:00:00", "2024-03-08", "2024-W10-5T12:00:00Z", "20240308T120000Z", " 2024-03-08T12:00:00Z",
        "1994-12-31T23:59:59Z", "1995-01-01T00:00:00Z", "2024-03-09T13:00:00Z", "2024-03-09T13:00:00.000001Z",
        "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "now", 1709899200, 1709899200000,
    ]
)  # fmt: skip
IDS = st.sampled_from(["a", "id-1", "e.2~x_Y", "f47ac10b-58cc-4372-a567-0e02b2c3d479", 'a"b\\c', "<&>/", "\x7f", "\n"])
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(EVENT_FIELDS, odd(IDS)),
    "event_type": odd(st.sampled_from([*sorted(EVENT_TYPES), "Product Viewed", "View", "no_such_type"])),
    "timestamp": odd(TIMES),
    "sent_at": odd(TIMES),
    "value": odd(st.sampled_from([1, 2.5, -3])),
    "quantity": odd(st.sampled_from([1, 3])),
    "price": odd(st.sampled_from([1, 0, 9.99, -1])),
    "items": odd(st.just([{"item_id": "i1"}])),
    "context": odd(st.just({"region": "DE", "n": 1})),
    "properties": odd(st.just({"colour": "grün"})),
    "consent": odd(st.just({"train": False})),
    "unknown": odd(IDS),
}


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    """A common event, some fields more or less or other, in any order."""
    event = dict(COMMON)
    for name in draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=4, unique=True)):
        event[name] = draw(VALUES[name])
    for name in draw(st.lists(st.sampled_from(sorted(COMMON)), max_size=1)):
        event.pop(name, None)
    if draw(st.booleans()):
        return {name: event[name] for name in draw(st.permutations(list(event)))}
    return event


class TestCommonShape:
    @settings(max_examples=600, deadline=None)
    @example({**COMMON, "timestamp": "2024-03-09T13:00:00Z"})
    @example({**COMMON, "timestamp": "2024-03-08T13:00:00+01:00"})
    @example({**COMMON, "timestamp": "2024-03-08T12:00:00"})
    @example({**COMMON, "timestamp": "2024-W10-5T12:00:00Z"})
    @example({**COMMON, "timestamp": "1994-12-31T23:59:59Z"})
    @example({**COMMON, "timestamp": "2024-03-09T13:00:00.000001Z"})
    @example({**COMMON, "event_id": "x" * 257})
    @example({**COMMON, "user_id": ""})
    @example({**COMMON, "item_id": "a\x00b"})
    @example({**COMMON, "quantity": True})
    @example({**COMMON, "price": -1})
    @example({**COMMON, "value": 2**63})
    @example({**COMMON, "value": float("nan")})
    @example({**COMMON, "properties": {"a": {"b": []}}})
    @example({**COMMON, "context": []})
    @example({**COMMON, "item_id": None})
    @example({**COMMON, "event_type": "alias"})
    @example({"properties": {"b": 1, "a": "ü"}, "price": 3, "value": 2.5, "quantity": 1, **COMMON})
    @given(events())
    def test_it_gives_what_the_rule_table_gives_or_nothing(self, event: dict[str, Any]) -> None:
        before = copy.deepcopy(event)
        common = check_common_event(event, latest=RECEIVED + MAX_FUTURE_SKEW)
        assert repr(event) == repr(before)
        if common is None:
            return
        good, rejection = check_event(event, received_at=RECEIVED)
        assert rejection is None
        assert good is not None
        assert list(common.items()) == list(good.items())
        assert orjson.dumps(common, option=orjson.OPT_UTC_Z) == _entry_json(good)

    @pytest.mark.parametrize(
        "more",
        [
            {},
            {"anonymous_id": "a1", "value": -2.5, "quantity": 3, "price": 0, "currency": "GBP"},
            {"event_type": "search", "timestamp": "2024-03-08T12:00:00.250000+00:00"},
            {"properties": {"query": "hat"}, "context": {}, "placement": "home", "channel": "web"},
            {"event_id": "e" * 256},
        ],
    )
    def test_it_knows_what_is_common(self, more: dict[str, Any]) -> None:
        assert check_common_event({**COMMON, **more}, latest=RECEIVED) is not None

    def test_shapes_are_forgotten_when_there_are_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(common_events, "MAX_SHAPES", 2)
        monkeypatch.setattr(common_events, "_shapes", {})
        for more in ({"value": 1}, {"price": 1}, {"channel": "web"}, {"value": 1}):
            assert check_common_event({**COMMON, **more}, latest=RECEIVED) == {
                **check_event({**COMMON, **more}, received_at=RECEIVED)[0]  # type: ignore[dict-item]
            }
            assert len(common_events._shapes) <= 2


def lines(*documents: Any) -> bytes:
    return b"\n".join(orjson.dumps(d) for d in documents)


PLAIN = {"content-type": "application/json"}
WHO = {
    "event_id": "e3", "user_id": "u1", "anonymous_id": "phone", "timestamp": "2024-03-08T12:00:00Z",
}  # fmt: skip
SHOWN = {**WHO, "recommendation_id": "018e1f2a3b4c5d6e7f8091a2b3c4d5e6", "placement": "home"}
REQUESTS: dict[str, tuple[bytes, dict[str, str]]] = {
    "one": (orjson.dumps(COMMON), PLAIN),
    "charset": (orjson.dumps(COMMON), {"content-type": "application/json; charset=utf-8"}),
    "another type": (orjson.dumps(COMMON), {"content-type": "text/plain"}),
    "no type": (orjson.dumps(COMMON), {}),
    "own request id": (orjson.dumps(COMMON), {**PLAIN, "x-request-id": "r-1"}),
    "bad request id": (orjson.dumps(COMMON), {**PLAIN, "x-request-id": "r 1"}),
    "a list": (orjson.dumps([COMMON, {**COMMON, "event_id": "e2", "user_id": "u2"}, COMMON]), PLAIN),
    "events": (orjson.dumps({"events": [COMMON, {**COMMON, "event_id": 'e"2\u2028'}]}), PLAIN),
    "events and more": (orjson.dumps({"events": [COMMON], "sent_at": "2024-03-08T12:00:00Z"}), PLAIN),
    "a bad one among good ones": (orjson.dumps([COMMON, {**COMMON, "event_id": ""}, 7]), PLAIN),
    "one that is nothing": (b"7", PLAIN),
    "no events": (b"[]", PLAIN),
    "null events": (b'{"events":null}', PLAIN),
    "nested": (orjson.dumps([[COMMON]]), PLAIN),
    "too many": (orjson.dumps([COMMON] * 6), PLAIN),
    "too large": (b" " * 2000 + orjson.dumps(COMMON), PLAIN),
    "too much to write": (orjson.dumps([{**COMMON, "channel": "c" * 180}] * 4), PLAIN),
    "no json": (b'{"event_id":', PLAIN),
    "empty": (b"", PLAIN),
    "a surrogate": (b'{"event_id":"\\ud800"}', PLAIN),
    "one key twice": (b'{"event_id":"a",' + orjson.dumps(COMMON)[1:], PLAIN),
    "consent": (orjson.dumps({**COMMON, "consent": {"store": False}}), PLAIN),
    "a user who refused storing": (orjson.dumps({**COMMON, "user_id": "u9"}), PLAIN),
    "a user who refused training": (orjson.dumps({**COMMON, "user_id": "u8"}), PLAIN),
    "the same among others": (orjson.dumps([COMMON, {**COMMON, "event_id": "e2", "user_id": "u9"}]), PLAIN),
    "that user, quarantined": (orjson.dumps({**COMMON, "user_id": "u9", "event_type": "seen"}), PLAIN),
    "that user's consent": (orjson.dumps({**COMMON, "user_id": "u9", "consent": {"store": True}}), PLAIN),
    "both ids": (orjson.dumps({**COMMON, "anonymous_id": "phone"}), PLAIN),
    "a login": (orjson.dumps({**WHO, "event_type": "identify"}), PLAIN),
    "an alias": (orjson.dumps({**WHO, "event_type": "alias"}), PLAIN),
    "an undo": (orjson.dumps({**WHO, "event_type": "unmerge"}), PLAIN),
    "half an undo": (orjson.dumps({**COMMON, "event_type": "unmerge"}), PLAIN),
    "an impression": (orjson.dumps({**SHOWN, "event_type": "impression", "items": [{"item_id": "i9"}]}), PLAIN),
    "a click on a slate": (orjson.dumps({**SHOWN, "event_type": "click", "item_id": "i9"}), PLAIN),
    "a crawler": (orjson.dumps({**COMMON, "context": {"user_agent": "Somebot/2.1 (+http://some.example)"}}), PLAIN),
    "sent at": (orjson.dumps({**COMMON, "sent_at": "2024-03-08T12:30:00Z"}), PLAIN),
    "lines": (lines(COMMON, {**COMMON, "event_id": "e2"}), {"content-type": "application/x-ndjson"}),
    "gzip": (gzip.compress(orjson.dumps(COMMON), mtime=0), {**PLAIN, "content-encoding": "gzip"}),
    "no gzip": (orjson.dumps(COMMON), {**PLAIN, "content-encoding": "gzip"}),
    "binary CloudEvent": (
        orjson.dumps(COMMON),
        {**PLAIN, "ce-specversion": "1.0", "ce-id": "4", "ce-source": "/s", "ce-type": "click"},
    ),
}
REFUSALS = ({"user_id": "u9", "consent": {"store": False}}, {"user_id": "u8", "consent": {"train": False}})
LIMITS = {"max_events": 5, "max_body_bytes": 1500, "max_written_bytes": 1000}


class Entrance:
    """A front door with or without the raw route before it."""

    def __init__(self, environment: Environment, *, is_hot: bool) -> None:
        self.door = FrontDoor(environment, **LIMITS)
        for position, said in enumerate(REFUSALS):
            refusal, _ = check_change(USERS, PATCH, said, received_at=RECEIVED)
            assert refusal is not None
            self.door.app.state.services.overlay.take(refusal, position)
        self.app = with_hot_routes(self.door.app) if is_hot else self.door.app
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://api")

    async def post(self, body: bytes, headers: dict[str, str]) -> tuple[Any, ...]:
        """All of the answer; an id that the server gave the request is left out of it."""
        answer = await self.client.post("/v1/events", content=body, headers=headers)
        own = answer.headers["x-request-id"]
        return answer.status_code, [
            (name, b"" if name == b"x-request-id" and headers.get("x-request-id") != own else value)
            for name, value in answer.headers.raw
        ], answer.content.replace(b'"%b"' % own.encode(), b'""')  # fmt: skip

    def log(self) -> tuple[Any, ...]:
        streams = {name: [event for event, _ in found] for name, found in self.door.log.streams.items()}
        nonces = [nonce for found in self.door.log.streams.values() for _, nonce in found]
        assert len(set(nonces)) == len(nonces)
        return streams, sorted(self.door.log.marks), self.door.log.quarantined


@pytest.fixture
def both(environment: Environment) -> tuple[Entrance, Entrance]:
    return Entrance(environment, is_hot=True), Entrance(environment, is_hot=False)


async def test_who_refused_training_says_so_in_every_event(both: tuple[Entrance, Entrance]) -> None:
    hot, _ = both
    events = [{**COMMON, "event_id": "e2", "user_id": "u8", "consent": {"train": True, "share": True}}, COMMON]
    await hot.post(orjson.dumps([{**COMMON, "user_id": "u8"}, *events]), PLAIN)
    found = {(event["event_id"], event["user_id"]): event.get("consent") for event in hot.door.written()}
    assert found == {
        ("e1", "u8"): {"train": False}, ("e2", "u8"): {"train": False, "share": True}, ("e1", "u1"): None,
    }  # fmt: skip


class TestBothRoutesAgree:
    @pytest.mark.parametrize("name", REQUESTS)
    async def test_byte_for_byte_and_in_the_log(self, both: tuple[Entrance, Entrance], name: str) -> None:
        hot, plain = both
        for _ in range(2):  # the second time as duplicates
            assert await hot.post(*REQUESTS[name]) == await plain.post(*REQUESTS[name])
            assert hot.log() == plain.log()

    @pytest.mark.parametrize("trouble", ["is_down", "is_full"])
    async def test_when_the_log_cannot(self, both: tuple[Entrance, Entrance], trouble: str) -> None:
        for entrance in both:
            setattr(entrance.door.log, trouble, True)
        answers = [await entrance.post(*REQUESTS["own request id"]) for entrance in both]
        assert answers[0] == answers[1]
        assert answers[0][0] == 503

    @settings(max_examples=60, deadline=None)
    @given(batch=st.lists(events(), min_size=1, max_size=3), is_wrapped=st.booleans())
    async def test_on_anything(self, batch: list[dict[str, Any]], is_wrapped: bool) -> None:
        document: Any = batch[0] if len(batch) == 1 else {"events": batch} if is_wrapped else batch
        body = json.dumps(document).encode()
        hot, plain = (Entrance(unused_environment(), is_hot=is_hot) for is_hot in (True, False))
        assert await hot.post(body, PLAIN) == await plain.post(body, PLAIN)
        assert hot.log() == plain.log()


def unused_environment() -> Environment:
    return Environment.from_mapping(
        {
            "NIGHTJAR_HOME": "/nonexistent",
            "NIGHTJAR_REDIS_LOG_URL": "redis://127.0.0.1:1/0",
            "NIGHTJAR_REDIS_ONLINE_URL": "redis://127.0.0.1:1/0",
            "NIGHTJAR_MLFLOW_URI": "http://127.0.0.1:1",
            "NIGHTJAR_CODE_VERSION": "test",
        }
    )


class TestWhoAnswers:
    async def call(
        self, environment: Environment, messages: list[Message], **scope: Any
    ) -> tuple[list[Message], bytes]:
        """(what was sent, what the application behind would have read; b"" when it was not asked)."""
        read: list[bytes] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            while (message := await receive())["type"] == "http.request":
                read.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return

        door = FrontDoor(environment, **LIMITS)
        sent: list[Message] = []
        waiting = iter(messages)

        async def receive() -> Message:
            return next(waiting)

        async def send(message: Message) -> None:
            sent.append(message)

        hot = HotEvents(app, door.app.state.services)
        headers = [(b"content-type", b"application/json")]
        await hot({"type": "http", "path": "/v1/events", "method": "POST", "headers": headers, **scope}, receive, send)
        return sent, b"".join(read)

    async def test_the_raw_route_a_body_in_pieces(self, environment: Environment) -> None:
        body = orjson.dumps(COMMON)
        pieces: list[Message] = [
            {"type": "http.request", "body": body[:50], "more_body": True},
            {"type": "http.request", "body": body[50:]},
        ]
        for messages in (pieces, [{"type": "http.request", "body": body}]):
            sent, read = await self.call(environment, messages)
            assert (sent[0]["status"], read) == (202, b"")
            assert sent[1]["body"] == b'{"results":[{"index":0,"event_id":"e1","status":"accepted"}]}'

    @pytest.mark.parametrize("scope", [{"path": "/v1/event"}, {"method": "PUT"}, {"headers": []}])
    async def test_the_application_what_is_not_plain(self, environment: Environment, scope: dict[str, Any]) -> None:
        body = orjson.dumps(COMMON)
        assert await self.call(environment, [{"type": "http.request", "body": body}], **scope) == ([], body)

    async def test_the_application_events_with_items(self, environment: Environment) -> None:
        """They have an entry of the log to themselves."""
        shown = {**SHOWN, "event_type": "impression", "items": [{"item_id": "i9"}]}
        body = orjson.dumps({name: shown[name] for name in EVENT_FIELDS if name in shown})
        assert await self.call(environment, [{"type": "http.request", "body": body}]) == ([], body)

    async def test_the_application_reads_all_pieces_again(self, environment: Environment) -> None:
        pieces: list[Message] = [
            {"type": "http.request", "body": b"x" * 900, "more_body": True},
            {"type": "http.request", "body": b"y" * 900, "more_body": True},
            {"type": "http.request", "body": b"z"},
        ]
        sent, read = await self.call(environment, pieces)
        assert (sent, read) == ([], b"x" * 900 + b"y" * 900 + b"z")

    async def test_nobody_when_the_client_has_gone(self, environment: Environment) -> None:
        gone: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
        assert (await self.call(environment, gone))[0] == []


class TestCounts:
    def counted(self) -> dict[str, float]:
        rows = [line.rpartition(" ") for line in render_metrics().decode().splitlines() if not line.startswith("#")]
        names = ("nightjar_api_requests_total", "nightjar_api_events_total", "nightjar_api_request_seconds_count")
        return {name: float(value) for name, _, value in rows if name.startswith(names)}

    async def test_who_has_seen_an_answer_finds_it_in_the_metrics(self, both: tuple[Entrance, Entrance]) -> None:
        grown = []
        for entrance in both:
            before = self.counted()
            await entrance.post(*REQUESTS["a list"])  # the third is the first again
            await entrance.post(*REQUESTS["one"])
            grown.append({k: v - before.get(k, 0.0) for k, v in self.counted().items() if v != before.get(k)})
        assert grown[0] == grown[1]
        assert grown[0]['nightjar_api_events_total{status="accepted"}'] == 2
        assert grown[0]['nightjar_api_events_total{status="duplicate"}'] == 2
        assert grown[0]['nightjar_api_requests_total{route="/v1/events",status="202"}'] == 2

    async def test_a_failure_is_counted_as_one(self, both: tuple[Entrance, Entrance]) -> None:
        grown = []
        for entrance in both:
            entrance.door.log.is_down = True
            before = self.counted()
            await entrance.post(*REQUESTS["one"])
            grown.append({k: v - before.get(k, 0.0) for k, v in self.counted().items() if v != before.get(k)})
        assert grown[0] == grown[1]
        assert grown[0]['nightjar_api_requests_total{route="/v1/events",status="503"}'] == 1

    def test_many_observations_are_as_one_by_one(self) -> None:
        seconds = [0.0001, 0.0005, 0.00051, 0.3, 2.0, 2.1, 1000.0]

        def rows(route: str) -> list[str]:
            found = [line for line in render_metrics().decode().splitlines() if f'route="{route}"' in line]
            return sorted(line.replace(route, "") for line in found if "_created" not in line)

        observe_all(seconds, "/at-once")
        for one in seconds:
            REQUEST_SECONDS.labels("/one-by-one").observe(one)
        assert len(rows("/at-once")) >= 15
        assert rows("/at-once") == rows("/one-by-one")
