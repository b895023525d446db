"""Make a past run again from its pins, and compare: `nightjar repro`.

The run is made again as the first night of a tenant of its own, `repro-<tenant>`: its tables are the pinned versions of
what the run read (hard links, so nothing is copied), its champion the recipe that the run met, its item numbers those
that the run used. Nothing of the original is written to; of the copy nothing stays but its runs in MLflow.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError, NightjarError
from feature_repo.contracts.run import EVALUATION_FILE, HASHES_FILE, Run
from feature_repo.contracts.tables import table_path
from infra.local.night import TASKS
from infra.local.programs import attempt
from spark_jobs.io import registry, tracking
from spark_jobs.io.bundle import list_bundles, remove_bundles
from spark_jobs.io.light_delta import open_table
from spark_jobs.io.publication import Publication
from spark_jobs.io.run_hashes import run_hashes
from spark_jobs.io.run_store import has_report, read_report, read_run, write_run

MADE_AGAIN = tuple(task for task in TASKS if task not in ("pin_run", "materialize_features", "flip_version"))
"""The tasks that make what is compared: nothing is pinned anew, and nothing goes live."""

NUMBERS = "gold.item_ids"

Say = Callable[[str], None]


class NotReproducibleError(NightjarError):
    """A run that cannot be made again; the text says why."""


def reproduce(key: str, variables: Mapping[str, str], *, say: Say = lambda _: None) -> dict[str, Any]:
    """Make run `key` again and return {run_key, as_of, identical, hashes, differing, seconds, code_version, made_by}.

    `hashes` are the recorded ones, `differing` maps a name to [recorded, found]. `variables` are those of the stack
    (`stack_variables`), which must be up. Raises DataError when there is no such run, NotReproducibleError when it can
    not be made again, NightjarError with the end of its log when a task fails.
    """
    environment = Environment.from_mapping(variables)
    run = read_run(environment, key)
    recorded = _recorded(environment, run)
    versions = _versions_read(environment, run)
    copy = environment._replace(tenant=f"repro-{environment.tenant}"[:63])
    with _alone(copy):
        _remove(copy)
        try:
            for name, version in versions.items():
                _link_table(environment, copy, name, version)
            _meet_champion(environment, copy, run)
            say(f"{run.run_key}: as_of {run.as_of}, {len(versions)} tables at their pinned versions")
            seconds = _run_again(copy, run, variables, say)
            found = run_hashes(copy, run)
        finally:
            _remove(copy)
    differing = {
        name: [recorded.get(name), found.get(name)]
        for name in sorted(recorded.keys() | found.keys())
        if recorded.get(name) != found.get(name)
    }
    return {
        "run_key": run.run_key,
        "as_of": run.as_of,
        "identical": not differing,
        "hashes": recorded,
        "differing": differing,
        "seconds": round(seconds, 1),
        "made_by": run.code_version,
        "code_version": environment.code_version,
    }


def _recorded(environment: Environment, run: Run) -> dict[str, str]:
    if not has_report(environment, run.run_key, HASHES_FILE):
        raise NotReproducibleError(
            f"not reproducible: {run.run_key} never finished, so it left no {HASHES_FILE} to compare with"
        )
    return dict(read_report(environment, run.run_key, HASHES_FILE)["hashes"])


def _versions_read(environment: Environment, run: Run) -> dict[str, int]:
    """Table -> version of all that the run read, each still whole.

    Raises NotReproducibleError naming the table when a version can no longer be read, or a file of it is gone: history
    is kept for 30 days, and an erasure takes a person out of it at once.
    """
    if "://" in environment.lakehouse:
        raise NotReproducibleError("not reproducible: the tables lie on an object store, and are linked on a disk only")
    pinned = {
        **run.pins,
        NUMBERS: int(read_report(environment, run.run_key, EVALUATION_FILE)["delta_versions"][NUMBERS]),
    }
    versions = {name: version for name, version in pinned.items() if version >= 0}
    for name, version in versions.items():
        try:
            found = open_table(environment, name, version)
        except DataError as error:
            raise NotReproducibleError(f"not reproducible: {error}") from error
        if found is None:
            raise NotReproducibleError(f"not reproducible: the table {name} is gone")
        root = Path(table_path(environment.lakehouse, name, tenant=environment.tenant))
        missing = [uri for uri in found.file_uris() if not _path_of(uri).exists()]
        if missing:
            raise NotReproducibleError(
                f"not reproducible: {len(missing)} files of {name} version {version} are gone from {root}: they are "
                "past the history that is kept (30 days), or were taken out by an erasure"
            )
    return versions


def _path_of(uri: str) -> Path:
    """A data file as deltalake names it: a path, or a file: address."""
    return Path(unquote(urlsplit(uri).path)) if uri.startswith("file:") else Path(uri)


def _link_table(original: Environment, copy: Environment, name: str, version: int) -> None:
    """The table as it was at `version`, under the same version number: its files as links, its log up to there."""
    source = Path(table_path(original.lakehouse, name, tenant=original.tenant))
    target = Path(table_path(copy.lakehouse, name, tenant=copy.tenant))
    for folder, _, files in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        in_log = here == target / "_delta_log"
        for file in files:
            if in_log and (not file[:20].isdigit() or int(file[:20]) > version):
                continue  # what came later, and the pointer to the newest checkpoint
            if in_log:
                shutil.copy2(Path(folder) / file, here / file)  # a log is written to: never share it
            else:
                os.link(Path(folder) / file, here / file)


def _meet_champion(original: Environment, copy: Environment, run: Run) -> None:
    """The copy's champion is the recipe that the run met."""
    met = read_report(original, run.run_key, EVALUATION_FILE)["champion"]
    if met is None:
        return
    try:
        found = registry.find_version(original, str(met["version"]))
    except DataError as error:
        raise NotReproducibleError(f"not reproducible: the champion it met is gone: {error}") from error
    published = str(met["published_version"] or "unpublished")
    registry.register_version(
        copy, run_id=found.run_id, run_key=published, as_of="", recipe=found.recipe, verdict="publish"
    )
    registry.set_champion(copy, published_version=published, run_key=published)


