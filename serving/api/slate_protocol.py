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
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from feature_repo.contracts.api_keys import READ, SCOPES
from feature_repo.contracts.errors import NightjarError
from serving.api.answering import Question
from serving.api.errors import answer_domain_error, internal_error
from serving.api.hot_protocol import HotCycle, HotProtocol
from serving.api.hot_routes import HotRoutes
from serving.api.hot_slates import PATH, Head, read_head
from serving.api.visits import NOBODY, Visit

logger = logging.getLogger("nightjar.serving")

_PATH = PATH.encode("ascii")
_ANSWERED = STATUS_LINE[200] + b"%bcontent-length: %d\r\ncontent-type: application/json\r\n%b\r\n%b"
_ANSWERED_ANYBODY = _ANSWERED.replace(b"%b\r\n%b", b"x-request-id: %b\r\n\r\n%b")
"""Where no key is needed and no trace was brought."""
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

    def on_headers_complete(self) -> None:
        slates = self._slates
        if slates is not None and self.url == _PATH and self._is_plain():
            head = read_head(self.headers)
            visit = slates.visits.begin(self.headers, SCOPES[READ]) if head is not None else None
            if head is not None and visit is not None:
                self.cycle = SlateCycle(slates.timer(), head, visit)  # type: ignore[assignment]
                return
        super().on_headers_complete()

    def _take(self, cycle: HotCycle) -> bool:
        if not isinstance(cycle, SlateCycle):
            return super()._take(cycle)
        if not self._ask(cycle, cycle.body):
            return False
        self._remember_head(cycle)
        return True

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
        lines = self.hot.lines_of(self.server_state.default_headers)
        if cycle.visit is NOBODY:
            self._send(cycle, _ANSWERED_ANYBODY % (lines, len(content), request_id.encode("ascii"), content))
        else:
            self._send(cycle, _ANSWERED % (lines, len(content), cycle.visit.last_lines(request_id), content))
        self._slates.visits.end(cycle.visit, "POST", PATH, 200, cycle.started, request_id)

    def _fail_question(self, cycle: SlateCycle, response: Response, request_id: str) -> None:
        assert self._slates is not None
        self._slates.tally.count_failure(cycle.started, response.status_code)
        self._slates.visits.end(cycle.visit, "POST", PATH, response.status_code, cycle.started, request_id)
        response.raw_headers += cycle.visit.last_headers(request_id)
        lines = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
        self._write(cycle, response.status_code, lines + b"\r\n" + bytes(response.body))
