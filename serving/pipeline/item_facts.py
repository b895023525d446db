"""What a version knows of its items beyond title, category, price and stock: columns by item number.

A bundle of an older Nightjar has none of it; its columns are empty, and every filter on them finds nothing there.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import Any

from feature_repo.contracts.filter_rules import PATH_SEPARATOR as CATEGORY_SEPARATOR

Numbers = Sequence[int]


class TextColumn:
    """Texts by position, None for none, in one piece of memory: hundreds of thousands of addresses cost their bytes."""

    __slots__ = ("_bytes", "_ends")

    def __init__(self, texts: Iterable[str | None]) -> None:
        pieces, ends, end = [], array("I", [0]), 0
        for text in texts:
            piece = b"" if text is None else text.encode("utf-8", "surrogatepass")
            end += len(piece)
            pieces.append(piece)
            ends.append(end)
        self._bytes, self._ends = b"".join(pieces), ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, at: int) -> str | None:
        start, end = self._ends[at], self._ends[at + 1]
        return self._bytes[start:end].decode("utf-8", "surrogatepass") if end > start else None


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """Columns of equal length by item number (or all empty). None, or an empty tuple, for what an item does not have.

    created_micros  microseconds since 1970
    attributes      JSON text of an object: what the shop says beyond the fields of an item
    members         field (category, brand, tag, group_id) -> value -> the numbers of its items, ascending;
                    categories with all that lies below them
    """

    brand: MutableSequence[str | None] = field(default_factory=list)
    language: MutableSequence[str | None] = field(default_factory=list)
    group_id: MutableSequence[str | None] = field(default_factory=list)
    currency: MutableSequence[str | None] = field(default_factory=list)
    tags: MutableSequence[tuple[str, ...]] = field(default_factory=list)
    created_micros: MutableSequence[int | None] = field(default_factory=list)
    url: TextColumn = field(default_factory=lambda: TextColumn(()))
    image_url: TextColumn = field(default_factory=lambda: TextColumn(()))
    attributes: TextColumn = field(default_factory=lambda: TextColumn(()))
    members: Mapping[str, Mapping[str, Numbers]] = field(default_factory=dict)

    def attribute(self, number: int, name: str) -> Any:
        """One attribute of one item, as its JSON says; None for none."""
        text = self.attributes[number] if number < len(self.attributes) else None
        return None if text is None else json.loads(text).get(name)


def category_levels(path: str | None) -> list[str]:
    """A category and all above it, the topmost first; none of no category."""
    parts = path.split(CATEGORY_SEPARATOR) if path else []
    return [CATEGORY_SEPARATOR.join(parts[: depth + 1]) for depth in range(len(parts))]


def members_by_value(
    categories: Iterable[str | None],
    brands: Iterable[str | None],
    tags: Iterable[Sequence[str]],
    groups: Iterable[str | None],
) -> dict[str, dict[str, Numbers]]:
    """`ItemFacts.members` of columns by item number."""
    members: dict[str, dict[str, Numbers]] = {"category": {}, "brand": {}, "tag": {}, "group_id": {}}

    def join(field_name: str, value: str, number: int) -> None:
        numbers = members[field_name].setdefault(value, array("I"))
        assert isinstance(numbers, array)
        numbers.append(number)

    for number, path in enumerate(categories):
        for level in category_levels(path):
            join("category", level, number)
    for name, column in (("brand", brands), ("group_id", groups)):
        for number, value in enumerate(column):
            if value:
                join(name, value, number)
    for number, words in enumerate(tags):
        for word in dict.fromkeys(words):
            join("tag", word, number)
    return members
