"""`nightjar bench backlog`: how fast the consumers drain a log that has grown while they were away.

A shop's hour of events (sessions of many people, interleaved; types as a shop has them) is written by the API's own
`RedisEventLog`. Then recommendations are asked for at a fixed rate, first with the backlog lying there, then while the
real consumer processes drain it, then with all of it applied: people have sessions by then, and an answer that looks at
one takes longer, whether or not anything waits. So both ends are what draining is compared with. A consumer's speed is
counted against the processor time that it took, so that it says something on a machine with other work too.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import psutil
import redis
import uvloop

from feature_repo.contracts import environment as names
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.events import EVENT_FIELDS, subject_key
from feature_repo.contracts.keys import DEFAULT_TENANT, speed_counters_key
from feature_repo.contracts.times import format_timestamp, from_micros, to_micros
from infra.bench.disk import judge_disk
from infra.bench.report import figure, make_report
from infra.bench.sender import Sender, Sent, http_request, write_requests
from infra.bench.small_installation import CONSUMER, SmallInstallation, cpu_seconds
from infra.bench.small_version import ITEMS
from serving.adapters.event_log import LogEntry
from serving.adapters.redis_event_log import RedisEventLog

Say = Callable[[str], None]

READERS = 2_000
CONNECTIONS = 64
QUIET_ROUNDS = 3
LEAST_EVENTS_PER_SECOND_PER_CORE = 20_000
MAX_P99_RATIO = 2.0
LONGEST_DRAIN_SECONDS = 3_600.0

PEOPLE = 100_000
OPEN_SESSIONS = 2_000
GAP_MICROS = 3_600
"""Between two events of the shop: a million of them are an hour. Nobody in it is so fast as to be a bot."""
SESSION_EVENTS = 12
_WRITE_EVENTS = 4_000
_TYPES = ("view_item", "page_view", "impression", "search", "add_to_cart", "remove_from_cart", "view_cart", "purchase")
_WEIGHTS = (50, 20, 10, 8, 7, 1, 2, 2)
_LINES = {"impression": 6, "purchase": 2}
_WITHOUT_ITEM = frozenset({"page_view", "search", "view_cart"})
_DEVICES = ("phone", "phone", "desktop", "tablet")
_POLL_SECONDS = 0.02


def backlog_entries(count: int, *, seed: int, until_micros: int) -> Iterator[LogEntry]:
    """`count` checked events as the API writes them; the last one at `until_micros` (us since 1970).

    2,000 sessions are open at any time, each of some 12 events; three in ten are of visitors who did not log in.
    """
    rng = random.Random(seed)  # noqa: S311
    micros = until_micros - count * GAP_MICROS
    sessions = [_person(rng, number) for number in range(OPEN_SESSIONS)]
    opened = len(sessions)
    kinds = rng.choices(_TYPES, _WEIGHTS, k=count)
    for number, kind in enumerate(kinds):
        micros += GAP_MICROS
        at = rng.randrange(OPEN_SESSIONS)
        if rng.random() * SESSION_EVENTS < 1:
            sessions[at] = _person(rng, opened)
            opened += 1
        person = sessions[at]
        event: dict[str, Any] = {
            "event_id": f"b{seed}-{number}",
            "event_type": kind,
            **person,
            "timestamp": format_timestamp(from_micros(micros)),
            "context": {"device": _DEVICES[opened % 4], "language": "de-DE"},
        }
        if kind in _LINES:
            event["items"] = [{"item_id": _item(rng)} for _ in range(_LINES[kind])]
        elif kind not in _WITHOUT_ITEM:
            event["item_id"] = _item(rng)
        subject = subject_key(person.get("user_id"), person.get("anonymous_id"))
        document = {name: event[name] for name in EVENT_FIELDS if name in event}
        nonce = f"{seed:x}.{number}"
        yield LogEntry(subject, event["event_id"], nonce, orjson.dumps(document), "items" not in event)


def _question(number: int) -> bytes:
    name = f"u{number * 7919 % READERS}"
    return http_request("/v1/recommendations", {"user_id": name, "session_id": f"s{name}", "num_results": 10})


def _person(rng: random.Random, session: int) -> dict[str, str]:
    number = rng.randrange(PEOPLE)
    who = {"anonymous_id": f"a{number}"} if rng.random() < 0.3 else {"user_id": f"u{number}"}
    return {**who, "session_id": f"s{session}"}


def _item(rng: random.Random) -> str:
    return f"i{int(rng.paretovariate(0.8)) % ITEMS}"


async def fill_log(url: str, entries: Iterator[LogEntry]) -> int:
    """Write them with the API's own log, in its largest groups; how many."""
    log = RedisEventLog(url, tenant=DEFAULT_TENANT, timeout_seconds=60.0, max_queued_events=100 * _WRITE_EVENTS)
    written = 0
    try:
        while group := list(islice(entries, _WRITE_EVENTS)):
            written += sum(await log.append(group))
    finally:
        await log.close()
    return written


class Drain(NamedTuple):
    """From the first applied batch to the last: events, wall seconds, processor seconds of the consumers."""

    events: int
    seconds: float
    cpu_seconds: float


