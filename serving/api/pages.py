"""Several placements of one page: what is asked at each, and the body of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from feature_repo.contracts.errors import nearest
from serving.api.answering import Question, SlateAnswers, with_fields
from serving.api.errors import InvalidRequestError
from serving.api.services import Services
from serving.lists import BOUGHT_TOGETHER, RECOMMENDATIONS, SIMILAR, Built, ListQuestion
from serving.pipeline.policy import SlatePolicy
from serving.pipeline.values import SlateRequest
from serving.recommender import Asker


class Place(NamedTuple):
    """One place of a page, as `list_schemas.PagePlacement` says it."""

    kind: str = RECOMMENDATIONS
    num_results: int = 10
    placement: str | None = None
    item_id: str | None = None
    window: str = "1h"
    max_age_days: float = 30.0


PRESETS: Mapping[str, tuple[Place, ...]] = {
    "home": (
        Place("continue", 6, "home.continue"),
        Place("recommendations", 12, "home"),
        Place("trending", 12, "home.trending"),
        Place("new", 12, "home.new"),
    ),
    "product": (
        Place("similar", 12, "product.similar"),
        Place("bought_together", 6, "product.bought_together"),
        Place("recommendations", 12, "product_page"),
    ),
    "cart": (
        Place("bought_together", 6, "cart.bought_together"),
        Place("buy_again", 6, "cart.buy_again"),
        Place("recommendations", 6, "cart"),
    ),
    "search": (
        Place("recommendations", 12, "search"),
        Place("trending", 12, "search.trending"),
    ),
    "email": (
        Place("recommendations", 8, "email"),
        Place("buy_again", 4, "email.buy_again"),
        Place("new", 4, "email.new"),
    ),
}


class PageQuestion(NamedTuple):
    """A page, read and checked. `request`: who asks, without a size; `item_id`: what the page is about."""

    page: str
    request: SlateRequest
    item_id: str | None
    places: Sequence[Place]
    may_store: bool
    now_micros: int


def places_of(page: str, said: Sequence[Place], item_id: str | None) -> Sequence[Place]:
    """What the request names, else the preset. Raises InvalidRequestError when there is neither."""
    if said:
        places = said
    elif page in PRESETS:
        places = PRESETS[page]
    else:
        expected = f"placements, or a page that has a preset: {', '.join(PRESETS)}{nearest(page, PRESETS)}"
        raise InvalidRequestError([{"field": "page", "seen": page[:80], "expected": expected}])
    for at, place in enumerate(places):
        if place.kind == SIMILAR and place.item_id is None and item_id is None:
            expected = f"an item_id: placement {at} is about one ({place.kind})"
            raise InvalidRequestError([{"field": "item_id", "seen": None, "expected": expected}])
    return places


class PageAnswer:
    """A page under way. For each place in order: `ask`, and `add` what was built of it; then `body`."""

    def __init__(
        self, services: Services, answers: SlateAnswers, asked: PageQuestion, asker: Asker, started: int
    ) -> None:
        self._services = services
        self._answers = answers
        self._asked = asked
        self._asker = asker
        self._started = started
        self._taken = set(asked.request.exclude_item_ids)
        if asked.item_id is not None:
            self._taken.add(asked.item_id)
        self._contents: list[bytes] = []
        self._reads, self._is_degraded = asker.reads, False
        self._question: Question | None = None

    def ask(self, place: Place) -> tuple[ListQuestion, SlateRequest]:
        """What the next place is asked, and by whom."""
        asked, asker = self._asked, self._asker
        item_id = place.item_id or (asked.item_id if place.kind in (SIMILAR, BOUGHT_TOGETHER) else None)
        name, answer_id = place.placement or place.kind, self._services.new_id()
        policy = None
        if place.kind == RECOMMENDATIONS:
            policy = self._services.placements.policy(name, seed=answer_id, explain=asked.request.explain)
        excluded = frozenset(self._taken)
        here = _at_place(asked.request, place.num_results, excluded, policy)
        seen = here if asker.request is asked.request else _at_place(
            asker.request, place.num_results, excluded, policy
        )  # fmt: skip
        self._question = Question(here, answer_id, name, asked.may_store, asked.now_micros, kind=place.kind)
        return ListQuestion(place.kind, [item_id] if item_id else [], place.window, place.max_age_days), seen

    def add(self, built: Built) -> None:
        """The answer of the place that was asked last: its items are taken for those that follow."""
        assert self._question is not None
        answer = self._services.recommender.answer(
            self._asker, built.slate, degraded=built.degraded, reads=built.reads
        )  # fmt: skip
        self._taken.update([item.item_id for item in built.slate.items])
        self._reads += built.reads
        self._is_degraded = self._is_degraded or bool(answer.degraded)
        inputs = {**built.inputs, "page": self._asked.page, "place": len(self._contents)}
        self._contents.append(self._answers.write(answer, self._question, self._started, inputs=inputs))

    def body(self) -> bytes:
        """The page."""
        whole = {
            "page": self._asked.page,
            "model_version": self._asker.catalogue.version,
            "took_ms": (self._services.timer() - self._started) // 1000 / 1000,
            "degraded": self._is_degraded,
            "online_reads": self._reads,
        }
        return with_fields(b'{"placements":[%b]}' % b",".join(self._contents), whole)


def _at_place(
    request: SlateRequest, num_results: int, excluded: frozenset[str], policy: SlatePolicy | None
) -> SlateRequest:
    """`dataclasses.replace`, for what is done five times a page."""
    return SlateRequest(
        num_results, request.user_id, request.anonymous_id, request.session_id, request.category, request.region,
        request.recent_events, excluded, request.personalize, request.explain, policy,
    )  # fmt: skip
