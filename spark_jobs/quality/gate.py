"""The quality gate of one night: gather the evidence, judge it, write quality.json and quality.html."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from typing import Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import QUALITY_FILE, QUALITY_PAGE, Run
from feature_repo.contracts.times import start_of_day
from spark_jobs.io.light_delta import days_by_row_count
from spark_jobs.io.quality_inputs import (
    catalogue_at,
    column_drift,
    deliveries_from,
    refused_live,
    refused_of_sources,
)
from spark_jobs.io.refine_state import EVENT_TABLES
from spark_jobs.io.run_store import write_page, write_report
from spark_jobs.quality.judging import Evidence, Verdict, breach_message, choose_judged_days, judge
from spark_jobs.quality.limits import Limits, accepted_limits, read_limits, with_stop
from spark_jobs.quality.page import render_page
from spark_jobs.quality.profile import Day, Delivered


@dataclass(frozen=True, slots=True)
class QualityReport:
    """What the gate found: `document` is quality.json, `page` quality.html, `metrics` for MLflow.

    `breach` says in words what stops the night, or is None.
    """

    verdict: Verdict
    document: Mapping[str, Any]
    page: str
    metrics: Mapping[str, float]
    breach: str | None


def night_limits(environment: Environment, run: Run) -> Limits:
    """The limits of a run: its parameter quality_limits, else the environment's file; then max_quarantined_share.

    Raises DataError when the file or a parameter cannot be used.
    """
    limits = read_limits(str(run.params.get("quality_limits") or environment.quality_limits))
    share = run.params.get("max_quarantined_share")
    return limits if share is None else with_stop(limits, "quarantined_share", float(share))


def check_quality(
    environment: Environment,
    run: Run,
    *,
    look: Callable[[date, date], Delivered],
    catalogue_version_before: int | None,
    counts: Mapping[str, Any],
) -> QualityReport:
    """Judge the run's deliveries and write the report; raises nothing on a breach.

    look                what came on the days [first, end)
    counts              refine.json so far: `total` and `quarantined_by_reason` of the days that the run derives
    catalogue_version_before  the version of bronze.items that the last run read, None when unknown
    """
    limits = night_limits(environment, run)
    accepted = accepted_limits(run.params.get("accept_quality"))
    first, end = run.as_of_day - timedelta(days=limits.window_days), run.as_of_day
    derived = None if run.derive_days is None else [date.fromisoformat(day) for day in run.derive_days]
    with_events = {day for name in EVENT_TABLES for day in days_by_row_count(environment, name, run.pins.get(name, -1))}
    judged = choose_judged_days(end, first, derived, with_events)

    evidence = Evidence(end, [Day(first + timedelta(days=n)) for n in range(limits.window_days)], judged)
    if judged:
        days, sources_of = look(first, end)
        refused = refused_live(environment, run.pins, start_of_day(judged[0]))
        came = [day for day in days if day.day in set(judged)]
        arrived = sum(day.total.live for day in came)
        if any(day.total.live < day.total.deliveries for day in came):
            sources = sources_of(judged)
            arrived += sum(sources.values())
            for reason, count in refused_of_sources(environment, run.pins, sources).items():
                refused[reason] = refused.get(reason, 0) + count
        evidence = replace(evidence, days=days, refused=refused, arrived=arrived)
    missing, new = column_drift(environment, run.pins)
    before = _catalogue_before(environment, catalogue_version_before)
    evidence = replace(
        evidence,
        publishes=run.publishes,
        last_day_is_over=run.last_day_is_over,
        derived=counts["total"]["read"] - counts["total"]["outside"],
        quarantined=dict(counts["quarantined_by_reason"]),
        beyond=deliveries_from(environment, run.pins, end + timedelta(days=1)),
        missing_columns=missing,
        new_columns=new,
        catalogue=catalogue_at(environment, run.pins["bronze.items"]) if "bronze.items" in run.pins else None,
        catalogue_before=before,
    )
    verdict = judge(evidence, limits, accepted)
    report = QualityReport(
        verdict=verdict,
        document=_document(run, evidence, limits, verdict),
        page=render_page(run, evidence, limits, verdict),
        metrics=_metrics(evidence, verdict),
        breach=breach_message(evidence, verdict) if verdict.stopping else None,
    )
    write_report(environment, run.run_key, QUALITY_FILE, report.document)
    write_page(environment, run.run_key, QUALITY_PAGE, report.page)
    return report


def _catalogue_before(environment: Environment, version: int | None) -> Any:
    try:
        return None if version is None else catalogue_at(environment, version)
    except DataError:  # that version was vacuumed
        return None


def _document(run: Run, evidence: Evidence, limits: Limits, verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": verdict.level,
        "as_of": run.as_of,
        "judged_days": [day.isoformat() for day in verdict.judged],
        "history_days": verdict.history_days,
        "findings": [finding.to_mapping() for finding in verdict.findings],
        "notes": list(verdict.notes),
        "limits": limits.to_mapping(),
        "refused_by_reason": dict(evidence.refused),
        "arrived": evidence.arrived,
        "quarantined_by_reason": dict(evidence.quarantined),
        "derived": evidence.derived,
        "dated_beyond_as_of": evidence.beyond,
        "missing_columns": list(evidence.missing_columns),
        "new_columns": list(evidence.new_columns),
        "catalogue": asdict(evidence.catalogue) if evidence.catalogue else None,
        "catalogue_before": asdict(evidence.catalogue_before) if evidence.catalogue_before else None,
        "days": [{**asdict(day), "day": day.day.isoformat()} for day in evidence.days],
    }


def _metrics(evidence: Evidence, verdict: Verdict) -> dict[str, float]:
    judged = set(evidence.judged)
    days = [day for day in evidence.days if day.day in judged]
    events = sum(day.total.deliveries for day in days)
    refused = sum(evidence.refused.values())
    quarantined = sum(evidence.quarantined.values())

    def share(part: int, whole: int) -> float:
        return part / whole if whole else 0.0

    return {
        "quality/events": float(events),
        "quality/users": float(sum(day.users for day in days)),
        "quality/repeated_share": share(sum(day.repeated_ids for day in days), events),
        "quality/copied_share": share(sum(day.copies for day in days), events),
        "quality/late_share": share(sum(day.total.late for day in days), sum(day.total.live for day in days)),
        "quality/bot_share": share(sum(day.bot_deliveries for day in days), events),
        "quality/quarantined_share": share(quarantined, evidence.derived),
        "quality/refused_share": share(refused, refused + evidence.arrived),
        "quality/stops": float(len(verdict.stopping)),
        "quality/warnings": float(len(verdict.findings) - len(verdict.stopping)),
    }
