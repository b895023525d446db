"""What the API writes down: a line for the requests that are worth one, traces that go on, and nobody's data."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from feature_repo.contracts.api_keys import READ, WRITE
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from serving.api.access_log import AccessLog
from serving.api.tracing import Trace, new_span_id, state_of, trace_of, traceparent_in
from serving.logs import log_to
from serving.main import with_hot_routes
from tests.contract.test_api_keys import bearer, new_key
from tests.contract.test_hot_events import COMMON
from tests.contract.test_hot_protocol import both, one
from tests.front_door import FrontDoor

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


class Written:
    """Everything that loggers wrote, as the workers write it."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self._listener = log_to(self._stream)

    def text(self) -> str:
        """All so far; nothing is written after that."""
        self._listener.stop()
        return self._stream.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def written() -> Iterator[Written]:
    root, access = logging.getLogger(), logging.getLogger("nightjar.access")
    before = (root.handlers, root.level, access.level)
    yield Written()
    root.handlers = before[0]
    root.setLevel(before[1])
    access.setLevel(before[2])
    logging.captureWarnings(False)


class TestTrace:
    @pytest.mark.parametrize(
        ("text", "is_sampled"),
        [
            (TRACEPARENT, True),
            (TRACEPARENT[:-2] + "00", False),
            (TRACEPARENT[:-2] + "03", True),
            ("cc" + TRACEPARENT[2:] + "-what-comes-later", True),
        ],
    )
    def test_it_goes_on(self, text: str, is_sampled: bool) -> None:
        trace = trace_of(text.encode(), new_span_id=lambda: "1" * 16)
        assert trace == Trace(TRACE_ID, "1" * 16, is_sampled)
        assert trace.response() == f"00-{TRACE_ID}-1111111111111111-0{int(is_sampled)}".encode()

    @pytest.mark.parametrize(
        "text",
        [
            "", "00", TRACEPARENT + "-more", TRACEPARENT.upper(), "ff" + TRACEPARENT[2:], TRACEPARENT[:-1],
            TRACEPARENT.replace(TRACE_ID, "0" * 32), TRACEPARENT.replace(PARENT_ID, "0" * 16), " " + TRACEPARENT,
            "0x" + TRACEPARENT[2:], "01" + TRACEPARENT[2:] + ".",
        ],
    )  # fmt: skip
    def test_what_is_broken_is_none(self, text: str) -> None:
        assert trace_of(text.encode()) is None

    def test_two_are_none(self) -> None:
        header = (b"traceparent", TRACEPARENT.encode())
        assert traceparent_in([header, (b"host", b"api")]) == header[1]
        assert traceparent_in([header, header]) is None
        assert traceparent_in([]) is None

    @pytest.mark.parametrize(
        ("given", "goes_on"),
        [
            ([], ""),
            ([b"rojo=00f067aa0ba902b7"], "rojo=00f067aa0ba902b7"),
            ([b" rojo=1 ,\t, congo=t61rc,", b"tenant@sys-1*/_=a b!"], "rojo=1,congo=t61rc,tenant@sys-1*/_=a b!"),
            ([b"0a=1"], "0a=1"),
            ([b"good=1,Bad=2"], ""),  # a key is written small
            ([b"good=1,bad"], ""),
            ([b"good=1,bad="], ""),
            ([b"good=1,bad=a=b"], ""),
            ([b"good=1,bad=\xff"], ""),
            ([b"good=1,bad=a\tb"], ""),
            ([b"_bad=1"], ""),
            ([b"twice=1,other=2", b"twice=3"], ""),
            ([b",".join(b"k%d=1" % n for n in range(32))], ",".join(f"k{n}=1" for n in range(32))),
            ([b",".join(b"k%d=1" % n for n in range(33))], ""),
            ([b"k" * 256 + b"=" + b"v" * 255], "k" * 256 + "=" + "v" * 255),  # 512 characters: just whole
            ([b"k" * 257 + b"=1"], ""),
            ([b"k=" + b"v" * 257], ""),
            ([b"a=" + b"v" * 126 + b",long=" + b"v" * 124 + b",b=" + b"v" * 247 + b",c=1"],
             "a=" + "v" * 126 + ",long=" + "v" * 124 + ",b=" + "v" * 247 + ",c=1"),
            # 513: one of 129 characters leaves, one of 128 stays
            ([b"a=" + b"v" * 126 + b",long=" + b"v" * 124 + b",b=" + b"v" * 247 + b",c=12"],
             "a=" + "v" * 126 + ",c=12"),
            # five of 128 characters and their commas are 644: three fit 512, with a fourth it would be 515
            ([b",".join(b"%d=" % n + b"v" * 126 for n in range(5))], ",".join(f"{n}=" + "v" * 126 for n in range(3))),
        ],
    )  # fmt: skip
    def test_a_state_goes_on_or_is_dropped(self, given: list[bytes], goes_on: str) -> None:
        assert state_of(given) == goes_on

    async def test_answers_and_lines_have_the_state(self, environment: Environment, written: Written) -> None:
        door = FrontDoor(environment)
        both_lines = [("traceparent", TRACEPARENT), ("tracestate", "rojo=1"), ("tracestate", "congo=2 ")]
        answer = await door.client.get("/health/live", headers=both_lines)
        assert answer.headers["tracestate"] == "rojo=1,congo=2"
        alone = await door.client.get("/health/live", headers={"tracestate": "rojo=1"})
        broken = await door.client.get("/health/live", headers={"traceparent": TRACEPARENT, "tracestate": "Rojo"})
        assert ("tracestate" in alone.headers, "tracestate" in broken.headers) == (False, False)
        assert [line.get("tracestate") for line in written.lines()] == ["rojo=1,congo=2", None]

    def test_span_ids(self) -> None:
        made = {new_span_id() for _ in range(100)}
        assert len(made) == 100
        assert all(re.fullmatch("[0-9a-f]{16}", span) for span in made)

    async def test_answers_and_lines_have_it(self, environment: Environment, written: Written) -> None:
        door = FrontDoor(environment)
        answer = await door.client.get("/health/live", headers={"traceparent": TRACEPARENT})
        _, trace_id, span_id, flags = answer.headers["traceresponse"].split("-")
        assert (trace_id, flags) == (TRACE_ID, "01")
        assert span_id != PARENT_ID
        assert "traceresponse" not in (await door.client.get("/health/live")).headers
        (line,) = written.lines()
        assert (line["trace_id"], line["span_id"], line["route"]) == (TRACE_ID, span_id, "/health/live")

    async def test_the_raw_route_does_the_same(self, environment: Environment, written: Written) -> None:
        def masked(answers: list[bytes]) -> list[bytes]:
            return [re.sub(rb"(traceresponse: 00-\w{32}-)\w{16}", rb"\1SPAN", answer) for answer in answers]

        twice = one("b", traceparent=TRACEPARENT).replace(
            b"\r\n\r\n", b"\r\ntraceparent: %b\r\n\r\n" % TRACEPARENT.encode()
        )
        async with both(environment) as (hot, plain):
            for sent in (
                one("a", traceparent=TRACEPARENT, tracestate="rojo=1, congo=2"),
                twice,
                one("c", traceparent="broken", tracestate="rojo=1"),
            ):
                ours = masked(await hot.exchange(sent))
                assert ours == masked(await plain.exchange(sent))
                assert (b"traceresponse: " in ours[0]) == (b'"a"' in ours[0])
                assert (b"tracestate: rojo=1,congo=2\r\n" in ours[0]) == (b'"a"' in ours[0])
            hot.door.log.is_down = plain.door.log.is_down = True
            sent = one("d", traceparent=TRACEPARENT)
            ours = masked(await hot.exchange(sent))
            assert ours == masked(await plain.exchange(sent))
            assert b"traceresponse" in ours[0]
        lines = written.lines()
        assert [(line["status"], line["route"], line["trace_id"]) for line in lines] == [
            (status, "/v1/events", TRACE_ID) for status in (202, 202, 503, 503)
        ]


