"""Lists of their own kind: trending, new, bought together, buy again, continue; and a given list in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from serving.api import list_schemas, schemas
from serving.api.answering import Question, SlateAnswers
from serving.api.bodies import read_body
from serving.api.errors import UnknownItemError, validated
from serving.api.openapi import JSON, body, problems
from serving.api.policies import policy_in_list
from serving.api.questions import list_request, query_document, query_parameters
from serving.api.services import Services
from serving.lists import BOUGHT_TOGETHER, BUY_AGAIN, CONTINUE, NEW, RANK, SIMILAR, TRENDING, Built, ListQuestion
from serving.recommender import Asker


class _ListRoute(NamedTuple):
    """`question`: from the validated request to the list. `needs_item`: an unknown `item_id` is a 404."""

    path: str
    model: type[list_schemas.AskingRequest]
    response: type[BaseModel]
    summary: str
    text: str
    question: Callable[..., ListQuestion]
    needs_item: bool = False


RANK_ROUTE = _ListRoute(
    "/v1/rank",
    list_schemas.RankRequest,
    list_schemas.RankResponse,
    "Up to 500 given items, in this person's order",
    "For search results and hand-picked lists. Items on the person's list of the night come by their score there, "
    "the others behind them by popularity; then the session votes. Ties keep the given order. Items that may not "
    "be shown to anybody leave (`filtered`), as do those that the placement's rules or the request's filter take out; "
    "what the person dismissed goes behind the rest, and ids that the "
    "served version does not know come last (`unknown_item_ids`, source `given`). Reasons come with `explain`. "
    "`fallback_level`: personal, session, popular, or given when nothing is known of any of the items.",
    lambda wanted: ListQuestion(RANK, wanted.item_ids),
)
SIMILAR_ROUTE = _ListRoute(
    "/v1/similar",
    list_schemas.SimilarRequest,
    schemas.RecommendationResponse,
    "Items like one item",
    "The item's neighbours, nearest first; when they are too few, what is popular in its category, then at all. "
    "Of somebody who is named and consents, what they dismissed leaves.",
    lambda wanted: ListQuestion(SIMILAR, [wanted.item_id]),
    needs_item=True,
)
_ROUTES = (
    RANK_ROUTE,
    SIMILAR_ROUTE,
    _ListRoute(
        "/v1/trending",
        list_schemas.TrendingRequest,
        list_schemas.TrendingResponse,
        "What most people touch now",
        "Votes of the last 5 minutes, hour or day, at most a second old; one person alone adds at most two to an item. "
        "`trend.votes` has them. With a category, items in it or below it; with a region, by the "
        "votes whose events named it. Has it fewer than `trend.least_region_votes` of them, then by those of all "
        "regions, for the items of the region's popular list where the night has one: `trend.scope` says which. Too "
        "few items are topped up with what is popular.",
        lambda wanted: ListQuestion(TRENDING, window=wanted.window),
    ),
    _ListRoute(
        "/v1/bought-together",
        list_schemas.BoughtTogetherRequest,
        list_schemas.BoughtTogetherResponse,
        "What is bought in the same baskets as an item, or as a cart",
        "From the purchases of one session: the cosine of two items' baskets, drawn towards 0 for pairs seen seldom. "
        "Of several items the scores add up. Without any item the cart of the person is asked for, as far as we know "
        "it. Too few are topped up with what is popular in the category of the first item, then with everybody.",
        lambda wanted: ListQuestion(BOUGHT_TOGETHER, wanted.item_ids or [i for i in (wanted.item_id,) if i]),
        needs_item=True,
    ),
    _ListRoute(
        "/v1/buy-again",
        list_schemas.BuyAgainRequest,
        schemas.RecommendationResponse,
        "What this person buys again, when it is due",
        "The person's own purchases by how often and how lately, and by the interval at which they buy them, as of "
        "this instant and with what they bought since the night. What is in the cart leaves. Nothing tops it up: with "
        "no purchases, or without consent, it is empty and `fallback_reason` says why.",
        lambda _: ListQuestion(BUY_AGAIN),
    ),
    _ListRoute(
        "/v1/continue",
        list_schemas.ContinueRequest,
        schemas.RecommendationResponse,
        "What the session, or the last one, left open",
        "In the cart, then wished for, then looked at, each the newest first; without what was bought since or "
        "dismissed. Nothing tops it up: `fallback_reason` says why it is empty.",
        lambda _: ListQuestion(CONTINUE),
    ),
    _ListRoute(
        "/v1/new",
        list_schemas.NewRequest,
        schemas.RecommendationResponse,
        "What is new in the shop, first where this person looks most",
        "Items by `created_at`; a category that the person is interested in counts up to five times. Age is counted "
        "back from the end of the version's data. Older items follow, then what is popular.",
        lambda wanted: ListQuestion(NEW, max_age_days=wanted.max_age_days),
    ),
)


def build_list_router(services: Services) -> APIRouter:
    """These routes, bound to their services; each by POST and by GET."""
    router = APIRouter()
    answers = SlateAnswers(services)
    for route in _ROUTES:
        _add(router, services, answers, route)
    return router


def _add(router: APIRouter, services: Services, answers: SlateAnswers, route: _ListRoute) -> None:
    statuses = (400, 404, 413, 422, 503) if route.needs_item else (400, 413, 422, 503)
    name = route.path.rpartition("/")[2].replace("-", "_")

    async def answer(given: bytes | Mapping[str, object], started: int) -> Response:
        wanted = validated(route.model, given)
        return Response(await answer_list(services, answers, route, wanted, started), media_type=JSON)

    @router.post(
        route.path,
        tags=["lists"],
        name=f"post_{name}",
        summary=route.summary,
        description=route.text,
        response_model=None,
        responses={200: {"model": route.response}, **problems(*statuses)},
        openapi_extra=body(schema={"$ref": f"#/components/schemas/{route.model.__name__}"}),
    )
    async def post(request: Request) -> Response:
        started = services.timer()
        return await answer(await read_body(request, services.settings.max_body_bytes), started)

    @router.get(
        route.path,
        tags=["lists"],
        name=f"get_{name}",
        summary="The same, by query parameters",
        description="For a browser or curl; the POST form says everything this one says, and more.",
        response_model=None,
        responses={200: {"model": route.response}, **problems(*[s for s in statuses if s not in (400, 413)])},
        openapi_extra={"parameters": query_parameters(route.model)},
    )
    async def get(request: Request) -> Response:
        started = services.timer()
        return await answer(query_document(route.model, request.query_params.multi_items()), started)


async def answer_list(
    services: Services, answers: SlateAnswers, route: _ListRoute, wanted: list_schemas.AskingRequest, started: int
) -> bytes:
    """The body of one list."""
    now_micros = services.wall_micros()
    question = route.question(wanted)
    placement: str = wanted.placement  # type: ignore[attr-defined]
    size: int | None = wanted.num_results  # type: ignore[attr-defined]
    if size is None:
        is_given = question.kind == RANK
        size = len(question.item_ids) if is_given else services.placements.find(placement)[0].num_results
    answer_id = services.new_id()
    policy = policy_in_list(question.kind, placement, services.placements, seed=answer_id, filter=wanted.filter)
    request = list_request(wanted, now_micros, num_results=size, policy=policy)
    asker = await services.recommender.meet(request)
    item_id = getattr(wanted, "item_id", None)
    if route.needs_item and item_id is not None and item_id not in asker.catalogue.numbers:
        raise UnknownItemError(f"version {asker.catalogue.version} has no item {item_id[:80]!r}", field="item_id")
    may_store = wanted.consent.store is not False
    asked = Question(request, answer_id, placement, may_store, now_micros, kind=question.kind)
    built = await services.lists.build(question, asker, asker.request)
    return write_list(services, answers, asked, asker, built, started)


def write_list(
    services: Services, answers: SlateAnswers, asked: Question, asker: Asker, built: Built, started: int
) -> bytes:
    """The body of a list that was built."""
    answer = services.recommender.answer(asker, built.slate, degraded=built.degraded, reads=built.reads)
    return answers.write(answer, asked, started, inputs=built.inputs, more=built.more)
