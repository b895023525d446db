"""The routes that answer questions: parse, ask, render.

Bodies are read and written by hand; the declared models are in `schemas`.
"""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request, Response

from serving.api import schemas
from serving.api.answering import Question, SlateAnswers
from serving.api.batch_route import add_batch_route
from serving.api.bodies import read_body
from serving.api.errors import validated
from serving.api.openapi import JSON, body, problems
from serving.api.policies import policy_of
from serving.api.questions import list_request, query_document, query_parameters
from serving.api.services import Services
from serving.observability import render_metrics
from serving.pipeline.catalogue import FIRST_VERSION, NO_ITEM, NO_VERSION
from serving.pipeline.placements import Placements
from serving.pipeline.values import SlateRequest
from serving.settled import EmptyShopError


def build_router(services: Services) -> APIRouter:
    """These routes, bound to their services."""
    router = APIRouter()
    settings = services.settings
    answers = SlateAnswers(services)

    async def answer(wanted: schemas.RecommendationRequest, started: int) -> Response:
        now_micros = services.wall_micros()
        recommendation_id = services.new_id()
        question = Question(
            slate_request(wanted, now_micros, services.placements, recommendation_id=recommendation_id),
            recommendation_id,
            wanted.placement,
            wanted.consent.store is not False,
            now_micros,
            wanted.include,
            wanted.dry_run,
        )
        return Response(await answers.answer(question, started), media_type=JSON)

    @router.post(
        "/v1/recommendations",
        tags=["recommendations"],
        summary="A slate for a person, in this session, at this place",
        response_model=None,
        responses={200: {"model": schemas.RecommendationResponse}, **problems(400, 413, 422, 503)},
        openapi_extra=body(schema={"$ref": "#/components/schemas/RecommendationRequest"}),
    )
    async def post_recommendations(request: Request) -> Response:
        """The night's candidates of this person, adjusted by what the session did, filtered, ordered and explained.

        Never empty while an eligible item exists: without a personal list the answer comes from the next rung
        (`fallback_level`), and fewer items than asked for come with the counts of what was filtered.
        With `consent.personalize=false`, stored or given, neither person nor session is used.
        """
        started = services.timer()
        given = await read_body(request, settings.max_body_bytes)
        return await answer(validated(schemas.RecommendationRequest, given), started)

    @router.get(
        "/v1/recommendations",
        tags=["recommendations"],
        summary="The same, by query parameters",
        response_model=None,
        responses={200: {"model": schemas.RecommendationResponse}, **problems(422, 503)},
        openapi_extra={"parameters": query_parameters(schemas.RecommendationRequest)},
    )
    async def get_recommendations(request: Request) -> Response:
        """For a browser or curl; the POST form says everything this one says, and more."""
        started = services.timer()
        given = query_document(schemas.RecommendationRequest, request.query_params.multi_items())
        wanted = validated(schemas.RecommendationRequest, given)
        return await answer(wanted, started)

    add_batch_route(router, services, answer)

    @router.get("/health/live", tags=["health"], summary="The process runs", response_model=None)
    async def live() -> Response:
        """200 as long as the process can answer at all. Restart it when this fails."""
        return Response(b'{"status":"live"}', media_type=JSON)

    @router.get(
        "/health/ready",
        tags=["health"],
        summary="Some rung can answer",
        response_model=None,
        responses=problems(503),
    )
    async def ready() -> Response:
        """200 while any rung of the ladder can answer, also degraded, and in a new shop that has nothing to show yet
        (`no_item`): it takes items and events. 503 when a version is published and none was ever loaded, or the store
        does not say."""
        try:
            settled = await services.recommender.settle()
            version, degraded = settled.catalogue.version, settled.degraded
        except EmptyShopError:
            version, degraded = FIRST_VERSION, [NO_VERSION, NO_ITEM]
        status = {
            "status": "ready",
            "model_version": version,
            "degraded": bool(degraded),
            "degraded_reasons": degraded,
        }
        return Response(orjson.dumps(status), media_type=JSON)

    @router.get("/metrics", tags=["health"], summary="Prometheus metrics of all workers", response_model=None)
    async def metrics() -> Response:
        """Counters are summed over the workers of this server; consumer and archiver have ports of their own."""
        return Response(render_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def slate_request(
    wanted: schemas.RecommendationRequest, now_micros: int, placements: Placements, *, recommendation_id: str
) -> SlateRequest:
    """The question of a request, with the policy of its placement."""
    return list_request(
        wanted,
        now_micros,
        num_results=wanted.num_results or placements.find(wanted.placement)[0].num_results,
        policy=policy_of(wanted, placements, seed=recommendation_id),
    )
