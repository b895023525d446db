"""The item and the user: their fields, and the one rule table that every entrance applies.

What passes is a plain dict with the columns of `bronze.items` or `bronze.users` (but for `source`); what fails gets a
reason from `events.Reason` and words that say what was expected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.events import CONSENT_PURPOSES, MAX_ID_BYTES, Reason, Rejection
from feature_repo.contracts.times import format_timestamp, parse_timestamp

AVAILABILITIES = ("IN_STOCK", "OUT_OF_STOCK", "PREORDER", "BACKORDER")

AVAILABILITY_ALIASES: Mapping[str, str] = {
    # Google Merchant
    "in_stock": "IN_STOCK", "in stock": "IN_STOCK", "out_of_stock": "OUT_OF_STOCK", "out of stock": "OUT_OF_STOCK",
    "preorder": "PREORDER", "backorder": "BACKORDER",
    # schema.org ItemAvailability, without its address
    "InStock": "IN_STOCK", "OnlineOnly": "IN_STOCK", "InStoreOnly": "IN_STOCK", "LimitedAvailability": "IN_STOCK",
    "OutOfStock": "OUT_OF_STOCK", "SoldOut": "OUT_OF_STOCK", "Discontinued": "OUT_OF_STOCK", "Reserved": "OUT_OF_STOCK",
    "PreOrder": "PREORDER", "PreSale": "PREORDER", "MadeToOrder": "BACKORDER", "BackOrder": "BACKORDER",
}  # fmt: skip
"""Words of https://support.google.com/merchants/answer/6324448 and https://schema.org/ItemAvailability."""

ITEM_FIELDS = (
    "item_id", "title", "category", "categories", "tags", "brand", "price", "currency", "availability",
    "available_quantity", "available_time", "expire_time", "created_at", "updated_at", "group_id", "language", "url",
    "image_url", "attributes", "is_hidden",
)  # fmt: skip
USER_FIELDS = (
    "user_id", "region", "attributes", "created_at", "updated_at", "consent",
    *(f"consent_{purpose}" for purpose in CONSENT_PURPOSES),
)  # fmt: skip
"""`consent` is {purpose: true or false}; consent_<purpose> is the same in a flat file."""

TIME_FIELDS = ("available_time", "expire_time", "created_at", "updated_at")
EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Times outside are a wrong unit or a placeholder such as 9999-12-31, never a shop's."""
MAX_PRICE = 1e15
_SCHEMA_ORG = ("https://schema.org/", "http://schema.org/")
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


class _BrokenRuleError(Exception):
    """Leaves a record's checks with a Rejection."""

    def __init__(self, reason: Reason, field: str | None, detail: str) -> None:
        super().__init__(detail)
        self.rejection = Rejection(reason, field, detail)


def check_item(record: object) -> tuple[dict[str, Any], None] | tuple[None, Rejection]:
    """The rule table of items. A good one comes back as a row of bronze.items, a bad one with its first broken rule.

    item_id         required, a text of 1 to 256 bytes of UTF-8
    category        a text "A > B"; or `categories`, a text or a list of them: the first is kept
    price           a finite number >= 0; currency: three letters
    availability    one of AVAILABILITIES or a word of AVAILABILITY_ALIASES; absent: IN_STOCK
    times           RFC 3339 or seconds or milliseconds since 1970, within [1900, 2200)
    is_hidden       true or false (or the texts true, false, yes, no, 1, 0); absent: false
    attributes      an object. What has no column joins it: tags, group_id, language, available_time, updated_at and
                    every field that we do not know; `attributes` wins over unknown fields. JSON text with sorted keys.
    """
    return _checked(_item, record)


def check_user(record: object) -> tuple[dict[str, Any], None] | tuple[None, Rejection]:
    """The rule table of users, as `check_item`: user_id is required, each consent is true, false or absent."""
    return _checked(_user, record)


def updated_at(row: Mapping[str, Any]) -> datetime | None:
    """When the shop last changed a row of bronze.items or bronze.users, as far as it said so; UTC."""
    attributes = row.get("attributes")
    if not attributes or '"updated_at"' not in attributes:
        return None
    said = json.loads(attributes).get("updated_at")
    return parse_timestamp(said) if isinstance(said, str) else None


