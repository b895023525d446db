"""What the API's processes write down: one JSON object a line on stderr, without personal data.

No line has ids of users, devices, sessions or items, no query and no body. Our own messages name none; an exception is
its type and the places it came through, never its text, for that often quotes what somebody sent.
"""

from __future__ import annotations

import logging
import queue
import sys
import traceback
from logging.handlers import QueueHandler, QueueListener
from typing import IO, Any

import orjson

from feature_repo.contracts.times import format_timestamp, from_micros

MAX_WAITING = 10_000
"""Lines that may wait for a reader of stderr who is slow; beyond it lines are dropped, requests are not."""


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


class _DroppingHandler(QueueHandler):
    """Never waits for the queue."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # within one process it goes as it is

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return


def log_to(stream: IO[str] | None = None, *, level: int = logging.WARNING) -> QueueListener:
    """Let all loggers of this process write to `stream` (default: stderr), from a thread of its own.

    The access log writes from `info` on, everything else from `level` on. `stop()` of it writes what waits.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    listener = QueueListener(queue.Queue(MAX_WAITING), handler)
    root = logging.getLogger()
    root.handlers = [_DroppingHandler(listener.queue)]
    root.setLevel(level)
    logging.getLogger("nightjar.access").setLevel(logging.INFO)
    logging.captureWarnings(True)
    listener.start()
    return listener
