"""The story of a real shop, on lines few enough to count by hand."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pandas as pd
import pytest
from rich.console import Console

from infra.demo import retail_screen
from infra.demo.retail_story import (
    MOST_LINES,
    ColdItem,
    Pair,
    Repurchase,
    Season,
    bought_together,
    buy_again,
    choose_customer,
    cold_items,
    tell_customer,
)
from infra.demo.shop_window import ShopWindow

AS_OF = "2011-12-10"
WINDOW = ShopWindow("v", {"a": {"title": "Teapot [red]"}, "b": {"category": "Cups"}}, {}, {}, [], {})


def lines_of(*rows: tuple[str | None, str | None, str, str, int, float | None]) -> pd.DataFrame:
    """(user_id, basket, item_id, day, quantity, price)"""
    columns = ["user_id", "basket", "item_id", "moment", "quantity", "price"]
    frame = pd.DataFrame([list(row) for row in rows], columns=columns)
    frame["moment"] = [datetime.fromisoformat(day).replace(tzinfo=UTC) for day in frame["moment"]]
    return frame


def basket(name: str, items: str) -> list[tuple[str | None, str | None, str, str, int, float | None]]:
    return [("u", name, item, "2011-01-01", 1, 1.0) for item in items]


def test_pairs_by_lift_each_item_once() -> None:
    """Five baskets of several items: a 3, b 2, c 4, d 2. ab 2 -> 2*5/(3*2) = 1.67; cd 2 -> 2*5/(4*2) = 1.25; ac 2."""
    lines = lines_of(
        *basket("1", "abc"), *basket("2", "aabbb"), *basket("3", "acd"), *basket("4", "cd"), *basket("5", "ce"),
        *basket("6", "a"), (None, None, "a", "2011-01-01", 1, 1.0), (None, None, "b", "2011-01-01", 1, 1.0),
    )  # fmt: skip
    assert bought_together(lines, least_baskets=2) == [
        Pair("b", "a", 2, 1.0, pytest.approx(10 / 6)),
        Pair("d", "c", 2, 1.0, 1.25),
    ]
    assert [p.item_id for p in bought_together(lines, least_baskets=2, count=1)] == ["b"]
    assert bought_together(lines, least_baskets=3) == []
    assert bought_together(lines.iloc[:0]) == []


def test_a_traders_basket_says_nothing() -> None:
    many = [chr(200 + n) for n in range(MOST_LINES - 1)]
    lines = lines_of(*basket("1", "ab"), *basket("2", "".join(["a", "b", *many])))
    assert [p.baskets for p in bought_together(lines, least_baskets=1)] == [1]
    lines = lines_of(*basket("1", "ab"), *basket("2", "".join(["a", "b", *many[:-1]])))
    assert bought_together(lines, least_baskets=2) == [Pair("a", "b", 2, 1.0, 1.0)]


def test_what_falls_due_is_one_median_gap_after_the_last_purchase() -> None:
    days = {
        "a": ("2011-11-01", "2011-11-01T20:00", "2011-11-11", "2011-12-01"),  # three days, gaps 10 and 20
        "b": ("2011-10-01", "2011-11-01"),  # only two
        "c": ("2011-12-01", "2011-12-03", "2011-12-06", "2011-12-09"),  # gaps 2, 3, 3; due 2011-12-12
        "d": ("2011-12-02", "2011-12-05", "2011-12-08"),  # due 2011-12-11: as near as a tie on the other side
        "e": ("2011-12-03", "2011-12-05", "2011-12-07"),  # due 2011-12-09
    }
    own = lines_of(*(("u", "1", item, day, 1, 1.0) for item, all_days in days.items() for day in all_days))
    found = buy_again(own, AS_OF)
    assert [r.item_id for r in found] == ["d", "e", "c", "a"]
    assert found[-1] == Repurchase("a", 3, 15.0, date(2011, 12, 1), date(2011, 12, 16))
    assert found[2] == Repurchase("c", 4, 3.0, date(2011, 12, 9), date(2011, 12, 12))
    assert [r.item_id for r in buy_again(own, AS_OF, count=1)] == ["d"]


def test_the_customer_with_the_most_repeated_items_is_chosen() -> None:
    lines = lines_of(
        *(("u9", "1", item, f"2011-0{m}-01", 1, 1.0) for item in "ab" for m in (1, 2, 3)),
        *(("u2", "2", item, f"2011-0{m}-01", 1, 1.0) for item in "ab" for m in (1, 2, 3)),
        *(("u1", "3", item, "2011-01-01", 1, 1.0) for item in "abcabcabc"),
        *((None, "4", item, f"2011-0{m}-01", 1, 1.0) for item in "abcd" for m in (1, 2, 3)),
    )
    assert choose_customer(lines) == "u2"
    assert choose_customer(lines[lines["user_id"] == "u1"]) is None


def test_a_customers_year_has_every_month_and_its_seasons_in_order() -> None:
    lines = lines_of(
        ("u", "1", "a", "2010-12-05", 2, 1.5),
        ("u", "2", "b", "2011-01-05", 1, None),  # no price: a line without value
        ("u", "2", "b", "2011-01-05", 4, 1.0),
        ("u", "3", "x", "2011-07-05", 1, 5.0),
        ("v", "4", "a", "2011-07-05", 100, 100.0),
    )
    told = tell_customer(lines, "u", "2011-09-01", {"a": "Pots", "b": "Cups"})
    assert told.baskets == 3
    assert told.months == [
        ("2010-12", 3.0), ("2011-01", 4.0), ("2011-02", 0.0), ("2011-03", 0.0), ("2011-04", 0.0), ("2011-05", 0.0),
        ("2011-06", 0.0), ("2011-07", 5.0), ("2011-08", 0.0),
    ]  # fmt: skip
    assert told.seasons == [Season("winter", 3, 7.0, "Cups"), Season("summer", 1, 5.0, "no category")]


def test_cold_items_are_those_first_sold_in_the_last_thirty_days() -> None:
    lines = lines_of(
        ("u", "1", "old", "2011-11-09T23:59:59", 1, 1.0), ("u", "1", "old", "2011-12-01", 1, 1.0),
        ("u", "1", "edge", "2011-11-10", 1, 1.0), ("u", "1", "new", "2011-12-01", 1, 1.0),
        (None, "2", "new", "2011-12-02", 1, 1.0), ("u", "1", "tie", "2011-12-01", 1, 1.0),
    )  # fmt: skip
    total, listed, found = cold_items(lines, AS_OF, {"edge": 7, "old": 9})
    assert (total, listed) == (3, 1)
    assert found == [
        ColdItem("edge", date(2011, 11, 10), 1, 7), ColdItem("new", date(2011, 12, 1), 2, 0),
        ColdItem("tie", date(2011, 12, 1), 1, 0),
    ]  # fmt: skip
    assert [c.item_id for c in cold_items(lines, AS_OF, {}, count=1)[2]] == ["new"]


def test_the_story_fits_a_narrow_screen_and_keeps_brackets() -> None:
    lines = lines_of(*(("u", str(m), "a", f"2011-0{m}-01", 1, float(m)) for m in (1, 2, 3)))
    console = Console(width=80, record=True)
    retail_screen.show_pairs(console, WINDOW, [Pair("a", "b", 1234, 0.5, 12.3)])
    retail_screen.show_customer(console, WINDOW, tell_customer(lines, "u", "2011-05-01", {}))
    retail_screen.show_cold(console, WINDOW, (2, 1, [ColdItem("a", date(2011, 1, 1), 3, 4)]))
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= 80
    for part in ("Teapot [red]", "1,234", "50%", "12x", "2011-01 ▃▆█· 2011-04", "1 of the 2 first sold", "4 users"):
        assert part in text
