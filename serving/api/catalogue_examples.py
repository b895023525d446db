"""Bodies of the routes that change items and users, for the reference at /docs. All examples work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from feature_repo.contracts.catalogue import AVAILABILITIES
from feature_repo.contracts.changes import DELETE, ITEMS, PATCH, PUT, USERS
from feature_repo.contracts.events import CONSENT_PURPOSES

_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_TIME: dict[str, Any] = {"type": ["string", "null"], "format": "date-time"}
_UPDATED_AT = {**_TIME, "description": "when the shop changed it; the newest word on a field counts"}

SCHEMAS: Mapping[str, dict[str, Any]] = {
    ITEMS: {
        "type": "object",
        "required": ["item_id"],
        "description": "Fields that nobody knows join attributes.",
        "properties": {
            "item_id": {"type": "string"},
            **dict.fromkeys(("title", "category", "brand", "currency", "url", "image_url", "group_id"), _TEXT),
            "tags": {"type": ["array", "null"], "items": {"type": "string"}},
            "price": {"type": ["number", "null"], "minimum": 0},
            "availability": {"type": ["string", "null"], "examples": list(AVAILABILITIES)},
            "available_quantity": {"type": ["integer", "null"], "minimum": 0},
            **dict.fromkeys(("available_time", "expire_time", "created_at"), _TIME),
            "is_hidden": {"type": ["boolean", "null"]},
            "attributes": {"type": ["object", "null"]},
            "updated_at": _UPDATED_AT,
        },
    },
    USERS: {
        "type": "object",
        "required": ["user_id"],
        "properties": {
            "user_id": {"type": "string"},
            "region": _TEXT,
            "attributes": {"type": ["object", "null"]},
            "consent": {
                "type": ["object", "null"],
                "properties": {purpose: {"type": ["boolean", "null"]} for purpose in CONSENT_PURPOSES},
            },
            "created_at": _TIME,
            "updated_at": _UPDATED_AT,
        },
    },
}

_SHIRT = {"title": "White Shirt", "category": "Clothes > Shirts", "price": 18.99, "currency": "GBP",
          "available_quantity": 12, "attributes": {"colour": "white"}}  # fmt: skip
_SOLD_OUT = {"available_quantity": 0, "updated_at": "2024-03-01T09:30:00Z"}
_ANN = {"region": "GB", "attributes": {"plan": "gold"}, "consent": {"personalize": True}}
_REFUSAL = {"consent": {"personalize": False}}

EXAMPLES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    ITEMS: {
        PUT: {
            "one": _SHIRT,
            "several": {"items": [{"item_id": "i7", **_SHIRT}, {"item_id": "i9", "title": "Blue Mug", "price": 4.5}]},
            "lines": '{"item_id": "i7", "title": "White Shirt"}\n{"item_id": "i9", "title": "Blue Mug"}\n',
        },
        PATCH: {
            "one": _SOLD_OUT,
            "several": [{"item_id": "i7", **_SOLD_OUT}, {"item_id": "i9", "price": 3.95, "expire_time": None}],
            "lines": '{"item_id": "i7", "available_quantity": 3}\n{"item_id": "i9", "is_hidden": true}\n',
        },
        DELETE: {
            "several": ["i7", {"item_id": "i9", "updated_at": "2024-03-01T09:30:00Z"}],
            "lines": '"i7"\n{"item_id": "i9"}\n',
        },
    },
    USERS: {
        PUT: {
            "one": _ANN,
            "several": {"users": [{"user_id": "u1", **_ANN}]},
            "lines": '{"user_id": "u1", "region": "GB"}\n',
        },
        PATCH: {
            "one": _REFUSAL,
            "several": [{"user_id": "u1", **_REFUSAL}, {"user_id": "u2", "attributes": {"plan": None}}],
            "lines": '{"user_id": "u1", "consent": {"store": false}}\n',
        },
        DELETE: {"several": ["u1"], "lines": '"u1"\n'},
    },
}


def deleted(id_field: str) -> dict[str, Any]:
    """One record of a DELETE."""
    properties = {id_field: {"type": "string"}, "updated_at": _UPDATED_AT}
    return {"type": "object", "required": [id_field], "properties": properties}


def without_id(schema: Mapping[str, Any], id_field: str) -> dict[str, Any]:
    """The schema of a record whose id stands in the address."""
    return {**schema, "required": [name for name in schema["required"] if name != id_field]}
