"""What the answers brought: clicks, carts, purchases and refunds credited to the decisions that showed the items.

Reads    silver.decisions at the run's pin; silver.events; gold.metrics_daily (what is written already); placements.json
Writes   silver.impressions and gold.metrics_daily, by day of the decisions; metrics.json and metrics.html in the run
         folder, and hashes.json there, what the run made; metrics/metrics.html and the end of the run in MLflow

A light task without Spark, the last of the night. It derives the decision days that events of this run can have
changed, those whose number of decisions changed, and the last eight before as_of. A day that a run of a later as_of
wrote is left alone. Definitions: infra/docs/decisions.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import date, timedelta
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import HASHES_FILE, METRICS_FILE, METRICS_PAGE, PLACEMENTS_FILE, Run
from spark_jobs.evaluation.metrics_page import render_metrics_page
from spark_jobs.evaluation.placement_metrics import WINDOW_DAYS, summarize
from spark_jobs.io import tracking
from spark_jobs.io.attribution_inputs import read_answers, read_interactions, read_slots
from spark_jobs.io.light_delta import arrow_schema, days_by_row_count, read_table
from spark_jobs.io.light_tables import replace_days
from spark_jobs.io.run_hashes import run_hashes
from spark_jobs.io.run_store import has_report, read_report, write_page, write_report
from spark_jobs.jobs.entry import run_job
from spark_jobs.transforms.attribution import ID_WINDOW, SLOT, credit_outcomes, daily_metrics, seen_slots

DECISIONS, IMPRESSIONS, METRICS = "silver.decisions", "silver.impressions", "gold.metrics_daily"
CHUNK_DAYS = 7
"""So many decision days are held at once: a whole history costs the memory of a few weeks."""

_ONE_DAY = timedelta(days=1)


class Written(NamedTuple):
    """What gold.metrics_daily says of one day."""

    decisions: int
    as_of: date


def main(environment: Environment, run: Run) -> dict[str, Any]:
    """The whole job; returns what metrics.json says."""
    version = run.pins.get(DECISIONS, -1)
    rows_by_day = {d: n for d, n in days_by_row_count(environment, DECISIONS, version).items() if d < run.as_of_day}
    days = days_to_attribute(run, rows_by_day, _written(environment))
    counts: Counter[str] = Counter()
    for chunk in _chunks(days):
        counts.update(_attribute(environment, run, version, chunk))
    summary = summarize(_window(environment, run), as_of=run.as_of_day)
    report = {
        "as_of": run.as_of,
        "run_key": run.run_key,
        "derived_days": [day.isoformat() for day in days],
        "events": dict(sorted(counts.items())),
        **summary,
    }
    if has_report(environment, run.run_key, PLACEMENTS_FILE):
        report["filters"] = read_report(environment, run.run_key, PLACEMENTS_FILE)
    write_report(environment, run.run_key, METRICS_FILE, report)
    page = render_metrics_page(report)
    write_page(environment, run.run_key, METRICS_PAGE, page)
    tracking.log_report(
        environment, run.mlflow_run_id, files={f"metrics/{METRICS_PAGE}": page}, tags={}, metrics=_headline(summary)
    )
    write_report(environment, run.run_key, HASHES_FILE, {"as_of": run.as_of, "hashes": run_hashes(environment, run)})
    tracking.end_night(environment, run.mlflow_run_id, "FINISHED")
    print(f"{len(days)} days of decisions attributed: {dict(sorted(counts.items()))}", flush=True)
    return report


def days_to_attribute(run: Run, rows_by_day: Mapping[date, int], written: Mapping[date, Written]) -> list[date]:
    """The decision days to derive, ascending. `rows_by_day`: day -> rows of silver.decisions before as_of."""

    def is_due(day: date) -> bool:
        found = written.get(day)
        if found is None or run.derive_days is None:
            return True
        if found.decisions != rows_by_day[day] or day >= run.as_of_day - ID_WINDOW - _ONE_DAY:
            return True
        event_days = (date.fromisoformat(text) for text in run.derive_days)
        return any(day - _ONE_DAY <= changed <= day + _ONE_DAY + ID_WINDOW for changed in event_days)

    newer = {day for day, found in written.items() if found.as_of > run.as_of_day}
    return sorted(day for day in rows_by_day if day not in newer and is_due(day))


def _attribute(environment: Environment, run: Run, version: int, days: list[date]) -> Counter[str]:
    """Derive and write these days; what came and what became of it."""
    events = read_interactions(environment, days[0], days[-1], run.cut_off)
    slots = read_slots(environment, version, days[0], days[-1], run.cut_off, events)
    seen = seen_slots(events.impressions, slots)
    credited = credit_outcomes(events.outcomes, slots, seen)
    seen, credited = (frame[frame["metric_date"].isin(days)] for frame in (seen, credited))
    answers = read_answers(environment, version, days, run.cut_off)
    found = daily_metrics(answers, seen, credited)
    found["is_complete"] = [day + _ONE_DAY + ID_WINDOW <= run.as_of_day for day in found["metric_date"]]
    found["as_of"] = run.as_of_day
    replace_days(environment, IMPRESSIONS, _impressions(seen), days)
    replace_days(environment, METRICS, _table(METRICS, found), days)
    return Counter(
        {
            "decisions": int(answers["decisions"].sum()),
            "impressions": len(seen),
            **{f"{outcome}s_by_{by}": n for (outcome, by), n in credited.groupby(["outcome", "by"]).size().items()},
            "clicks_without_impression": _clicks_without_impression(seen, credited),
        }
    )


def _clicks_without_impression(seen: pd.DataFrame, credited: pd.DataFrame) -> int:
    clicks = pd.MultiIndex.from_frame(credited.loc[credited["outcome"] == "click", SLOT])
    return int((~clicks.isin(pd.MultiIndex.from_frame(seen[SLOT]))).sum())


def _impressions(seen: pd.DataFrame) -> pa.Table:
    rows = seen.assign(subject_key=seen["seen_by"], decision_date=seen["metric_date"])
    rows["first_seen_at"] = pd.to_datetime(rows["first_seen_at"], unit="us", utc=True)
    return _table(IMPRESSIONS, rows)


def _table(name: str, rows: pd.DataFrame) -> pa.Table:
    schema = arrow_schema(name)
    return pa.Table.from_pandas(rows[schema.names], schema=schema, preserve_index=False)


def _written(environment: Environment) -> dict[date, Written]:
    rows = read_table(environment, METRICS, columns=["metric_date", "position", "decisions", "as_of"])
    heads = rows.filter(pc.field("position") <= 1).to_pandas()
    return {
        day: Written(int(found["decisions"].sum()), found["as_of"].max()) for day, found in heads.groupby("metric_date")
    }


def _window(environment: Environment, run: Run) -> pd.DataFrame:
    """The rows of the last WINDOW_DAYS days before as_of."""
    first = run.as_of_day - timedelta(days=WINDOW_DAYS)
    wanted = (pc.field("metric_date") >= first) & (pc.field("metric_date") < run.as_of_day)
    return read_table(environment, METRICS, filters=wanted).to_pandas()


def _headline(summary: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of the night's MLflow run: those of all placements."""
    total = summary["total"]
    found = {"decisions_28d": float(total["decisions"]), "impressions_28d": float(total["impressions"])}
    if total["ctr"] is not None:
        found["ctr_28d"] = float(total["ctr"]["value"])
    return found


def _chunks(days: Collection[date]) -> Iterator[list[date]]:
    """Ascending days in pieces that span at most CHUNK_DAYS."""
    chunk: list[date] = []
    for day in sorted(days):
        if chunk and day - chunk[0] >= timedelta(days=CHUNK_DAYS):
            yield chunk
            chunk = []
        chunk.append(day)
    if chunk:
        yield chunk


if __name__ == "__main__":
    run_job(main)
