"""Sends `raw_requests` over many connections and notes what comes back: bytes out, answers in, nothing trusted."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

from infra.bench.events.raw_requests import RawRequest, RawRequests

CONNECTIONS = 64
ANSWER_SECONDS = 60.0
"""A request that is in order and got no answer by then was forgotten."""
QUIET_SECONDS = 0.04
"""After a request of which nobody can say how many answers come: so long without a byte, and the connection is cut."""
MAX_KEPT = 20
_REFUSALS = 200
_OVERLOADED = b"urn:nightjar:problem:overloaded"


@dataclass(slots=True)
class Tally:
    """What came back. `faults`: answers >= 500 that are no overload, with the requests before them (base64)."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    overloaded: int = 0
    refused: int = 0
    """Connections that were not taken."""
    dropped: int = 0
    """Connections that were ended although answers were due."""
    unanswered: int = 0
    unreadable: int = 0
    """Answers that are no HTTP."""
    fault_count: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)
    kept_dropped: list[str] = field(default_factory=list)

    def note_answer(self, status: int, body: bytes, request: bytes) -> None:
        """An answer came; `request`: the bytes that it is an answer to, with others of the same write."""
        self.statuses[status] += 1
        if status == 503 and _OVERLOADED in body:
            self.overloaded += 1
        elif status >= 500:
            self.note_fault(str(status), request, body)

    def note_dropped(self, request: bytes) -> None:
        """A connection was ended before the first answer that was due."""
        self.dropped += 1
        if len(self.kept_dropped) < MAX_KEPT:
            self.kept_dropped.append(base64.b64encode(request[:10_000]).decode())

    def note_fault(self, what: str, request: bytes, answer: bytes = b"") -> None:
        """Something that must not be; the first ones are kept whole."""
        self.fault_count += 1
        if len(self.faults) < MAX_KEPT:
            said = answer[:500].decode("utf-8", "replace")
            self.faults.append({"what": what, "answer": said, "request": base64.b64encode(request[:100_000]).decode()})


class _Connection(asyncio.Protocol):
    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._loop = asyncio.get_running_loop()
        self._request = RawRequest(b"", 0, 0)
        self._answers = 0
        self._body: list[bytes] = []
        self._done: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)

    async def exchange(self, request: RawRequest) -> None:
        """Send it and wait for what is due. Nobody else may meanwhile."""
        self._request, self._answers = request, 0
        self._done = self._loop.create_future()
        self._wait(QUIET_SECONDS if request.answers is None else ANSWER_SECONDS)
        self._transport.write(request.data)
        await self._done
        if request.answers is None:
            self.cut()

    def cut(self) -> None:
        """End the connection without a goodbye."""
        self.is_open = False
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end()
        except httptools.HttpParserError:
            if self._request.answers is not None:  # after HEAD and CONNECT a parser of answers is lost
                self._tally.unreadable += 1
                self._tally.note_fault("unreadable", self._request.data, data)
            self._end()
        else:
            if self._request.answers is None:
                self._wait(QUIET_SECONDS)

    def on_message_begin(self) -> None:
        self._body = []

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() >= 500:
            self._body.append(body)

    def on_headers_complete(self) -> None:
        if self._request.answers is None and self._parser.get_status_code() < 500:
            self._tally.statuses[self._parser.get_status_code()] += 1  # its body may never end

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._request.answers is not None or status >= 500:
            self._tally.note_answer(status, b"".join(self._body), self._request.data)
        self._answers += 1
        if not self._parser.should_keep_alive():
            self.is_open = False
            self._end()
        elif self._answers == self._request.answers:
            self._end()

    def connection_lost(self, _: Exception | None) -> None:
        self.is_open = False
        if self._done is not None and not self._done.done() and self._request.answers is not None and not self._answers:
            self._tally.note_dropped(self._request.data)
        self._end()

    def _wait(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        if self._request.answers is not None:
            self._tally.unanswered += 1
            self._tally.note_fault("unanswered", self._request.data)
            self.cut()
        self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


async def send_raw(port: int, requests: RawRequests, count: int, tally: Tally) -> None:
    """Send at least `count` requests to the loopback and note everything in `tally`."""
    aim = tally.requests + count

    async def work() -> None:
        connection: _Connection | None = None
        while tally.requests < aim and tally.refused < _REFUSALS:
            request = requests.next()
            tally.requests += request.requests
            if connection is None or not connection.is_open:
                try:
                    _, connection = await asyncio.get_running_loop().create_connection(
                        lambda: _Connection(tally), "127.0.0.1", port
                    )
                except OSError:
                    tally.refused += 1
                    await asyncio.sleep(0.1)
                    continue
            await connection.exchange(request)
        if connection is not None and connection.is_open:
            connection.cut()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
