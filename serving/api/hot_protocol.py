"""The server's side of the raw route: a common event request is answered without a task, a scope or a coroutine.

uvicorn makes all of these for each request, and they cost more than the event. Here a request that `HotEvents` can
answer has a small stand-in for uvicorn's own cycle; everything else, also what turns out not to be common once its body
is read, goes through uvicorn as always. Pipelined requests, keep-alive and shutdown stay uvicorn's affair: it sees a
cycle that is under way, and is told when it is complete. A request whose head the parser has read before, byte for
byte, is not parsed again (`known_heads`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from feature_repo.contracts.api_keys import SCOPES, WRITE
from feature_repo.contracts.errors import DependencyError
from serving.adapters.event_log import LogEntry, OverloadedError
from serving.api.access import GRANT
from serving.api.hot_events import PATH, HotEvents, answer_of, read_headers
from serving.api.idle_connections import LeanFlow, LeanQueue
from serving.api.visits import NOBODY, Visit
from serving.native import parts

_PATH = PATH.encode("ascii")
_ACCEPTED = b"%bcontent-length: %d\r\ncontent-type: application/json\r\n%b\r\n%b"
"""What all answers begin with, the body's length, the visit's last lines, the body."""


def accepted(entries: Sequence[LogEntry], is_new: Sequence[bool], head: bytes, last: bytes) -> bytes:
    """The whole 202 of a request. `head`: its first line and the server's own headers; `last`: the visit's lines."""
    answer: bytes | None = None if parts.groups is None else parts.groups.accepted(entries, is_new, head, last)
    return accepted_by_twin(entries, is_new, head, last) if answer is None else answer


def accepted_by_twin(entries: Sequence[LogEntry], is_new: Sequence[bool], head: bytes, last: bytes) -> bytes:
    """`accepted` in Python."""
    body = answer_of(entries, is_new)
    return _ACCEPTED % (head, len(body), last, body)


class _Signal:
    """What uvicorn sets to wake a cycle that waits; this one never does."""

    def set(self) -> None:
        """Nobody waits."""


_SIGNAL: Any = _Signal()


class HotCycle:
    """A request of the raw route, with what uvicorn looks at in a cycle; it waits for the log."""

    __slots__ = (
        "_protocol",
        "body",
        "disconnected",
        "entries",
        "given_id",
        "keep_alive",
        "message_event",
        "more_body",
        "response_complete",
        "started",
        "visit",
    )

    def __init__(self, started: int, given_id: str | None, visit: Visit, protocol: HotProtocol | None = None) -> None:
        """`protocol` writes the answer of an event request."""
        self._protocol = protocol
        self.started = started
        self.given_id = given_id
        self.visit = visit
        self.body = b""
        self.entries: Sequence[LogEntry] = ()
        self.more_body = True
        self.message_event = _SIGNAL
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False

    def on_durable(self, is_new: Sequence[bool]) -> None:
        assert self._protocol is not None
        self._protocol.hot.tally.count(self.started, is_new)

    def on_answer(self, is_new: Sequence[bool], error: DependencyError | None) -> None:
        assert self._protocol is not None
        self._protocol.answer(self, is_new, error)


class HotProtocol(HttpToolsProtocol):
    """One connection. Without a `HotEvents` as its application it is uvicorn's."""

    hot: HotEvents

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_hot = isinstance(self.app, HotEvents) and self.limit_concurrency is None
        if isinstance(self.app, HotEvents):
            self.hot = self.app
        self._overtaken: list[Any] = []
        """Cycles that were under way when a pipelined request came: uvicorn forgets them, and would answer into a
        connection that is gone."""
        self._is_between = True
        """Whether the parser is between two requests."""
        self._received: bytes | None = None
        """What was just received, while the parser has not yet seen the end of the first head in it."""
        self._answered_at = 0.0
        self.pipeline = LeanQueue()  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = LeanFlow(transport)

    def data_received(self, data: bytes) -> None:
        if self._is_hot and self._is_between and (self.cycle is None or self.cycle.response_complete):
            found = self.hot.heads.find(data)
            if found is not None and self.hot.log.has_room and not self.flow.write_paused:
                body, earlier = found
                visit = self.hot.visits.again(earlier, SCOPES[WRITE])
                if visit is not None:
                    cycle = HotCycle(self.hot.timer(), None, visit, self)
                    if self._submit(cycle, body):
                        cycle.more_body = False
                        self.cycle = cycle  # type: ignore[assignment]
                        return
                    visit.grant.give_back()
            self._received = data
        super().data_received(data)
        self._received = None

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in self._overtaken:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def _should_upgrade(self) -> bool:
        """Never: nothing here speaks WebSocket, and a connection that another protocol took over would not tell us of
        its end, while answers may still be due. The request is answered as it stands."""
        return False

    def _unsupported_upgrade_warning(self) -> None:
        self.logger.warning("Unsupported upgrade request.")

    def on_response_complete(self) -> None:
        if self._overtaken:
            self._overtaken = [cycle for cycle in self._overtaken if not cycle.response_complete]
        super().on_response_complete()
        self._forget()

    def _forget(self) -> None:
        """A connection that waits for its next request keeps nothing of its last one: there are thousands of them."""
        if self._is_between and (self.cycle is None or self.cycle.response_complete):
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]
            self.url = b""

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, unless it was used since the timer was set."""
        self.timeout_keep_alive_task = None
        if not self._is_between or (self.cycle is not None and not self.cycle.response_complete):
            return  # a request is under way; its answer sets the next timer
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left <= 0.001:
            super().timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)

    def on_message_begin(self) -> None:
        self._is_between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        received, self._received = self._received, None
        if self.cycle is not None and not self.cycle.response_complete:
            self._overtaken.append(self.cycle)
        if self._is_hot and self.url == _PATH and self.hot.log.has_room and self._is_plain():
            is_json, given_id = read_headers(self.headers)
            visit = self.hot.visits.begin(self.headers, SCOPES[WRITE]) if is_json else None
            if visit is not None:
                if received is not None and given_id is None:
                    self.hot.heads.learn(received, self.headers, visit)
                self.cycle = HotCycle(self.hot.timer(), given_id, visit, self)  # type: ignore[assignment]
                return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        cycle: Any = self.cycle
        if not isinstance(cycle, HotCycle):
            super().on_body(body)
            return
        cycle.body = cycle.body + body if cycle.body else body
        if len(cycle.body) > HIGH_WATER_LIMIT:  # a long way to go: uvicorn reads with care
            self._hand_over(cycle)

    def on_message_complete(self) -> None:
        self._is_between = not self.parser.should_upgrade()
        cycle: Any = self.cycle
        if not isinstance(cycle, HotCycle):
            super().on_message_complete()
            return
        cycle.more_body = False
        if not self._take(cycle):
            self._hand_over(cycle)
            super().on_message_complete()

    def _take(self, cycle: HotCycle) -> bool:
        """Answer a request whose body has come; False when the application has to."""
        return self._submit(cycle, cycle.body)

    def answer(self, cycle: HotCycle, is_new: Sequence[bool], error: DependencyError | None) -> None:
        """The log has spoken."""
        hot, visit = self.hot, cycle.visit
        hot.tally.write()
        request_id = cycle.given_id or hot.new_id()
        if error is None:
            last = b"x-request-id: %b\r\n" % request_id.encode() if visit is NOBODY else visit.last_lines(request_id)
            head = hot.accepted_head(self.server_state.default_headers)
            self._send(cycle, accepted(cycle.entries, is_new, head, last))
            hot.visits.end(visit, "POST", PATH, 202, cycle.started, request_id)
            return
        task = self.loop.create_task(self._fail(cycle, error, request_id))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _submit(self, cycle: HotCycle, body: bytes) -> bool:
        """Whether the log took the body's events; else the application has to look at the request."""
        entries = self.hot.entries(body)
        if entries is None:
            return False
        cycle.entries = entries
        try:
            self.hot.log.submit(entries, cycle)
        except OverloadedError:  # the refusal is the application's
            return False
        return True

    def _is_plain(self) -> bool:
        parser = self.parser
        return (
            parser.get_method() == b"POST"
            and (self.cycle is None or self.cycle.response_complete)
            and not self.expect_100_continue
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and parser.get_http_version() == "1.1"
            and not self.flow.write_paused
        )

    def _hand_over(self, cycle: HotCycle) -> None:
        """uvicorn makes its own cycle of the same request."""
        self.cycle = None  # type: ignore[assignment]
        self.scope[GRANT] = cycle.visit.grant  # type: ignore[literal-required]
        super().on_headers_complete()
        if cycle.body:
            super().on_body(cycle.body)

    async def _fail(self, cycle: HotCycle, error: DependencyError, request_id: str) -> None:
        response = await self.hot.failure(error, cycle.started, request_id, cycle.visit)
        lines = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
        self._write(cycle, response.status_code, lines + b"\r\n" + bytes(response.body))

    def _write(self, cycle: HotCycle, status: int, rest: bytes) -> None:
        self._send(cycle, STATUS_LINE[status] + self.hot.lines_of(self.server_state.default_headers) + rest)

    def _send(self, cycle: HotCycle, response: bytes) -> None:
        cycle.response_complete = True
        if not cycle.disconnected:
            self.transport.write(response)
            if not cycle.keep_alive:  # the server is going down
                self.transport.close()
        if self.pipeline or self._overtaken or self.flow.read_paused:
            self.on_response_complete()
        else:
            self._await_next()

    def _await_next(self) -> None:
        """What uvicorn does after an answer, with one timer for many requests instead of one for each."""
        self.server_state.total_requests += 1
        self._forget()
        if self.transport.is_closing():
            return
        self._answered_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
