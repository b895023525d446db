"""Answers as they look, for the OpenAPI document; a test holds each to its model."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]

_VERSION = "2024-03-08-58c3458d"
_FRESHNESS = {
    "model": 46800.0, "data": 54000.0, "candidates": 36000.0, "features": None, "session": 60.0, "catalogue": 0.2,
}  # fmt: skip


def _item(
    rank: int, item_id: str, title: str, score: float, source: str, text: str, past: str | None
) -> dict[str, Any]:
    return {
        "item_id": item_id,
        "score": score,
        "rank": rank,
        "source": source,
        "reasons": [{"item_id": past, "title": past and past.capitalize(), "text": text}],
        "attributes": {"title": title, "category": "Home > Tea", "price": 4.5},
    }


def _slate(placement: str, level: str, *items: dict[str, Any], **more: Any) -> Document:
    return {
        "recommendation_id": "018e1e3c2f80a1b2c3d4e5f601234567",
        "placement": placement,
        "items": list(items),
        "model_version": _VERSION,
        "took_ms": 0.41,
        "fallback_level": level,
        "fallback_reason": None,
        "degraded": False,
        "freshness": _FRESHNESS,
        "experiments": [],
        **more,
    }


SLATE: Document = _slate(
    "home", "personal", _item(1, "cup", "Tea Cup", 0.75, "session", "because you viewed Mug", "mug"),
    _item(2, "tin", "Tea Tin", 0.25, "als", "because of your interest in Pot", "pot"),
)  # fmt: skip
EXPLAINED_ITEM: Document = {
    **_item(1, "tin", "Tea Tin", 0.75, "als", "because of your interest in Pot", "pot"),
    "sources": [{"name": "als", "share": 0.48}, {"name": "session", "share": 0.4}, {"name": "item_knn", "share": 0.12}],
    "explanation": "Liked by people with a taste like yours (48 %), what goes with what you do right now (40 %), "
    "like items that you chose (12 %), because of your interest in Pot.",
}
TRENDING: Document = _slate(
    "trending", "trending", _item(1, "cup", "Tea Cup", 1.0, "trending", "trending in the last hour", None),
    trend={"window": "1h", "votes": {"cup": 3}, "error": 0, "is_regional": False, "scope": "all",
           "region_votes": None, "region": None, "is_users_region": False, "least_region_votes": None},
)  # fmt: skip
BOUGHT_TOGETHER: Document = _slate(
    "bought_together", "bought_together",
    _item(1, "cup", "Tea Cup", 1.0, "together", "often bought together with Pot", "pot"),
    item_ids=["pot"], unknown_item_ids=[],
)  # fmt: skip
RANK: Document = _slate(
    "search", "personal",
    {**_item(1, "tin", "Tea Tin", 1.0, "als", "", None), "reasons": []},
    {"item_id": "zzz", "score": 0.0, "rank": 2, "source": "given", "reasons": [],
     "attributes": {"title": None, "category": None, "price": None}},
    unknown_item_ids=["zzz"],
)  # fmt: skip
PAGE: Document = {
    "placements": [SLATE],
    "page": "home",
    "model_version": _VERSION,
    "took_ms": 1.2,
    "degraded": False,
    "online_reads": 1,
}
BATCH: Document = {
    "results": [
        {"index": 0, "status": 200, "answer": SLATE},
        {
            "index": 1,
            "status": 422,
            "problem": {
                "type": "urn:nightjar:problem:invalid-request",
                "title": "The request is not valid",
                "status": 422,
                "detail": "num: no such field; did you mean 'num_results'?",
                "request_id": "018e1e3c2f80ffff",
                "errors": [{"field": "num", "seen": "num", "expected": "no such field; did you mean 'num_results'?"}],
            },
        },
    ]
}
PROFILE: Document = {
    "user_id": "u1",
    "known": True,
    "consent": {"personalize": True, "store": True, "decided_by": "nobody", "said_at": None, "is_bot": False},
    "model_version": _VERSION,
    "model": "als",
    "freshness": _FRESHNESS,
    "withheld": None,
    "beliefs": {
        "segment": {"category": "Home > Tea", "why": "the category counted most often in 90 days"},
        "top_categories": {
            "lately": [{"category": "Home > Tea", "share": 0.75}, {"category": "Garden", "share": 0.25}],
            "by_the_night": [{"category": "Home > Tea", "share": 1.0}],
            "why": "lately: what was touched; by the night: the categories of the head of the list",
        },
        "session": {
            "events": [{"event_type": "view_item", "item_id": "mug", "title": "Mug", "age_seconds": 60.0}],
            "signals": {"session_event_count": 1, "top_category": "Home > Tea"},
        },
        "cart": [{"item_id": "cup", "title": "Tea Cup", "quantity": 2}],
        "dismissed": [],
        "purchases": [
            {"item_id": "tin", "title": "Tea Tin", "visits": 4, "last_at": "2024-02-27T13:00:00Z", "every_days": 10.0,
             "why": "you bought it 4 times; you buy it about every 10 days"},
        ],
        "list": {
            "count": 100,
            "head": [{"item_id": "tin", "title": "Tea Tin", "score": 4.0, "because_of": ["pot"]}],
            "why": "made by als from what was done until 2024-03-07T22:00:00Z",
        },
        "features": {
            "as_of": "2024-03-08T00:00:00Z",
            "values": [
                {"name": "user_view_count_7d", "value": 12, "unit": "events", "window_days": 7,
                 "why": "Item views: view_item, select_item and click."},
            ],
        },
    },
    "degraded": False,
    "degraded_reasons": [],
}  # fmt: skip
DECISION: Document = {
    "decision": {
        "recommendation_id": "018e1e3c2f80a1b2c3d4e5f601234567",
        "decided_at": "2024-03-08T13:00:00Z",
        "kind": "recommendations",
        "placement": "home",
        "subject": "u:u1",
        "model_version": _VERSION,
        "fallback_level": "personal",
        "fallback_reason": None,
        "degraded_reasons": [],
        "item_ids": ["cup", "tin"],
        "scores": [0.75, 0.25],
        "sources": ["session", "als"],
        "rule_ids": [],
        "propensities": [1.0, 1.0],
        "inputs": {"num_results": 2, "personalized": True, "tuning": "0a1b2c3d"},
    },
    "replay": {
        "is_possible": True,
        "why_not": [],
        "is_same": False,
        "item_ids": ["tin", "pan"],
        "scores": [0.25, 0.2],
        "differences": [
            {"rank": 1, "decided": "cup", "replayed": "tin", "why": "out_of_stock"},
            {"rank": 2, "decided": "tin", "replayed": "pan", "why": None},
        ],
    },
}
