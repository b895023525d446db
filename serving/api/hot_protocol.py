"""The server's side of the raw route: a common event request is answered without a task, a scope or a coroutine.

uvicorn makes all of these for each request, and they cost more than the event. Here a request that `HotEvents` can
answer has a small stand-in for uvicorn's own cycle; everything else, also what turns out not to be common once its body
is read, goes through uvicorn as always. Pipelined requests, keep-alive and shutdown stay uvicorn's affair: it sees a
cycle that is under way, and is told when it is complete.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from feature_repo.contracts.api_keys import SCOPES, WRITE
from feature_repo.contracts.errors import NightjarError
from serving.adapters.event_log import LogEntry, OverloadedError
from serving.api.access import GRANT
from serving.api.hot_events import PATH, HotEvents, answer_of, read_headers
from serving.api.visits import Visit

_PATH = PATH.encode("ascii")


class _Signal:
    """What uvicorn sets to wake a cycle that waits; this one never does."""

    def set(self) -> None:
        """Nobody waits."""


_SIGNAL: Any = _Signal()


class HotCycle:
    """A request of the raw route, with what uvicorn looks at in a cycle."""

    __slots__ = (
        "body",
        "disconnected",
        "given_id",
        "keep_alive",
        "message_event",
        "more_body",
        "response_complete",
        "started",
        "visit",
    )

    def __init__(self, started: int, given_id: str | None, visit: Visit) -> None:
        self.started = started
        self.given_id = given_id
        self.visit = visit
        self.body = b""
        self.more_body = True
        self.message_event = _SIGNAL
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False


class HotProtocol(HttpToolsProtocol):
    """One connection. Without a `HotEvents` as its application it is uvicorn's."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._hot = self.app if isinstance(self.app, HotEvents) else None
        self._overtaken: list[Any] = []
        """Cycles that were under way when a pipelined request came: uvicorn forgets them, and would answer into a
        connection that is gone."""

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in self._overtaken:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        if self._overtaken:
            self._overtaken = [cycle for cycle in self._overtaken if not cycle.response_complete]
        super().on_response_complete()

    def on_headers_complete(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._overtaken.append(self.cycle)
        hot = self._hot
        if hot is not None and self.url == _PATH and hot.log.has_room and self._is_plain():
            is_json, given_id = read_headers(self.headers)
            visit = hot.visits.begin(self.headers, SCOPES[WRITE]) if is_json else None
            if visit is not None:
                self.cycle = HotCycle(hot.timer(), given_id, visit)  # type: ignore[assignment]
                return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        cycle: Any = self.cycle
        if type(cycle) is not HotCycle:
            super().on_body(body)
            return
        cycle.body = cycle.body + body if cycle.body else body
        if len(cycle.body) > HIGH_WATER_LIMIT:  # a long way to go: uvicorn reads with care
            self._hand_over(cycle)

    def on_message_complete(self) -> None:
        cycle: Any = self.cycle
        if type(cycle) is not HotCycle:
            super().on_message_complete()
            return
        cycle.more_body = False
        assert self._hot is not None
        entries = self._hot.entries(cycle.body)
        if entries is not None:
            try:
                on_durable = partial(self._hot.tally.count, cycle.started)
                done = self._hot.log.submit(entries, on_durable=on_durable)
            except OverloadedError:  # the refusal is the application's
                entries = None
            else:
                done.add_done_callback(partial(self._on_durable, cycle, entries))
        if entries is None:
            self._hand_over(cycle)
            super().on_message_complete()

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
            and self.limit_concurrency is None
        )

    def _hand_over(self, cycle: HotCycle) -> None:
        """uvicorn makes its own cycle of the same request."""
        self.cycle = None  # type: ignore[assignment]
        self.scope[GRANT] = cycle.visit.grant  # type: ignore[literal-required]
        super().on_headers_complete()
        if cycle.body:
            super().on_body(cycle.body)

    def _on_durable(self, cycle: HotCycle, entries: list[LogEntry], done: asyncio.Future[list[bool]]) -> None:
        hot = self._hot
        assert hot is not None
        request_id = cycle.given_id or hot.new_id()
        error = done.exception()
        if error is None:
            answer = answer_of(entries, done.result())
            head = b"content-length: %d\r\ncontent-type: application/json\r\n%b\r\n"
            self._write(cycle, 202, head % (len(answer), cycle.visit.last_lines(request_id)) + answer)
            hot.visits.end(cycle.visit, "POST", PATH, 202, cycle.started, request_id)
        elif isinstance(error, NightjarError):
            task = self.loop.create_task(self._fail(cycle, error, request_id))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            self.logger.error("an event request failed", exc_info=error)
            cycle.response_complete = True
            self.transport.close()

    async def _fail(self, cycle: HotCycle, error: NightjarError, request_id: str) -> None:
        assert self._hot is not None
        response = await self._hot.failure(error, cycle.started, request_id, cycle.visit)
        lines = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
        self._write(cycle, response.status_code, lines + b"\r\n" + bytes(response.body))

    def _write(self, cycle: HotCycle, status: int, rest: bytes) -> None:
        cycle.response_complete = True
        if not cycle.disconnected:
            defaults = b"".join([b"%b: %b\r\n" % header for header in self.server_state.default_headers])
            self.transport.write(STATUS_LINE[status] + defaults + rest)
            if not cycle.keep_alive:  # the server is going down
                self.transport.close()
        self.on_response_complete()
