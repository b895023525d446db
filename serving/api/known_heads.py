"""Heads of common event requests that were parsed before: equal bytes need no second parse.

A client that keeps its connection sends the same head again and again; only its Content-Length varies, and little. The
real parser reads each head once; what it found holds for every request that begins with exactly these bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from serving.api.visits import Visit

MAX_HEADS = 1024
"""So many are remembered; when there are more (a client that puts something new into each), all are forgotten."""
MAX_HEAD_BYTES = 4096

END = b"\r\n\r\n"


class KnownHeads:
    """Of one process. A head is what comes before the empty line, without the line break in front of that. With it is
    kept the visit of the request that it was learned from, whose key every other request has to be checked for."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, Visit]] = {}

    def find(self, data: bytes) -> tuple[bytes, Visit] | None:
        """(body, earlier visit), when `data` is one whole request with a known head and nothing else."""
        at = data.find(END)
        known = self._known.get(data[:at]) if at > 0 else None
        if known is None or len(data) != at + 4 + known[0]:
            return None
        return data[at + 4 :], known[1]

    def learn(self, data: bytes, headers: Sequence[tuple[bytes, bytes]], visit: Visit) -> None:
        """Remember the head that `data` begins with. The parser has just found these headers in it, and the caller
        that such requests are common. Nothing is learned from a head that could be read in two ways, or has a trace."""
        at = data.find(END)
        head = data[:at]
        lengths = [value for name, value in headers if name == b"content-length"]
        is_plain = (
            0 < at <= MAX_HEAD_BYTES
            and head.count(b"\r\n") == head.count(b"\r") == head.count(b"\n") == len(headers)
            and len(lengths) == 1
            and lengths[0].isdigit()
            and len(lengths[0]) < 10
            and not any(name == b"transfer-encoding" for name, _ in headers)
            and visit.trace is None
        )
        if is_plain:
            if len(self._known) >= MAX_HEADS:
                self._known.clear()
            self._known[head] = (int(lengths[0]), visit)
