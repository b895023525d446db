"""The one place where errors become HTTP: RFC 9457 problem+json, always with the request id.

RequestError                 422  what a request asks cannot be answered as asked
├── UnknownWriteKeyError     401  the write key is not one of ours
├── FilterError              422  a filter that cannot be read, with the place of the offending character
├── InvalidRequestError      422  fields that are wrong: each with its name, what was seen, what is expected
├── UnreadableBodyError      400  the body is not JSON, or not of any accepted form
├── UnknownItemError         404  the item is not in the served version
├── UnknownDecisionError     404  no such decision is kept
├── UnsupportedBodyError     415  a coding or format of the body that we do not read
└── BodyTooLargeError        413  with the limit, what was seen, what is allowed
    └── QueryTooLongError    414
DependencyError              503  with Retry-After
└── OverloadedError          503  at once: nothing of the request was written
anything else                500  never with its text
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from feature_repo.contracts.errors import DependencyError, FilterError, NightjarError, RequestError, nearest
from serving.adapters.event_log import OverloadedError
from serving.settled import NoVersionError

Model = TypeVar("Model", bound=BaseModel)

PROBLEM_TYPE = "application/problem+json"
MAX_EXACT_INTEGER = 2**53
"""From here on readers of JSON may see another number."""
_HEADERS = {
    401: {"WWW-Authenticate": 'Basic realm="write key"'},
    415: {"Accept-Encoding": "gzip, identity"},
    503: {"Retry-After": "1"},
}


class InvalidRequestError(RequestError):
    """Fields that are wrong. `problems` has {"field", "seen", "expected"} of each."""

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        first = problems[0]
        super().__init__(f"{first['field']}: {first['expected']}, got {first['seen']!r}", field=first["field"])
        self.problems = problems


class Limit(NamedTuple):
    """A limit that a request broke: its name (a setting or a documented constant), what was seen, what is allowed."""

    name: str
    seen: int
    allowed: int


class UnreadableBodyError(RequestError):
    """The body cannot be parsed. `limit`: because it would break one."""

    def __init__(self, message: str, *, limit: Limit | None = None) -> None:
        super().__init__(message)
        self.limit = limit


class UnknownItemError(RequestError):
    """The item is not in the served version."""


class UnknownDecisionError(RequestError):
    """No such decision is kept."""


class BodyTooLargeError(RequestError):
    """The body, or the list in it, is larger than the server takes."""

    def __init__(self, limit: Limit, unit: str) -> None:
        super().__init__(
            f"{limit.name}: at most {limit.allowed} {unit} fit one request, got {limit.seen}; send several requests"
        )
        self.limit = limit


class QueryTooLongError(BodyTooLargeError):
    """The query is longer than the server takes."""


class UnsupportedBodyError(RequestError):
    """A content coding or an event format that we do not read."""


class UnknownWriteKeyError(RequestError):
    """The request names no write key, or one that is not in NIGHTJAR_SERVING_WRITE_KEYS."""


_STATUS: tuple[tuple[type[NightjarError], int, str, str], ...] = (
    (UnreadableBodyError, 400, "unreadable-body", "The body cannot be parsed"),
    (UnknownItemError, 404, "unknown-item", "The item is not in the served version"),
    (UnknownDecisionError, 404, "unknown-decision", "No such decision is kept"),
    (QueryTooLongError, 414, "query-too-long", "The query is too long"),
    (BodyTooLargeError, 413, "too-large", "The request is too large"),
    (UnsupportedBodyError, 415, "unsupported-body", "The body is coded in a way that is not read here"),
    (UnknownWriteKeyError, 401, "unknown-write-key", "The write key is not known"),
    (RequestError, 422, "invalid-request", "The request is not valid"),
    (OverloadedError, 503, "overloaded", "The server has no room for this now"),
    (NoVersionError, 503, "no-version", "No version published yet"),
    (DependencyError, 503, "dependency-down", "A store that this needs does not answer"),
)


def problem(
    status: int, slug: str, title: str, detail: str | None, request_id: str, **more: Any
) -> Response:  # fmt: skip
    """A problem+json response."""
    document = _document(status, slug, title, detail, request_id, **more)
    return Response(orjson.dumps(document), status, headers=_HEADERS.get(status), media_type=PROBLEM_TYPE)


def _document(
    status: int, slug: str, title: str, detail: str | None, request_id: str, **more: Any
) -> dict[str, Any]:  # fmt: skip
    return {
        "type": f"urn:nightjar:problem:{slug}",
        "title": title,
        "status": status,
        **({"detail": detail} if detail else {}),
        "request_id": request_id,
        **more,
    }


def internal_error(request_id: str) -> Response:
    """The 500 for what nobody foresaw; it gives nothing away."""
    detail = "it was logged; name the request_id when you report it"
    return problem(500, "internal", "Something went wrong here", detail, request_id)


def request_id_of(request: Request) -> str:
    """The id that the middleware gave the request."""
    return getattr(request.state, "request_id", "unknown")


def problem_body(error: Exception, request_id: str) -> dict[str, Any]:
    """A NightjarError as the document of a problem. Those that are nobody's fault but ours are raised again."""
    for kind, status, slug, title in _STATUS:
        if isinstance(error, kind):
            more: dict[str, Any] = {}
            if isinstance(error, InvalidRequestError):
                more["errors"] = error.problems
            elif isinstance(error, BodyTooLargeError | UnreadableBodyError) and error.limit is not None:
                more = {"limit": error.limit.name, "seen": error.limit.seen, "allowed": error.limit.allowed}
            elif isinstance(error, FilterError):
                seen = error.text[error.position :][:40]
                problems = [{"field": "filter", "seen": seen, "expected": error.reason}]
                more = {"field": "filter", "position": error.position, "errors": problems}
            elif isinstance(error, RequestError) and error.field:
                more["field"] = error.field
            return _document(status, slug, title, str(error), request_id, **more)
    raise error


