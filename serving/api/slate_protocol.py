"""The server's side of POST /v1/recommendations: a common question is answered without a task, a scope or a coroutine.

As `hot_protocol` does it for events: a question that `HotSlates` understands has a small stand-in for uvicorn's cycle,
and everything else goes through uvicorn. A question whose head (request line and headers) came before, byte for byte,
is not even parsed: the parser stands between two requests, and what it would say of this head is known.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from feature_repo.contracts.api_keys import READ, SCOPES
from feature_repo.contracts.errors import NightjarError
from serving.api.answering import Question
from serving.api.errors import answer_domain_error, internal_error
from serving.api.hot_protocol import HotCycle, HotProtocol
from serving.api.hot_routes import HotRoutes
from serving.api.hot_slates import PATH, Head, read_head
from serving.api.visits import Visit

logger = logging.getLogger("nightjar.serving")

_PATH = PATH.encode("ascii")
_HEAD = b"%bcontent-length: %d\r\ncontent-type: application/json\r\n%b\r\n%b"
_END = b"\r\n\r\n"


class SlateCycle(HotCycle):
    """A question that is answered here."""

    __slots__ = ("head",)

    def __init__(self, started: int, head: Head, visit: Visit) -> None:
        super().__init__(started, head.given_id, visit)
        self.head = head


class SlateProtocol(HotProtocol):
    """One connection. Without `HotRoutes` as its application it is the one of events, or uvicorn's."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._slates = self.app.slates if isinstance(self.app, HotRoutes) else None
        self._piece = b""
        """What came last, when a request began with it."""
        self._last_answer = 0.0

    def data_received(self, data: bytes) -> None:
        slates = self._slates
        if slates is not None and self._is_between:
            at = data.find(_END)
            if at > 0:
                head = slates.heads.get(data[:at])
                cycle = self.cycle
                if (
                    head is not None
                    and len(data) == at + 4 + head.length
                    and (cycle is None or cycle.response_complete)
                    and not self.flow.write_paused
                    and not self.transport.is_closing()
                ):
                    visit = slates.visits.again(head.visit, SCOPES[READ])
                    if visit is not None:
                        known = SlateCycle(slates.timer(), head, visit)
                        known.more_body = False
                        if self._ask(known, data[at + 4 :]):
                            self.cycle = known  # type: ignore[assignment]
                            return
                        visit.grant.give_back()
            self._piece = data
        super().data_received(data)
        self._piece = b""

    def timeout_keep_alive_handler(self) -> None:
        """One timer serves many questions: it looks whether the connection was idle for long enough."""
        self.timeout_keep_alive_task = None
        if self.cycle is not None and not self.cycle.response_complete:
            return  # set again with its answer
        left = self._last_answer + self.timeout_keep_alive - self.loop.time()
        if left > 0.001:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def on_headers_complete(self) -> None:
        slates = self._slates
        if slates is not None and self.url == _PATH and self._is_plain():
            head = read_head(self.headers)
            visit = slates.visits.begin(self.headers, SCOPES[READ]) if head is not None else None
            if head is not None and visit is not None:
                self.cycle = SlateCycle(slates.timer(), head, visit)  # type: ignore[assignment]
                return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        cycle: Any = self.cycle
        if type(cycle) is not SlateCycle:
            super().on_body(body)
            return
        cycle.body = cycle.body + body if cycle.body else body
        if len(cycle.body) > HIGH_WATER_LIMIT:  # a long way to go: uvicorn reads with care
            self._hand_over(cycle)

    def on_message_complete(self) -> None:
        self._is_between = not self.parser.should_upgrade()
        cycle: Any = self.cycle
        if type(cycle) is not SlateCycle:
            super().on_message_complete()
            return
        cycle.more_body = False
        if self._ask(cycle, cycle.body):
            self._remember_head(cycle)
        else:
            self._hand_over(cycle)
            super().on_message_complete()

    def _remember_head(self, cycle: SlateCycle) -> None:
        """When it came in one piece, with nothing before or behind it."""
        assert self._slates is not None
        piece, size = self._piece, len(cycle.body)
        at = piece.find(_END)
        if at > 0 and len(piece) == at + 4 + size and cycle.head.length == size:
            self._slates.remember_head(piece[:at], cycle.head, cycle.visit)

    def _ask(self, cycle: SlateCycle, body: bytes) -> bool:
        """Ask for the slate of a body; False when the application has to answer."""
        assert self._slates is not None
        question = self._slates.question(body)
        if question is None:
            return False
        return self._slates.answers.submit(question, cycle.started, partial(self._on_slate, cycle, question))

    def _on_slate(self, cycle: SlateCycle, question: Question, content: bytes | None) -> None:
        if content is None:
            task = self.loop.create_task(self._answer_late(cycle, question))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            assert self._slates is not None
            self._answer(cycle, content, cycle.given_id or self._slates.new_id())

    async def _answer_late(self, cycle: SlateCycle, question: Question) -> None:
        """What needs more than one read, or fails: as the application does it."""
        assert self._slates is not None
        request_id = cycle.given_id or self._slates.new_id()
        try:
            content = await self._slates.answers.answer(question, cycle.started)
        except NightjarError as error:
            request = Request({"type": "http", "state": {"request_id": request_id}})
            self._fail_question(cycle, await answer_domain_error(request, error), request_id)
        except Exception:
            logger.exception("request %s failed: POST %s", request_id, PATH)
            self._fail_question(cycle, internal_error(request_id), request_id)
        else:
            self._answer(cycle, content, request_id)

    def _answer(self, cycle: SlateCycle, content: bytes, request_id: str) -> None:
        assert self._slates is not None
        self._slates.tally.count(cycle.started)
        cycle.response_complete = True
        if not cycle.disconnected:
            lines = _lines_of(self.server_state.default_headers)
            last = cycle.visit.last_lines(request_id)
            if not cycle.keep_alive:
                last += b"connection: close\r\n"
            self.transport.write(_HEAD % (lines, len(content), last, content))
            if not cycle.keep_alive:  # the server is going down
                self.transport.close()
        self._slates.visits.end(cycle.visit, "POST", PATH, 200, cycle.started, request_id)
        self._complete()

    def _fail_question(self, cycle: SlateCycle, response: Response, request_id: str) -> None:
        assert self._slates is not None
        self._slates.tally.count_failure(cycle.started, response.status_code)
        self._slates.visits.end(cycle.visit, "POST", PATH, response.status_code, cycle.started, request_id)
        response.raw_headers += cycle.visit.last_headers(request_id)
        lines = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
        self._write(cycle, response.status_code, lines + b"\r\n" + bytes(response.body))

    def _complete(self) -> None:
        """`on_response_complete`, without a timer of its own for each answer."""
        self._last_answer = self.loop.time()
        if self._overtaken or self.pipeline or self.flow.read_paused or self.timeout_keep_alive_task is None:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1


_written: tuple[Any, bytes] = (None, b"")


def _lines_of(headers: list[tuple[bytes, bytes]]) -> bytes:
    """How every 200 begins; uvicorn makes a new list of default headers each second."""
    global _written
    if _written[0] is not headers:
        _written = (headers, STATUS_LINE[200] + b"".join([b"%b: %b\r\n" % header for header in headers]))
    return _written[1]
