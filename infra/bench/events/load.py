"""A closed loop of event requests: wrk where it is installed, else a client of our own.

`python -m infra.bench.events.load PORT SECONDS CONNECTIONS BATCH RUN MOMENT` is that client; it prints a `Load` as
JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from feature_repo.contracts.errors import DependencyError
from infra.local.variables import REPOSITORY

_SCRIPT = Path(__file__).with_name("events.lua")
_LINE = "NIGHTJAR "


class Load(NamedTuple):
    """What a generator saw. `errors`: answers that were no 2xx, and connections that failed."""

    requests: int
    seconds: float
    errors: int
    p50_ms: float
    p99_ms: float


def generator_name() -> str:
    """Which generator `apply_load` uses."""
    return "wrk" if shutil.which("wrk") else "infra.bench.events.load"


def apply_load(
    port: int, *, seconds: int, connections: int, batch: int, run: str, moment: str, cores: Sequence[int]
) -> Load:
    """Send requests of `batch` events over keep-alive connections for `seconds`, from a process on `cores`.

    `run` begins every event id and must be new each time; `moment` is the events' time, RFC 3339.
    """
    variables = {**os.environ, "NIGHTJAR_BATCH": str(batch), "NIGHTJAR_RUN": run, "NIGHTJAR_MOMENT": moment}
    if shutil.which("wrk"):
        url = f"http://127.0.0.1:{port}"
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(_SCRIPT), url]
    else:
        words = [port, seconds, connections, batch, run, moment]
        command = [sys.executable, "-m", "infra.bench.events.load", *map(str, words)]
    process = subprocess.Popen(command, env=variables, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, cores)
    output, _ = process.communicate(timeout=seconds + 60)
    found = [line.removeprefix(_LINE) for line in output.splitlines() if line.startswith(_LINE)]
    if process.returncode != 0 or len(found) != 1:
        raise DependencyError(f"{command[0]} ended with {process.returncode} and said: {output[-500:]}")
    return Load(**json.loads(found[0]))


class _Connection(asyncio.Protocol):
    """One request under way at a time; answers have a Content-Length."""

    def __init__(self, load: _OwnLoad) -> None:
        self._load = load
        self._rest = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, end, body = self._rest.partition(b"\r\n\r\n")
        if not end:
            return
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        size = int(lower[at:].split(b"\r\n", 1)[0])
        if len(body) < size:
            return
        self._rest = body[size:]
        self._load.answered(head[9:12], time.perf_counter() - self._sent_at)
        if not self._load.is_over():
            self._next()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.ended(exc)

    def _next(self) -> None:
        body = self._load.body()
        self._sent_at = time.perf_counter()
        self._transport.write(self._load.head + b"%d\r\n\r\n" % len(body) + body)


class _OwnLoad:
    def __init__(self, port: int, seconds: float, connections: int, batch: int, run: str, moment: str) -> None:
        self.head = (
            b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nContent-Length: "
            % port
        )
        self._port, self._seconds, self._connections = port, seconds, connections
        self._batch, self._run, self._moment = batch, run, moment
        self._sent = self._errors = 0
        self._times: list[float] = []
        self._open = connections

    def body(self) -> bytes:
        events = ",".join(self._event() for _ in range(self._batch))
        return (events if self._batch == 1 else f"[{events}]").encode()

    def _event(self) -> str:
        self._sent += 1
        person, item = self._sent * 7919 % 50_000, self._sent * 104_729 % 10_000
        return (
            f'{{"event_id":"{self._run}-{self._sent}","event_type":"view_item","user_id":"u{person}",'
            f'"session_id":"s{person}","item_id":"i{item}","timestamp":"{self._moment}"}}'
        )

    def answered(self, status: bytes, seconds: float) -> None:
        self._times.append(seconds)
        self._errors += status[:1] != b"2"

    def is_over(self) -> bool:
        return time.perf_counter() - self._began >= self._seconds

    def ended(self, error: Exception | None) -> None:
        self._errors += error is not None or not self.is_over()
        self._open -= 1
        if not self._open:
            self._done.set_result(None)

    async def run(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = loop.create_future()
        self._began = time.perf_counter()
        for _ in range(self._connections):
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        await self._done
        seconds, times = time.perf_counter() - self._began, sorted(self._times)
        p50, p99 = (times[int(len(times) * share)] * 1000 if times else 0.0 for share in (0.5, 0.99))
        return Load(len(times), seconds, self._errors, p50, p99)._asdict()


def main() -> None:
    """Run the client and print what it saw."""
    import uvloop

    port, seconds, connections, batch, run, moment = sys.argv[1:]
    load = _OwnLoad(int(port), float(seconds), int(connections), int(batch), run, moment)
    print(_LINE + json.dumps(uvloop.run(load.run())))


if __name__ == "__main__":
    main()
