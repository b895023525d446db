"""Around every request: its id and trace, its count, time and log line, and a 500 that gives nothing away."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.access import GRANT
from serving.api.access_log import AccessLog
from serving.api.errors import internal_error
from serving.api.tracing import Trace, trace_of, traceparent_in, tracestate_in
from serving.observability import REQUEST_SECONDS, REQUESTS

logger = logging.getLogger("nightjar.serving")

CLIENT_GONE = 499
"""Counted as this (nginx's convention): the client left before its request was whole."""
GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestEnvelope:
    """Pure ASGI. A client's own X-Request-Id is kept when it is a plain word of up to 64 characters."""

    def __init__(
        self, app: ASGIApp, *, new_id: Callable[[], str], timer: Callable[[], int], access_log: AccessLog
    ) -> None:
        self._app = app
        self._new_id = new_id
        self._timer = timer
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._timer()
        request_id = self._request_id(scope)
        trace = trace_of(traceparent_in(scope["headers"]), tracestate_in(scope["headers"]))
        scope.setdefault("state", {})["request_id"] = request_id
        status: int | None = None
        is_counted = False

        def count() -> None:
            nonlocal is_counted
            if not is_counted:
                is_counted = True
                route = getattr(scope.get("route"), "path", "unmatched")
                REQUESTS.labels(route, str(status)).inc()
                REQUEST_SECONDS.labels(route).observe((self._timer() - started) / 1e9)
                grant = scope.get(GRANT)
                key_id = grant.key_id if grant is not None else ""
                self._access_log.note(scope["method"], route, status or 0, started, request_id, key_id, trace)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *own_headers(request_id, trace)]
            elif not message.get("more_body", False):
                count()  # before the client can know: whoever has seen an answer finds it in /metrics
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_GONE  # while its body was awaited; there is nobody to answer
        except Exception:
            route = getattr(scope.get("route"), "path", "unmatched")
            logger.exception("request %s failed: %s %s", request_id, scope["method"], route)
            if status is not None:
                raise
            await internal_error(request_id)(scope, receive, send_with_id)
        finally:
            count()

    def _request_id(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == b"x-request-id" and GIVEN_ID.fullmatch(value):
                return str(value.decode("ascii"))
        return self._new_id()


def own_headers(request_id: str, trace: Trace | None) -> list[tuple[bytes, bytes]]:
    """The last headers of every answer."""
    own = [(b"x-request-id", request_id.encode())]
    return own if trace is None else [*own, *trace.headers()]
