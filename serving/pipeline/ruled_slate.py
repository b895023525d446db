"""A slate under a policy: which candidates it may use, how it finds enough of them, and who gets which place.

`pipeline.slate` makes one `RuledSlate` for a request that has a policy, and asks it where a request without one takes
the plain way: for candidates, and, once the scores are known, for the order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from feature_repo.contracts.events import subject_key
from feature_repo.contracts.filter_language import parse_filter
from feature_repo.contracts.packing import NO_REASON, SessionEvent, SessionState, Source
from feature_repo.contracts.session_blend import BELOW, normaliser
from serving.native import parts
from serving.pipeline.candidates import Rung, ladder
from serving.pipeline.caps import SlateCaps
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.diversity import DiverseOrder, discounted
from serving.pipeline.exploration import EXPLORED_POOL, explore
from serving.pipeline.fatigue import Showings, fatigued, left_alone
from serving.pipeline.item_filters import (
    Admits,
    ItemFilter,
    PersonalFilter,
    category_lists,
    item_filter,
    matching_numbers,
    personal_filter,
)
from serving.pipeline.order import order_candidates
from serving.pipeline.personal_rules import person_facts, ruled_exclusions
from serving.pipeline.policy import SlatePolicy
from serving.pipeline.rotation import DAY_MICROS, rotated, rotation_seed
from serving.pipeline.untried import untried_items
from serving.pipeline.values import Person, Pool, RungReport, SlateItem, SlateRequest, Tuning

PLACEMENT_FILTER, REQUEST_FILTER = "placement_filter", "filter"
BELOW_MIN_RELEVANCE, UNKNOWN_ITEM = "below_min_relevance", "unknown_item"
LOOKED_AT = 96
"""At least so many of the best, or four times the places, are put into a new order; the others stay behind them."""


class _Climbed(NamedTuple):
    """A rung that was not taken to its end: the rows that are left, and how high its best score is."""

    rung: Rung
    rows: Iterator[Sequence[Any]]
    ceiling: float


class RuledSlate:
    """One request's policy at work. `state` and `session` are empty without consent."""

    def __init__(
        self,
        policy: SlatePolicy,
        request: SlateRequest,
        catalogue: Catalogue,
        *,
        state: SessionState,
        session: Sequence[SessionEvent],
        now_micros: int,
        taken_out: Mapping[int, str] | None = None,
        uncounted: str | None = None,
        is_topped_up: bool = True,
    ) -> None:
        """Of a list (`list_rules`), which has habits of its own:

        taken_out     item number -> filter: what leaves beyond stock and the filters; None: what leaves a slate
        uncounted     the filter among them that goes without saying
        is_topped_up  from the lists of categories that a filter names, and from the catalogue
        """
        self._policy = policy
        self._rules = policy.rules
        self._request = request
        self._catalogue = catalogue
        self._state = state
        self._now_micros = now_micros
        is_of_slate = taken_out is None
        if taken_out is None:
            taken_out = ruled_exclusions(policy.rules, request, catalogue, state, session, now_micros)
        self._taken_out = taken_out
        self._uncounted = uncounted
        self._tries_new = is_of_slate and policy.rules.exploration_new > 0 and not policy.rules.min_relevance
        self._is_topped_up = is_topped_up
        self.session = session
        self.gives_reasons = policy.reasons
        self.added_lists: list[Sequence[Sequence[Any]]] = []
        self._refused: dict[int, str] = {}
        self._passed_over: dict[int, str] = {}
        self._filters: list[tuple[str, ItemFilter | PersonalFilter]] = []
        texts = ((PLACEMENT_FILTER, policy.rules.filter), (REQUEST_FILTER, policy.filter))
        self._texts = [(name, text) for name, text in texts if text is not None]
        for name, text in self._texts:
            bound: ItemFilter | PersonalFilter
            bound = of_nobody = item_filter(text, catalogue, now_micros=now_micros)
            if of_nobody.asks_person:
                bound = personal_filter(text, of_nobody, person_facts(state, session), now_micros=now_micros)
            self._filters.append((name, bound))
        self._category_lists = category_lists([bound for _, bound in self._filters], catalogue)
        self._given, self._unknown = _given_numbers(policy, catalogue)
        self.admits = self._admission()
        self._rungs: Iterator[Rung] = iter(())
        self._climbed: _Climbed | None = None
        self._ceiling = 1.0
        self.reports: list[RungReport] = []
        self.propensities: Sequence[float] = ()
        self.trace: dict[str, Any] = {"placement": policy.placement}
        if not policy.is_known:
            self.trace["unknown_placement"] = True

    def _admission(self) -> Admits:
        """Whether an item may be shown, by number. What is not among the asked items is refused without being counted.
        Asked of hundreds of items a request, so all that it needs lies at hand."""
        catalogue, given, refused, filters = self._catalogue, self._given, self._refused, self._filters
        refusals, size, now_micros = catalogue.refusals, len(catalogue.refusals), self._now_micros
        expire_micros, available_micros, taken_out = (
            catalogue.expire_micros,
            catalogue.available_micros,
            self._taken_out,
        )

        def admits(number: int) -> bool:
            if given is not None and number not in given:
                return False
            if (
                number >= size
                or refusals[number] is not None
                or number in taken_out
                or number in expire_micros
                or number in available_micros
            ):
                refusal = taken_out.get(number) or catalogue.refusal(number, now_micros)
                if refusal is not None:
                    refused[number] = refusal
                    return False
            for name, passes in filters:
                if not passes(number):
                    refused[number] = name
                    return False
            return True

        return admits

    @property
    def arranges(self) -> bool:
        """Whether it makes more of the candidates than those it admits, best first: then `candidates` and `slate` make
        the slate; else the plain way does, over `rungs`."""
        return self._rules.arrange

    def made(self, person: Person, tuning: Tuning) -> tuple[list[SlateItem], list[RungReport], float] | None:
        """The whole slate in native code: (items, rungs, weight of the session). None when it has to be made here."""
        if self._request.explain or self._given is not None or self._policy.asks_ranker:
            return None
        return self._arranged(person, tuning) if self.arranges else self._chosen(person, tuning)

    def _chosen(self, person: Person, tuning: Tuning) -> tuple[list[SlateItem], list[RungReport], float] | None:
        if parts.slates is None or self._catalogue.is_first:
            return None
        found = parts.slates.choose(
            self._request,
            person,
            self.session,
            self._catalogue,
            tuning,
            self._now_micros,
            self._taken_out,
            [passes for _, passes in self._filters],
            list(self._category_lists.values()),
        )
        return found and found[:3]

    def _arranged(self, person: Person, tuning: Tuning) -> tuple[list[SlateItem], list[RungReport], float] | None:
        rules, request, catalogue = self._rules, self._request, self._catalogue
        if parts.ruled is None:
            return None
        found = parts.ruled.arrange(
            rules,
            request,
            person,
            self.session,
            catalogue,
            tuning,
            self._now_micros,
            self._taken_out,
            [passes for _, passes in self._filters],
            self.rungs(ladder(catalogue, request, person)),
            self._depth,
            self._rotation_seed() if rules.rotation > 0 else 0,
            self._shown() if rules.fatigue > 0 else {},
            self._policy.seed,
        )
        if found is None:
            return None
        items, reports, weight, self.propensities = found
        return items, reports, weight

    def candidates(self, rungs: Iterator[Rung]) -> tuple[Pool, list[RungReport]]:
        """Eligible candidates, rung by rung, until there are some more than places: of the person's own list all, of
        the others no more than are wanted (all with explain). Behind the rungs of every answer come the lists of the
        categories that a filter names, the asked items, and the catalogue."""
        self._rungs = self.rungs(rungs)
        pool = Pool()
        wanted = self._request.num_results
        if self._given is not None:
            wanted = len(self._given)
        else:
            wanted = max(3 * wanted, wanted + 20)
        self._fill(pool, wanted)
        return pool, self.reports

    def sunk(self, numbers: Sequence[int], scores: Mapping[int, float]) -> Mapping[int, float]:
        """The scores that decide about the order of these items: less for what was shown and left alone."""
        return self._adjusted(numbers, scores)

    def placed(self, ordered: Sequence[int]) -> list[int]:
        """Of items in their order those that get a place: no cap is broken."""
        return self._take(iter(ordered), SlateCaps(self._rules, self._catalogue), self._request.num_results)

    def refuse_unknown(self, item_ids: Sequence[str]) -> Sequence[str]:
        """Of ids that the version does not have those that may be shown: none where a filter has to hold."""
        if not self._filters:
            return item_ids
        self._unknown = len(item_ids)
        return ()

    def _fill(self, pool: Pool, wanted: int) -> None:
        bases, origins, admits, refused = pool.bases, pool.origins, self.admits, self._refused
        while len(bases) < wanted:
            if self._climbed is None:
                rung = next(self._rungs, None)
                if rung is None:
                    return
                self.reports.append(RungReport(rung.name, len(rung.rows), 0))
                if not rung.rows:
                    continue
                self._climbed = _Climbed(rung, iter(rung.rows), self._ceiling)
            rung, rows, ceiling = self._climbed
            scale = normaliser(rung.rows[0][1], rung.rows[-1][1])
            origin = None if rung.source is None else (int(rung.source), NO_REASON, NO_REASON)
            before, lowest = len(bases), ceiling
            most = wanted if origin is not None and not self._request.explain else len(self._catalogue.item_ids) + 1
            for row in rows:
                number = row[0]
                if number in bases or number in refused or not admits(number):
                    continue
                base = ceiling * scale(row[1])
                if base > 0:
                    bases[number] = lowest = base
                    origins[number] = origin or (row[2], row[3], row[4])
                    if len(bases) >= most:
                        break
            else:
                self._climbed = None
            report = self.reports[-1]
            self.reports[-1] = report._replace(eligible=report.eligible + len(bases) - before)
            if len(bases) > before:
                self._ceiling = lowest * BELOW

    def rungs(self, rungs: Iterator[Rung]) -> Iterator[Rung]:
        """The rungs of every answer, and behind them those that a filter or a list of asked items adds."""
        if not self._is_topped_up:
            yield from rungs
            return
        held: list[Rung] = []
        for rung in rungs:
            if rung.source in (Source.POPULARITY, Source.STATIC):
                held.append(rung)
            else:
                yield rung
        for rows in self._category_lists.values():
            self.added_lists.append(rows)
            yield Rung("filtered_category", rows, Source.CATEGORY)
        yield from held
        if self._given is not None:
            yield Rung("asked_items", [(number, 1.0) for number in self._given], Source.STATIC)
            return
        for _, text in self._texts:
            numbers = matching_numbers(parse_filter(text), self._catalogue)
            yield Rung("catalogue", [(number, 1.0) for number in numbers], Source.STATIC)

    def slate(
        self, pool: Pool, scores: Mapping[int, float], rescore: Callable[[], Mapping[int, float]]
    ) -> tuple[list[int], Mapping[int, float]]:
        """(item numbers best first, the scores). When the policy leaves places empty, all rungs that are left are
        taken in and `rescore` is asked again."""
        slate, spare, caps = self._ordered(scores)
        if len(slate) < self._request.num_results:
            before = len(pool.bases)
            self._fill(pool, len(self._catalogue.item_ids) + 1)
            if len(pool.bases) > before:
                scores = rescore()
                slate, spare, caps = self._ordered(scores)
        self.propensities = [1.0] * len(slate)
        if self._rules.exploration > 0:
            untried = self._untried(scores, caps)
            found = explore(
                slate, spare, share=self._rules.exploration, seed=self._policy.seed, untried=untried,
                untried_share=self._rules.exploration_new,
            )  # fmt: skip
            slate, self.propensities = found.slate, found.propensities
            if shown := set(untried).intersection(slate):
                scores = {**scores, **dict.fromkeys(shown, 0.0)}
                pool.origins.update(dict.fromkeys(shown, (int(Source.NEW), NO_REASON, NO_REASON)))
            self.trace["exploration"] = {
                "share": self._rules.exploration, "pool": len(spare), "ranks": [at + 1 for at in found.explored]
            }  # fmt: skip
        return slate, scores

    def counts(self) -> dict[str, int]:
        """Filter -> number of distinct items it took out, by name; caps count what they passed over."""
        counted = Counter(self._refused.values()) + Counter(self._passed_over.values())
        if self._uncounted is not None:
            del counted[self._uncounted]
        if self._unknown:
            counted[UNKNOWN_ITEM] = self._unknown
        return dict(sorted(counted.items()))

    @property
    def _depth(self) -> int:
        return max(4 * self._request.num_results, LOOKED_AT)

    def _untried(self, scores: Mapping[int, float], caps: SlateCaps) -> list[int]:
        """New items that exploration may show beside the slate: those that nothing speaks for."""
        if not self._tries_new:
            return []
        line = (n for n in untried_items(self._catalogue) if n not in scores and self.admits(n))
        return self._take(line, caps, EXPLORED_POOL, counted=False)

    def _ordered(self, scores: Mapping[int, float]) -> tuple[list[int], list[int], SlateCaps]:
        """(the slate, the next best items that may stand beside it, the caps beside both)."""
        rules, size, item_ids = self._rules, self._request.num_results, self._catalogue.item_ids
        self._passed_over = {}
        scores = self._relevant(scores)
        depth = self._depth
        near = order_candidates(scores, depth, item_ids)
        adjusted = self._adjusted(near, scores)
        if adjusted is not scores:
            near.sort(key=lambda number: (-adjusted[number], item_ids[number]))
        line = chain(near, self._behind(scores, depth))
        caps = SlateCaps(rules, self._catalogue)
        spare_size = EXPLORED_POOL if rules.exploration > 0 else 0
        if rules.diversity == 0:
            slate = self._take(line, caps, size)
            return slate, self._take(line, caps, spare_size, counted=False), caps
        diverse = DiverseOrder(near, adjusted, self._catalogue, rules.diversity)
        slate = self._take(iter(diverse.next, None), caps, size, placed=diverse.take)
        slate += self._take(self._behind(scores, depth), caps, size - len(slate))
        self._measure_diversity(slate, near, adjusted)
        chosen = set(slate)
        return slate, self._take((n for n in line if n not in chosen), caps, spare_size, counted=False), caps

    def _behind(self, scores: Mapping[int, float], depth: int) -> Iterator[int]:
        """What comes after the best `depth`, in order of score; sorted only when somebody gets that far."""
        if len(scores) > depth:
            yield from order_candidates(scores, len(scores), self._catalogue.item_ids)[depth:]

    def _relevant(self, scores: Mapping[int, float]) -> Mapping[int, float]:
        least = self._rules.min_relevance
        if least <= 0:
            return scores
        for number, score in scores.items():
            if score < least:
                self._passed_over[number] = BELOW_MIN_RELEVANCE
        return {number: score for number, score in scores.items() if score >= least}

    def _adjusted(self, near: Sequence[int], scores: Mapping[int, float]) -> Mapping[int, float]:
        """The scores that decide about the order among the best; not those that are answered."""
        rules = self._rules
        if rules.rotation == 0 and rules.fatigue == 0:
            return scores
        adjusted = {number: scores[number] for number in near}
        if rules.rotation > 0:
            adjusted = rotated(adjusted, rotation=rules.rotation, seed=self._rotation_seed())
        if rules.fatigue > 0:
            span = rules.fatigue_days * DAY_MICROS
            adjusted = fatigued(
                adjusted, self._shown(), fatigue=rules.fatigue, span_micros=span, now_micros=self._now_micros
            )  # fmt: skip
        return adjusted

    def _rotation_seed(self) -> int:
        request = self._request
        names_somebody = request.user_id is not None or request.anonymous_id is not None
        subject = subject_key(request.user_id, request.anonymous_id) if names_somebody else None
        return rotation_seed(subject, self._now_micros)

    def _shown(self) -> dict[int, Showings]:
        """Item number -> its showings that were left alone."""
        numbers, since = self._catalogue.numbers, self._now_micros - self._rules.fatigue_days * DAY_MICROS
        left = left_alone(self._state, self.session, since_micros=since)
        return {numbers[item_id]: showings for item_id, showings in left.items() if item_id in numbers}

    def _take(
        self,
        line: Iterator[int],
        caps: SlateCaps,
        size: int,
        *,
        counted: bool = True,
        placed: Callable[[int], None] | None = None,
    ) -> list[int]:
        """The first `size` items of a line that no cap refuses; `placed` hears of each."""
        taken: list[int] = []
        while len(taken) < size:
            number = next(line, None)
            if number is None:
                break
            refusal = caps.refusal(number)
            if refusal is None:
                caps.take(number)
                taken.append(number)
                if placed is not None:
                    placed(number)
            elif counted:
                self._passed_over[number] = refusal
        return taken

    def _measure_diversity(self, slate: Sequence[int], ranked: Sequence[int], scores: Mapping[int, float]) -> None:
        """What diversity costs: the discounted relevance of the slate beside that of the slate by relevance alone,
        under the same caps."""
        if not self._request.explain:
            return
        kept = dict(self._passed_over)
        plain = self._take(iter(ranked), SlateCaps(self._rules, self._catalogue), len(slate))
        self._passed_over = kept
        best = discounted(plain, scores)
        self.trace["diversity"] = {
            "asked": self._rules.diversity,
            "relevance_kept": round(discounted(slate, scores) / best, 6) if best > 0 else 1.0,
        }


def _given_numbers(policy: SlatePolicy, catalogue: Catalogue) -> tuple[dict[int, None] | None, int]:
    """(the asked items in their order or None, how many of them the version does not have)."""
    if policy.item_ids is None:
        return None, 0
    asked = dict.fromkeys(policy.item_ids)
    numbers = {catalogue.numbers[item_id]: None for item_id in asked if item_id in catalogue.numbers}
    return numbers, len(asked) - len(numbers)
