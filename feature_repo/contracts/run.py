"""One night as a value: what it may read, what it is for, and where its reports lie.

A run is defined by `as_of` and by the Delta versions it reads. Its first task pins both in `run.json`; every later
task, and every retry, reads them from there.

Run folder, `<runs>/<tenant>/<run_key>/`:
    run.json            `Run`
    refine.json         counts of bronze -> silver: read, kept, duplicates, quarantined by reason, bots
    quality.json        the verdict on the data: what came by day, what is unusual, the limits in force
    quality.html        the same for people
    features.json       row counts of the feature tables
    evaluation.json     metrics by model and slice
    user_metrics.parquet  per-user metrics of every model (what the gate's intervals are made of)
    gate.json           the verdict and why, in words
    publication.json    version, counts, checksums of what was published
    models/<name>/      arrays + manifest of each fitted model
    metrics.json        what the decisions of the last days brought: counts and shares with intervals
    metrics.html        the same for people
    hashes.json         what the finished run made, by hash
    failed.json         the job that failed and its words, until a job of the run starts again
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import Any

from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.keys import check_tenant
from feature_repo.contracts.times import parse_as_of, start_of_day

RUN_FILE = "run.json"
REFINE_FILE = "refine.json"
QUALITY_FILE, QUALITY_PAGE = "quality.json", "quality.html"
FEATURES_FILE = "features.json"
EVALUATION_FILE = "evaluation.json"
USER_METRICS_FILE = "user_metrics.parquet"
GATE_FILE = "gate.json"
PUBLICATION_FILE = "publication.json"
ROLLBACK_FILE = "rollback.json"
REDERIVE_FILE = "rederive.json"
MAINTENANCE_FILE = "maintenance.json"
PLACEMENTS_FILE = "placements.json"
METRICS_FILE, METRICS_PAGE = "metrics.json", "metrics.html"
HASHES_FILE = "hashes.json"
FAILED_FILE = "failed.json"
MODELS_FOLDER = "models"

PINNED_TABLES = (
    "bronze.events_kafka", "bronze.quarantine_kafka",
    "bronze.events", "bronze.events_import", "bronze.items", "bronze.users", "bronze.quarantine",
    "bronze.quarantine_import", "bronze.item_changes", "bronze.user_changes", "silver.decisions",
    "gold.user_features", "gold.item_features", "gold.user_category_features",
    "gold.candidates", "gold.item_neighbours", "gold.item_factors",
)  # fmt: skip
"""Read by the night and written by others (of days before: by other nights), so pinned by version. A table
that does not exist yet is pinned at -1 (empty)."""


MOST_IN_MEMORY = 30_000_000
"""Events of which one process can hold what is derived from them: some thirty to fifty bytes each, and their texts."""


@dataclass(frozen=True, slots=True)
class Run:
    """Grain: one DAG run.

    as_of        day (UTC) whose first instant ends, exclusively, what the run may see
    pins         table -> Delta version, or -1 when the table did not exist
    derive_days  event days (ISO) that gained rows since the last run of this or a later as_of; None means every day
    publishes    False for backfills and for any as_of older than what is served
    why          in words, why it publishes or not
    mlflow_run_id  the parent run
    last_day_is_over  False when the run was started on the day before as_of: that day may still bring events
    params       parameters of the run, as given (test_days, models ...)
    event_count  deliveries of days before as_of in the pinned tables; 0 in runs of before this was counted
    """

    run_key: str
    tenant: str
    as_of: str
    pins: Mapping[str, int]
    derive_days: tuple[str, ...] | None
    publishes: bool
    why: str
    mlflow_run_id: str
    code_version: str
    params: Mapping[str, Any] = field(default_factory=dict)
    last_day_is_over: bool = True
    event_count: int = 0

    @property
    def as_of_day(self) -> date:
        return parse_as_of(self.as_of)

    @property
    def cut_off(self) -> datetime:
        """The exclusive end of the data interval, aware UTC."""
        return start_of_day(self.as_of_day)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Run:
        """Raises ContractError on text that is no run."""
        try:
            values = json.loads(text)
            if values.get("derive_days") is not None:
                values["derive_days"] = tuple(values["derive_days"])
            return cls(**values)
        except (TypeError, ValueError, AttributeError) as error:
            raise ContractError(f"not a run: {error}") from error


def run_key(dag_run_id: str) -> str:
    """A folder name from an Airflow run id: `manual__2024-03-08T01:02` -> `manual__2024-03-08T01-02`."""
    if not dag_run_id:
        raise DataError("a run needs an id", field="run_key")
    return re.sub(r"[^A-Za-z0-9_.-]", "-", dag_run_id)[:200]


def run_folder(runs: str, tenant: str, key: str) -> str:
    """`<runs>/<tenant>/<run_key>`"""
    return "/".join((runs.rstrip("/"), check_tenant(tenant), key))
