"""The event: its types, its fields, and the one rule table that every entrance applies.

An event that passes is a plain dict with the keys of `EVENT_FIELDS`; what fails gets a reason from `Reason`.
The API, the importers and the nightly gate all use these rules (the Spark form is held to this one by a test).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.times import EARLIEST_EVENT, MAX_FUTURE_SKEW, parse_timestamp

MAX_ID_BYTES = 256
MAX_ITEMS_PER_EVENT = 200
MAX_NESTING = 32
"""Objects and lists inside one another in one event; the event itself is the first. A flat event has nesting 1."""


class EventType(StrEnum):
    """GA4 names are canonical."""

    VIEW_ITEM = "view_item"
    VIEW_ITEM_LIST = "view_item_list"
    SELECT_ITEM = "select_item"
    ADD_TO_CART = "add_to_cart"
    REMOVE_FROM_CART = "remove_from_cart"
    ADD_TO_WISHLIST = "add_to_wishlist"
    VIEW_CART = "view_cart"
    BEGIN_CHECKOUT = "begin_checkout"
    PURCHASE = "purchase"
    REFUND = "refund"
    SEARCH = "search"
    IMPRESSION = "impression"
    CLICK = "click"
    LIKE = "like"
    DISLIKE = "dislike"
    NOT_INTERESTED = "not_interested"
    RATING = "rating"
    SHARE = "share"
    WATCH = "watch"
    PAGE_VIEW = "page_view"
    SURVEY = "survey"
    IDENTIFY = "identify"
    """This device or browser (`anonymous_id`) belongs to this person (`user_id`). An edge of the identity graph."""
    ALIAS = "alias"
    """The same, said afterwards: what was known as `anonymous_id` is `user_id` from now on."""
    UNMERGE = "unmerge"
    """An operator's word, no deed of a person: whatever said so far that `anonymous_id` is `user_id` was wrong."""
    USER_ENGAGEMENT = "user_engagement"
    """Dwell: `value` seconds more of a page (`page_view_id`), or of its item, were looked at."""


EVENT_TYPES = frozenset(t.value for t in EventType)

EVENT_TYPE_ALIASES: Mapping[str, str] = {
    # The moment at which it becomes known whose device this is (GA4)
    "login": "identify", "sign_up": "identify",
    # Segment / RudderStack
    "Product Viewed": "view_item", "Product List Viewed": "view_item_list", "Product Clicked": "select_item",
    "Product Added": "add_to_cart", "Product Removed": "remove_from_cart", "Cart Viewed": "view_cart",
    "Product Added to Wishlist": "add_to_wishlist", "Checkout Started": "begin_checkout", "Order Completed": "purchase",
    "Order Refunded": "refund", "Products Searched": "search", "Product Shared": "share", "Product Reviewed": "rating",
    "Signed In": "identify", "Signed Up": "identify",
    # Google Retail
    "detail-page-view": "view_item", "category-page-view": "view_item_list", "add-to-cart": "add_to_cart",
    "shopping-cart-page-view": "view_cart", "purchase-complete": "purchase", "home-page-view": "page_view",
    # Amazon Personalize
    "View": "view_item", "Click": "click", "Purchase": "purchase", "AddToCart": "add_to_cart", "Watch": "watch",
}  # fmt: skip

ITEM_REQUIRED = frozenset(
    {
        EventType.VIEW_ITEM, EventType.SELECT_ITEM, EventType.ADD_TO_CART, EventType.REMOVE_FROM_CART,
        EventType.ADD_TO_WISHLIST, EventType.PURCHASE, EventType.REFUND, EventType.CLICK, EventType.LIKE,
        EventType.DISLIKE, EventType.NOT_INTERESTED, EventType.RATING, EventType.SHARE, EventType.WATCH,
    }
)  # fmt: skip
"""Types that mean nothing without an item (`item_id`, or at least one entry in `items`)."""

TWO_IDS_REQUIRED = frozenset({EventType.ALIAS, EventType.UNMERGE})
"""Types that mean nothing without both `user_id` and `anonymous_id`. `identify` may also just describe one of them."""