def _run_again(copy: Environment, run: Run, variables: Mapping[str, str], say: Say) -> float:
    tags = {"nightjar.repro_of": run.run_key, "nightjar.publishes": "false"}
    mlflow_run_id = tracking.start_night(copy, run_key=run.run_key, as_of=run.as_of, tags=tags)
    again = replace(run, tenant=copy.tenant, derive_days=None, mlflow_run_id=mlflow_run_id)
    write_run(copy, again)
    child = {**variables, names.TENANT: copy.tenant}
    log = Path(copy.home) / "logs" / f"{copy.tenant}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    total = 0.0
    for task in MADE_AGAIN:
        done = attempt(task, run.run_key, run.as_of, variables=child, log=log)
        total += done.seconds
        say(f"{task} {done.seconds:.1f} s")
    return total


def _remove(copy: Environment) -> None:
    """All that a reproduction leaves, here or from one that was killed."""
    for root in (copy.lakehouse, copy.runs):
        shutil.rmtree(Path(root) / copy.tenant, ignore_errors=True)
    publication = Publication(copy.redis_online_url, copy.tenant)
    for version in publication.list_versions():
        publication.drop(version.version)
    remove_bundles(copy.publications, list_bundles(copy.publications, tenant=copy.tenant), tenant=copy.tenant)
    registry.delete(copy)


@contextmanager
def _alone(copy: Environment) -> Iterator[None]:
    """One reproduction of a tenant at a time. Raises DependencyError when another one is under way."""
    path = Path(copy.home) / "run" / f"{copy.tenant}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DependencyError(f"another reproduction is under way: {path} is locked") from None
        json.dump({"pid": os.getpid()}, lock)
        lock.flush()
        yield
