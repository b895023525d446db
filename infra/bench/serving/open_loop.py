"""An open loop of events and reads: requests leave when they are due, whether or not earlier ones were answered.

`python -m infra.bench.serving.open_loop PORT SECONDS EVENTS_PER_SECOND READS_PER_SECOND FIRST_PERSON RUN` prints a
`Freshness` as JSON. Every time is counted from the moment at which the request should have left, so a client or server
that falls behind is seen to. Every 50th event is a probe: a person of its own views the item at the top of their list;
once that is acknowledged, they ask until the item has left their answer.
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

from feature_repo.contracts.errors import DependencyError
from infra.bench.serving.answers import AnswerConnection
from infra.bench.small_version import ITEMS, favourite_of
from infra.local.variables import REPOSITORY

LINE = "NIGHTJAR "
CONNECTIONS = 64
PROBE_EVERY = 50
BACKGROUND_PEOPLE = 5_000
_TICK_SECONDS = 0.0005
_LONGEST_SECONDS = 10.0

Answered = Callable[[int, bytes], None]


class Freshness(NamedTuple):
    """What was seen, in milliseconds and events a second. `unchanged`: probes whose answer never changed.

    `event_to_answer`: from the acknowledgement to the first changed answer. `sent_to_answer`: the same from the moment
    at which the event should have left. `event`, `read`: from that moment of a request to its answer.
    """

    probes: int
    unchanged: int
    errors: int
    events_per_second: float
    reads_per_second: float
    event_to_answer_p50_ms: float
    event_to_answer_p99_ms: float
    sent_to_answer_p99_ms: float
    event_p99_ms: float
    read_p99_ms: float


def run_open_loop(
    port: int, *, seconds: float, events_per_second: float, reads_per_second: float, first_person: int, run: str
) -> Freshness:
    """One run in a process of its own. `run` begins every event id. Raises DependencyError when it fails."""
    words = [port, seconds, events_per_second, reads_per_second, first_person, run]
    command = [sys.executable, "-m", "infra.bench.serving.open_loop", *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds + 120)
    lines = [line.removeprefix(LINE) for line in done.stdout.splitlines() if line.startswith(LINE)]
    if done.returncode != 0 or len(lines) != 1:
        raise DependencyError(f"the client ended with {done.returncode}: {done.stderr[-500:]}")
    return Freshness(**json.loads(lines[0]))


class _Connection(AnswerConnection):
    def __init__(self, loop: OpenLoop) -> None:
        super().__init__()
        self._loop = loop
        self._answered: Answered | None = None

    def opened(self) -> None:
        self._loop.free.append(self)

    def ask(self, request: bytes, answered: Answered) -> None:
        self._answered = answered
        self.write(request)

    def answered(self, status: int, body: bytes) -> None:
        answered, self._answered = self._answered, None
        self._loop.release(self)
        if answered is not None:
            answered(status, body)

    def connection_lost(self, _: Exception | None) -> None:
        if self in self._loop.free:
            self._loop.free.remove(self)
        if self._answered is not None:
            self._answered(0, b"")


class OpenLoop:
    """One run. `person` numbers of probes begin at `first_person` and must have lists and no history."""

    def __init__(self, port: int, *, events: float, reads: float, first_person: int, run: str) -> None:
        self._port, self._events, self._reads, self._run = port, events, reads, run
        self._first_person = first_person
        self.free: deque[_Connection] = deque()
        self._queue: deque[tuple[bytes, Answered]] = deque()
        self._probes = self._open = self._errors = 0
        self._event_ms: list[float] = []
        self._read_ms: list[float] = []
        self._acknowledged_ms: list[float] = []
        self._sent_ms: list[float] = []

    async def run(self, seconds: float) -> Freshness:
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        began = time.perf_counter()
        events = reads = 0
        while (passed := time.perf_counter() - began) < seconds:
            while events < passed * self._events:
                self._send_event(events, began + events / self._events)
                events += 1
            while reads < passed * self._reads:
                self._send_read(reads, began + reads / self._reads)
                reads += 1
            await asyncio.sleep(_TICK_SECONDS)
        sent_for = time.perf_counter() - began
        while self._open and time.perf_counter() - began < seconds + _LONGEST_SECONDS:
            await asyncio.sleep(0.01)
        answered_ms = self._acknowledged_ms
        return Freshness(
            self._probes,
            self._probes - len(answered_ms),
            self._errors,
            len(self._event_ms) / sent_for,
            len(self._read_ms) / sent_for,
            _share(answered_ms, 0.5),
            _share(answered_ms, 0.99),
            _share(self._sent_ms, 0.99),
            _share(self._event_ms, 0.99),
            _share(self._read_ms, 0.99),
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

    def _send_event(self, number: int, due: float) -> None:
        is_probe = number % PROBE_EVERY == 0
        if is_probe:
            person = self._first_person + self._probes
            item, name = favourite_of(person), f"u{person}"
            self._probes += 1
        else:
            person = number * 7919 % BACKGROUND_PEOPLE
            item, name = number * 104_729 % ITEMS, f"b{person}"
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        body = (
            f'{{"event_id":"{self._run}-{number}","event_type":"view_item","user_id":"{name}","session_id":"s{name}",'
            f'"item_id":"i{item}","timestamp":"{moment}"}}'
        )

        def acknowledged(status: int, _: bytes) -> None:
            now = time.perf_counter()
            self._event_ms.append((now - due) * 1000)
            if is_probe and status == 202:
                self._probe(name, item, due, now)

        self._ask(b"/v1/events", body.encode(), acknowledged)

    def _probe(self, name: str, item: int, due: float, acknowledged_at: float) -> None:
        old = f"i{item}"

        def look(status: int, body: bytes) -> None:
            now = time.perf_counter()
            if status == 200 and old not in [one["item_id"] for one in json.loads(body)["items"]]:
                self._acknowledged_ms.append((now - acknowledged_at) * 1000)
                self._sent_ms.append((now - due) * 1000)
            elif status and now - acknowledged_at < _LONGEST_SECONDS:
                self._read(name, look)

        self._read(name, look)

    def _send_read(self, number: int, due: float) -> None:
        def answered(_status: int, _body: bytes) -> None:
            self._read_ms.append((time.perf_counter() - due) * 1000)

        self._read(f"u{number * 7919 % self._first_person}", answered)

    def _read(self, name: str, answered: Answered) -> None:
        body = f'{{"user_id":"{name}","session_id":"s{name}","num_results":10}}'
        self._ask(b"/v1/recommendations", body.encode(), answered)


def _share(values: list[float], share: float) -> float:
    found = sorted(values)
    return found[min(len(found) - 1, int(len(found) * share))] if found else float("inf")


def main() -> None:
    """Run it and print what it saw."""
    import uvloop

    port, seconds, events, reads, first_person, run = sys.argv[1:]
    loop = OpenLoop(int(port), events=float(events), reads=float(reads), first_person=int(first_person), run=run)
    print(LINE + json.dumps(uvloop.run(loop.run(float(seconds)))._asdict()))


if __name__ == "__main__":
    main()