DEFAULT_PREFERENCE_WEIGHTS: Mapping[str, float] = {
    EventType.VIEW_ITEM: 1.0, EventType.SELECT_ITEM: 1.0, EventType.CLICK: 1.0, EventType.WATCH: 2.0,
    EventType.ADD_TO_WISHLIST: 3.0, EventType.LIKE: 3.0, EventType.SHARE: 3.0, EventType.ADD_TO_CART: 4.0,
    EventType.PURCHASE: 8.0,
}  # fmt: skip
"""How much one event of a type says about preference. Only these types become interactions; a parameter of training."""

SESSION_VOTE_WEIGHTS: Mapping[str, float] = {
    EventType.VIEW_ITEM: 1.0, EventType.SELECT_ITEM: 1.0, EventType.CLICK: 1.0, EventType.WATCH: 1.0,
    EventType.ADD_TO_WISHLIST: 1.5, EventType.LIKE: 1.5, EventType.ADD_TO_CART: 2.0, EventType.PURCHASE: 1.0,
}  # fmt: skip
"""How loudly an event of the running session votes for its item's neighbours."""

SESSION_GAP = timedelta(minutes=30)
"""Without a client's session_id: a pause of this length, or longer, ends the session."""

CLIENT_SESSION_GAP = timedelta(hours=24)
"""With one: the same id after a pause of this length, or longer, is another session. Later is not reopened."""

DISMISSING_TYPES = frozenset({EventType.DISLIKE, EventType.NOT_INTERESTED})
"""The person said no: the item leaves their slates."""


class Reason(StrEnum):
    """Why something was quarantined. Stable words: they are stored and shown."""

    UNREADABLE = "unreadable"
    NESTED_TOO_DEEPLY = "nested_too_deeply"
    MISSING_EVENT_ID = "missing_event_id"
    INVALID_EVENT_ID = "invalid_event_id"
    MISSING_EVENT_TYPE = "missing_event_type"
    UNKNOWN_EVENT_TYPE = "unknown_event_type"
    MISSING_SUBJECT = "missing_subject"
    INVALID_SUBJECT = "invalid_subject"
    INVALID_SESSION_ID = "invalid_session_id"
    MISSING_ITEM_ID = "missing_item_id"
    INVALID_ITEM_ID = "invalid_item_id"
    INVALID_ITEMS = "invalid_items"
    MISSING_TIMESTAMP = "missing_timestamp"
    INVALID_TIMESTAMP = "invalid_timestamp"
    TIMESTAMP_IN_FUTURE = "timestamp_in_future"
    TIMESTAMP_TOO_OLD = "timestamp_too_old"
    INVALID_QUANTITY = "invalid_quantity"
    INVALID_PRICE = "invalid_price"
    INVALID_VALUE = "invalid_value"
    INVALID_FIELD = "invalid_field"
    # Shop files (nightjar import online-retail)
    QUANTITY_NOT_POSITIVE = "quantity_not_positive"
    PRICE_NOT_POSITIVE = "price_not_positive"


EVENT_FIELDS = (
    "event_id", "event_type", "user_id", "anonymous_id", "session_id", "item_id", "timestamp", "sent_at", "value",
    "quantity", "price", "currency", "items", "recommendation_id", "placement", "page_view_id", "channel", "context",
    "properties", "consent",
)  # fmt: skip
DERIVED_ID_FIELDS = ("event_type", "user_id", "anonymous_id", "session_id", "item_id", "timestamp", "items")
"""What the id of an event without one is made of, in this order."""
CONSENT_PURPOSES = ("store", "train", "personalize", "share")


class Rejection(NamedTuple):
    """One event that cannot be taken: the reason, the field that broke the rule, and words for a person."""

    reason: Reason
    field: str | None
    detail: str


