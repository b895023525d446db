"""W3C Trace Context: a caller's trace goes on in our answer (`traceresponse`) and in our log.

https://www.w3.org/TR/trace-context/ for `traceparent`; `traceresponse` is its answer in the editors' draft. We are a
leaf: nothing that we call speaks HTTP, so `tracestate` ends here. Without a valid traceparent there is no trace: who
wants one begins it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 1


class Trace(NamedTuple):
    """The caller's trace, our span in it, and whether the caller records it."""

    trace_id: str
    span_id: str
    is_sampled: bool

    def response(self) -> bytes:
        """The value of `traceresponse`."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.is_sampled else '00'}".encode()


def new_span_id() -> str:
    """16 hex digits, not all zero."""
    return f"{int.from_bytes(os.urandom(8), 'big') | 1:016x}"


def trace_of(traceparent: bytes | None, *, new_span_id: Callable[[], str] = new_span_id) -> Trace | None:
    """The trace of one `traceparent`; None when it is missing or broken, which is no error by the standard.

    Version 00 has exactly four parts; a later version may have more behind them.
    """
    if traceparent is None:
        return None
    match = _PARENT.fullmatch(traceparent)
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5] is not None):
        return None
    if not match[2].strip(b"0") or not match[3].strip(b"0"):
        return None
    return Trace(match[2].decode(), new_span_id(), bool(int(match[4], 16) & _SAMPLED))


def traceparent_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The one `traceparent` of these headers; None for none and for several."""
    found = [value for name, value in headers if name == b"traceparent"]
    return found[0] if len(found) == 1 else None
