"""Days of gold.metrics_daily as numbers for a person: shares with 95 % intervals, by placement, place, version and arm.

The interval is Wilson's (1927; scipy's `binomtest(...).proportion_ci(method="wilson")`): it stays inside [0, 1] and
holds for few impressions and for none clicked. It takes impressions as independent; those of one slate and of one
person are not quite, so true intervals are somewhat wider.
"""

from __future__ import annotations

from collections.abc import Hashable
from datetime import date, timedelta
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from spark_jobs.transforms.attribution import COUNTS

WINDOW_DAYS = 28

_FIRST = 1
"""Every answer is at one of the positions 0 (empty slate) and 1, so their decisions are answers."""


def proportion(part: int, whole: int) -> dict[str, float] | None:
    """`part` of `whole` with its Wilson interval at 95 %; None when `whole` is 0. Raises ValueError on more parts."""
    if whole == 0:
        return None
    interval = binomtest(part, whole).proportion_ci(confidence_level=0.95, method="wilson")
    return {"value": part / whole, "lower": float(interval.low), "upper": float(interval.high)}


def summarize(rows: pd.DataFrame, *, as_of: date) -> dict[str, Any]:
    """What the report says of the WINDOW_DAYS days before `as_of`: JSON.

    rows  those days of gold.metrics_daily; none gives counts of 0 and no shares
    total, placements, positions, versions, arms, days  what `_counted` gives, of all answers or by part
    levels, levels_by_day  answers by fallback level
    """
    answers = rows[rows["position"] <= _FIRST]
    by_level = answers.groupby("fallback_level")["decisions"].sum()
    by_day_level = answers.groupby(["metric_date", "fallback_level"])["decisions"].sum()
    whole = int(by_level.sum())
    return {
        "window": {"first": (as_of - timedelta(days=WINDOW_DAYS)).isoformat(), "days": WINDOW_DAYS},
        "total": _counted(rows),
        "placements": _parts(rows, ["placement"]),
        "positions": _parts(rows[rows["position"] > 0], ["placement", "position"]),
        "versions": _parts(rows, ["model_version"]),
        "arms": _parts(rows[rows["arm"] != ""], ["arm"]),
        "days": _parts(rows, ["metric_date"]),
        "levels": [
            {"fallback_level": level, "decisions": int(n), "share": int(n) / whole} for level, n in by_level.items()
        ],
        "levels_by_day": [
            {"metric_date": day.isoformat(), "fallback_level": level, "decisions": int(n)}
            for (day, level), n in by_day_level.items()
        ],
        "incomplete_days": sorted(
            {day.isoformat() for day in rows.loc[~rows["is_complete"].astype(bool), "metric_date"]}
        ),
    }


def _parts(rows: pd.DataFrame, by: list[str]) -> list[dict[str, Any]]:
    return [
        {**{name: _plain(value) for name, value in zip(by, key, strict=True)}, **_counted(part)}
        for key, part in rows.groupby(by)
    ]


def _plain(value: Hashable) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    return value if isinstance(value, str) else int(value)  # type: ignore[call-overload]


def _counted(rows: pd.DataFrame) -> dict[str, Any]:
    """Counts; `slots`: items answered; `answers`; ctr, conversion; revenue by currency: gross, refunded, net."""
    counts = {name: int(rows[name].sum()) for name in COUNTS}
    # at one position, a decision is an answer with an item there
    answers = rows if rows["position"].nunique() == 1 else rows[rows["position"] <= _FIRST]
    slots = int(rows.loc[rows["position"] > 0, "decisions"].sum())
    revenue: dict[str, dict[str, float]] = {}
    for currencies, paid, back in zip(rows["currencies"], rows["revenues"], rows["refunded"], strict=True):
        for currency, gross, refunded in zip(currencies, paid, back, strict=True):
            one = revenue.setdefault(currency, {"gross": 0.0, "refunded": 0.0})
            one["gross"] += float(gross)
            one["refunded"] += float(refunded)
    return {
        **counts,
        "decisions": int(answers["decisions"].sum()),
        "slots": slots,
        "ctr": proportion(counts["clicked_impressions"], counts["impressions"]),
        "conversion": proportion(counts["converted_impressions"], counts["impressions"]),
        "revenue": {
            currency: {**{k: round(v, 2) for k, v in one.items()}, "net": round(one["gross"] - one["refunded"], 2)}
            for currency, one in sorted(revenue.items())
        },
    }
