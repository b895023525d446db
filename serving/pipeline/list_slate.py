"""A slate that is one list and what tops it up: similar, bought together, trending, new, buy again, continue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain

from feature_repo.contracts.packing import SessionEvent, Source
from serving.native import parts
from serving.pipeline.candidates import Rung, fill_candidates, first_rungs
from serving.pipeline.catalogue import MAX_REMEMBERED, Catalogue
from serving.pipeline.filters import SlateFilter
from serving.pipeline.order import order_candidates
from serving.pipeline.ruled_slate import RuledSlate
from serving.pipeline.values import Pool, Reason, RungReport, Slate, SlateItem

NOTHING_ELIGIBLE = "no_eligible_candidates"
_SOURCES = {int(source): source for source in Source}

Tell = Callable[[int, Source], tuple[Reason, ...]]


def list_slate(
    rungs: Iterator[Rung],
    *,
    own: str,
    wanted: int,
    eligible: SlateFilter | RuledSlate,
    catalogue: Catalogue,
    tell: Tell,
    why_not: str | None = None,
    personalized: bool = False,
    session: Sequence[SessionEvent] = (),
    whole: bool = False,
) -> Slate:
    """At most `wanted` eligible items of the rungs, those of a later rung behind those of an earlier one.

    own      the rung that was asked for: an answer from it has no fallback reason
    tell     item number, source -> why the item is there
    why_not  the fallback reason when it gave nothing; without one: nothing on it was eligible
    whole    look at every row of a rung, so that all counts are whole; else at what can get in
    """
    ruled = eligible if isinstance(eligible, RuledSlate) else None
    if isinstance(eligible, RuledSlate):
        items, reports = _ruled(rungs, wanted, eligible, catalogue, tell, whole)
        session = session or eligible.session
    else:
        items, reports = _plain(rungs, wanted, eligible, catalogue, tell, whole)
    level = next((report.rung for report in reports if report.eligible), "none")
    return Slate(
        items=items,
        fallback_level=level,
        fallback_reason=None if level == own else why_not or NOTHING_ELIGIBLE,
        filtered=eligible.counts() if ruled or whole or len(items) < wanted else {},
        rungs=reports,
        session=session,
        session_weight=0.0,
        personalized=personalized,
        stage_micros={},
        propensities=() if ruled is None else ruled.propensities,
        policy=None if ruled is None else ruled.trace,
    )


def _ruled(
    rungs: Iterator[Rung], wanted: int, ruled: RuledSlate, catalogue: Catalogue, tell: Tell, whole: bool
) -> tuple[list[SlateItem], list[RungReport]]:
    """The items of a list that keeps to a policy. An item has the score that the list gives it, wherever it stands."""
    if ruled.arranges:
        pool, reports = ruled.candidates(rungs)
        ordered, _ = ruled.slate(pool, pool.bases, lambda: pool.bases)
    else:
        pool, reports = fill_candidates(ruled.rungs(rungs), wanted=wanted, admits=ruled.admits, whole=whole)
        ordered = order_candidates(pool.bases, wanted, catalogue.item_ids)
    in_category = {row[0] for rows in ruled.added_lists for row in rows}

    def tell_ruled(number: int, source: Source) -> tuple[Reason, ...]:
        if not ruled.gives_reasons:
            return ()
        is_added = source == Source.CATEGORY and number in in_category
        return in_words("popular in its category") if is_added else tell(number, source)

    return _items(ordered, pool, catalogue, tell_ruled), reports


def _plain(
    rungs: Iterator[Rung], wanted: int, eligible: SlateFilter, catalogue: Catalogue, tell: Tell, whole: bool
) -> tuple[list[SlateItem], list[RungReport]]:
    """Those of one that keeps to its habits alone."""
    kept: list[Rung] = []
    shelved = None
    if parts.shelving is not None:
        shelved = parts.shelving.shelve(
            rungs, kept, wanted, eligible.taken_out, catalogue, eligible.now_micros, whole, tell
        )  # fmt: skip
    if shelved is None:
        return _shelved(chain(kept, rungs), wanted, eligible, catalogue, tell, whole)
    items, reports, refused = shelved
    if whole or len(items) < wanted:
        for number in refused:
            eligible.admits(number)  # counts it
    return items, reports


def _shelved(
    rungs: Iterator[Rung], wanted: int, eligible: SlateFilter, catalogue: Catalogue, tell: Tell, whole: bool
) -> tuple[list[SlateItem], list[RungReport]]:
    """The twin of native `shelving`."""
    pool, reports = fill_candidates(rungs, wanted=wanted, admits=eligible.admits, whole=whole)
    return _items(order_candidates(pool.bases, wanted, catalogue.item_ids), pool, catalogue, tell), reports


def _items(numbers: Sequence[int], pool: Pool, catalogue: Catalogue, tell: Tell) -> list[SlateItem]:
    bases, origins, item_ids = pool.bases, pool.origins, catalogue.item_ids
    items: list[SlateItem] = []
    for number in numbers:
        base, source = bases[number], _SOURCES[origins[number][0]]
        one = (number, item_ids[number], base, base, 0.0, source, tell(number, source))
        items.append(tuple.__new__(SlateItem, one))  # what its constructor does, without the call
    return items


def popular_rungs(catalogue: Catalogue, category: str | None, region: str | None = None) -> Iterator[Rung]:
    """What tops a list up: popular in the category, in the region, with everybody, then what the shop chose; before the
    first version what is touched today (in the category, in the region, everywhere), and what is new."""
    if catalogue.is_first:
        yield from first_rungs(catalogue, category, region, voted=("popular", Source.POPULARITY))
        return
    if found := catalogue.popular_in_category(category):
        yield Rung("category", found[1], Source.CATEGORY)
    if region is not None and region in catalogue.popular_by_region:
        yield Rung("region", catalogue.popular_by_region[region], Source.REGION)
    if catalogue.popular:
        yield Rung("popular", catalogue.popular, Source.POPULARITY)
    if catalogue.static:
        yield Rung("static", catalogue.static, Source.STATIC)


def popular_words(category: str | None = None, region: str | None = None) -> Mapping[Source, str]:
    """The reasons of `popular_rungs`."""
    return {
        Source.CATEGORY: f"popular in {category}",
        Source.REGION: f"popular in {region}",
        Source.POPULARITY: "popular with everybody",
        Source.STATIC: "chosen by the shop",
        Source.NEW: "new in the shop",
    }


@lru_cache(maxsize=4096)
def in_words(text: str) -> tuple[Reason, ...]:
    """A reason that names no past item; the same one each time, so that it is written once."""
    return (Reason(None, None, text),)


def because_of(item_number: int, catalogue: Catalogue, words: str) -> tuple[Reason, ...]:
    """A reason that names one item; `words` has its title at {title}."""
    remembered, facts = catalogue.remember("reasons of lists"), catalogue.attributes[item_number]
    found = remembered.get((item_number, words))
    if found is not None and found[0] is facts:
        reasons: tuple[Reason, ...] = found[1]
        return reasons
    title = catalogue.title(item_number)
    reasons = (Reason(catalogue.item_id(item_number), title, words.format(title=title)),)
    if len(remembered) >= MAX_REMEMBERED:
        remembered.clear()
    remembered[item_number, words] = (facts, reasons)
    return reasons
