"""Processes of a stack: started, found again, stopped; a stranger's never."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.local.processes import SERVICE, STACK, PidFolder, end, is_alive, wait_gone

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
WITH_CHILD = [
    sys.executable, "-c",
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
    " start_new_session=True); time.sleep(60)",
]  # fmt: skip
started: list[psutil.Process] = []
STUBBORN = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"]


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[PidFolder]:
    """A folder of pid files. What a test starts is ended by the pid it was started with, not by the code under test."""
    folder = PidFolder(tmp_path / "run", str(tmp_path))
    yield folder
    for process in started:
        with contextlib.suppress(psutil.Error):
            process.kill()
    started.clear()


@pytest.fixture
def stranger() -> Iterator[psutil.Process]:
    """A process of somebody else."""
    with subprocess.Popen(SLEEP) as child:
        yield psutil.Process(child.pid)
        child.kill()


def start(pids: PidFolder, tmp_path: Path, command: list[str], service: str = "api") -> psutil.Process:
    process, _ = pids.start(service, command, variables=dict(os.environ), cwd=tmp_path, log=tmp_path / "logs" / "x.log")
    started.append(process)
    return process


def wait_until_ignoring_sigterm(process: psutil.Process) -> None:
    deadline = time.monotonic() + 10
    status = Path(f"/proc/{process.pid}/status")
    while time.monotonic() < deadline:
        ignored = next(line for line in status.read_text().splitlines() if line.startswith("SigIgn"))
        if int(ignored.split()[1], 16) & (1 << 14):
            return
        time.sleep(0.02)
    raise AssertionError("the process never came to ignore SIGTERM")


def test_found_again_and_stopped(pids: PidFolder, tmp_path: Path) -> None:
    process = start(pids, tmp_path, SLEEP)
    assert process.environ()[STACK] == str(tmp_path)
    assert process.environ()[SERVICE] == "api"
    assert pids.find("api") == process
    assert pids.stop(["api", "mlflow"], grace_seconds=5) == ["api"]
    assert not is_alive(process)
    assert pids.find("api") is None


def test_a_stale_pid_file_never_kills_a_stranger(pids: PidFolder, stranger: psutil.Process) -> None:
    """The pid was given to somebody else meanwhile, even with the same start time: only our own variables tell."""
    pids.folder.mkdir()
    record = {"pid": stranger.pid, "started": stranger.create_time(), "fingerprint": ""}
    (pids.folder / "api.pid").write_text(json.dumps(record))
    assert pids.find("api") is None
    assert pids.stop(["api"], grace_seconds=1) == []
    assert stranger.is_running()
    assert not (pids.folder / "api.pid").exists()


def test_the_last_look_spares_whoever_is_not_of_a_stack(stranger: psutil.Process) -> None:
    """Even when the search for leftovers were wrong about everything."""
    assert not end(stranger)
    assert stranger.is_running()
    assert not end(psutil.Process())
    assert not any(end(parent) for parent in psutil.Process().parents())
    assert not end(psutil.Process(1))


def test_another_start_time_is_another_process(pids: PidFolder, tmp_path: Path) -> None:
    process = start(pids, tmp_path, SLEEP)
    path = pids.folder / "api.pid"
    path.write_text(json.dumps({**json.loads(path.read_text()), "started": process.create_time() - 60}))
    assert pids.find("api") is None
    assert is_alive(process)


def test_another_home_is_another_stack(pids: PidFolder, tmp_path: Path) -> None:
    process = start(pids, tmp_path, SLEEP)
    neighbour = PidFolder(tmp_path / "neighbour", str(tmp_path / "neighbour"))
    assert neighbour.leftovers() == []
    assert neighbour.stop(["api"], grace_seconds=1) == []
    assert is_alive(process)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 0}'])
def test_a_damaged_pid_file_is_no_obstacle(pids: PidFolder, text: str) -> None:
    pids.folder.mkdir()
    (pids.folder / "api.pid").write_text(text)
    assert pids.find("api") is None


def test_orphans_of_a_killed_service_are_found_without_a_pid_file(pids: PidFolder, tmp_path: Path) -> None:
    parent = start(pids, tmp_path, WITH_CHILD)
    deadline = time.monotonic() + 10
    while not (children := parent.children()) and time.monotonic() < deadline:
        time.sleep(0.02)
    child = children[0]
    started.append(child)
    parent.kill()
    wait_gone([parent], 5)
    pids.forget("api")
    assert pids.leftovers("scheduler") == []
    assert pids.leftovers("api") == [child]
    assert pids.stop(["api"], grace_seconds=1) == ["api"]
    assert not is_alive(child)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see the signal mask")
def test_one_that_ignores_sigterm_is_killed_after_the_grace(pids: PidFolder, tmp_path: Path) -> None:
    process = start(pids, tmp_path, STUBBORN)
    wait_until_ignoring_sigterm(process)
    began = time.monotonic()
    assert pids.stop(["api"], grace_seconds=0.5) == ["api"]
    assert time.monotonic() - began >= 0.5
    assert not is_alive(process)


def test_a_start_says_where_its_own_output_begins(pids: PidFolder, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.log"
    log.parent.mkdir()
    log.write_text("of an earlier start\n")
    command = [sys.executable, "-c", "print('of this start')"]
    process, log_start = pids.start("api", command, variables=dict(os.environ), cwd=tmp_path, log=log)
    assert wait_gone([process], 20) == []
    assert log.read_text()[log_start:] == "of this start\n"
