"""Every route and the scope it needs, and the guard in front of the application that asks for it.

A route that is not in the table needs `admin`: forgetting one closes it. What matches no route needs any key, so that
nobody without one learns which addresses there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feature_repo.contracts.api_keys import ADMIN, ERASE, READ, SCOPES, WRITE
from serving.api.key_ring import ANY, Grant, KeyRing, Refusal, given_in, refusal_response

GRANT = "nightjar.grant"
"""Where a request's scope holds the grant: of the hot route that has asked already, else of the guard."""

PUBLIC = "public"
SCOPE_OF: Mapping[tuple[str, str], str] = {
    ("GET", "/health/live"): PUBLIC,
    ("GET", "/health/ready"): PUBLIC,
    ("GET", "/docs"): PUBLIC,
    ("GET", "/openapi.json"): PUBLIC,
    ("GET", "/v1/nightjar.js"): PUBLIC,
    ("GET", "/v1/recommendations"): READ,
    ("POST", "/v1/recommendations"): READ,
    ("GET", "/v1/similar"): READ,
    ("POST", "/v1/similar"): READ,
    ("POST", "/v1/recommendations/batch"): READ,
    ("GET", "/v1/rank"): READ,
    ("POST", "/v1/rank"): READ,
    ("GET", "/v1/trending"): READ,
    ("POST", "/v1/trending"): READ,
    ("GET", "/v1/bought-together"): READ,
    ("POST", "/v1/bought-together"): READ,
    ("GET", "/v1/buy-again"): READ,
    ("POST", "/v1/buy-again"): READ,
    ("GET", "/v1/continue"): READ,
    ("POST", "/v1/continue"): READ,
    ("GET", "/v1/new"): READ,
    ("POST", "/v1/new"): READ,
    ("GET", "/v1/pages/{page}"): READ,
    ("POST", "/v1/pages/{page}"): READ,
    ("GET", "/v1/users/{user_id:path}/profile"): ADMIN,
    ("GET", "/v1/decisions/{recommendation_id}"): ADMIN,
    ("POST", "/v1/events"): WRITE,
    ("GET", "/v1/pixel.gif"): WRITE,
    ("POST", "/v1/track"): WRITE,
    ("POST", "/v1/identify"): WRITE,
    ("POST", "/v1/alias"): WRITE,
    ("POST", "/v1/page"): WRITE,
    ("POST", "/v1/batch"): WRITE,
    ("POST", "/mp/collect"): WRITE,
    ("PUT", "/v1/items"): ADMIN,
    ("PATCH", "/v1/items"): ADMIN,
    ("DELETE", "/v1/items"): ADMIN,
    ("PUT", "/v1/items/{item_id:path}"): ADMIN,
    ("PATCH", "/v1/items/{item_id:path}"): ADMIN,
    ("DELETE", "/v1/items/{item_id:path}"): ADMIN,
    ("PUT", "/v1/users"): ADMIN,
    ("PATCH", "/v1/users"): ADMIN,
    ("DELETE", "/v1/users"): ERASE,
    ("PUT", "/v1/users/{user_id:path}"): ADMIN,
    ("PATCH", "/v1/users/{user_id:path}"): ADMIN,
    ("DELETE", "/v1/users/{user_id:path}"): ERASE,
    ("GET", "/metrics"): ADMIN,
}
_IN_QUERY = re.compile(rb"(?:^|&)(?:key|api_secret)=([^&]*)")
"""Images, beacons and GA4 can send no header, and a page's key is everybody's anyway: such keys read and write."""
_QUERY_BITS = frozenset({SCOPES[READ], SCOPES[WRITE]})


def scope_of(method: str, path: str) -> str:
    """The scope of a route by its method and path template: one of `SCOPES`, or PUBLIC."""
    return SCOPE_OF.get(("GET" if method == "HEAD" else method, path), ADMIN)


def describe_access(document: dict[str, Any]) -> None:
    """Write into an OpenAPI document what its routes need, and how a refusal looks."""
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "basic": {"type": "http", "scheme": "basic", "description": "the key is the user"},
    }
    document.setdefault("components", {})["securitySchemes"] = schemes
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            template = next((p for m, p in SCOPE_OF if m == method.upper() and p.replace(":path}", "}") == path), path)
            scope = scope_of(method.upper(), template)
            if scope == PUBLIC:
                continue
            operation["security"] = [{name: []} for name in schemes]
            operation["responses"] |= {
                "401": {"description": "No key, or one that is not known or no longer valid", "content": content},
                "403": {"description": f"The key has not the scope {scope}", "content": content},
                "429": {"description": "The key's limit is used up; Retry-After says until when", "content": content},
            }


class _Known(NamedTuple):
    """A route: its bit of SCOPES, or 0 for a public one."""

    bit: int
    route: Any


class AccessGuard:
    """Pure ASGI; only where keys are needed."""

    def __init__(self, app: ASGIApp, *, ring: KeyRing, routes: Sequence[Any]) -> None:
        """`routes`: those of the application; looked at with the first request."""
        self._app = app
        self._ring = ring
        self._routes = routes
        self._exact: dict[tuple[str, str], _Known] | None = None
        self._patterns: list[tuple[str, re.Pattern[str], _Known]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        grant: Grant | Refusal | None = scope.get(GRANT)
        if grant is None:
            known = self._known(scope["method"], scope["path"])
            if not known.bit:
                await self._app(scope, receive, send)
                return
            grant = self._ring.check(_given(scope, known.bit), known.bit)
            scope[GRANT] = grant
            if isinstance(grant, Refusal):
                scope["route"] = known.route
                request_id = scope.get("state", {}).get("request_id", "unknown")
                await refusal_response(grant, request_id)(scope, receive, send)
                return
        await self._app(scope, receive, _with_limit(grant, send) if isinstance(grant, Grant) else send)

    def _known(self, method: str, path: str) -> _Known:
        if self._exact is None:
            self._exact = self._look_at_routes()
        if method == "HEAD":
            method = "GET"
        found = self._exact.get((method, path))
        if found is not None:
            return found
        for other_method, pattern, known in self._patterns:
            if other_method == method and pattern.match(path):
                return known
        return _Known(ANY, None)

    def _look_at_routes(self) -> dict[tuple[str, str], _Known]:
        exact: dict[tuple[str, str], _Known] = {}
        for route in self._routes:
            for method in getattr(route, "methods", None) or ():
                known = _Known(SCOPES.get(scope_of(method, route.path), 0), route)
                if "{" in route.path:
                    self._patterns.append((method, route.path_regex, known))
                else:
                    exact[method, route.path] = known
        return exact


def _given(scope: Scope, bit: int) -> bytes | None:
    """What a request shows. A key in the query is taken out of it: it shall not be kept with an event."""
    given = given_in(scope["headers"])
    query: bytes = scope["query_string"]
    if query and bit in _QUERY_BITS and (match := _IN_QUERY.search(query)):
        scope["query_string"] = _IN_QUERY.sub(b"", query).removeprefix(b"&")
        if given is None:
            given = unquote_to_bytes(match[1])
    return given


def _with_limit(grant: Grant, send: Send) -> Send:
    """A `send` that adds the `RateLimit-*` headers of the grant."""
    headers = grant.headers()
    if not headers:
        return send

    async def send_with_limit(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
        await send(message)

    return send_with_limit
