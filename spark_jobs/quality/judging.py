"""Is what came tonight what usually comes? Pure values in, a verdict in words out.

The judged days are compared with the other days of the window that have deliveries: the median is the usual, the
median absolute deviation (times 1.4826, a standard deviation if days were normal) widens a bound where days differ
much, by a quarter of it at most. Volumes, and the hour a day ends at, are compared with the same weekday when it has
three other days, else with all days. Below `min_history_days` only limits that need no history judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from statistics import median
from typing import Any

from spark_jobs.quality.limits import Limit, Limits
from spark_jobs.quality.profile import Day, Part
from spark_jobs.transforms.quality import NONE, NULLABLE_COLUMNS, OTHER

PASS, WARN, STOP = "pass", "warn", "stop"

_WIDEST = 1.25
_DEVIATIONS = {WARN: 4.0, STOP: 6.0}
_MAD_TO_DEVIATION = 1.4826
_FEW = 20
"""Deliveries by which a volume may be higher by chance alone."""
_SAME_WEEKDAYS, _LEAST_WEEKDAYS = 3, 2
_LEAST_USUAL_FILLED = 0.02
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Items, and how many of them have a price."""

    items: int
    priced: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is judged.

    days       the window, in order, empty days included; it ends the day before as_of
    judged     days of the window that this run derives for the first time, or again because they changed
    publishes  of the run: a backfill is not stopped by a day that is empty
    last_day_is_over  of the run: a day that goes on is not judged for what it does not have yet
    derived    deliveries of the days that the run derives; quarantined: those of them that break a rule, by reason
    refused    by reason, by the entrances, of what came for the judged days; arrived: what they took of it
    beyond     deliveries dated later than the day that begins at as_of
    """

    as_of: date
    days: Sequence[Day]
    judged: Sequence[date]
    publishes: bool = True
    last_day_is_over: bool = True
    derived: int = 0
    quarantined: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    arrived: int = 0
    beyond: int = 0
    missing_columns: Sequence[str] = ()
    new_columns: Sequence[str] = ()
    catalogue: Catalogue | None = None
    catalogue_before: Catalogue | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One measure above a bound. `usual`, `warn_above` and `stop_above` are in the unit of `seen`."""

    limit: str
    level: str
    day: date | None
    subject: str
    seen: float
    usual: float | None
    warn_above: float | None
    stop_above: float | None
    words: str
    is_accepted: bool = False

    def to_mapping(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__slots__}
        numbers = {name: round(value, 6) for name, value in values.items() if isinstance(value, float)}
        return {**values, **numbers, "day": self.day.isoformat() if self.day else None}


@dataclass(frozen=True, slots=True)
class Verdict:
    """level: the worst finding that was not accepted. `notes`: what could not be judged, and why."""

    level: str
    judged: tuple[date, ...]
    history_days: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def stopping(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == STOP and not finding.is_accepted)


def choose_judged_days(
    as_of: date, first: date, derive_days: Sequence[date] | None, days_with_events: Iterable[date]
) -> list[date]:
    """The days of [first, as_of) to judge, in order.

    When every day is derived: the last one. Otherwise the days that changed, and every day, empty ones too, after the
    last one that did not: the run's own definition says it all, so a retry judges the same days.
    """
    if derive_days is None:
        return [as_of - timedelta(days=1)]
    changed = {day for day in derive_days if first <= day < as_of}
    known = max((day for day in days_with_events if first <= day < as_of and day not in changed), default=None)
    if known is None:
        return sorted(changed)
    later = {known + timedelta(days=n) for n in range(1, (as_of - known).days)}
    return sorted(changed | later)


def judge(evidence: Evidence, limits: Limits, accepted: frozenset[str] = frozenset()) -> Verdict:
    """The verdict. Findings come worst first, then by day, then in the order of the limits."""
    judging = _Judging(evidence, limits, accepted)
    judging.run()
    order = {name: number for number, name in enumerate(limits.bounds)}
    findings = sorted(
        judging.findings,
        key=lambda f: (f.level != STOP or f.is_accepted, f.day or date.max, order[f.limit], f.subject),
    )
    levels = {finding.level for finding in findings if not finding.is_accepted}
    level = STOP if STOP in levels else WARN if findings else PASS
    notes = tuple(judging.notes)
    return Verdict(level, tuple(evidence.judged), len(judging.history), tuple(findings), notes)