class TestAccessLog:
    class Notes:
        """A log with a clock, and what it wrote."""

        def __init__(self, caplog: pytest.LogCaptureFixture, **settings: Any) -> None:
            caplog.set_level(logging.INFO, "nightjar.access")
            self._caplog = caplog
            self.now = 10_000_000_000
            limits = {"sample_every": 0, "slow_ms": 50, "max_per_second": 100, **settings}
            self.log = AccessLog(**limits, timer=lambda: self.now)

        def note(self, status: int, *, took_ms: float = 1, trace: Trace | None = None) -> bool:
            """Whether it was written."""
            before = len(self._caplog.records)
            self.log.note("GET", "/r", status, self.now - int(took_ms * 1e6), "id", "", trace)
            return len(self._caplog.records) > before

        def last(self) -> dict[str, Any]:
            return dict(self._caplog.records[-1].fields)  # type: ignore[attr-defined]

    def test_which_requests_are_worth_a_line(self, caplog: pytest.LogCaptureFixture) -> None:
        notes = self.Notes(caplog)
        assert [notes.note(status) for status in (200, 202, 404, 422, 401, 403, 429, 500, 503)] == [False] * 4 + [
            True
        ] * 5
        assert [notes.note(200, took_ms=ms) for ms in (49.9, 50)] == [False, True]
        assert notes.last() == {"method": "GET", "route": "/r", "status": 200, "micros": 50_000, "request_id": "id"}
        traces = [Trace(TRACE_ID, PARENT_ID, is_sampled) for is_sampled in (False, True)]
        assert [notes.note(200, trace=trace) for trace in traces] == [False, True]

    def test_one_in_so_many(self, caplog: pytest.LogCaptureFixture) -> None:
        notes = self.Notes(caplog, sample_every=3)
        assert [notes.note(200) for _ in range(7)] == [False, False, True, False, False, True, False]

    def test_a_flood_is_cut_and_said(self, caplog: pytest.LogCaptureFixture) -> None:
        notes = self.Notes(caplog, max_per_second=2)
        assert [notes.note(500) for _ in range(5)] == [True, True, False, False, False]
        notes.now += 1_000_000_000
        assert [notes.note(500), notes.last()["lines_left_out"], notes.note(500), notes.note(500)] == [
            True,
            3,
            True,
            False,
        ]
        assert "lines_left_out" not in notes.last()


