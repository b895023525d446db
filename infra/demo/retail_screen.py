"""How the story of a real shop looks on screen. Prints values, computes none."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from infra.demo.retail_story import COLD_DAYS, ColdItem, Customer, Pair
from infra.demo.screen import small_table
from infra.demo.shop_window import ShopWindow

_BLOCKS = "▁▂▃▄▅▆▇█"


def show_pairs(console: Console, window: ShopWindow, pairs: Sequence[Pair]) -> None:
    """What is bought together."""
    table = small_table(
        "Bought together (same invoice)", "who buys", "also buys", "baskets", "of them", "lift",
        right=("baskets", "of them", "lift"),
    )  # fmt: skip
    for pair in pairs:
        names = (escape(window.title(pair.item_id)), escape(window.title(pair.other_id)))
        table.add_row(*names, f"{pair.baskets:,}", f"{pair.share:.0%}", f"{pair.lift:.0f}x")
    console.print(table)


def show_customer(console: Console, window: ShopWindow, customer: Customer) -> None:
    """One customer: the year month by month, the seasons, what they buy again and again."""
    top = max((value for _, value in customer.months), default=0.0)
    bars = "".join(_bar(value, top) for _, value in customer.months)
    first, last = customer.months[0][0], customer.months[-1][0]
    console.print(f"\n[bold]A customer's year:[/] {escape(customer.user_id)}, {customer.baskets:,} baskets")
    console.print(f"{first} [green]{bars}[/] {last}   busiest month {top:,.0f}")
    table = small_table("Their seasons", "season", "lines", "value", "mostly", right=("lines", "value"))
    for season in customer.seasons:
        table.add_row(season.name, f"{season.lines:,}", f"{season.value:,.0f}", escape(season.top_category))
    console.print(table)
    table = small_table(
        "What they buy again, next due first", "item", "times", "every", "last", "due", right=("times", "every")
    )
    for again in customer.again:
        every = f"{again.interval_days:g} days"
        title = escape(window.title(again.item_id))
        table.add_row(title, str(again.times), every, again.last.isoformat(), again.due.isoformat())
    console.print(table)


def show_cold(console: Console, window: ShopWindow, cold: tuple[int, int, Sequence[ColdItem]]) -> None:
    """New items, and whether the lists know them yet."""
    total, listed, examples = cold
    table = small_table(
        f"Cold items: {listed:,} of the {total:,} first sold in the last {COLD_DAYS} days are in somebody's list",
        "item", "first sold", "lines since", "in the lists of",
        right=("lines since", "in the lists of"),
    )  # fmt: skip
    for item in examples:
        users = f"{item.listed_for:,} users"
        table.add_row(escape(window.title(item.item_id)), item.first.isoformat(), f"{item.lines:,}", users)
    console.print(table)


def _bar(value: float, top: float) -> str:
    if value <= 0 or top <= 0:
        return "·"
    return _BLOCKS[min(len(_BLOCKS) - 1, int(value / top * len(_BLOCKS)))]
