"""Make the night's version live: move the pointer, drop what nothing can return to, tell MLflow.

Reads    publication.json; the pointer and the versions in Redis `online`
Writes   the pointer; the alias `champion` and the end of the night's run in MLflow; removes rows and bundles of
         versions beyond the warm ones

The pointer is the truth. When MLflow does not answer after the flip, the flip stands, the task fails and says so, and
its retry sets the alias. When a version of a later day went live after the lists were made, nothing is flipped: pin_run
decided that this run publishes, but not over that one.
"""

from __future__ import annotations

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.publication import parse_version
from feature_repo.contracts.run import PUBLICATION_FILE, Run
from spark_jobs.io.bundle import list_bundles, remove_bundles
from spark_jobs.io.publication import Publication
from spark_jobs.io.registry import set_champion
from spark_jobs.io.run_store import read_report
from spark_jobs.io.tracking import end_night
from spark_jobs.jobs.entry import run_job


def main(environment: Environment, run: Run) -> None:
    """Raises DataError when the version is not verified, DependencyError when Redis or MLflow does not answer."""
    if run.publishes:
        _flip(environment, run)
    else:
        print(f"nothing to flip: {run.why}", flush=True)
    end_night(environment, run.mlflow_run_id, "FINISHED")
    print("changed night_tables", flush=True)  # the name of an asset, for Airflow


def _flip(environment: Environment, run: Run) -> None:
    report = read_report(environment, run.run_key, PUBLICATION_FILE)
    version = report["version"]
    publication = Publication(environment.redis_online_url, environment.tenant)
    served = publication.served_version()
    if served is not None and served != report["served_before"] and parse_version(served)[0] > run.as_of_day:
        print(f"not flipped to {version}: {served} went live meanwhile, and is of a later day", flush=True)
        return
    done = publication.flip(version)
    before = f"before it {done.previous}" if done.previous else "the first one"
    print(f"serving {version} ({before})", flush=True)
    print(f"lists hash {publication.manifest(version).candidates_checksum}", flush=True)
    for removed in remove_bundles(
        environment.publications, _useless_bundles(environment, publication, version), tenant=environment.tenant
    ):
        print(f"dropped {removed}", flush=True)
    try:
        set_champion(environment, published_version=version, run_key=run.run_key)
    except DependencyError as error:
        raise DependencyError(
            f"{version} is served, but MLflow was not told and may name another champion: {error}. Run this task again"
        ) from error
    print("changed recommendations", flush=True)


def _useless_bundles(environment: Environment, publication: Publication, version: str) -> list[str]:
    """Bundles of the flipped day or before whose version is not in Redis any more."""
    warm = {listed.version for listed in publication.list_versions()}
    day = parse_version(version)[0]
    bundles = list_bundles(environment.publications, tenant=environment.tenant)
    return [name for name in bundles if name not in warm and parse_version(name)[0] <= day]


if __name__ == "__main__":
    run_job(main)