USER, DEVICE, SESSION, ITEM, WORD = "planted-user", "planted-device", "planted-session", "planted-item", "planted-word"


class TestNobodySData:
    async def test_no_id_no_query_no_key_and_no_exception_s_text_is_in_the_log(
        self, environment: Environment, written: Written, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key, record = new_key(READ, WRITE, "admin", "erase")
        door = FrontDoor(environment, api_keys="on", keys=[record], access_log_every=1, access_log_per_second=10_000)
        app = with_hot_routes(door.app)
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://api", headers=bearer(key)
        )
        person = {"user_id": USER, "anonymous_id": DEVICE, "session_id": SESSION}
        event = {**COMMON, **person, "item_id": ITEM, "properties": {"query": WORD}}

        async def everything() -> int:
            answers = [
                await client.post("/v1/events", json=event),
                await client.post("/v1/events", json=[event, {**event, "event_type": "odd"}]),
                await client.post("/v1/events", content=json.dumps(event)[:-1]),
                await client.get("/v1/pixel.gif", params={"event_type": "click", **person, "item_id": ITEM}),
                await client.post(
                    "/v1/track", json={"userId": USER, "event": WORD, "properties": {"product_id": ITEM}}
                ),
                await client.post("/v1/recommendations", json={**person, "exclude_item_ids": [ITEM]}),
                await client.get("/v1/recommendations", params={**person, "session_items": ITEM}),
                await client.post("/v1/similar", json={"item_id": ITEM}),
                await client.patch(f"/v1/items/{ITEM}", json={"title": WORD}),
                await client.patch(f"/v1/users/{USER}", json={"region": WORD, "odd": ITEM}),
                await client.delete(f"/v1/users/{USER}"),
                await client.get(f"/v1/{USER}/{ITEM}"),
                await client.get(f"/v1/users/{USER}/profile"),
                await client.post("/v1/rank", json={**person, "item_ids": [ITEM], "filter": f'category == "{WORD}"'}),
                await client.get(f"/v1/decisions/{SESSION}"),
                await client.get("/health/ready", headers={"traceparent": TRACEPARENT, "cookie": WORD}),
                await client.post("/v1/events", json=event, headers={"authorization": f"Bearer {USER}"}),
            ]
            return sum(answer.status_code >= 500 for answer in answers)

        await everything()

        def breaks(*_: Any, **__: Any) -> Any:
            try:
                raise KeyError(ITEM)
            except KeyError:
                raise ValueError(f"{USER} wants {ITEM}") from DependencyError(WORD)

        services = door.app.state.services
        monkeypatch.setattr(services.recommender, "settle", breaks)
        monkeypatch.setattr(services.log, "append", breaks)
        monkeypatch.setattr(services.log, "append_changes", breaks)
        assert await everything() >= 6
        logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: <Task %s>", USER)

        text = written.text()
        lines = [json.loads(line) for line in text.splitlines()]
        # the raw route's one is not answered when the log breaks like this: its server ends the connection
        assert len([line for line in lines if line["logger"] == "nightjar.access"]) == 2 * 17 - 1
        assert {"/v1/events", "/v1/users/{user_id:path}", "/v1/items/{item_id:path}", "unmatched"} <= {
            line["route"] for line in lines if "route" in line
        }
        assert {line.get("key_id") for line in lines} >= {record.key_id}
        failed = [line for line in lines if line["logger"] == "nightjar.serving"]
        assert failed
        assert all(line["error"]["types"][0] == "ValueError" for line in failed)
        assert all("breaks" in line["error"]["Traceback"][-1] for line in failed)
        for planted in (USER, DEVICE, SESSION, ITEM, WORD, key):
            assert planted not in text
        assert "?" not in text

    def test_every_line_says_when_and_where_from(self, written: Written) -> None:
        logging.getLogger("nightjar.serving").warning("%d of %s", 3, "these")
        logging.getLogger("nightjar.serving").info("not worth a line")
        logging.getLogger("nightjar.access").info("request", extra={"fields": {"status": 200}})
        first, second = written.lines()
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+Z", first.pop("at"))
        assert first == {"level": "warning", "logger": "nightjar.serving", "message": "3 of these"}
        assert second["status"] == 200
