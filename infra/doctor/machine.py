"""The machine: room, memory, clock, limits, rights."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from infra.doctor.checks import Check, State, Subject

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_EARLIEST_NOW = 1_767_225_600.0
"""2026-01-01: this version is not older, so a clock that says so is wrong."""


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def examine_home(subject: Subject) -> Check:
    """Whether this user can write where state goes: NIGHTJAR_HOME, and what was moved elsewhere in the file system."""
    environment = subject.environment
    moved = (environment.lakehouse, environment.publications, environment.runs)
    places = [subject.home, *(Path(path) for path in moved if "://" not in path)]
    needed = "a folder that this user can write"
    for place in dict.fromkeys(places):
        problem = _write_problem(nearest_folder(place)) if not place.is_file() else "is a file"
        if problem:
            return Check("home", State.FAIL, f"{place}: {problem}", needed, f"chown -R $(id -un) {place}")
    exists = "" if subject.home.is_dir() else " (to be created)"
    return Check("home", State.OK, f"{subject.home}{exists}", needed)


def _write_problem(folder: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".nightjar-doctor-"):
            return ""
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"


def examine_disk(subject: Subject) -> Check:
    """Free room where NIGHTJAR_HOME is."""
    folder = nearest_folder(subject.home)
    free = shutil.disk_usage(folder).free / 1e9
    limits = subject.limits
    needed = f"{limits.disk_warn_gb:g} GB free ({limits.disk_fail_gb:g} at least)"
    state = _low(free, limits.disk_fail_gb, limits.disk_warn_gb)
    remedy = f"du -xh {folder} | sort -h | tail; or move NIGHTJAR_HOME" if state is not State.OK else ""
    return Check("disk", state, f"{free:.1f} GB free at {folder}", needed, remedy)


def examine_memory(subject: Subject) -> Check:
    """What processes could still take, within the limits of a container. Spark's driver takes 3 GB, the stack 2.5."""
    memory = psutil.virtual_memory()
    limit = _container_limit()
    total, available = memory.total, memory.available
    if limit is not None and limit < total:
        total, available = limit, min(available, limit)
    limits = subject.limits
    needed = f"{limits.memory_warn_gb:g} GB available ({limits.memory_fail_gb:g} at least)"
    state = _low(available / 1e9, limits.memory_fail_gb, limits.memory_warn_gb)
    remedy = "stop other programs, or give the container more memory" if state is not State.OK else ""
    return Check("memory", state, f"{available / 1e9:.1f} of {total / 1e9:.1f} GB available", needed, remedy)


def _container_limit() -> int | None:
    for path in _CGROUP_LIMITS:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def examine_open_files(subject: Subject) -> Check:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = subject.limits
    needed = f"{limits.open_files_warn} ({limits.open_files_fail} at least)"
    state = State.OK if soft == resource.RLIM_INFINITY else _low(soft, limits.open_files_fail, limits.open_files_warn)
    remedy = f"ulimit -n {limits.open_files_warn if hard < 0 else min(hard, 65536)}" if state is not State.OK else ""
    return Check("open files", state, "no limit" if soft < 0 else f"{soft} for a process", needed, remedy)


def examine_clock(subject: Subject) -> Check:
    """This clock against the file system's and, when it runs, Redis'; and against files that cannot lie ahead of it.

    Not against the world's: nothing is asked outside. The time zone is shown; Nightjar works in UTC whatever it is.
    """
    now = time.time()
    allowed = subject.limits.clock_seconds
    needed = f"clocks that agree within {allowed:g} s"
    remedy = "timedatectl set-ntp true"
    zone = time.strftime("%Z (UTC%z)", time.localtime(now))
    if now < _EARLIEST_NOW:
        return Check("clock", State.FAIL, time.strftime("it says %Y-%m-%d", time.gmtime(now)), needed, remedy)
    skews = {
        "the file system": _file_skew(nearest_folder(subject.home)),
        "Redis log": _redis_skew(subject.environment.redis_log_url),
        "Redis online": _redis_skew(subject.environment.redis_online_url),
    }
    for whose, skew in skews.items():
        if skew is not None and abs(skew) > allowed:
            return Check("clock", State.FAIL, f"{whose} is {skew:+.1f} s off", needed, remedy)
    ahead = _newest_state(subject.home) - now
    if ahead > 60:
        seen = f"state of this installation was written {ahead:.0f} s in the future"
        return Check("clock", State.WARN, seen, needed, remedy)
    compared = ", ".join(whose for whose, skew in skews.items() if skew is not None) or "nothing to compare with"
    return Check("clock", State.OK, f"{zone}; agrees with {compared}", needed)


def _file_skew(folder: Path) -> float | None:
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".nightjar-doctor-") as file:
            file.write(b"x")
            file.flush()
            return os.fstat(file.fileno()).st_mtime - time.time()
    except OSError:
        return None


def _redis_skew(url: str) -> float | None:
    """Seconds that Redis is ahead; None when it does not answer, or wants a password."""
    address = urlsplit(url)
    try:
        with socket.create_connection((address.hostname or "127.0.0.1", address.port or 6379), timeout=0.3) as link:
            link.sendall(b"TIME\r\n")
            parts = link.recv(128).split(b"\r\n")
            return float(parts[2]) + float(parts[4]) / 1e6 - time.time()
    except (OSError, ValueError, IndexError):
        return None


def _newest_state(home: Path) -> float:
    files = [*(home / "run").glob("*"), *(home / "runs").glob("*/*/run.json")]
    return max((path.stat().st_mtime for path in files if path.exists()), default=0.0)


def _low(value: float, fail: float, warn: float) -> State:
    return State.FAIL if value < fail else State.WARN if value < warn else State.OK
