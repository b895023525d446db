"""A slate from beginning to end: identify, consent, candidates, filter, score, order, explain."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from feature_repo.contracts.packing import SessionEvent, SessionState
from serving.native import parts
from serving.pipeline.candidates import fill_candidates, ladder
from serving.pipeline.catalogue import NO_VERSION, Catalogue
from serving.pipeline.consent import as_allowed
from serving.pipeline.explain import explain_slate
from serving.pipeline.filters import SlateFilter, personal_exclusions, refused_by
from serving.pipeline.identify import session_events
from serving.pipeline.order import leading_candidates, order_candidates
from serving.pipeline.ranker import (
    ASKED_ITEMS,
    NO_CONSENT,
    NO_LIST,
    NO_USER,
    NOT_PUBLISHED,
    NOT_READ,
    PersonFeatures,
    Wanted,
    with_order,
)
from serving.pipeline.ruled_slate import RuledSlate
from serving.pipeline.score import (
    count_votes,
    effective_weight,
    score_candidates,
    session_ballots,
    silenced_items,
)
from serving.pipeline.shares import explored_places, slate_shares
from serving.pipeline.values import (
    Person,
    Ranking,
    RungReport,
    Shares,
    Slate,
    SlateItem,
    SlateRequest,
    Tuning,
)


class StageClock:
    """Microseconds spent in each stage, by a monotonic nanosecond timer that is passed in. None: nobody asked."""

    def __init__(self, timer: Callable[[], int] | None) -> None:
        self._timer = timer
        self._last = timer() if timer is not None else 0
        self.micros: dict[str, int] = {}

    def done(self, stage: str) -> None:
        """The stage that ran since the last call is over."""
        if self._timer is None:
            return
        now = self._timer()
        self.micros[stage] = (now - self._last) // 1000
        self._last = now


_NO_CLOCK = StageClock(None)


SlateSteps = Generator[Wanted, PersonFeatures | str, Slate]


def build_slate(
    request: SlateRequest,
    person: Person,
    catalogue: Catalogue,
    tuning: Tuning,
    *,
    now_micros: int,
    timer: Callable[[], int],
) -> Slate:
    """The best slate that this version, this person and this session allow; never empty while an eligible item exists.

    Without consent the person and the session do not exist: not as candidates, not as votes, not as filters. A bot gets
    the same slate as somebody without consent. Equal arguments give equal slates (`stage_micros` aside). Where a ranker
    is asked for, nothing is read for it, and the slate says so: `slate_steps` is for that.
    """
    steps = slate_steps(request, person, catalogue, tuning, now_micros=now_micros, timer=timer)
    try:
        next(steps)
        steps.send(NOT_READ)
    except StopIteration as done:
        slate: Slate = done.value
        return slate
    raise AssertionError("a slate asks for features once")


def slate_steps(
    request: SlateRequest,
    person: Person,
    catalogue: Catalogue,
    tuning: Tuning,
    *,
    now_micros: int,
    timer: Callable[[], int],
) -> SlateSteps:
    """The same, with a stop where a ranker has to know something of the person: it yields what, and is sent that, or
    why it cannot be had. Where no ranker has anything to do it does not stop."""
    clock = StageClock(timer) if request.explain else _NO_CLOCK
    request, person, personalized, unavailable = as_allowed(request, person)
    clock.done("consent")
    session = _session_of(request, person.session, now_micros, tuning)
    clock.done("identify")
    if parts.slates is not None and request.policy is None and not request.explain and not catalogue.is_first:
        chosen = parts.slates.choose(request, person, session, catalogue, tuning, now_micros)
        if chosen is not None:
            items, rungs, weight, level = chosen
            reason = fallback_reason(level, request, person, catalogue, unavailable, personalized=personalized)
            return Slate(items, level, reason, {}, rungs, session, weight, personalized, {})

    eligible: SlateFilter | RuledSlate
    ruled = None
    if request.policy is not None:
        eligible = ruled = RuledSlate(
            request.policy, request, catalogue, state=person.session, session=session, now_micros=now_micros
        )
        made = ruled.made(person, tuning)
        if made is not None:
            items, rungs, weight = made
            if not request.policy.reasons:
                items = [item._replace(reasons=()) for item in items]
            level = fallback_level(rungs, items)
            reason = fallback_reason(level, request, person, catalogue, unavailable, personalized=personalized)
            return Slate(
                items, level, reason, {}, rungs, session, weight, personalized, {}, ruled.propensities, ruled.trace
            )
    else:
        exclusions = personal_exclusions(
            catalogue, state=person.session, session=session, exclude_item_ids=request.exclude_item_ids
        )
        eligible = SlateFilter(catalogue, taken_out=exclusions, now_micros=now_micros)
    silenced = silenced_items(session, [mark.item_id for mark in person.session.dismissed], catalogue)
    ballots = session_ballots(session, catalogue, tuning, silenced=silenced)
    clock.done("session")
    ranker, ranking = None, None
    if request.policy is not None and request.policy.asks_ranker:
        why_not = _why_not_ranked(request, person, catalogue, unavailable, personalized=personalized)
        ranker = None if why_not else catalogue.ranker
        ranking = Ranking(None if catalogue.ranker is None else catalogue.ranker.name, why_not)

    refused = eligible.refused if isinstance(eligible, SlateFilter) else refused_by(eligible.admits)
    weight = effective_weight(ballots, tuning, beside_own_list=bool(person.candidates))
    all_votes_count = request.explain or ranker is not None or (ruled is not None and ruled.arranges)
    votes = count_votes(ballots, refused, wanted=None if all_votes_count else request.num_results, weight=weight)
    if not votes:
        weight = 0.0
    offered = ladder(catalogue, request, person)
    if ruled is not None and not ruled.arranges:
        offered, ruled = ruled.rungs(offered), None
    if ruled is not None:
        pool, rungs = ruled.candidates(offered)
    else:
        pool, rungs = fill_candidates(
            offered,
            wanted=request.num_results,
            admits=eligible.admits,
            whole=request.explain or ranker is not None,
            votes=votes,
            weight=weight,
        )
    clock.done("candidates")

    is_cut = ruled is None and ranker is None
    scores = score_candidates(pool.bases, votes, weight, wanted=request.num_results if is_cut else None)
    clock.done("score")
    best: list[int] = []
    if ranker is not None:
        best = order_candidates(scores, ranker.depth, catalogue.item_ids)
        categories = [catalogue.category(number) for number in best]
        assert request.user_id is not None
        known = yield ranker.wants(request.user_id, categories, catalogue.as_of_micros)
        clock.done("features")
        best, ranking = ranker.rank(best, scores, pool.bases, votes, weight, categories, known)
        scores = with_order(scores, best)
        clock.done("ranker")

    if ruled is not None:
        ordered, scores = ruled.slate(
            pool, scores, lambda: with_order(score_candidates(pool.bases, votes, weight), best)
        )  # fmt: skip
    else:
        ordered = order_candidates(scores, request.num_results, catalogue.item_ids)
    without_votes = leading_candidates(pool.bases, request.num_results, catalogue.item_ids) if votes else frozenset()
    clock.done("order")

    items = explain_slate(
        ordered,
        scores=scores,
        votes=votes,
        pool=pool,
        ballots=ballots,
        weight=weight,
        base_slate=without_votes,
        catalogue=catalogue,
        request=request,
        person=person,
    )
    if request.policy is not None and not request.policy.reasons:
        items = [item._replace(reasons=()) for item in items]
    shares: Sequence[Shares] = ()
    if request.explain:
        explored = () if ruled is None else explored_places(ruled.trace)
        shares = slate_shares(
            items, weight=weight, candidates=person.candidates, origins=pool.origins, explored=explored
        )  # fmt: skip
    clock.done("explain")
    level = fallback_level(rungs, items)
    return Slate(
        items=items,
        fallback_level=level,
        fallback_reason=fallback_reason(level, request, person, catalogue, unavailable, personalized=personalized),
        filtered=eligible.counts() if ruled or request.explain or len(items) < request.num_results else {},
        rungs=rungs,
        session=session,
        session_weight=weight,
        personalized=personalized,
        stage_micros=clock.micros,
        propensities=() if ruled is None else ruled.propensities,
        policy=eligible.trace if isinstance(eligible, RuledSlate) else None,
        ranking=ranking,
        shares=shares,
    )


def _why_not_ranked(
    request: SlateRequest, person: Person, catalogue: Catalogue, unavailable: str | None, *, personalized: bool
) -> str | None:
    """Why a ranker that is asked for has nothing to do; None: it has. It learned from people with a list of their
    own."""
    if catalogue.ranker is None:
        return NOT_PUBLISHED
    if not personalized:
        return unavailable or NO_CONSENT
    if request.user_id is None:
        return NO_USER
    if not person.candidates:
        return unavailable or NO_LIST
    return ASKED_ITEMS if request.policy is not None and request.policy.item_ids is not None else None


def _session_of(request: SlateRequest, state: SessionState, now_micros: int, tuning: Tuning) -> list[SessionEvent]:
    return session_events(
        state,
        session_id=request.session_id,
        recent_events=request.recent_events,
        now_micros=now_micros,
        gap_seconds=tuning.session_gap_seconds,
    )


def fallback_level(rungs: Sequence[RungReport], items: Sequence[SlateItem]) -> str:
    """The best rung that gave an eligible candidate; `session` or `none` when no rung did."""
    first = next((report.rung for report in rungs if report.eligible), None)
    return first or ("session" if items else "none")


def fallback_reason(
    level: str,
    request: SlateRequest,
    person: Person,
    catalogue: Catalogue,
    unavailable: str | None,
    *,
    personalized: bool,
) -> str | None:
    """Why the answer is not the personal one, or None when it is."""
    if level == "personal":
        return None
    if unavailable:
        return unavailable
    if not personalized:
        return "consent"
    if catalogue.is_first:
        return NO_VERSION
    if request.user_id is None:
        return "no_user"
    return "unknown_user" if person.candidates is None else "no_eligible_candidates"
