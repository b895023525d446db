"""POST /v1/rank, /v1/similar and /v1/pages/{page} without the framework: reads the questions that nearly all are, and
answers those that one read of the store can answer.

As `hot_slates` does it: whatever is not common goes to the application, which answers the same, and says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import orjson

from serving.api.answering import Question, SlateAnswers
from serving.api.errors import InvalidRequestError, validated
from serving.api.hot_pages import HotPages
from serving.api.hot_slates import MAX_HEADS, Head, is_id, plain_placements, read_question
from serving.api.list_routes import RANK_ROUTE, SIMILAR_ROUTE, answer_list, write_list
from serving.api.list_schemas import MAX_PLACEMENTS, MAX_RANKED_ITEMS, PageRequest, RankRequest, SimilarRequest
from serving.api.page_routes import answer_page
from serving.api.pages import PageQuestion, Place, places_of
from serving.api.policies import policy_in_list
from serving.api.schemas import MAX_EXCLUDED_ITEMS, MAX_RESULTS
from serving.api.services import Services
from serving.api.tally import RequestTally
from serving.api.visits import Visit, Visits
from serving.lists import BUY_AGAIN, RANK, SIMILAR, ListQuestion
from serving.native import parts
from serving.pipeline.placements import DEFAULT
from serving.pipeline.trending import WINDOW_WORDS
from serving.recommender import Asker

RANK_PATH, SIMILAR_PATH, PAGE_PATH = "/v1/rank", "/v1/similar", "/v1/pages/{page}"
MAX_PAGES, MAX_PAGE_BYTES = 1_024, 4_096
"""So many lists of places, of at most so many bytes, are remembered as they were read."""
Answered = Callable[[bytes | None], None]

_PAGE = re.compile(rb"/v1/pages/([A-Za-z0-9_.~-]{1,64})")
_ASKING = frozenset(
    {"user_id", "anonymous_id", "session_id", "context", "recent_events", "session_items", "exclude_item_ids",
     "consent", "explain"}
)  # fmt: skip
_KINDS = frozenset({"recommendations", "similar", "bought_together", "trending", "new", "continue"})
"""Of places that need no further read of the person; `buy_again` needs one."""
_PLACE = frozenset({"kind", "placement", "num_results", "item_id", "window", "max_age_days"})


class HotRoute(NamedTuple):
    """One address. `page`: whose it is; None where it is a list's."""

    path: str
    page: str | None
    tally: RequestTally


class ListHead(NamedTuple):
    """A request head that was read once, and the address in it."""

    route: HotRoute
    head: Head


class AskedList(NamedTuple):
    """A list that was asked for, read and checked."""

    asked: Question
    wanted: ListQuestion


