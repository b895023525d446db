"""Decisions on their way into a worker's file: framed, bounded in bytes, written and fsynced in batches.

The twin in native code (`serving/native/decision_frames.pyx`) writes without the interpreter.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, perf_counter

from feature_repo.contracts.decisions import FRAME_BYTES, MAX_PAYLOAD_BYTES, frame

NO_FILE = -1
_LARGEST_WRITE = 4 << 20


class DecisionFrames:
    """`append` is for one thread, `flush` and `follow` for another one.

    max_queued_bytes   that may wait for the disk; what comes beyond is lost
    max_file_bytes, max_file_seconds   a file of such a size or age is given up when all is written
    on_lost            is told how many decisions are lost, at once
    on_written         is told how many are on disk, and the seconds of each write with its fsync: by `flush`, by
                       `follow`, or by the next `append`
    """

    def __init__(
        self,
        *,
        max_queued_bytes: int,
        max_file_bytes: int,
        max_file_seconds: float,
        on_lost: Callable[[int], None],
        on_written: Callable[[int, Sequence[float]], None],
    ) -> None:
        self.file = NO_FILE
        self._max_queued_bytes = max_queued_bytes
        self._max_file_bytes = max_file_bytes
        self._max_file_seconds = max_file_seconds
        self._on_lost, self._on_written = on_lost, on_written
        self._queue: deque[bytes] = deque()
        # Each is changed by one thread only; their difference is what waits.
        self._taken_bytes = 0
        self._done_bytes = 0
        self._file_bytes = 0
        self._opened_at = 0.0
        self._unwritten = b""
        self._batch_decisions = 0
        self._stopping = threading.Event()

    @property
    def waiting(self) -> int:
        """Decisions that are neither on disk nor lost."""
        return len(self._queue) + self._batch_decisions

    def append(self, payload: bytes) -> None:
        """Take one payload, or say that it is lost. Never waits."""
        if len(payload) > MAX_PAYLOAD_BYTES or (
            self._taken_bytes - self._done_bytes + len(payload) > self._max_queued_bytes
        ):
            self._on_lost(1)
            return
        self._taken_bytes += FRAME_BYTES + len(payload)
        self._queue.append(frame(payload))

    def begin(self, file: int, file_bytes: int) -> None:
        """Write into this file from now on, which has so many bytes."""
        self.file, self._file_bytes, self._opened_at = file, file_bytes, monotonic()

    def end(self) -> None:
        """Give the file up."""
        if self.file != NO_FILE:
            os.close(self.file)
        self.file = NO_FILE

    def flush(self) -> bool:
        """Write and fsync what waits, and give a full or old file up. False when there is no file. Raises OSError: what
        the disk refuses waits for the next time, in the same file; a batch whose fsync fails is lost, and so is its
        file."""
        while self._queue or self._unwritten:
            if self.file == NO_FILE:
                return False
            self._write_batch()
        if self.file != NO_FILE and self._is_full_or_old():
            self.end()
        return True

    def follow(self, seconds: float, once: bool) -> bool:
        """Flush every so many seconds, until there is no file for what waits, or after the first time (`once`). False
        when the end was asked for. Raises OSError as `flush` does."""
        while not self._stopping.wait(seconds):
            if not self.flush() or once:
                return True
        return False

    def stop(self) -> None:
        """`follow` ends."""
        self._stopping.set()

    def _write_batch(self) -> None:
        began = perf_counter()
        if not self._unwritten:
            batch: list[bytes] = []
            size = 0
            while self._queue and size < _LARGEST_WRITE:
                batch.append(self._queue.popleft())
                size += len(batch[-1])
            self._unwritten, self._batch_decisions = b"".join(batch), len(batch)
        while self._unwritten:
            # After a short write the file goes on exactly where it stopped: whole frames may be in Delta already.
            written = os.write(self.file, self._unwritten)
            self._unwritten = self._unwritten[written:]
            self._file_bytes += written
            self._done_bytes += written
        decisions, self._batch_decisions = self._batch_decisions, 0
        try:
            os.fsync(self.file)
        except OSError:
            # What the kernel kept of these pages is unknown; a second fsync would only seem to succeed.
            self._on_lost(decisions)
            self.end()
            raise
        self._on_written(decisions, (perf_counter() - began,))

    def _is_full_or_old(self) -> bool:
        return self._file_bytes >= self._max_file_bytes or monotonic() - self._opened_at >= self._max_file_seconds
