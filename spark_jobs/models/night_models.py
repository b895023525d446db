"""Which models a night trains when nobody says: those whose time the size of the data allows.

A bound is a number of events, people, items or pairs, never a clock: the same data brings the same models everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from spark_jobs.models.blend_model import BLEND, FLOOR_PART
from spark_jobs.models.content import MOST_ITEMS, MOST_MEETINGS, meetings
from spark_jobs.models.item_content import ItemContent
from spark_jobs.models.ranker import RANKER
from spark_jobs.models.recipe_choice import RecipeChoice
from spark_jobs.models.recipes import default_recipe

NIGHT_MODELS = (
    "popularity", "trending", "segment_popularity", "item_knn", "als", "rp3beta", "graph_filter", "ease",
    "sequential_rules", "content", BLEND, RANKER,
)  # fmt: skip
WITH_REPEATS = "repurchase"
"""Takes part where lists may hold what a person had before (`exclude_seen` purchased or none)."""

EASE_ITEMS = 2_000
"""A fit costs the cube of the items (a second at 3,000) and its file the square (16 MB at 2,000). Asked for by name,
ease takes up to `ease.MOST_ITEMS`."""
GRAPH_CELLS = 400_000_000
"""People times pairs (person, item): the graph filter reads the whole graph for every person it scores."""
ORDERED_EVENTS = 3_000_000
"""Rules read every event once for each step that they look ahead. Trending costs little itself, but each part makes the
choice of a blend longer, which a large night feels."""
WALK_EVENTS = 10_000_000
LEAST_DESCRIBED = 20
LEAST_SEGMENTS = 2
LEAST_FACTORS, MOST_FACTORS = 16, 256


class Sizes(NamedTuple):
    """Of the interactions that the models learn from. `pairs` are distinct (person, item); `described` are the items
    that the catalogue says anything of, `meetings` how often two of them share a term, `segments` top categories."""

    events: int
    people: int
    items: int
    pairs: int
    described: int = 0
    meetings: int = 0
    segments: int = 0


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
        "trending": sizes.events > ORDERED_EVENTS
        and f"trending is for up to {ORDERED_EVENTS:,} events, there are {sizes.events:,}",
        "content": _no_content(sizes),
        "ranker": (has_repeats and "ranker orders what is new to a person, and lists may repeat")
        or (
            sizes.events > ORDERED_EVENTS
            and f"ranker is for up to {ORDERED_EVENTS:,} events, there are {sizes.events:,}"
        ),
        "segment_popularity": sizes.segments < LEAST_SEGMENTS
        and f"segment_popularity wants {LEAST_SEGMENTS} top categories, there are {sizes.segments}",
    }
    last = (BLEND, RANKER)
    wanted = [*(n for n in NIGHT_MODELS if n not in last), *([WITH_REPEATS] if has_repeats else []), *last]
    return [name for name in wanted if not refused.get(name)], [words for words in refused.values() if words]


def _no_content(sizes: Sizes) -> str | None:
    """Why the content model is left out; None: it takes part."""
    if sizes.described < LEAST_DESCRIBED:
        return f"content wants {LEAST_DESCRIBED} described items, there are {sizes.described:,}"
    if sizes.items > MOST_ITEMS:
        return f"content is for up to {MOST_ITEMS:,} items, there are {sizes.items:,}"
    if sizes.meetings > MOST_MEETINGS:
        return f"content would add up {sizes.meetings:,} meetings of items in a term, {MOST_MEETINGS:,} at most"
    return None


def spectral_factors(sizes: Sizes) -> int:
    """Width of the graph filter's low pass: an eighth of the smaller side of the matrix, as a power of two so that a
    growing shop does not change its recipe every night. A wider one would pass everything, and with it the noise."""
    eighth = max(1, min(sizes.people, sizes.items) // 8)
    return max(LEAST_FACTORS, min(MOST_FACTORS, 1 << (eighth.bit_length() - 1)))


@dataclass(frozen=True, slots=True)
class Program:
    """What a night is to train.

    recipes   by family, the baseline first, the blend left out
    blend     the recipe of a blend that somebody chose; None: the night chooses one, if `may_blend`
    notes     why models are left out, in words
    may_rank  whether a second stage over the best of them takes part
    by_category  whether it reads what users did in the categories of items
    """

    recipes: Mapping[str, Mapping[str, Any]]
    may_blend: bool
    blend: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()
    may_rank: bool = False
    by_category: bool = False


def measure_sizes(interactions: pa.Table, *, item_count: int, content: ItemContent | None = None) -> Sizes:
    """How large the interactions (sorted, as `load_interactions` gives them) are, and what is said of the items."""
    codes = np.asarray(interactions["subject_key"].combine_chunks().indices).astype(np.int64)
    pair = codes * max(1, item_count) + np.asarray(interactions["item_number"].combine_chunks())
    pairs = int(np.count_nonzero(np.diff(pair))) + 1 if len(pair) else 0
    said = (0, 0, 0)
    if content is not None:
        segments = len(np.unique(content.tops[content.tops >= 0]))
        said = (content.described_count, meetings(content), segments)
    return Sizes(interactions.num_rows, int(np.count_nonzero(np.bincount(codes))), item_count, pairs, *said)


def check_models(models: Sequence[str]) -> None:
    """Raises DataError naming the nearest model when one is unknown: before any data is read."""
    for name in models:
        if name not in (BLEND, RANKER):
            default_recipe(name)


def plan_models(
    models: Sequence[str],
    sizes: Sizes,
    *,
    choice: RecipeChoice | None = None,
    has_repeats: bool = False,
    als_engine: str | None = None,
) -> Program:
    """What takes part, the baseline always: `models` where any are named, else what was chosen, else what the data
    affords. A recipe that was chosen comes before the default. Raises DataError on an unknown model."""
    given = dict(choice.recipes) if choice is not None else {}
    notes: list[str] = []
    if models:
        names = list(models)
    elif choice is not None:
        names = [*given, *([BLEND] if choice.may_blend else [])]
    else:
        names, notes = affordable_models(sizes, has_repeats=has_repeats)
    apart = (FLOOR_PART, BLEND, RANKER)
    families = [FLOOR_PART, *(name for name in dict.fromkeys(names) if name not in apart)]
    recipes = {name: given.get(name) or _default(name, sizes, als_engine) for name in families}
    blend = choice.blend if choice is not None and BLEND in names else None
    return Program(recipes, BLEND in names, blend, notes, RANKER in names)


def _default(name: str, sizes: Sizes, als_engine: str | None) -> dict[str, Any]:
    """The default recipe of a model, fitted to the size of the data and to people's histories."""
    recipe = default_recipe(name, engine=als_engine)
    if name == "graph_filter":
        recipe["params"]["factors"] = spectral_factors(sizes)
    if name == "session_knn":
        recipe["params"]["recency"] = 0.0  # histories of people come in no order of time
    return recipe
