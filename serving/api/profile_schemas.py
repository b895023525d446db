"""What a profile and a decision look like."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from serving.api import answer_examples as answers
from serving.api.schemas import Freshness


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)


class ConsentOut(_Given):
    """Whether we may use what we know, and whose word decided."""

    personalize: bool
    store: bool
    decided_by: str = Field(
        description="users_api (the newest word through PATCH /v1/users), event, night (known to the model that "
        "serves), unknown (the store cannot be read), or nobody: silence is a yes"
    )
    said_at: str | None = Field(description="of a word that came with an event")
    is_bot: bool = Field(description="the subject behaves like a bot today and gets what everybody gets")


class CategoryShare(_Given):
    category: str
    share: float


class SegmentOut(_Given):
    category: str | None
    why: str


class TopCategories(_Given):
    lately: list[CategoryShare]
    by_the_night: list[CategoryShare]
    why: str


class SessionEventOut(_Given):
    event_type: str
    item_id: str
    title: str | None
    age_seconds: float


class SessionOut(_Given):
    """The running session, newest first, and what it says (infra/docs/session-signals.md)."""

    events: list[SessionEventOut]
    signals: dict[str, float | int | str | None]


class ItemName(_Given):
    item_id: str
    title: str | None


class CartItem(ItemName):
    quantity: int


class PurchaseOut(ItemName):
    visits: int
    last_at: str
    every_days: float
    why: str


class CandidateOut(ItemName):
    score: float
    because_of: list[str] = Field(description="past items that spoke for it")


class FeatureOut(_Given):
    """One nightly feature (infra/docs/features.md)."""

    name: str
    value: float | int | str
    unit: str
    window_days: int | None
    why: str


class FeaturesOut(_Given):
    """What the night counted of this user. `as_of` null: it knows nobody of this name."""

    as_of: str | None
    values: list[FeatureOut]


class ListOut(_Given):
    """The person's list of the night."""

    count: int
    head: list[CandidateOut]
    why: str


class Beliefs(_Given):
    """At most ten of each, but for the features."""

    segment: SegmentOut
    top_categories: TopCategories
    session: SessionOut
    cart: list[CartItem]
    dismissed: list[ItemName]
    purchases: list[PurchaseOut]
    list: ListOut
    features: FeaturesOut


class ProfileResponse(_Given):
    """What we believe of somebody, and why."""

    user_id: str
    known: bool = Field(description="false: we have nothing under this name, which is never an error")
    consent: ConsentOut
    model_version: str
    model: str
    freshness: Freshness
    withheld: str | None = Field(description="why there are no beliefs: consent, bot, or what could not be read")
    beliefs: Beliefs | None
    degraded: bool
    degraded_reasons: list[str]

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [answers.PROFILE]})


class DecisionOut(_Given):
    """A decision as it was logged (infra/docs/decisions.md)."""

    recommendation_id: str
    decided_at: str
    kind: str
    placement: str
    subject: str | None
    model_version: str
    fallback_level: str
    fallback_reason: str | None
    degraded_reasons: list[str]
    item_ids: list[str]
    scores: list[float]
    sources: list[str]
    rule_ids: list[list[str]]
    propensities: list[float]
    inputs: dict[str, Any]


class Difference(_Given):
    """A place at which the two slates differ; null beyond the end of one."""

    rank: int
    decided: str | None
    replayed: str | None
    why: str | None = Field(description="as far as it is known: the decided item may not be shown now")


class ReplayOut(_Given):
    """The slate made again. `why_not` has every reason why that cannot be done any more; then there are no items."""

    is_possible: bool
    why_not: list[str]
    is_same: bool | None
    item_ids: list[str]
    scores: list[float]
    differences: list[Difference]


class DecisionResponse(_Given):
    decision: DecisionOut
    replay: ReplayOut

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [answers.DECISION]})
