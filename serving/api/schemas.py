"""What the API takes and gives. Unknown fields are refused, so a typing error is not a silent default."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.events import EVENT_TYPE_ALIASES, EVENT_TYPES, MAX_ID_BYTES
from feature_repo.contracts.filter_language import parse_filter
from feature_repo.contracts.times import parse_timestamp, to_micros
from serving.api.answer_examples import EXPLAINED_ITEM, SLATE
from serving.api.policies import check_attribute
from serving.pipeline.placements import MAX_RESULTS as MAX_RESULTS
from serving.pipeline.policy import MAX_EXPLORATION

MAX_ASKED_ITEMS = 500
MAX_RECENT_EVENTS = 50
MAX_EXCLUDED_ITEMS = 1000
_MAX_PLAIN_ID = MAX_ID_BYTES // 4  # so many characters have few enough bytes, whichever they are


def _check_id(value: str) -> str:
    if 0 < len(value) <= _MAX_PLAIN_ID and "\x00" not in value:
        return value
    if not value or "\x00" in value or len(value.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise ValueError(f"an id is a text of 1 to {MAX_ID_BYTES} bytes of UTF-8 without NUL")
    return value


def _check_event_type(value: str) -> str:
    canonical = value if value in EVENT_TYPES else EVENT_TYPE_ALIASES.get(value)
    if canonical is None:
        raise ValueError(f"an event type such as view_item or add_to_cart{nearest(value, EVENT_TYPES)}")
    return str(canonical)


def _check_filter(value: str) -> str:
    """Lets FilterError through, which knows the place."""
    parse_filter(value)
    return value


def _check_moment(value: str | int | float) -> int:
    try:
        return to_micros(parse_timestamp(value))
    except DataError as error:
        raise ValueError(str(error)) from error


Id = Annotated[
    str, AfterValidator(_check_id), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES})
]
FilterText = Annotated[str, AfterValidator(_check_filter), Field(examples=['price < 50 and not tag == "adult"'])]
AttributeName = Annotated[str, AfterValidator(check_attribute)]
EventTypeName = Annotated[str, AfterValidator(_check_event_type)]
Moment = Annotated[
    str | int | float,
    AfterValidator(_check_moment),
    WithJsonSchema({"type": "string", "format": "date-time", "description": "RFC 3339; without offset it is UTC"}),
]


class _Taken(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Consent(_Taken):
    """What the person allows. A purpose that is not mentioned is decided by what is stored about them."""

    personalize: bool | None = Field(
        default=None, description="false: only non-personal rungs answer, nothing personal is read"
    )
    store: bool | None = Field(
        default=None, description="false: what was answered is logged without saying to whom, or what they did"
    )
    train: bool | None = Field(default=None, description="taken for symmetry with events; a request trains nothing")
    share: bool | None = None


class Context(_Taken):
    """Where the slate will be shown."""

    category: str | None = Field(
        default=None, description='a category path such as "Home > Kitchen": its popular list is a rung'
    )
    region: str | None = Field(default=None, description="a region such as DE: its popular list is a rung")


class RecentEvent(_Taken):
    """Something the person just did that may not have reached the event log yet."""

    event_type: EventTypeName
    item_id: Id
    timestamp: Moment | None = Field(default=None, description="default: the instant of the request")


class RecommendationRequest(_Taken):
    """Who asks, where, and for how much. A request that names nobody gets what is popular."""

    user_id: Id | None = None
    anonymous_id: Id | None = Field(default=None, description="used when there is no user_id")
    session_id: Id | None = Field(
        default=None,
        description="only events of this session adjust the slate; without it, the latest session if it is still fresh",
    )
    placement: Id = Field(
        default="default", description="the rules of the slate; a name that is no placement stands for `default`"
    )
    num_results: int | None = Field(
        default=None, ge=1, le=MAX_RESULTS, description="default: what the placement says, 10 where it says nothing"
    )
    context: Context = Context()
    recent_events: list[RecentEvent] = Field(
        default_factory=list, max_length=MAX_RECENT_EVENTS, description="oldest first; they join the session's events"
    )
    session_items: list[Id] = Field(
        default_factory=list,
        max_length=MAX_RECENT_EVENTS,
        description="short for recent_events of type view_item, oldest first",
    )
    exclude_item_ids: list[Id] = Field(default_factory=list, max_length=MAX_EXCLUDED_ITEMS)
    item_ids: list[Id] | None = Field(
        default=None, min_length=1, max_length=MAX_ASKED_ITEMS, description="only these may be in the slate"
    )
    filter: FilterText | None = Field(
        default=None,
        description="which items may be in the slate (the filter language); besides the placement's own",
    )
    diversity: float | None = Field(
        default=None, ge=0, le=1, description="0: by relevance alone, 1: by unlikeness alone; default: the placement's"
    )
    exploration: float | None = Field(
        default=None, ge=0, le=MAX_EXPLORATION, description="the chance of each place to be tried out on something else"
    )
    min_relevance: float | None = Field(default=None, ge=0, le=1, description="items that score lower are left out")
    include: list[AttributeName] = Field(
        default_factory=list, max_length=50, description="the attributes of each item; default: title, category, price"
    )
    dry_run: bool = Field(default=False, description="no decision is logged: for previews and tests")
    consent: Consent = Consent()
    explain: bool = Field(
        default=False,
        description="add the trace (stages with their times, rungs, filters, session), and to each item its sources",
    )

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"user_id": "u1", "num_results": 10},
                {
                    "user_id": "u1",
                    "session_id": "s42",
                    "num_results": 5,
                    "context": {"category": "Home > Kitchen", "region": "DE"},
                    "recent_events": [{"event_type": "add_to_cart", "item_id": "i7"}],
                    "exclude_item_ids": ["i9"],
                    "explain": True,
                },
            ]
        },
    )


class _Given(BaseModel):
    """Answers are written by hand (`serving.api.rendering`); these models declare them, and a test holds both equal."""

    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)


class ReasonOut(_Given):
    """Why an item is there. `item_id` and `title` name the past item that spoke for it; null when none did."""

    item_id: str | None
    title: str | None
    text: str = Field(examples=["because you viewed White Hanging Heart"])


class SourceShareOut(_Given):
    """One source of an item."""

    name: str = Field(
        description="a part of the night's model (als, item_knn, graph_filter, content, sequential_rules, popularity "
        "and so on; other: those beyond the first three), or list where the night did not tell its parts; session: "
        "what was done just now; a rung (segment, category, region, popularity, static, trending, new); exploration",
        examples=["als", "session", "exploration"],
    )
    share: float = Field(description="in (0, 1], with four places; those of an item sum to 1", examples=[0.62])


class ItemOut(_Given):
    item_id: str
    score: float = Field(description="in [0, 1]; comparable within one answer only")
    rank: int = Field(description="from 1")
    source: str = Field(examples=["als", "item_knn", "session", "popularity", "trending", "given"])
    reasons: list[ReasonOut]
    attributes: dict[str, Any] = Field(
        description="title, category and price, or those that `include` names; null where the item has none",
        examples=[{"title": "Blue Mug", "category": "Home > Kitchen", "price": 4.5}],
    )
    sources: list[SourceShareOut] | None = Field(
        default=None,
        description="only with explain: what each source has of the item's relevance (base + session_weight x vote), "
        "before any ranker and rule, largest first",
    )
    explanation: str | None = Field(default=None, description="only with explain: sources and reasons in a sentence")

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [EXPLAINED_ITEM]})


class Freshness(_Given):
    """Ages in seconds at the instant of the answer; null when there is no such thing."""

    model: float | None = Field(description="since the end of the data interval the model was trained on")
    data: float | None = Field(description="since the last event that the model saw")
    candidates: float | None = Field(description="since the version was published")
    features: float | None = Field(description="since the event time of this user's features")
    session: float | None = Field(description="since the last event of the session that was used")
    catalogue: float | None = Field(
        description="since the log last confirmed that every change of items and users is in; null: not yet"
    )


class RankerReport(_Given):
    """What the request-time ranker did. Where it could not do what it should have, the answer is degraded as well."""

    applied: bool
    reason: str | None = Field(
        description="why the order is that of the scores: not_published, no_consent, no_user, no_list, asked_items; "
        "ranker_features_unavailable, ranker_features_missing, ranker_features_stale, ranker_features_damaged"
    )
    ranker: str | None = Field(description="8 hex digits of the version's ranker; null: it has none")


class RecommendationResponse(_Given):
    """A slate. Send `recommendation_id` back on events, so that clicks find the answer they came from."""

    recommendation_id: str
    placement: str
    items: list[ItemOut]
    model_version: str = Field(description='the published version that answered; "none" before the first')
    took_ms: float
    fallback_level: str = Field(
        description="the best rung that answered: personal, segment, category, region, popular, static; before the "
        "first version trending, new; session or none when no rung had an eligible item; of other lists first their "
        "own name (similar, bought_together, trending, new, older, continue, buy_again), of /v1/rank given when "
        "nothing is known"
    )
    fallback_reason: str | None = Field(
        description="why it is not the first rung: consent, no_user, unknown_user, no_eligible_candidates, "
        "no_purchases, nothing_begun, unknown_item, no_published_version, or what made the personal records unavailable"
    )
    degraded: bool
    degraded_reasons: list[str] | None = Field(default=None, description="only when degraded")
    freshness: Freshness
    experiments: list[Any] = Field(description="experiments this answer took part in; none yet")
    filtered: dict[str, int] | None = Field(
        default=None, description="only when fewer items than asked for, or with explain: items taken out, by filter"
    )
    trace: dict[str, Any] | None = Field(default=None, description="only with explain")
    ranker: RankerReport | None = Field(default=None, description="only where the placement asks for a ranker")
    warnings: list[str] | None = Field(
        default=None, description="only of a placement whose name looks misspelt: the nearest name"
    )

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [SLATE]})


class EventResult(_Given):
    """What became of one event of the request, by its position."""

    index: int
    event_id: str | None
    status: str = Field(description="accepted, duplicate or quarantined")
    stored: bool | None = Field(default=None, description="false: the person said no to storing, it was only counted")
    reason: str | None = Field(default=None, description="only when quarantined: a stable word")
    field: str | None = Field(default=None, description="only when quarantined: the field that broke the rule")
    detail: str | None = Field(default=None, description="only when quarantined: in words")


class EventsResponse(_Given):
    results: list[EventResult]


class ChangeResult(_Given):
    """What became of one change of the request, by its position."""

    index: int
    item_id: str | None = Field(default=None, description="of items")
    user_id: str | None = Field(default=None, description="of users")
    status: str = Field(description="accepted, stale (all it says is older than what is known) or rejected")
    stale_fields: list[str] | None = Field(
        default=None, description="only when accepted in part: fields of which something newer is known"
    )
    reason: str | None = Field(default=None, description="only when rejected: a stable word")
    field: str | None = Field(default=None, description="only when rejected: the field that broke the rule")
    detail: str | None = Field(default=None, description="only when rejected: in words")


class ChangesResponse(_Given):
    results: list[ChangeResult]


class SegmentResponse(_Given):
    """What Segment's and RudderStack's clients look for, and what became of each message."""

    success: bool
    results: list[EventResult]


class FieldProblem(_Given):
    field: str
    seen: Any
    expected: str


class Problem(_Given):
    """RFC 9457. `request_id` is also in the X-Request-Id header; name it when you ask us about an error."""

    type: str
    title: str
    status: int
    detail: str | None = None
    request_id: str
    field: str | None = None
    errors: list[FieldProblem] | None = None
    position: int | None = Field(default=None, description="only when a filter cannot be read: the place, from 0")
    limit: str | None = Field(default=None, description="only when a limit was broken: its name")
    seen: int | None = Field(default=None, description="only with limit: how much came, or as much as was read")
    allowed: int | None = Field(default=None, description="only with limit: how much may come")
