"""Filters (`contracts.filter_language`) over the columns of a version, and where items that pass one can be found."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from feature_repo.contracts.filter_language import (
    ATTRIBUTE_PREFIX,
    BOUGHT_AT,
    IN_CART,
    IN_SESSION,
    SEEN_AT,
    All,
    Expression,
    all_of,
    depends_on_request,
    needed_values,
    tests_of,
)
from feature_repo.contracts.filter_rules import bind_filter
from serving.pipeline.catalogue import Catalogue

MAX_BOUND_FILTERS = 256
"""Filters that a version keeps ready, fewer for a large one: each takes a byte per item."""
MAX_REMEMBERED_BYTES = 16 << 20
LIVE_FIELDS = frozenset({"price", "availability", "available_quantity"})
"""What changes while a version is served; all else that a filter asks of an item stays as it is."""
MAX_SCANNED = 5_000
"""Items of the catalogue that one answer looks at to fill itself, beyond all lists."""

Admits = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class PersonFacts:
    """What filters may ask about who is answered, by item id. Empty without consent. Times: microseconds since 1970."""

    in_cart: Mapping[str, Any] = field(default_factory=dict)
    in_session: Mapping[str, Any] = field(default_factory=dict)
    bought_at: Mapping[str, int] = field(default_factory=dict)
    seen_at: Mapping[str, int] = field(default_factory=dict)


NOBODY = PersonFacts()


def filter_items(
    expression: Expression, text: str, catalogue: Catalogue, person: PersonFacts, *, now_micros: int
) -> Admits:
    """The filter as a function of the item number (of an item of the catalogue).

    One that says the same in every request is kept with the version under its `text`, and what its unchanging tests say
    of an item is remembered; price and stock are asked every time.
    """
    bound = catalogue.bound_filters.get(text)
    if bound is not None:
        return bound
    if depends_on_request(expression):
        return bind_filter(expression, _reader(catalogue, person), now_micros=now_micros)
    parts = expression.parts if isinstance(expression, All) else (expression,)
    fixed = [part for part in parts if not any(test.field in LIVE_FIELDS for test in tests_of(part))]
    live = [part for part in parts if part not in fixed]
    reader = _reader(catalogue, NOBODY)
    now = bind_filter(all_of(*live), reader, now_micros=0)
    bound = (
        now if not fixed else _remembering(bind_filter(all_of(*fixed), reader, now_micros=0), len(catalogue.item_ids))
    )
    if fixed and live:
        bound = _both(bound, now)
    most = min(MAX_BOUND_FILTERS, max(4, MAX_REMEMBERED_BYTES // (len(catalogue.item_ids) + 1)))
    while len(catalogue.bound_filters) >= most:
        catalogue.bound_filters.pop(next(iter(catalogue.bound_filters)), None)
    catalogue.bound_filters[text] = bound
    return bound


def _remembering(admits: Admits, size: int) -> Admits:
    """The same, asked once for each of `size` items."""
    known = bytearray(size)  # 0 not asked yet, 1 no, 2 yes

    def remembered(number: int) -> bool:
        said = known[number]
        if not said:
            said = known[number] = 2 if admits(number) else 1
        return said == 2

    return remembered


def _both(first: Admits, second: Admits) -> Admits:
    return lambda number: first(number) and second(number)


def _reader(catalogue: Catalogue, person: PersonFacts) -> Callable[[str], Callable[[int], Any]]:
    facts, item_ids, size = catalogue.facts, catalogue.item_ids, len(catalogue.item_ids)

    def fact(name: str) -> Callable[[int], Any]:
        return lambda number: (catalogue.attributes[number] or {}).get(name)

    def stock(name: str) -> Callable[[int], Any]:
        return lambda number: getattr(catalogue.stocks[number], name, None)

    def column(values: Any) -> Callable[[int], Any]:
        return values.__getitem__ if len(values) == size else lambda _: None

    def of_person(values: Mapping[str, Any]) -> Callable[[int], Any]:
        return lambda number: values.get(item_ids[number] or "")

    def flag_of_person(values: Mapping[str, Any]) -> Callable[[int], Any]:
        return lambda number: item_ids[number] in values

    def reader(name: str) -> Callable[[int], Any]:
        if name.startswith(ATTRIBUTE_PREFIX):
            wanted = name.removeprefix(ATTRIBUTE_PREFIX)
            return lambda number: facts.attribute(number, wanted)
        match name:
            case "item_id":
                return item_ids.__getitem__
            case "category" | "price":
                return fact(name)
            case "availability":
                return stock("availability")
            case "available_quantity":
                return stock("quantity")
            case "tag":
                return column(facts.tags)
            case "created_at":
                return column(facts.created_micros)
            case "brand" | "language" | "group_id" | "currency":
                return column(getattr(facts, name))
            case _ if name == IN_CART:
                return flag_of_person(person.in_cart)
            case _ if name == IN_SESSION:
                return flag_of_person(person.in_session)
            case _ if name == BOUGHT_AT:
                return of_person(person.bought_at)
            case _ if name == SEEN_AT:
                return of_person(person.seen_at)
        raise AssertionError(f"no column for {name}")

    return reader


def named_categories(expression: Expression) -> tuple[str, ...]:
    """The categories in one of which every passing item lies, as the filter names them; none when it does not."""
    return tuple(str(value) for value in needed_values(expression, "category") or ())


def matching_numbers(expression: Expression, catalogue: Catalogue) -> Iterator[int]:
    """Numbers of items among which all that pass are, each once, at most MAX_SCANNED.

    By the smallest of the value lists that the filter names (item ids, groups, brands, tags, categories); without
    any, from the newest item number down. The filter itself still has to be asked.
    """
    for number, _ in zip(_numbers(expression, catalogue), range(MAX_SCANNED), strict=False):
        yield number


def _numbers(expression: Expression, catalogue: Catalogue) -> Iterator[int]:
    named = needed_values(expression, "item_id")
    if named is not None:
        found = {catalogue.numbers[str(value)] for value in named if str(value) in catalogue.numbers}
        return iter(sorted(found))
    choices = []
    for name, members in catalogue.facts.members.items():
        if (values := needed_values(expression, name)) is not None:
            choices.append([members.get(str(value), array("I")) for value in values])
    if choices:
        fewest = min(choices, key=lambda lists: sum(map(len, lists)))
        return iter(dict.fromkeys(number for numbers in fewest for number in numbers[:MAX_SCANNED]))
    return (n for n in range(len(catalogue.item_ids) - 1, -1, -1) if catalogue.item_ids[n] is not None)
