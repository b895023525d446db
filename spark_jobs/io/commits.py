"""Commits of the jobs to tables in a folder: one process at a time, on disk when they are over, torn ones taken back.

Spark fsyncs nothing and the light engine neither, so a power cut soon after a job could take what the job's success
said was there, or leave a table that cannot be read. On an object store a finished write is durable by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.object_store import is_on_store
from feature_repo.contracts.tables import TABLES, table_path
from feature_repo.contracts.torn_commits import sync_newest, take_back_torn_commits
from spark_jobs.io.writer_lock import commit_lock

NIGHT_WRITERS = frozenset(spec.writer for spec in TABLES.values()) - {"archiver", "importer", "stream_kafka"}
"""Those who write because a night runs."""

_synced: dict[Path, int] = {}
"""The newest commit of a table that this process knows to be on disk; of one that it has not written yet, none."""


@contextmanager
def commit(environment: Environment, name: str) -> Iterator[None]:
    """Be the only one who commits to a table, see `commit_lock`; what was committed inside is on disk at the end.

    So is what a process left that died between its commit and this point. After an error nothing is waited for.
    """
    with commit_lock(environment, name):
        yield
        root = _folder(environment, name)
        if root is not None:
            _synced[root] = sync_newest(root, _synced.get(root, -1))


def take_back_torn(environment: Environment, writers: Collection[str] = NIGHT_WRITERS) -> dict[str, list[int]]:
    """Take back what a power cut tore of the tables of `writers`, and see that the rest of their newest commits is on
    disk: before a job reads what it wrote itself, or what another one did.

    A table to which somebody commits just now is left to them: they began with this. Returns table -> versions that are
    gone, of those that lost any.
    """
    gone: dict[str, list[int]] = {}
    for name in sorted(name for name, spec in TABLES.items() if spec.writer in writers):
        root = _folder(environment, name)
        if root is None or not root.is_dir():
            continue
        with suppress(DependencyError), commit_lock(environment, name, wait_seconds=0.0):
            if versions := take_back_torn_commits(root):
                gone[name] = versions
                print(f"{name}: a power cut tore versions {versions}; they are taken back", flush=True)
            _synced[root] = sync_newest(root)
    return gone


def _folder(environment: Environment, name: str) -> Path | None:
    """Where the table lies; None on an object store."""
    path = table_path(environment.lakehouse, name, tenant=environment.tenant)
    return None if is_on_store(path) else Path(path)
