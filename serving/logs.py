"""What the API's processes write down: one JSON object a line on stderr, without personal data.

No line has ids of users, devices, sessions or items, no query and no body. Our own messages name none; an exception is
its type and the places it came through, never its text, for that often quotes what somebody sent.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
from collections import deque
from typing import IO, Any

import orjson

from feature_repo.contracts.times import format_timestamp, from_micros

MAX_WAITING = 10_000
"""Lines that may wait for a reader of stderr who is slow; beyond it lines are dropped, requests are not."""
TOGETHER_SECONDS = 1.0
"""How long a line of the access log waits for others. Raising it: fewer writes, later lines."""


class JsonFormatter(logging.Formatter):
    """`{"at", "level", "logger", "message"}`, what the caller gave as `extra={"fields": {...}}`, and `error`."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if not record.name.startswith("nightjar"):
            message = message.partition("\n")[0]  # asyncio's further lines show objects
        line: dict[str, Any] = {
            "at": format_timestamp(from_micros(int(record.created * 1e6))),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = described(record.exc_info[1])
        return orjson.dumps(line, default=str).decode()


def described(error: BaseException) -> dict[str, Any]:
    """An exception without its text: types from the outermost to the first cause, places with the latest call last."""
    types: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(types) < 10:
        types.append(type(seen).__name__)
        seen = seen.__cause__ or seen.__context__
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    return {"types": types, "Traceback": places[-30:]}


class LogWriter(logging.Handler):
    """Writes from a thread of its own, never waits for it, and drops what comes while too many lines wait.

    Lines of one second are written together, or at once when one of them is a warning: a thread that writes each by
    itself asks for the interpreter again and again, and beside a busy event loop that costs both. Who kills the process
    loses its last second.
    """

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._stream = stream
        self._waiting: deque[logging.LogRecord] = deque()
        self._has_some, self._is_urgent = threading.Event(), threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._waiting) >= MAX_WAITING:
            return
        self._waiting.append(record)
        if record.levelno >= logging.WARNING:
            self._is_urgent.set()
        if not self._has_some.is_set():
            self._has_some.set()

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, and no more."""
        self._is_over = True
        self._is_urgent.set()
        self._has_some.set()
        self._thread.join()
        self._write()

    def _run(self) -> None:
        while not self._is_over:
            self._has_some.wait()
            self._is_urgent.wait(TOGETHER_SECONDS)
            self._is_urgent.clear()
            self._has_some.clear()  # before they are taken: what comes from here on asks for the next round
            self._write()

    def _write(self) -> None:
        lines = []
        while self._waiting:
            record = self._waiting.popleft()
            try:
                lines.append(f"{self.format(record)}\n")
            except Exception:
                self.handleError(record)
        if lines:
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                self._stream.write("".join(lines))
                self._stream.flush()


def log_to(stream: IO[str] | None = None, *, level: int = logging.WARNING) -> LogWriter:
    """Let all loggers of this process write to `stream` (default: stderr), from a thread of its own.

    The access log writes from `info` on, everything else from `level` on. `stop()` of it writes what waits.
    """
    writer = LogWriter(stream or sys.stderr)
    root = logging.getLogger()
    root.handlers = [writer]
    root.setLevel(level)
    logging.getLogger("nightjar.access").setLevel(logging.INFO)
    logging.captureWarnings(True)
    writer.start()
    return writer