def _is_id(value: object) -> bool:
    if not isinstance(value, str) or not value or "\x00" in value:
        return False
    try:
        return len(value.encode("utf-8")) <= MAX_ID_BYTES
    except UnicodeEncodeError:  # a lone surrogate, from a JSON escape
        return False


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def derived_event_id(event: Mapping[str, Any]) -> str:
    """The id of an event that came without one: SHA-256 over its type, subject, session, item and time.

    Two equal events at one instant are one event; that is the price of not sending an id.
    """
    text = json.dumps(
        [event.get(f) for f in DERIVED_ID_FIELDS],
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
        default=str,
    )
    return "h-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def check_event(event: object, *, received_at: datetime) -> tuple[dict[str, Any], None] | tuple[None, Rejection]:
    """The rule table. A good event comes back normalised, a bad one with its first broken rule.

    Normalised: canonical `event_type`, `timestamp` an aware UTC datetime, absent optional fields absent, unknown
    top-level fields moved into `properties` (nothing is lost). `received_at` is the instant of receipt, aware; a
    `timestamp` later than `received_at` + 24 h is rejected. A missing `event_id` is derived from the fields.
    """
    if not isinstance(event, Mapping):
        return None, Rejection(Reason.UNREADABLE, None, f"an event is a JSON object, got {type(event).__name__}")
    for field, value in event.items():
        # An unknown field will lie in properties, one deeper: what was taken once must be taken again.
        room = MAX_NESTING - (1 if field in EVENT_FIELDS else 2)
        if isinstance(value, (dict, list)) and is_nested_deeper(value, room):
            name = field if field in EVENT_FIELDS else "properties"
            detail = f"{name} nests more than {MAX_NESTING - 1} objects and lists inside one another"
            return None, Rejection(Reason.NESTED_TOO_DEEPLY, name, detail)
    good: dict[str, Any] = {k: event[k] for k in EVENT_FIELDS if event.get(k) is not None}

    event_type = good.get("event_type")
    if event_type is None:
        return None, Rejection(Reason.MISSING_EVENT_TYPE, "event_type", "event_type is required")
    canonical = None
    if isinstance(event_type, str):
        canonical = event_type if event_type in EVENT_TYPES else EVENT_TYPE_ALIASES.get(event_type)
    if canonical is None:
        hint = nearest(str(event_type)[:80], EVENT_TYPES)
        return None, Rejection(Reason.UNKNOWN_EVENT_TYPE, "event_type", f"unknown event_type {_seen(event_type)}{hint}")
    good["event_type"] = str(canonical)

    if "event_id" in good and not _is_id(good["event_id"]):
        return None, Rejection(Reason.INVALID_EVENT_ID, "event_id", _id_rule("event_id", good["event_id"]))
    if "user_id" not in good and "anonymous_id" not in good:
        return None, Rejection(Reason.MISSING_SUBJECT, "user_id", "user_id or anonymous_id is required")
    if canonical in TWO_IDS_REQUIRED and not ("user_id" in good and "anonymous_id" in good):
        return None, Rejection(Reason.MISSING_SUBJECT, "user_id", f"{canonical} needs user_id and anonymous_id")
    for field in ("user_id", "anonymous_id"):
        if field in good and not _is_id(good[field]):
            return None, Rejection(Reason.INVALID_SUBJECT, field, _id_rule(field, good[field]))
    if "session_id" in good and not _is_id(good["session_id"]):
        return None, Rejection(Reason.INVALID_SESSION_ID, "session_id", _id_rule("session_id", good["session_id"]))
    if "item_id" in good and not _is_id(good["item_id"]):
        return None, Rejection(Reason.INVALID_ITEM_ID, "item_id", _id_rule("item_id", good["item_id"]))
    if "items" in good:
        rejection = _check_items(good["items"])
        if rejection is not None:
            return None, rejection
    if canonical in ITEM_REQUIRED and "item_id" not in good and not good.get("items"):
        return None, Rejection(Reason.MISSING_ITEM_ID, "item_id", f"{canonical} needs an item_id")

    if "timestamp" not in good:
        return None, Rejection(Reason.MISSING_TIMESTAMP, "timestamp", "timestamp is required")
    if "event_id" not in good:
        good["event_id"] = derived_event_id(event)
    try:
        moment = good["timestamp"] if isinstance(good["timestamp"], datetime) else parse_timestamp(good["timestamp"])
    except DataError as error:
        return None, Rejection(Reason.INVALID_TIMESTAMP, "timestamp", str(error)[:200])
    if moment.tzinfo is None:
        return None, Rejection(Reason.INVALID_TIMESTAMP, "timestamp", "timestamp has no time zone")
    if moment < EARLIEST_EVENT:
        return None, Rejection(Reason.TIMESTAMP_TOO_OLD, "timestamp", f"{moment.isoformat()} is before 1995")
    if moment > received_at + MAX_FUTURE_SKEW:
        detail = f"{moment.isoformat()} is more than 24 h after its receipt at {received_at.isoformat()}"
        return None, Rejection(Reason.TIMESTAMP_IN_FUTURE, "timestamp", detail)
    good["timestamp"] = moment

    if "quantity" in good and not _is_count(good["quantity"]):
        return None, Rejection(
            Reason.INVALID_QUANTITY, "quantity", f"quantity is a positive integer, got {_seen(good['quantity'])}"
        )
    if "price" in good and not (_is_number(good["price"]) and good["price"] >= 0):
        return None, Rejection(Reason.INVALID_PRICE, "price", f"price is a number >= 0, got {_seen(good['price'])}")
    if "value" in good and not _is_number(good["value"]):
        return None, Rejection(Reason.INVALID_VALUE, "value", f"value is a finite number, got {_seen(good['value'])}")
    for field in ("currency", "recommendation_id", "placement", "page_view_id", "channel"):
        if field in good and not _is_id(good[field]):
            return None, Rejection(Reason.INVALID_FIELD, field, _id_rule(field, good[field]))
    for field in ("context", "properties", "consent"):
        if field in good and not isinstance(good[field], Mapping):
            return None, Rejection(Reason.INVALID_FIELD, field, f"{field} is an object, got {_seen(good[field])}")
    for purpose, given in good.get("consent", {}).items():
        if purpose not in CONSENT_PURPOSES:
            hint = nearest(str(purpose)[:80], CONSENT_PURPOSES)
            return None, Rejection(Reason.INVALID_FIELD, "consent", f"unknown consent purpose {_seen(purpose)}{hint}")
        if not isinstance(given, bool):
            return None, Rejection(
                Reason.INVALID_FIELD, "consent", f"consent.{purpose} is true or false, got {_seen(given)}"
            )
    unknown = {k: v for k, v in event.items() if k not in EVENT_FIELDS and v is not None}
    if unknown:
        good["properties"] = {**unknown, **good.get("properties", {})}
    return good, None


