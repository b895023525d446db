"""Starting and stopping programs without ever touching a stranger's.

Every process of a stack carries two environment variables, NIGHTJAR_STACK (the NIGHTJAR_HOME it belongs to) and
NIGHTJAR_SERVICE, which its children inherit. A pid file holds the pid and the start time. A process is ours only when
pid, start time and those variables agree; what a killed run left behind is found by the variables alone. Finding and
ending are guarded apart: `end` looks again, by itself, before it kills anything.

A pid file also holds a fingerprint of how the service was started, so that a changed setting is noticed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

STACK = "NIGHTJAR_STACK"
SERVICE = "NIGHTJAR_SERVICE"

LOG_ROTATE_BYTES = 10_000_000
_START_TIME_TOLERANCE_SECONDS = 2.0
_ENVIRONMENT_TIMEOUT_SECONDS = 2.0

_children: list[subprocess.Popen[bytes]] = []
"""Kept so that a program that starts a stack and lives on (a demo, a test) can reap them."""


class PidFolder:
    """The pid files of one stack: `<folder>/<service>.pid`, JSON: pid, started (seconds since 1970), fingerprint."""

    def __init__(self, folder: Path, home: str) -> None:
        self.folder = folder
        self.home = home

    def start(
        self,
        service: str,
        command: Sequence[str],
        *,
        variables: Mapping[str, str],
        cwd: Path,
        log: Path,
        fingerprint: str = "",
    ) -> tuple[psutil.Process, int]:
        """Start `command` in a session of its own, output appended to `log`: the process, where its output begins."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > LOG_ROTATE_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            log_start = output.tell()
            child = subprocess.Popen(
                list(command),
                env={**variables, STACK: self.home, SERVICE: service},
                cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        _children.append(child)
        process = psutil.Process(child.pid)
        deadline = time.monotonic() + _ENVIRONMENT_TIMEOUT_SECONDS
        while not belongs_to(process, self.home, service) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)  # for an instant after the start, the system shows no environment yet
        record = {"pid": child.pid, "started": process.create_time(), "fingerprint": fingerprint}
        partial = self.folder / f".{service}.pid"
        partial.write_text(json.dumps(record))
        partial.replace(self._path(service))
        return process, log_start

    def find(self, service: str) -> psutil.Process | None:
        """The running process of a service. A pid file that names none of ours is removed, the process left alone."""
        try:
            record = json.loads(self._path(service).read_text())
            process = psutil.Process(int(record["pid"]))
            started = float(record["started"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, psutil.NoSuchProcess):
            self.forget(service)
            return None
        if is_alive(process) and _is_same(process, started) and belongs_to(process, self.home, service):
            return process
        self.forget(service)
        return None

    def fingerprint(self, service: str) -> str:
        """How the service was started, or an empty text."""
        try:
            return str(json.loads(self._path(service).read_text())["fingerprint"])
        except (OSError, ValueError, TypeError, KeyError):
            return ""

    def forget(self, service: str) -> None:
        """Drop the pid file."""
        self._path(service).unlink(missing_ok=True)

    def leftovers(self, service: str | None = None) -> list[psutil.Process]:
        """Every live process of this stack (of one service), children included, whatever the pid files say."""
        return [p for p in psutil.process_iter() if belongs_to(p, self.home, service) and is_alive(p)]

    def end_leftovers(self, service: str) -> list[psutil.Process]:
        """SIGKILL to whatever a service left behind; the processes that were ended."""
        ended = [process for process in self.leftovers(service) if end(process)]
        wait_gone(ended, 5)
        return ended

    def stop(self, services: Iterable[str], *, grace_seconds: float) -> list[str]:
        """SIGTERM to the process groups, SIGKILL to whatever is left after the grace; names of what was running."""
        found = {name: process for name in services if (process := self.find(name)) is not None}
        for process in found.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGTERM)
        wait_gone(found.values(), grace_seconds)
        stopped = list(found)
        for name in services:
            if self.end_leftovers(name) and name not in stopped:
                stopped.append(name)
            self.forget(name)
        return stopped

    def _path(self, service: str) -> Path:
        return self.folder / f"{service}.pid"


def end(process: psutil.Process) -> bool:
    """SIGKILL one process of a stack; False when it was left alone.

    The last look before a kill, whoever asks: never pid 1, this process or one it descends from, another user's
    process, or one that does not carry a stack's variables.
    """
    try:
        spared = {1, os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        variables = process.environ()
        if process.pid in spared or process.uids().real != os.getuid() or not {STACK, SERVICE} <= variables.keys():
            return False
        process.kill()
    except (psutil.Error, OSError):
        return False
    return True


def belongs_to(process: psutil.Process, home: str, service: str | None) -> bool:
    """Whether the process carries this stack's variables (False when it may not be asked)."""
    try:
        variables = process.environ()
    except (psutil.Error, OSError):
        return False
    return variables.get(STACK) == home and (service is None or variables.get(SERVICE) == service)


def is_alive(process: psutil.Process) -> bool:
    """Running, and not merely waiting to be reaped. A dead child of this process is reaped here."""
    for child in _children:
        if child.pid == process.pid:
            child.poll()
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def wait_gone(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until they have all ended; returns those that have not."""
    deadline = time.monotonic() + seconds
    waiting = [p for p in processes if is_alive(p)]
    while waiting and time.monotonic() < deadline:
        time.sleep(0.05)
        waiting = [p for p in waiting if is_alive(p)]
    return waiting


def memory_megabytes(process: psutil.Process) -> int:
    """Memory of the process and its children; shared pages are divided among them where the system can tell (Linux)."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for part in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                memory = part.memory_full_info()
                total += getattr(memory, "pss", memory.rss)
    return round(total / 1_000_000)


def _is_same(process: psutil.Process, started: float) -> bool:
    try:
        return abs(process.create_time() - started) <= _START_TIME_TOLERANCE_SECONDS
    except psutil.Error:
        return False
