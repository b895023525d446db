"""Pieces of the OpenAPI document that routes with hand-read bodies declare."""

from __future__ import annotations

from typing import Any

JSON = "application/json"

_WORDS = {
    400: "The body cannot be parsed",
    401: "The write key is not known",
    404: "Unknown item, or unknown decision",
    413: "The request is too large: which limit, what was seen, what is allowed",
    414: "The query is too long",
    415: "The body is coded in a way that is not read here",
    422: "A field is wrong: its name, what was seen, what is expected",
    503: "No version published yet, or a store that is needed does not answer or cannot take more",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem+json answers of a route."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _WORDS[status], "content": content} for status in statuses}


def media(schema: dict[str, Any], examples: dict[str, Any] | None = None) -> dict[str, Any]:
    """One form of a body. `examples`: name -> value."""
    named = {name: {"value": value} for name, value in (examples or {}).items()}
    return {"schema": schema, **({"examples": named} if named else {})}


def body(schema: dict[str, Any], examples: dict[str, Any] | None = None) -> dict[str, Any]:
    """A required body in JSON."""
    return bodies({JSON: media(schema, examples)})


def bodies(content: dict[str, Any]) -> dict[str, Any]:
    """A required body in several forms: content type -> `media`."""
    return {"requestBody": {"required": True, "content": content}}


def query(name: str, kind: str, description: str = "", **more: Any) -> dict[str, Any]:
    """One query parameter."""
    return {"name": name, "in": "query", "description": description, "schema": {"type": kind, **more}}
