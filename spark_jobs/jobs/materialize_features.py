"""Bring the run's features online: apply the Feast repository, materialize its views at the run's as_of.

Reads    the gold feature tables (rows of as_of); feature_repo/
Writes   Feast's registry; the features of every user, item, and user in a category in Redis `online`, stamped with
         as_of; last, the as_of of each view (contracts.keys.feature_times_key), which `nightjar status` reads

A run that does not publish leaves the online store as it is and says so. Running again writes the same values again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.feature_table import FEATURE_VIEWS, FeatureView
from feature_repo.contracts.keys import feature_times_key
from feature_repo.contracts.run import Run
from feature_repo.contracts.times import to_micros
from spark_jobs.io.feature_store import naming_redis, open_store
from spark_jobs.io.light_delta import read_table
from spark_jobs.jobs.entry import run_job

if TYPE_CHECKING:
    from feast import FeatureStore


def main(environment: Environment, run: Run) -> None:
    """Materialize every view, or say why not.

    Raises DependencyError when Redis does not answer, DataError when features did not arrive.
    """
    if not run.publishes:
        print(f"features stay as they are online: {run.why}", flush=True)
        return
    store = open_store(environment)

    def bring_online() -> None:
        import redis

        # a second wide: rows of this as_of and of no other run
        store.materialize(run.cut_off - timedelta(seconds=1), run.cut_off)
        for view in FEATURE_VIEWS.values():
            _check_online(store, environment, run, view)
        with redis.Redis.from_url(environment.redis_online_url) as client:
            times = {view: str(to_micros(run.cut_off)) for view in FEATURE_VIEWS}
            client.hset(feature_times_key(environment.tenant), mapping=times)

    naming_redis(bring_online, environment.redis_online_url)
    print(f"features of {run.as_of} are online", flush=True)


def _check_online(store: FeatureStore, environment: Environment, run: Run, view: FeatureView) -> None:
    """Raises DataError when an entity that the table knows on this day has no features of it online: a reader that
    finds no rows where there are some says nothing by itself."""
    day = [("as_of", "=", run.cut_off.date())]
    known = read_table(environment, view.table, columns=view.join_keys, filters=day)
    for entity in known.slice(0, 1).to_pylist():
        asked = [f"{view.name}:{view.features[0].name}"]
        found = store.get_online_features(features=asked, entity_rows=[entity]).proto
        stamp = found.results[len(view.join_keys)].event_timestamps[0].ToMicroseconds()
        if stamp != to_micros(run.cut_off):
            raise DataError(
                f"{view.table} has {known.num_rows} rows of {run.as_of}, and after materialization {entity} has no "
                "features of that day online",
                field=view.name,
            )


if __name__ == "__main__":
    run_job(main)
