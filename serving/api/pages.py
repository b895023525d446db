"""Several placements of one page: what is asked at each, and the body of the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from feature_repo.contracts.errors import nearest
from serving.api.answering import Question, SlateAnswers, with_fields
from serving.api.errors import InvalidRequestError
from serving.api.services import Services
from serving.lists import BOUGHT_TOGETHER, RECOMMENDATIONS, SIMILAR, Built, ListQuestion
from serving.pipeline.caps import variants_of
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.policy import SlatePolicy
from serving.pipeline.values import SlateRequest
from serving.recommender import Answer, Asker

NO_ITEMS: frozenset[str] = frozenset()


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
    """A page, read and checked. `request`: who asks, without a size; `item_id`: what the page is about; `filter`: of
    the request, for all places."""

    page: str
    request: SlateRequest
    item_id: str | None
    places: Sequence[Place]
    may_store: bool
    now_micros: int
    filter: str | None = None


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


class PlaceMaker:
    """Makes the places of one page, one after another."""

    def __init__(
        self, services: Services, answers: SlateAnswers, asked: PageQuestion, asker: Asker, started: int
    ) -> None:
        self._services = services
        self._answers = answers
        self._asked = asked
        self._asker = asker
        self._started = started

    def ask(self, place: Place, answer_id: str, taken: frozenset[str]) -> tuple[ListQuestion, SlateRequest, Question]:
        """What a place is asked, by whom, and the question as its decision names it. `taken`: what it may not show."""
        asked, asker = self._asked, self._asker
        item_id = place.item_id or (asked.item_id if place.kind in (SIMILAR, BOUGHT_TOGETHER) else None)
        name = place.placement or place.kind
        explain = asked.request.explain and place.kind == RECOMMENDATIONS
        policy = self._services.placements.policy(name, seed=answer_id, filter=asked.filter, explain=explain)
        if policy is not None and policy.rules.one_per_group:
            taken |= variants_on_page(asked, lambda: taken, asker.catalogue)
        here = _at_place(asked.request, place.num_results, taken, policy)
        seen = here if asker.request is asked.request else _at_place(
            asker.request, place.num_results, taken, policy
        )  # fmt: skip
        question = Question(here, answer_id, name, asked.may_store, asked.now_micros, kind=place.kind)
        return ListQuestion(place.kind, [item_id] if item_id else [], place.window, place.max_age_days), seen, question

    def write(self, built: Built, question: Question, at: int) -> tuple[Answer, bytes, bytes]:
        """The answer of the place at this position, its body, and its decision, which is not logged yet."""
        answer = self._services.recommender.answer(
            self._asker, built.slate, degraded=built.degraded, reads=built.reads
        )  # fmt: skip
        inputs = {**built.inputs, "page": self._asked.page, "place": at}
        content = self._answers.body(answer, question, self._started)
        return answer, content, self._answers.decision(answer, question, inputs)


class PageAnswer:
    """A page under way. For each place in order: `ask`, and `add` what was built of it; then `body`, which logs the
    decisions: a page that fails on its way has none."""

    def __init__(
        self, services: Services, answers: SlateAnswers, asked: PageQuestion, asker: Asker, started: int
    ) -> None:
        self._services = services
        self._answers = answers
        self._asked = asked
        self._asker = asker
        self._started = started
        self._maker = PlaceMaker(services, answers, asked, asker, started)
        self._taken = set(asked.request.exclude_item_ids)
        if asked.item_id is not None:
            self._taken.add(asked.item_id)
        self._contents: list[bytes] = []
        self._decisions: list[bytes] = []
        self._reads, self._is_degraded = asker.reads, False
        self._question: Question | None = None

    def ask(self, place: Place) -> tuple[ListQuestion, SlateRequest]:
        """What the next place is asked, and by whom."""
        wanted, seen, self._question = self._maker.ask(place, self._services.new_id(), frozenset(self._taken))
        return wanted, seen

    def add(self, built: Built) -> None:
        """The answer of the place that was asked last: its items are taken for those that follow."""
        assert self._question is not None
        answer, content, decision = self._maker.write(built, self._question, len(self._contents))
        self._taken.update([item.item_id for item in built.slate.items])
        self._reads += built.reads
        self._is_degraded = self._is_degraded or bool(answer.degraded)
        self._contents.append(content)
        self._decisions.append(decision)

    def body(self) -> bytes:
        """The page."""
        whole = {
            "page": self._asked.page,
            "model_version": self._asker.catalogue.version,
            "took_ms": (self._services.timer() - self._started) // 1000 / 1000,
            "degraded": self._is_degraded,
            "online_reads": self._reads,
        }
        self._answers.log(self._decisions)
        return with_fields(b'{"placements":[%b]}' % b",".join(self._contents), whole)


def variants_on_page(
    asked: PageQuestion, taken_ids: Callable[[], frozenset[str]], catalogue: Catalogue
) -> frozenset[str]:
    """The other variants of what a page shows or is about. `taken_ids`: that, and what the request excludes."""
    if not catalogue.facts.members.get("group_id"):
        return NO_ITEMS
    taken = taken_ids()
    about = () if asked.item_id is None else (asked.item_id,)
    return variants_of((taken - asked.request.exclude_item_ids).union(about), catalogue) - taken


def _at_place(
    request: SlateRequest, num_results: int, excluded: frozenset[str], policy: SlatePolicy | None
) -> SlateRequest:
    """`dataclasses.replace`, for what is done five times a page."""
    return SlateRequest(
        num_results, request.user_id, request.anonymous_id, request.session_id, request.category, request.region,
        request.recent_events, excluded, request.personalize, request.explain, policy, request.region_of_user,
    )  # fmt: skip
