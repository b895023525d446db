"""The slates of many people in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import orjson
from fastapi import APIRouter, Request, Response

from feature_repo.contracts.errors import NightjarError
from serving.api.bodies import read_body
from serving.api.errors import problem_body, request_id_of, validated
from serving.api.list_schemas import BatchRequest, BatchResponse
from serving.api.openapi import JSON, body, problems
from serving.api.schemas import RecommendationRequest
from serving.api.services import Services

_AT_ONCE = 8
"""Slates of one batch under way at once: others get their turn in between."""


def add_batch_route(
    router: APIRouter, services: Services, answer: Callable[[RecommendationRequest, int], Awaitable[Response]]
) -> None:
    """`answer`: that of one slate, to its request and when it came by the services' timer."""

    async def one(request: Request, index: int, given: object, room: asyncio.Semaphore) -> bytes:
        async with room:
            try:
                wanted = validated(RecommendationRequest, given)  # type: ignore[arg-type]
                content = bytes((await answer(wanted, services.timer())).body)
                return b'{"index":%d,"status":200,"answer":%b}' % (index, content)
            except NightjarError as error:
                document = problem_body(error, request_id_of(request))
                return orjson.dumps({"index": index, "status": document["status"], "problem": document})

    @router.post(
        "/v1/recommendations/batch",
        tags=["recommendations"],
        summary="The slates of up to 100 people in one call",
        response_model=None,
        responses={200: {"model": BatchResponse}, **problems(400, 413, 422, 503)},
        openapi_extra=body(schema={"$ref": "#/components/schemas/BatchRequest"}),
    )
    async def post_batch(request: Request) -> Response:
        """For mails and exports. Each request is answered as POST /v1/recommendations would answer it, with an id and a
        decision of its own; one that is not valid is a problem in its place and does not disturb the others."""
        wanted = validated(BatchRequest, await read_body(request, services.settings.max_body_bytes))
        room = asyncio.Semaphore(_AT_ONCE)
        results = await asyncio.gather(*(one(request, at, given, room) for at, given in enumerate(wanted.requests)))
        return Response(b'{"results":[%b]}' % b",".join(results), media_type=JSON)