def bench_backlog(
    home: Path,
    variables: Mapping[str, str],
    *,
    events: int,
    reads_per_second: int,
    seconds: int,
    consumers: int,
    seed: int,
    say: Say,
) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report.

    Figures: `events_per_second_per_core` (of the consumers' processor time), `events_per_second`; one sample a round of
    `seconds`, timed from the intended send: `answer_p99_ms_quiet` (before), `answer_p99_ms_drained` (afterwards,
    against it), `answer_p99_ms_draining` (against both); `answer_cpu_us_quiet` and `answer_cpu_us_drained`, the
    processor time of the API's workers for an answer. Further keys: events, applied, dead_letters, errors (of reads),
    missed_bars, consumers, fsync_median_ms, filesystem, void. Raises DependencyError without a C compiler.
    """
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    disk = judge_disk(home)

    def read() -> Sent:
        return sender.send(port, questions, rate=reads_per_second, seconds=seconds, connections=CONNECTIONS)

    def read_quietly() -> tuple[list[Sent], float]:
        """Rounds, and microseconds of the workers' processor time for an answer."""
        before = cpu_seconds(workers)
        rounds = [read() for _ in range(QUIET_ROUNDS)]
        return rounds, (cpu_seconds(workers) - before) / (QUIET_ROUNDS * reads_per_second * seconds) * 1e6

    with SmallInstallation(home, variables, people=READERS) as installation:
        sender = Sender(home)
        questions = write_requests(home / "questions", (_question(number) for number in range(READERS)))
        supervisor, port = installation.start_api(workers=2)
        workers = supervisor.children()
        entries = backlog_entries(events, seed=seed, until_micros=to_micros(datetime.now(UTC)))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            written = runner.run(fill_log(installation.log.url, entries))
        say(f"{written:,} events wait")
        read()  # warm-up
        quiet, quiet_us = read_quietly()
        say(f"quiet: p99 {_p99s(quiet)} ms")
        processes = [installation.start(CONSUMER) for _ in range(consumers)]
        with redis.Redis.from_url(installation.online.url) as online:
            watch = _Watch(online, processes, written)
            watch.start()
            draining: list[Sent] = []
            watch.has_begun.wait(LONGEST_DRAIN_SECONDS)
            while watch.is_alive():
                one = read()
                if watch.is_alive() or not draining:  # a round that the drain ended in is half a quiet one
                    draining.append(one)
            drain, counters = watch.result(), _counters(online)
            drained, drained_us = read_quietly()
    shutil.rmtree(home, ignore_errors=True)
    say(
        f"drained: {drain.events:,} events in {drain.seconds:.1f} s and {drain.cpu_seconds:.1f} s of processor; p99 "
        f"{_p99s(draining)} ms, afterwards {_p99s(drained)} ms"
    )
    before, meanwhile, afterwards = ([one.ok_due.p99 for one in some] for some in (quiet, draining, drained))
    figures = {
        "events_per_second_per_core": figure("1/s", [drain.events / max(drain.cpu_seconds, 0.01)]),
        "events_per_second": figure("1/s", [drain.events / drain.seconds]),
        "answer_p99_ms_quiet": figure("ms", before),
        "answer_p99_ms_drained": figure("ms", afterwards, baseline=before),
        "answer_p99_ms_draining": figure("ms", meanwhile, baseline=[*before, *afterwards]),
        "answer_cpu_us_quiet": figure("us", [quiet_us]),
        "answer_cpu_us_drained": figure("us", [drained_us], baseline=[quiet_us]),
    }
    ratio = figures["answer_p99_ms_draining"]["ratio"]
    missed = []
    if figures["events_per_second_per_core"]["median"] < LEAST_EVENTS_PER_SECOND_PER_CORE:
        missed.append("events_per_second_per_core")
    if ratio is None or ratio >= MAX_P99_RATIO:
        missed.append("answer_p99_ms_draining")
    return make_report(
        "bench backlog",
        figures,
        str(variables.get(names.CODE_VERSION, "")),
        **disk,
        events=events,
        applied=counters.get("applied", 0),
        dead_letters=counters.get("dead_lettered", 0),
        errors=sum(one.errors for one in (*quiet, *draining, *drained)),
        missed_bars=missed,
        consumers=consumers,
        reads_per_second=reads_per_second,
    )


def _p99s(rounds: Sequence[Sent]) -> str:
    return ", ".join(f"{one.ok_due.p99:.1f}" for one in rounds)


class _Watch(threading.Thread):
    """Looks on while the consumers drain, from a thread of its own."""

    def __init__(self, online: redis.Redis, processes: Sequence[psutil.Process], events: int) -> None:
        super().__init__(daemon=True)
        self._online = online
        self._processes = processes
        self._events = events
        self._found: Drain | None = None
        self.has_begun = threading.Event()

    def run(self) -> None:
        try:
            self._found = self._watch()
        finally:
            self.has_begun.set()

    def result(self) -> Drain:
        """Raises DependencyError when the consumers ended, or took too long."""
        self.join()
        if self._found is None:
            raise DependencyError("the backlog was not drained: a consumer ended, or took too long")
        return self._found

    def _watch(self) -> Drain | None:
        began_at = time.monotonic()
        first: tuple[float, int, float] | None = None
        while time.monotonic() - began_at < LONGEST_DRAIN_SECONDS:
            if any(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in self._processes):
                return None
            done = sum(_counters(self._online).get(name, 0) for name in ("applied", "duplicate", "dead_lettered"))
            now, used = time.monotonic(), cpu_seconds(self._processes)
            if first is None and done:
                first = (now, done, used)
                self.has_begun.set()
            if done >= self._events:
                assert first is not None
                return Drain(done - first[1], max(now - first[0], _POLL_SECONDS), used - first[2])
            time.sleep(_POLL_SECONDS)
        return None


def _counters(online: redis.Redis) -> dict[str, int]:
    found: Any = online.hgetall(speed_counters_key())
    return {name.decode(): int(value) for name, value in found.items()}
