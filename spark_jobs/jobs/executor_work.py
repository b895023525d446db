"""What one task of an executor does of a job on a cluster (`spark_jobs.engine`), and the little that the driver hears.

A job is a program, so what is defined in it has no name elsewhere: these functions have one, and call it.
"""

from __future__ import annotations

from typing import NamedTuple

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import Run


class TrainedModel(NamedTuple):
    """A model as the driver hears of it; its files lie in the run folder. `ndcg` is None when nobody could be asked."""

    name: str
    manifest_sha256: str
    file_bytes: int
    ndcg: float | None


def train(environment: Environment, run: Run) -> list[TrainedModel]:
    """train_models: what it reads, fits, measures and writes."""
    from spark_jobs.jobs.train_models import train_models

    report = train_models(environment, run)
    return [
        TrainedModel(name, one["manifest_sha256"], one["file_bytes"], one["metrics"].get("all", {}).get("ndcg_at_20"))
        for name, one in report["models"].items()
    ]
