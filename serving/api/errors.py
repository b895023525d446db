"""The one place where errors become HTTP: RFC 9457 problem+json, always with the request id.

RequestError                 422  what a request asks cannot be answered as asked
├── InvalidRequestError      422  fields that are wrong: each with its name, what was seen, what is expected
├── UnreadableBodyError      400  the body is not JSON, or not of any accepted form
├── UnknownItemError         404  the item is not in the served version
└── BodyTooLargeError        413
DependencyError              503  with Retry-After
anything else                500  never with its text
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from feature_repo.contracts.errors import DependencyError, NightjarError, RequestError, nearest
from serving.recommender import NoVersionError

Model = TypeVar("Model", bound=BaseModel)

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = "1"


class InvalidRequestError(RequestError):
    """Fields that are wrong. `problems` has {"field", "seen", "expected"} of each."""

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        first = problems[0]
        super().__init__(f"{first['field']}: {first['expected']}, got {first['seen']!r}", field=first["field"])
        self.problems = problems


class UnreadableBodyError(RequestError):
    """The body cannot be parsed."""


class UnknownItemError(RequestError):
    """The item is not in the served version."""


class BodyTooLargeError(RequestError):
    """The body, or the list in it, is larger than the server takes."""


_STATUS: tuple[tuple[type[NightjarError], int, str, str], ...] = (
    (UnreadableBodyError, 400, "unreadable-body", "The body cannot be parsed"),
    (UnknownItemError, 404, "unknown-item", "The item is not in the served version"),
    (BodyTooLargeError, 413, "too-large", "The request is too large"),
    (RequestError, 422, "invalid-request", "The request is not valid"),
    (NoVersionError, 503, "no-version", "No version published yet"),
    (DependencyError, 503, "dependency-down", "A store that this needs does not answer"),
)


def problem(
    status: int, slug: str, title: str, detail: str | None, request_id: str, **more: Any
) -> Response:  # fmt: skip
    """A problem+json response."""
    body = {
        "type": f"urn:nightjar:problem:{slug}",
        "title": title,
        "status": status,
        **({"detail": detail} if detail else {}),
        "request_id": request_id,
        **more,
    }
    headers = {"Retry-After": RETRY_AFTER_SECONDS} if status == 503 else None
    return Response(orjson.dumps(body), status, headers=headers, media_type=PROBLEM_TYPE)


def request_id_of(request: Request) -> str:
    """The id that the middleware gave the request."""
    return getattr(request.state, "request_id", "unknown")


async def answer_domain_error(request: Request, error: Exception) -> Response:
    """A NightjarError as a problem. Those that are nobody's fault but ours go on to the 500."""
    for kind, status, slug, title in _STATUS:
        if isinstance(error, kind):
            more: dict[str, Any] = {}
            if isinstance(error, InvalidRequestError):
                more["errors"] = error.problems
            elif isinstance(error, RequestError) and error.field:
                more["field"] = error.field
            return problem(status, slug, title, str(error), request_id_of(request), **more)
    raise error


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
    seen = error["input"] if isinstance(error["input"], int | float | bool | None) else str(error["input"])[:80]
    expected = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        expected = f"no such field{nearest(str(location[-1]), known)}; known are {', '.join(known)}"
        seen = str(location[-1])
    return {"field": field, "seen": seen, "expected": expected}


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
