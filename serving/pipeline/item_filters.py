"""Filters (`contracts.filter_language`) over the columns of a version, and where items that pass one can be found."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from feature_repo.contracts.filter_language import (
    ATTRIBUTE_PREFIX,
    BOUGHT_AT,
    IN_CART,
    IN_SESSION,
    PERSON_FIELDS,
    SEEN_AT,
    Ago,
    Expression,
    Order,
    needed_values,
    parse_filter,
    tests_of,
)
from feature_repo.contracts.filter_rules import bind_filter
from serving.pipeline.catalogue import Catalogue, PopularList

MAX_BOUND_FILTERS = 256
"""Filters that a version keeps ready, fewer for a large one: each takes a byte per item."""
MAX_REMEMBERED_BYTES = 16 << 20
LIVE_FIELDS = frozenset({"price", "availability", "available_quantity"})
"""What changes while a version is served; all else that a filter asks of an item stays as it is."""
FIELDS_OF_ARRIVALS = LIVE_FIELDS | {"item_id", "category", "created_at"} | PERSON_FIELDS.keys()
"""What is known of items that came while a version was served (`arrivals`); of anything else nobody can say."""
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


class ItemFilter:
    """A filter over the items of a version, for nobody in particular: what it says of an item is worked out when it is
    first asked, and remembered. Belongs to one event loop.

    known       a byte for each item: 0 nobody asked yet, 1 no, 2 yes
    apart       numbers of items of which it has to be asked each time; here none
    categories  `named_categories`
    is_live     whether it asks for what changes while the version is served; then who changes an item says `forget`
    asks_person whether it asks about the person as well, of whom here nothing is known
    """

    __slots__ = (
        "_ask", "_asked_end", "_expression", "_now_micros", "_spans", "apart", "asks_person", "catalogue", "categories",
        "is_live", "known",
    )  # fmt: skip

    def __init__(self, expression: Expression, catalogue: Catalogue, *, now_micros: int) -> None:
        tests = list(tests_of(expression))
        self.known = bytearray(len(catalogue.item_ids))
        self.apart: Set[int] = frozenset()
        self.categories = named_categories(expression)
        self.is_live = any(test.field in LIVE_FIELDS for test in tests)
        self.asks_person = any(test.field in PERSON_FIELDS for test in tests)
        self.catalogue = catalogue
        is_known_of_all = all(test.field in FIELDS_OF_ARRIVALS for test in tests)
        self._asked_end = len(self.known) if is_known_of_all else catalogue.arrivals.first
        self._expression = expression
        self._spans = {
            test.bound.micros
            for test in tests
            if isinstance(test, Order) and isinstance(test.bound, Ago) and test.field not in PERSON_FIELDS
        }
        self._now_micros = now_micros
        self._ask: Admits | None = None

    def __call__(self, number: int) -> bool:
        """Whether an item of the catalogue passes."""
        said = self.known[number]
        if not said:
            if self._ask is None:
                self._ask = bind_filter(
                    self._expression, _reader(self.catalogue, NOBODY), now_micros=self._now_micros
                )  # fmt: skip
            said = self.known[number] = 2 if self.may_ask(number) and self._ask(number) else 1
        return said == 2

    def may_ask(self, number: int) -> bool:
        """Whether all is known that it asks of the item."""
        return number < self._asked_end

    def forget(self, number: int) -> None:
        """The item was changed."""
        self.known[number] = 0

    def move_to(self, now_micros: int) -> None:
        """Let it be that instant, earlier or later: of items that have since come of an age it is asked again."""
        if not self._spans or now_micros == self._now_micros:
            return
        first, last = sorted((self._now_micros, now_micros))
        newest = self.catalogue.newest
        for span in self._spans:
            start = bisect_left(newest, span - last, key=_age_order)
            end = bisect_right(newest, span - first, key=_age_order)
            if end - start > MAX_SCANNED:
                self.known[:] = bytes(len(self.known))
                break
            for number, _ in newest[start:end]:
                self.known[number] = 0
        self._now_micros, self._ask = now_micros, None


def _age_order(row: tuple[int, float]) -> int:
    return -int(row[1])


class PersonalFilter:
    """An `ItemFilter` for one person and request: of items that they have to do with, `apart`, it is asked itself."""

    __slots__ = ("_ask", "_of_nobody", "apart", "categories", "known")

    def __init__(self, of_nobody: ItemFilter, ask: Admits, apart: Set[int]) -> None:
        self.known = of_nobody.known
        self.categories = of_nobody.categories
        self.apart = apart
        self._of_nobody = of_nobody
        self._ask = ask

    def __call__(self, number: int) -> bool:
        """Whether an item of the catalogue passes."""
        if number in self.apart:
            return self._of_nobody.may_ask(number) and self._ask(number)
        return self._of_nobody(number)


def item_filter(text: str, catalogue: Catalogue, *, now_micros: int) -> ItemFilter:
    """The filter of a text, kept with the version; those that were asked last are kept. Raises FilterError."""
    kept = catalogue.bound_filters
    found = kept.pop(text, None)
    if found is None:
        most = min(MAX_BOUND_FILTERS, max(4, MAX_REMEMBERED_BYTES // (len(catalogue.item_ids) + 1)))
        while len(kept) >= most:
            del kept[next(iter(kept))]
        found = ItemFilter(parse_filter(text), catalogue, now_micros=now_micros)
    else:
        found.move_to(now_micros)
    kept[text] = found
    return found


def personal_filter(
    text: str, of_nobody: ItemFilter, person: PersonFacts, *, now_micros: int
) -> ItemFilter | PersonalFilter:
    """`of_nobody` for this person."""
    expression, catalogue = parse_filter(text), of_nobody.catalogue
    facts: dict[str, Mapping[str, Any]] = {
        IN_CART: person.in_cart, IN_SESSION: person.in_session, BOUGHT_AT: person.bought_at, SEEN_AT: person.seen_at
    }  # fmt: skip
    apart = set()
    for name in {test.field for test in tests_of(expression)} & facts.keys():
        apart |= {catalogue.numbers[item_id] for item_id in facts[name] if item_id in catalogue.numbers}
    if not apart:
        return of_nobody
    return PersonalFilter(
        of_nobody, bind_filter(expression, _reader(catalogue, person), now_micros=now_micros), apart
    )  # fmt: skip


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


def category_lists(filters: Iterable[ItemFilter | PersonalFilter], catalogue: Catalogue) -> dict[str, PopularList]:
    """The popular lists of the categories that filters name, where there are any."""
    lists = catalogue.popular_by_category
    return {name: lists[name] for one in filters for name in one.categories if name in lists}


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
    return (n for n in range(catalogue.number_end - 1, -1, -1) if catalogue.item_ids[n] is not None)
