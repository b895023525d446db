"""Which pages of other origins may call the API from a browser: those that the operator names, by default none.

It stands around everything else, so that errors and refusals can be read by such pages too. Nothing of ours needs
cookies, so credentials are never allowed.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

METHODS = ("GET", "POST")
"""Shoppers ask and tell; pages do not change the catalogue."""
REQUEST_HEADERS = (
    "Authorization", "Content-Encoding", "Content-Type", "Traceparent", "Tracestate", "X-API-Key", "X-Request-Id",
)  # fmt: skip
ANSWER_HEADERS = (
    "RateLimit-Limit", "RateLimit-Policy", "RateLimit-Remaining", "RateLimit-Reset", "Retry-After", "Traceresponse",
    "Tracestate", "X-Request-Id",
)  # fmt: skip
PREFLIGHT_SECONDS = 7200
"""How long a browser may remember a permission; more than this no browser keeps it (Chromium's limit)."""


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of `origins` (`https://shop.example`, or `*`) call `app`. Without any, no header is added at all."""
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            expose_headers=ANSWER_HEADERS,
            max_age=PREFLIGHT_SECONDS,
        )
