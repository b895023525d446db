"""Several placements of one page in one call: one reading of the person, and no item twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fastapi import APIRouter, Request, Response

from feature_repo.contracts.errors import nearest
from serving.api.answering import Question, SlateAnswers, with_fields
from serving.api.bodies import read_body
from serving.api.errors import InvalidRequestError, validated
from serving.api.list_schemas import PagePlacement, PageRequest, PageResponse
from serving.api.openapi import JSON, body, problems
from serving.api.questions import list_request, query_document, query_parameters
from serving.api.services import Services
from serving.lists import BOUGHT_TOGETHER, RECOMMENDATIONS, SIMILAR, ListQuestion

_PAGE = {"name": "page", "in": "path", "required": True, "schema": {"type": "string"}}


def _place(kind: str, num_results: int, placement: str | None = None) -> PagePlacement:
    return PagePlacement.model_validate({"kind": kind, "num_results": num_results, "placement": placement})


PRESETS: Mapping[str, tuple[PagePlacement, ...]] = {
    "home": (
        _place("continue", 6, "home.continue"),
        _place("recommendations", 12, "home"),
        _place("trending", 12, "home.trending"),
        _place("new", 12, "home.new"),
    ),
    "product": (
        _place("similar", 12, "product.similar"),
        _place("bought_together", 6, "product.bought_together"),
        _place("recommendations", 12, "product_page"),
    ),
    "cart": (
        _place("bought_together", 6, "cart.bought_together"),
        _place("buy_again", 6, "cart.buy_again"),
        _place("recommendations", 6, "cart"),
    ),
    "search": (
        _place("recommendations", 12, "search"),
        _place("trending", 12, "search.trending"),
    ),
    "email": (
        _place("recommendations", 8, "email"),
        _place("buy_again", 4, "email.buy_again"),
        _place("new", 4, "email.new"),
    ),
}
_TEXT = (
    "The person is read once. No item is on the page twice: it belongs to the first placement that has it, so name the "
    "most important first; the item of the page is in none. Each placement is a whole answer with an id and a decision "
    "of its own; recommendations keep to the rules of the placement of that name. Pages with a preset, used when no "
    f"`placements` are given: {', '.join(PRESETS)}."
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


def placements_of(page: str, wanted: PageRequest) -> tuple[PagePlacement, ...]:
    """What the request names, else the preset. Raises InvalidRequestError when there is neither."""
    if wanted.placements:
        places = tuple(wanted.placements)
    elif page in PRESETS:
        places = PRESETS[page]
    else:
        expected = f"placements, or a page that has a preset: {', '.join(PRESETS)}{nearest(page, PRESETS)}"
        raise InvalidRequestError([{"field": "page", "seen": page[:80], "expected": expected}])
    for at, place in enumerate(places):
        if place.kind == SIMILAR and place.item_id is None and wanted.item_id is None:
            expected = f"an item_id: placement {at} is about one ({place.kind})"
            raise InvalidRequestError([{"field": "item_id", "seen": None, "expected": expected}])
    return places


async def answer_page(services: Services, answers: SlateAnswers, page: str, wanted: PageRequest, started: int) -> bytes:
    """The body of a page."""
    now_micros = services.wall_micros()
    places = placements_of(page, wanted)
    request = list_request(wanted, now_micros, num_results=1)
    asker = await services.recommender.meet(request)
    taken = set(request.exclude_item_ids)
    if wanted.item_id is not None:
        taken.add(wanted.item_id)
    contents, reads, is_degraded = [], asker.reads, False
    for at, place in enumerate(places):
        item_id = place.item_id or (wanted.item_id if place.kind in (SIMILAR, BOUGHT_TOGETHER) else None)
        question = ListQuestion(place.kind, [item_id] if item_id else [], place.window, place.max_age_days)
        name, answer_id = place.placement or place.kind, services.new_id()
        policy = None
        if place.kind == RECOMMENDATIONS:
            policy = services.placements.policy(name, seed=answer_id, explain=wanted.explain)
        excluded = frozenset(taken)
        here = replace(request, num_results=place.num_results, exclude_item_ids=excluded, policy=policy)
        seen = replace(asker.request, num_results=place.num_results, exclude_item_ids=excluded, policy=policy)
        built = await services.lists.build(question, asker, seen)
        answer = services.recommender.answer(asker, built.slate, degraded=built.degraded, reads=built.reads)
        taken.update(item.item_id for item in built.slate.items)
        reads += built.reads
        is_degraded = is_degraded or bool(answer.degraded)
        asked = Question(here, answer_id, name, wanted.consent.store is not False, now_micros, kind=place.kind)
        contents.append(answers.write(answer, asked, started, inputs={**built.inputs, "page": page, "place": at}))
    whole = {
        "page": page,
        "model_version": asker.catalogue.version,
        "took_ms": (services.timer() - started) // 1000 / 1000,
        "degraded": is_degraded,
        "online_reads": reads,
    }
    return with_fields(b'{"placements":[%b]}' % b",".join(contents), whole)
