"""A check's answer, and running them all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from feature_repo.contracts.environment import Environment


class State(StrEnum):
    """ok; warn: it works, and may not for long or not as one thinks; fail: something will not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(NamedTuple):
    """What one check found. `remedy` is a command, or a sentence where no command helps; empty when all is well."""

    name: str
    state: State
    seen: str
    needed: str
    remedy: str = ""


class Limits(NamedTuple):
    """Below `..._fail` a check fails, below `..._warn` it warns. Gigabytes are 10^9 bytes."""

    disk_fail_gb: float = 1.0
    disk_warn_gb: float = 5.0
    memory_fail_gb: float = 2.0
    memory_warn_gb: float = 4.0
    open_files_fail: int = 256
    open_files_warn: int = 1024
    clock_seconds: float = 2.0


class Subject(NamedTuple):
    """What is examined. `given`: the environment as it is; `variables`: with what a stack's address book adds."""

    variables: Mapping[str, str]
    environment: Environment
    given: Mapping[str, str]
    limits: Limits = Limits()

    @property
    def home(self) -> Path:
        return Path(self.environment.home)


Examine = Callable[[Subject], Check]


def examine_all(subject: Subject, examinations: Mapping[str, Examine]) -> list[Check]:
    """Every check, in the order given. One that raises is a failed check that says so."""

    def examine(name: str) -> Check:
        try:
            return examinations[name](subject)
        except Exception as error:  # the doctor must not die of what the patient has
            seen = f"could not look: {type(error).__name__}: {error}"
            return Check(name, State.FAIL, seen, "a look without an error", "mend what the message names")

    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(examine, examinations))
