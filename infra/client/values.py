"""What the API answers, typed. Fields that a newer API adds are in `raw`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an item is there. `item_id` and `title` name the past item that spoke for it, or are None."""

    text: str
    item_id: str | None = None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class RecommendedItem:
    """One item of a slate; `rank` from 1, `score` in [0, 1] and comparable within one slate only.

    `sources` (name -> share of the item's relevance, together 1, largest first) and `explanation` are there with
    `explain`; else they are empty and None.
    """

    item_id: str
    rank: int
    score: float
    source: str
    reasons: Sequence[Reason]
    attributes: Mapping[str, Any]
    sources: Mapping[str, float] = field(default_factory=dict)
    explanation: str | None = None


@dataclass(frozen=True, slots=True)
class Slate:
    """An answer. `recommendation_id` goes back on events. `freshness` has ages in seconds, None where unknown."""

    recommendation_id: str
    placement: str
    items: Sequence[RecommendedItem]
    model_version: str
    fallback_level: str
    fallback_reason: str | None
    degraded: bool
    degraded_reasons: Sequence[str]
    freshness: Mapping[str, float | None]
    took_ms: float
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def item_ids(self) -> list[str]:
        """Best first."""
        return [item.item_id for item in self.items]


@dataclass(frozen=True, slots=True)
class Page:
    """Several placements, in order; no item is in two of them."""

    page: str
    placements: Sequence[Slate]
    model_version: str
    degraded: bool
    took_ms: float
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class EventResult:
    """What became of one event: `accepted`, `duplicate` (it was accepted before) or `quarantined`, with the reason."""

    event_id: str | None
    status: str
    is_stored: bool = True
    reason: str | None = None
    field: str | None = None
    detail: str | None = None

    @property
    def is_taken(self) -> bool:
        """Accepted now, or by an earlier attempt."""
        return self.status in ("accepted", "duplicate")


def read_slate(document: Mapping[str, Any]) -> Slate:
    """Raises KeyError or TypeError for what is no slate."""
    items = [
        RecommendedItem(
            one["item_id"],
            one["rank"],
            one["score"],
            one["source"],
            tuple(Reason(reason["text"], reason["item_id"], reason["title"]) for reason in one["reasons"]),
            one["attributes"],
            {source["name"]: source["share"] for source in one.get("sources") or ()},
            one.get("explanation"),
        )
        for one in document["items"]
    ]
    return Slate(
        document["recommendation_id"],
        document["placement"],
        tuple(items),
        document["model_version"],
        document["fallback_level"],
        document["fallback_reason"],
        document["degraded"],
        tuple(document.get("degraded_reasons") or ()),
        document["freshness"],
        document["took_ms"],
        document,
    )


def read_page(document: Mapping[str, Any]) -> Page:
    """Raises KeyError or TypeError for what is no page."""
    return Page(
        document["page"],
        tuple(read_slate(one) for one in document["placements"]),
        document["model_version"],
        document["degraded"],
        document["took_ms"],
        document,
    )


def read_results(document: Mapping[str, Any]) -> list[EventResult]:
    """In the order of the events. Raises KeyError or TypeError for what is no answer to events."""
    return [
        EventResult(
            one["event_id"],
            one["status"],
            one.get("stored", True),
            one.get("reason"),
            one.get("field"),
            one.get("detail"),
        )
        for one in document["results"]
    ]
