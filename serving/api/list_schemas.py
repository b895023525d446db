"""What the routes take that give a list of their own kind, a given list in order, a page, or many slates at once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.api import answer_examples as answers
from serving.api.schemas import (
    MAX_EXCLUDED_ITEMS,
    MAX_RECENT_EVENTS,
    MAX_RESULTS,
    Consent,
    Context,
    FilterText,
    Id,
    Problem,
    RecentEvent,
    RecommendationRequest,
    RecommendationResponse,
)

MAX_RANKED_ITEMS = 500
MAX_CART_ITEMS = 50
MAX_PLACEMENTS = 10
MAX_BATCH = 100


Size = Annotated[
    int | None,
    Field(ge=1, le=MAX_RESULTS, description="default: what the placement says, 10 where it says nothing"),
]


def _shown(*examples: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": list(examples)})


class AskingRequest(BaseModel):
    """Who asks, and where; what every list takes."""

    user_id: Id | None = None
    anonymous_id: Id | None = Field(default=None, description="used when there is no user_id")
    session_id: Id | None = Field(default=None, description="as in /v1/recommendations")
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
    filter: FilterText | None = Field(
        default=None, description="which items may be shown (the filter language); besides the placement's own"
    )
    consent: Consent = Consent()
    explain: bool = Field(default=False, description="add the trace")

    model_config = ConfigDict(extra="forbid", strict=True)


class SimilarRequest(AskingRequest):
    """Items like one item. Names somebody only so that what they dismissed leaves, and for the placement's rules."""

    placement: Id = "similar"
    item_id: Id
    num_results: Size = None

    model_config = _shown({"item_id": "i7", "num_results": 5}, {"item_id": "i7", "user_id": "u1"})


class TrendingRequest(AskingRequest):
    """What most people touch now. Names somebody only so that what they bought or dismissed leaves."""

    placement: Id = "trending"
    num_results: Size = None
    window: Literal["5m", "1h", "1d"] = Field(default="1h", description="how far back votes count")

    model_config = _shown(
        {"window": "1h", "num_results": 5}, {"window": "1d", "context": {"category": "Home > Kitchen", "region": "DE"}}
    )


class NewRequest(AskingRequest):
    """What is new in the shop; for a person first where they look most."""

    placement: Id = "new"
    num_results: Size = None
    max_age_days: float = Field(
        default=30.0, gt=0, le=3650, description="counted back from the end of the version's data; older ones follow"
    )

    model_config = _shown({"num_results": 5}, {"user_id": "u1", "max_age_days": 14, "context": {"category": "Garden"}})


class ContinueRequest(AskingRequest):
    """What the session, or the last one before it, left open: in the cart, wished for, looked at, not bought."""

    placement: Id = "continue"
    num_results: Size = None

    model_config = _shown({"user_id": "u1", "num_results": 5}, {"anonymous_id": "a1", "session_id": "s42"})


class BuyAgainRequest(AskingRequest):
    """The person's own purchases, by how often, how lately, and whether they are due."""

    placement: Id = "buy_again"
    num_results: Size = None

    model_config = _shown({"user_id": "u1", "num_results": 5})


class BoughtTogetherRequest(AskingRequest):
    """What is bought in the same baskets as an item, as several, or as what lies in the person's cart."""

    placement: Id = "bought_together"
    num_results: Size = None
    item_id: Id | None = None
    item_ids: list[Id] = Field(
        default_factory=list, max_length=MAX_CART_ITEMS, description="several: a cart. With none, the cart we know of"
    )

    model_config = _shown({"item_id": "i7", "num_results": 5}, {"item_ids": ["i7", "i9"]}, {"user_id": "u1"})

    @model_validator(mode="after")
    def _one_form(self) -> BoughtTogetherRequest:
        if self.item_id is not None and self.item_ids:
            raise ValueError("either item_id or item_ids, not both")
        if self.item_id is None and not self.item_ids and self.user_id is None and self.anonymous_id is None:
            raise ValueError("an item_id, item_ids, or somebody whose cart we know")
        return self


class RankRequest(AskingRequest):
    """Items that the caller has found, such as search results, to be put in this person's order."""

    placement: Id = "rank"
    item_ids: list[Id] = Field(min_length=1, max_length=MAX_RANKED_ITEMS, description="in the caller's order")
    num_results: int | None = Field(
        default=None, ge=1, le=MAX_RANKED_ITEMS, description="answer with so many only; default: all"
    )

    model_config = _shown(
        {"user_id": "u1", "item_ids": ["i7", "i9", "i11"]},
        {"anonymous_id": "a1", "session_items": ["i3"], "item_ids": ["i7", "i9"], "num_results": 1, "explain": True},
    )


