"""From what a request says to what the pipeline is asked: query parameters, and the common fields of all lists."""

from __future__ import annotations

import types
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from feature_repo.contracts.packing import SessionEvent, session_hash
from serving.api.errors import InvalidRequestError
from serving.api.list_schemas import AskingRequest
from serving.api.schemas import RecommendationRequest
from serving.pipeline.policy import SlatePolicy
from serving.pipeline.values import SlateRequest

_NESTED = {
    "category": ("context", "category"),
    "region": ("context", "region"),
    "personalize": ("consent", "personalize"),
    "store": ("consent", "store"),
}
_YES_OR_NO = frozenset({"personalize", "store"})
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def list_request(
    wanted: AskingRequest | RecommendationRequest,
    now_micros: int,
    *,
    num_results: int,
    policy: SlatePolicy | None = None,
) -> SlateRequest:
    """What all lists are asked with. Events without a time of their own happened just now, in the order given."""
    hashed = session_hash(wanted.session_id)
    recent = [
        SessionEvent(now_micros if e.timestamp is None else int(e.timestamp), e.event_type, hashed, e.item_id)
        for e in wanted.recent_events
    ]
    recent += [SessionEvent(now_micros, "view_item", hashed, item_id) for item_id in wanted.session_items]
    return SlateRequest(
        num_results=num_results,
        user_id=wanted.user_id,
        anonymous_id=wanted.anonymous_id,
        session_id=wanted.session_id,
        category=wanted.context.category,
        region=wanted.context.region,
        recent_events=recent,
        exclude_item_ids=frozenset(wanted.exclude_item_ids),
        personalize=wanted.consent.personalize,
        explain=wanted.explain,
        policy=policy,
    )


def query_document(model: type[BaseModel], parameters: list[tuple[str, str]]) -> dict[str, Any]:
    """The POST body that query parameters stand for; a value keeps its text where the field takes none such.

    `category` and `region` are those of `context`, `personalize` and `store` those of `consent`; a list is repeated.
    """
    document: dict[str, Any] = {}
    for name, text in parameters:
        if name in _NESTED and _NESTED[name][0] in model.model_fields:
            outer, inner = _NESTED[name]
            value = _TRUTHS.get(text.lower(), text) if inner in _YES_OR_NO else text
            document.setdefault(outer, {})[inner] = value
            continue
        kind = _kind_of(model, name)
        if kind is dict:
            raise InvalidRequestError(
                [{"field": name, "seen": text[:80], "expected": "only in the body of the POST form"}]
            )
        if kind is list:
            document.setdefault(name, []).append(text)
        else:
            document[name] = _read(text, kind)
    return document


def query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """The query parameters of a model's GET form, for OpenAPI; in the order of its fields."""
    properties = model.model_json_schema()["properties"]
    declared = []
    for name, field in model.model_fields.items():
        if _kind_of(model, name) is dict:
            for outer_name, (outer, inner) in _NESTED.items():
                if outer == name:
                    kind = "boolean" if inner in _YES_OR_NO else "string"
                    declared.append(_parameter(outer_name, {"type": kind}, f"{outer}.{inner}"))
            continue
        schema = {key: value for key, value in properties[name].items() if key not in ("title", "description")}
        if "anyOf" in schema:
            schema = {**next(one for one in schema.pop("anyOf") if one.get("type") != "null"), **schema}
        if schema.get("default", 0) in (None, []):
            del schema["default"]
        many = "repeat for several" if schema.get("type") == "array" else ""
        words = "; ".join(part for part in (field.description, many) if part)
        declared.append(_parameter(name, schema, words, required=field.is_required()))
    return declared


def _parameter(name: str, schema: dict[str, Any], description: str, *, required: bool = False) -> dict[str, Any]:
    found = {"name": name, "in": "query", "description": description, "schema": schema}
    return {**found, "required": True} if required else found


def _kind_of(model: type[BaseModel], name: str) -> type:
    """What a field takes: list (of texts), dict (anything that a query cannot say), bool, int, float, or str."""
    field = model.model_fields.get(name)
    if field is None:
        return str
    annotation = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(one for one in get_args(annotation) if one is not type(None))
    if get_origin(annotation) is list:
        (inner,) = get_args(annotation)
        return dict if isinstance(inner, type) and issubclass(inner, BaseModel | dict) else list
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return dict
    kinds: dict[Any, type] = {bool: bool, int: int, float: float}
    return kinds.get(annotation, str)


def _read(text: str, kind: type) -> Any:
    if kind is bool:
        return _TRUTHS.get(text.lower(), text)
    if kind is int and text.isascii() and text.isdigit():
        return int(text[:9])
    if kind is float:
        try:
            return float(text[:40])
        except ValueError:
            return text
    return text
