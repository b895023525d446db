"""The log's thread: lines are written together, warnings at once, and nobody waits for whoever reads them."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator

import pytest

from serving import logs
from serving.logs import LogWriter


class Pipe:
    """What each write brought. `may_go_on`: a reader is there."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.breaks = False
        self.tries = 0

    def write(self, text: str) -> int:
        self.may_go_on.wait(10)
        is_broken, self.tries = self.breaks, self.tries + 1
        if is_broken:
            raise BrokenPipeError
        self.written.append(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def messages(self) -> list[list[str]]:
        return [[json.loads(line)["message"] for line in text.splitlines()] for text in self.written]


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
def writer(pipe: Pipe) -> Iterator[LogWriter]:
    made = LogWriter(pipe)  # type: ignore[arg-type]
    made.start()
    yield made
    pipe.may_go_on.set()
    made.stop()


def say(writer: LogWriter, *messages: str, level: int = logging.INFO) -> None:
    for message in messages:
        writer.handle(logging.LogRecord("nightjar.access", level, "", 0, message, None, None))


def wait_for(pipe: Pipe, writes: int) -> None:
    until = time.monotonic() + 10
    while len(pipe.written) < writes:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_lines_of_a_time_are_one_write(pipe: Pipe, writer: LogWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "TOGETHER_SECONDS", 2.0)
    say(writer, "a", "b")
    time.sleep(0.2)
    say(writer, "c")
    wait_for(pipe, 1)
    say(writer, "d")
    wait_for(pipe, 2)
    assert pipe.messages() == [["a", "b", "c"], ["d"]]


def test_a_warning_is_written_at_once_with_what_waits(
    pipe: Pipe, writer: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "TOGETHER_SECONDS", 3600.0)
    say(writer, "a")
    say(writer, "b", level=logging.WARNING)
    wait_for(pipe, 1)
    assert [message for some in pipe.messages() for message in some] == ["a", "b"]


def test_the_end_writes_what_waits(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "TOGETHER_SECONDS", 3600.0)
    writer = LogWriter(pipe)  # type: ignore[arg-type]
    writer.start()
    say(writer, "a", "b")
    writer.stop()
    assert pipe.messages() == [["a", "b"]]


def test_lines_that_nobody_reads_are_dropped(pipe: Pipe, writer: LogWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING", 3)
    pipe.may_go_on.clear()
    say(writer, "first", level=logging.WARNING)
    until = time.monotonic() + 10
    while writer._waiting:  # it is being written
        assert time.monotonic() < until
        time.sleep(0.005)
    say(writer, "a", "b", "c", "d", "e", level=logging.WARNING)
    pipe.may_go_on.set()
    wait_for(pipe, 2)
    assert pipe.messages() == [["first"], ["a", "b", "c"]]


def test_a_reader_that_went_away_ends_nothing(pipe: Pipe, writer: LogWriter) -> None:
    pipe.breaks = True
    say(writer, "a", level=logging.WARNING)
    until = time.monotonic() + 10
    while not pipe.tries:
        assert time.monotonic() < until
        time.sleep(0.005)
    pipe.breaks = False
    say(writer, "b", level=logging.WARNING)
    wait_for(pipe, 1)
    assert pipe.messages() == [["b"]]
