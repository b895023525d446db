"""The limits of the quality gate: one table, its defaults, and the file that changes them.

A file is TOML or JSON, named by NIGHTJAR_QUALITY_LIMITS or by the run's parameter `quality_limits` (which wins):

    window_days = 28
    closed_days = ["2025-12-25", "2025-12-26"]
    [limits.volume_high]
    warn = 3
    stop = 10
    [limits.late_share]
    stop = "off"
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

from feature_repo.contracts.errors import DataError, nearest

OFF = "off"


@dataclass(frozen=True, slots=True)
class Limit:
    """One measure and its bounds: a value above `warn` is told, above `stop` it stops the night; None never does.

    title   what a reader calls it
    unit    of the value and its bounds: share (how much of 1 more than usual, or more than 0 when nothing is usual),
            loss (share of the usual values that is gone), times (how many times more, or fewer, than usual), hours,
            count, open (how often, of the same weekdays, there were deliveries)
    needs_history  whether it is silent until `min_history_days` are known; the others judge the plain value until then
    why     why the defaults are what they are
    """

    title: str
    unit: str
    warn: float | None
    stop: float | None
    needs_history: bool
    meaning: str
    why: str


DEFAULTS: Mapping[str, Limit] = MappingProxyType({
    "missing_day": Limit(
        "Missing days", "open", 0.5, 0.75, True,
        "A judged day without any delivery, although deliveries came on more than this share of its weekdays.",
        "A shop that is closed on Saturdays has no Saturdays. Only the days right before as_of can stop a night: when "
        "deliveries came again afterwards, or in a backfill, an empty day is told and no more."),
    "volume_high": Limit(
        "Too many deliveries", "times", 2.5, 6.0, True,
        "Deliveries of a day over the median of its weekday (of all open days while there are fewer than three).",
        "Sales and Christmas bring two or three times a normal day; a wrong loop brings ten. A shop whose days differ "
        "much gets up to half as much again."),
    "volume_low": Limit(
        "Too few deliveries", "times", 5.0, 15.0, True,
        "The same, the other way round: the usual number over that of the day.",
        "The days before Christmas bring a small shop a twelfth of a normal one; less is a feed that broke off."),
    "day_cut_short": Limit(
        "Day ends early", "hours", 4.0, 5.0, True,
        "Hours between the last delivery of a day and when the last one usually comes.",
        "Half a file, in the order of time, ends at noon. Shops close early on a Sunday, not by five hours."),
    "vanished_event_type": Limit(
        "Event type gone", "share", 0.02, 0.2, True,
        "An event type without any delivery that usually has this share of them (and at least ten a day).",
        "A tag that fell out of a page takes its events with it. Rare types may well pause."),
    "new_event_type": Limit(
        "New event type", "count", 0, None, True,
        "An event type that no day of the window has.",
        "New tracking is good news, to be seen by a person."),
    "property_drift": Limit(
        "Properties come or go", "share", 0.1, None, True,
        "A key in `properties` that is new, or gone, and that this share of the deliveries has (had).",
        "A renamed optional field lands there. What is needed is watched by null_share."),
    "missing_column": Limit(
        "Columns missing in bronze", "count", None, 0, False,
        "Columns of the contract that a bronze event table does not have.",
        "Another writer, or an older one: their values would all be null."),
    "new_column": Limit(
        "Columns unknown to the contract", "count", 0, None, False,
        "Columns of a bronze event table that the contract does not have; nothing reads them.",
        "Harmless, but somebody meant something by it."),
    "null_share": Limit(
        "Values lost", "loss", 0.25, 0.6, True,
        "Of the values that a column usually has, given the day's event types, the share that is null. (user_id: see "
        "known_user_loss; anonymous_id is not judged: it is null where a user is known.)",
        "90 % nulls lose nine of ten values, whatever the column's usual share was."),
    "known_user_loss": Limit(
        "Known users lost", "loss", 0.6, 0.88, True,
        "The same for user_id. A delivery without user_id and anonymous_id breaks a rule and counts there.",
        "Who buys as a guest changes from day to day: real shops have honest days with 85 % fewer known users."),
    "repeated_id_share": Limit(
        "Deliveries repeated", "share", 0.1, 0.4, False,
        "Deliveries of an event_id that came before on that day.",
        "At-least-once senders repeat a few per cent, and silver drops them. A day delivered twice has half."),
    "copied_share": Limit(
        "Copies under another id", "share", 0.1, 0.25, False,
        "Events that equal another of that day in type, subject, session, item, instant, quantity and price, under an "
        "event_id of their own. Silver cannot drop them.",
        "Honest order lists repeat one line in a hundred. A day that came again with new ids has half."),
    "late_share": Limit(
        "Late deliveries", "share", 0.15, 0.6, True,
        "Deliveries of the API and Kafka received more than an hour after they happened. Imports are never late: their "
        "receipt is the import, so history would be late altogether.",
        "Phones come back from tunnels; a queue that stood still makes whole hours late."),
    "quarantined_share": Limit(
        "Refused by the rules", "share", 0.05, 0.2, False,
        "Deliveries of the days that the run derives, in bronze, that break a rule.",
        "The entrances apply the same rules, so here it should be nothing. max_quarantined_share sets stop."),
    "refused_share": Limit(
        "Refused at the entrances", "share", 0.05, 0.3, False,
        "What the entrances quarantined, among all they got: events of the API since the first judged day began, and "
        "lines of the files that brought the judged days (half of a file's rows, or more, are of them).",
        "A feed always has some broken lines. With a third of them refused, the rest is a sample that nobody chose."),
    "bot_share": Limit(
        "Bots", "share", 0.2, 0.6, True,
        "Deliveries by subjects that behave like a crawler on that day. Models never see them.",
        "Crawlers come in bursts: a fifth of a quiet day is nothing new."),
    "busiest_subject_share": Limit(
        "One subject does too much", "share", 0.3, 0.6, True,
        "Deliveries of the busiest subject of a day that is no bot.",
        "A wholesale order has hundreds of lines; half a day under one id is a default that took the place of ids."),
    "unknown_item_share": Limit(
        "Items unknown to the catalogue", "share", 0.1, 0.5, True,
        "Deliveries with an item_id that bronze.items does not have.",
        "New items come before the catalogue does. When everything is unknown, the column holds something else."),
    "price_level": Limit(
        "Prices moved", "times", 2.0, 5.0, True,
        "Median price of an event type over the usual one, or the other way round.",
        "A sale halves prices. Pence for pounds makes a hundred, prices in the quantity column anything."),
    "quantity_level": Limit(
        "Quantities moved", "times", 5.0, 20.0, True,
        "95 % quantile of the quantity of an event type over the usual one, or the other way round.",
        "Wholesale days are several times larger, and the refund of a large order more than ten times."),
    "far_price_share": Limit(
        "Prices far from the catalogue", "share", 0.05, 0.5, False,
        "Deliveries whose price is more than ten times, or less than a tenth of, that of their item in bronze.items.",
        "Single slips of the point happen by hand."),
    "new_currency_share": Limit(
        "New currencies", "share", 0.01, 0.5, True,
        "Deliveries in a currency (or without one, where there always was one) that the window does not have.",
        "A new market starts small; a changed default takes all."),
    "beyond_as_of": Limit(
        "Deliveries dated beyond as_of", "times", 3.0, None, True,
        "Deliveries dated after the day that begins at as_of, in usual days. They are not read tonight.",
        "A clock that runs ahead, or an older as_of on purpose: not tonight's harm."),
    "catalogue_shrunk": Limit(
        "Catalogue shrank", "times", 1.1, 2.0, True,
        "Items at the last run over items tonight.",
        "Imports add and replace; half the items do not leave overnight."),
    "catalogue_price_loss": Limit(
        "Catalogue prices lost", "loss", 0.1, 0.6, True,
        "Of the catalogue's share of items with a price at the last run, how much is gone.",
        "A price feed that came empty."),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits in force, and what is usual.

    window_days           trailing days that a day is compared with; more make it steadier and slower to follow
    min_history_days      days with deliveries below which nothing is usual yet
    min_deliveries        a day with fewer is too small for shares, and a usual day with fewer for "too few"
    closed_days           days on which the shop is known to be closed
    """

    bounds: Mapping[str, Limit] = field(default_factory=lambda: DEFAULTS)
    window_days: int = 28
    min_history_days: int = 7
    min_deliveries: int = 50
    closed_days: frozenset[date] = frozenset()

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, as quality.json keeps them."""
        return {
            "window_days": self.window_days,
            "min_history_days": self.min_history_days,
            "min_deliveries": self.min_deliveries,
            "closed_days": sorted(day.isoformat() for day in self.closed_days),
            "limits": {name: {"warn": limit.warn, "stop": limit.stop} for name, limit in self.bounds.items()},
        }


_NUMBERS = {"window_days": (7, 366), "min_history_days": (2, 366), "min_deliveries": (1, 1_000_000_000)}


def read_limits(path: str) -> Limits:
    """The limits of a TOML or JSON file over the defaults; the defaults when `path` is empty.

    Raises DataError naming the file, the name or value seen and what is expected.
    """
    if not path:
        return Limits()
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except OSError as error:
        raise DataError(f"the quality limits {path} cannot be read: {error}", field="quality_limits") from error
    except ValueError as error:  # both parsers' errors are
        raise DataError(f"the quality limits {path} are no TOML or JSON: {error}", field="quality_limits") from error
    try:
        return limits_from(values)
    except DataError as error:
        raise DataError(f"{path}: {error}", field=error.field) from error


def limits_from(values: Any) -> Limits:
    """The limits of a mapping as in the file. Raises DataError."""
    if not isinstance(values, Mapping):
        raise DataError(f"quality limits are a table, got {values!r}", field="quality_limits")
    known = (*_NUMBERS, "closed_days", "limits")
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise DataError(f"unknown setting {name!r}{nearest(name, known)}; known: {', '.join(known)}", field=name)
        if name in _NUMBERS:
            low, high = _NUMBERS[name]
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise DataError(f"{name} is a whole number of {low} to {high}, got {value!r}", field=name)
            changes[name] = value
    if "closed_days" in values:
        changes["closed_days"] = frozenset(_day(value) for value in _list(values["closed_days"]))
    return replace(Limits(), **changes, bounds=_bounds(values.get("limits", {})))


def _bounds(values: Any) -> Mapping[str, Limit]:
    if not isinstance(values, Mapping):
        raise DataError(f"limits are tables by name, got {values!r}", field="limits")
    bounds = dict(DEFAULTS)
    for name, given in values.items():
        limit = known_limit(name)
        if not isinstance(given, Mapping) or not given or set(given) - {"warn", "stop"}:
            raise DataError(f"limit {name} takes warn and stop, got {given!r}", field=name)
        changed = replace(
            limit,
            warn=_bound(name, "warn", given.get("warn", OFF if limit.warn is None else limit.warn)),
            stop=_bound(name, "stop", given.get("stop", OFF if limit.stop is None else limit.stop)),
        )
        if changed.warn is not None and changed.stop is not None and changed.warn > changed.stop:
            raise DataError(
                f"limit {name} warns at {changed.warn:g} and stops at {changed.stop:g}: warn first", field=name
            )
        bounds[name] = changed
    return bounds


def known_limit(name: str) -> Limit:
    """The default of a limit. Raises DataError naming the nearest one."""
    if name not in DEFAULTS:
        raise DataError(f"no quality limit {name!r}{nearest(name, DEFAULTS)}; known: {', '.join(DEFAULTS)}", field=name)
    return DEFAULTS[name]


def with_stop(limits: Limits, name: str, stop: float) -> Limits:
    """`limits` with another stop bound (the warning comes no later)."""
    limit = limits.bounds[name]
    warn = None if limit.warn is None else min(limit.warn, stop)
    return replace(limits, bounds={**limits.bounds, name: replace(limit, warn=warn, stop=stop)})


def accepted_limits(text: str | None) -> frozenset[str]:
    """The limits that the parameter accept_quality names: `volume_high,late_share`. Raises DataError."""
    names = frozenset(name.strip() for name in (text or "").split(",") if name.strip())
    for name in sorted(names):
        known_limit(name)
    return names


def describe_limits(limits: Limits) -> list[dict[str, Any]]:
    """Every limit as plain values with its name, in the order of the table."""
    return [{"name": name, **asdict(limit)} for name, limit in limits.bounds.items()]


def _bound(name: str, bound: str, value: Any) -> float | None:
    if value == OFF:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise DataError(f'limits.{name}.{bound} is a number >= 0 or "{OFF}", got {value!r}', field=name)
    return float(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"closed_days is a list of days, got {value!r}", field="closed_days")
    return value


def _day(value: Any) -> date:
    if isinstance(value, date):  # TOML has days of its own
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"a day is such as 2025-12-25, got {value!r}", field="closed_days") from error
