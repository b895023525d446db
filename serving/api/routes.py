"""The routes: parse, ask, render. Bodies are read and written by hand (the declared models are in `schemas`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from feature_repo.contracts.packing import SessionEvent, session_hash
from feature_repo.contracts.times import from_micros
from serving.adapters.event_log import EventLog
from serving.adapters.online import OnlineStore
from serving.api import schemas
from serving.api.errors import BodyTooLargeError, InvalidRequestError, UnknownItemError, validated
from serving.api.ingest import events_in, take_events
from serving.api.rendering import render_answer, render_similar
from serving.observability import render_metrics
from serving.pipeline.similar import similar_items
from serving.pipeline.values import SlateRequest
from serving.recommender import Recommender
from serving.settings import ServingSettings

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes need. `wall_micros` and `timer` are clocks (UTC microseconds, monotonic nanoseconds)."""

    recommender: Recommender
    store: OnlineStore
    log: EventLog
    settings: ServingSettings
    wall_micros: Callable[[], int]
    timer: Callable[[], int]
    new_id: Callable[[], str]


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    words = {
        400: "The body cannot be parsed",
        404: "Unknown item",
        413: "The request is too large",
        422: "A field is wrong: its name, what was seen, what is expected",
        503: "No version published yet, or a store that is needed does not answer",
    }
    return {status: {"description": words[status], "content": content} for status in statuses}


def _body(schema: dict[str, Any], examples: dict[str, Any] | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schema}
    if examples:
        content["examples"] = examples
    return {"requestBody": {"required": True, "content": {JSON: content}}}


