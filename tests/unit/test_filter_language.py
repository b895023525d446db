"""The filter language: what it says of an item, and where it points when it cannot be read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contracts.errors import DataError, FilterError
from feature_repo.contracts.filter_language import (
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_TESTS,
    MAX_VALUES,
    All,
    Constant,
    IsMissing,
    Not,
    OneOf,
    all_of,
    depends_on_request,
    needed_values,
    parse_filter,
    parse_span,
)
from feature_repo.contracts.filter_rules import bind_filter
from tests.filter_cases import EXPRESSIONS, ITEMS, NOW, holds, reader

DAY = 86_400_000_000

MUG = {
    "item_id": "mug", "category": "Home > Kitchen > Cups", "brand": "Blå", "tag": ("sale", "gift"), "price": 4.5,
    "currency": "EUR", "availability": "IN_STOCK", "available_quantity": 3, "created_at": NOW - 10 * DAY,
    "attributes": {"colour": "blue", "size": 3, "sizes": ["s", 4], "vegan": True, "nothing": None, "huge": 10**400},
    "in_cart": True, "bought_at": NOW - 30 * DAY, "seen_at": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('category == "Home > Kitchen > Cups"', True),
        ('category in ["Garden", "Home > Kitchen"]', True),  # below one of them
        ('category == "Home > Kit"', False),  # a level is a whole word
        ('categories != "Home"', False),
        ('brand == "Blå" and brand != "blå" and brand != "Bla\u030a"', True),  # letter by letter, unnormalised
        ('tag == "gift"', True),
        ('tags in ["x", "sale"] and not tag == "adult"', True),
        ("price == 4.5 and price <= 4.5 and price >= 4.5 and price < 4.51 and price > -1e3", True),
        ("price != 4.5 or price > 4.5 or price < 4.5", False),
        ("price in [1, 4.5]", True),
        ("price not in [1, 4.5]", False),
        ('availability == "IN_STOCK" and available_quantity >= 3', True),
        ('created_at > ago("10d")', False),  # the very instant
        ('created_at >= ago("10d") and created_at < "2024-03-08"', True),
        ('language == "de"', False),  # it has none
        ('language != "de" and not language == "de" and language is null', True),
        ("price is not null AND tag is not null And group_id IS NULL", True),
        ("attributes.colour == 'blue' and attributes.size == 3 and attributes.size < 4", True),
        ('attributes.size == "3"', False),  # a number is no text
        ("attributes.sizes == 's' and attributes.sizes == 4", True),  # one of the list
        ("attributes.vegan == true and not attributes.vegan == 1", True),
        ("attributes.nothing is null and attributes.nowhere is null", True),
        ("attributes.huge > 5", False),  # beyond any double: no number
        ("in_cart(item) and not in_session(item)", True),
        ('bought_within("30d") and not bought_within("29d") and not seen_within("52w")', True),
        ("true and not false", True),
        ("false or price < 5 and price > 5", False),  # `and` binds closer
        ("(false or price < 5) and price > 4", True),
        ("not price < 5 or price < 5", True),
    ],
)
def test_what_a_filter_says_of_a_mug(text: str, expected: bool) -> None:
    assert bind_filter(parse_filter(text), reader, now_micros=NOW)(MUG) is expected


@pytest.mark.parametrize("above", ["A", "A >", "A > > B"])
def test_a_category_lies_below_every_path_it_begins_with(above: str) -> None:
    lies = bind_filter(parse_filter(f'category == "{above}"'), reader, now_micros=NOW)
    assert lies({"category": "A > > B"})
    assert not lies({"category": "A>B"})


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("prise < 3", 0, "no field 'prise'; did you mean 'price'?"),
        ("price < 3 and brnd == 'x'", 14, "did you mean 'brand'?"),
        ("price = 3", 6, "did you mean '=='?"),
        ("price === 3", 6, "did you mean '=='?"),
        ("price <> 3", 6, "did you mean '!='?"),
        ("price < 3 && true", 10, "did you mean 'and'?"),
        ("price < 3 adn true", 10, "did you mean 'and'?"),
        ("price < 'a'", 8, "compare numbers"),
        ("price == 'a'", 9, "price is a number"),
        ("brand == 5", 9, 'write "5"'),
        ("brand == Acme", 9, 'a text stands in quotes: "Acme"'),
        ("brand < 'x'", 6, "no order"),
        ("price == null", 9, "write 'is null'"),
        ("price ==", 8, "got the end"),
        ("(price < 3", 10, "to close the bracket"),
        ("price < 3)", 9, "expected 'and', 'or' or the end"),
        ("price in []", 10, "a number for price"),
        ("price in [1 2]", 12, "to close the list"),
        ("attributes.x in [1, 'a']", 20, "of one type"),
        ("brand == 'x", 9, "never closed"),
        (r"brand == 'a\n'", 9, "are escapes"),
        ("brand == ''", 9, "is null"),
        ("price < 1.2.3", 8, "a number looks like"),
        ("price < 1e999", 8, "too large"),
        ("price < ٣", 8, "a number looks like"),
        ('availability == "in_stock"', 16, "did you mean 'IN_STOCK'?"),
        ('created_at == "2024-03-01"', 11, "< <= > >="),
        ('created_at > "2024-13-01"', 13, "not a timestamp"),
        ("created_at > 5", 13, 'ago("30d")'),
        ('price > ago("30d")', 8, "no time"),
        ('bought_within("30 days")', 14, '"30d"'),
        ("in_kart(item)", 0, "did you mean 'in_cart'?"),
        ("in_cart(brand)", 8, "in_cart(item)"),
        ("attribute.colour == 'x'", 0, "did you mean 'attributes'?"),
        ("attributes == 'x'", 0, "no field 'attributes'"),
        ("", 0, "leave it out"),
        ("   ", 3, "leave it out"),
        ("and price < 3", 0, "expected a field"),
        ("price < 3 # cheap", 10, "unexpected character '#'"),
        ("brand == '\ud800'", 10, "half a character"),
        ("not " * (MAX_DEPTH + 1) + "true", 4 * MAX_DEPTH, "inside one another"),
        ("(" * 5_000, MAX_LENGTH, "at most 4000 characters"),
        (" and ".join(["true"] * (MAX_TESTS + 1)), 9 * MAX_TESTS, "at most 64 tests"),
        (f"price in [{', '.join(['1'] * (MAX_VALUES + 1))}]", 10 + 3 * MAX_VALUES, "at most 200 values"),
    ],
)
def test_an_error_points_at_the_character(text: str, position: int, words: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(text)
    assert words in str(caught.value)
    assert caught.value.position == position


def test_at_the_bounds() -> None:
    assert parse_filter("not " * MAX_DEPTH + "true") == Constant(True)
    assert isinstance(parse_filter(" and ".join(["true"] * MAX_TESTS)), All)
    values = ", ".join(str(n) for n in range(MAX_VALUES))
    assert parse_filter(f"price in [{values}]") == OneOf("price", tuple(float(n) for n in range(MAX_VALUES)))
    assert parse_filter("true".ljust(MAX_LENGTH)) == Constant(True)


def test_a_text_is_parsed_once() -> None:
    assert parse_filter("price < 12.25") is parse_filter("price < 12.25")


@given(EXPRESSIONS, ITEMS)
@settings(max_examples=300, deadline=None)
def test_it_agrees_with_a_slow_oracle(expression: tuple[str, Any], item: dict[str, Any]) -> None:
    text, tree = expression
    assert bind_filter(parse_filter(text), reader, now_micros=NOW)(item) is holds(tree, item)


@given(st.text(alphabet="price<>=!&()[]\"'\\ \n.,0129eagotin_ándr\x00\ud800", max_size=40))
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_filter_or_an_error_within_it(text: str) -> None:
    position = 0
    try:
        parse_filter(text)
    except FilterError as error:
        position = error.position
    assert 0 <= position <= len(text)


def test_what_depends_on_the_request() -> None:
    assert depends_on_request(parse_filter("price < 3 or not in_cart(item)"))
    assert depends_on_request(parse_filter('created_at < ago("1s")'))
    assert not depends_on_request(parse_filter('created_at < "2024-03-01" and price is null'))


def test_values_that_an_item_must_have() -> None:
    said = {
        'brand == "a" and price < 3': ("a",),
        'brand == "a" or brand in ["b", "a"]': ("a", "b"),
        'brand == "a" and price < 3 or brand == "b" and price > 5': ("a", "b"),
        'brand in ["a", "b"] and brand == "c"': ("c",),
        'brand == "a" or price < 3': None,
        'not brand == "a"': None,
        "brand is null": None,
        "false": (),
    }
    assert {text: needed_values(parse_filter(text), "brand") for text in said} == said


def test_expressions_together() -> None:
    cheap, missing = OneOf("price", (1.0,)), IsMissing("brand")
    assert all_of() == Constant(True)
    assert all_of(cheap) == cheap
    assert all_of(All((cheap, missing)), Not(cheap)) == All((cheap, missing, Not(cheap)))


def test_spans() -> None:
    assert [parse_span(text) for text in ("1s", "2m", "3h", "4d", "5 w")] == [
        1_000_000, 120_000_000, 10_800_000_000, 4 * DAY, 35 * DAY
    ]  # fmt: skip
    for text in ("", "d", "1", "1y", "-1d", "36601d", "1d2h", "٣d"):
        with pytest.raises(DataError, match="30d"):
            parse_span(text)
