"""The load generator of `sender.c`: compiled where it is needed, told what to send, asked what it saw."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from feature_repo.contracts.errors import DependencyError

SOURCE = Path(__file__).with_name("sender.c")
MOST_LAG_MS = 0.2
"""Of the 99th percentile: a generator that is later than that by itself measured itself."""
_GRACE_SECONDS = 10
"""As in `sender.c`."""


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds; 0 where nothing was counted."""

    count: int
    p50: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    max: float = 0.0


class Sent(NamedTuple):
    """What became of the requests of one run.

    `in_time`: answers of 2xx that came within `seconds`. `ok_due`, `refused_due`: from when a request was due to its
    whole answer, of 2xx and of 503; `ok_sent`, `refused_sent`: from when it left. `lag`: how late the generator was.
    `failed`: other answers, and broken connections; `unanswered`: nothing came within 10 s of the end; `dropped`:
    connections that could not be opened again; `degraded`: answers that say so of themselves; `bytes`: of all answers;
    `priority`: fifo, nice -20 or usual, whichever the machine allowed the generator; `processor_seconds`: what it used
    itself.
    """

    seconds: float
    in_time: int
    failed: int
    unanswered: int
    dropped: int
    degraded: int
    bytes: int
    priority: str
    lag: Times
    ok_due: Times
    ok_sent: Times
    refused_due: Times
    refused_sent: Times
    processor_seconds: float = 0.0

    @property
    def sent(self) -> int:
        """Requests that were due."""
        return self.ok_due.count + self.refused_due.count + self.failed + self.unanswered

    @property
    def errors(self) -> int:
        """Requests without a 2xx."""
        return self.sent - self.ok_due.count

    @property
    def per_second(self) -> float:
        """Answers of 2xx a second."""
        return self.in_time / max(self.seconds, 0.001)

    @property
    def is_void(self) -> bool:
        """Whether the generator was too late by itself for the times to mean anything."""
        return self.lag.p99 > MOST_LAG_MS


class Sender:
    """The program, compiled into `folder`. Raises DependencyError when there is no C compiler."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "sender"
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise DependencyError(
                "this bench compiles its load generator, and there is no C compiler on PATH. Install one (Debian, "
                "Ubuntu: `apt install gcc libc6-dev`; macOS: `xcode-select --install`)."
            )
        done = subprocess.run(
            [compiler, "-O2", "-o", str(self._program), str(SOURCE)], capture_output=True, text=True, timeout=120
        )
        if done.returncode != 0:
            raise DependencyError(f"{compiler} cannot compile {SOURCE}: {done.stderr[-500:]}")

    def start(
        self, port: int, requests: Path, *, rate: float, seconds: float, connections: int, cores: Sequence[int] = ()
    ) -> Sending:
        """Send the requests of the file for so long, `rate` a second (0: each connection when it has its answer).

        `cores`: where the generator may run, if not everywhere.
        """
        words = [port, seconds, rate, connections, requests]
        process = subprocess.Popen(
            [str(self._program), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, cores)
        return Sending(process, seconds)

    def send(self, port: int, requests: Path, **options: Any) -> Sent:
        """`start`, and wait for it."""
        return self.start(port, requests, **options).wait()


class Sending:
    """A generator under way."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self._process, self._seconds = process, seconds

    def end(self) -> Sent:
        """No request is due any more."""
        self._process.terminate()
        return self.wait()

    def wait(self) -> Sent:
        """What it saw. Raises DependencyError when it fails."""
        output, said = self._process.communicate(timeout=self._seconds + _GRACE_SECONDS + 60)
        if self._process.returncode != 0:
            raise DependencyError(f"the load generator ended with {self._process.returncode}: {said[-300:]}")
        found: dict[str, Any] = json.loads(output)
        values: dict[str, Any] = {
            name: Times(**value) if isinstance(value, dict) else value for name, value in found.items()
        }
        return Sent(**values)


def http_request(path: str, body: Mapping[str, Any], *, key: str = "") -> bytes:
    """A whole POST request with a JSON body."""
    content = orjson.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def write_requests(path: Path, requests: Iterable[bytes]) -> Path:
    """The file that the generator reads."""
    with path.open("wb") as stream:
        for request in requests:
            stream.write(struct.pack("=I", len(request)) + request)
    return path
