"""Request bodies as bytes: read and inflated within stated limits. No byte beyond a limit is kept."""

from __future__ import annotations

import zlib

from starlette.requests import Request

from serving.api.errors import BodyTooLargeError, Limit, UnreadableBodyError, UnsupportedBodyError
from serving.settings import ServingSettings

RATIO_FREE_BYTES = 1_048_576
"""Up to here a body may inflate by any ratio: a few lines of equal events shrink a lot, and honestly."""
_GZIP = 31
_STEP = 65_536


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body as sent. Raises BodyTooLargeError as soon as it is known to be larger than `max_bytes`."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:18]) > max_bytes:
        raise BodyTooLargeError(Limit("max_body_bytes", int(declared[:18]), max_bytes), "bytes")
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise BodyTooLargeError(Limit("max_body_bytes", size, max_bytes), "bytes")
    return b"".join(parts)


async def read_events_body(request: Request, settings: ServingSettings) -> bytes:
    """The body with its Content-Encoding undone: identity or gzip.

    Raises UnsupportedBodyError for another coding, BodyTooLargeError, UnreadableBodyError for broken gzip.
    """
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity", "gzip", "x-gzip"):
        raise UnsupportedBodyError(f"Content-Encoding is gzip or identity, got {coding[:40]!r}")
    body = await read_body(request, settings.max_body_bytes)
    if coding in ("", "identity"):
        return body
    return inflate(body, max_bytes=settings.max_inflated_bytes, max_ratio=settings.max_inflate_ratio)


def inflate(body: bytes, *, max_bytes: int, max_ratio: int) -> bytes:
    """The content of a gzip body (one or several members), never more than `max_bytes` of it in memory.

    From 1 MiB on it may be at most `max_ratio` times as large as `body`. Raises BodyTooLargeError, and
    UnreadableBodyError when the body is cut off, damaged, or followed by something else.
    """
    allowed_by_ratio = max(RATIO_FREE_BYTES, len(body) * max_ratio)
    parts: list[bytes] = []
    size, rest = 0, body
    while rest or not parts:
        member = zlib.decompressobj(_GZIP)
        while not member.eof:
            try:
                part = member.decompress(rest, _STEP)
            except zlib.error as error:
                raise UnreadableBodyError(f"the body is not gzip: {error}") from error
            rest = member.unconsumed_tail
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                raise BodyTooLargeError(Limit("max_inflated_bytes", size, max_bytes), "bytes")
            if size > allowed_by_ratio:
                seen = -(-size // len(body))
                raise BodyTooLargeError(Limit("max_inflate_ratio", seen, max_ratio), "times as many bytes as sent")
            if not part and not member.eof and not rest:
                raise UnreadableBodyError("the body is not gzip: it is cut off")
        rest = member.unused_data
    return b"".join(parts)
