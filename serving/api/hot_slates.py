"""POST /v1/recommendations without the framework: reads the questions that nearly all are.

A body is common when it is JSON whose fields are all of those below, each as `schemas.RecommendationRequest` wants it.
Whatever else comes (another field, a value that may be wrong, `explain`, `include`, `dry_run`) goes to the application,
which answers the same, and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from feature_repo.contracts.errors import DataError, FilterError
from feature_repo.contracts.events import EVENT_TYPE_ALIASES, EVENT_TYPES, MAX_ID_BYTES
from feature_repo.contracts.filter_language import parse_filter
from feature_repo.contracts.packing import SessionEvent, session_hash
from feature_repo.contracts.times import parse_timestamp, to_micros
from serving.api.answering import Question, SlateAnswers
from serving.api.middleware import GIVEN_ID
from serving.api.schemas import MAX_ASKED_ITEMS, MAX_EXCLUDED_ITEMS, MAX_RECENT_EVENTS, MAX_RESULTS
from serving.api.services import Services
from serving.api.tally import RequestTally
from serving.api.visits import NOBODY, Visit, Visits
from serving.lists import RECOMMENDATIONS
from serving.native import parts
from serving.pipeline.placements import DEFAULT, Placement, Placements
from serving.pipeline.policy import MAX_EXPLORATION
from serving.pipeline.values import SlateRequest

PATH = "/v1/recommendations"
MAX_HEADS = 4_096
"""Clients send the same head again and again: so many different ones are remembered."""
_NOBODY: frozenset[str] = frozenset()
_MAX_PLAIN_ID = MAX_ID_BYTES // 4  # so many characters have few enough bytes, whichever they are


class Head(NamedTuple):
    """What is between the request line and the body, read once: the body's length, the client's own request id, and
    of one that is remembered who brought it first."""

    length: int
    given_id: str | None
    visit: Visit = NOBODY


class HotSlates:
    """The route in one process. `heads`: request heads that need no reading any more (`slate_protocol`)."""

    def __init__(self, services: Services) -> None:
        self.answers = SlateAnswers(services)
        self.tally = RequestTally(PATH, services.timer)
        self.timer = services.timer
        self.visits = Visits(services.ring, services.access_log)
        self.new_id = services.new_id
        self.heads: dict[bytes, Head] = {}
        self._wall_micros = services.wall_micros
        self._placements = services.placements
        self._plain = plain_placements(services.placements)
        self._max_body_bytes = services.settings.max_body_bytes
        self._reader: Any = None
        if parts.questions is not None:
            self._reader = parts.questions.QuestionReader(
                Question, RECOMMENDATIONS, self._plain, ruled_placements(services.placements), DEFAULT, self.new_id,
                MAX_RESULTS, MAX_EXCLUDED_ITEMS,
            )  # fmt: skip

    def remember_head(self, said: bytes, head: Head, visit: Visit) -> None:
        """A head that came whole, of a request that is answered here. One with an id or a trace of its own does not
        come again."""
        if head.given_id is None and visit.trace is None:
            if len(self.heads) >= MAX_HEADS:
                self.heads.clear()
            self.heads[said] = head._replace(visit=visit)

    def question(self, body: bytes) -> Question | None:
        """The question in a body; None when the application has to look at it."""
        if len(body) > self._max_body_bytes:
            return None
        now_micros = self._wall_micros()
        if self._reader is not None:
            question: Question | None = self._reader.read(body, now_micros)
            if question is not None:
                return question
        try:
            document: Any = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        if type(document) is not dict:
            return None
        return read_question(document, now_micros, self._placements, self._plain, self.new_id)


def read_head(headers: Sequence[tuple[bytes, bytes]]) -> Head | None:
    """What the headers say; None when the application has to look at them (another origin's page, a coded body)."""
    length, given = -1, None
    for name, value in headers:
        if name == b"content-length":
            length = int(value) if value.isdigit() else -1
        elif name == b"origin" or name == b"content-encoding" or name == b"transfer-encoding":
            return None
        elif name == b"x-request-id" and given is None and GIVEN_ID.fullmatch(value):
            given = value.decode("ascii")
    return Head(length, given)


def plain_placements(placements: Placements) -> Mapping[str, int | None]:
    """Placement -> how many items it shows when nobody says; None for one with a policy. Names that are not in it are
    like `default`."""
    return {
        name: None if placements.policy(name, seed="") is not None else placement.num_results
        for name, placement in placements.by_name.items()
    }


def ruled_placements(placements: Placements) -> Mapping[str, Placement]:
    """Those with a policy, by name."""
    plain = plain_placements(placements)
    return {name: placement for name, placement in placements.by_name.items() if plain[name] is None}


def read_question(
    document: dict[str, Any],
    now_micros: int,
    placements: Placements,
    plain: Mapping[str, int | None],
    new_id: Callable[[], str],
) -> Question | None:
    """The question of a decoded body; None when it is not common. Fields mean what `schemas` says they do.

    plain  `plain_placements` of the placements
    """
    user_id = anonymous_id = session_id = category = region = personalize = None
    placement, num_results, may_store = DEFAULT, None, True
    events: Any = ()
    items: Any = ()
    exclude_item_ids = _NOBODY
    asks: dict[str, Any] = {}
    for name, value in document.items():
        if name == "user_id":
            if value is not None and not is_id(value):
                return None
            user_id = value
        elif name == "session_id":
            if value is not None and not is_id(value):
                return None
            session_id = value
        elif name == "num_results":
            if value is not None and (type(value) is not int or not 1 <= value <= MAX_RESULTS):
                return None
            num_results = value
        elif name == "anonymous_id":
            if value is not None and not is_id(value):
                return None
            anonymous_id = value
        elif name == "placement":
            if not is_id(value):
                return None
            placement = value
        elif name in _POLICY:
            if value is None:
                continue
            said = _asked_of_policy(name, value)
            if said is None:
                return None
            asks[name] = said
        elif name == "recent_events":
            if type(value) is not list or len(value) > MAX_RECENT_EVENTS:
                return None
            events = value
        elif name == "session_items":
            if type(value) is not list or len(value) > MAX_RECENT_EVENTS or not all(map(is_id, value)):
                return None
            items = value
        elif name == "exclude_item_ids":
            if type(value) is not list or len(value) > MAX_EXCLUDED_ITEMS or not all(map(is_id, value)):
                return None
            exclude_item_ids = frozenset(value)
        elif name == "context":
            if type(value) is not dict or not value.keys() <= _CONTEXT:
                return None
            category, region = value.get("category"), value.get("region")
            if not (category is None or type(category) is str) or not (region is None or type(region) is str):
                return None
        elif name == "consent":
            if type(value) is not dict or not value.keys() <= _CONSENT:
                return None
            for word in value.values():
                if word is not None and type(word) is not bool:
                    return None
            personalize, may_store = value.get("personalize"), value.get("store") is not False
        elif name != "explain" or value is not False:
            return None
    usual = plain.get(placement, plain[DEFAULT])
    recent: Sequence[SessionEvent] = ()
    if events or items:
        found = _recent_events(events, items, session_hash(session_id), now_micros)
        if found is None:
            return None
        recent = found
    recommendation_id, policy = new_id(), None
    if usual is None or asks:
        policy = placements.policy(placement, seed=recommendation_id, **asks)
        usual = placements.find(placement)[0].num_results
    slate = SlateRequest(
        num_results or usual, user_id, anonymous_id, session_id, category, region, recent, exclude_item_ids,
        personalize, policy=policy,
    )  # fmt: skip
    return Question(slate, recommendation_id, placement, may_store, now_micros)


_CONTEXT = frozenset({"category", "region"})
_CONSENT = frozenset({"personalize", "store", "train", "share"})
_SHARES = {"diversity": 1.0, "exploration": MAX_EXPLORATION, "min_relevance": 1.0}
_POLICY = frozenset({"filter", "item_ids", *_SHARES})
_EVENT = frozenset({"event_type", "item_id"})
_TIMED_EVENT = frozenset({"event_type", "item_id", "timestamp"})


def is_id(value: Any) -> bool:
    """Whether `schemas.Id` takes it."""
    return (
        type(value) is str
        and len(value) > 0
        and (len(value) <= _MAX_PLAIN_ID or len(value.encode("utf-8")) <= MAX_ID_BYTES)
        and "\x00" not in value
    )


def _asked_of_policy(name: str, value: Any) -> Any:
    """The value as `Placements.policy` takes it; None when the application has to look at it."""
    if name == "filter":
        try:
            return value if type(value) is str and parse_filter(value) else None
        except FilterError:
            return None
    if name == "item_ids":
        fits = type(value) is list and 1 <= len(value) <= MAX_ASKED_ITEMS and all(map(is_id, value))
        return tuple(value) if fits else None
    return float(value) if type(value) in (int, float) and 0 <= value <= _SHARES[name] else None


def _recent_events(events: list[Any], items: list[str], hashed: int, now_micros: int) -> list[SessionEvent] | None:
    recent = []
    for event in events:
        if type(event) is not dict:
            return None
        names = event.keys()
        moment = now_micros
        if names == _TIMED_EVENT:
            said = event["timestamp"]
            if said is not None:
                if type(said) not in (str, int, float):
                    return None
                try:
                    moment = to_micros(parse_timestamp(said))
                except DataError:
                    return None
        elif names != _EVENT:
            return None
        kind, item_id = event["event_type"], event["item_id"]
        if type(kind) is not str or not is_id(item_id):
            return None
        canonical = kind if kind in EVENT_TYPES else EVENT_TYPE_ALIASES.get(kind)
        if canonical is None:
            return None
        recent.append(SessionEvent(moment, str(canonical), hashed, item_id))
    recent += [SessionEvent(now_micros, "view_item", hashed, item_id) for item_id in items]
    return recent
