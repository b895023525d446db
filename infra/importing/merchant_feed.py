"""A Google Merchant feed: RSS 2.0 or Atom with the namespace g:, or its tab-separated form.

Source: https://support.google.com/merchants/answer/7052112 (attributes), /160589 and /14987622 (XML), /160567 (text).
A feed's own names become ours in `item_of`; every attribute without a field of its own is kept in `attributes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from xml.parsers import expat

from feature_repo.contracts.errors import DataError

_NAMESPACE = "http://base.google.com/ns/1.0"
_FIELDS = {
    "id": "item_id", "title": "title", "brand": "brand", "availability": "availability", "link": "url",
    "image_link": "image_url", "item_group_id": "group_id", "expiration_date": "expire_time",
    "availability_date": "available_time", "content_language": "language",
}  # fmt: skip
_AMOUNT = re.compile(r"([+-]?[\d.,]+)\s*([A-Za-z]{3})?|([A-Za-z]{3})\s*([+-]?[\d.,]+)")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")


class FeedRecord(NamedTuple):
    """One item of a feed under the feed's names, and the line of the file where it starts."""

    line: int
    values: dict[str, Any]


def attribute_name(column: str) -> str:
    """ "g:Image Link" and "image link" are image_link."""
    return column.strip().lower().removeprefix("g:").replace(" ", "_").replace("-", "_")


def looks_like_feed(columns: Iterable[str]) -> bool:
    """Whether a header is that of a feed: its id and title, and two more attributes of a feed."""
    names = {attribute_name(column) for column in columns}
    return {"id", "title"} <= names and len(names & {"link", "image_link", "availability", "price", "description"}) >= 2


def item_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """A feed's item with our fields, for `check_item`.

    category    the first product_type, else google_product_category when it is a path and no number
    price       "12.00 GBP" as number and currency; a comma of thousands is read; what is no amount stays and is refused
    """
    given: dict[str, Any] = {}
    for column, value in values.items():
        if value is not None and value != "":
            given.setdefault(attribute_name(column), value)
    item = {ours: _first(given.pop(theirs)) for theirs, ours in _FIELDS.items() if theirs in given}
    category = _first(given.pop("product_type", None))
    if category is None and not str(_first(given.get("google_product_category", "0"))).isdigit():
        category = _first(given.pop("google_product_category"))
    if category is not None:
        item["category"] = " > ".join(part.strip() for part in str(category).split(">"))
    if "price" in given:
        item["price"], item["currency"] = amount_of(_first(given.pop("price")))
    if "sale_price" in given:
        given["sale_price"] = amount_of(_first(given["sale_price"]))[0]
    if given:
        item["attributes"] = given
    return {name: value for name, value in item.items() if value is not None}


def amount_of(text: Any) -> tuple[Any, str | None]:
    """(number, currency) of "12.00 GBP", "GBP 12.00", "1,234.50 USD" or "12.00"; (text, None) of anything else."""
    found = _AMOUNT.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        return text, None
    digits, currency = found[1] or found[4], found[2] or found[3]
    if _THOUSANDS.fullmatch(digits):
        digits = digits.replace(",", "")
    try:
        return float(digits), currency
    except ValueError:  # a decimal comma: refused by the rule table, in its own words
        return digits, currency


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def read_feed_xml(content: bytes, source: str, encoding: str | None = None) -> Iterator[FeedRecord]:
    """The items of an RSS or Atom feed, in file order; repeated elements become lists, nested ones objects.

    Streams. Raises DataError when it is no feed, is cut, or declares entities (which can grow without bound).
    """
    reader = _FeedReader(source, encoding)
    for start in range(0, len(content), 1 << 20):
        reader.feed(content[start : start + (1 << 20)])
        yield from reader.take()
    reader.close()
    yield from reader.take()


class _FeedReader:
    """State of one pass: the open elements of the current item, innermost last."""

    def __init__(self, source: str, encoding: str | None) -> None:
        self._source = source
        self._parser = expat.ParserCreate(encoding, namespace_separator=" ")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.EntityDeclHandler = self._entity
        self._depth = 0
        self._item_depth: int | None = None
        self._open: list[tuple[str, dict[str, Any], list[str]]] = []
        self._line = 0
        self._done: list[FeedRecord] = []
        self._is_feed = False
        self._is_google: dict[str, bool] = {}

    def feed(self, content: bytes) -> None:
        self._parse(content, False)

    def close(self) -> None:
        self._parse(b"", True)

    def take(self) -> list[FeedRecord]:
        done, self._done = self._done, []
        return done

    def _parse(self, content: bytes, is_last: bool) -> None:
        try:
            self._parser.Parse(content, is_last)
        except (expat.ExpatError, LookupError, ValueError) as error:
            raise DataError(f"{self._source} cannot be read as XML: {error}") from error

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        _, _, local = name.rpartition(" ")
        self._depth += 1
        if self._depth == 1:
            self._is_feed = local in ("rss", "feed", "RDF")
            if not self._is_feed:
                raise DataError(f"{self._source} is no feed: its root is <{local}>, expected <rss> or <feed>")
        if self._item_depth is None:
            if local in ("item", "entry"):
                self._item_depth, self._line = self._depth, self._parser.CurrentLineNumber
                self._open, self._is_google = [(name, {}, [])], {}
            return
        texts = [attributes["href"]] if local == "link" and "href" in attributes else []
        self._open.append((name, {}, texts))

    def _text(self, text: str) -> None:
        if self._item_depth is not None:
            self._open[-1][2].append(text)

    def _end(self, _name: str) -> None:
        if self._item_depth is not None:
            name, children, texts = self._open.pop()
            if self._depth == self._item_depth:
                self._done.append(FeedRecord(self._line, children))
                self._item_depth = None
            else:
                self._keep(name, children or "".join(texts).strip())
        self._depth -= 1

    def _keep(self, name: str, value: Any) -> None:
        """Into the parent. g:title wins over title; of equal names, several become a list."""
        space, _, local = name.rpartition(" ")
        parent, is_google = self._open[-1][1], space == _NAMESPACE
        is_top = len(self._open) == 1
        if local not in parent or (is_top and is_google and not self._is_google[local]):
            parent[local] = value
            if is_top:
                self._is_google[local] = is_google
        elif not is_top or is_google == self._is_google[local]:
            before = parent[local]
            parent[local] = [*before, value] if isinstance(before, list) else [before, value]

    def _entity(self, name: str, *_rest: Any) -> None:
        raise DataError(f"{self._source} declares the entity {name!r}; a feed needs none, and they are not read")
