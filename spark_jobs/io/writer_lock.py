"""The right to write a table: a lock of the operating system on a file.

A killed process never leaves it held. The file lies in the lakehouse when that is a folder; for an object store it lies
in NIGHTJAR_HOME, and then holds only among processes that share that home.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError

COMMIT_SECONDS = 900.0
"""How long a commit waits for another process that is writing the same table."""

_POLL_SECONDS = 0.05


@contextmanager
def writer_lock(environment: Environment, writer: str) -> Iterator[None]:
    """Hold the right of `writer`, as `contracts.tables` names it, for as long as the process lives.

    Raises DependencyError when another process has it.
    """
    with _lock_file(environment, writer) as file:
        holder = _take(file)
        if holder is not None:
            raise DependencyError(
                f"process {holder} is {writer} already (it holds {file.name}): its tables have one writer"
            )
        yield


@contextmanager
def commit_lock(environment: Environment, name: str, *, wait_seconds: float | None = None) -> Iterator[None]:
    """Be the only one who commits to table `name`, where Delta itself cannot see to it.

    On an object store, Spark's log store looks whether a log entry is there and then puts it: two drivers could both
    find it missing. In a folder two Spark drivers see each other, but Spark and the light engine, which both write
    gold.candidates, do not (infra/adr/0024).
    Raises DependencyError when another process holds it for all of `wait_seconds` (None: COMMIT_SECONDS).
    """
    patience = COMMIT_SECONDS if wait_seconds is None else wait_seconds
    deadline = time.monotonic() + patience
    with _lock_file(environment, name) as file:
        while (holder := _take(file)) is not None:
            if time.monotonic() >= deadline:
                raise DependencyError(
                    f"process {holder} has been writing {name} for {patience:g} s (it holds {file.name})"
                )
            time.sleep(_POLL_SECONDS)
        yield


def _lock_file(environment: Environment, name: str) -> TextIO:
    folder = Path(environment.beside_tables, ".locks")
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / f"{name}.lock").open("a+", encoding="utf-8")


def _take(file: TextIO) -> str | None:
    """Lock the file until it is closed; who holds it, when that cannot be."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read() or "unknown"
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return None
