"""`GET /v1/nightjar.js`: what a web page includes to send events and ask for slates.

Its source, `nightjar.js`, is served without comment lines and indentation. That needs no tool at install time, and gzip
makes up for the rest: a minifier that keeps names would save 5 % more.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

SOURCE = Path(__file__).with_name("nightjar.js")
_HEADERS = {
    "Cache-Control": "public, max-age=3600, stale-while-revalidate=86400",
    "Vary": "Accept-Encoding",
    # A page that isolates itself (COEP) may include it too.
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
}


class Served(NamedTuple):
    """One coding of the snippet."""

    content: bytes
    headers: dict[str, str]


def minified(source: str) -> str:
    """`source` without its comment lines, blank lines and indentation.

    Right for a source whose comments have lines to themselves and whose texts end on the line on which they begin.
    """
    lines = (line.strip() for line in source.splitlines())
    return "".join(f"{line}\n" for line in lines if line and not line.startswith("//"))


def build_snippet_router() -> APIRouter:
    """The route, with the snippet in memory as it is sent."""
    router = APIRouter(tags=["clients"])
    plain = minified(SOURCE.read_text(encoding="utf-8")).encode()
    codings = {"": _served(plain, ""), "gzip": _served(gzip.compress(plain, 9, mtime=0), "gzip")}

    @router.get(
        "/v1/nightjar.js",
        summary="The script for web pages",
        response_model=None,
        response_class=Response,
        responses={
            200: {"description": "JavaScript", "content": {"text/javascript": {}}},
            304: {"description": "Same"},
        },
    )
    async def get_snippet(request: Request) -> Response:
        """One line in a page: `<script async src=".../v1/nightjar.js" data-consent="store train personalize">`.

        The page infra/docs/clients.md says what it sends when, and what consent does.
        """
        served = codings["gzip" if _takes_gzip(request.headers.get("accept-encoding", "")) else ""]
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if served.headers["ETag"] in known or "*" in known:
            return Response(None, 304, headers=served.headers)
        return Response(served.content, headers=served.headers, media_type="text/javascript")

    return router


def _served(content: bytes, coding: str) -> Served:
    headers = {**_HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"'}
    return Served(content, {**headers, "Content-Encoding": coding} if coding else headers)


def _takes_gzip(header: str) -> bool:
    """Whether gzip is named, or `*`, and not with a weight of 0."""
    for part in header.lower().split(","):
        coding, _, weight = part.replace(" ", "").partition(";")
        if coding in ("gzip", "x-gzip", "*"):
            return weight.rstrip("0.") != "q="
    return False
