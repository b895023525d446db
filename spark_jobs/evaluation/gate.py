"""The gate: may tonight's recipes be published, and which one. Pure: numbers in, verdict in words out.

It judges recipes, not stored weights: every candidate, the live recipe (the champion) among them, was fitted on the
same training split and asked for the same persons' test items. In this order:

1. Refuse when the data is stale, or when even the best list is worse than a random one (then ids or the split are
   broken: any real ranking of a shop is at least random).
2. Too few test persons: nothing can be judged. Publish the best baseline, or refuse when that would replace a personal
   champion by it.
3. A challenger (any model but popularity) passes when its scores are finite, its lists differ enough between people
   (coverage, concentration), it saw nothing of the test (below), it is small and fast enough to serve a night, it beats
   popularity (lower 95 % bound of the paired difference in NDCG@20 above 0) and it is not worse than the champion
   (lower bound of the relative difference above -1 %). A blend passes only if none of its parts saw the test or had
   scores that were not finite.
4. The winner is the passing challenger with the best NDCG@20, so it is never below item-kNN unless that failed.
5. Nobody passes: refuse when a personal champion is live (it stays), or when the run asks for a personal model;
   otherwise popularity is published as what it is, a baseline. That is how a first night with little data, or with
   interactions that hold no taste (shuffled ones), ends: every challenger refused, and said so.

Seeing the test is looked for in two ways. `no_future`: the newest event that the model holds is before the split; the
model says so by what it holds, not by what it was told. `plausible`: who learned nothing of the test window is about as
good there as on the validation window before it, where the same recipe was measured with data up to that window. When
all models rise, the test window is easier; when one alone rises more than `max_rise` times, its labels leaked.

A run that does not publish (a backfill) has nothing to protect: there, cases 2 and 5 give the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spark_jobs.evaluation.intervals import Interval, PairedComparison, compare_paired, mean_interval, mean_intervals
from spark_jobs.evaluation.split import SLICES

BASELINE = "popularity"
METRIC, RECALL, K = "ndcg_at_20", "recall_at_20", 20
PUBLISH, PUBLISH_BASELINE, REFUSED = "publish", "baseline", "refused"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Run parameters of the gate.

    min_test_users           persons below which no comparison is trusted
    max_data_age_days        days from the last event to as_of; more is stale
    min_coverage             distinct items in the top 20s, over what could be there (min of items, persons x 20)
    max_top_share            share of all places that the 20 most shown items may take
    max_loss                 how much worse than the champion, relative, a challenger may be at the lower 95 % bound
    require_personal         refuse rather than publish a baseline
    max_rise                 how many times better than on validation a model may be, beyond the median of the others
    max_minutes              of fitting and of scoring everybody, as measured on the test, in one process
    max_model_mb             of the files of a model
    """

    min_test_users: int = 20
    max_data_age_days: float = 7.0
    min_coverage: float = 0.02
    max_top_share: float = 0.9
    max_loss: float = 0.01
    require_personal: bool = False
    max_rise: float = 3.0
    max_minutes: float = 120.0
    max_model_mb: float = 4096.0


class Check(NamedTuple):
    """One rule applied to one model (or to the night: model None). `words` says what was found and what is wanted."""

    name: str
    model: str | None
    passed: bool
    value: float | None
    limit: float | None
    words: str


@dataclass(frozen=True, slots=True)
class Contestant:
    """One recipe as evaluated. `per_user` maps metric to one value per test person, in one order for everybody.

    Of what is None nothing is known, and nothing is asked:
    hours_ahead  from the split to the newest event that the model holds; below 0: it holds nothing of the test
    validated    mean NDCG@20 of the recipe on the validation window
    minutes      expected of fitting and of scoring everybody
    file_mb      of its files
    parts        of a blend: the contestants that it is made of
    """

    name: str
    recipe: Mapping[str, Any]
    per_user: Mapping[str, NDArray[np.float64]]
    distinct_items: int
    top_share: float
    non_finite_count: int
    hours_ahead: float | None = None
    validated: float | None = None
    minutes: float | None = None
    file_mb: float | None = None
    parts: Sequence[str] = ()

    @property
    def quality(self) -> float:
        """Mean NDCG@20, rounded so that the last bits of a sum never decide."""
        return round(float(self.per_user[METRIC].mean()), 9) if len(self.per_user[METRIC]) else 0.0


