"""The newest run: its day, its reports, its tasks.

From the run folder alone: which day, which reports exist and since when, rows, gate, quality. From Airflow, where one
is known: state and seconds of the run and of each task.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import (
    EVALUATION_FILE,
    FEATURES_FILE,
    GATE_FILE,
    PUBLICATION_FILE,
    QUALITY_FILE,
    REFINE_FILE,
    RUN_FILE,
    Run,
)
from infra.local.night import Night

REPORTS = (RUN_FILE, REFINE_FILE, QUALITY_FILE, FEATURES_FILE, EVALUATION_FILE, GATE_FILE, PUBLICATION_FILE)
VERDICTS = ("publish", "baseline", "refused")
DATA_VERDICTS = ("pass", "warn", "stop")
RUN_STATES = ("queued", "running", "success", "failed")
QUALITY = ("ndcg_at_20", "recall_at_20")


def newest_run(environment: Environment) -> Path | None:
    """The folder of the run that was pinned last, or None when there was none. Ties by name.

    Raises DataError when the runs root is a URL.
    """
    if "://" in environment.runs:
        raise DataError(f"NIGHTJAR_RUNS must be a folder that the exporter can reach, got {environment.runs!r}")
    pins = Path(environment.runs, environment.tenant).glob(f"*/{RUN_FILE}")
    newest = max(pins, key=lambda path: (path.stat().st_mtime, path.parent.name), default=None)
    return None if newest is None else newest.parent


def run_metrics(environment: Environment) -> Iterator[Metric]:
    """What the newest run's folder tells. A report that is not there yet has no metrics."""
    folder = newest_run(environment)
    if folder is None:
        return
    run = Run.from_json((folder / RUN_FILE).read_bytes())
    yield _info("nightjar_night_run", "The newest run", {"as_of": run.as_of, "publishes": str(run.publishes).lower()})
    yield _gauge(
        "nightjar_night_run_as_of_timestamp_seconds", "as_of of the newest run, Unix time", run.cut_off.timestamp()
    )
    written = GaugeMetricFamily(
        "nightjar_night_report_timestamp_seconds", "When the newest run wrote a report, Unix time", labels=["report"]
    )
    for name in REPORTS:
        if (folder / name).is_file():
            written.add_metric([name.removesuffix(".json")], (folder / name).stat().st_mtime)
    yield written
    yield from _refine_metrics(_read(folder / REFINE_FILE))
    yield from _data_metrics(_read(folder / QUALITY_FILE))
    yield from _gate_metrics(_read(folder / GATE_FILE))
    yield from _quality_metrics(_read(folder / EVALUATION_FILE))


def task_metrics(night: Night | None) -> Iterator[Metric]:
    """State and seconds as Airflow knows them; nothing before the first run."""
    if night is None:
        return
    yield _one_of(
        "nightjar_night_run_state", "1 for the state of the newest DAG run", "state", RUN_STATES, night["state"]
    )
    if night["seconds"] is not None:
        yield _gauge("nightjar_night_run_seconds", "Seconds the newest DAG run has taken", night["seconds"])
    seconds = GaugeMetricFamily(
        "nightjar_night_task_seconds", "Seconds of a task's last try in the newest DAG run", labels=["task"]
    )
    tries = GaugeMetricFamily("nightjar_night_task_tries", "Tries of a task in the newest DAG run", labels=["task"])
    for task in night["tasks"]:
        if task["seconds"] is not None:
            seconds.add_metric([task["task_id"]], task["seconds"])
        tries.add_metric([task["task_id"]], task["tries"])
    yield from (seconds, tries)


def _refine_metrics(report: Mapping[str, Any] | None) -> Iterator[Metric]:
    if report is None:
        return
    rows = GaugeMetricFamily(
        "nightjar_night_rows",
        "Deliveries the newest run looked at: read = kept + duplicates + quarantined + withheld + outside",
        labels=["outcome"],
    )
    for outcome, count in report["total"].items():
        rows.add_metric([outcome], count)
    reasons = GaugeMetricFamily(
        "nightjar_night_quarantined_rows", "Deliveries the newest run refused, by reason", labels=["reason"]
    )
    for reason, count in report["quarantined_by_reason"].items():
        reasons.add_metric([reason], count)
    yield from (rows, reasons)


def _data_metrics(report: Mapping[str, Any] | None) -> Iterator[Metric]:
    if report is None:
        return
    yield _one_of(
        "nightjar_night_data_verdict",
        "1 for what the newest run says of its data",
        "verdict",
        DATA_VERDICTS,
        report["verdict"],
    )
    findings = GaugeMetricFamily(
        "nightjar_night_data_findings", "What is unusual in the newest run's data, by level", labels=["level"]
    )
    levels = [finding["level"] for finding in report["findings"]]
    for level in DATA_VERDICTS[1:]:
        findings.add_metric([level], levels.count(level))
    yield findings


def _gate_metrics(report: Mapping[str, Any] | None) -> Iterator[Metric]:
    if report is None:
        return
    yield _one_of(
        "nightjar_night_gate_verdict", "1 for the newest run's verdict", "verdict", VERDICTS, report["verdict"]
    )
    yield _info("nightjar_night_winner", "The recipe that the gate lets through", {"model": report["model"] or "none"})


def _quality_metrics(report: Mapping[str, Any] | None) -> Iterator[Metric]:
    if report is None:
        return
    quality = GaugeMetricFamily(
        "nightjar_night_model_quality_ratio",
        "Offline quality on the newest run's test days over all test persons, 0 to 1",
        labels=["model", "metric"],
    )
    for name, model in report["models"].items():
        overall = model["metrics"].get("all", {})
        for metric in QUALITY:
            if metric in overall:
                quality.add_metric([name, metric], overall[metric])
    yield quality
    yield _gauge(
        "nightjar_night_data_age_seconds",
        "From the last event the newest run saw to its as_of, in seconds",
        report["test"]["data_age_days"] * 86_400,
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)


def _info(name: str, words: str, labels: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily(f"{name}_info", f"{words} (always 1; the labels tell)", labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def _one_of(name: str, words: str, label: str, known: Iterable[str], found: str) -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for value in sorted({*known, found}):
        family.add_metric([value], float(value == found))
    return family
