"""An open loop of questions whose answers are looked at: are they there, in time, whole, and within the rules?

`python -m infra.bench.serving.steady_load PORT RATE CONNECTIONS KEY RULES` asks until it gets SIGTERM, then prints a
`Seen` as JSON. Questions are a mix of known users, sessions, exclusions and refusals of personalization. They leave
when they are due, whatever became of earlier ones, and every time is counted from that moment. RULES is the `Rules` as
JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import time
from collections import Counter, deque
from typing import Any, NamedTuple

import orjson

from infra.bench.priority import come_first
from infra.bench.serving.answers import AnswerConnection
from infra.bench.small_version import ITEMS, favourite_of

LINE = "NIGHTJAR "
BUCKET_SECONDS = 0.02
IN_TIME_SECONDS = 0.05
RESULTS = 10
_TICK_SECONDS = 0.001
"""uvloop counts whole milliseconds: less would be nothing, and the loop would take a processor."""
_LONGEST_SECONDS = 3.0
FIELDS = ("sent", "good", "late", "refused", "unclean", "failed", "personal", "not_personal", "unsent")
_PLACES = {name: place for place, name in enumerate(FIELDS)}
_DIFFERENT = 20_000
"""Questions are written before the first one leaves, and come again after so many: this program shares the machine
with those whom it judges."""


class Rules(NamedTuple):
    """What an answer has to keep. `prefixes`: version -> how the ids of its items begin; `hidden`: items that nobody
    may see; `people`: how many have a list."""

    prefixes: dict[str, str]
    hidden: list[str]
    people: int


class Seen(NamedTuple):
    """What became of the questions, by the 20 ms (of the monotonic clock, from 0) in which they should have left.

    `buckets`: number -> counts in the order of FIELDS. good: a 200 within 50 ms that keeps all rules; late: such a one,
    later; refused: 503; unclean: a 200 that breaks a rule; failed: anything else; personal, not_personal: of those
    good or late ones that asked for a known user; unsent: no connection was free. `lag_p99_ms`: how much later than
    due questions left. `versions`: how many clean answers came from each; `reasons`: why known users had no personal
    list. `examples`: some of what was unclean or failed.
    """

    buckets: dict[int, list[int]]
    lag_p99_ms: float
    versions: dict[str, int]
    reasons: dict[str, int]
    examples: list[str]


class _Question(NamedTuple):
    request: bytes
    due: float
    excluded: frozenset[str]
    is_personal: bool | None


class _Connection(AnswerConnection):
    def __init__(self, load: SteadyLoad) -> None:
        super().__init__()
        self._load = load
        self.question: _Question | None = None

    def opened(self) -> None:
        self._load.release(self)

    def ask(self, question: _Question) -> None:
        self.question = question
        self.write(question.request)

    def answered(self, status: int, body: bytes) -> None:
        question, self.question = self.question, None
        if question is not None:
            self._load.answered(question, status, body)
        self._load.release(self)

    def connection_lost(self, _: Exception | None) -> None:
        question, self.question = self.question, None
        if question is not None:
            self._load.answered(question, 0, b"the connection was cut")
        self._load.lost(self)


class SteadyLoad:
    """One run."""

    def __init__(self, port: int, *, rate: float, connections: int, key: str, rules: Rules) -> None:
        self._port, self._rate, self._connections = port, rate, connections
        self._rules = rules
        self._hidden = frozenset(rules.hidden)
        self._head = (
            "POST /v1/recommendations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            + (f"Authorization: Bearer {key}\r\n" if key else "")
        ).encode()
        self._written: list[tuple[bytes, frozenset[str], bool | None]] = []
        self._free: deque[_Connection] = deque()
        self._open = 0
        self._number = 0
        self._buckets: dict[int, list[int]] = {}
        self._lags: list[float] = []
        self._versions: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._examples: list[str] = []
        self._is_over = False

    async def run(self) -> Seen:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end)
        self._written = [self._write(number) for number in range(_DIFFERENT)]
        await asyncio.gather(*[self._connect() for _ in range(min(self._connections, 64))])
        began = time.monotonic()
        print(LINE + "started", flush=True)
        while not self._is_over:
            now = time.monotonic()
            while (due := began + self._number / self._rate) <= now:
                self._send(due, now)
            await asyncio.sleep(_TICK_SECONDS)
        deadline = time.monotonic() + _LONGEST_SECONDS
        while len(self._free) < self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self._lags.sort()
        lag = self._lags[int(len(self._lags) * 0.99)] if self._lags else 0.0
        return Seen(self._buckets, lag * 1000, dict(self._versions), dict(self._reasons), self._examples)

    def _end(self) -> None:
        self._is_over = True

    async def _connect(self) -> None:
        self._open += 1
        try:
            await asyncio.get_running_loop().create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        except OSError:
            self._open -= 1

    def release(self, connection: _Connection) -> None:
        """The connection has nothing to do."""
        self._free.append(connection)

    def lost(self, connection: _Connection) -> None:
        """The connection has ended."""
        self._open -= 1
        if connection in self._free:
            self._free.remove(connection)
        if not self._is_over:
            self._start_connecting()

    def _start_connecting(self) -> None:
        task = asyncio.get_running_loop().create_task(self._connect())
        task.add_done_callback(lambda _: None)

    def _send(self, due: float, now: float) -> None:
        question = self._question(due)
        if len(self._lags) < 1_000_000:
            self._lags.append(now - due)
        if self._free:
            self._free.popleft().ask(question)
        else:
            self._count(due, "sent", "unsent")
            if self._open < self._connections:
                self._start_connecting()

    def _question(self, due: float) -> _Question:
        request, excluded, is_personal = self._written[self._number % _DIFFERENT]
        self._number += 1
        return _Question(request, due, excluded, is_personal)

    def _write(self, number: int) -> tuple[bytes, frozenset[str], bool | None]:
        """A question without the moment at which it is due."""
        person = number * 7919 % self._rules.people
        excluded: list[str] = []
        is_personal: bool | None = True
        body: dict[str, Any] = {"user_id": f"u{person}", "num_results": RESULTS}
        if number % 20 == 19:
            body["consent"], is_personal = {"personalize": False}, False
        elif number % 20 >= 17:
            numbers = [(favourite_of(person) + 7 * rank) % ITEMS for rank in range(5)] + [9, 10]
            excluded = [f"{prefix}{number}" for prefix in self._rules.prefixes.values() for number in numbers]
            body["exclude_item_ids"] = excluded
        elif number % 20 >= 12:
            items = [f"i{(person * 31 + step) % ITEMS}" for step in range(3)]
            body = {"anonymous_id": f"a{number}", "session_items": items, "num_results": RESULTS}
            is_personal = None
        content = orjson.dumps(body)
        request = self._head + b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
        return request, frozenset(excluded), is_personal

    def answered(self, question: _Question, status: int, body: bytes) -> None:
        """An answer came; status 0: the connection was cut instead."""
        took = time.monotonic() - question.due
        if status == 503:
            self._count(question.due, "sent", "refused")
            return
        if status != 200:
            self._count(question.due, "sent", "failed")
            self._example(f"{status} {body[:200]!r}")
            return
        when = "good" if took <= IN_TIME_SECONDS else "late"
        answer = orjson.loads(body)
        if wrong := self._broken_rule(answer, question):
            self._count(question.due, "sent", "unclean")
            self._example(f"{wrong}: {body[:300]!r}")
            return
        self._versions[answer["model_version"]] += 1
        more: tuple[str, ...] = ()
        if question.is_personal:
            more = ("personal",) if answer["fallback_level"] == "personal" else ("not_personal",)
            if more == ("not_personal",):
                self._reasons[str(answer.get("fallback_reason"))] += 1
        self._count(question.due, "sent", when, *more)

    def _broken_rule(self, answer: dict[str, Any], question: _Question) -> str | None:
        found = [item["item_id"] for item in answer["items"]]
        prefix = self._rules.prefixes.get(answer["model_version"])
        if prefix is None:
            return f"version {answer['model_version']} was never published"
        if len(found) != RESULTS or len(set(found)) != RESULTS:
            return f"{len(set(found))} items of {RESULTS}"
        if self._hidden.intersection(found):
            return "a hidden item"
        if question.excluded.intersection(found):
            return "an excluded item"
        if not all(item_id.startswith(prefix) for item_id in found):
            return "items of two versions"
        if question.is_personal is False and answer["fallback_level"] == "personal":
            return "a personal list for one who said no"
        return None

    def _count(self, due: float, *names: str) -> None:
        counts = self._buckets.setdefault(int(due / BUCKET_SECONDS), [0] * len(FIELDS))
        for name in names:
            counts[_PLACES[name]] += 1

    def _example(self, text: str) -> None:
        if len(self._examples) < 20:
            self._examples.append(text)


def write_all(text: str) -> None:
    """To stdout, however little of it a write takes: without a buffer, `print` gives up what a pipe did not take."""
    left = text.encode()
    while left:
        left = left[os.write(sys.stdout.fileno(), left) :]


def main() -> None:
    """Run it and print what it saw."""
    import uvloop

    come_first()
    port, rate, connections, key, rules = sys.argv[1:]
    load = SteadyLoad(
        int(port), rate=float(rate), connections=int(connections), key=key, rules=Rules(**json.loads(rules))
    )
    gc.freeze()
    gc.disable()  # a pause of ours would be counted as theirs, and what is made here makes no circles
    write_all(LINE + json.dumps(uvloop.run(load.run())._asdict()) + "\n")


if __name__ == "__main__":
    main()
