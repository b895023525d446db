"""One line for a request that is worth it: an error of ours, a refusal, a slow one, one in so many, one that is traced.

A line says route template, method, status, microseconds, request id, key id and trace, and nothing else: no address, no
query, nobody's id. (A request id is the client's own word where the client gave one, and so is a tracestate.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from serving.api.tracing import Trace

logger = logging.getLogger("nightjar.access")

REFUSALS = frozenset({401, 403, 429})
_NS = 1_000_000_000


class AccessLog:
    """The access log of one worker. `note` costs a fraction of a microsecond where there is nothing to write."""

    def __init__(self, *, sample_every: int, slow_ms: float, max_per_second: int, timer: Callable[[], int]) -> None:
        """`sample_every`: one request in so many is written, 0 for none. At most `max_per_second` lines; the first line
        of a later second says how many were left out."""
        self._every = sample_every
        self._slow_ns = slow_ms * 1e6
        self._max = max_per_second
        self._timer = timer
        self._until_sample = sample_every
        self._second = self._written = self._left_out = 0

    def note(
        self, method: str, route: str, status: int, started: int, request_id: str, key_id: str, trace: Trace | None
    ) -> None:
        """A request was answered. `started` is of the timer; `key_id` may be empty."""
        now = self._timer()
        took = now - started
        self._until_sample -= 1
        is_sampled = not self._until_sample
        if is_sampled:
            self._until_sample = self._every
        if (
            is_sampled
            or status >= 500
            or took >= self._slow_ns
            or status in REFUSALS
            or (trace is not None and trace.is_sampled)
        ) and self._has_room(now // _NS):
            took //= 1000
            fields = {"method": method, "route": route, "status": status, "micros": took, "request_id": request_id}
            self._write(fields, key_id, trace)

    def _has_room(self, second: int) -> bool:
        if second != self._second:
            self._second, self._written = second, 0
        if self._written >= self._max:
            self._left_out += 1
            return False
        self._written += 1
        return True

    def _write(self, fields: dict[str, Any], key_id: str, trace: Trace | None) -> None:
        if key_id:
            fields["key_id"] = key_id
        if trace is not None:
            fields |= {"trace_id": trace.trace_id, "span_id": trace.span_id}
            if trace.state:
                fields["tracestate"] = trace.state
        if self._left_out:
            fields["lines_left_out"], self._left_out = self._left_out, 0
        logger.log(logging.ERROR if fields["status"] >= 500 else logging.INFO, "request", extra={"fields": fields})