def _id_rule(field: str, value: object) -> str:
    rule = f"{field} is a text of 1 to {MAX_ID_BYTES} bytes of UTF-8 without NUL, got {_seen(value)}"
    size = len(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else 0
    return f"{rule} of {size} bytes" if size > MAX_ID_BYTES else rule


def _seen(value: object) -> str:
    """The value as an error message shows it: at most 80 characters of it, a text in quotes."""
    return repr(value[:80]) if isinstance(value, str) else str(value)[:80]


def is_nested_deeper(value: object, limit: int) -> bool:
    """Whether objects and lists nest more than `limit` deep in `value`; a text or number has nesting 0.

    Looks level by level, so a hostile document costs its size, not our stack.
    """
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return bool(level)


def _check_items(items: object) -> Rejection | None:
    if not isinstance(items, list) or not items or len(items) > MAX_ITEMS_PER_EVENT:
        return Rejection(Reason.INVALID_ITEMS, "items", f"items is a list of 1 to {MAX_ITEMS_PER_EVENT} objects")
    for position, line in enumerate(items):
        if not isinstance(line, Mapping) or not _is_id(line.get("item_id")):
            return Rejection(Reason.INVALID_ITEMS, "items", f"items[{position}] needs an item_id")
        if line.get("quantity") is not None and not _is_count(line["quantity"]):
            return Rejection(Reason.INVALID_QUANTITY, "items", f"items[{position}].quantity is a positive integer")
        price = line.get("price")
        if price is not None and not (_is_number(price) and price >= 0):
            return Rejection(Reason.INVALID_PRICE, "items", f"items[{position}].price is a number >= 0")
    return None


def expand_items(event: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A checked event as single-item events: itself, or one per line of `items` with id `<event_id>:<line>`.

    Lines keep their order and inherit every other field; a line's own quantity and price win.
    """
    lines = event.get("items")
    if not lines:
        return [dict(event)]
    base = {k: v for k, v in event.items() if k not in ("items", "item_id", "quantity", "price")}
    expanded = []
    for number, line in enumerate(lines):
        one = {**base, "event_id": f"{event['event_id']}:{number}", "item_id": line["item_id"]}
        for field in ("quantity", "price"):
            value = line.get(field, event.get(field))
            if value is not None:
                one[field] = value
        expanded.append(one)
    return expanded


def subject_key(user_id: str | None, anonymous_id: str | None) -> str:
    """Whom a row is about: `u:<user_id>` when the user is known, else `a:<anonymous_id>`.

    Every personal row carries it, so that erasure finds it. Raises DataError when both are missing.
    """
    if user_id:
        return "u:" + user_id
    if anonymous_id:
        return "a:" + anonymous_id
    raise DataError("an event needs a user_id or an anonymous_id", field="user_id")