def usual_volumes(evidence: Evidence, limits: Limits) -> dict[date, tuple[float, float, float]]:
    """Day -> (usual, lowest, highest deliveries without a warning), for charts; without the days that have no usual."""
    judging = _Judging(evidence, limits, frozenset())
    found = {}
    for day in evidence.days:
        volumes = judging.usual_days(day.day, leave_out=day.day)
        if len(judging.history) >= limits.min_history_days and volumes and not judging.is_usually_closed(day.day):
            usual = median(volumes)
            high, low = (limits.bounds[name].warn for name in ("volume_high", "volume_low"))
            found[day.day] = (usual, usual / low if low else 0.0, usual * high + _FEW if high else usual)
    return found


def breach_message(evidence: Evidence, verdict: Verdict) -> str:
    """What stops the night, for the log: what, seen, expected, limit, how to let it pass."""
    stopping = verdict.stopping
    listed = "; ".join(f"{finding.words} [{finding.limit}]" for finding in stopping)
    names = ",".join(dict.fromkeys(finding.limit for finding in stopping))
    return (
        f"the deliveries before {evidence.as_of} are not what usually comes: {listed}. Silver was left as it was and "
        "what is served stays. Mend the data and start a new run, or, if the data is right, start one with "
        f"accept_quality={names}"
    )


