"""The server's side of POST /v1/rank, /v1/similar and /v1/pages/{page}: common ones are answered in the protocol's
callbacks, as `slate_protocol` does it for recommendations."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from feature_repo.contracts.api_keys import READ, SCOPES
from feature_repo.contracts.errors import NightjarError
from serving.api.errors import answer_domain_error, internal_error
from serving.api.hot_lists import HotRoute
from serving.api.hot_protocol import HotCycle
from serving.api.hot_routes import HotRoutes
from serving.api.hot_slates import Head, read_head
from serving.api.slate_protocol import SlateProtocol
from serving.api.visits import Visit

logger = logging.getLogger("nightjar.serving")

_BEGINNINGS = (b"POST /v1/rank ", b"POST /v1/similar ", b"POST /v1/pages/")
_ANSWERED = STATUS_LINE[200] + b"%bcontent-length: %d\r\ncontent-type: application/json\r\n%b\r\n%b"
_END = b"\r\n\r\n"


class ListCycle(HotCycle):
    """A list or a page that is answered here."""

    __slots__ = ("head", "route")

    def __init__(self, started: int, route: HotRoute, head: Head, visit: Visit) -> None:
        super().__init__(started, head.given_id, visit)
        self.route = route
        self.head = head


class ListProtocol(SlateProtocol):
    """One connection. Without `HotRoutes` as its application it is as `SlateProtocol` is."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lists = self.app.lists if isinstance(self.app, HotRoutes) else None
        self._list_piece = b""
        """What came last, when a request for a list began with it."""

    def data_received(self, data: bytes) -> None:
        lists = self._lists
        if lists is None or not self._is_between or not data.startswith(_BEGINNINGS):
            super().data_received(data)
            return
        at = data.find(_END)
        if at > 0:
            known = lists.heads.get(data[:at])
            cycle = self.cycle
            if (
                known is not None
                and len(data) == at + 4 + known.head.length
                and (cycle is None or cycle.response_complete)
                and not self.flow.write_paused
                and not self.transport.is_closing()
            ):
                visit = lists.visits.again(known.head.visit, SCOPES[READ])
                if visit is not None:
                    mine = ListCycle(lists.timer(), known.route, known.head, visit)
                    mine.more_body = False
                    if self._ask_list(mine, data[at + 4 :]):
                        self.cycle = mine  # type: ignore[assignment]
                        return
                    visit.grant.give_back()
        self._list_piece = data
        super().data_received(data)
        self._list_piece = b""

    def on_headers_complete(self) -> None:
        lists = self._lists
        route = lists.route(self.url) if lists is not None else None
        if lists is not None and route is not None and self._is_plain():
            head = read_head(self.headers)
            visit = lists.visits.begin(self.headers, SCOPES[READ]) if head is not None else None
            if head is not None and visit is not None:
                self.cycle = ListCycle(lists.timer(), route, head, visit)  # type: ignore[assignment]
                return
        super().on_headers_complete()

    def _take(self, cycle: HotCycle) -> bool:
        if not isinstance(cycle, ListCycle):
            return super()._take(cycle)
        if not self._ask_list(cycle, cycle.body):
            return False
        self._remember_list_head(cycle)
        return True

    def _remember_list_head(self, cycle: ListCycle) -> None:
        """When it came in one piece, with nothing before or behind it."""
        assert self._lists is not None
        piece, size = self._list_piece, len(cycle.body)
        at = piece.find(_END)
        if at > 0 and len(piece) == at + 4 + size and cycle.head.length == size:
            self._lists.remember_head(piece[:at], cycle.route, cycle.head, cycle.visit)

    def _ask_list(self, cycle: ListCycle, body: bytes) -> bool:
        """Ask for what a body wants; False when the application has to answer."""
        assert self._lists is not None
        return self._lists.submit(cycle.route, body, cycle.started, partial(self._on_list, cycle, body))

    def _on_list(self, cycle: ListCycle, body: bytes, content: bytes | None) -> None:
        if content is None:
            task = self.loop.create_task(self._answer_list_late(cycle, body))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            assert self._lists is not None
            self._answer_list(cycle, content, cycle.given_id or self._lists.new_id())

    async def _answer_list_late(self, cycle: ListCycle, body: bytes) -> None:
        """What needs more than one read, or fails: as the application does it."""
        assert self._lists is not None
        request_id = cycle.given_id or self._lists.new_id()
        try:
            content = await self._lists.answer(cycle.route, body, cycle.started)
        except NightjarError as error:
            request = Request({"type": "http", "state": {"request_id": request_id}})
            self._fail_list(cycle, await answer_domain_error(request, error), request_id)
        except Exception:
            logger.exception("request %s failed: POST %s", request_id, cycle.route.path)
            self._fail_list(cycle, internal_error(request_id), request_id)
        else:
            self._answer_list(cycle, content, request_id)

    def _answer_list(self, cycle: ListCycle, content: bytes, request_id: str) -> None:
        assert self._lists is not None
        cycle.route.tally.count(cycle.started)
        lines = self.hot.lines_of(self.server_state.default_headers)
        self._send(cycle, _ANSWERED % (lines, len(content), cycle.visit.last_lines(request_id), content))
        self._lists.visits.end(cycle.visit, "POST", cycle.route.path, 200, cycle.started, request_id)

    def _fail_list(self, cycle: ListCycle, response: Response, request_id: str) -> None:
        assert self._lists is not None
        cycle.route.tally.count_failure(cycle.started, response.status_code)
        self._lists.visits.end(cycle.visit, "POST", cycle.route.path, response.status_code, cycle.started, request_id)
        response.raw_headers += cycle.visit.last_headers(request_id)
        lines = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
        self._write(cycle, response.status_code, lines + b"\r\n" + bytes(response.body))
