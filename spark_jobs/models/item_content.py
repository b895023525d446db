"""What the catalogue says of each item, as a sparse matrix of terms: the ground of the `content` model.

An item's terms, by kind:
    text        words of two letters or digits or more, in lower case: of the title and of long attributes
    category    "A > B > C" and each of its ancestors
    brand       the brand
    price       the price's band: half octaves of each currency, so 10 and 13 share one and 10 and 20 do not
    tags        tags, and every other attribute that is a short text, a truth or a list of them, with its name
    embedding   not terms but a vector of numbers, where the shop brings one as the attribute `embedding`

Upper and lower case are one. Attributes that are numbers are no terms. What is null, empty or of another form says
nothing, and an item that says nothing has an empty row.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

KINDS = ("text", "category", "brand", "price", "tags")
EMBEDDING = "embedding"
ITEM_COLUMNS = ("item_id", "title", "category", "brand", "price", "currency", "attributes")
"""Of `bronze.items`: what `read_content` wants."""

NO_TERMS = frozenset({"updated_at", "available_time", "language", EMBEDDING})
"""Attributes that say nothing of what an item is."""
SEPARATOR = " > "
"""Between the steps of a category."""
LONGEST_TERM = 60
"""Characters of an attribute that is one term; a longer one is a text of many words."""
BANDS_PER_OCTAVE = 2
_WORD = re.compile(r"[^\W_]{2,}")


class ItemContent(NamedTuple):
    """terms    CSR float32, items x terms, 1 where an item has a term; columns sorted
    kinds       int8 by term: its place in KINDS
    vectors     float32, items x width, each of length 1 or all 0; width 0 where no item has an embedding
    tops        int32 by item: the column of its top category among `terms`, -1 of an item without a category
    """

    terms: sparse.csr_matrix
    kinds: NDArray[np.int8]
    vectors: NDArray[np.float32]
    tops: NDArray[np.int32]

    @property
    def described_count(self) -> int:
        """How many items say anything."""
        return int(((np.diff(self.terms.indptr) > 0) | self.vectors.any(axis=1)).sum())


class Described(NamedTuple):
    """One item in words: (kind, term) pairs, repeats allowed, and its embedding if it has one."""

    terms: Iterable[tuple[str, str]]
    embedding: list[float] | None = None


def build_content(described: Mapping[int, Described], *, item_count: int) -> ItemContent:
    """Item number -> what is said of it, as matrices. Terms are in order of kind, then of text.

    The width of embeddings is that of most of them (ties: the wider); one of another width, with a number that is not
    finite, or of length 0 is left out.
    """
    pairs = {number: sorted(set(one.terms)) for number, one in described.items()}
    vocabulary = sorted({pair for found in pairs.values() for pair in found}, key=lambda p: (KINDS.index(p[0]), p[1]))
    place = {pair: column for column, pair in enumerate(vocabulary)}
    rows = np.repeat(np.fromiter(pairs, np.int64, len(pairs)), [len(found) for found in pairs.values()])
    columns = np.array([place[pair] for found in pairs.values() for pair in found], np.int64)
    shape = (item_count, len(vocabulary))
    terms = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    terms.sort_indices()
    kinds = np.array([KINDS.index(kind) for kind, _ in vocabulary], np.int8)
    tops = np.full(item_count, -1, np.int32)
    for number, found in pairs.items():
        tops[number] = next((place[pair] for pair in found if pair[0] == "category" and SEPARATOR not in pair[1]), -1)
    return ItemContent(terms, kinds, _vectors(described, item_count), tops)


def _vectors(described: Mapping[int, Described], item_count: int) -> NDArray[np.float32]:
    given = {number: one.embedding for number, one in described.items() if one.embedding}
    widths = [len(vector) for vector in given.values()]
    width = max(set(widths), key=lambda w: (widths.count(w), w), default=0)
    vectors = np.zeros((item_count, width), np.float32)
    for number, vector in given.items():
        length = math.hypot(*vector)
        if len(vector) == width and math.isfinite(length) and length > 0:
            vectors[number] = np.asarray(vector) / length
    return vectors


def read_content(items: pa.Table, numbers: Mapping[str, int], *, item_count: int) -> ItemContent:
    """The content of catalogue rows (ITEM_COLUMNS; an item's last row counts), by item number.

    `numbers`: item_id -> number; other items are left out.
    """
    described: dict[int, Described] = {}
    for row in items.select(list(ITEM_COLUMNS)).to_pylist():
        number = numbers.get(row["item_id"])
        if number is not None:
            described[number] = describe(row)
    return build_content(described, item_count=item_count)


def describe(row: Mapping[str, Any]) -> Described:
    """One catalogue row (ITEM_COLUMNS) in words."""
    attributes = _attributes(row["attributes"])
    return Described(list(_terms(row, attributes)), _embedding(attributes.get(EMBEDDING)))


def _terms(row: Mapping[str, Any], attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from (("text", word) for word in _WORD.findall((row["title"] or "").lower()))
    steps = [step.strip().lower() for step in (row["category"] or "").split(">") if step.strip()]
    yield from (("category", SEPARATOR.join(steps[:depth])) for depth in range(1, len(steps) + 1))
    if row["brand"]:
        yield "brand", row["brand"].strip().lower()
    price = row["price"]
    if price is not None and math.isfinite(price) and price > 0:
        yield "price", f"{row['currency'] or ''} {math.floor(BANDS_PER_OCTAVE * math.log2(price))}"
    for name, value in attributes.items():
        if name not in NO_TERMS:
            for one in value if isinstance(value, list) else [value]:
                yield from _attribute_terms(name, one)


def _attribute_terms(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, bool):
        yield "tags", f"{name}={str(value).lower()}"
    elif isinstance(value, str) and len(value) <= LONGEST_TERM and value.strip():
        yield "tags", f"{name}={value.strip().lower()}"
    elif isinstance(value, str):
        yield from (("text", word) for word in _WORD.findall(value.lower()))


def _attributes(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _embedding(value: Any) -> list[float] | None:
    is_vector = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    return [float(v) for v in value] if is_vector and value else None
