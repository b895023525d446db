"""Over real connections: the raw route in the server, beside uvicorn alone with the application alone."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import uvicorn
import uvloop
from prometheus_client import REGISTRY
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from feature_repo.contracts.environment import Environment
from serving.api import hot_protocol
from serving.api.hot_protocol import HotProtocol
from serving.api.known_heads import MAX_HEADS, KnownHeads
from serving.api.visits import NOBODY
from serving.main import with_hot_routes
from tests.contract.test_hot_events import COMMON, LIMITS, REQUESTS
from tests.front_door import FrontDoor

ACCEPTED = b'{"results":[{"index":0,"event_id":"%b","status":"accepted"}]}'


class Served:
    """A server on a port of its own. `is_hot`: as a worker runs it."""

    def __init__(self, environment: Environment, *, is_hot: bool, **settings: Any) -> None:
        self.door = FrontDoor(environment, **settings)
        self._config = uvicorn.Config(
            with_hot_routes(self.door.app) if is_hot else self.door.app,
            http=HotProtocol if is_hot else HttpToolsProtocol,
            loop="asyncio", lifespan="off", access_log=False, log_level="critical", server_header=False,
            proxy_headers=False,
        )  # fmt: skip
        self.server = uvicorn.Server(self._config)
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    async def __aenter__(self) -> Served:
        self._task = asyncio.create_task(self.server.serve(sockets=[self._listener]))
        while not self.server.started:
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.should_exit = True
        await self._task

    async def exchange(self, *pieces: bytes, pause: float = 0.0, answers: int = 1) -> list[bytes]:
        """Send the pieces; so many whole answers, without what is never the same twice."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        found = [await read_answer(reader) for _ in range(answers)]
        writer.close()
        return found


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    if b" 100 " in head.split(b"\r\n", 1)[0]:
        return head + await read_answer(reader)
    size = re.search(rb"content-length: (\d+)", head)
    assert size is not None, head
    body = await reader.readexactly(int(size[1]))
    own = re.search(rb"x-request-id: (\S+)", head)
    assert own is not None
    head = re.sub(rb"date: [^\r]+", b"date: now", head)
    if own[1].startswith(b"id"):  # not the client's own
        head = re.sub(rb"content-length: \d+", b"content-length: n", head) if own[1] in body else head
        head, body = head.replace(own[1], b"ID"), body.replace(own[1], b"ID")
    return head + body


def request(body: bytes, headers: dict[str, str], *, line: bytes = b"POST /v1/events HTTP/1.1") -> bytes:
    fields = {"host": "api", **headers, "content-length": str(len(body))}
    return line + b"\r\n" + b"".join(f"{k}: {v}\r\n".encode() for k, v in fields.items()) + b"\r\n" + body


def one(event_id: str, **headers: str) -> bytes:
    return request(orjson.dumps({**COMMON, "event_id": event_id}), {"content-type": "application/json", **headers})


@asynccontextmanager
async def both(environment: Environment, **settings: Any) -> AsyncIterator[tuple[Served, Served]]:
    async with (
        Served(environment, is_hot=True, **settings) as hot,
        Served(environment, is_hot=False, **settings) as plain,
    ):
        yield hot, plain


async def test_every_request_gets_the_same_bytes(environment: Environment) -> None:
    async with both(environment, **LIMITS) as (hot, plain):
        for name, (body, headers) in REQUESTS.items():
            for _ in range(2):  # the second time as duplicates
                ours = await hot.exchange(request(body, headers))
                assert ours == await plain.exchange(request(body, headers)), name
        assert {k: [e for e, _ in v] for k, v in hot.door.log.streams.items()} == {
            k: [e for e, _ in v] for k, v in plain.door.log.streams.items()
        }
        assert hot.door.log.quarantined == plain.door.log.quarantined


@pytest.mark.parametrize(
    "sent",
    [
        one("a").replace(b"HTTP/1.1", b"HTTP/1.0"),
        one("b", connection="close"),
        one("c", expect="100-continue"),
        one("d").replace(b"/v1/events", b"/v1/events?x=1"),
        one("e").replace(b"POST", b"PUT"),
        one("f").replace(b"/v1/events", b"/v1/event"),
    ],
    ids=["1.0", "close", "expect", "query", "put", "elsewhere"],
)
async def test_what_is_unusual_is_uvicorns(environment: Environment, sent: bytes) -> None:
    async with both(environment) as (hot, plain):
        assert await hot.exchange(sent) == await plain.exchange(sent)


