"""The order of items that the caller gives: search results, a hand-picked list, a shelf."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from feature_repo.contracts.packing import NO_REASON, Source
from feature_repo.contracts.session_blend import BELOW, normaliser
from serving.native import parts
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.consent import as_allowed
from serving.pipeline.explain import base_reasons, session_reasons
from serving.pipeline.filters import SlateFilter
from serving.pipeline.identify import session_events
from serving.pipeline.list_rules import GIVEN, ruled_list
from serving.pipeline.score import count_votes, effective_weight, score_candidates, session_ballots, silenced_items
from serving.pipeline.shares import slate_shares
from serving.pipeline.slate import StageClock, fallback_reason
from serving.pipeline.values import Origin, Person, Reason, RungReport, Shares, Slate, SlateItem, SlateRequest, Tuning

UNKNOWN_ITEM = -1
"""The item number of an id that the served version does not have."""
GIVEN_ORIGIN: Origin = (int(Source.GIVEN), NO_REASON, NO_REASON)
_SOURCES = {source.value: source for source in Source}
_AS_GIVEN = (Reason(None, None, "in the order given"),)


def rank_given(
    item_ids: Sequence[str],
    request: SlateRequest,
    person: Person,
    catalogue: Catalogue,
    tuning: Tuning,
    *,
    now_micros: int,
    timer: Callable[[], int],
) -> Slate:
    """These items, best first; an id that comes twice counts where it comes first.

    The base score of an item on the person's list of the night is its score there; of others, below all of those, its
    popularity; without either it is 0. Then the session votes, as in `build_slate`. Ties keep the given order.
    Nothing is left out because the person knows it: what they dismissed goes behind the rest. Items that may not be
    shown to anybody leave, and are counted; ids that this version does not know come last, with `UNKNOWN_ITEM`. So does
    what a placement takes out by its filter, its caps, a span of `seen` or `bought`, or its frequency cap, and where a
    filter holds, ids that this version does not know (`unknown_item`).
    Reasons are given with `request.explain` alone. At most `request.num_results` items.

    fallback_level: `personal` when the night's list has one of the items, else `session` or `popular`, else `given`.
    """
    clock = StageClock(timer if request.explain else None)
    allowed = as_allowed(request, person)
    request, person, personalized, unavailable = allowed
    session = session_events(
        person.session,
        session_id=request.session_id,
        recent_events=request.recent_events,
        now_micros=now_micros,
        gap_seconds=tuning.session_gap_seconds,
    )
    clock.done("session")
    ruled = None
    if request.policy is not None:
        ruled = ruled_list(request.policy, allowed, catalogue, tuning, habits=GIVEN, now_micros=now_micros)
    eligible = SlateFilter(catalogue, taken_out={}, now_micros=now_micros)
    if parts.ranking is not None and ruled is None and not request.explain and type(session) is list:
        ranked = parts.ranking.rank(item_ids, request, person, session, catalogue, tuning, now_micros)
        if ranked is not None:
            items, refused, unknown, personal, popular, weight, has_votes = ranked
            for number in refused:
                eligible.admits(number)  # counts it
            rungs = _reports(person, catalogue, personal, popular)
            level = _level(rungs, has_votes=has_votes)
            return Slate(
                items=_with_unknown(items, unknown, request.num_results),
                fallback_level=level,
                fallback_reason=fallback_reason(
                    level, request, person, catalogue, unavailable, personalized=personalized
                ),
                filtered=eligible.counts(),
                rungs=rungs,
                session=session,
                session_weight=weight,
                personalized=personalized,
                stage_micros=clock.micros,
            )
    excluded = request.exclude_item_ids
    places: dict[int, int] = {}
    unknown = []
    for place, item_id in enumerate(dict.fromkeys(item_ids)):
        if item_id in excluded:
            continue
        number = catalogue.numbers.get(item_id)
        if number is None:
            unknown.append(item_id)
        else:
            places[number] = place
    for number in eligible.refused(places) if ruled is None else [n for n in places if not ruled.admits(n)]:
        del places[number]
    clock.done("filter")

    bases, origins, rungs = _bases(places, person, catalogue)
    silenced = silenced_items(session, [mark.item_id for mark in person.session.dismissed], catalogue)
    ballots = session_ballots(session, catalogue, tuning, silenced=silenced)
    votes = count_votes(ballots, lambda numbers: list(numbers.keys() - places.keys()))
    weight = effective_weight(ballots, tuning) if votes else 0.0
    scores = score_candidates(bases, votes, weight, wanted=len(places))
    clock.done("score")

    order = scores if ruled is None else ruled.sunk(list(places), scores)
    ordered = sorted(places, key=order.__getitem__, reverse=True)  # of equal scores the first one stays first
    if silenced:
        ordered.sort(key=silenced.__contains__)
    if ruled is not None:
        ordered, unknown = ruled.placed(ordered), list(ruled.refuse_unknown(unknown))
    items, item_id_of = [], catalogue.item_ids
    for number in ordered[: request.num_results]:
        base, vote = bases[number], votes.get(number, 0.0)
        by_session = vote > 0 and weight * vote > base
        origin = origins.get(number, GIVEN_ORIGIN)
        reasons: tuple[Reason, ...] = ()
        if request.explain and by_session:
            reasons = session_reasons(number, ballots, catalogue)
        elif request.explain:
            known = number in origins
            reasons = base_reasons(origin, catalogue, request, person) if known else _AS_GIVEN
        source = Source.SESSION if by_session else _SOURCES[origin[0]]
        one = (number, item_id_of[number], scores[number], base, vote, source, reasons)
        items.append(tuple.__new__(SlateItem, one))  # what its constructor does, without the call
    items = _with_unknown(items, unknown, request.num_results)
    shares: Sequence[Shares] = ()
    if request.explain:
        shares = slate_shares(items, weight=weight, candidates=person.candidates, origins=origins)
    clock.done("order")

    level = _level(rungs, has_votes=bool(votes))
    return Slate(
        items=items,
        fallback_level=level,
        fallback_reason=fallback_reason(level, request, person, catalogue, unavailable, personalized=personalized),
        filtered=eligible.counts() if ruled is None else ruled.counts(),
        rungs=rungs,
        session=session,
        session_weight=weight,
        personalized=personalized,
        stage_micros=clock.micros,
        policy=None if ruled is None else ruled.trace,
        shares=shares,
    )


def _bases(
    places: dict[int, int], person: Person, catalogue: Catalogue
) -> tuple[dict[int, float], dict[int, Origin], list[RungReport]]:
    """Base scores of all these items, where those above 0 come from, and what the list and popularity knew of them."""
    bases = dict.fromkeys(places, 0.0)
    origins: dict[int, Origin] = {}
    lowest = 1.0
    if person.candidates:
        scale = normaliser(person.candidates[0][1], person.candidates[-1][1])
        for number, score, source, first, second in person.candidates:
            if number in places and (base := scale(score)) > 0:
                bases[number] = base
                lowest = min(lowest, base)
                origins[number] = (source, first, second)
    personal = len(origins)
    popular = [(catalogue.popularity[n], n) for n in places if n not in origins and n in catalogue.popularity]
    if popular:
        top = lowest * BELOW / max(popular)[0]
        for score, number in popular:
            bases[number] = score * top
            origins[number] = (int(Source.POPULARITY), NO_REASON, NO_REASON)
    return bases, origins, _reports(person, catalogue, personal, len(popular))


def _with_unknown(items: list[SlateItem], unknown: Sequence[str], wanted: int) -> list[SlateItem]:
    """Behind the items those that the version does not know, as far as there are places."""
    if unknown:
        for item_id in unknown[: max(0, wanted - len(items))]:
            items.append(SlateItem(UNKNOWN_ITEM, item_id, 0.0, 0.0, 0.0, Source.GIVEN, ()))
    return items


def _reports(person: Person, catalogue: Catalogue, personal: int, popular: int) -> list[RungReport]:
    """Of how many of the items the list and popularity knew something."""
    offered = len(person.candidates or ())
    return [RungReport("personal", offered, personal), RungReport("popular", len(catalogue.popularity), popular)]


def _level(rungs: Sequence[RungReport], *, has_votes: bool) -> str:
    return "personal" if rungs[0].eligible else "session" if has_votes else "popular" if rungs[1].eligible else "given"
