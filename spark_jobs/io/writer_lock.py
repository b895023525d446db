"""The right to write a table for as long as a process lives: a lock of the operating system on a file.

A killed process never leaves it held. The file lies in the lakehouse when that is a folder; for an object store it lies
in NIGHTJAR_HOME, and then holds only among processes that share that home.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError


@contextmanager
def writer_lock(environment: Environment, writer: str) -> Iterator[None]:
    """Hold the right of `writer`, as `contracts.tables` names it.

    Raises DependencyError when another process has it.
    """
    if "://" in environment.lakehouse:
        folder = Path(environment.home, "locks", environment.tenant)
    else:
        folder = Path(environment.lakehouse, environment.tenant, ".locks")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{writer}.lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise DependencyError(
                f"process {file.read() or 'unknown'} is {writer} already (it holds {path}): its tables have one writer"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