async def test_pieces_and_bodies_that_turn_out_long(environment: Environment) -> None:
    many = [{**COMMON, "event_id": f"e{number}", "channel": "c" * 200} for number in range(400)]
    assert len(orjson.dumps(many)) > 65_536
    async with both(environment) as (hot, plain):
        for whole in (one("a"), request(orjson.dumps(many), {"content-type": "application/json"})):
            half, end = len(whole) // 2, len(whole) - 30
            pieces = (whole[:40], whole[40:half], whole[half:end], whole[end:])
            assert await hot.exchange(*pieces, pause=0.03) == await plain.exchange(*pieces, pause=0.03)
        assert len(hot.door.log.marks) == 401


async def test_pipelined_requests_are_answered_in_their_order(environment: Environment) -> None:
    wrong = request(b"{", {"content-type": "application/json"})
    sent = one("a") + one("b") + wrong + one("c") + one("a")
    async with both(environment) as (hot, plain):
        ours = await hot.exchange(sent, answers=5)
        assert ours == await plain.exchange(sent, answers=5)
    assert [answer.split(b"\r\n", 1)[0].split()[1] for answer in ours] == [b"202", b"202", b"400", b"202", b"202"]
    assert [ACCEPTED % name in ours[at] for at, name in ((0, b"a"), (1, b"b"), (3, b"c"))] == [True] * 3
    assert b'"duplicate"' in ours[4]


async def test_one_connection_for_many_requests(environment: Environment) -> None:
    async with Served(environment, is_hot=True) as hot:
        reader, writer = await asyncio.open_connection("127.0.0.1", hot.port)
        for sent in (one("a"), request(b"{", {}), one("b"), one("c")):
            writer.write(sent)
            assert b"HTTP/1.1 " in await read_answer(reader)
        writer.close()
        assert len(hot.door.log.marks) == 3


async def test_a_log_that_fails_and_one_that_is_full(environment: Environment) -> None:
    async with both(environment) as (hot, plain):
        for trouble in ("is_down", "is_full"):
            for served in (hot, plain):
                served.door.log.is_down = trouble == "is_down"
                served.door.log.is_full = trouble == "is_full"
            sent = one("a", **{"x-request-id": "r-1"})
            ours = await hot.exchange(sent)
            assert ours == await plain.exchange(sent)
            assert ours[0].startswith(b"HTTP/1.1 503 ")


async def test_a_client_that_has_gone_harms_nobody(environment: Environment) -> None:
    async with Served(environment, is_hot=True) as hot:
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", hot.port)
            writer.write(one("a"))
            writer.transport.abort()
        _, writer = await asyncio.open_connection("127.0.0.1", hot.port)
        writer.write(one("b")[:-10])
        await writer.drain()
        writer.close()
        assert ACCEPTED % b"c" in (await hot.exchange(one("c")))[0]
        while len(hot.server.server_state.connections) > 1:
            await asyncio.sleep(0.01)


