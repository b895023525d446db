"""What all dialects share: an event with its foreign original, and the few values that others write differently."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from feature_repo.contracts.events import CONSENT_PURPOSES, Rejection

Document = Mapping[str, Any]


class Translated(NamedTuple):
    """A native event (or why there is none), and the foreign document that it came from, to be kept if it is bad."""

    event: Document | Rejection
    original: object


ATTRIBUTION_FIELDS = ("recommendation_id", "placement", "page_view_id")
"""Ours by name in every dialect: they come back from our answers."""

_WHOLE = re.compile(r"-?[0-9]{1,18}")
_DECIMAL = re.compile(r"-?[0-9]{1,15}\.[0-9]{1,15}")


def as_id(value: Any) -> Any:
    """A whole number as text: others send ids as numbers too. Anything else stays as it is."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def as_number(value: Any) -> Any:
    """A plain decimal text as the number it says. Anything else stays as it is."""
    if isinstance(value, str):
        if _WHOLE.fullmatch(value):
            return int(value)
        if _DECIMAL.fullmatch(value):
            return float(value)
    return value


def as_count(value: Any) -> Any:
    """`as_number`, and 2.0 as 2."""
    number = as_number(value)
    return int(number) if isinstance(number, float) and number.is_integer() else number


def as_object(value: object) -> dict[str, Any]:
    """A copy of an object; {} for anything else."""
    return dict(value) if isinstance(value, Mapping) else {}


def lines_of(products: object, id_names: tuple[str, ...]) -> object:
    """Products as `items`; None when there are none. What is no list stays as it is, for the rule table to refuse."""
    if isinstance(products, list):
        return [_line_of(product, id_names) for product in products] or None
    return products


def _line_of(product: object, id_names: tuple[str, ...]) -> object:
    """Its id under our name, its numbers as numbers, the rest as it came."""
    if not isinstance(product, Mapping):
        return product
    line = dict(product)
    item_id = take_first(line, id_names)
    if item_id is not None:
        line = {"item_id": as_id(item_id), **line}
    for name, convert in (("quantity", as_count), ("price", as_number)):
        if name in line:
            line[name] = convert(line[name])
    return line


def take_first(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The first of these fields that is given, taken out of `fields`; None when there is none."""
    for name in names:
        if fields.get(name) is not None:
            return fields.pop(name)
    return None


def own_consent(said: object) -> dict[str, Any] | None:
    """Those entries of an object that bear the names of our purposes; None when there are none."""
    found = {p: said[p] for p in CONSENT_PURPOSES if p in said} if isinstance(said, Mapping) else {}
    return found or None


def without_nulls(event: dict[str, Any]) -> dict[str, Any]:
    """The event without what was not given."""
    return {name: value for name, value in event.items() if value is not None and value != {}}
