"""Who is let in when a worker has too much to do, and how a server leaves its connections."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import uvicorn
import uvloop
from prometheus_client import REGISTRY
from starlette.responses import Response, StreamingResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from feature_repo.contracts.environment import Environment
from serving.api.front_protocol import BATCHES, EVENTS, PEOPLE, Admission, FrontProtocol, kind_of
from serving.main import with_hot_routes
from serving.turns import Turns
from tests.contract.test_hot_events import COMMON
from tests.contract.test_hot_protocol import ACCEPTED, one, read_answer, request
from tests.front_door import FrontDoor


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (b"/v1/recommendations", PEOPLE), (b"/v1/recommendations?user_id=events", PEOPLE), (b"/v1/similar", PEOPLE),
        (b"/v1/events", EVENTS), (b"/v1/pixel.gif?event_type=click", EVENTS), (b"/mp/collect?x=1", EVENTS),
        (b"/v1/track", EVENTS), (b"/v1/batch", BATCHES), (b"/v1/items", BATCHES), (b"/v1/items/i1", BATCHES),
        (b"/v1/users?x", BATCHES),
        (b"/v1/users/u1/profile", PEOPLE), (b"/v1/recommendations/batch", BATCHES), (b"/v1/itemsets", PEOPLE),
        (b"/v1/eventsx", PEOPLE), (b"/health/ready", None), (b"/metrics", None),
    ],
)  # fmt: skip
def test_whose_request_it_is(url: bytes, kind: str | None) -> None:
    assert kind_of(url) == kind


def test_batches_then_events_then_people() -> None:
    admission = Admission(8)
    refused = {
        in_flight: [
            admission.refuses(url, in_flight) for url in (b"/v1/items", b"/v1/events", b"/v1/similar", b"/metrics")
        ]
        for in_flight in (3, 4, 5, 6, 7, 8, 1000)
    }
    assert refused == {
        3: [None, None, None, None],
        4: [BATCHES, None, None, None],
        5: [BATCHES, None, None, None],
        6: [BATCHES, EVENTS, None, None],
        7: [BATCHES, EVENTS, None, None],
        8: [BATCHES, EVENTS, PEOPLE, None],
        1000: [BATCHES, EVENTS, PEOPLE, None],
    }


def test_who_would_wait_too_long_is_refused() -> None:
    turns = Turns(lambda: 0)
    turns.each_ns = 1e6
    admission = Admission(1000, max_wait_seconds=0.04, turns=turns)
    refused = {}
    for turns.expected in (7, 19, 20, 29, 30, 39, 40):
        urls = (b"/v1/items", b"/v1/events", b"/v1/similar", b"/metrics")
        refused[turns.expected] = [admission.refuses(url, 0) for url in urls]
        assert admission.is_crowded(0) is (turns.expected >= 20)
    assert refused == {
        7: [None, None, None, None],
        19: [None, None, None, None],
        20: [BATCHES, None, None, None],
        29: [BATCHES, None, None, None],
        30: [BATCHES, EVENTS, None, None],
        39: [BATCHES, EVENTS, None, None],
        40: [BATCHES, EVENTS, PEOPLE, None],
    }
    turns.each_ns, turns.expected = 1e9, 7  # a few are let in whatever they take
    assert [admission.refuses(url, 0) for url in urls] == [None, None, None, None]
    assert [admission.refuses(url, 500) for url in urls] == [BATCHES, None, None, None]
    turns.expected = 8
    assert [admission.refuses(url, 0) for url in urls] == [BATCHES, EVENTS, PEOPLE, None]


class Busy:
    """A server with places for four, and a route whose requests stay under way until `free` is set."""

    def __init__(self, environment: Environment) -> None:
        self.door = FrontDoor(environment)
        self.free = asyncio.Event()

        @self.door.app.get("/v1/slow")
        async def slow() -> str:
            await self.free.wait()
            return "done"

        config = uvicorn.Config(
            with_hot_routes(self.door.app), http=FrontProtocol, loop="asyncio", lifespan="off", access_log=False,
            log_level="critical", server_header=False, proxy_headers=False,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._open: list[Any] = []

    async def __aenter__(self) -> Busy:
        self._task = asyncio.create_task(self.server.serve(sockets=[self._listener]))
        while not self.server.started:
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.free.set()
        self.server.should_exit = True
        await self._task
        for _, writer in self._open:
            writer.close()

    async def connect(self) -> Any:
        self._open.append(await asyncio.open_connection(*self._listener.getsockname()))
        return self._open[-1]

    async def occupy(self, count: int) -> list[Any]:
        """So many more requests are under way."""
        wanted = len(self.server.server_state.tasks) + count
        connections = [await self.connect() for _ in range(count)]
        for _, writer in connections:
            writer.write(b"GET /v1/slow HTTP/1.1\r\nHost: h\r\n\r\n")
        while len(self.server.server_state.tasks) < wanted:
            await asyncio.sleep(0.005)
        return connections

    async def ask(self, sent: bytes) -> bytes:
        reader, writer = await self.connect()
        writer.write(sent)
        return await read_answer(reader)


@pytest.fixture(autouse=True)
def _four_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrontProtocol, "admission", Admission(4))


@pytest.fixture
async def busy(environment: Environment) -> AsyncIterator[Busy]:
    async with Busy(environment) as served:
        yield served


def status(answer: bytes) -> int:
    return int(answer.split()[1])


PUT_ITEM = request(b'{"title":"x"}', {"content-type": "application/json"}, line=b"PATCH /v1/items/i1 HTTP/1.1")
ASK = request(b"{}", {"content-type": "application/json"}, line=b"POST /v1/recommendations HTTP/1.1")
EXPLAINED = request(
    b'{"explain":true}', {"content-type": "application/json"}, line=b"POST /v1/recommendations HTTP/1.1"
)
"""A question that the application answers."""
LIVE = b"GET /health/live HTTP/1.1\r\nHost: h\r\n\r\n"


def refusals(kind: str) -> float:
    return REGISTRY.get_sample_value("nightjar_api_admission_refusals_total", {"kind": kind}) or 0.0


class TestAdmission:
    async def test_each_kind_has_its_bound(self, busy: Busy) -> None:
        found = []
        before = [refusals(kind) for kind in (BATCHES, EVENTS, PEOPLE)]
        for more in (0, 2, 1, 1):
            await busy.occupy(more)
            found.append([status(await busy.ask(sent)) for sent in (PUT_ITEM, one(f"e{len(found)}"), ASK, LIVE)])
        # the question is a 503 of another kind: nothing is published
        assert found == [[202, 202, 503, 200], [503, 202, 503, 200], [503, 503, 503, 200], [503, 503, 503, 200]]
        assert [refusals(kind) - old for kind, old in zip((BATCHES, EVENTS, PEOPLE), before, strict=True)] == [3, 2, 1]
        assert len(busy.door.written()) == 2

    async def test_a_refusal_is_a_problem_with_its_request_id(self, busy: Busy) -> None:
        await busy.occupy(4)
        head, _, body = (await busy.ask(one("a", **{"x-request-id": "r-1"}))).partition(b"\r\n\r\n")
        assert b"retry-after: 1\r\n" in head
        assert b"x-request-id: r-1" in head
        assert b"content-type: application/problem+json" in head
        assert orjson.loads(body) == {
            "type": "urn:nightjar:problem:overloaded", "title": "The server has no room for this now", "status": 503,
            "detail": "too many requests are under way here; nothing of this one was done", "request_id": "r-1",
        }  # fmt: skip

    async def test_a_whole_request_is_refused_unread(self, busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
        await busy.occupy(4)
        parsed: list[bytes] = []
        parse = HttpToolsProtocol.data_received

        def noted(protocol: HttpToolsProtocol, data: bytes) -> None:
            parsed.append(data)
            parse(protocol, data)

        monkeypatch.setattr(HttpToolsProtocol, "data_received", noted)
        before = refusals(PEOPLE)
        reader, writer = await busy.connect()

        async def refused(*pieces: bytes, answers: int = 1) -> list[bytes]:
            parsed.clear()
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.02)
            found = [await read_answer(reader) for _ in range(answers)]
            assert [status(answer) for answer in found] == [503] * answers
            return [re.sub(rb"[0-9a-f]{32}|date: [^\r]*", b"", answer) for answer in found]

        (unread,) = await refused(ASK)
        assert parsed == []
        assert await refused(ASK.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")) == [unread]
        assert parsed == []
        at = ASK.index(b"\r\n\r\n")
        for pieces, answers in (
            ((ASK[: at + 4], ASK[at + 4 :]), 1),
            ((ASK[:20], ASK[20:]), 1),
            ((ASK + ASK,), 2),
            ((ASK[:at].replace(b"POST", b"PUT") + ASK[at:],), 1),
        ):
            assert await refused(*pieces, answers=answers) == [unread] * answers
            assert parsed
        assert b"x-request-id: mine" in (await refused(ASK[:at] + b"\r\nX-Request-Id: mine" + ASK[at:]))[0]
        assert await refused(ASK) == [unread]
        assert parsed == []
        assert await refused(ASK[:at] + b"\r\nUpgrade: h2c" + ASK[at:]) == [unread]
        assert parsed
        assert refusals(PEOPLE) - before == 10
        assert status(await busy.ask(LIVE)) == 200

    async def test_a_refusal_does_not_overtake_what_still_waits_to_be_sent(self, busy: Busy) -> None:
        size = 40_000_000  # more than the buffers of two sockets hold

        @busy.door.app.get("/v1/large")
        async def large() -> Any:
            return Response(b"x" * size)

        client = socket.create_connection(busy._listener.getsockname())
        client.setblocking(False)
        client.send(LIVE)
        while not busy.server.server_state.connections:
            await asyncio.sleep(0.005)
        (protocol,) = busy.server.server_state.connections
        protocol.transport.set_write_buffer_limits(high=2 * size)  # it is never too much
        client.send(b"GET /v1/large HTTP/1.1\r\nHost: h\r\n\r\n")
        while not protocol.transport.get_write_buffer_size():
            await asyncio.sleep(0.005)
        await busy.occupy(4)
        received = bytearray()
        with contextlib.suppress(BlockingIOError):
            while True:
                received += client.recv(10_000_000)  # now the socket has room, and the server does not know
        assert 0 < len(received) < size
        protocol.data_received(ASK)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            while b"nothing of this one was done" not in received[-500:]:
                received += await loop.sock_recv(client, 10_000_000)
        refused_at = received.index(b"HTTP/1.1 503")
        assert received[refused_at - 1000 : refused_at] == b"x" * 1000
        assert received.count(b"x") > size
        client.close()

    async def test_two_lengths_are_no_length(self, busy: Busy) -> None:
        await busy.occupy(4)
        at = ASK.index(b"\r\n\r\n")
        reader, writer = await busy.connect()
        writer.write(ASK[:at] + b"\r\ncontent-length: 7" + ASK[at:])
        assert status(await reader.read()) == 400

    async def test_a_refused_connection_goes_on(self, busy: Busy) -> None:
        occupied = await busy.occupy(4)
        big = request(b" " * 300_000 + orjson.dumps(COMMON), {"content-type": "application/json"})
        reader, writer = await busy.connect()
        for sent in (big, one("a")):
            writer.write(sent)
            assert status(await read_answer(reader)) == 503
        busy.free.set()
        for slow_reader, _ in occupied:
            assert status(await read_answer(slow_reader)) == 200
        writer.write(one("b") + one("c"))
        assert [ACCEPTED % name in await read_answer(reader) for name in (b"b", b"c")] == [True, True]

    async def test_one_that_wants_to_go_is_let_go(self, busy: Busy) -> None:
        await busy.occupy(4)
        reader, writer = await busy.connect()
        writer.write(one("a", connection="close"))
        assert b"connection: close" in await read_answer(reader)
        assert await reader.read() == b""

    async def test_events_under_way_on_the_raw_route_count(self, busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
        write = busy.door.log._write
        held: list[Any] = []
        monkeypatch.setattr(busy.door.log, "_write", lambda *arguments: held.append(arguments))
        waiting = [await busy.connect() for _ in range(4)]
        for number, (_, writer) in enumerate(waiting):
            writer.write(one(f"e{number}"))
        reader, _ = waiting[3]
        assert status(await read_answer(reader)) == 503
        assert FrontProtocol.admission.hot == 3
        waiting[2][1].close()  # its client goes: the event is written all the same
        monkeypatch.setattr(busy.door.log, "_write", write)
        for arguments in held:
            write(*arguments)
        for reader, _ in waiting[:2]:
            assert status(await read_answer(reader)) == 202
        while FrontProtocol.admission.hot:
            await asyncio.sleep(0.005)
        assert len(busy.door.written()) == 3


def test_refusals_wait_for_nobody_who_has_a_place(environment: Environment) -> None:
    """On uvloop, as a worker runs. How soon they come is measured by `nightjar torture serving`."""

    async def scenario() -> tuple[list[int], int]:
        async with Busy(environment) as busy:
            await busy.occupy(4)
            reader, writer = await busy.connect()
            answers = []
            for number in range(200):
                writer.write(one(f"e{number}"))
                answers.append(status(await read_answer(reader)))
            return answers, len(busy.server.server_state.tasks)

    answers, held = uvloop.run(scenario())
    assert (answers, held) == ([503] * 200, 4)


class TestWaiting:
    async def test_people_of_the_application_count_before_their_task_begins(
        self, environment: Environment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One piece of bytes, and as many requests as fit: nobody has begun when the last one is read."""
        async with Busy(environment) as busy:
            turns = busy.door.app.state.services.recommender.turns
            turns.each_ns = 1e6
            admission = Admission(1000, max_wait_seconds=0.01, turns=turns)
            monkeypatch.setattr(FrontProtocol, "admission", admission)
            for _ in range(14):
                await busy.connect()
            while len(busy.server.server_state.connections) < 14:
                await asyncio.sleep(0.005)
            protocols = list(busy.server.server_state.connections)
            for protocol in protocols:
                protocol.data_received(EXPLAINED)
            assert turns.expected == 10
            assert len(busy.server.server_state.tasks) == 10
            while busy.server.server_state.tasks:
                await asyncio.sleep(0.005)
            assert turns.expected == 0
            found = sorted([status(await read_answer(reader)) for reader, _ in busy._open])
            assert found == [503] * 14  # ten of them because nothing is published

    async def test_a_connection_that_waits_keeps_nothing_of_its_last_request(self, busy: Busy) -> None:
        reader, writer = await busy.connect()
        for sent in (one("e1"), ASK, LIVE, EXPLAINED):
            writer.write(sent)
            await read_answer(reader)
            await asyncio.sleep(0.01)
            (protocol,) = busy.server.server_state.connections
            assert (protocol.cycle, protocol.scope, protocol.headers, protocol.url) == (None, None, None, b"")
            assert not hasattr(protocol.flow, "_is_writable_event")

    async def test_pipelined_requests_are_answered_in_their_order(self, busy: Busy) -> None:
        (slow_reader, slow_writer), *_ = await busy.occupy(1)
        slow_writer.write(LIVE + b"GET /v1/unknown HTTP/1.1\r\nHost: h\r\n\r\n" * 2)
        await asyncio.sleep(0.02)
        busy.free.set()
        assert [status(await read_answer(slow_reader)) for _ in range(4)] == [200, 200, 404, 404]

    async def test_a_client_that_reads_slowly_is_waited_for(self, busy: Busy) -> None:
        size = 40_000_000  # more than the buffers of two sockets hold

        @busy.door.app.get("/v1/large")
        async def large() -> Any:
            async def pieces() -> AsyncIterator[bytes]:
                for _ in range(20):
                    yield b"x" * (size // 20)

            return StreamingResponse(pieces(), headers={"content-length": str(size)})

        reader, writer = await busy.connect()
        writer.write(b"GET /v1/large HTTP/1.1\r\nHost: h\r\n\r\n" + LIVE)
        while not any(protocol.flow.write_paused for protocol in busy.server.server_state.connections):
            await asyncio.sleep(0.005)
        assert b"x" * 1000 in await read_answer(reader)
        assert status(await read_answer(reader)) == 200


class TestLeaving:
    async def test_an_idle_connection_may_bring_one_more_request(
        self, environment: Environment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(FrontProtocol, "grace_seconds", 0.4)
        async with Busy(environment) as busy:
            for _ in range(2):
                await busy.ask(LIVE)
            hot, plain, silent = [await busy.connect() for _ in range(3)]
            for reader, writer in (hot, plain, silent):
                writer.write(LIVE)
                assert b"connection: close" not in await read_answer(reader)
            busy.server.should_exit = True
            await asyncio.sleep(0.15)
            for (reader, writer), sent in ((hot, one("a")), (plain, LIVE)):
                writer.write(sent)
                answer = await read_answer(reader)
                assert status(answer) in (200, 202)
                assert b"\r\nconnection: close\r\n" in answer
                assert await reader.read() == b""
            assert await silent[0].read() == b""
