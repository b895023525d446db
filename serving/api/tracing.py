"""W3C Trace Context: a caller's trace goes on in our answer (`traceresponse`) and in our log.

https://www.w3.org/TR/trace-context/ for `traceparent` and `tracestate`; `traceresponse` is the answer to the first in
the editors' draft. We are a leaf: nothing that we call speaks HTTP. So `tracestate`, what tracing systems keep beside a
trace, goes where the trace goes, as it came: into the answer and the log. Without a valid traceparent there is no
trace: who wants one begins it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 1

MAX_STATE = 512
"""Characters of a `tracestate` that go on, as many as the recommendation asks for."""
MAX_STATE_MEMBERS = 32
_LONG_MEMBER = 128
_MEMBER = re.compile(rb"([a-z0-9][a-z0-9_\-*/@]{0,255})=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
"""key=value; no comma and no equals sign in the value, which does not end in a space."""


class Trace(NamedTuple):
    """The caller's trace, our span in it, whether the caller records it, and its `tracestate` ("": none)."""

    trace_id: str
    span_id: str
    is_sampled: bool
    state: str = ""

    def response(self) -> bytes:
        """The value of `traceresponse`."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.is_sampled else '00'}".encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What of it every answer has."""
        own = [(b"traceresponse", self.response())]
        return [*own, (b"tracestate", self.state.encode())] if self.state else own


def new_span_id() -> str:
    """16 hex digits, not all zero."""
    return f"{int.from_bytes(os.urandom(8), 'big') | 1:016x}"


def trace_of(
    traceparent: bytes | None, tracestate: Sequence[bytes] = (), *, new_span_id: Callable[[], str] = new_span_id
) -> Trace | None:
    """The trace of one `traceparent`; None when it is missing or broken, which is no error by the standard.

    Version 00 has exactly four parts; a later version may have more behind them. `tracestate`: the values of all
    headers of that name, in their order.
    """
    if traceparent is None:
        return None
    match = _PARENT.fullmatch(traceparent)
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5] is not None):
        return None
    if not match[2].strip(b"0") or not match[3].strip(b"0"):
        return None
    sampled = bool(int(match[4], 16) & _SAMPLED)
    return Trace(match[2].decode(), new_span_id(), sampled, state_of(tracestate) if tracestate else "")


def state_of(values: Sequence[bytes]) -> str:
    """The members of these `tracestate` headers as one text, at most MAX_STATE characters of whole members.

    One member that is ill-formed, a key that comes twice, or more than MAX_STATE_MEMBERS of them: none is taken. Of too
    long a list those of more than 128 characters leave first, then the last ones, which are the oldest.
    """
    members = [member for value in values for part in value.split(b",") if (member := part.strip(b" \t"))]
    matches = [_MEMBER.fullmatch(member) for member in members]
    keys = {match[1] for match in matches if match is not None}
    if len(members) > MAX_STATE_MEMBERS or len(keys) < len(members):
        return ""
    if _joined_length(members) > MAX_STATE:
        members = [member for member in members if len(member) <= _LONG_MEMBER]
    while _joined_length(members) > MAX_STATE:
        members.pop()
    return b",".join(members).decode()


def _joined_length(members: Sequence[bytes]) -> int:
    return sum(map(len, members)) + max(0, len(members) - 1)


def traceparent_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The one `traceparent` of these headers; None for none and for several."""
    found = [value for name, value in headers if name == b"traceparent"]
    return found[0] if len(found) == 1 else None


def tracestate_in(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The values of all `tracestate` of these headers: it may come in several lines."""
    return [value for name, value in headers if name == b"tracestate"]