async def test_a_client_that_goes_in_the_middle_of_its_body_is_no_failure_of_ours(
    environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    def gone() -> float:
        labels = {"route": "/v1/track", "status": "499"}
        return REGISTRY.get_sample_value("nightjar_api_requests_total", labels) or 0.0

    before = gone()
    async with Served(environment, is_hot=True) as hot:
        _, writer = await asyncio.open_connection("127.0.0.1", hot.port)
        writer.write(b"POST /v1/track HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        async with asyncio.timeout(60):
            while not hot.server.server_state.tasks:
                await asyncio.sleep(0.01)
            writer.close()
            while hot.server.server_state.tasks:
                await asyncio.sleep(0.01)
    assert gone() == before + 1
    assert caplog.records == []


def test_nobody_answers_a_pipeline_that_is_gone(environment: Environment, caplog: pytest.LogCaptureFixture) -> None:
    """Its third request ends the connection while the first one is under way. On uvloop, as a worker runs: its
    transports refuse what is written after their end."""
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def scenario() -> None:
        async with Served(environment, is_hot=True) as hot:

            @hot.door.app.get("/slow")
            async def slow() -> str:
                asked.set()
                await may_answer.wait()
                return "late"

            async with asyncio.timeout(60):
                reader, writer = await asyncio.open_connection("127.0.0.1", hot.port)
                requests = [b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path for path in (b"/slow", b"/health/live")]
                writer.write(b"".join(requests) + b"no request\r\n\r\n")
                assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
                await asked.wait()
                writer.close()
                while hot.server.server_state.connections:
                    await asyncio.sleep(0.01)
                may_answer.set()
                while hot.server.server_state.tasks:
                    await asyncio.sleep(0.01)

    uvloop.run(scenario())
    assert asked.is_set()
    assert caplog.records == []


def test_who_asks_for_a_websocket_behind_other_requests_gets_all_answers(
    environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    """A protocol that took the connection over would keep its end from those whose answers are due. On uvloop, whose
    transports refuse what is written after that."""

    async def scenario() -> list[bytes]:
        async with Served(environment, is_hot=True) as hot, asyncio.timeout(60):
            write = hot.door.log._write
            hot.door.log._write = lambda *arguments: asyncio.get_running_loop().call_later(0.3, write, *arguments)  # type: ignore[method-assign, assignment, return-value]
            upgrade = {"connection": "Upgrade", "upgrade": "websocket"}
            last = request(b"", upgrade, line=b"GET /health/live HTTP/1.1")
            return await hot.exchange(one("a") + last, answers=2)

    first, second = uvloop.run(scenario())
    assert ACCEPTED % b"a" in first
    assert second.startswith(b"HTTP/1.1 200 ")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_request_under_way_is_answered_before_the_server_goes(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Served(environment, is_hot=True) as hot:
        write = hot.door.log._write
        monkeypatch.setattr(
            hot.door.log, "_write", lambda *arguments: asyncio.get_running_loop().call_later(0.5, write, *arguments)
        )
        asked = asyncio.create_task(hot.exchange(one("a")))
        while not hot.server.server_state.connections:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        hot.server.should_exit = True
        assert ACCEPTED % b"a" in (await asked)[0]


async def test_common_requests_make_no_cycle_of_uvicorn(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(HttpToolsProtocol, "_start_asgi_task", lambda *arguments: made.append(arguments))
    assert issubclass(hot_protocol.HotProtocol, HttpToolsProtocol)
    async with Served(environment, is_hot=True) as hot:
        assert ACCEPTED % b"a" in (await hot.exchange(one("a")))[0]
    assert made == []


class TestKnownHeads:
    """A second request with the same head is not parsed: everything else about it must be as before."""

    @pytest.fixture
    def parsed(self, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
        """The requests that the parser saw."""
        seen: list[bytes] = []
        feed = HttpToolsProtocol.data_received

        def data_received(protocol: Any, data: bytes) -> None:
            seen.append(data)
            feed(protocol, data)

        monkeypatch.setattr(HttpToolsProtocol, "data_received", data_received)
        return seen

    async def test_the_parser_sees_a_head_once(self, environment: Environment, parsed: list[bytes]) -> None:
        sent = [one(name) for name in ("a", "b", "longer", "c", "a")]
        async with Served(environment, is_hot=True) as hot:
            answers = [(await hot.exchange(request))[0] for request in sent]
        assert parsed == [sent[0], sent[2]]
        assert [ACCEPTED % name in answers[at] for at, name in enumerate((b"a", b"b", b"longer", b"c"))] == [True] * 4
        assert b'"duplicate"' in answers[4]
        assert answers[1] == answers[0].replace(b'"a"', b'"b"')

    async def test_every_request_gets_the_same_bytes_behind_a_known_head(self, environment: Environment) -> None:
        """Bodies of one length, so that the heads are one: good, uncommon, broken, in pieces, pipelined, good again."""
        good = one("a")
        size = len(good) - good.index(b"\r\n\r\n") - 4
        bodies = [good[-size:], b"{" * size, b'{"event_id":"x"}'.ljust(size), b"[" + b" " * (size - 2) + b"]"]
        head = good[:-size]
        rounds: list[tuple[bytes, ...]] = [(head + body,) for body in bodies for _ in range(2)]
        rounds += [(head, bodies[0]), (head[:30], head[30:] + bodies[0]), (good + one("b"),), (b"\r\n" + good,)]
        rounds += [(head + bodies[0] + head[:9], head[9:] + bodies[0]), (good,)]
        async with both(environment) as (hot, plain):
            ours, theirs = [], []
            for served, answers in ((hot, ours), (plain, theirs)):
                reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
                for pieces in rounds:
                    for piece in pieces:
                        writer.write(piece)
                        await asyncio.sleep(0.01)
                    count = b"".join(pieces).count(b"POST ")
                    answers += [await read_answer(reader) for _ in range(count)]
                writer.close()
            assert len(ours) == len(rounds) + 2
            assert ours == theirs

    async def test_what_could_be_read_in_two_ways_is_not_learned(
        self, environment: Environment, parsed: list[bytes]
    ) -> None:
        body = orjson.dumps({**COMMON, "event_id": "e"})
        line, kind = b"POST /v1/events HTTP/1.1\r\nhost: h\r\n", b"content-type: application/json\r\n"
        size = b"content-length: %d\r\n" % len(body)
        chunked = line + kind + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        folded = line + kind + b"x: a\r\n b\r\n" + size + b"\r\n" + body
        own_id = line + kind + size + b"x-request-id: mine\r\n\r\n" + body
        long = line + kind + size + b"x: " + b"y" * 5000 + b"\r\n\r\n" + body
        feeds = line + kind + size.replace(b"\r\n", b"\n") + b"\r\n" + body
        async with Served(environment, is_hot=True) as hot:
            for sent in (chunked, folded, own_id, long, feeds):
                before = len(parsed)
                for _ in range(2):
                    reader, writer = await asyncio.open_connection("127.0.0.1", hot.port)
                    writer.write(sent)
                    await asyncio.wait_for(reader.read(100), 20)
                    writer.close()
                assert len(parsed) == before + 2, sent[:200]

    async def test_a_full_log_and_a_writer_that_waits_go_the_long_way(
        self, environment: Environment, parsed: list[bytes]
    ) -> None:
        async with Served(environment, is_hot=True) as hot:
            await hot.exchange(one("a"))
            hot.door.log.is_full = True
            assert (await hot.exchange(one("b")))[0].startswith(b"HTTP/1.1 503 ")
            hot.door.log.is_full = False
            assert ACCEPTED % b"b" in (await hot.exchange(one("b")))[0]
        assert len(parsed) == 2

    async def test_a_body_that_looks_like_a_request_is_none(self, environment: Environment) -> None:
        """Its request was answered before it came, and its bytes begin with a known head."""
        inner = one("b")
        async with Served(environment, is_hot=True) as hot:
            await hot.exchange(one("a"))
            reader, writer = await asyncio.open_connection("127.0.0.1", hot.port)
            writer.write(b"POST /nowhere HTTP/1.1\r\nhost: api\r\ncontent-length: %d\r\n\r\n" % len(inner))
            assert (await read_answer(reader)).startswith(b"HTTP/1.1 404 ")
            writer.write(inner)
            await asyncio.sleep(0.05)
            writer.write(one("c"))
            assert ACCEPTED % b"c" in await read_answer(reader)
            writer.close()
            assert [event["event_id"] for event in hot.door.written()] == ["a", "c"]

    @pytest.mark.parametrize(
        ("head", "headers"),
        [
            (b"x: 1\r\n 2\r\ncontent-length: 2", [(b"x", b"1 2"), (b"content-length", b"2")]),
            (b"x: 1\ncontent-length: 2", [(b"x", b"1"), (b"content-length", b"2")]),
            (b"x: 1\r2\r\ncontent-length: 2", [(b"x", b"1\r2"), (b"content-length", b"2")]),
            (b"content-length: 2\r\ncontent-length: 2", [(b"content-length", b"2")] * 2),
            (b"content-length: +2", [(b"content-length", b"+2")]),
            (b"content-length: 2\r\ntransfer-encoding: x", [(b"content-length", b"2"), (b"transfer-encoding", b"x")]),
            (b"x: 1", [(b"x", b"1")]),
        ],
    )
    def test_no_head_that_is_not_plain(self, head: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        heads, data = KnownHeads(), b"POST / HTTP/1.1\r\n" + head + b"\r\n\r\nab"
        heads.learn(data, headers, NOBODY)
        assert heads.find(data) is None

    def test_it_forgets_rather_than_grows(self) -> None:
        heads = KnownHeads()
        for number in range(MAX_HEADS + 5):
            head = b"POST / HTTP/1.1\r\nx: %d\r\ncontent-length: 2" % number
            heads.learn(head + b"\r\n\r\nab", [(b"x", b""), (b"content-length", b"2")], NOBODY)
        assert len(heads._known) == 5
        assert heads.find(head + b"\r\n\r\nab") == (b"ab", NOBODY)
        assert [heads.find(head + b"\r\n\r\n" + body) for body in (b"a", b"abc", b"")] == [None] * 3
        assert heads.find(b"\r\n\r\n") is None


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Served(environment, is_hot=True) as hot:
        monkeypatch.setattr(hot._config, "timeout_keep_alive", 0.8)
        reader, writer = await asyncio.open_connection("127.0.0.1", hot.port)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(6):  # among them one of uvicorn's own, whose timer must not end those behind it
            writer.write(request(b"{", {}) if number == 2 else one(f"e{number}"))
            await read_answer(reader)
            await asyncio.sleep(0.3)
        assert loop.time() - began > 1.6
        last = loop.time() - 0.3
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert loop.time() - last > 0.75
        writer.close()