def _checked(
    build: Callable[[Mapping[str, Any]], dict[str, Any]], record: object
) -> tuple[dict[str, Any], None] | tuple[None, Rejection]:
    if not isinstance(record, Mapping):
        detail = f"a record is a JSON object, got {type(record).__name__}"
        return None, Rejection(Reason.UNREADABLE, None, detail)
    try:
        return build({name: value for name, value in record.items() if value is not None}), None
    except _BrokenRuleError as broken:
        return None, broken.rejection


def _item(values: Mapping[str, Any]) -> dict[str, Any]:
    item_id = _id(values, "item_id", Reason.MISSING_ITEM_ID, Reason.INVALID_ITEM_ID)
    texts = {name: _text(values, name) for name in ("title", "brand", "url", "image_url")}
    price, quantity = _price(values), _quantity(values)
    availability = _availability(values)
    moments = {name: _moment(values, name) for name in TIME_FIELDS}
    kept: dict[str, Any] = {name: _text(values, name) for name in ("group_id", "language")}
    kept |= {name: format_timestamp(m) for name, m in moments.items() if m and name in ("available_time", "updated_at")}
    kept["tags"] = _tags(values)
    return {
        "item_id": item_id,
        **texts,
        "category": _category(values),
        "currency": _currency(values),
        "price": price,
        "availability": availability,
        "available_quantity": quantity,
        "created_at": moments["created_at"],
        "expire_time": moments["expire_time"],
        "is_hidden": _flag(values, "is_hidden") or False,
        "attributes": _attributes(values, ITEM_FIELDS, kept),
    }


def _user(values: Mapping[str, Any]) -> dict[str, Any]:
    consent = values.get("consent", {})
    if not isinstance(consent, Mapping):
        raise _expected(Reason.INVALID_FIELD, "consent", "an object", consent)
    for purpose in consent:
        if purpose not in CONSENT_PURPOSES:
            hint = nearest(str(purpose), CONSENT_PURPOSES)
            raise _BrokenRuleError(Reason.INVALID_FIELD, "consent", f"unknown consent purpose {purpose!r}{hint}")
    flat = {p: values[f"consent_{p}"] for p in CONSENT_PURPOSES if f"consent_{p}" in values}
    said = {f"consent_{purpose}": answer for purpose, answer in {**consent, **flat}.items()}
    moments = {name: _moment(values, name) for name in ("created_at", "updated_at")}
    kept = {"updated_at": format_timestamp(moments["updated_at"])} if moments["updated_at"] else {}
    return {
        "user_id": _id(values, "user_id", Reason.MISSING_SUBJECT, Reason.INVALID_SUBJECT),
        "region": _text(values, "region"),
        **{f"consent_{purpose}": _flag(said, f"consent_{purpose}") for purpose in CONSENT_PURPOSES},
        "attributes": _attributes(values, USER_FIELDS, kept),
        "created_at": moments["created_at"],
    }


def _expected(reason: Reason, field: str, expected: str, value: object) -> _BrokenRuleError:
    return _BrokenRuleError(reason, field, f"{field} is {expected}, got {str(value)[:80]!r}")


def _id(values: Mapping[str, Any], name: str, missing: Reason, invalid: Reason) -> str:
    value = values.get(name)
    if value is None:
        raise _BrokenRuleError(missing, name, f"{name} is required")
    if not isinstance(value, str) or not value or "\x00" in value or not _fits(value):
        raise _expected(invalid, name, f"a text of 1 to {MAX_ID_BYTES} bytes of UTF-8", value)
    return value


def _fits(text: str) -> bool:
    try:
        return len(text.encode("utf-8")) <= MAX_ID_BYTES
    except UnicodeEncodeError:
        return False


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any(0xD800 <= ord(c) <= 0xDFFF for c in value)


def _text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    if value is not None and not _is_text(value):
        raise _expected(Reason.INVALID_FIELD, name, "a text", value)
    return value


