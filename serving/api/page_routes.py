"""Several placements of one page in one call: one reading of the person, and no item twice."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serving.api.answering import SlateAnswers
from serving.api.bodies import read_body
from serving.api.errors import validated
from serving.api.list_schemas import PageRequest, PageResponse
from serving.api.openapi import JSON, body, problems
from serving.api.pages import PRESETS, PageAnswer, PageQuestion, Place, places_of
from serving.api.questions import list_request, query_document, query_parameters
from serving.api.services import Services

_PAGE = {"name": "page", "in": "path", "required": True, "schema": {"type": "string"}}

_TEXT = (
    "The person is read once. No item is on the page twice: it belongs to the first placement that has it, so name the "
    "most important first; the item of the page is in none. Each placement is a whole answer with an id and a decision "
    "of its own, and keeps to the rules of the placement of that name; a `filter` holds in all. Pages with a preset, "
    f"used when no `placements` are given: {', '.join(PRESETS)}."
)


def build_page_router(services: Services) -> APIRouter:
    """These routes, bound to their services."""
    router = APIRouter()
    answers = SlateAnswers(services)

    async def answer(page: str, wanted: PageRequest, started: int) -> Response:
        return Response(await answer_page(services, answers, page, wanted, started), media_type=JSON)

    @router.post(
        "/v1/pages/{page}",
        tags=["lists"],
        summary="Several placements in one call, no item twice",
        description=_TEXT,
        response_model=None,
        responses={200: {"model": PageResponse}, **problems(400, 413, 422, 503)},
        openapi_extra={"parameters": [_PAGE], **body(schema={"$ref": "#/components/schemas/PageRequest"})},
    )
    async def post_page(request: Request) -> Response:
        started = services.timer()
        given = await read_body(request, services.settings.max_body_bytes)
        return await answer(request.path_params["page"], validated(PageRequest, given), started)

    @router.get(
        "/v1/pages/{page}",
        tags=["lists"],
        summary="A page with a preset, by query parameters",
        description=_TEXT,
        response_model=None,
        responses={200: {"model": PageResponse}, **problems(422, 503)},
        openapi_extra={"parameters": [_PAGE, *query_parameters(PageRequest)]},
    )
    async def get_page(request: Request) -> Response:
        started = services.timer()
        given = query_document(PageRequest, request.query_params.multi_items())
        return await answer(request.path_params["page"], validated(PageRequest, given), started)

    return router


async def answer_page(services: Services, answers: SlateAnswers, page: str, wanted: PageRequest, started: int) -> bytes:
    """The body of a page."""
    now_micros = services.wall_micros()
    said = [Place(p.kind, p.num_results, p.placement, p.item_id, p.window, p.max_age_days) for p in wanted.placements]
    places = places_of(page, said, wanted.item_id)
    request = list_request(wanted, now_micros, num_results=1)
    may_store = wanted.consent.store is not False
    asker = await services.recommender.meet(request)
    asked = PageQuestion(page, request, wanted.item_id, places, may_store, now_micros, wanted.filter)
    answer = PageAnswer(services, answers, asked, asker, started)
    for place in places:
        question, seen = answer.ask(place)
        answer.add(await services.lists.build(question, asker, seen))
    return answer.body()
