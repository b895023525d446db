"""What one task of a job leaves for later ones of the same job: files in the run folder, which every executor reaches.

Spark would carry it through the driver. It is Python's own form, which can say anything, so it is opened only by who
was told its digest by Spark: a file that somebody else put there is refused.
"""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple
from uuid import uuid4

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.run import Run
from spark_jobs.io.run_store import folder_of

_FOLDER = "parcels"
_FORM = 5
_last: tuple[str, Any] | None = None


class Parcel(NamedTuple):
    """A file, and the SHA-256 of what is in it."""

    path: str
    sha256: str


class _Digested:
    """A file that is written, and digested meanwhile."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, some: bytes) -> int:
        self.digest.update(some)
        return self._file.write(some)


@contextmanager
def parcels_of(environment: Environment, run: Run) -> Iterator[None]:
    """Inside, tasks of the run may leave parcels. What is left at the end, or was by a job that was killed, goes."""
    folder = folder_of(environment, run.run_key) / _FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def leave(environment: Environment, run: Run, thing: Any) -> Parcel:
    """Write `thing` to a file of its own: a task that is done twice never changes what somebody was told of."""
    path = folder_of(environment, run.run_key) / _FOLDER / uuid4().hex
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        digested = _Digested(file)
        pickle.dump(thing, digested, _FORM)
    return Parcel(str(path), digested.digest.hexdigest())


def take(parcel: Parcel) -> Any:
    """What was left; a process keeps the last one for who asks again. Raises ContractError when it is something
    else."""
    global _last
    if _last is None or _last[0] != parcel.sha256:
        with Path(parcel.path).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != parcel.sha256:
                raise ContractError(f"{parcel.path} has SHA-256 {found[:12]}..., not that of what was left there")
            file.seek(0)
            _last = parcel.sha256, pickle.load(file)  # noqa: S301  # Spark told us its digest
    return _last[1]