class _Judging:
    def __init__(self, evidence: Evidence, limits: Limits, accepted: frozenset[str]) -> None:
        self.evidence, self.limits, self.accepted = evidence, limits, accepted
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        judged = set(evidence.judged)
        self.by_day = {day.day: day for day in evidence.days}
        self.history = [day for day in evidence.days if day.total.deliveries and day.day not in judged]
        first_open = min((day.day for day in evidence.days if day.total.deliveries), default=None)
        self.compared = [day for day in evidence.days if first_open and day.day >= first_open and day.day not in judged]

    @property
    def knows_usual(self) -> bool:
        return len(self.history) >= self.limits.min_history_days

    def run(self) -> None:
        if not self.knows_usual:
            self.notes.append(
                f"Only {len(self.history)} days of history lie in the window ({self.limits.min_history_days} are "
                "needed): nothing is usual yet, so only the limits that need no history were judged."
            )
        for day in self.evidence.judged:
            self._judge_day(self.by_day[day])
        self._missing_days()
        self._judge_run()

    # --- one day -----------------------------------------------------------------------------------------------

    def _goes_on(self, day: date) -> bool:
        return not self.evidence.last_day_is_over and day == self.evidence.as_of - timedelta(days=1)

    def _judge_day(self, day: Day) -> None:
        if self._goes_on(day.day):
            self.notes.append(
                f"{day.day} was not over when the run started: it was not judged for too few deliveries, for ending "
                "early, or for event types that are still to come."
            )
        if not day.total.deliveries:
            return
        self._volume(day)
        if day.total.deliveries < self.limits.min_deliveries:
            self.notes.append(
                f"{day.day} has {day.total.deliveries:,} deliveries, too few for shares "
                f"(min_deliveries {self.limits.min_deliveries:,})."
            )
            return
        self._end_of_day(day)
        self._event_types(day)
        self._properties(day)
        self._nulls(day, "known_user_loss", "user_id")
        for column in NULLABLE_COLUMNS:
            if column not in ("user_id", "anonymous_id"):
                self._nulls(day, "null_share", column)
        for kind, part in day.types.items():
            self._level(day, kind, part, "price_level", "price", 1)
            self._level(day, kind, part, "quantity_level", "quantity", 2)
        self._currencies(day)
        self._share(day, "repeated_id_share", lambda d: (d.repeated_ids, d.total.deliveries),
                    "{count} of {whole} deliveries repeat an event_id of that day")  # fmt: skip
        self._share(day, "copied_share", lambda d: (d.copies, d.total.event_ids),
                    "{count} of {whole} events say what another one says, under an id of their own")  # fmt: skip
        self._share(day, "late_share", lambda d: (d.total.late, d.total.live),
                    "{count} of {whole} deliveries of the API came more than an hour late")  # fmt: skip
        self._share(day, "bot_share", lambda d: (d.bot_deliveries, d.total.deliveries),
                    f"{{count}} of {{whole}} deliveries are from {day.bots:,} bots")  # fmt: skip
        self._share(day, "busiest_subject_share", lambda d: (d.busiest_deliveries, d.total.deliveries),
                    "{count} of {whole} deliveries are of one and the same subject")  # fmt: skip
        self._share(day, "far_price_share", lambda d: (d.total.far_priced, d.total.priced),
                    "{count} of {whole} prices are ten times above or below the catalogue's")  # fmt: skip
        if self.evidence.catalogue is None or self.evidence.catalogue.items:
            self._share(
                day, "unknown_item_share",
                lambda d: (d.total.filled.get("item_id", 0) - d.total.in_catalogue, d.total.filled.get("item_id", 0)),
                "{count} of {whole} deliveries have an item_id that the catalogue does not know",
            )  # fmt: skip

    def _missing_days(self) -> None:
        """One finding for the empty days at the end of the window, and one for those that others followed."""
        empty = [day for day in self.evidence.judged if not self.by_day[day].total.deliveries]
        last = max((day.day for day in self.evidence.days if day.total.deliveries), default=date.min)
        found: dict[bool, list[tuple[float, date, str]]] = {True: [], False: []}
        for day in empty if self.knows_usual else ():
            if day in self.limits.closed_days or self._goes_on(day):
                continue
            weekdays = [d for d in self.compared if d.day.weekday() == day.weekday()]
            is_known = len(weekdays) >= _LEAST_WEEKDAYS
            compared = weekdays if is_known else self.compared
            open_days = sum(1 for d in compared if d.total.deliveries)
            of = f"{open_days} of {len(compared)} {_weekday(day) if is_known else 'day'}s before had some"
            may_stop = self.evidence.publishes and day > last and is_known
            found[may_stop].append((open_days / len(compared), day, of))
        usual = median(d.total.deliveries for d in self.history) if self.history else 0
        for may_stop, days in found.items():
            warn = self.limits.bounds["missing_day"].warn
            told = [one for one in days if warn is None or one[0] > warn]
            if told:
                share, _, of = max(told)
                listed = ", ".join(str(day) for _, day, _ in told)
                words = f"no deliveries on {listed}, usually about {usual:,.0f} a day ({of})"
                self._find("missing_day", told[0][1], "", share, None, words, may_stop=may_stop and usual >= _FEW / 2)

    def _volume(self, day: Day) -> None:
        if not self.knows_usual:
            return
        volumes = self.usual_days(day.day)
        usual, seen = median(volumes), day.total.deliveries
        kind = _weekday(day.day) if self._same_weekday(day.day) else "day"
        words = f"{day.day} has {seen:,} deliveries, usually about {usual:,.0f} on a {kind}"
        wider = _log_deviation(volumes)
        if seen > usual + _FEW:
            self._find("volume_high", day.day, "", seen / usual, None, f"{words}: {seen / usual:.1f} times as many",
                       deviation=wider, is_factor=True)  # fmt: skip
        elif usual >= self.limits.min_deliveries and not self._goes_on(day.day):
            times = f"{usual / seen:.1f} times fewer"
            self._find("volume_low", day.day, "", usual / seen, None, f"{words}: {times}",
                       deviation=wider, is_factor=True)  # fmt: skip

    def usual_days(self, day: date, leave_out: date | None = None) -> list[float]:
        """Volumes to compare a day with: of its weekday when there are enough, else of all open days."""
        same = [d.total.deliveries for d in self._same_weekday(day) if d.day != leave_out]
        every = [d.total.deliveries for d in self.history if d.day != leave_out]
        return [float(volume) for volume in (same if len(same) >= _SAME_WEEKDAYS - (leave_out is not None) else every)]

    def is_usually_closed(self, day: date) -> bool:
        same = [d for d in self.compared if d.day.weekday() == day.weekday()]
        return bool(same) and not any(d.total.deliveries for d in same)

    def _same_weekday(self, day: date) -> list[Day]:
        same = [d for d in self.history if d.day.weekday() == day.weekday()]
        return same if len(same) >= _SAME_WEEKDAYS else []

    def _end_of_day(self, day: Day) -> None:
        if not self.knows_usual or day.total.last_second is None or self._goes_on(day.day):
            return
        same = self._same_weekday(day.day) or self.history
        ends = [d.total.last_second / 3600 for d in same if d.total.last_second is not None]
        if not ends:
            return
        seen, usual = day.total.last_second / 3600, median(ends)
        words = f"{day.day} ends at {_clock(seen)} UTC, usually at {_clock(usual)}"
        self._find("day_cut_short", day.day, "", max(0.0, usual - seen), None, words, deviation=_deviation(ends))

    def _event_types(self, day: Day) -> None:
        if not self.knows_usual:
            return
        seen_before = {kind for d in self.history for kind in d.types}
        new = {k: p.deliveries for k, p in day.types.items() if k not in seen_before and k not in (OTHER, NONE)}
        if new:
            listed = ", ".join(f"{kind} {count:,}" for kind, count in sorted(new.items()))
            self._find(
                "new_event_type",
                day.day,
                "",
                len(new),
                None,
                f"{day.day} brings event types that were never seen: {listed}",
            )
        for kind in sorted(seen_before - set(day.types)) if not self._goes_on(day.day) else ():
            counts = [d.types[kind].deliveries if kind in d.types else 0 for d in self.history]
            share = median(count / d.total.deliveries for count, d in zip(counts, self.history, strict=True))
            if median(counts) >= _FEW / 2:
                words = f"{day.day} has no {kind}, usually about {median(counts):,.0f} a day"
                self._find("vanished_event_type", day.day, kind, share, None, words)

    def _properties(self, day: Day) -> None:
        if not self.knows_usual:
            return
        seen_before = {key for d in self.history for key in d.property_keys}
        for key in sorted(set(day.property_keys) - seen_before):
            share = day.property_keys[key] / day.total.deliveries
            words = (
                f"{day.day} brings the property {key!r}, never seen before, in {day.property_keys[key]:,} deliveries"
            )
            self._find("property_drift", day.day, key, share, None, words)
        for key in sorted(seen_before - set(day.property_keys)):
            share = median(d.property_keys.get(key, 0) / d.total.deliveries for d in self.history)
            words = f"{day.day} has no property {key!r}, usually in {share:.0%} of the deliveries"
            self._find("property_drift", day.day, key, share, None, words)

    def _nulls(self, day: Day, name: str, column: str) -> None:
        if not self.knows_usual:
            return
        expected = 0.0
        for kind, part in day.types.items():
            shares = [
                d.types[kind].filled.get(column, 0) / d.types[kind].deliveries for d in self.history if kind in d.types
            ]
            expected += part.deliveries * (median(shares) if shares else 0.0)
        count, whole = day.total.filled.get(column, 0), day.total.deliveries
        usual = expected / whole
        if usual < _LEAST_USUAL_FILLED or expected < _FEW:
            return
        daily = [d.total.filled.get(column, 0) / d.total.deliveries for d in self.history]
        words = (
            f"{day.day}: {column} is null in {whole - count:,} of {whole:,} deliveries ({1 - count / whole:.0%}), "
            f"usually in {1 - usual:.0%}"
        )
        is_user = column == "user_id"  # its bounds are as wide as can be
        self._find(name, day.day, "" if is_user else column, max(0.0, 1 - count / expected), None, words,
                   deviation=0.0 if is_user else _deviation(daily) / usual)  # fmt: skip

    def _level(self, day: Day, kind: str, part: Part, name: str, column: str, quantile: int) -> None:
        now = getattr(part, column)
        least = 2 * self.limits.min_deliveries
        if not self.knows_usual or now is None or part.filled.get(column, 0) < least:
            return
        before = [
            getattr(d.types[kind], column)[quantile] for d in self.history
            if kind in d.types and getattr(d.types[kind], column) is not None and d.types[kind].filled[column] >= _FEW
        ]  # fmt: skip
        if len(before) < self.limits.min_history_days or not now[quantile] or not median(before):
            return
        seen, usual = now[quantile], median(before)
        what = "median" if quantile == 1 else "95 % quantile of the"
        words = f"{day.day}: the {what} {column} of {kind} is {seen:,.4g}, usually {usual:,.4g}"
        self._find(name, day.day, kind, max(seen / usual, usual / seen), None, words,
                   deviation=_log_deviation(before), is_factor=True)  # fmt: skip

    def _currencies(self, day: Day) -> None:
        if not self.knows_usual:
            return
        before = {currency for d in self.history for currency in d.currencies}
        new = {currency: count for currency, count in day.currencies.items() if currency not in before}
        listed = ", ".join(f"{currency} {count:,}" for currency, count in sorted(new.items()))
        words = f"{day.day} brings currencies that were never seen: {listed} of {day.total.deliveries:,} deliveries"
        self._find("new_currency_share", day.day, "", sum(new.values()) / day.total.deliveries, None, words)

    def _share(self, day: Day, name: str, of: Callable[[Day], tuple[int, int]], words: str) -> None:
        limit, (count, whole) = self.limits.bounds[name], of(day)
        if (limit.needs_history and not self.knows_usual) or whole < self.limits.min_deliveries:
            return
        before = [c / w for c, w in map(of, self.history) if w >= self.limits.min_deliveries]
        usual = median(before) if self.knows_usual and len(before) >= self.limits.min_history_days else None
        if usual is None and limit.needs_history:
            return
        said = words.format(count=f"{count:,}", whole=f"{whole:,}")
        compared = "" if usual is None else f", usually {usual:.1%}"
        self._find(name, day.day, "", count / whole, usual, f"{day.day}: {said} ({count / whole:.1%}{compared})",
                   deviation=_deviation(before) if usual is not None else 0.0)  # fmt: skip

    # --- the run -------------------------------------------------------------------------------------------------

    def _judge_run(self) -> None:
        evidence = self.evidence
        if evidence.derived:
            broken = sum(evidence.quarantined.values())
            words = f"{broken:,} of {evidence.derived:,} deliveries before {evidence.as_of} break a rule"
            words += _reasons(evidence.quarantined)
            self._find("quarantined_share", None, "", broken / evidence.derived, None, words)
        refused = sum(evidence.refused.values())
        if refused + evidence.arrived >= self.limits.min_deliveries:
            words = f"{refused:,} of {refused + evidence.arrived:,} lines and events of the judged days were refused"
            words += f" at the entrance{_reasons(evidence.refused)}"
            self._find("refused_share", None, "", refused / (refused + evidence.arrived), None, words)
        for name, columns in (("missing_column", evidence.missing_columns), ("new_column", evidence.new_columns)):
            told = {"missing_column": "lacks", "new_column": "has, beyond the contract,"}[name]
            self._find(name, None, "", len(columns), None, f"bronze {told} {', '.join(columns)}")
        if self.knows_usual and evidence.publishes:
            usual = median(day.total.deliveries for day in self.history)
            words = f"{evidence.beyond:,} deliveries are dated after {evidence.as_of}; a day usually has {usual:,.0f}"
            self._find("beyond_as_of", None, "", evidence.beyond / usual, None, words)
        now, before = evidence.catalogue, evidence.catalogue_before
        if now is not None and before is not None and before.items:
            words = f"the catalogue has {now.items:,} items, {before.items:,} at the last run"
            self._find("catalogue_shrunk", None, "", before.items / max(now.items, 1), None, words)
            if before.priced and now.items:
                loss = 1 - (now.priced / now.items) / (before.priced / before.items)
                words = (
                    f"{now.priced:,} of {now.items:,} items have a price, {before.priced:,} of {before.items:,} "
                    "at the last run"
                )
                self._find("catalogue_price_loss", None, "", max(0.0, loss), None, words)

    def _find(
        self,
        name: str,
        day: date | None,
        subject: str,
        seen: float,
        usual: float | None,
        words: str,
        *,
        deviation: float = 0.0,
        is_factor: bool = False,
        may_stop: bool = True,
    ) -> None:
        """Add a finding when `seen` is above a bound. `deviation` is of the usual days, in logarithms for factors."""
        limit = self.limits.bounds[name]
        warn, stop = (
            _widened(getattr(limit, level), _DEVIATIONS[level], deviation, usual or 0.0, is_factor)
            for level in (WARN, STOP)
        )
        level = STOP if stop is not None and seen > stop and may_stop else None
        if level is None and ((warn is not None and seen > warn) or (stop is not None and seen > stop)):
            level = WARN
        if level is None:
            return
        bounds = _bounds_in_words(limit, warn, stop if may_stop else None)
        accepted = level == STOP and name in self.accepted
        self.findings.append(
            Finding(name, level, day, subject, float(seen), usual, warn, stop, f"{words}; {bounds}", accepted)
        )


