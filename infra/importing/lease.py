"""The right to write the imported tables of one lakehouse: one process at a time.

A lock on a file of the operating system, so a killed process never leaves it held. It lies in the lakehouse when that
is a folder; for an object store it lies in NIGHTJAR_HOME, and then holds only among processes that share that home.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError

IMPORTER, INBOX = "importer", "inbox"
_POLL_SECONDS = 0.2
_held: set[Path] = set()


@contextmanager
def writer_lease(env: Environment, name: str = IMPORTER, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lease; within one process a second holder joins the first.

    Raises DependencyError saying who holds it when it is not free after `wait_seconds`.
    """
    path = lease_path(env, name)
    if path in _held:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        _lock(file.fileno(), path, wait_seconds)
        file.seek(0)
        file.truncate()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(json.dumps({"pid": os.getpid(), "command": " ".join(sys.argv)[:300], "since": since}))
        file.flush()
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
            file.seek(0)
            file.truncate()


def state_folder(env: Environment) -> Path:
    """What the importer keeps about a lakehouse lies beside its tables."""
    return Path(env.beside_tables, ".importer")


def lease_path(env: Environment, name: str) -> Path:
    """The file whose lock is the lease."""
    return state_folder(env) / f"{name}.lock"


def _lock(descriptor: int, path: Path, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                continue
            raise DependencyError(f"{_holder(path)}; wait for it with --wait SECONDS, or stop it") from error


def _holder(path: Path) -> str:
    try:
        said = json.loads(path.read_text("utf-8"))
        return f"process {said['pid']} is importing since {said['since']} ({said['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return f"another process is importing (it holds {path})"
