"""Where a worker's decisions go: an append-only file of its own, one write and one fsync every 100 ms, in a thread.

An answer never waits for it. What waits for the disk is bounded in bytes; beyond it a decision is lost and counted,
and the answer goes out all the same. A crash loses what was decided since the last fsync.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from feature_repo.contracts.decisions import FILE_HEADER, LOG_SUFFIX
from feature_repo.contracts.torn_commits import sync
from serving.adapters.decision_frames import DecisionFrames
from serving.native import parts
from serving.observability import DECISION_FAILURES, DECISION_FLUSH_SECONDS, DECISIONS

logger = logging.getLogger(__name__)

LOGGED, LOST = "logged", "lost"
PARTIAL_SUFFIX = ".new"
_GOODBYE_SECONDS = 5.0


class DecisionLog(Protocol):
    """Takes decisions (payloads of `contracts.decisions`)."""

    def append(self, payload: bytes) -> None:
        """Take one decision. Never waits, never fails."""

    def start(self) -> None:
        """Begin to write."""

    def close(self) -> None:
        """Write what is left, as far as the disk takes it. Blocking: call it off the event loop."""


class FileDecisionLog:
    """The file of one worker process. `append` is for one thread, that of the event loop.

    Framing and writing are `DecisionFrames`, in native code where there is some: its thread asks for the interpreter
    only to open a file, or when something fails. To wait for it beside a busy event loop costs both.
    """

    def __init__(
        self,
        folder: str,
        *,
        wall_micros: Callable[[], int],
        flush_seconds: float,
        max_queued_bytes: int,
        max_file_bytes: int,
        max_file_seconds: float,
    ) -> None:
        self._folder = Path(folder)
        self._wall_micros = wall_micros
        self._flush_seconds = flush_seconds
        kind = DecisionFrames if parts.decision_frames is None else parts.decision_frames.DecisionFrames
        self._frames: DecisionFrames = kind(
            max_queued_bytes=max_queued_bytes,
            max_file_bytes=max_file_bytes,
            max_file_seconds=max_file_seconds,
            on_lost=DECISIONS.labels(LOST).inc,
            on_written=_count_written,
        )
        self.append = self._frames.append
        self._is_failing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._frames.stop()
        if self._thread is not None:
            self._thread.join(_GOODBYE_SECONDS)

    def _run(self) -> None:
        while self._follow():
            pass
        if left := self._frames.waiting:
            DECISIONS.labels(LOST).inc(left)
            logger.error("decision log: %d decisions were never written", left)
        self._shut()

    def _follow(self) -> bool:
        """Write what comes, until there is something to do here: open a file, tell of a failure or of its end. False
        when the log is closed."""
        try:
            goes_on = self._frames.follow(self._flush_seconds, self._is_failing)
        except OSError as error:
            self._tell(error)
            return True
        self.flush()
        return goes_on

    def flush(self) -> None:
        """Write and fsync what waits. What the disk refuses stays in the queue for the next time."""
        try:
            while not self._frames.flush():
                self._open()
        except OSError as error:
            self._tell(error)
        else:
            if self._is_failing:
                logger.warning("decision log in %s: writing again", self._folder)
            self._is_failing = False

    def _tell(self, error: OSError) -> None:
        DECISION_FAILURES.inc()
        if not self._is_failing:
            logger.error("decision log in %s: %s; answers go on without it", self._folder, error)
        self._is_failing = True

    def _open(self) -> None:
        """A new file: it has its name only when it has its lock and its header."""
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            for made_in in (self._folder.parent, self._folder.parent.parent):
                sync(made_in)
        path = self._folder / f"{os.getpid()}.{os.urandom(4).hex()}-{self._wall_micros()}{LOG_SUFFIX}"
        partial = path.with_suffix(PARTIAL_SUFFIX)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.write(descriptor, FILE_HEADER) != len(FILE_HEADER):
                raise OSError(f"{partial}: no room for a header")
            os.fsync(descriptor)
            partial.rename(path)
            sync(self._folder)
        except OSError:
            os.close(descriptor)
            partial.unlink(missing_ok=True)
            raise
        self._frames.begin(descriptor, len(FILE_HEADER))

    def _shut(self) -> None:
        """Give the file up; with its lock gone the archiver may delete it."""
        self._frames.end()


def _count_written(decisions: int, seconds: Sequence[float]) -> None:
    DECISIONS.labels(LOGGED).inc(decisions)
    for each in seconds:
        DECISION_FLUSH_SECONDS.observe(each)


class MemoryDecisionLog:
    """The twin without a disk: `payloads` in the order of the answers."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def append(self, payload: bytes) -> None:
        self.payloads.append(payload)

    def start(self) -> None:
        """Nothing to begin."""

    def close(self) -> None:
        """Nothing is left."""
