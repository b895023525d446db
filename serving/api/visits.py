"""What the envelope and the guard of the application do, for the routes that have neither (`hot_protocol`).

    visit = visits.begin(headers, SCOPES[READ])     None: the application says why not
    ... head of the answer: b"...%b\\r\\n" % visit.last_lines(request_id)
    visits.end(visit, "POST", PATH, status, started, request_id)

A head that is known byte for byte need not be read again: `visits.again(visit, SCOPES[READ])` checks the key of an
earlier visit anew (it may be revoked, its limit may be used up), and gives a visit or None. Whoever then cannot answer
after all, and lets the request be read from its head on, calls `visit.grant.give_back()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from serving.api.access_log import AccessLog
from serving.api.key_ring import OPEN, Grant, KeyRing, Refusal
from serving.api.tracing import Trace, trace_of


class Visit(NamedTuple):
    """One request. `given`: the key as it was sent. One with a trace is never to be repeated."""

    given: bytes | None
    grant: Grant
    trace: Trace | None

    def last_lines(self, request_id: str) -> bytes:
        """The lines of headers that end every answer, in the application's order."""
        lines = b"x-request-id: %b\r\n" % request_id.encode("ascii")
        if self.grant.step_ns:
            lines = self.grant.header_lines() + lines
        if self.trace is None:
            return lines
        return lines + b"".join(b"%b: %b\r\n" % header for header in self.trace.headers())

    def last_headers(self, request_id: str) -> list[tuple[bytes, bytes]]:
        """The same as pairs."""
        lines = self.last_lines(request_id).split(b"\r\n")[:-1]
        return [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


NOBODY = Visit(None, OPEN, None)
"""Of a request that needs no key and brings no trace."""


class Visits:
    """Of one worker."""

    def __init__(self, ring: KeyRing, log: AccessLog) -> None:
        self._ring = ring
        self._log = log

    def begin(self, headers: Iterable[tuple[bytes, bytes]], needs: int) -> Visit | None:
        """A request with these headers (names in small letters) that needs a scope. None: the application has to look
        at it, because it may not, or because its traceparent came twice."""
        given = key = traceparent = None
        tracestate: list[bytes] = []
        for name, value in headers:
            if name == b"authorization":
                given = value
            elif name == b"x-api-key":
                key = value
            elif name == b"traceparent":
                if traceparent is not None:
                    return None
                traceparent = value
            elif name == b"tracestate":
                tracestate.append(value)
        if not self._ring.is_on and traceparent is None:
            return NOBODY
        given = key if given is None else given
        grant = self._ring.check(given, needs)
        return None if isinstance(grant, Refusal) else Visit(given, grant, trace_of(traceparent, tracestate))

    def again(self, earlier: Visit, needs: int) -> Visit | None:
        """The same key once more."""
        if not self._ring.is_on:
            return NOBODY
        grant = self._ring.check(earlier.given, needs)
        return None if isinstance(grant, Refusal) else Visit(earlier.given, grant, None)

    def end(self, visit: Visit, method: str, route: str, status: int, started: int, request_id: str) -> None:
        """It was answered; `started` is of the timer. Writes its line in the access log where it is worth one."""
        self._log.note(method, route, status, started, request_id, visit.grant.key_id, visit.trace)
