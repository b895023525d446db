"""Bring the run's features online: apply the Feast repository, materialize its views at the run's as_of.

Reads    the gold feature tables (rows of as_of); feature_repo/
Writes   Feast's registry; the features of every user, item, and user in a category in Redis `online`, stamped with
         as_of; last, the as_of of each view (contracts.keys.feature_times_key), which `nightjar status` reads

A run that does not publish leaves the online store as it is and says so. Running again writes the same values again.
"""

from __future__ import annotations

from datetime import timedelta

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.feature_table import FEATURE_VIEWS
from feature_repo.contracts.keys import feature_times_key
from feature_repo.contracts.run import Run
from feature_repo.contracts.times import to_micros
from spark_jobs.io.feature_store import naming_redis, open_store
from spark_jobs.jobs.entry import run_job


def main(environment: Environment, run: Run) -> None:
    """Materialize every view, or say why not. Raises DependencyError when Redis does not answer."""
    if not run.publishes:
        print(f"features stay as they are online: {run.why}", flush=True)
        return
    store = open_store(environment)

    def bring_online() -> None:
        import redis

        # a second wide: rows of this as_of and of no other run
        store.materialize(run.cut_off - timedelta(seconds=1), run.cut_off)
        with redis.Redis.from_url(environment.redis_online_url) as client:
            times = {view: str(to_micros(run.cut_off)) for view in FEATURE_VIEWS}
            client.hset(feature_times_key(environment.tenant), mapping=times)

    naming_redis(bring_online, environment.redis_online_url)
    print(f"features of {run.as_of} are online", flush=True)


if __name__ == "__main__":
    run_job(main)
