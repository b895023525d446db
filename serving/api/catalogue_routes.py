"""The routes by which a shop changes its items and users: durable before the answer, in every worker's next slate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from feature_repo.contracts.changes import DELETE, ID_FIELDS, ITEMS, PATCH, PUT, USERS
from feature_repo.contracts.times import from_micros
from serving.api import catalogue_examples as examples
from serving.api import schemas
from serving.api.bodies import read_events_body
from serving.api.catalogue_changes import records_in, records_in_lines, take_changes
from serving.api.errors import InvalidRequestError, UnreadableBodyError
from serving.api.event_routes import LINE_TYPES
from serving.api.ingest import parse_json
from serving.api.openapi import JSON, bodies, body, media, problems, query
from serving.api.services import Services

_DOES: Mapping[str, Mapping[str, str]] = {
    ITEMS: {
        PUT: "Replace items: what a record leaves out becomes empty",
        PATCH: "Change the named fields of items; null empties one",
        DELETE: "Hide items: they are recommended no more, and keep their number",
    },
    USERS: {
        PUT: "Replace what is known of users; consents change only by being said",
        PATCH: "Change the named fields, attributes and consents of users; null empties one",
        DELETE: "Forget the attributes of users; their consents stay",
    },
}
_MORE = (
    "202 means that every accepted change is on disk, and in the next answer of every worker within milliseconds. "
    "`updated_at` orders changes (default: the receipt): of each field the newest word counts. `stale`: of all that "
    "the change says something newer is known; `stale_fields`: of some. A rejected change is not kept. On 503 nothing "
    "is promised: send the same again."
)


def build_catalogue_router(services: Services) -> APIRouter:
    """These routes, bound to their services."""
    router = APIRouter()
    settings, log = services.settings, services.log

    async def take(kind: str, operation: str, records: list[object]) -> list[dict[str, Any]]:
        return await take_changes(
            kind,
            operation,
            records,
            log,
            services.tail,
            services.overlay,
            received_at=from_micros(services.wall_micros()),
            max_written_bytes=settings.max_written_bytes,
        )

    def answered(results: list[dict[str, Any]]) -> Response:
        return Response(orjson.dumps({"results": results}), 202, media_type=JSON)

    async def take_several(request: Request, kind: str, operation: str) -> Response:
        log.require_room()
        content = await read_events_body(request, settings)
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type in LINE_TYPES:
            records = records_in_lines(content, max_records=settings.max_events)
        else:
            records = records_in(content, kind, operation, max_records=settings.max_events)
        return answered(await take(kind, operation, records))

    async def take_one(request: Request, kind: str, operation: str) -> Response:
        log.require_room()
        id_field = ID_FIELDS[kind]
        record_id = request.path_params[id_field]
        record: dict[str, Any] = {}
        if operation == DELETE:
            if said := request.query_params.get("updated_at"):
                record = {"updated_at": said}
        else:
            given = parse_json(await read_events_body(request, settings))
            if not isinstance(given, dict):
                raise UnreadableBodyError("expected one object")
            record = given
        if record.get(id_field, record_id) != record_id:
            problem = {"field": id_field, "seen": _seen(record[id_field]), "expected": "the id of the address"}
            raise InvalidRequestError([problem])
        results = await take(kind, operation, [{**record, id_field: record_id}])
        if results[0]["status"] == "rejected":
            field = results[0]["field"] or "body"
            seen = _seen(record_id if field == id_field else record.get(field))
            expected = results[0]["detail"].partition(", got ")[0]
            raise InvalidRequestError([{"field": field, "seen": seen, "expected": expected}])
        return answered(results)

    def add_routes(kind: str, operation: str) -> None:
        method, id_field = operation.upper(), ID_FIELDS[kind]
        schema, given = examples.SCHEMAS[kind], examples.EXAMPLES[kind][operation]
        several: dict[str, Any] = {"type": "array", "minItems": 1, "maxItems": 1000, "items": schema}
        if operation == DELETE:
            several["items"] = {"oneOf": [{"type": "string"}, examples.deleted(id_field)]}
        forms = {"oneOf": [several["items"], {"type": "object", "required": [kind], "properties": {kind: several}}, several]}  # fmt: skip  # noqa: E501
        lines = {"type": "string", "description": "one record in each line"}
        taken: dict[int | str, dict[str, Any]] = {202: {"model": schemas.ChangesResponse}}

        @router.api_route(
            f"/v1/{kind}",
            methods=[method],
            tags=[kind],
            name=f"{operation}_{kind}",
            status_code=202,
            summary=_DOES[kind][operation],
            description=f'1 to 1000 at once: a list, {{"{kind}": [...]}}, one object, or NDJSON; gzip is read. {_MORE}',
            response_model=None,
            responses={**taken, **problems(400, 413, 415, 503)},
            openapi_extra=bodies(
                {
                    JSON: media(forms, {"several": given["several"]}),
                    "application/x-ndjson": media(lines, {"lines": given["lines"]}),
                }
            ),
        )
        async def change_several(request: Request) -> Response:
            return await take_several(request, kind, operation)

        path_parameter = {"name": id_field, "in": "path", "required": True, "schema": {"type": "string"}}
        extra: dict[str, Any] = {"parameters": [path_parameter]}
        if operation == DELETE:
            extra["parameters"].append(query("updated_at", "string", "when it was so; default: the receipt"))
        else:
            extra |= body(schema=examples.without_id(schema, id_field), examples={"one": given["one"]})

        @router.api_route(
            f"/v1/{kind}/{{{id_field}:path}}",
            methods=[method],
            tags=[kind],
            name=f"{operation}_one_of_{kind}",
            status_code=202,
            summary=f"{_DOES[kind][operation].partition(':')[0].partition(';')[0]}: one, by its id",
            description=f"A change that breaks a rule is a 422 that names the field. {_MORE}",
            response_model=None,
            responses={**taken, **problems(400, 413, 415, 422, 503)},
            openapi_extra=extra,
        )
        async def change_one(request: Request) -> Response:
            return await take_one(request, kind, operation)

    for kind in (ITEMS, USERS):
        for operation in (PUT, PATCH, DELETE):
            add_routes(kind, operation)
    return router


def _seen(value: object) -> str:
    """A value as a problem shows it; half a character, which JSON can say, becomes `?`."""
    return str(value)[:80].encode("utf-8", "replace").decode("utf-8")
