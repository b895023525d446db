"""What was delivered on each day of a window, as plain values: all that judging and the page need."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from spark_jobs.transforms.quality import (
    NULLABLE_COLUMNS,
    count_outcomes,
    count_property_keys,
    count_sources,
    describe_days,
    describe_subjects,
)


@dataclass(frozen=True, slots=True)
class Part:
    """The deliveries of one day, or of one event type of a day; counts of deliveries unless said otherwise.

    filled           column -> deliveries in which it is not null
    event_ids        distinct; contents: distinct, whatever the event_id; items: distinct
    price, quantity  quantiles 5 %, 50 %, 95 % (prices > 0), or None without values
    """

    deliveries: int = 0
    filled: Mapping[str, int] = field(default_factory=dict)
    with_event_id: int = 0
    event_ids: int = 0
    contents: int = 0
    items: int = 0
    live: int = 0
    late: int = 0
    broken: int = 0
    in_catalogue: int = 0
    priced: int = 0
    far_priced: int = 0
    first_second: int | None = None
    last_second: int | None = None
    price: tuple[float, ...] | None = None
    quantity: tuple[float, ...] | None = None
    price_max: float | None = None
    quantity_max: float | None = None


@dataclass(frozen=True, slots=True)
class Day:
    """One day: `total` over all its deliveries, `types` by event type, and who and what they were about."""

    day: date
    total: Part = field(default_factory=Part)
    types: Mapping[str, Part] = field(default_factory=dict)
    tables: Mapping[str, int] = field(default_factory=dict)
    currencies: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    property_keys: Mapping[str, int] = field(default_factory=dict)
    subjects: int = 0
    users: int = 0
    bots: int = 0
    bot_deliveries: int = 0
    busiest_deliveries: int = 0

    @property
    def repeated_ids(self) -> int:
        """Deliveries of an event_id that came on that day before."""
        return max(0, self.total.with_event_id - self.total.event_ids)

    @property
    def copies(self) -> int:
        """Events that say, under another event_id, what another event of that day says too."""
        return max(0, self.total.event_ids - self.total.contents)


class Delivered(NamedTuple):
    """What came in a window: each of its days, and `sources`: of some days, the imported files that brought them with
    how many of their deliveries (`quality.count_sources`)."""

    days: list[Day]
    sources: Callable[[Collection[date]], Mapping[str, int]]


def delivered_by_spark(checked: DataFrame, catalogue: DataFrame, *, first: date, end: date) -> Delivered:
    """From the checked deliveries of [first, end)."""

    def sources(days: Collection[date]) -> dict[str, int]:
        return {row["source"]: row["deliveries"] for row in count_sources(checked, sorted(days)).collect()}

    return Delivered(profile_days(checked, catalogue, first=first, end=end), sources)


def profile_days(checked: DataFrame, catalogue: DataFrame, *, first: date, end: date) -> list[Day]:
    """Every day of [first, end), in order; days without deliveries are there and empty.

    `checked` are the deliveries of those days, best persisted: three or four jobs read them. At most a few hundred
    small rows reach the driver, whatever came in.
    """
    days = {first + timedelta(days=n): _Gathered() for n in range((end - first).days)}
    has_properties = False
    for row in describe_days(checked, catalogue).collect():
        part = _part(row.asDict())
        if row["event_type"] is None:
            days[row["event_date"]].values["total"] = part
            has_properties = has_properties or part.filled["properties"] > 0
        else:
            days[row["event_date"]].types[row["event_type"]] = part
    for row in count_outcomes(checked).collect():
        gathered, count = days[row["event_date"]], row["deliveries"]
        _add(gathered.tables, row["table"], count)
        _add(gathered.currencies, row["currency"], count)
        if row["reason"] is not None:
            _add(gathered.reasons, row["reason"], count)
    for row in describe_subjects(checked).collect():
        values = row.asDict()
        days[values.pop("event_date")].values.update(values)
    if has_properties:
        for row in count_property_keys(checked.withColumn("deliveries", F.lit(1))).collect():
            days[row["event_date"]].property_keys[row["key"]] = row["deliveries"]
    return [gathered.as_day(day) for day, gathered in days.items()]


class _Gathered:
    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.types: dict[str, Part] = {}
        self.tables: dict[str, int] = {}
        self.currencies: dict[str, int] = {}
        self.reasons: dict[str, int] = {}
        self.property_keys: dict[str, int] = {}

    def as_day(self, day: date) -> Day:
        return Day(
            day,
            types=_sorted(self.types),
            tables=_sorted(self.tables),
            currencies=_sorted(self.currencies),
            reasons=_sorted(self.reasons),
            property_keys=_sorted(self.property_keys),
            **self.values,
        )


def _sorted(values: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(values.items()))


def _part(values: dict[str, Any]) -> Part:
    same = ("deliveries", "with_event_id", "event_ids", "contents", "items", "live", "late", "broken", "in_catalogue",
            "priced", "far_priced", "first_second", "last_second", "price_max", "quantity_max")  # fmt: skip
    return Part(
        filled={column: values[f"has_{column}"] for column in NULLABLE_COLUMNS},
        price=_floats(values["price_quantiles"]),
        quantity=_floats(values["quantity_quantiles"]),
        **{name: values[name] for name in same},
    )


def _floats(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _add(counts: dict[str, int], name: str, count: int) -> None:
    counts[name] = counts.get(name, 0) + count