async def answer_domain_error(request: Request, error: Exception) -> Response:
    """A NightjarError as a problem. Those that are nobody's fault but ours go on to the 500."""
    document = problem_body(error, request_id_of(request))
    status = document["status"]
    return Response(orjson.dumps(document), status, headers=_HEADERS.get(status), media_type=PROBLEM_TYPE)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        paths = [route.path for route in request.app.routes if hasattr(route, "path")]
        detail = f"no such address: {detail}{nearest(request.url.path, paths)}"
    return problem(error.status_code, "http", error.detail, detail, request_id_of(request))


def validated(model: type[Model], body: bytes | Mapping[str, Any]) -> Model:
    """The body as a `model`.

    Raises UnreadableBodyError when it is no JSON, InvalidRequestError when a field is wrong.
    """
    try:
        return model.model_validate_json(body) if isinstance(body, bytes) else model.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        if found[0]["type"] == "json_invalid":
            raise UnreadableBodyError(f"the body is not JSON: {found[0]['msg']}") from None
        raise InvalidRequestError([_field_problem(model, one) for one in found]) from None


def _field_problem(model: type[BaseModel], error: Mapping[str, Any]) -> dict[str, Any]:
    location: tuple[str | int, ...] = error["loc"]
    field = ".".join(str(part) for part in location) or "body"
    seen = _seen(error["input"])
    expected = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        inner = _nested_in(model, str(location[-1])) if len(location) == 1 else None
        hint = nearest(str(location[-1]), known) if inner is None else f" here: it is {inner}"
        expected = f"no such field{hint}; known are {', '.join(known)}"
        seen = str(location[-1])
    return {"field": field, "seen": seen, "expected": expected}


def _nested_in(model: type[BaseModel], name: str) -> str | None:
    """Where a field is that was looked for at the top: `context.category`; None when no object there has it."""
    for outer, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name in kind.model_fields:
            return f"{outer}.{name}"
    return None


def _seen(value: object) -> int | float | str | None:
    """A value as a problem shows it: what JSON writers cannot say (an integer of hundreds of digits) as text."""
    if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < MAX_EXACT_INTEGER):
        return value
    return str(value)[:80].encode("utf-8", "replace").decode("utf-8")


def _fields_at(model: type[BaseModel], location: Iterable[str | int]) -> list[str]:
    """The field names of the object at `location` inside `model`."""
    schema = model.model_json_schema()
    here = schema
    for part in location:
        here = here.get("items", {}) if isinstance(part, int) else here.get("properties", {}).get(part, {})
        for choice in (here, *here.get("anyOf", [])):
            if "$ref" in choice:
                here = schema["$defs"][choice["$ref"].rpartition("/")[2]]
    return list(here.get("properties", {}))