@dataclass(frozen=True, slots=True)
class Night:
    """What the gate knows of the night besides the contestants.

    slices          the slice of each test person
    known_items     how many items had a training event
    data_age_days   from the last event to as_of
    random_recall   the Recall@20 that a random list is expected to have
    note            of the split, in words; empty when the test window is as asked
    champion        name of the contestant with the live recipe; None before the first publication
    publishes       False for a backfill
    """

    slices: NDArray[np.str_]
    known_items: int
    data_age_days: float
    random_recall: float
    note: str = ""
    champion: str | None = None
    publishes: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """`verdict` is publish, baseline or refused; `contestant`, its `model` and `recipe` are what may be published (None
    when refused)."""

    verdict: str
    contestant: str | None
    recipe: Mapping[str, Any] | None
    reasons: Sequence[str]
    checks: Sequence[Check] = ()
    comparisons: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def to_report(self) -> dict[str, Any]:
        """The JSON form."""
        model = self.recipe["model"] if self.recipe is not None else None
        return {
            **asdict(self),
            "model": model,
            "checks": [c._asdict() for c in self.checks],
            "comparisons": list(self.comparisons),
        }


def judge(contestants: Sequence[Contestant], night: Night, limits: Thresholds) -> Verdict:
    """The verdict. `contestants` hold popularity (named BASELINE) and any number of challengers."""
    by_name = {c.name: c for c in contestants}
    baseline = by_name[BASELINE]
    champion = by_name[night.champion] if night.champion is not None else None
    stale = _check_age(night, limits)
    if not stale.passed:
        return Verdict(REFUSED, None, None, [stale.words], [stale])

    enough = _check_users(night, limits)
    if not enough.passed:
        reasons = [enough.words] + ([night.note] if night.note else [])
        return _without_challenger(baseline, champion, night, limits, reasons, [stale, enough], ())

    sane = _check_random(contestants, night)
    night_checks = [stale, enough, sane]
    comparisons = _comparisons(contestants, baseline, champion, night)
    if not sane.passed:
        return Verdict(REFUSED, None, None, [sane.words], night_checks, comparisons)

    challengers = sorted((c for c in contestants if c is not baseline), key=lambda c: (-c.quality, c.name))
    checks_of = {c.name: _check_challenger(c, contestants, champion, night, limits) for c in challengers}
    for c in challengers:
        checks_of[c.name] += _check_parts(c, checks_of)
    checks = night_checks + [check for found in checks_of.values() for check in found]
    passing = [c for c in challengers if all(check.passed for check in checks_of[c.name])]
    refused = [check.words for c in challengers if c not in passing for check in checks_of[c.name] if not check.passed]
    if not passing:
        reasons = refused or ["the run trained no model but popularity"]
        return _without_challenger(baseline, champion, night, limits, reasons, checks, comparisons)
    winner = passing[0]
    reasons = [_victory(winner, by_name, champion), *(c.words for c in checks_of[winner.name]), *refused]
    return Verdict(PUBLISH, winner.name, winner.recipe, reasons, checks, comparisons)