def _query(name: str, kind: str, description: str = "", **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": {"type": kind, **more}}


_GET_PARAMETERS = [
    _query("user_id", "string"),
    _query("anonymous_id", "string"),
    _query("session_id", "string"),
    _query("placement", "string", default="default"),
    _query("num_results", "integer", minimum=1, maximum=schemas.MAX_RESULTS, default=10),
    _query("category", "string", "context.category"),
    _query("region", "string", "context.region"),
    _query("session_items", "array", "repeat for several", items={"type": "string"}),
    _query("exclude_item_ids", "array", "repeat for several", items={"type": "string"}),
    _query("personalize", "boolean", "consent.personalize"),
    _query("explain", "boolean", default=False),
]

EVENTS_BODY = {
    "oneOf": [
        schemas.EVENT_SCHEMA,
        {
            "type": "object",
            "required": ["events"],
            "properties": {"events": {"type": "array", "minItems": 1, "maxItems": 1000, "items": {"type": "object"}}},
        },
        {"type": "array", "minItems": 1, "maxItems": 1000, "items": {"type": "object"}},
    ]
}


def build_router(services: Services) -> APIRouter:
    """All routes, bound to their services."""
    router = APIRouter()
    settings = services.settings

    async def answer(wanted: schemas.RecommendationRequest, started: int) -> Response:
        now_micros = services.wall_micros()
        result = await services.recommender.recommend(slate_request(wanted, now_micros))
        content = render_answer(
            result,
            recommendation_id=services.new_id(),
            placement=wanted.placement,
            num_results=wanted.num_results,
            explain=wanted.explain,
            now_micros=now_micros,
            took_micros=(services.timer() - started) // 1000,
        )
        return Response(content, media_type=JSON)

    @router.post(
        "/v1/recommendations",
        tags=["recommendations"],
        summary="A slate for a person, in this session, at this place",
        response_model=None,
        responses={200: {"model": schemas.RecommendationResponse}, **_problems(400, 413, 422, 503)},
        openapi_extra=_body({"$ref": "#/components/schemas/RecommendationRequest"}),
    )
    async def post_recommendations(request: Request) -> Response:
        """The night's candidates of this person, adjusted by what the session did, filtered, ordered and explained.

        Never empty while an eligible item exists: without a personal list the answer comes from the next rung
        (`fallback_level`), and fewer items than asked for come with the counts of what was filtered.
        With `consent.personalize=false`, stored or given, neither person nor session is used.
        """
        started = services.timer()
        body = await read_body(request, settings.max_body_bytes)
        return await answer(validated(schemas.RecommendationRequest, body), started)

    @router.get(
        "/v1/recommendations",
        tags=["recommendations"],
        summary="The same, by query parameters",
        response_model=None,
        responses={200: {"model": schemas.RecommendationResponse}, **_problems(422, 503)},
        openapi_extra={"parameters": _GET_PARAMETERS},
    )
    async def get_recommendations(request: Request) -> Response:
        """For a browser or curl; the POST form says everything this one says, and more."""
        started = services.timer()
        wanted = validated(schemas.RecommendationRequest, query_document(request.query_params.multi_items()))
        return await answer(wanted, started)

    @router.post(
        "/v1/similar",
        tags=["recommendations"],
        summary="Items like one item",
        response_model=None,
        responses={200: {"model": schemas.RecommendationResponse}, **_problems(400, 404, 413, 422, 503)},
        openapi_extra=_body({"$ref": "#/components/schemas/SimilarRequest"}),
    )
    async def post_similar(request: Request) -> Response:
        """The item's neighbours, nearest first; when they are too few, what is popular in its category, then at all."""
        started = services.timer()
        wanted = validated(schemas.SimilarRequest, await read_body(request, settings.max_body_bytes))
        settled = await services.recommender.settle()
        catalogue, now_micros = settled.catalogue, services.wall_micros()
        number = catalogue.numbers.get(wanted.item_id)
        if number is None:
            raise UnknownItemError(f"version {catalogue.version} has no item {wanted.item_id[:80]!r}", field="item_id")
        items, level, filtered, rungs = similar_items(
            number,
            catalogue,
            num_results=wanted.num_results,
            exclude_item_ids=frozenset(wanted.exclude_item_ids),
            now_micros=now_micros,
        )
        content = render_similar(
            items,
            catalogue,
            recommendation_id=services.new_id(),
            placement=wanted.placement,
            num_results=wanted.num_results,
            level=level,
            filtered=filtered,
            rungs=rungs,
            degraded=settled.degraded,
            explain=wanted.explain,
            now_micros=now_micros,
            took_micros=(services.timer() - started) // 1000,
        )
        return Response(content, media_type=JSON)

    @router.post(
        "/v1/events",
        tags=["events"],
        status_code=202,
        summary="What people did: durable before the answer",
        response_model=None,
        responses={202: {"model": schemas.EventsResponse}, **_problems(400, 413, 503)},
        openapi_extra=_body(EVENTS_BODY, schemas.EVENT_EXAMPLES),
    )
    async def post_events(request: Request) -> Response:
        """One event, a list, or {"events": [...]} with 1 to 1000 events; each gets a status of its own.

        202 means that accepted and quarantined events alike are on disk. `duplicate`: this id was accepted within the
        last 24 hours; a retry after a lost answer is harmless. Events with `consent.store=false` are only counted.
        On 503 nothing is promised: send the same events again, under the same ids.
        """
        body = await read_body(request, settings.max_body_bytes)
        results = await take_events(
            events_in(body, max_events=settings.max_events),
            services.log,
            received_at=from_micros(services.wall_micros()),
            new_nonce=services.new_id,
        )
        return Response(orjson.dumps({"results": results}), 202, media_type=JSON)

    @router.get("/health/live", tags=["health"], summary="The process runs", response_model=None)
    async def live() -> Response:
        """200 as long as the process can answer at all. Restart it when this fails."""
        return Response(b'{"status":"live"}', media_type=JSON)

    @router.get(
        "/health/ready",
        tags=["health"],
        summary="Some rung can answer",
        response_model=None,
        responses=_problems(503),
    )
    async def ready() -> Response:
        """200 while any rung of the ladder can answer, also degraded; 503 when no version was ever loaded."""
        settled = await services.recommender.settle()
        status = {
            "status": "ready",
            "model_version": settled.catalogue.version,
            "degraded": bool(settled.degraded),
            "degraded_reasons": settled.degraded,
        }
        return Response(orjson.dumps(status), media_type=JSON)

    @router.get("/metrics", tags=["health"], summary="Prometheus metrics of all workers", response_model=None)
    async def metrics() -> Response:
        """Counters are summed over the workers of this server; consumer and archiver have ports of their own."""
        return Response(render_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLargeError as soon as it is known to be larger than `max_bytes`."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise BodyTooLargeError(f"a body has at most {max_bytes} bytes; send several requests")
    return b"".join(parts)


def slate_request(wanted: schemas.RecommendationRequest, now_micros: int) -> SlateRequest:
    """The question of a request. Events without a time of their own happened just now, in the order given."""
    hashed = session_hash(wanted.session_id)
    recent = [
        SessionEvent(now_micros if e.timestamp is None else int(e.timestamp), e.event_type, hashed, e.item_id)
        for e in wanted.recent_events
    ]
    recent += [SessionEvent(now_micros, "view_item", hashed, item_id) for item_id in wanted.session_items]
    return SlateRequest(
        num_results=wanted.num_results,
        user_id=wanted.user_id,
        anonymous_id=wanted.anonymous_id,
        session_id=wanted.session_id,
        category=wanted.context.category,
        region=wanted.context.region,
        recent_events=recent,
        exclude_item_ids=frozenset(wanted.exclude_item_ids),
        personalize=wanted.consent.personalize,
        explain=wanted.explain,
    )


_LISTS = ("session_items", "exclude_item_ids")
_NESTED = {
    "category": ("context", "category"),
    "region": ("context", "region"),
    "personalize": ("consent", "personalize"),
}


def query_document(parameters: list[tuple[str, str]]) -> dict[str, Any]:
    """The POST body that query parameters stand for; values keep their text where it is no number or truth value."""
    document: dict[str, Any] = {}
    for name, text in parameters:
        value: Any = text
        if name == "num_results" and text.isascii() and text.isdigit():
            value = int(text[:9])
        elif name in ("personalize", "explain"):
            value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
        if name in _LISTS:
            document.setdefault(name, []).append(value)
        elif name in _NESTED:
            outer, inner = _NESTED[name]
            document.setdefault(outer, {})[inner] = value
        elif name in ("context", "consent", "recent_events"):
            raise InvalidRequestError(
                [{"field": name, "seen": text[:80], "expected": "only in the body of the POST form"}]
            )
        else:
            document[name] = value
    return document
