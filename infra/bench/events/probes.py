"""Probes of freshness: people of their own who view something and look when their answer knows of it.

`python -m infra.bench.events.probes PORT SECONDS PROBES_PER_SECOND FIRST_PERSON RUN` prints `Probes` as JSON. A probe
begins when it is due, whatever became of earlier ones: a person views the item at the top of their list; once that is
acknowledged, they ask, and ask again, with pauses that grow, until the item has left their answer.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import orjson

from feature_repo.contracts.errors import DependencyError
from infra.bench.serving.answers import AnswerConnection
from infra.bench.small_version import favourite_of
from infra.local.variables import REPOSITORY

LINE = "NIGHTJAR "
CONNECTIONS = 16
_TICK_SECONDS = 0.001
"""uvloop counts whole milliseconds: less would be nothing, and the loop would take a processor."""
_LONGEST_SECONDS = 10.0
_LEAST_PAUSE_SECONDS, _PAUSE_SHARE = 0.001, 0.1
"""Before somebody asks again: at least so long, and this share of the time since the 202. Who asked at once would be
most of the load as soon as the server falls behind."""

Answered = Callable[[int, bytes], None]


class Probes(NamedTuple):
    """What was seen; times in milliseconds. `changed`: probes whose answer changed; `errors`: requests without a 2xx.

    `event_to_answer`: from the acknowledgement to the first changed answer. `sent_to_answer`: the same from the moment
    at which the event should have left.
    """

    probes: int
    changed: int
    errors: int
    event_to_answer_p50_ms: float
    event_to_answer_p99_ms: float
    sent_to_answer_p99_ms: float


class Probing:
    """A run of probes in a process of its own."""

    def __init__(self, port: int, *, seconds: float, per_second: float, first_person: int, run: str) -> None:
        """`first_person` and those behind it have lists and no history; `run` begins every event id."""
        words = [port, seconds, per_second, first_person, run]
        self._seconds = seconds
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infra.bench.events.probes", *map(str, words)],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait(self) -> Probes:
        """What it saw. Raises DependencyError when it fails."""
        output, said = self._process.communicate(timeout=self._seconds + 120)
        lines = [line.removeprefix(LINE) for line in output.splitlines() if line.startswith(LINE)]
        if self._process.returncode != 0 or len(lines) != 1:
            raise DependencyError(f"the probes ended with {self._process.returncode}: {said[-500:]}")
        return Probes(**json.loads(lines[0]))


class _Connection(AnswerConnection):
    def __init__(self, probing: _Run) -> None:
        super().__init__()
        self._probing = probing
        self._answered: Answered | None = None

    def opened(self) -> None:
        self._probing.free.append(self)

    def ask(self, request: bytes, answered: Answered) -> None:
        self._answered = answered
        self.write(request)

    def answered(self, status: int, body: bytes) -> None:
        answered, self._answered = self._answered, None
        self._probing.release(self)
        if answered is not None:
            answered(status, body)

    def connection_lost(self, _: Exception | None) -> None:
        if self in self._probing.free:
            self._probing.free.remove(self)
        if self._answered is not None:
            self._answered(0, b"")


class _Run:
    def __init__(self, port: int, *, per_second: float, first_person: int, run: str) -> None:
        self._port, self._per_second, self._first_person, self._run = port, per_second, first_person, run
        self.free: deque[_Connection] = deque()
        self._queue: deque[tuple[bytes, Answered]] = deque()
        self._probes = self._errors = 0
        self._open = 0
        """Requests under way, and people who pause."""
        self._acknowledged_ms: list[float] = []
        self._sent_ms: list[float] = []

    async def run(self, seconds: float) -> Probes:
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            while self._probes < passed * self._per_second:
                self._probe(began + self._probes / self._per_second)
            await asyncio.sleep(max(_TICK_SECONDS, began + self._probes / self._per_second - time.perf_counter()))
        while self._open and time.perf_counter() - began < seconds + _LONGEST_SECONDS:
            await asyncio.sleep(0.01)
        return Probes(
            self._probes,
            len(self._acknowledged_ms),
            self._errors,
            _share(self._acknowledged_ms, 0.5),
            _share(self._acknowledged_ms, 0.99),
            _share(self._sent_ms, 0.99),
        )

    def release(self, connection: _Connection) -> None:
        """An answer came whole: the connection takes what waits."""
        if self._queue:
            connection.ask(*self._queue.popleft())
        else:
            self.free.append(connection)

    def _ask(self, path: bytes, body: bytes, answered: Answered) -> None:
        head = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        request = head % (path, len(body)) + body
        self._open += 1

        def closed(status: int, answer: bytes) -> None:
            self._open -= 1
            self._errors += not 200 <= status < 300
            answered(status, answer)

        if self.free:
            self.free.popleft().ask(request, closed)
        else:
            self._queue.append((request, closed))

    def _probe(self, due: float) -> None:
        person = self._first_person + self._probes
        name, item = f"u{person}", f"i{favourite_of(person)}"
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event = (
            f'{{"event_id":"{self._run}-p{self._probes}","event_type":"view_item","user_id":"{name}",'
            f'"session_id":"s{name}","item_id":"{item}","timestamp":"{moment}"}}'
        )
        question = f'{{"user_id":"{name}","session_id":"s{name}","num_results":10}}'.encode()
        self._probes += 1
        loop = asyncio.get_running_loop()

        def acknowledged(status: int, _: bytes) -> None:
            if status != 202:
                return
            acknowledged_at = time.perf_counter()

            def look(status: int, body: bytes) -> None:
                now = time.perf_counter()
                if status == 200 and item not in [one["item_id"] for one in orjson.loads(body)["items"]]:
                    self._acknowledged_ms.append((now - acknowledged_at) * 1000)
                    self._sent_ms.append((now - due) * 1000)
                elif status and now - acknowledged_at < _LONGEST_SECONDS:
                    pause = max(_LEAST_PAUSE_SECONDS, _PAUSE_SHARE * (now - acknowledged_at))
                    self._open += 1
                    loop.call_later(pause, again)

            def again() -> None:
                self._open -= 1
                self._ask(b"/v1/recommendations", question, look)

            self._ask(b"/v1/recommendations", question, look)

        self._ask(b"/v1/events", event.encode(), acknowledged)


def _share(values: list[float], share: float) -> float:
    found = sorted(values)
    return found[min(len(found) - 1, int(len(found) * share))] if found else float("inf")


def main() -> None:
    """Run them and print what they saw."""
    import uvloop

    port, seconds, per_second, first_person, run = sys.argv[1:]
    probing = _Run(int(port), per_second=float(per_second), first_person=int(first_person), run=run)
    print(LINE + json.dumps(uvloop.run(probing.run(float(seconds)))._asdict()))


if __name__ == "__main__":
    main()