def _widened(bound: float | None, deviations: float, deviation: float, usual: float, is_factor: bool) -> float | None:
    if bound is None:
        return None
    spread = math.exp(min(deviations * deviation, 50.0)) if is_factor else deviations * deviation
    return usual + min(max(bound, spread), _WIDEST * bound)


def _deviation(values: Sequence[float]) -> float:
    middle = median(values)
    return _MAD_TO_DEVIATION * median(abs(value - middle) for value in values)


def _log_deviation(values: Sequence[float]) -> float:
    return _deviation([math.log(value) for value in values if value > 0])


def _bounds_in_words(limit: Limit, warn: float | None, stop: float | None) -> str:
    shares = limit.unit in ("share", "loss", "open")

    def number(bound: float) -> str:
        return f"{bound:.0%}" if shares else f"{bound:.3g}{' h' if limit.unit == 'hours' else ''}"

    of = {"loss": " of the usual values lost", "times": " times", "open": " of such days"}.get(limit.unit, "")
    told = [
        f"{what} above {number(bound)}{of}" for what, bound in (("warns", warn), ("stops", stop)) if bound is not None
    ]
    return ", ".join(told)


def _reasons(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:_SHOWN]
    return f" ({', '.join(f'{reason} {count:,}' for reason, count in most)})" if most else ""


def _weekday(day: date) -> str:
    return ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")[day.weekday()]


def _clock(hours: float) -> str:
    minutes = round(hours * 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
