"""Where a worker's decisions go: an append-only file of its own, one write and one fsync every 100 ms, in a thread.

An answer never waits for it. What waits for the disk is bounded in bytes; beyond it a decision is lost and counted,
and the answer goes out all the same. A crash loses what was decided since the last fsync.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic, perf_counter
from typing import Protocol

from feature_repo.contracts.decisions import FILE_HEADER, LOG_SUFFIX, MAX_PAYLOAD_BYTES, frame
from serving.observability import DECISION_FAILURES, DECISION_FLUSH_SECONDS, DECISIONS

logger = logging.getLogger(__name__)

LOGGED, LOST = "logged", "lost"
PARTIAL_SUFFIX = ".new"
_LARGEST_WRITE = 4 << 20
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
    """The file of one worker process. `append` is for one thread, that of the event loop."""

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
        self._max_queued_bytes = max_queued_bytes
        self._max_file_bytes = max_file_bytes
        self._max_file_seconds = max_file_seconds
        self._queue: deque[bytes] = deque()
        # Each is changed by one thread only; their difference is what waits.
        self._taken_bytes = 0
        self._done_bytes = 0
        self._file: int | None = None
        self._file_bytes = 0
        self._opened_at = 0.0
        self._unwritten = b""
        self._batch_decisions = 0
        self._is_failing = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def append(self, payload: bytes) -> None:
        if len(payload) > MAX_PAYLOAD_BYTES or (
            self._taken_bytes - self._done_bytes + len(payload) > self._max_queued_bytes
        ):
            DECISIONS.labels(LOST).inc()
            return
        framed = frame(payload)
        self._taken_bytes += len(framed)
        self._queue.append(framed)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_GOODBYE_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(self._flush_seconds):
            self.flush()
        self.flush()
        if left := len(self._queue) + self._batch_decisions:
            DECISIONS.labels(LOST).inc(left)
            logger.error("decision log: %d decisions were never written", left)
        self._shut()

    def flush(self) -> None:
        """Write and fsync what waits. What the disk refuses stays in the queue for the next time."""
        try:
            while self._queue or self._unwritten:
                self._write_batch()
            if self._file is not None and self._is_full_or_old():
                self._shut()
        except OSError as error:
            DECISION_FAILURES.inc()
            if not self._is_failing:
                logger.error("decision log in %s: %s; answers go on without it", self._folder, error)
            self._is_failing = True
        else:
            if self._is_failing:
                logger.warning("decision log in %s: writing again", self._folder)
            self._is_failing = False

    def _write_batch(self) -> None:
        began = perf_counter()
        if self._file is None:
            self._open()
        assert self._file is not None
        if not self._unwritten:
            batch: list[bytes] = []
            size = 0
            while self._queue and size < _LARGEST_WRITE:
                batch.append(self._queue.popleft())
                size += len(batch[-1])
            self._unwritten, self._batch_decisions = b"".join(batch), len(batch)
        while self._unwritten:
            # After a short write the file goes on exactly where it stopped: whole frames may be in Delta already.
            written = os.write(self._file, self._unwritten)
            self._unwritten = self._unwritten[written:]
            self._file_bytes += written
            self._done_bytes += written
        try:
            os.fsync(self._file)
        except OSError:
            # What the kernel kept of these pages is unknown; a second fsync would only seem to succeed.
            DECISIONS.labels(LOST).inc(self._batch_decisions)
            self._batch_decisions = 0
            self._shut()
            raise
        DECISIONS.labels(LOGGED).inc(self._batch_decisions)
        self._batch_decisions = 0
        DECISION_FLUSH_SECONDS.observe(perf_counter() - began)

    def _open(self) -> None:
        """A new file: it has its name only when it has its lock and its header."""
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            for made_in in (self._folder.parent, self._folder.parent.parent):
                _fsync_folder(made_in)
        path = self._folder / f"{os.getpid()}.{os.urandom(4).hex()}-{self._wall_micros()}{LOG_SUFFIX}"
        partial = path.with_suffix(PARTIAL_SUFFIX)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.write(descriptor, FILE_HEADER) != len(FILE_HEADER):
                raise OSError(f"{partial}: no room for a header")
            os.fsync(descriptor)
            partial.rename(path)
            _fsync_folder(self._folder)
        except OSError:
            os.close(descriptor)
            partial.unlink(missing_ok=True)
            raise
        self._file, self._file_bytes, self._opened_at = descriptor, len(FILE_HEADER), monotonic()

    def _is_full_or_old(self) -> bool:
        return self._file_bytes >= self._max_file_bytes or monotonic() - self._opened_at >= self._max_file_seconds

    def _shut(self) -> None:
        """Give the file up; with its lock gone the archiver may delete it."""
        if self._file is not None:
            os.close(self._file)
        self._file = None


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


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