def quality_intervals(
    contestants: Sequence[Contestant], slices: NDArray[np.str_]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Contestant -> slice -> metric (NDCG@20, Recall@20) -> mean, lower and upper 95 % bound, persons; slices without
    anybody are left out. All contestants are resampled together, so their intervals share their luck."""
    found: dict[str, dict[str, dict[str, Any]]] = {c.name: {} for c in contestants}
    metrics = (METRIC, RECALL)
    for name in SLICES:
        inside = np.ones(len(slices), bool) if name == "all" else slices == name
        if not inside.any():
            continue
        columns = [c.per_user[metric][inside] for c in contestants for metric in metrics]
        intervals = iter(mean_intervals(np.column_stack(columns)))
        for c in contestants:
            found[c.name][name] = {
                metric: {**next(intervals)._asdict(), "persons": int(inside.sum())} for metric in metrics
            }
    return found


def random_recall(item_count: int, seen_counts: NDArray[np.int64], k: int = K) -> float:
    """The Recall@k expected of a random list: k places over the items that each person has not had yet."""
    if len(seen_counts) == 0:
        return 0.0
    return float(np.mean(np.minimum(1.0, k / np.maximum(1, item_count - seen_counts))))


def _without_challenger(
    baseline: Contestant,
    champion: Contestant | None,
    night: Night,
    limits: Thresholds,
    reasons: list[str],
    checks: Sequence[Check],
    comparisons: Sequence[Mapping[str, Any]],
) -> Verdict:
    if night.publishes and champion is not None and champion.recipe["model"] != BASELINE:
        words = f"the served version stays: its recipe is personal ({champion.recipe['model']}), and a baseline is not"
        return Verdict(REFUSED, None, None, [*reasons, words], checks, comparisons)
    if night.publishes and limits.require_personal:
        return Verdict(REFUSED, None, None, [*reasons, "the run asks for a personal model"], checks, comparisons)
    words = "no personal model passed: the best baseline, popularity, is taken as what it is"
    return Verdict(PUBLISH_BASELINE, BASELINE, baseline.recipe, [words, *reasons], checks, comparisons)


def _check_age(night: Night, limits: Thresholds) -> Check:
    age, limit = night.data_age_days, limits.max_data_age_days
    words = f"the last event is {age:.1f} days older than as_of (at most {limit:g})"
    if age > limit:
        words += ": the data is stale; run with an as_of just after the last event, or raise max_data_age_days"
    return Check("staleness", None, age <= limit, age, limit, words)


def _check_users(night: Night, limits: Thresholds) -> Check:
    count, limit = len(night.slices), limits.min_test_users
    words = f"{count:,} test persons (at least {limit})"
    if count < limit:
        words += ": too few to judge any model"
    return Check("test_users", None, count >= limit, count, limit, words)


def _check_random(contestants: Sequence[Contestant], night: Night) -> Check:
    best = max((mean_interval(c.per_user[RECALL]) for c in contestants), key=lambda i: i.mean)
    words = f"best Recall@20 {best.mean:.4f}, a random list expects {night.random_recall:.4f}"
    passed = best.upper >= night.random_recall
    if not passed:
        words += ": worse than chance, so item numbers or the time split are broken"
    return Check("better_than_random", None, passed, best.mean, night.random_recall, words)


def _check_challenger(
    one: Contestant,
    contestants: Sequence[Contestant],
    champion: Contestant | None,
    night: Night,
    limits: Thresholds,
) -> list[Check]:
    baseline = next(c for c in contestants if c.name == BASELINE)
    attainable = min(night.known_items, len(night.slices) * K)
    coverage = one.distinct_items / max(1, attainable)
    against = compare_paired(one.per_user[METRIC], baseline.per_user[METRIC]).difference
    beats = against.lower > 0
    checks = [
        _limit(one, "finite_scores", one.non_finite_count == 0, one.non_finite_count, 0, "scores that are not finite"),
        _limit(one, "coverage", coverage >= limits.min_coverage, coverage, limits.min_coverage,
               f"{one.distinct_items:,} of {attainable:,} attainable items in the top 20s, coverage"),
        _limit(one, "concentration", one.top_share <= limits.max_top_share, one.top_share, limits.max_top_share,
               "share of all places taken by the 20 most shown items"),
        *_check_sight(one, contestants, limits),
        *_check_cost(one, limits),
        Check("beats_popularity", one.name, beats, against.lower, 0.0,
              f"{one.name} {'beats' if beats else 'does not beat'} popularity: {_difference(against)}"),
    ]  # fmt: skip
    if champion is not None and champion is not one:
        relative = compare_paired(one.per_user[METRIC], champion.per_user[METRIC]).relative
        lower = relative.lower if relative is not None else 0.0
        holds = lower > -limits.max_loss
        span = (
            f"{relative.lower:+.1%} to {relative.upper:+.1%}" if relative is not None else "the champion finds nothing"
        )
        words = f"{one.name} {'is not worse' if holds else 'may be worse'} than the champion's recipe: {span} (95 %)"
        checks.append(Check("not_worse_than_champion", one.name, holds, lower, -limits.max_loss, words))
    return checks


def _check_sight(one: Contestant, contestants: Sequence[Contestant], limits: Thresholds) -> list[Check]:
    """Whether the model can have seen the test."""
    checks = []
    if one.hours_ahead is not None:
        passed = one.hours_ahead < 0
        found = "learned from nothing after the split" if passed else "holds events of the test window"
        words = f"{one.name} {found}: its newest event is {abs(one.hours_ahead):.1f} hours"
        words += f" {'before' if passed else 'after'} the split"
        checks.append(Check("no_future", one.name, passed, one.hours_ahead, 0.0, words))
    if one.validated:
        others = [c.quality / c.validated for c in contestants if c is not one and c.validated]
        usual = max(1.0, float(np.median(others))) if others else 1.0
        rise = mean_interval(one.per_user[METRIC]).lower / (one.validated * usual)
        passed = rise <= limits.max_rise
        words = (
            f"{one.name} {'is' if passed else 'is not'} plausible: NDCG@20 {one.quality:.4f} against "
            f"{one.validated:.4f} on validation, {rise:.2f} times what the others' change explains "
            f"(at most {limits.max_rise:g})"
        )
        checks.append(Check("plausible", one.name, passed, rise, limits.max_rise, words))
    return checks


def _check_cost(one: Contestant, limits: Thresholds) -> list[Check]:
    checks = []
    if one.minutes is not None:
        checks.append(
            _limit(one, "fast_enough", one.minutes <= limits.max_minutes, one.minutes, limits.max_minutes,
                   "minutes of fitting and scoring everybody")
        )  # fmt: skip
    if one.file_mb is not None:
        checks.append(
            _limit(one, "size", one.file_mb <= limits.max_model_mb, one.file_mb, limits.max_model_mb, "MB of files")
        )
    return checks


_INHERITED = ("finite_scores", "no_future", "plausible")
"""What a blend fails with when one of its parts does."""


def _check_parts(one: Contestant, checks_of: Mapping[str, Sequence[Check]]) -> list[Check]:
    if not one.parts:
        return []
    broken = [
        f"{name} fails {check.name}"
        for name in one.parts
        for check in checks_of.get(name, ())
        if check.name in _INHERITED and not check.passed
    ]
    words = f"{one.name} has {'a part that is broken: ' + ', '.join(broken) if broken else 'sound parts'}"
    return [Check("sound_parts", one.name, not broken, float(len(broken)), 0.0, words)]


def _limit(one: Contestant, name: str, passed: bool, value: float, limit: float, what: str) -> Check:
    sign = ">=" if name == "coverage" else "<="
    found = "holds" if passed else "fails"
    return Check(
        name, one.name, passed, value, limit, f"{one.name} {found} {name}: {what} {value:g} (wanted {sign} {limit:g})"
    )


def _victory(winner: Contestant, by_name: Mapping[str, Contestant], champion: Contestant | None) -> str:
    others = ", ".join(f"{c.name} {c.quality:.4f}" for c in by_name.values() if c is not winner)
    words = f"{winner.name} wins with NDCG@20 {winner.quality:.4f} ({others})"
    if winner is champion:
        return f"{words}: the champion's recipe stays"
    return words


def _difference(interval: Interval) -> str:
    return f"NDCG@20 {interval.mean:+.4f}, 95 % {interval.lower:+.4f} to {interval.upper:+.4f}"


def _comparisons(
    contestants: Sequence[Contestant], baseline: Contestant, champion: Contestant | None, night: Night
) -> list[Mapping[str, Any]]:
    """Each challenger against popularity, item-kNN and the champion, on each slice that has anybody."""
    references = [c for c in contestants if c is baseline or c is champion or c.name == "item_knn"]
    found: list[Mapping[str, Any]] = []
    for one in contestants:
        for reference in references:
            if one is not reference and one is not baseline:
                found += compare_by_slice(one, reference, night)
    return found


def compare_by_slice(one: Contestant, reference: Contestant, night: Night) -> list[dict[str, Any]]:
    """The paired difference in NDCG@20, on each slice that has anybody."""
    found = []
    for name in SLICES:
        inside = np.ones(len(night.slices), bool) if name == "all" else night.slices == name
        if inside.any():
            paired = compare_paired(one.per_user[METRIC][inside], reference.per_user[METRIC][inside])
            found.append(_comparison(one.name, reference.name, name, paired))
    return found


def _comparison(model: str, against: str, name: str, paired: PairedComparison) -> dict[str, Any]:
    return {
        "model": model, "against": against, "metric": METRIC, "slice": name, "users": paired.users,
        "difference": paired.difference._asdict(),
        "relative": paired.relative._asdict() if paired.relative is not None else None,
    }  # fmt: skip
