"""The routes that take events, in our form and in others': read, translate, make durable, answer in their form."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from feature_repo.contracts.times import from_micros
from serving.api import event_examples as examples
from serving.api import schemas
from serving.api.bodies import read_events_body
from serving.api.dialects import cloudevents, ga4, pixel, segment
from serving.api.dialects.values import Translated
from serving.api.errors import (
    Limit,
    QueryTooLongError,
    UnknownWriteKeyError,
    UnreadableBodyError,
    UnsupportedBodyError,
)
from serving.api.ingest import (
    Arrival,
    arrivals_of,
    events_in,
    events_in_lines,
    parse_json,
    require_count,
    take_events,
)
from serving.api.openapi import JSON, bodies, body, media, problems, query
from serving.api.services import Services

LINE_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})
MAX_QUERY_BYTES = 8192
SEGMENT_KINDS = ("track", "identify", "alias", "page", "batch")

GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
"""One transparent pixel, 42 bytes."""
_NEVER_STORED = {
    "Cache-Control": "no-store, no-cache, must-revalidate, private, max-age=0",
    "Pragma": "no-cache",
    "Expires": "0",
}

_PIXEL_PARAMETERS = [
    query("event_type", "string", "as in POST /v1/events", examples=["impression"]),
    query("user_id", "string", "this or anonymous_id", examples=["u1"]),
    query("anonymous_id", "string"),
    query("session_id", "string"),
    query("item_id", "array", "repeat it for a list of items", items={"type": "string"}, examples=[["i7", "i9"]]),
    query("timestamp", "string", "default: the receipt", examples=["2024-03-01T09:30:00Z"]),
    query("sent_at", "string"),
    query("event_id", "string", "default: derived from the fields"),
    query("value", "number"),
    query("quantity", "integer"),
    query("price", "number"),
    *(query(n, "string") for n in ("currency", "recommendation_id", "placement", "page_view_id", "channel")),
    *(query(f"consent_{n}", "boolean") for n in ("store", "train", "personalize", "share")),
]


def build_event_router(services: Services) -> APIRouter:
    """These routes, bound to their services."""
    router = APIRouter(tags=["events"])
    settings, log = services.settings, services.log
    write_keys = [key.strip().encode() for key in settings.write_keys.split(",") if key.strip()]

    async def take(arrivals: Iterable[Arrival], received_at: datetime) -> list[dict[str, Any]]:
        return await take_events(
            arrivals,
            log,
            received_at=received_at,
            new_nonce=services.new_id,
            max_written_bytes=settings.max_written_bytes,
            refuses_storing=services.overlay.refuses_storing,
            refuses_training=services.overlay.refuses_training,
        )

    def now() -> datetime:
        return from_micros(services.wall_micros())

    def counted(translated: list[Translated] | None, expected: str) -> Iterable[Arrival]:
        if translated is None:
            raise UnreadableBodyError(f"expected {expected}")
        require_count(len(translated), settings.max_events)
        return arrivals_of(translated)

    @router.post(
        "/v1/events",
        status_code=202,
        summary="What people did: durable before the answer",
        response_model=None,
        responses={202: {"model": schemas.EventsResponse}, **problems(400, 413, 415, 503)},
        openapi_extra=bodies(
            {
                JSON: media(examples.EVENTS_SCHEMA, examples.EVENT_EXAMPLES),
                "application/x-ndjson": media(examples.LINES_SCHEMA, {"two lines": examples.LINES_EXAMPLE}),
                cloudevents.STRUCTURED: media(examples.CLOUDEVENT_SCHEMA, {"one": examples.CLOUDEVENT_EXAMPLE}),
                cloudevents.BATCH: media(
                    {"type": "array", "minItems": 1, "items": examples.CLOUDEVENT_SCHEMA},
                    {"a batch": [{**examples.CLOUDEVENT_EXAMPLE, "id": "43"}]},
                ),
            }
        ),
    )
    async def post_events(request: Request) -> Response:
        """One event, a list, {"events": [...]}, or NDJSON, with 1 to 1000 events; each gets a status of its own.

        202 means that accepted and quarantined events alike are on disk. `duplicate`: this id was accepted within the
        last 24 hours; a retry after a lost answer is harmless. Events with `consent.store=false` are only counted.
        On 503 nothing is promised: send the same events again, under the same ids, after Retry-After seconds.
        The body may be gzip (Content-Encoding). CloudEvents come structured, as a batch, or binary (ce-* headers).
        """
        log.require_room()
        content = await read_events_body(request, settings)
        received_at = now()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        arrivals: Iterable[Arrival]
        if kind == cloudevents.BATCH:
            translated = cloudevents.translate_batch(parse_json(content), received_at=received_at)
            arrivals = counted(translated, "a list of 1 or more CloudEvents")
        elif kind == cloudevents.STRUCTURED:
            arrivals = counted([cloudevents.translate(parse_json(content), received_at=received_at)], "")
        elif kind.startswith("application/cloudevents"):
            raise UnsupportedBodyError(f"CloudEvents are read as JSON, got {kind[:80]!r}")
        elif cloudevents.is_binary(request.headers.items()):
            envelope = cloudevents.envelope_of(request.headers.items(), content)
            if "data" in envelope:
                parse_json(content)  # the same bound of nesting
            arrivals = counted([cloudevents.translate(envelope, received_at=received_at)], "")
        elif kind in LINE_TYPES:
            arrivals = events_in_lines(content, max_events=settings.max_events)
        else:
            arrivals = events_in(content, max_events=settings.max_events)
        results = await take(arrivals, received_at)
        return Response(orjson.dumps({"results": results}), 202, media_type=JSON)

    @router.get(
        "/v1/pixel.gif",
        summary="One event by an image address",
        response_model=None,
        response_class=Response,
        responses={
            200: {
                "description": "A transparent pixel. X-Nightjar-Status says accepted, duplicate or quarantined, "
                "X-Nightjar-Reason why it was quarantined.",
                "content": {"image/gif": {}},
            },
            **problems(414, 503),
        },
        openapi_extra={"parameters": _PIXEL_PARAMETERS},
    )
    async def get_pixel(request: Request) -> Response:
        """For mails and pages without scripts. The event is on disk before the image comes back.

        A pixel that breaks a rule gets its image too, and is quarantined. Other parameters are kept in properties.
        """
        log.require_room()
        raw: bytes = request.scope["query_string"]
        if len(raw) > MAX_QUERY_BYTES:
            raise QueryTooLongError(Limit("max_query_bytes", len(raw), MAX_QUERY_BYTES), "bytes of query")
        received_at = now()
        event = pixel.translate(request.query_params.multi_items(), received_at=received_at)
        (result,) = await take([Arrival(event, raw)], received_at)
        headers = {**_NEVER_STORED, "X-Nightjar-Status": result["status"]}
        if "reason" in result:
            headers["X-Nightjar-Reason"] = result["reason"]
        return Response(GIF, headers=headers, media_type="image/gif")

    async def take_segment(request: Request, kind: str) -> Response:
        log.require_room()
        content = await read_events_body(request, settings)
        document = parse_json(content)
        if write_keys:
            _require_write_key(request, document, write_keys)
        received_at = now()
        translated = segment.translate(document, kind=kind, received_at=received_at)
        arrivals = counted(translated, 'a message, or {"batch": [...]} with 1 or more messages')
        results = await take(arrivals, received_at)
        return Response(orjson.dumps({"success": True, "results": results}), media_type=JSON)

    def add_segment_route(kind: str) -> None:
        schema = examples.SEGMENT_SCHEMA
        if kind == "batch":
            schema = {
                "type": "object",
                "required": ["batch"],
                "properties": {
                    "batch": {"type": "array", "minItems": 1, "items": schema},
                    "sentAt": {"type": "string", "format": "date-time"},
                    "context": {"type": "object"},
                },
            }

        @router.post(
            f"/v1/{kind}",
            name=f"segment_{kind}",
            summary=f"Segment and RudderStack: {kind}",
            description="A body of the Segment spec; the write key is the user of Basic authorization. 200 means that "
            "every message is on disk, also a quarantined one. gzip is read.",
            response_model=None,
            responses={200: {"model": schemas.SegmentResponse}, **problems(400, 401, 413, 415, 503)},
            openapi_extra=body(schema=schema, examples={"example": examples.SEGMENT_EXAMPLES[kind]}),
        )
        async def post_segment(request: Request) -> Response:
            return await take_segment(request, kind)

    for kind in SEGMENT_KINDS:
        add_segment_route(kind)

    @router.post(
        "/mp/collect",
        status_code=202,
        summary="Google Analytics 4: Measurement Protocol",
        response_model=None,
        responses={202: {"model": schemas.EventsResponse}, **problems(400, 413, 415, 503)},
        openapi_extra=body(schema=examples.GA4_SCHEMA, examples={"a purchase": examples.GA4_EXAMPLE}),
    )
    async def post_ga4(request: Request) -> Response:
        """A body of the Measurement Protocol. measurement_id and api_secret in the query are not looked at.

        Like Google's, the answer is 2xx whatever the events say; unlike Google's, it says what became of each.
        """
        log.require_room()
        content = await read_events_body(request, settings)
        received_at = now()
        translated = ga4.translate(parse_json(content), received_at=received_at)
        arrivals = counted(translated, '{"client_id": ..., "events": [...]} with 1 or more events')
        results = await take(arrivals, received_at)
        return Response(orjson.dumps({"results": results}), 202, media_type=JSON)

    return router


def _require_write_key(request: Request, document: object, known: list[bytes]) -> None:
    """Raises UnknownWriteKeyError unless the Basic user, or writeKey in the body, is one of `known`."""
    given = basic_user(request.headers.get("authorization", "")) or segment.write_key_in(document) or ""
    bytes_given = given.encode("utf-8", "surrogatepass")
    # every key is compared, so that the time taken tells nothing
    if not sum(hmac.compare_digest(bytes_given, key) for key in known):
        raise UnknownWriteKeyError("give the write key as the user of Basic authorization, with an empty password")


def basic_user(header: str) -> str | None:
    """The user of an Authorization header; None when it is not Basic."""
    scheme, _, credentials = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode("utf-8").partition(":")[0]
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
