"""Items like one item, topped up with what is popular in its category and then everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from feature_repo.contracts.packing import Source
from serving.pipeline.candidates import Rung, fill_candidates
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.filters import SlateFilter
from serving.pipeline.order import order_candidates
from serving.pipeline.slate import fallback_level
from serving.pipeline.values import Reason, RungReport, SlateItem


def similar_items(
    item_number: int, catalogue: Catalogue, *, num_results: int, exclude_item_ids: frozenset[str], now_micros: int
) -> tuple[list[SlateItem], str, dict[str, int], list[RungReport]]:
    """(items, fallback_level, counts per filter, rungs). The item itself is never among them.

    fallback_level is `similar`, or the first rung that had something: category, popular, static, none.
    """
    excluded = {catalogue.numbers[i]: "excluded" for i in exclude_item_ids if i in catalogue.numbers}
    eligible = SlateFilter(catalogue, taken_out={**excluded, item_number: "asked_item"}, now_micros=now_micros)
    pool, rungs = fill_candidates(
        _rungs(item_number, catalogue), wanted=num_results, admits=eligible.admits, whole=True
    )
    ordered = order_candidates(pool.bases, num_results, catalogue.item_ids)
    title = catalogue.title(item_number)
    like_it = Reason(catalogue.item_id(item_number), title, f"similar to {title}")
    texts = {
        Source.CATEGORY: f"popular in {catalogue.category(item_number)}",
        Source.POPULARITY: "popular with everybody",
        Source.STATIC: "chosen by the shop",
    }
    items = []
    for number in ordered:
        base, source = pool.bases[number], Source(pool.origins[number][0])
        text = texts.get(source)
        reason = Reason(None, None, text) if text else like_it
        items.append(SlateItem(number, catalogue.item_id(number), base, base, 0.0, source, (reason,)))
    counts = {name: count for name, count in eligible.counts().items() if name != "asked_item"}
    return items, fallback_level(rungs, items), counts, rungs


def _rungs(item_number: int, catalogue: Catalogue) -> Iterator[Rung]:
    near = catalogue.neighbours(item_number)
    if near:
        yield Rung("similar", near, Source.ITEM_KNN)
    for name, source, popular in _popular_lists(item_number, catalogue):
        if popular:
            yield Rung(name, popular, source)


def _popular_lists(item_number: int, catalogue: Catalogue) -> list[tuple[str, Source, Sequence[tuple[int, float]]]]:
    in_category = catalogue.popular_in_category(catalogue.category(item_number))
    return [
        ("category", Source.CATEGORY, in_category[1] if in_category else ()),
        ("popular", Source.POPULARITY, catalogue.popular),
        ("static", Source.STATIC, catalogue.static),
    ]
