"""The file of a worker's decisions, as Python and as native code write it: one suite for both."""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import logging
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from feature_repo.contracts.decisions import FILE_HEADER, FRAME_BYTES, MAX_PAYLOAD_BYTES, frame
from feature_repo.contracts.environment import Environment
from serving.native import parts
from serving.observability import DECISION_FAILURES, DECISION_FLUSH_SECONDS, DECISIONS
from tests.unit.test_decision_log import NOW, Worker, files, names_in, payload


@pytest.fixture(params=["python", "native"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two writes."""
    if request.param == "python":
        monkeypatch.setattr(parts, "decision_frames", None)
    elif parts.decision_frames is None:
        pytest.skip("nothing was compiled")
    return str(request.param)


def counted(outcome: str) -> float:
    return float(DECISIONS.labels(outcome)._value.get())


def observed() -> float:
    """Flushes whose time was told."""
    return next(s.value for m in DECISION_FLUSH_SECONDS.collect() for s in m.samples if s.name.endswith("_count"))


def wait_until(holds: Callable[[], bool]) -> None:
    """Fails after ten seconds."""
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The kernel writes no file beyond `size` bytes, as on a full disk: first a part, then nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def following(environment: Environment, **changed: float) -> Iterator[Worker]:
    """A log with its thread, which writes every 10 ms."""
    worker = Worker(environment, **{"flush_seconds": 0.01, **changed})
    worker.start()
    try:
        yield worker
    finally:
        worker.close()


def put_a_pipe_there(worker: Worker) -> int:
    """The file takes what is written and cannot be fsynced, as a disk that fails late. The pipe's other end."""
    reading, writing = os.pipe()
    os.dup2(writing, worker._frames.file)
    os.close(writing)
    return reading


def test_what_was_appended_lies_in_the_file_in_order(environment: Environment) -> None:
    before = counted("logged")
    worker = Worker(environment)
    worker.say("d1", "d2")
    worker.flush()  # nothing new
    worker.say("d3")
    (path,) = files(environment)
    assert path.name.startswith(f"{os.getpid()}.")
    assert path.name.endswith(f"-{NOW}.log")
    assert path.stat().st_mode & 0o777 == 0o600
    assert names_in(path) == ["d1", "d2", "d3"]
    assert counted("logged") - before == 3


def test_the_bytes_are_those_of_the_contract(environment: Environment) -> None:
    """Sizes on both sides of what is laid out at once, and one batch that is more than one write."""
    chance = random.Random(5)
    edges = [0, 1, 65_522, 65_523, 65_524, 65_525, 65_536, 131_072, MAX_PAYLOAD_BYTES]
    sizes = edges + [chance.choice([20, 900, 5_000, 70_000]) for _ in range(400)]
    payloads = [chance.randbytes(size) for size in sizes]
    worker = Worker(environment, max_queued_bytes=1 << 25, max_file_bytes=1 << 30)
    for at, each in enumerate(payloads, 1):
        worker.append(each)
        if at in (1, 7, 8, 60):
            worker.flush()
    assert worker._frames.waiting == len(payloads) - 60
    worker.flush()
    (path,) = files(environment)
    assert path.read_bytes() == FILE_HEADER + b"".join(map(frame, payloads))
    assert worker._frames.waiting == 0


def test_one_thread_appends_while_another_writes(environment: Environment) -> None:
    logged, lost, flushes = counted("logged"), counted("lost"), observed()
    chance = random.Random(7)
    payloads = [b"%d " % at + b"x" * chance.choice([10, 800, 800, 30_000]) for at in range(6_000)]
    with following(environment, flush_seconds=0.001, max_queued_bytes=1 << 28, max_file_bytes=1 << 22) as worker:
        for at, each in enumerate(payloads):
            worker.append(each)
            if at == 3_000:
                wait_until(lambda: any(map(is_free, files(environment))))  # a file ends when all is written
            elif chance.random() < 0.01:
                time.sleep(0.002)
    pieces = [path.read_bytes()[len(FILE_HEADER) :] for path in files(environment)]
    pieces.sort(key=lambda piece: int(piece[FRAME_BYTES:].split(b" ", 1)[0]))
    assert b"".join(pieces) == b"".join(map(frame, payloads))
    assert len(pieces) > 1
    assert (counted("logged") - logged, counted("lost") - lost) == (6_000, 0)
    assert observed() - flushes >= len(pieces)


def test_its_thread_writes_within_the_time_and_the_rest_at_the_end(environment: Environment) -> None:
    worker = Worker(environment, flush_seconds=0.02)
    worker.start()
    worker.append(payload("d1"))
    wait_until(lambda: bool(files(environment)) and names_in(files(environment)[0]) == ["d1"])
    worker.append(payload("d2"))
    worker.close()
    assert names_in(files(environment)[0]) == ["d1", "d2"]


def test_what_is_on_disk_is_counted_when_nobody_appends_any_more(environment: Environment) -> None:
    logged, flushes = counted("logged"), observed()
    with following(environment) as worker:
        for at in range(1, 4):  # the file is there already, from the second on
            worker.append(payload("d1"))
            wait_until(lambda at=at: counted("logged") - logged == at)  # type: ignore[misc]
            assert observed() - flushes == at


def test_files_end_at_their_size(environment: Environment) -> None:
    worker = Worker(environment, max_file_bytes=len(FILE_HEADER) + 2 * (FRAME_BYTES + len(payload("d1"))))
    for name in ("d1", "d2", "d3"):
        worker.say(name)
    assert sorted(names_in(path) for path in files(environment)) == [["d1", "d2"], ["d3"]]


def test_an_old_file_is_given_up_when_nothing_comes(environment: Environment) -> None:
    with following(environment, max_file_seconds=0.1) as worker:
        worker.append(payload("d1"))
        wait_until(lambda: bool(files(environment)) and is_free(files(environment)[0]))
        worker.append(payload("d2"))
        wait_until(lambda: sorted(map(names_in, files(environment))) == [["d1"], ["d2"]])


def is_free(path: Path) -> bool:
    """Whether nobody holds its lock."""
    if path.suffix != ".log":
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_beyond_the_bound_decisions_are_lost_and_counted(environment: Environment) -> None:
    lost, logged = counted("lost"), counted("logged")
    worker = Worker(environment, max_queued_bytes=3 * (FRAME_BYTES + len(payload("d1"))))
    for name in ("d1", "d2", "d3", "d4", "d5"):
        worker.append(payload(name))
    worker.flush()
    worker.say("d6")  # there is room again
    assert names_in(files(environment)[0]) == ["d1", "d2", "d3", "d6"]
    assert (counted("lost") - lost, counted("logged") - logged) == (2, 4)


def test_a_decision_that_no_file_may_hold_is_lost_where_there_is_room_for_it(environment: Environment) -> None:
    lost = counted("lost")
    worker = Worker(environment, max_queued_bytes=4 * MAX_PAYLOAD_BYTES)
    worker.append(b"x" * (MAX_PAYLOAD_BYTES + 1))
    worker.say("d1")
    assert names_in(files(environment)[0]) == ["d1"]
    assert counted("lost") - lost == 1


def test_after_a_full_disk_the_file_goes_on_where_it_stopped(environment: Environment) -> None:
    failures = DECISION_FAILURES._value.get()
    worker = Worker(environment)
    worker.say("d1")
    (path,) = files(environment)
    with no_file_larger_than(path.stat().st_size + FRAME_BYTES + len(payload("d2")) + 30):
        worker.say("d2", "d3")  # the last of them in part
        worker.say("d4")
        assert names_in(path) == ["d1", "d2"]
        assert worker._frames.waiting == 3  # until the fsync d2 is not safe
    assert DECISION_FAILURES._value.get() - failures == 2
    worker.flush()
    assert names_in(path) == ["d1", "d2", "d3", "d4"]


def test_its_thread_tells_once_of_a_full_disk_and_when_it_is_over(
    environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    failures, logged = DECISION_FAILURES._value.get(), counted("logged")
    with caplog.at_level(logging.WARNING), following(environment) as worker:
        worker.append(payload("d1"))
        wait_until(lambda: counted("logged") - logged == 1)
        (path,) = files(environment)
        with no_file_larger_than(path.stat().st_size + 30):
            worker.append(payload("d2"))
            wait_until(lambda: DECISION_FAILURES._value.get() - failures >= 3)
        wait_until(lambda: counted("logged") - logged == 2)
        wait_until(lambda: len(caplog.records) == 2)
        worker.append(payload("d3"))
    assert names_in(path) == ["d1", "d2", "d3"]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "File too large; answers go on without it" in caplog.text
    assert "writing again" in caplog.text


@pytest.mark.parametrize("is_followed", [False, True])
def test_after_a_failed_fsync_a_new_file_begins(environment: Environment, is_followed: bool) -> None:
    lost, logged = counted("lost"), counted("logged")
    worker = Worker(environment, flush_seconds=0.01)
    worker.say("d1")
    pipe = put_a_pipe_there(worker)
    if is_followed:
        worker.start()
    worker.append(payload("d2"))
    if not is_followed:
        worker.flush()
    wait_until(lambda: counted("lost") - lost == 1)
    worker.append(payload("d3"))
    if not is_followed:
        worker.flush()
    wait_until(lambda: counted("logged") - logged == 2)
    worker.close()
    os.close(pipe)
    assert sorted(map(names_in, files(environment))) == [["d1"], ["d3"]]  # where d2 is, nobody knows
    assert counted("lost") - lost == 1


def test_what_the_disk_never_took_is_lost(environment: Environment, caplog: pytest.LogCaptureFixture) -> None:
    lost, logged = counted("lost"), counted("logged")
    with following(environment) as worker:
        worker.append(payload("d1"))
        wait_until(lambda: counted("logged") - logged == 1)
        with no_file_larger_than(files(environment)[0].stat().st_size):
            worker.append(payload("d2"))
            worker.append(payload("d3"))
            worker.close()
    assert counted("lost") - lost == 2
    assert "2 decisions were never written" in caplog.text


def test_no_folder_no_answer_fails(environment: Environment) -> None:
    Path(environment.home).mkdir()
    blocked = Path(environment.home, "decisions")
    blocked.write_text("in the way")
    failures, logged = DECISION_FAILURES._value.get(), counted("logged")
    with following(environment) as worker:
        worker.append(payload("d1"))
        wait_until(lambda: DECISION_FAILURES._value.get() - failures >= 3)
        blocked.unlink()
        worker.append(payload("d2"))
        wait_until(lambda: counted("logged") - logged == 2)
    assert names_in(files(environment)[0]) == ["d1", "d2"]


def test_the_close_of_a_forked_process_is_not_that_of_the_worker(environment: Environment) -> None:
    with following(environment) as worker:
        child = os.fork()
        if child == 0:
            worker._thread = None
            worker.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        logged = counted("logged")
        worker.append(payload("d1"))
        wait_until(lambda: counted("logged") - logged == 1)


def test_native_code_writes_while_python_is_busy(environment: Environment, way: str) -> None:
    """The size of the file is asked without letting go of the interpreter's lock."""
    if way == "python":
        pytest.skip("it needs the lock")
    size_of = ctypes.PyDLL(None).lseek
    size_of.restype, size_of.argtypes = ctypes.c_long, [ctypes.c_int, ctypes.c_long, ctypes.c_int]
    usual = sys.getswitchinterval()
    worker = Worker(environment, flush_seconds=0.01)
    worker.say("d1")
    file, before = worker._frames.file, files(environment)[0].stat().st_size
    worker.start()
    time.sleep(0.05)  # it has begun
    sys.setswitchinterval(600)
    try:
        worker.append(payload("d2"))
        for _ in itertools.repeat(None, 20):
            sum(range(1_000_000))
            grown = size_of(file, 0, os.SEEK_END) - before
            if grown:
                break
    finally:
        sys.setswitchinterval(usual)
        worker.close()
    assert grown == FRAME_BYTES + len(payload("d2"))
