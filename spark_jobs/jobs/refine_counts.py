"""Where the deliveries of a derivation went, for refine.json, and whether anything is left of them."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from typing import Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.run import Run
from spark_jobs.io.light_delta import days_by_row_count
from spark_jobs.io.refine_state import EVENT_TABLES
from spark_jobs.transforms.deliveries import Outcome

_SHOWN_REASONS = 3


def count_deliveries(
    environment: Environment, run: Run, days: Collection[date] | None, outcomes: Collection[Outcome]
) -> dict[str, Any]:
    """Where every delivery went: read = kept + duplicates + quarantined + withheld + outside, by table and in total.

    `read` comes from the Delta log alone, so the sum is a check. Of an incremental run only its days are counted.
    """
    sources: dict[str, dict[str, int]] = {}
    for name in EVENT_TABLES:
        rows = days_by_row_count(environment, name, run.pins.get(name, -1))
        outside = sum(count for day, count in rows.items() if day >= run.as_of_day)
        inside = sum(count for day, count in rows.items() if day < run.as_of_day and (days is None or day in days))
        counts = dict.fromkeys(("kept", "duplicates", "quarantined", "withheld"), 0)
        sources[name] = {"read": inside + outside, **counts, "outside": outside}
    reasons: dict[str, int] = {}
    for one in outcomes:
        sources[one.table][one.outcome] += one.deliveries
        if one.reason is not None:
            reasons[one.reason] = reasons.get(one.reason, 0) + one.deliveries
    total = {key: sum(counts[key] for counts in sources.values()) for key in next(iter(sources.values()))}
    for name, counts in (*sources.items(), ("total", total)):
        if counts["read"] != sum(count for key, count in counts.items() if key != "read"):
            raise ContractError(f"the counts of {name} do not add up: {counts}")
    return {
        "as_of": run.as_of,
        "days_derived": "all" if days is None else len(days),
        "sources": sources,
        "total": total,
        "quarantined_by_reason": dict(sorted(reasons.items())),
    }


def refuse_if_empty(run: Run, report: dict[str, Any]) -> None:
    total = report["total"]
    inside = total["read"] - total["outside"]
    by_count = sorted(report["quarantined_by_reason"].items(), key=lambda pair: (-pair[1], pair[0]))
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in by_count[:_SHOWN_REASONS])
    if run.derive_days is None and not total["kept"]:
        raise DataError(
            f"no event before {run.as_of} is left of {inside:,} deliveries: {total['quarantined']:,} break a rule"
            f"{f' ({reasons})' if reasons else ''}, {total['withheld']:,} belong to users who do not allow storing",
            field="as_of",
        )