class HotLists:
    """The routes in one process. `heads`: request heads that need no reading any more (`list_protocol`)."""

    def __init__(self, services: Services) -> None:
        self.answers = SlateAnswers(services)
        self.timer = services.timer
        self.visits = Visits(services.ring, services.access_log)
        self.new_id = services.new_id
        self.heads: dict[bytes, ListHead] = {}
        self._services = services
        self._pages = HotPages(services, self.answers)
        self._plain = plain_placements(services.placements)
        self._places: dict[bytes, Sequence[Place]] = {}
        self._rank = HotRoute(RANK_PATH, None, RequestTally(RANK_PATH, services.timer))
        self._similar = HotRoute(SIMILAR_PATH, None, RequestTally(SIMILAR_PATH, services.timer))
        self._page_tally = RequestTally(PAGE_PATH, services.timer)

    def route(self, url: bytes) -> HotRoute | None:
        """The route of an address; None when it is another's."""
        if url == b"/v1/rank":
            return self._rank
        if url == b"/v1/similar":
            return self._similar
        found = _PAGE.fullmatch(url)
        return None if found is None else HotRoute(PAGE_PATH, found[1].decode("ascii"), self._page_tally)

    def remember_head(self, said: bytes, route: HotRoute, head: Head, visit: Visit) -> None:
        """As `HotSlates.remember_head`."""
        if head.given_id is None and visit.trace is None:
            if len(self.heads) >= MAX_HEADS:
                self.heads.clear()
            self.heads[said] = ListHead(route, head._replace(visit=visit))

    def submit(self, route: HotRoute, body: bytes, started: int, answered: Answered) -> bool:
        """Ask for the answer to a body. `answered` is called in a later turn of the loop with that of a 200, or with
        None: then `answer` has to be asked. False when the application has to look at it."""
        if len(body) > self._services.settings.max_body_bytes:
            return False
        try:
            document: Any = orjson.loads(body)
        except orjson.JSONDecodeError:
            return False
        if type(document) is not dict:
            return False
        recommender = self._services.recommender
        if route.page is None:
            listed = self._rank_question(document) if route is self._rank else self._similar_question(document)
            if listed is None:
                return False
            asked, at_once = listed.asked, None
            if route is self._rank and parts.given is not None:
                at_once = partial(self.answers.rank_at_once, asked, list(listed.wanted.item_ids), started)
            return recommender.submit_meeting(asked.slate, partial(self._listed, listed, started), answered, at_once)
        page = self._page_question(route.page, document)
        if page is None:
            return False
        whole = None if parts.pages is None else partial(self._pages.at_once, page, started)
        return recommender.submit_meeting(page.request, partial(self._pages.by_steps, page, started), answered, whole)

    async def answer(self, route: HotRoute, body: bytes, started: int) -> bytes:
        """The same with as many reads as it takes, as the application does it. Raises what that raises."""
        services = self._services
        if route is self._similar:
            return await answer_list(services, self.answers, SIMILAR_ROUTE, validated(SimilarRequest, body), started)
        if route.page is None:
            return await answer_list(services, self.answers, RANK_ROUTE, validated(RankRequest, body), started)
        return await answer_page(services, self.answers, route.page, validated(PageRequest, body), started)

    def _rank_question(self, document: dict[str, Any]) -> AskedList | None:
        item_ids, placement = document.pop("item_ids", None), document.pop("placement", RANK)
        num_results = document.pop("num_results", None)
        if type(item_ids) is not list or not 1 <= len(item_ids) <= MAX_RANKED_ITEMS or not are_ids(item_ids):
            return None
        if num_results is not None and (type(num_results) is not int or not 1 <= num_results <= MAX_RANKED_ITEMS):
            return None
        asked = self._asking(document)
        if asked is None or not is_id(placement):
            return None
        asked.slate.num_results = num_results or len(item_ids)
        if self._plain.get(placement, self._plain[DEFAULT]) is None:
            placements, seed = self._services.placements, asked.recommendation_id
            asked.slate.policy = policy_in_list(RANK, placement, placements, seed=seed)
        return AskedList(asked._replace(placement=placement, kind=RANK), ListQuestion(RANK, item_ids))

    def _similar_question(self, document: dict[str, Any]) -> AskedList | None:
        item_id, placement = document.pop("item_id", None), document.pop("placement", SIMILAR)
        num_results = document.pop("num_results", None)
        if not is_id(item_id) or not is_id(placement):
            return None
        if num_results is not None and (type(num_results) is not int or not 1 <= num_results <= MAX_RESULTS):
            return None
        asked = self._asking(document)
        if asked is None:
            return None
        placements = self._services.placements
        asked.slate.num_results = num_results or placements.find(placement)[0].num_results
        if self._plain.get(placement, self._plain[DEFAULT]) is None:
            asked.slate.policy = policy_in_list(SIMILAR, placement, placements, seed=asked.recommendation_id)
        return AskedList(asked._replace(placement=placement, kind=SIMILAR), ListQuestion(SIMILAR, [item_id]))

    def _page_question(self, page: str, document: dict[str, Any]) -> PageQuestion | None:
        item_id, said = document.pop("item_id", None), document.pop("placements", ())
        if said and (type(said) is not list or len(said) > MAX_PLACEMENTS):
            return None
        if not (item_id is None or is_id(item_id)) or not (said or said == () or said == []):
            return None
        places = self._read_places(said)
        if places is None:
            return None
        try:
            found: Sequence[Place] = places_of(page, places, item_id)
        except InvalidRequestError:
            return None
        if any(place.kind == BUY_AGAIN for place in found):
            return None
        asked = self._asking(document)
        if asked is None:
            return None
        asked.slate.num_results = 1
        return PageQuestion(page, asked.slate, item_id, found, asked.may_store, asked.now_micros)

    def _read_places(self, said: Sequence[Any]) -> Sequence[Place] | None:
        """The places of a page, which are the same in many requests. None when the application has to look at them."""
        if not said:
            return ()
        key = orjson.dumps(said)
        places = self._places.get(key)
        if places is None:
            read = [_read_place(one) for one in said]
            places = [place for place in read if place is not None]
            if len(places) < len(read):
                return None
            if len(self._places) >= MAX_PAGES:
                self._places.clear()
            if len(key) <= MAX_PAGE_BYTES:
                self._places[key] = places
        return places

    def _asking(self, document: dict[str, Any]) -> Question | None:
        """Who asks: the fields that all lists have. None when the application has to look at them."""
        excluded = document.get("exclude_item_ids")
        if excluded is not None and (type(excluded) is not list or len(excluded) > MAX_EXCLUDED_ITEMS):
            return None
        if not document.keys() <= _ASKING:
            return None
        services = self._services
        asked = read_question(document, services.wall_micros(), services.placements, self._plain, self.new_id)
        if asked is not None:
            asked.slate.policy = None  # that of `default`; lists have that of their own placement
        return asked

    def _listed(self, question: AskedList, started: int, asker: Asker) -> bytes | None:
        """None for what is like an item that the version does not have: `answer` says so."""
        services, wanted = self._services, question.wanted
        if wanted.kind == SIMILAR and wanted.item_ids[0] not in asker.catalogue.numbers:
            return None
        built = services.lists.build_at_once(wanted, asker, asker.request)
        return write_list(services, self.answers, question.asked, asker, built, started)


def are_ids(values: list[Any]) -> bool:
    """Whether all of them are ids, as `is_id` says of one."""
    if parts.ranking is not None and parts.ranking.are_plain_ids(values):
        return True
    return all(map(is_id, values))


def _read_place(said: Any) -> Place | None:
    """None when the application has to look at it."""
    if type(said) is not dict or not said.keys() <= _PLACE:
        return None
    kind, placement, item_id = said.get("kind", "recommendations"), said.get("placement"), said.get("item_id")
    num_results, window = said.get("num_results", 10), said.get("window", "1h")
    max_age_days = said.get("max_age_days", 30.0)
    if type(kind) is not str or kind not in _KINDS or type(window) is not str or window not in WINDOW_WORDS:
        return None
    if type(num_results) is not int or not 1 <= num_results <= MAX_RESULTS:
        return None
    if not (placement is None or is_id(placement)) or not (item_id is None or is_id(item_id)):
        return None
    if type(max_age_days) not in (int, float) or not 0 < max_age_days <= 3650:
        return None
    return Place(kind, num_results, placement, item_id, window, float(max_age_days))
