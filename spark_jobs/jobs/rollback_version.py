"""Serve an earlier version again: the job of the DAG `rollback_recommendations`.

Reads    the versions in Redis `online` and their bundles
Writes   rollback.json in the run folder, first: the target; then the pointer; then MLflow's alias `champion`

Running it again for the same run leaves what the first run left: the target was written down before the pointer moved.
"""

from __future__ import annotations

import argparse

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import ROLLBACK_FILE
from spark_jobs.io.publication import Publication
from spark_jobs.io.rollback import roll_back, rollback_target, tell_mlflow
from spark_jobs.io.run_store import has_report, read_report, write_report
from spark_jobs.jobs.entry import run_command


def main(environment: Environment, arguments: argparse.Namespace) -> None:
    """Raises DataError when there is nothing to return to, DependencyError when Redis does not answer."""
    publication = Publication(environment.redis_online_url, environment.tenant)
    if not has_report(environment, arguments.run_key, ROLLBACK_FILE):
        _write_down(environment, publication, arguments)
    report = read_report(environment, arguments.run_key, ROLLBACK_FILE)
    target = report["served"]
    if publication.served_version() == target:
        print(f"serving {target} already", flush=True)
    else:
        roll_back(environment, publication, target)
        print(f"serving {target}, no longer {report['previous']}", flush=True)
    champion, disagreement = tell_mlflow(environment, target)
    if disagreement:
        print(f"the pointer is the truth and has moved; MLflow's champion has not: {disagreement}", flush=True)
    else:
        print(f"MLflow's champion is registered version {champion}", flush=True)
    print("changed recommendations", flush=True)


def _write_down(environment: Environment, publication: Publication, arguments: argparse.Namespace) -> None:
    target, served = rollback_target(environment, publication, arguments.version or None), publication.served_version()
    if target is None:
        raise DataError("nothing to roll back to: no version was served before this one", field="version")
    if target == served:
        raise DataError(f"version {target} is already served", field="version")
    publication.manifest(target)  # an unknown version is named, with those there are, before anything is written
    report = {"served": target, "previous": served, "reason": arguments.reason}
    write_report(environment, arguments.run_key, ROLLBACK_FILE, report)


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-key", required=True, help="the folder of the run")
    parser.add_argument("--version", default="", help="empty: the version served before this one")
    parser.add_argument("--reason", default="", help="why, for whoever reads the run later")
    return parser


if __name__ == "__main__":
    run_command(main, arguments_parser())
