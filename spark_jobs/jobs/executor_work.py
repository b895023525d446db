"""What one task of an executor does of a job on a cluster (`spark_jobs.engine`), and the little that the driver hears.

A job is a program, so what is defined in it has no name elsewhere: these functions have one, and call it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import Run
from spark_jobs.io.parcels import Parcel, leave, take
from spark_jobs.jobs.resources import Clock


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


class PreparedLists(NamedTuple):
    """What is left for the tasks after it. `ranked`: what there is to rank, in words; `items`: their numbers, and
    which may be published."""

    lists: Parcel
    block_count: int
    ranked: str
    items: Parcel
    beside: Parcel


def prepare_lists(environment: Environment, run: Run) -> PreparedLists:
    """score_users up to the lists, and what stands beside them: all but ranking and publishing."""
    from spark_jobs.jobs import score_users as job
    from spark_jobs.jobs.lists_by_executors import Lists

    tell = Clock()
    shop = job.prepare(environment, run, job.recipe_of(environment, run), tell)
    lists = leave(environment, run, Lists(environment, run, shop.scoring, shop.denied, shop.kept.keys))
    items = leave(environment, run, (shop.numbers, shop.eligible))
    beside = leave(environment, run, job.make_beside(environment, run, shop, tell))
    return PreparedLists(lists, shop.scoring.block_count, shop.ranked(), items, beside)


def publish_lists(environment: Environment, run: Run, beside: Parcel) -> dict[str, Any]:
    """score_users after the lists; what publication.json says."""
    from spark_jobs.jobs import score_users as job

    return job.publish_all(environment, run, take(beside), Clock())
