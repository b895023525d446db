"""One published version as it lies in a serving process: item facts, neighbours and popular lists.

Read-only for those who answer; `pipeline.overlay` writes into it what the shop has changed since.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable, Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from feature_repo.contracts.publication import Manifest
from serving.pipeline.item_facts import CATEGORY_SEPARATOR as CATEGORY_SEPARATOR
from serving.pipeline.item_facts import ItemFacts
from serving.pipeline.ranker import RequestRanker
from serving.pipeline.session_index import SessionIndex

PopularList = Sequence[tuple[int, float]]
"""(item number, score), best first."""

NO_NEIGHBOURS: Mapping[int, float] = MappingProxyType({})
MAX_REMEMBERED = 65_536
FIRST_VERSION = "none"
"""The name of what is answered from before any version is published (`pipeline.first_catalogue`)."""
NO_VERSION = "no_published_version"
NO_ITEM = "no_item"
"""Why such an answer is degraded, and not personal."""


class RankedList(list[tuple[int, float]]):
    """A `PopularList` that finds the rows of given items without looking at all of it."""

    _scores: dict[int, float] | None = None
    prepared: Any = None
    """The list as native code looks into it; kept here by it."""

    def of_items(self, numbers: Container[int]) -> Sequence[tuple[int, float]]:
        """The rows of these items, in no order; an item that two rows name has the better one."""
        scores = self._scores
        if scores is None:
            scores = self._scores = dict(reversed(self))
        wanted = scores.keys() & numbers if isinstance(numbers, Mapping) else [n for n in scores if n in numbers]
        return [(number, scores[number]) for number in wanted]


class Stock(NamedTuple):
    """What is known of an item's stock; None for what is not."""

    availability: str | None
    quantity: int | None
    is_hidden: bool

    def refusal(self) -> str | None:
        """`hidden`, `out_of_stock` or None. Pre-order and back-order may be shown with no stock; an unknown
        availability or quantity counts as available."""
        if self.is_hidden:
            return "hidden"
        if self.availability == "OUT_OF_STOCK":
            return "out_of_stock"
        if self.availability in (None, "IN_STOCK") and self.quantity is not None and self.quantity <= 0:
            return "out_of_stock"
        return None


class Refusals(list[str | None]):
    """Why an item may not be shown, by number. `numbers` has those that may not: few, most days; `flags` a byte for
    each item, 1 for those."""

    def __init__(self, refusals: Iterable[str | None]) -> None:
        super().__init__(refusals)
        self.numbers = {number for number, refusal in enumerate(self) if refusal is not None}
        self.flags = bytearray(refusal is not None for refusal in self)

    def __setitem__(self, number: Any, refusal: Any) -> None:
        super().__setitem__(number, refusal)
        self.flags[number] = refusal is not None
        (self.numbers.discard if refusal is None else self.numbers.add)(number)

    def make_room(self, count: int) -> None:
        """So many more, of no item: nobody has those numbers, and `numbers` has none of them."""
        self.extend(["not_in_bundle"] * count)
        self.flags.extend(b"\1" * count)


