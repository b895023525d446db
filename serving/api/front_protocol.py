"""The first and the last word on a connection: who is let in when there is too much to do, and how a server leaves.

Admission. A worker has so many requests under way, and lets so much work wait; beyond its bounds a request gets its 503
with Retry-After at once, before anything of it is done, at a small part of an answer's cost. The bounds make an order:
batches are refused first (half of the places, half of the wait), then events (three quarters), people last; health and
metrics never.

Leaving. A server that goes lets each connection bring one more request, and says `connection: close` with its answer.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.api.errors import PROBLEM_TYPE
from serving.api.hot_protocol import HotCycle, HotProtocol
from serving.api.list_protocol import ListProtocol
from serving.api.middleware import GIVEN_ID
from serving.api.services import Services
from serving.ids import new_id
from serving.native import parts
from serving.observability import ADMISSION_REFUSALS, count_soon
from serving.turns import Turns

PEOPLE, EVENTS, BATCHES = "people", "events", "batches"
SHARE_OF = {PEOPLE: 1.0, EVENTS: 0.75, BATCHES: 0.5}
RETRY_AFTER_SECONDS = 1
NEVER_TOO_MANY = 8
"""So many answers may be expected whatever they take: some read the store while others are made."""
_ALWAYS = re.compile(rb"/(?:health/|metrics)")
_KINDS = (
    (re.compile(rb"/v1/(?:items|users(?!/.+/profile)|batch|recommendations/batch)(?:[/?]|$)"), BATCHES),
    (re.compile(rb"/(?:v1/(?:events|pixel\.gif|track|identify|alias|page)|mp/collect)(?:[?]|$)"), EVENTS),
)


_EVENTS_LINE = b"POST /v1/events HTTP/1.1\r\n"
_LINE = re.compile(rb"POST (/[^ \r\n]*) HTTP/1\.1\r\n")
_UNUSUAL = re.compile(
    rb"\r\n(?:(?:transfer-encoding|expect|upgrade|x-request-id)[ :]|connection(?!: keep-alive\r))", re.I
)
_LENGTH = re.compile(rb"\r\ncontent-length(?:: ?([0-9]{1,9})(?=\r\n))?", re.I)


def whole_post(data: bytes) -> bytes | None:
    """The address of a POST that came whole and alone, with nothing in its head that needs a parser; else None."""
    if parts.refusals is not None:
        found: bytes | None = parts.refusals.whole_post(data)
        return found
    return whole_post_by_twin(data)


def whole_post_by_twin(data: bytes) -> bytes | None:
    """`whole_post` in Python."""
    line, at = _LINE.match(data), data.find(b"\r\n\r\n")
    if line is None or at < 0:
        return None
    head = data[: at + 2]
    lengths = _LENGTH.findall(head)
    if len(lengths) != 1 or not lengths[0] or len(data) != at + 4 + int(lengths[0]) or _UNUSUAL.search(head):
        return None
    return line[1]


def kind_of(url: bytes) -> str | None:
    """Whose request it is, by its address; None for one that is never refused."""
    if _ALWAYS.match(url):
        return None
    return next((kind for pattern, kind in _KINDS if pattern.match(url)), PEOPLE)


class Admission:
    """The places of one worker, and how long an answer may have to wait for its turn (`turns`; without, that is not
    looked at)."""

    def __init__(self, max_in_flight: int, *, max_wait_seconds: float = math.inf, turns: Turns | None = None) -> None:
        self._places = {kind: max(1, int(max_in_flight * share)) for kind, share in SHARE_OF.items()}
        self._waits_ns = {kind: max_wait_seconds * 1e9 * share for kind, share in SHARE_OF.items()}
        self._turns = turns
        self._fewest = min(self._places.values())
        self._shortest_ns = min(self._waits_ns.values())
        self.hot = 0
        """Requests of the raw routes that are under way."""

    def is_crowded(self, in_flight: int) -> bool:
        """Whether some requests are refused."""
        turns = self._turns
        return in_flight >= self._fewest or (
            turns is not None and turns.expected >= NEVER_TOO_MANY and turns.wait_ns >= self._shortest_ns
        )

    def let_in(self, url: bytes) -> None:
        """A request goes to the application. Its task has not begun, and those who come with the next bytes shall know
        of it: a thousand connections may be read before it does."""
        if self._turns is not None and kind_of(url) is PEOPLE:
            self._turns.expect()

    def refuses(self, url: bytes, in_flight: int) -> str | None:
        """The kind of a request that finds no place, or would wait too long; None for one that does not."""
        if not self.is_crowded(in_flight):
            return None
        kind = kind_of(url)
        if kind is None:
            return None
        if in_flight < self._places[kind]:
            turns = self._turns
            if turns is None or turns.expected < NEVER_TOO_MANY or turns.wait_ns < self._waits_ns[kind]:
                return None
        return kind


def admission_of(services: Services) -> Admission:
    """As the settings have it."""
    settings = services.settings
    return Admission(
        settings.max_in_flight, max_wait_seconds=settings.max_wait_ms / 1000, turns=services.recommender.turns
    )


class _Refused:
    """A request that is refused, with what uvicorn looks at in a cycle; its body is not kept."""

    def __init__(self, kind: str, keep_alive: bool, request_id: str) -> None:
        self.kind = kind
        self.keep_alive = keep_alive
        self.request_id = request_id
        self.disconnected = False
        self.response_complete = False
        self.message_event = self

    def set(self) -> None:
        """Nobody waits."""


class FrontProtocol(ListProtocol):
    """One connection of a worker."""

    admission = Admission(2**31)
    grace_seconds = 0.0
    """When the server goes: how long an idle connection stays open for one more request. A client that has just sent
    it would otherwise find its connection closed, and no answer."""
    _is_last = False
    _is_hot_under_way = False
    _socket = -1
    """Of a plain connection, where native code may write to it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if parts.refusals is not None and self.scheme == "http":
            own = transport.get_extra_info("socket")
            self._socket = -1 if own is None else own.fileno()

    def data_received(self, data: bytes) -> None:
        admission = self.admission
        if admission.is_crowded(len(self.tasks) + admission.hot):
            if self._refuse_unread(data):
                return
            # every head is looked at again, also one that the raw routes know byte for byte
            HttpToolsProtocol.data_received(self, data)
        elif data.startswith(_EVENTS_LINE):
            HotProtocol.data_received(self, data)  # it is no question, and no list is asked for
        else:
            super().data_received(data)
        if self._is_last and self.cycle is not None:
            self.cycle.keep_alive = False
        self._count_hot()

    def _refuse_unread(self, data: bytes) -> bool:
        """Refuse a request that came whole, with nothing unusual in its head, without parsing it; False for others, and
        for one that finds a place."""
        cycle = self.cycle
        if (
            not self._is_hot
            or not self._is_between
            or self._is_last
            or (cycle is not None and not cycle.response_complete)
            or self.pipeline
            or self.flow.write_paused
            or self.transport.is_closing()
        ):
            return False
        url = whole_post(data)
        kind = None if url is None else self.admission.refuses(url, len(self.tasks) + self.admission.hot)
        if kind is None:
            return False
        count_soon(ADMISSION_REFUSALS, kind)
        request_id = new_id().encode("ascii")
        lines = self.hot.lines_of(self.server_state.default_headers)
        self._write_at_once(_REFUSED_UNREAD % (lines, request_id, request_id))
        self._await_next()
        return True

    def _write_at_once(self, answer: bytes) -> None:
        """Without the transport's queue, where nothing is in it."""
        taken = 0
        if self._socket >= 0 and not self.transport.get_write_buffer_size():
            taken = parts.refusals.send(self._socket, answer)
        if taken < len(answer):
            self.transport.write(answer[taken:])

    def on_headers_complete(self) -> None:
        is_free = self.cycle is None or self.cycle.response_complete
        in_flight = len(self.tasks) + self.admission.hot
        kind = self.admission.refuses(self.url, in_flight) if is_free else None
        if kind is None or self.expect_100_continue:
            super().on_headers_complete()
            return
        given = next((v for n, v in self.headers if n == b"x-request-id" and GIVEN_ID.fullmatch(v)), None)
        keep_alive = self.parser.should_keep_alive() and self.parser.get_http_version() == "1.1"
        request_id = os.urandom(16).hex() if given is None else given.decode("ascii")
        self.cycle = _Refused(kind, keep_alive, request_id)  # type: ignore[assignment]

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        super()._start_asgi_task(cycle, app)
        self.admission.let_in(self.url)

    def on_body(self, body: bytes) -> None:
        if type(self.cycle) is not _Refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        cycle: Any = self.cycle
        if type(cycle) is not _Refused:
            super().on_message_complete()
            return
        self._is_between = not self.parser.should_upgrade()
        if cycle.response_complete:
            return
        cycle.response_complete = True
        ADMISSION_REFUSALS.labels(cycle.kind).inc()
        defaults = b"".join([b"%b: %b\r\n" % header for header in self.server_state.default_headers])
        self.transport.write(STATUS_LINE[503] + defaults + _refusal(cycle.request_id, cycle.keep_alive))
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._count_hot(is_lost=True)

    def shutdown(self) -> None:
        self._is_last = True
        if self.grace_seconds and (self.cycle is None or self.cycle.response_complete):
            self._unset_keepalive_if_required()
            self.loop.call_later(self.grace_seconds, super().shutdown)
        else:
            super().shutdown()

    def _send(self, cycle: Any, response: bytes) -> None:
        if not cycle.keep_alive:
            response = response.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
        super()._send(cycle, response)
        self._count_hot()

    def _count_hot(self, *, is_lost: bool = False) -> None:
        """Whether a request of a raw route is under way on this connection; the application's are tasks."""
        cycle: Any = self.cycle
        is_under_way = isinstance(cycle, HotCycle) and not cycle.response_complete and not is_lost
        if is_under_way is not self._is_hot_under_way:
            self._is_hot_under_way = is_under_way
            self.admission.hot += 1 if is_under_way else -1


def _refusal(request_id: str, keep_alive: bool) -> bytes:
    body = orjson.dumps(
        {
            "type": "urn:nightjar:problem:overloaded",
            "title": "The server has no room for this now",
            "status": 503,
            "detail": "too many requests are under way here; nothing of this one was done",
            "request_id": request_id,
        }
    )
    return (
        b"retry-after: %d\r\ncontent-length: %d\r\ncontent-type: %b\r\nx-request-id: %b\r\n%b\r\n"
        % (
            RETRY_AFTER_SECONDS,
            len(body),
            PROBLEM_TYPE.encode(),
            request_id.encode(),
            b"" if keep_alive else b"connection: close\r\n",
        )
        + body
    )


_ANY_ID = "0" * 32
_REFUSED_UNREAD = STATUS_LINE[503] + b"%b" + _refusal(_ANY_ID, True).replace(_ANY_ID.encode(), b"%b")
"""The server's own headers, and the request id twice."""
