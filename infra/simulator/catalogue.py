"""The goods of a simulated shop: categories, brands, prices, stock, arrivals and departures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.simulator.config import ShopConfig

TASTE_SIZE = 16
"""Dimensions of taste. Quality, price and a constant are three more dimensions of the factors."""
BASE_UTILITY = -1.8
"""Utility of an average item for somebody indifferent to it: a preference of about 0.14."""

CATEGORIES = {
    "Kitchen": ("Mugs", "Pans", "Knives", "Storage Jars", "Baking Tins"),
    "Garden": ("Planters", "Hand Tools", "Bird Feeders", "Lanterns", "Seeds"),
    "Home": ("Cushions", "Throws", "Candles", "Picture Frames", "Clocks"),
    "Sports": ("Running Shirts", "Yoga Mats", "Bike Lights", "Water Bottles", "Climbing Ropes"),
    "Toys": ("Puzzles", "Board Games", "Building Sets", "Soft Toys", "Wooden Trains"),
    "Books": ("Crime Novels", "Cookbooks", "Travel Guides", "Science Books", "Picture Books"),
    "Fashion": ("Scarves", "Boots", "Jackets", "Belts", "Handbags"),
    "Electronics": ("Headphones", "Keyboards", "Desk Lamps", "Chargers", "Speakers"),
}
_MEDIAN_PRICE = (14.0, 18.0, 22.0, 26.0, 20.0, 12.0, 48.0, 42.0)
_BRANDS = (
    "Alder", "Birk", "Calla", "Dunmore", "Elmwood", "Fjord", "Gilda", "Harrow", "Ives", "Juniper", "Kestrel", "Lumen",
    "Marlow", "Norrland", "Osier", "Pell", "Quill", "Rowan", "Sable", "Tarn", "Umber", "Vesper", "Willow", "Yarrow",
)  # fmt: skip
_STYLES = (
    "Classic", "Bright", "Slate", "Coastal", "Nordic", "Copper", "Meadow", "Midnight", "Ivory", "Rustic", "Bold",
    "Linen", "Urban", "Heritage", "Moss", "Coral",
)  # fmt: skip


@dataclass(frozen=True)
class Catalogue:
    """Arrays over items (row = item) and over categories. Days count from the shop's first day; NEVER means not at all.

    factors       (items, TASTE_SIZE + 3) float32: style, quality, how dear for its category (in sigmas), 1
    exposure      how visible the item is, a weight; heavy-tailed
    created_on, expires_on, hidden_from, sold_out_from   days; negative: before the history
    """

    item_ids: NDArray[np.str_]
    titles: list[str]
    category_names: list[str]
    categories: NDArray[np.int32]
    brands: list[str]
    prices: NDArray[np.float64]
    factors: NDArray[np.float32]
    category_factors: NDArray[np.float32]
    exposure: NDArray[np.float32]
    created_on: NDArray[np.int32]
    expires_on: NDArray[np.int32]
    hidden_from: NDArray[np.int32]
    sold_out_from: NDArray[np.int32]

    def visibility(self, day: int) -> NDArray[np.float32]:
        """How visible each item is on a day: 0 before it arrives and after it leaves, double in its first ten days."""
        on_show = (self.created_on <= day) & (self.expires_on > day) & (self.hidden_from > day)
        is_new = (self.created_on >= 0) & (day - self.created_on < 10)
        is_sold_out = self.sold_out_from <= day
        factor = np.where(is_new, 2.0, 1.0) * np.where(is_sold_out, 0.3, 1.0) * on_show
        return (self.exposure * factor).astype(np.float32)


NEVER = np.int32(1_000_000)


def make_catalogue(config: ShopConfig, rng: np.random.Generator) -> Catalogue:
    """The catalogue of a shop. Items of one category share most of their style; brands lean a little of their own."""
    count = config.item_count
    paths = [(top, leaf) for leaf in range(5) for top in range(len(CATEGORIES))]
    paths = paths[: int(np.clip(count // 8, 4, 40))]
    tops = list(CATEGORIES)
    names = [f"{tops[top]} > {CATEGORIES[tops[top]][leaf]}" for top, leaf in paths]

    top_style = rng.normal(size=(len(tops), TASTE_SIZE))
    leaf_style = 0.6 * top_style[[top for top, _ in paths]] + 0.8 * rng.normal(size=(len(paths), TASTE_SIZE))
    brand_style = rng.normal(size=(len(_BRANDS), TASTE_SIZE))
    categories = np.sort(rng.integers(0, len(paths), count)).astype(np.int32)
    categories[: len(paths)] = np.arange(len(paths))  # no category is empty
    categories.sort()
    rng.shuffle(categories)
    brands = rng.integers(0, len(_BRANDS), count)
    own_style = rng.normal(size=(count, TASTE_SIZE))
    style = 0.75 * leaf_style[categories] + 0.3 * brand_style[brands] + 0.75 * own_style

    dearness = rng.normal(size=count)
    medians = np.array([_MEDIAN_PRICE[top] for top, _ in paths])
    prices = np.round(medians[categories] * np.exp(0.45 * dearness), 2)
    quality = rng.normal(size=count)
    ranks = rng.permutation(count) + 1
    exposure = ranks**-0.6 * np.exp(0.3 * quality)

    factors = np.column_stack([style, 0.3 * quality, dearness, np.ones(count)]).astype(np.float32)
    words = rng.integers(0, len(_STYLES), count)
    titles = [
        f"{_BRANDS[b]} {_STYLES[w]} {_singular(names[c].partition(' > ')[2])} No. {n}"
        for n, (b, w, c) in enumerate(zip(brands, words, categories, strict=True), start=1)
    ]
    created_on, expires_on, hidden_from, sold_out_from = _life_spans(config, rng)
    return Catalogue(
        item_ids=numbered_ids("i", count),
        titles=titles,
        category_names=names,
        categories=categories,
        brands=[_BRANDS[b] for b in brands],
        prices=prices,
        factors=factors,
        category_factors=leaf_style.astype(np.float32),
        exposure=(exposure / exposure.mean()).astype(np.float32),
        created_on=created_on,
        expires_on=expires_on,
        hidden_from=hidden_from,
        sold_out_from=sold_out_from,
    )


def _life_spans(config: ShopConfig, rng: np.random.Generator) -> tuple[NDArray[np.int32], ...]:
    """(created, expires, hidden, sold out) days: 15 % arrive meanwhile, 5 % leave, 2 % are hidden, 6 % sell out."""
    count, days = config.item_count, config.days
    created = np.where(rng.random(count) < 0.15, rng.integers(0, days, count), -rng.integers(1, 400, count))
    lot = rng.random(count)
    last = max(1, days // 6)
    end = days - rng.integers(0, last, count) - 1
    half = rng.integers(days // 2, days, count)
    expires = np.where((lot < 0.05) & (half > created), half, NEVER)
    hidden = np.where((lot >= 0.05) & (lot < 0.07), end, NEVER)
    sold_out = np.where((lot >= 0.07) & (lot < 0.13), end, NEVER)
    return tuple(a.astype(np.int32) for a in (created, expires, hidden, sold_out))


def _singular(noun: str) -> str:
    if noun in ("Seeds", "Knives", "Scarves", "Boots", "Headphones"):
        return {"Knives": "Knife", "Scarves": "Scarf"}.get(noun, noun)
    return noun.removesuffix("s")


def numbered_ids(prefix: str, count: int) -> NDArray[np.str_]:
    width = max(4, len(str(count)))
    return np.array([f"{prefix}{n:0{width}d}" for n in range(1, count + 1)])


def days_to_timestamps(config: ShopConfig, days: NDArray[np.int32], offset_hours: int) -> pa.Array:
    """Days from the shop's first day as UTC instants at `offset_hours`; NEVER becomes null."""
    start = np.datetime64(config.start_day, "D").astype("datetime64[us]")
    moments = start + days.astype("timedelta64[D]") + np.timedelta64(offset_hours, "h")
    return pa.array(moments, pa.timestamp("us"), mask=days >= NEVER).cast(pa.timestamp("us", "UTC"))


def items_table(config: ShopConfig, catalogue: Catalogue) -> pa.Table:
    """items.parquet: canonical item columns, as of the end of the history."""
    is_sold_out = catalogue.sold_out_from < NEVER
    count = len(catalogue.item_ids)
    return pa.table(
        {
            "item_id": pa.array(catalogue.item_ids),
            "title": catalogue.titles,
            "category": [catalogue.category_names[c] for c in catalogue.categories],
            "brand": catalogue.brands,
            "price": catalogue.prices,
            "currency": ["EUR"] * count,
            "availability": np.where(is_sold_out, "OUT_OF_STOCK", "IN_STOCK"),
            "available_quantity": np.where(is_sold_out, 0, 20 + (np.arange(count) * 37) % 180).astype(np.int32),
            "created_at": days_to_timestamps(config, catalogue.created_on, 0),
            "expire_time": days_to_timestamps(config, catalogue.expires_on, 0),
            "is_hidden": catalogue.hidden_from < NEVER,
            "url": [f"https://shop.example/item/{i}" for i in catalogue.item_ids],
            "image_url": [f"https://shop.example/image/{i}.jpg" for i in catalogue.item_ids],
        }
    )