@dataclass(slots=True)
class Arrivals:
    """Which numbers are those of items that came while the version was served (`pipeline.arrivals`).

    first, end  its own room; a version that takes in none has no such numbers
    next        the first of them that is free
    micros      number -> when the item was made, or else put: microseconds since 1970
    put_micros  when the last of them was put
    """

    first: int = sys.maxsize
    next: int = sys.maxsize
    end: int = sys.maxsize
    micros: dict[int, int] = field(default_factory=dict)
    put_micros: int = 0


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything the pipeline knows of one version. Columns are indexed by item number; a number without an item has
    None in `item_ids`.

    attributes         {"title", "category", "price"} of each item, as answered
    refusals           why an item may not be shown (`out_of_stock`, `hidden`, `not_in_bundle`), or None
    stocks             `Stock` of each item
    expire_micros      only items that expire: number -> event time in microseconds since 1970
    available_micros   only items that become available at some time: number -> the same
    changes_position   up to here the night knew of changes through the API; -1: of none
    neighbour_offsets, neighbour_numbers, similarities  `publication.unpack_neighbours`; may be memory maps
    ranker             None in a version whose night published none
    session_index      None in a version of before there was one
    published_micros, last_event_micros  None when the manifest does not say
    popularity         item number -> score, of every item that is on any popular list; comparable with one another
    newest             (item number, created_at in microseconds since 1970), the newest first; items that say when
    together_offsets, together_numbers, together_scores  what is bought together, as neighbours; empty in older versions
    """

    version: str
    manifest: Manifest
    item_ids: Sequence[str | None]
    numbers: Mapping[str, int]
    attributes: MutableSequence[Mapping[str, Any] | None]
    refusals: MutableSequence[str | None]
    expire_micros: MutableMapping[int, int]
    neighbour_offsets: Sequence[int]
    neighbour_numbers: Sequence[int]
    similarities: Sequence[float]
    popular: PopularList
    popular_by_category: Mapping[str, PopularList]
    popular_by_region: Mapping[str, PopularList]
    static: PopularList
    as_of_micros: int
    session_index: SessionIndex | None = None
    ranker: RequestRanker | None = None
    published_micros: int | None = None
    last_event_micros: int | None = None
    stocks: MutableSequence[Stock | None] = field(default_factory=list)
    available_micros: MutableMapping[int, int] = field(default_factory=dict)
    changes_position: int = -1
    popularity: Mapping[int, float] = field(default_factory=dict)
    newest: PopularList = ()
    together_offsets: Sequence[int] = ()
    together_numbers: Sequence[int] = ()
    together_scores: Sequence[float] = ()
    memory: Sequence[Any] = field(default=(), repr=False)
    """Keeps alive what the views above look into (the memory map)."""
    remembered: dict[str, dict[Any, Any]] = field(default_factory=dict, repr=False, compare=False)
    """What was worked out of the columns above, by subject (`remember`)."""

    facts: ItemFacts = field(default_factory=ItemFacts, repr=False)
    arrivals: Arrivals = field(default_factory=Arrivals, repr=False, compare=False)
    bound_filters: dict[str, Any] = field(default_factory=dict, repr=False)
    """Text -> `item_filters.ItemFilter` over these columns, the last asked last."""

    @property
    def is_first(self) -> bool:
        """Whether no night has made it."""
        return self.version == FIRST_VERSION

    def is_built(self, item_id: str) -> bool:
        """Whether the night that made the version had the item."""
        return self.numbers.get(item_id, sys.maxsize) < self.arrivals.first

    @property
    def number_end(self) -> int:
        """Numbers of items are below this."""
        return min(len(self.item_ids), self.arrivals.next)

    @property
    def trained_micros(self) -> int | None:
        """The end of the data that its model saw; None where there is no model."""
        return None if self.is_first else self.as_of_micros

    def remember(self, subject: str) -> dict[Any, Any]:
        """A dict of one's own for what is worked out often. Who keeps something of `attributes` there keeps the mapping
        itself beside it: a change of the shop puts a new one in its place. At MAX_REMEMBERED entries forget all."""
        found = self.remembered.get(subject)
        if found is None:
            found = self.remembered[subject] = {}
        return found

    def forget(self, item_number: int) -> None:
        """Whoever changes an item says so here: what filters say of it is worked out anew."""
        for kept in self.bound_filters.values():
            if kept.is_live:
                kept.forget(item_number)

    def neighbours(self, item_number: int) -> list[tuple[int, float]]:
        """(neighbour number, similarity), best first; empty for an item without a row."""
        if not 0 <= item_number < len(self.neighbour_offsets) - 1:
            return []
        start, end = self.neighbour_offsets[item_number], self.neighbour_offsets[item_number + 1]
        return list(zip(self.neighbour_numbers[start:end], self.similarities[start:end], strict=True))

    def similarities_of(self, item_number: int) -> Mapping[int, float]:
        """`neighbours` by number, best first. Made anew each time: numbers that lie side by side in the map are nearer
        than a dict of them that was last used some thousand requests ago."""
        if not 0 <= item_number < len(self.neighbour_offsets) - 1:
            return NO_NEIGHBOURS
        start, end = self.neighbour_offsets[item_number], self.neighbour_offsets[item_number + 1]
        return dict(zip(self.neighbour_numbers[start:end], self.similarities[start:end]))  # noqa: B905 - costs a tenth

    def bought_with(self, item_number: int) -> list[tuple[int, float]]:
        """(item number, score) of what is bought in the same baskets, best first."""
        if not 0 <= item_number < len(self.together_offsets) - 1:
            return []
        start, end = self.together_offsets[item_number], self.together_offsets[item_number + 1]
        return list(zip(self.together_numbers[start:end], self.together_scores[start:end], strict=True))

    def item_id(self, item_number: int) -> str:
        """The id of an item that is in the bundle."""
        item_id = self.item_ids[item_number]
        assert item_id is not None
        return item_id

    def title(self, item_number: int) -> str:
        """The title, or the id of an item that has none."""
        facts = self.attributes[item_number] or {}
        return str(facts.get("title") or self.item_id(item_number))

    def category(self, item_number: int) -> str | None:
        """The category path, or None."""
        category = (self.attributes[item_number] or {}).get("category")
        return str(category) if category else None

    def refusal(self, item_number: int, now_micros: int) -> str | None:
        """Why the item may not be shown to anybody now, or None."""
        if not 0 <= item_number < len(self.refusals):
            return "not_in_bundle"
        refusal = self.refusals[item_number]
        if refusal is None and self.expire_micros and self.expire_micros.get(item_number, now_micros + 1) <= now_micros:
            return "expired"
        if refusal is None and self.available_micros.get(item_number, now_micros) > now_micros:
            return "not_yet_available"
        return refusal

    def popular_in_category(self, category: str | None) -> tuple[str, PopularList] | None:
        """The list of `category` or of its nearest ancestor that has one, with that one's name."""
        path = category or ""
        while path:
            if path in self.popular_by_category:
                return path, self.popular_by_category[path]
            path = path.rpartition(CATEGORY_SEPARATOR)[0]
        return None
