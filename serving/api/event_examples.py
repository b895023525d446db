"""Bodies of the event routes for the reference at /docs: their schemas, and an example of each. All examples work."""

from __future__ import annotations

from typing import Any

from feature_repo.contracts.events import CONSENT_PURPOSES, EVENT_TYPES

EVENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["event_type", "timestamp"],
    "description": "One event. user_id or anonymous_id is required; most types need item_id or items. Unknown fields "
    "are kept in properties.",
    "properties": {
        "event_id": {"type": "string", "description": "makes a retry harmless; derived from the fields when missing"},
        "event_type": {"type": "string", "enum": sorted(EVENT_TYPES)},
        "user_id": {"type": "string"},
        "anonymous_id": {"type": "string"},
        "session_id": {"type": "string"},
        "item_id": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
        "sent_at": {
            "type": "string",
            "format": "date-time",
            "description": "when the client sent it, by the clock that gave timestamp: a wrong clock is corrected",
        },
        "quantity": {"type": "integer", "minimum": 1},
        "price": {"type": "number", "minimum": 0},
        "value": {"type": "number"},
        "currency": {"type": "string"},
        "items": {"type": "array", "items": {"type": "object"}, "description": "lines of a basket, order or list"},
        "recommendation_id": {"type": "string"},
        "placement": {"type": "string"},
        "page_view_id": {"type": "string"},
        "channel": {"type": "string"},
        "context": {"type": "object"},
        "properties": {"type": "object"},
        "consent": {
            "type": "object",
            "properties": {p: {"type": "boolean"} for p in CONSENT_PURPOSES},
        },
    },
}

_EVENT_LIST = {"type": "array", "minItems": 1, "maxItems": 1000, "items": EVENT_SCHEMA}
EVENTS_SCHEMA: dict[str, Any] = {
    "oneOf": [
        EVENT_SCHEMA,
        {"type": "object", "required": ["events"], "properties": {"events": _EVENT_LIST}},
        _EVENT_LIST,
    ]
}
LINES_SCHEMA: dict[str, Any] = {"type": "string", "description": "one event in each line"}
_CLICK = {
    "event_id": "e1",
    "event_type": "view_item",
    "user_id": "u1",
    "session_id": "s42",
    "item_id": "i7",
    "timestamp": "2024-03-01T09:30:00Z",
}
EVENT_EXAMPLES: dict[str, Any] = {
    "one click": _CLICK,
    "a batch": {
        "events": [
            {
                "event_type": "add_to_cart",
                "anonymous_id": "a9",
                "item_id": "i7",
                "timestamp": "2024-03-01T09:31:00Z",
            },
            {
                "event_type": "purchase",
                "user_id": "u1",
                "timestamp": "2024-03-01T09:32:00Z",
                "items": [{"item_id": "i7", "quantity": 2, "price": 4.5}],
                "currency": "GBP",
                "consent": {"train": False},
            },
        ]
    },
    "a login": {
        "event_type": "identify",
        "user_id": "u1",
        "anonymous_id": "a9",
        "timestamp": "2024-03-01T09:31:30Z",
    },
}
LINES_EXAMPLE = (
    '{"event_id": "e2", "event_type": "click", "user_id": "u1", "item_id": "i7", "timestamp": "2024-03-01T09:33:00Z"}\n'
    '{"event_id": "e3", "event_type": "search", "user_id": "u1", "timestamp": "2024-03-01T09:34:00Z"}\n'
)

CLOUDEVENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"type": "string", "enum": ["1.0"]},
        "id": {"type": "string"},
        "source": {"type": "string"},
        "type": {"type": "string", "description": "an event type, or a name that ends in one after a dot"},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": {"type": "string"},
        "data": EVENT_SCHEMA | {"required": []},
    },
}
CLOUDEVENT_EXAMPLE: dict[str, Any] = {
    "specversion": "1.0",
    "id": "42",
    "source": "/shop/web",
    "type": "com.example.shop.view_item",
    "time": "2024-03-01T09:30:00Z",
    "datacontenttype": "application/json",
    "data": {"user_id": "u1", "item_id": "i7"},
}

SEGMENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "A message of the Segment spec. messageId makes a retry harmless.",
    "properties": {
        "messageId": {"type": "string"},
        "userId": {"type": "string"},
        "anonymousId": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
        "originalTimestamp": {"type": "string", "format": "date-time"},
        "sentAt": {"type": "string", "format": "date-time"},
        "context": {"type": "object"},
        "properties": {"type": "object"},
        "traits": {"type": "object"},
        "event": {"type": "string"},
        "previousId": {"type": "string"},
    },
}
SEGMENT_EXAMPLES: dict[str, dict[str, Any]] = {
    "track": {
        "messageId": "m1",
        "userId": "u1",
        "event": "Product Viewed",
        "properties": {"product_id": "i7", "price": 4.5, "currency": "GBP"},
        "timestamp": "2024-03-01T09:30:00Z",
    },
    "identify": {
        "messageId": "m2",
        "userId": "u1",
        "anonymousId": "a9",
        "traits": {"plan": "gold"},
        "timestamp": "2024-03-01T09:30:00Z",
    },
    "alias": {"messageId": "m3", "userId": "u1", "previousId": "a9", "timestamp": "2024-03-01T09:30:00Z"},
    "page": {
        "messageId": "m4",
        "anonymousId": "a9",
        "name": "Home",
        "properties": {"url": "https://shop.example/"},
        "timestamp": "2024-03-01T09:30:00Z",
    },
    "batch": {
        "batch": [
            {
                "type": "track",
                "messageId": "m5",
                "userId": "u1",
                "event": "Order Completed",
                "properties": {
                    "order_id": "o1",
                    "revenue": 9.0,
                    "currency": "GBP",
                    "products": [{"product_id": "i7", "quantity": 2, "price": 4.5}],
                },
                "timestamp": "2024-03-01T09:32:00Z",
            }
        ],
        "sentAt": "2024-03-01T09:32:01Z",
    },
}

GA4_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["events"],
    "properties": {
        "client_id": {"type": "string"},
        "app_instance_id": {"type": "string"},
        "user_id": {"type": "string"},
        "timestamp_micros": {"type": "integer"},
        "events": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "params": {"type": "object"}},
            },
        },
    },
}
GA4_EXAMPLE: dict[str, Any] = {
    "client_id": "1790.1709",
    "timestamp_micros": 1709285520000000,
    "events": [
        {
            "name": "purchase",
            "params": {
                "transaction_id": "o1",
                "value": 9.0,
                "currency": "GBP",
                "items": [{"item_id": "i7", "quantity": 2, "price": 4.5}],
            },
        }
    ],
}