def _category(values: Mapping[str, Any]) -> str | None:
    given = values.get("categories")
    if "category" not in values and given is not None:
        first: Any = given if isinstance(given, str) else next(iter(given), None) if isinstance(given, list) else given
        return _text({"categories": first}, "categories")
    return _text(values, "category")


def _tags(values: Mapping[str, Any]) -> list[str] | None:
    given = values.get("tags")
    if isinstance(given, str):
        given = [tag.strip() for tag in given.split(",") if tag.strip()]
    if given is not None and not (isinstance(given, list) and all(_is_text(tag) for tag in given)):
        raise _expected(Reason.INVALID_FIELD, "tags", "a list of texts, or one text with commas", given)
    return given


def _price(values: Mapping[str, Any]) -> float | None:
    price = values.get("price")
    if price is None:
        return None
    is_number = isinstance(price, int | float) and not isinstance(price, bool)
    if not is_number or not 0 <= price <= MAX_PRICE or not math.isfinite(price):
        hint = ""
        if isinstance(price, str) and any(c.isdigit() for c in price) and "," in price:
            hint = '; a mapping with decimal = "," (or ".") reads commas'
        raise _BrokenRuleError(Reason.INVALID_PRICE, "price", f"price is a number >= 0, got {str(price)[:80]!r}{hint}")
    return float(price)


def _currency(values: Mapping[str, Any]) -> str | None:
    value = values.get("currency")
    if value is None:
        return None
    if not (isinstance(value, str) and len(value) == 3 and value.isascii() and value.isalpha()):
        raise _expected(Reason.INVALID_FIELD, "currency", "three letters such as EUR (ISO 4217)", value)
    return value.upper()


def _quantity(values: Mapping[str, Any]) -> int | None:
    quantity = values.get("available_quantity")
    if isinstance(quantity, float) and quantity.is_integer():
        quantity = int(quantity)
    if quantity is not None and not (type(quantity) is int and 0 <= quantity < 2**31):
        raise _expected(Reason.INVALID_QUANTITY, "available_quantity", "a whole number >= 0", quantity)
    return quantity


def _availability(values: Mapping[str, Any]) -> str:
    said = values.get("availability", "IN_STOCK")
    word = said
    if isinstance(said, str):
        for address in _SCHEMA_ORG:
            word = word.removeprefix(address)
        word = AVAILABILITY_ALIASES.get(word, word)
    if word not in AVAILABILITIES:
        hint = nearest(str(word), (*AVAILABILITIES, *AVAILABILITY_ALIASES))
        raise _expected(Reason.INVALID_FIELD, "availability", f"one of {', '.join(AVAILABILITIES)}{hint}", said)
    return str(word)


def _moment(values: Mapping[str, Any], name: str) -> datetime | None:
    value = values.get(name)
    if value is None:
        return None
    try:
        moment = value.astimezone(UTC) if isinstance(value, datetime) else parse_timestamp(value)
    except DataError as error:
        raise _BrokenRuleError(Reason.INVALID_TIMESTAMP, name, str(error)) from error
    if not EARLIEST <= moment < LATEST:
        raise _expected(Reason.INVALID_TIMESTAMP, name, "a time from 1900 to 2199", value)
    return moment


def _flag(values: Mapping[str, Any], name: str) -> bool | None:
    value = values.get(name)
    if isinstance(value, str):
        value = _BOOLEANS.get(value.lower(), value)
    if value is None or isinstance(value, bool):
        return value
    raise _expected(Reason.INVALID_FIELD, name, "true or false", value)


def _attributes(values: Mapping[str, Any], known: Iterable[str], kept: Mapping[str, Any]) -> str | None:
    given = values.get("attributes", {})
    if not isinstance(given, Mapping):
        raise _expected(Reason.INVALID_FIELD, "attributes", "an object", given)
    rest = {name: value for name, value in values.items() if name not in known}
    said = {name: value for name, value in kept.items() if value is not None}
    both = {**rest, **given, **said}
    return json.dumps(both, sort_keys=True, default=str) if both else None