class PagePlacement(BaseModel):
    """One place of a page."""

    kind: Literal[
        "recommendations", "similar", "bought_together", "trending", "new", "continue", "buy_again"
    ] = Field(default="recommendations", description="what fills it")  # fmt: skip
    placement: Id | None = Field(default=None, description="its name, whose rules hold here; default: the kind")
    num_results: int = Field(default=10, ge=1, le=MAX_RESULTS)
    item_id: Id | None = Field(default=None, description="of similar and bought_together; default: that of the page")
    window: Literal["5m", "1h", "1d"] = Field(default="1h", description="of trending")
    max_age_days: float = Field(default=30.0, gt=0, le=3650, description="of new")

    model_config = ConfigDict(extra="forbid", strict=True)


class PageRequest(AskingRequest):
    """Several placements at once. No item is there twice: it belongs to the first placement that has it."""

    item_id: Id | None = Field(default=None, description="the item that the page is about")
    placements: list[PagePlacement] = Field(
        default_factory=list,
        max_length=MAX_PLACEMENTS,
        description="from the most important to the least; default: those of the page's preset",
    )

    model_config = _shown(
        {"user_id": "u1", "session_id": "s42"},
        {
            "user_id": "u1",
            "placements": [
                {"kind": "continue", "num_results": 4},
                {"kind": "recommendations", "placement": "home.for_you", "num_results": 8},
                {"kind": "trending", "window": "1d"},
            ],
        },
    )


class BatchRequest(BaseModel):
    """Many slates in one call, each as POST /v1/recommendations takes it."""

    requests: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_BATCH, description="RecommendationRequest each")

    model_config = _shown({"requests": [{"user_id": "u1", "num_results": 5}, {"user_id": "u2", "placement": "email"}]})


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)


class TrendOut(_Given):
    """What the votes were, and whose. `votes` has the items that trend; `is_regional`: `scope` is not `all`."""

    window: str
    votes: dict[str, int] = Field(description="item id -> people who touched it, of the items that trend")
    error: int = Field(description="no count is short by more than this")
    is_regional: bool
    scope: Literal["region", "region_list", "all"] = Field(
        description="whose votes: of the region; of all regions, for the items of the region's popular list; of all"
    )
    region_votes: int | None = Field(
        description="votes of the region in the window, for the items that the question is about; null: none was named"
    )
    region: str | None = Field(
        description="that of the request; when it names none, that of the user, who allows to be known; null: neither"
    )
    is_users_region: bool = Field(description="the shop gave it to the user (`PUT /v1/users/{id}`)")
    least_region_votes: int | None = Field(description="with fewer of them the answer goes by those of all regions")


class TrendingResponse(RecommendationResponse):
    """A slate, and the votes behind it."""

    trend: TrendOut

    model_config = _shown(answers.TRENDING)


class BoughtTogetherResponse(RecommendationResponse):
    """A slate, and the items it goes with."""

    item_ids: list[str]
    unknown_item_ids: list[str] = Field(description="asked for, and not in the served version")

    model_config = _shown(answers.BOUGHT_TOGETHER)


class RankResponse(RecommendationResponse):
    """The given items in order. Those that the version does not know are at the end, with the source `given`."""

    unknown_item_ids: list[str]

    model_config = _shown(answers.RANK)


class PageResponse(_Given):
    """One answer for each placement, in order."""

    page: str
    placements: list[RecommendationResponse]
    model_version: str
    took_ms: float
    degraded: bool
    online_reads: int = Field(description="reads of the online store for the whole page")

    model_config = _shown(answers.PAGE)


class BatchEntry(_Given):
    """What became of one request, by its position."""

    index: int
    status: int
    answer: RecommendationResponse | None = None
    problem: Problem | None = None


class BatchResponse(_Given):
    results: list[BatchEntry]

    model_config = _shown(answers.BATCH)


LIST_MODELS: tuple[type[BaseModel], ...] = (
    SimilarRequest, TrendingRequest, NewRequest, ContinueRequest, BuyAgainRequest, BoughtTogetherRequest, RankRequest,
    PageRequest, BatchRequest, RecommendationRequest,
)  # fmt: skip
