"""The metrics that the services really have, collected from their own registries on a small installation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import redis
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric

import serving.observability  # noqa: F401 - registers the API's metrics
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import candidates_key, pointer_key
from feature_repo.contracts.run import Run
from infra.exporter.lakehouse import Lakehouse
from infra.exporter.night import run_metrics, task_metrics
from infra.exporter.served import feature_metrics, publication_metrics
from infra.exporter.snapshot import Snapshot
from infra.local.night import Night
from serving.adapters.feast_online import entity_key, timestamp_field
from serving.speed.metrics import ArchiverMetrics, ConsumerMetrics, StreamPositions
from spark_jobs.io.publication import Publication
from tests.builders import write_rows
from tests.serving_builders import Shop

SHOP = Shop({"i1": {"title": "I1"}, "i2": {"title": "I2"}}, popular=[("i1", 2.0)])

NIGHT: Night = {
    "dag_run_id": "scheduled__2024-03-08",
    "run_key": "scheduled__2024-03-08",
    "state": "running",
    "seconds": 61.5,
    "tasks": [
        {"task_id": "pin_run", "state": "success", "seconds": 2.5, "tries": 1},
        {"task_id": "refine_events", "state": "up_for_retry", "seconds": 30.0, "tries": 2},
        {"task_id": "build_features", "state": None, "seconds": None, "tries": 0},
    ],
    "failed_task": None,
    "errors": [],
}

REPORTS: dict[str, Any] = {
    "refine.json": {
        "total": {"read": 110, "kept": 80, "duplicates": 7, "quarantined": 20, "withheld": 2, "outside": 1},
        "quarantined_by_reason": {"missing_user": 15, "bad_timestamp": 5},
    },
    "evaluation.json": {
        "models": {
            "als": {"metrics": {"all": {"ndcg_at_20": 0.25, "recall_at_20": 0.5}, ">20": {"ndcg_at_20": 0.9}}},
            "popularity": {"metrics": {}},  # nobody to test on
        },
        "test": {"data_age_days": 0.5},
    },
    "quality.json": {"verdict": "warn", "findings": [{"level": "warn"}, {"level": "warn"}]},
    "gate.json": {"verdict": "publish", "model": "als"},
}


class Family(NamedTuple):
    """One metric as a scrape names it (a counter with its `_total`)."""

    service: str
    name: str
    kind: str
    labels: tuple[str, ...]
    words: str


def write_run(runs: str, key: str, as_of: str, reports: dict[str, Any], *, at: float) -> Path:
    """A run folder whose run.json was written at `at` (Unix time)."""
    folder = Path(runs) / "default" / key
    folder.mkdir(parents=True)
    run = Run(key, "default", as_of, {}, None, True, "", "", "")
    (folder / "run.json").write_text(run.to_json())
    os.utime(folder / "run.json", (at, at))
    for name, report in reports.items():
        (folder / name).write_text(json.dumps(report))
    return folder


def fill(environment: Environment) -> None:
    """A night that ran, a version that is served with features, a table."""
    write_run(environment.runs, "a-second", "2024-03-08", REPORTS, at=2_000.0)
    write_run(environment.runs, "b-first", "2024-03-09", {}, at=1_000.0)  # pinned earlier, though for a later day
    publication = Publication(environment.redis_online_url)
    version = publication.announce(SHOP.manifest)
    publication.mark_verified(version, at=datetime(2024, 3, 8, 4, tzinfo=UTC))
    with redis.Redis.from_url(environment.redis_online_url) as client:
        client.set(pointer_key(), version)
        client.set(candidates_key(version, "u1"), b"x")
        client.set(candidates_key(version, "unknown to feast"), b"x")
        client.hset(
            entity_key(["user_id"], ["u1"]), timestamp_field("user_features"), b"\x08\xc0\x84\x3d"
        )  # 1,000,000 s
    write_rows(environment, "bronze.items", [{"item_id": "i1", "title": "One"}, {"item_id": "i2", "title": "Two"}])


def registries(environment: Environment) -> dict[str, CollectorRegistry]:
    """Service -> what its /metrics shows."""
    consumer, archiver = ConsumerMetrics().registry, ArchiverMetrics().registry
    consumer.register(StreamPositions.from_environment("consumer", environment))
    archiver.register(StreamPositions.from_environment("archiver", environment))
    snapshot = Snapshot(
        {
            "runs": lambda: run_metrics(environment),
            "publication": lambda: publication_metrics(environment),
            "features": lambda: feature_metrics(environment),
            "lakehouse": Lakehouse(environment).metrics,
            "airflow": lambda: task_metrics(NIGHT),
        },
        clock=lambda: 5_000.0,
    )
    snapshot.refresh()
    exporter = CollectorRegistry()
    exporter.register(snapshot)
    return {"api": REGISTRY, "consumer": consumer, "archiver": archiver, "exporter": exporter}


def families(environment: Environment) -> list[Family]:
    """Every `nightjar_...` metric of every service."""
    return [
        Family(service, _scraped_name(metric), metric.type, _labels(metric, registry), metric.documentation)
        for service, registry in registries(environment).items()
        for metric in _own(registry)
    ]


def _own(registry: CollectorRegistry) -> Iterator[Metric]:
    yield from (metric for metric in registry.collect() if metric.name.startswith("nightjar_"))


def _scraped_name(metric: Metric) -> str:
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def _labels(metric: Metric, registry: CollectorRegistry) -> tuple[str, ...]:
    declared = registry._names_to_collectors.get(metric.name)
    names = getattr(declared, "_labelnames", None)
    if names is None:
        names = {label for sample in metric.samples for label in sample.labels}
    return tuple(sorted(set(names) - {"le"}))
