"""Items like one item, and items bought with others; topped up with what is popular in their category, then at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from feature_repo.contracts.packing import Source
from serving.pipeline.candidates import Rung
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.consent import as_allowed
from serving.pipeline.list_rules import OF_ITEMS, eligible_in_list, is_about_person
from serving.pipeline.list_slate import Tell, because_of, in_words, list_slate, popular_rungs, popular_words
from serving.pipeline.values import Person, Reason, Slate, SlateRequest, Tuning

UNKNOWN = "unknown_item"


def similar_items(
    item_number: int | None,
    request: SlateRequest,
    person: Person,
    catalogue: Catalogue,
    tuning: Tuning,
    *,
    now_micros: int,
) -> Slate:
    """The neighbours of an item, nearest first. The item itself is never among them, nor what the person dismissed.

    fallback_level is `similar`, or the first rung that had something: category, popular, static, none. An item that the
    version does not have (None) is like nothing: what is popular, with the fallback reason `unknown_item`. Without
    `request.explain` only what can get in is looked at, and counts of a full slate are not whole.
    """
    asked = [] if item_number is None else [item_number]
    category = catalogue.category(item_number) if item_number is not None else None
    words = popular_words(category)
    like = () if item_number is None else because_of(item_number, catalogue, "similar to {title}")

    def tell(_: int, source: Source) -> tuple[Reason, ...]:
        if source in words or item_number is None:
            return in_words(words[source])
        return like

    rows = catalogue.neighbours(asked[0]) if asked else ()
    rungs = _with_own("similar", Source.ITEM_KNN, rows, catalogue, category)
    return _around(asked, rungs, "similar", request, person, catalogue, tuning, tell, now_micros=now_micros)


def bought_together(
    item_numbers: Sequence[int],
    request: SlateRequest,
    person: Person,
    catalogue: Catalogue,
    tuning: Tuning,
    *,
    now_micros: int,
) -> Slate:
    """What is bought in the same baskets as these items (one, or a whole cart); none of them is among it, nor what the
    person dismissed.

    Of several items the scores add up; each is named by the one that spoke loudest for it (ties: the smaller item id).
    Topped up with what is popular in the category of the first item. fallback_level is `bought_together`, or as in
    `similar_items`.
    """
    sums: dict[int, float] = {}
    speakers: dict[int, tuple[float, int]] = {}
    for asked in sorted(set(item_numbers), key=catalogue.item_id):
        for number, score in catalogue.bought_with(asked):
            sums[number] = sums.get(number, 0.0) + score
            if score > speakers.get(number, (0.0, asked))[0]:
                speakers[number] = (score, asked)
    rows = sorted(sums.items(), key=lambda row: (-row[1], row[0]))
    category = catalogue.category(item_numbers[0]) if item_numbers else None
    words = popular_words(category)

    def tell(number: int, source: Source) -> tuple[Reason, ...]:
        if source in words:
            return in_words(words[source])
        return because_of(speakers[number][1], catalogue, "often bought together with {title}")

    rungs = _with_own("bought_together", Source.TOGETHER, rows, catalogue, category)
    return _around(
        item_numbers, rungs, "bought_together", request, person, catalogue, tuning, tell, now_micros=now_micros
    )


def _with_own(
    name: str, source: Source, rows: Sequence[tuple[int, float]], catalogue: Catalogue, category: str | None
) -> Iterator[Rung]:
    if rows:
        yield Rung(name, rows, source)
    yield from popular_rungs(catalogue, category)


def _around(
    asked: Sequence[int],
    rungs: Iterator[Rung],
    own: str,
    request: SlateRequest,
    person: Person,
    catalogue: Catalogue,
    tuning: Tuning,
    tell: Tell,
    *,
    now_micros: int,
) -> Slate:
    """The list of these rungs. It counts as personalized when something of the person could decide about it."""
    allowed = as_allowed(request, person)
    eligible = eligible_in_list(allowed, catalogue, tuning, habits=OF_ITEMS, about=asked, now_micros=now_micros)
    return list_slate(
        rungs,
        own=own,
        wanted=request.num_results,
        eligible=eligible,
        catalogue=catalogue,
        tell=tell,
        why_not=None if asked else UNKNOWN,
        personalized=allowed.personalized and is_about_person(eligible),
        whole=request.explain,
    )
