"""Which models a night trains when nobody says: those whose time the size of the data allows.

A bound is a number of events, people, items or pairs, never a clock: the same data brings the same models everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

from spark_jobs.models.blend_model import BLEND

NIGHT_MODELS = ("popularity", "item_knn", "als", "rp3beta", "graph_filter", "ease", "sequential_rules", BLEND)
WITH_REPEATS = "repurchase"
"""Takes part where lists may hold what a person had before (`exclude_seen` purchased or none)."""

EASE_ITEMS = 2_000
"""A fit costs the cube of the items (a second at 3,000) and its file the square (16 MB at 2,000). Asked for by name,
ease takes up to `ease.MOST_ITEMS`."""
GRAPH_CELLS = 400_000_000
"""People times pairs (person, item): the graph filter reads the whole graph for every person it scores."""
ORDERED_EVENTS = 3_000_000
"""Rules read every event once for each step that they look ahead."""
WALK_EVENTS = 10_000_000
LEAST_FACTORS, MOST_FACTORS = 16, 256


class Sizes(NamedTuple):
    """Of the interactions that the models learn from. `pairs` are distinct (person, item)."""

    events: int
    people: int
    items: int
    pairs: int


def affordable_models(sizes: Sizes, *, has_repeats: bool) -> tuple[list[str], list[str]]:
    """(the models of the night, why others are left out, in words)."""
    refused = {
        "ease": sizes.items > EASE_ITEMS and f"ease is for up to {EASE_ITEMS:,} items, there are {sizes.items:,}",
        "graph_filter": sizes.people * sizes.pairs > GRAPH_CELLS
        and f"graph_filter reads {sizes.pairs:,} pairs for each of {sizes.people:,} people",
        "sequential_rules": sizes.events > ORDERED_EVENTS
        and f"sequential_rules is for up to {ORDERED_EVENTS:,} events, there are {sizes.events:,}",
        "rp3beta": sizes.events > WALK_EVENTS
        and f"rp3beta is for up to {WALK_EVENTS:,} events, there are {sizes.events:,}",
    }
    wanted = [*NIGHT_MODELS[:-1], *([WITH_REPEATS] if has_repeats else []), BLEND]
    return [name for name in wanted if not refused.get(name)], [words for words in refused.values() if words]


def spectral_factors(sizes: Sizes) -> int:
    """Width of the graph filter's low pass: an eighth of the smaller side of the matrix, as a power of two so that a
    growing shop does not change its recipe every night. A wider one would pass everything, and with it the noise."""
    eighth = max(1, min(sizes.people, sizes.items) // 8)
    return max(LEAST_FACTORS, min(MOST_FACTORS, 1 << (eighth.bit_length() - 1)))
