"""Going back to an earlier version: what `nightjar rollback` and the DAG `rollback_recommendations` do.

Light at import: redis and the contracts.
"""

from __future__ import annotations

from typing import NamedTuple

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from spark_jobs.io.bundle import bundle_folder
from spark_jobs.io.champion_alias import move_champion
from spark_jobs.io.publication import Publication


class Rollback(NamedTuple):
    """What a rollback did.

    served       the version that is served now
    previous     the one served before it: a bare rollback returns to it
    """

    served: str
    previous: str | None


def rollback_target(environment: Environment, publication: Publication, version: str | None) -> str | None:
    """The version to return to: the one named, else the previous one; None when there is none.

    Raises DataError when its bundle is gone: serving could not load it.
    """
    target = version or publication.previous_version()
    known = {listed.version for listed in publication.list_versions()}
    if target in known and not bundle_folder(environment.publications, target, tenant=environment.tenant).is_dir():
        raise DataError(
            f"version {target} has no bundle in {environment.publications}/{environment.tenant} any more: "
            "serving could not load it",
            field="version",
        )
    return target


def roll_back(environment: Environment, publication: Publication, version: str | None) -> Rollback:
    """Move the pointer to the target. Raises DataError when that version cannot be served or already is."""
    rollback_target(environment, publication, version)
    done = publication.rollback(version)
    return Rollback(done.served, done.previous)


def tell_mlflow(environment: Environment, served: str) -> tuple[str | None, str | None]:
    """(number of the registered version that is `champion` now, None), or (None, why MLflow names another one).

    The pointer is the truth: a registry that is silent or does not know the version is told, not raised.
    """
    try:
        champion = move_champion(environment, served)
    except DependencyError as error:
        return None, str(error)
    if champion is None:
        return None, f"MLflow has no registered version tagged published_version={served}"
    return champion, None
