"""The filter language: which items may be in a slate, said in one line of text.

    category in ["Home > Kitchen"] and price < 50 and not tag == "adult" and created_at > ago("30d")

Grammar (words in any case; the texts of items are compared exactly, letter by letter):
    expression  all ("or" all)*            all   one ("and" one)*
    one         "not" one | "(" expression ")" | "true" | "false" | call | field test
    test        (== | !=) value | (< | <= | > | >=) value | ["not"] "in" "[" value, ... "]" | "is" ["not"] "null"
    call        in_cart(item) | in_session(item) | bought_within("30d") | seen_within("12h")
    value       "text" or 'text' (\\" \\' \\\\ inside), a number, true, false, ago("30d")

Two values, no third: a test of something that an item does not have is false (`price < 50` without a price), and `not`
turns that around (`price != 50` holds without a price). `is null` asks whether it is there at all.
A category is met by itself and by all that lies below it; `tag == "x"` by any of the tags. `x in [a, b]` is
`x == a or x == b`; `x != a` is `not x == a`.

Cost is bounded by MAX_LENGTH, MAX_DEPTH, MAX_TESTS and MAX_VALUES; nothing is ever evaluated as code.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from feature_repo.contracts.catalogue import AVAILABILITIES
from feature_repo.contracts.errors import DataError, FilterError, nearest
from feature_repo.contracts.times import parse_timestamp, to_micros

MAX_LENGTH = 4_000
"""Characters."""
MAX_DEPTH = 20
"""Brackets and `not` inside one another."""
MAX_TESTS = 64
MAX_VALUES = 200
"""In one list."""
REMEMBERED_FILTERS = 1_024

TEXT, PATH, TAGS, WORD, NUMBER, TIME, FLAG, ANY = "text", "path", "tags", "word", "number", "time", "flag", "any"

FIELDS = {
    "item_id": TEXT,
    "category": PATH,
    "brand": TEXT,
    "tag": TAGS,
    "price": NUMBER,
    "currency": TEXT,
    "availability": WORD,
    "available_quantity": NUMBER,
    "created_at": TIME,
    "language": TEXT,
    "group_id": TEXT,
}
"""What an item has, and of which type; besides these `attributes.<name>`, of any type."""
ATTRIBUTE_PREFIX = "attributes."

IN_CART, IN_SESSION, BOUGHT_AT, SEEN_AT = "in_cart", "in_session", "bought_at", "seen_at"
PERSON_FIELDS = {IN_CART: FLAG, IN_SESSION: FLAG, BOUGHT_AT: TIME, SEEN_AT: TIME}
"""What a person has to do with an item: whether it lies in their cart or was touched in the running session, and when
they last bought or saw it. Calls test them; their names are no fields of the language."""

_ITEM_CALLS = {"in_cart": IN_CART, "in_session": IN_SESSION}
_SPAN_CALLS = {"bought_within": BOUGHT_AT, "seen_within": SEEN_AT}
_ALIASES = {"tags": "tag", "categories": "category"}
_WORDS = ("and", "or", "not", "in", "is", "null", "true", "false")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_MAX_SPAN_SECONDS = 100 * 366 * 86_400
_ORDERS = ("<", "<=", ">", ">=")
_MEANT = {"=": "==", "===": "==", "<>": "!=", "&&": "and", "&": "and", "||": "or", "|": "or", "!": "not", "~": "not"}


class Ago(NamedTuple):
    """That long before the instant of the request."""

    micros: int


Value = str | float | bool


@dataclass(frozen=True, slots=True)
class Constant:
    """Holds for all items, or for none."""

    holds: bool


@dataclass(frozen=True, slots=True)
class OneOf:
    """The field is there and has one of the values, in the field's own sense (a path: lies in or below one; tags and
    lists: one of them). Values are all of one type."""

    field: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """The field is there and stands in this order to the bound: a number, or a time in microseconds since 1970."""

    field: str
    relation: str
    bound: float | int | Ago


@dataclass(frozen=True, slots=True)
class IsMissing:
    """The item has no such thing; an empty text or list is none."""

    field: str


@dataclass(frozen=True, slots=True)
class Not:
    part: Expression


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    parts: tuple[Expression, ...]


Expression = Constant | OneOf | Order | IsMissing | Not | All | AnyOf


@functools.lru_cache(maxsize=REMEMBERED_FILTERS)
def parse_filter(text: str) -> Expression:
    """The expression of a text; the last 1,024 texts are remembered. Raises FilterError pointing at the character."""
    if len(text) > MAX_LENGTH:
        raise FilterError(f"a filter has at most {MAX_LENGTH} characters, got {len(text)}", position=MAX_LENGTH)
    return _Parser(text).parse()


def parse_span(text: str) -> int:
    """Microseconds of a span such as 30d, 12h or 2w (s, m, h, d, w). Raises DataError."""
    match = _SPAN.fullmatch(text)
    if match is None or int(match[1]) * _UNITS[match[2]] > _MAX_SPAN_SECONDS:
        raise DataError(f"a span looks like 30d or 12h (s, m, h, d, w; at most a century), got {text[:40]!r}")
    return int(match[1]) * _UNITS[match[2]] * 1_000_000


def field_type(field: str) -> str:
    """The type of a field of an expression."""
    return FIELDS.get(field) or PERSON_FIELDS.get(field) or ANY


def tests_of(expression: Expression) -> Iterator[OneOf | Order | IsMissing]:
    """All tests of an expression, in the order of its text."""
    match expression:
        case Not(part):
            yield from tests_of(part)
        case All(parts) | AnyOf(parts):
            for one in parts:
                yield from tests_of(one)
        case Constant():
            return
        case _:
            yield expression


def depends_on_request(expression: Expression) -> bool:
    """Whether it asks about the person or about the time, so that it says something else in the next request."""
    return any(
        test.field in PERSON_FIELDS or (isinstance(test, Order) and isinstance(test.bound, Ago))
        for test in tests_of(expression)
    )


def needed_values(expression: Expression, field: str) -> tuple[Value, ...] | None:
    """Values of which every item that passes has one in `field`; None when the expression does not say so."""
    match expression:
        case OneOf(name, values) if name == field:
            return values
        case All(parts):
            found = [needed for part in parts if (needed := needed_values(part, field)) is not None]
            return min(found, key=len, default=None)
        case AnyOf(parts):
            known = [needed for part in parts if (needed := needed_values(part, field)) is not None]
            return tuple(dict.fromkeys(v for each in known for v in each)) if len(known) == len(parts) else None
        case Constant(holds) if not holds:
            return ()
        case _:
            return None


def all_of(*parts: Expression) -> Expression:
    """Every one of them; Constant(True) for none."""
    flat = [one for part in parts for one in (part.parts if isinstance(part, All) else (part,))]
    return flat[0] if len(flat) == 1 else All(tuple(flat)) if flat else Constant(True)


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


_PATTERN = re.compile(
    r"""(?P<space>\s+)|(?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.]))|(?P<name>[^\W\d]\w*)"""
    r"""|(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<sign>==(?!=)|!=|<=|>=|<(?![>=])|>|[()\[\],.])""",
    re.DOTALL,
)
_ODD_SIGN = re.compile(r"={1,3}|<>|&&?|\|\|?|[!~]")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_SPAN = re.compile(r"([0-9]{1,9}) ?([smhdw])")
_SURROGATE = re.compile("[\ud800-\udfff]")


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    if half := _SURROGATE.search(text):
        raise FilterError("half a character (a lone surrogate)", position=half.start(), text=text)
    while at < len(text):
        match = _PATTERN.match(text, at)
        if match is None:
            _refuse_character(text, at)
        if match.lastgroup != "space":
            found.append(_Token(str(match.lastgroup), match.group(), at))
        at = match.end()
    found.append(_Token("end", "", len(text)))
    return found


def _refuse_character(text: str, at: int) -> NoReturn:
    if text[at] in "\"'":
        raise FilterError("a text that is never closed", position=at, text=text)
    if odd := _ODD_SIGN.match(text, at):
        hint = f"; did you mean {_MEANT[odd.group()]!r}?" if odd.group() in _MEANT else ""
        raise FilterError(f"no such sign: {odd.group()!r}{hint}", position=at, text=text)
    if text[at].isdigit() or text[at] == "-":
        raise FilterError("a number looks like 12, -1 or 0.5", position=at, text=text)
    raise FilterError(f"unexpected character {text[at]!r}", position=at, text=text)


class _Parser:
    """Recursive descent, one method per rule of the grammar; `_depth` bounds the recursion."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0
        self._depth = 0
        self._tests = 0

    def parse(self) -> Expression:
        if self._peek().kind == "end":
            self._fail("an empty filter; leave it out to have none", self._peek())
        expression = self._any()
        token = self._peek()
        if token.kind != "end":
            hint = f"; did you mean {_MEANT[token.text]!r}?" if token.text in _MEANT else nearest(token.text, _WORDS)
            self._fail(f"expected 'and', 'or' or the end, got {token.text[:40]!r}{hint}", token)
        return expression

    def _any(self) -> Expression:
        parts = [self._all()]
        while self._takes_word("or"):
            parts.append(self._all())
        return _any_of(parts)

    def _all(self) -> Expression:
        parts = [self._one()]
        while self._takes_word("and"):
            parts.append(self._one())
        return all_of(*parts)

    def _one(self) -> Expression:
        token = self._take()
        word = token.text.lower()
        if token.kind == "name" and word == "not":
            with _Deeper(self, token):
                part = self._one()
            return part.part if isinstance(part, Not) else Not(part)
        if token.text == "(" and token.kind == "sign":
            with _Deeper(self, token):
                part = self._any()
            self._expect(")", "to close the bracket")
            return part
        if token.kind != "name" or word in ("and", "or", "in", "is", "null"):
            shown = repr(token.text[:40]) if token.text else "the end"
            self._fail(f"expected a field such as price, or 'not', or '(', got {shown}", token)
        self._tests += 1
        if self._tests > MAX_TESTS:
            self._fail(f"a filter has at most {MAX_TESTS} tests", token)
        if word in ("true", "false") and not self._is_sign("."):
            return Constant(word == "true")
        if self._is_sign("("):
            return self._call(token)
        return self._test(token)

    def _call(self, name: _Token) -> Expression:
        self._expect("(", "")
        if name.text in _ITEM_CALLS:
            argument = self._take()
            if argument.text != "item":
                self._fail(f"{name.text} is asked of the item: {name.text}(item)", argument)
            self._expect(")", f"after {name.text}(item")
            return OneOf(_ITEM_CALLS[name.text], (True,))
        if name.text in _SPAN_CALLS:
            span = self._span(name.text)
            self._expect(")", f"after the time of {name.text}")
            return Order(_SPAN_CALLS[name.text], ">=", span)
        known = (*_ITEM_CALLS, *_SPAN_CALLS)
        self._fail(f"no call {name.text[:40]!r}{nearest(name.text, known)}; there are {', '.join(known)}", name)

    def _span(self, name: str) -> Ago:
        token = self._take()
        try:
            return Ago(parse_span(token.text[1:-1] if token.kind == "string" else token.text))
        except DataError:
            self._fail(f'{name} takes a span such as "30d" (s, m, h, d, w; at most a century)', token)

    def _test(self, name: _Token) -> Expression:
        field = self._field(name)
        token = self._take()
        word = token.text.lower()
        if token.kind == "name" and word == "is":
            negated = self._takes_word("not")
            self._expect_word("null")
            return Not(IsMissing(field)) if negated else IsMissing(field)
        if token.kind == "name" and word == "not":
            self._expect_word("in")
            return Not(OneOf(field, self._list(field)))
        if token.kind == "name" and word == "in":
            return OneOf(field, self._list(field))
        if token.text in ("==", "!=") and token.kind == "sign":
            self._equality_fits(field, token)
            test = OneOf(field, (self._value(field),))
            return test if token.text == "==" else Not(test)
        if token.text in _ORDERS and token.kind == "sign":
            if field_type(field) not in (NUMBER, TIME, ANY):
                self._fail(f"{field} has no order: it is compared with == != in", token)
            return Order(field, token.text, self._bound(field))
        signs = ("==", "!=", *_ORDERS, "in", "not", "is")
        shown = f"got {token.text[:40]!r}{nearest(token.text, signs)}" if token.text else "got the end"
        self._fail(f"expected a test of {field} ({' '.join(signs)}), {shown}", token)

    def _field(self, name: _Token) -> str:
        field = _ALIASES.get(name.text, name.text)
        if self._is_sign("."):
            if name.text + "." != ATTRIBUTE_PREFIX:
                hint = nearest(name.text, ["attributes"])
                self._fail(f"only attributes have parts, as attributes.colour; got {name.text[:40]!r}{hint}", name)
            self._take()
            part = self._take()
            if part.kind != "name":
                self._fail("expected the name of an attribute, as attributes.colour", part)
            return ATTRIBUTE_PREFIX + part.text
        if field not in FIELDS:
            calls = (*_ITEM_CALLS, *_SPAN_CALLS)
            hint = nearest(name.text, (*FIELDS, "attributes", *calls))
            self._fail(f"no field {name.text[:40]!r}{hint}", name)
        return field

    def _list(self, field: str) -> tuple[Value, ...]:
        opening = self._expect("[", f"a list, as {field} in [...]")
        self._equality_fits(field, opening)
        values = [self._value(field)]
        while self._is_sign(","):
            self._take()
            if len(values) == MAX_VALUES:
                self._fail(f"a list has at most {MAX_VALUES} values", self._peek())
            at = self._peek()
            values.append(self._value(field))
            if type(values[-1]) is not type(values[0]):
                self._fail("the values of a list are of one type", at)
        self._expect("]", "to close the list")
        return tuple(dict.fromkeys(values))

    def _equality_fits(self, field: str, token: _Token) -> None:
        if field_type(field) == TIME:
            self._fail(f"{field} is a time: it is compared with < <= > >=", token)

    def _value(self, field: str) -> Value:
        token, kind = self._peek(), field_type(field)
        value = self._literal(f"a {'value' if kind == ANY else 'number' if kind == NUMBER else 'text'} for {field}")
        if kind == NUMBER and not isinstance(value, float):
            self._fail(f"{field} is a number, got {token.text[:40]}", token)
        if kind in (TEXT, PATH, TAGS, WORD) and not isinstance(value, str):
            self._fail(f'{field} is a text: write "{token.text[:40]}"', token)
        if kind == WORD and value not in AVAILABILITIES:
            hint = nearest(str(value).upper(), AVAILABILITIES)
            self._fail(f"{field} is one of {', '.join(AVAILABILITIES)}; got {token.text[:40]}{hint}", token)
        return value

    def _literal(self, wanted: str) -> Value:
        token = self._take()
        word = token.text.lower()
        if token.kind == "string":
            text = _ESCAPE.sub(self._unescaped(token), token.text[1:-1])
            if not text or "\0" in text:
                self._fail("an empty text; to find items without one write 'is null'", token)
            return text
        if token.kind == "number":
            return self._number(token)
        if token.kind == "name" and word in ("true", "false"):
            return word == "true"
        if token.kind == "name" and word == "null":
            self._fail("nothing equals null; write 'is null'", token)
        hint = f'; a text stands in quotes: "{token.text[:40]}"' if token.kind == "name" else ""
        shown = repr(token.text[:40]) if token.text else "the end"
        self._fail(f"expected {wanted}, got {shown}{hint}", token)

    def _unescaped(self, token: _Token) -> Callable[[re.Match[str]], str]:
        def one(match: re.Match[str]) -> str:
            if match[1] not in "\"'\\":
                self._fail(f"in a text only \\\" \\' and \\\\ are escapes, got {match[0]!r}", token)
            return match[1]

        return one

    def _number(self, token: _Token) -> float:
        number = float(token.text)
        if number in (float("inf"), float("-inf")):
            self._fail("a number that is too large", token)
        return number

    def _bound(self, field: str) -> float | int | Ago:
        token = self._peek()
        if token.text == "ago" and token.kind == "name":
            if field_type(field) != TIME:
                self._fail(f"{field} is no time", token)
            self._take()
            self._expect("(", 'as in ago("30d")')
            span = self._span("ago")
            self._expect(")", "after the time of ago")
            return span
        if field_type(field) == TIME:
            self._take()
            if token.kind != "string":
                self._fail(f'{field} is a time: "2024-03-01", "2024-03-01T12:00:00Z" or ago("30d")', token)
            try:
                return to_micros(parse_timestamp(token.text[1:-1]))
            except DataError as error:
                self._fail(str(error), token)
        value = self._literal(f"a number for {field}")
        if not isinstance(value, float):
            self._fail(f"< <= > >= compare numbers, got {token.text[:40]}", token)
        return value

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _is_sign(self, sign: str) -> bool:
        return self._peek().kind == "sign" and self._peek().text == sign

    def _takes_word(self, word: str) -> bool:
        token = self._peek()
        if token.kind == "name" and token.text.lower() == word:
            self._take()
            return True
        return False

    def _expect(self, sign: str, why: str) -> _Token:
        if not self._is_sign(sign):
            token = self._peek()
            shown = repr(token.text[:40]) if token.text else "the end"
            self._fail(f"expected {sign!r} {why}, got {shown}", token)
        return self._take()

    def _expect_word(self, word: str) -> None:
        token = self._peek()
        if not self._takes_word(word):
            shown = repr(token.text[:40]) if token.text else "the end"
            self._fail(f"expected {word!r}, got {shown}", token)

    def _fail(self, message: str, token: _Token) -> NoReturn:
        raise FilterError(message, position=token.position, text=self._text)


class _Deeper:
    """One level further down, refused beyond MAX_DEPTH."""

    def __init__(self, parser: _Parser, token: _Token) -> None:
        self._parser = parser
        self._token = token

    def __enter__(self) -> None:
        self._parser._depth += 1
        if self._parser._depth > MAX_DEPTH:
            self._parser._fail(f"at most {MAX_DEPTH} brackets and 'not' inside one another", self._token)

    def __exit__(self, *_: object) -> None:
        self._parser._depth -= 1


def _any_of(parts: list[Expression]) -> Expression:
    """At least one of them. Tests of one field for values of one type become one test."""
    flat = [one for part in parts for one in (part.parts if isinstance(part, AnyOf) else (part,))]
    first = flat[0]
    if len(flat) > 1 and isinstance(first, OneOf):
        same = [one for one in flat if isinstance(one, OneOf) and one.field == first.field]
        values = tuple(dict.fromkeys(value for one in same for value in one.values))
        if len(same) == len(flat) and len({type(value) for value in values}) == 1:
            return OneOf(first.field, values)
    return first if len(flat) == 1 else AnyOf(tuple(flat))
