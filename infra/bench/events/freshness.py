"""`nightjar bench freshness`: how soon an acknowledged event changes its person's next answer, under load.

Redis `log` and `online`, the API, the consumer and the archiver, as an installation has them. Events and questions come
at fixed rates from the compiled generator; among them are people who look when their answer knows of what they did
(`probes`).
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from feature_repo.contracts import environment as names
from feature_repo.contracts.times import format_timestamp
from infra.bench.disk import judge_disk
from infra.bench.events.archive_lag import ArchiveLag, measure_archive_lag
from infra.bench.events.probes import Probes, Probing
from infra.bench.report import Figure, figure, make_report
from infra.bench.sender import Sender, Sent, http_request, write_requests
from infra.bench.small_installation import ARCHIVER, CONSUMER, SmallInstallation, cpu_seconds
from infra.bench.small_version import ITEMS

Say = Callable[[str], None]

READERS = 2_000
"""People that background reads ask for; probes come behind them."""
PROBE_EVERY = 50
"""One event of so many is a probe's."""
CONNECTIONS = 64
"""Of each of the two kinds of requests."""
BACKGROUND_PEOPLE = 5_000
MOST_P99_MS = 5.0


class Rate(NamedTuple):
    """Requests a second."""

    events: int
    reads: int


class Round(NamedTuple):
    """What one round saw."""

    probes: Probes
    events: Sent
    reads: Sent
    cpu_seconds: Mapping[str, float]
    """Processor time by program; `generator` is the load's own, probes included."""
    archive: ArchiveLag

    @property
    def errors(self) -> int:
        """Requests without a 2xx."""
        return self.probes.errors + self.events.errors + self.reads.errors

    @property
    def unchanged(self) -> int:
        """Probes whose answer never knew of their event."""
        return self.probes.probes - self.probes.changed

    def figures(self) -> dict[str, float]:
        """By name: milliseconds, answers a second, and microseconds of a program's processor time per event, of the
        API's and the generator's per request."""
        events = max(self.events.ok_due.count, 1)
        requests = dict.fromkeys(("api", "generator"), events + self.reads.ok_due.count)
        cpu = {
            f"{name}_cpu_us": seconds * 1e6 / requests.get(name, events) for name, seconds in self.cpu_seconds.items()
        }
        return {
            "event_to_answer_p50_ms": self.probes.event_to_answer_p50_ms,
            "event_to_answer_p99_ms": self.probes.event_to_answer_p99_ms,
            "sent_to_answer_p99_ms": self.probes.sent_to_answer_p99_ms,
            "event_p99_ms": self.events.ok_due.p99,
            "read_p99_ms": self.reads.ok_due.p99,
            "generator_lag_p99_ms": max(self.events.lag.p99, self.reads.lag.p99),
            "events_per_second": self.events.per_second + self.probes.changed / max(self.events.seconds, 0.001),
            "reads_per_second": self.reads.per_second,
            "archive_lag_p99_ms": self.archive.p99_ms,
            **cpu,
            "cores": sum(self.cpu_seconds.values()) / max(self.events.seconds, 0.001),
        }


class _Bench:
    """The installation under load, round after round."""

    def __init__(self, home: Path, installation: SmallInstallation, *, workers: int, seconds: int) -> None:
        self._home, self._installation, self._seconds = home, installation, seconds
        self._sender = Sender(home)
        api, self._port = installation.start_api(workers=workers)
        self._programs = {
            "api": api.children(),
            "consumer": [installation.start(CONSUMER)],
            "archiver": [installation.start(ARCHIVER)],
            "redis_log": [psutil.Process(installation.log.process.pid)],
            "redis_online": [psutil.Process(installation.online.process.pid)],
        }
        self._reads = write_requests(home / "reads", (_question(number) for number in range(READERS)))
        self._next_person = READERS

    def round(self, rate: Rate) -> Round:
        """One round. The next begins when the archive has what this one sent."""
        run = f"{time.time_ns():x}"
        per_second = rate.events / PROBE_EVERY
        background = rate.events - per_second
        count = int(self._seconds * background) + CONNECTIONS
        events = write_requests(self._home / "events", _events(run, count, per_second=background))
        before, own_before = self._used(), _own_cpu_seconds()
        sending = [
            self._sender.start(self._port, path, rate=wanted, seconds=self._seconds, connections=CONNECTIONS)
            for path, wanted in ((events, background), (self._reads, rate.reads))
        ]
        probing = Probing(
            self._port, seconds=self._seconds, per_second=per_second, first_person=self._next_person, run=run
        )
        self._next_person += _probes(rate, self._seconds)
        probed, sent, read = probing.wait(), sending[0].wait(), sending[1].wait()
        used = {name: seconds - before[name] for name, seconds in self._used().items()}
        used["generator"] = _own_cpu_seconds() - own_before
        lakehouse = self._installation.environment.lakehouse
        return Round(probed, sent, read, used, measure_archive_lag(lakehouse, f"{run}-", sent.ok_due.count))

    def _used(self) -> dict[str, float]:
        return {name: cpu_seconds(some) for name, some in self._programs.items()}


def bench_freshness(
    home: Path,
    variables: Mapping[str, str],
    *,
    rounds: int,
    seconds: int,
    events_per_second: int,
    reads_per_second: int,
    say: Say,
    workers: int = 1,
    rates: Sequence[int] = (),
) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report.

    Figures, one sample a round: `event_to_answer_p99_ms` and `event_to_answer_p50_ms` (acknowledgement to changed
    answer), `sent_to_answer_p99_ms`, `event_p99_ms`, `read_p99_ms` (from the intended send), `generator_lag_p99_ms`,
    `events_per_second` and `reads_per_second` (answered in time), `archive_lag_p99_ms` (receipt to the commit that has
    the event); processor time: `api_cpu_us` and `generator_cpu_us` (a request), `consumer_cpu_us`, `archiver_cpu_us`,
    `redis_log_cpu_us` and `redis_online_cpu_us` (an event), `cores` (all of it, the generator too). Further keys:
    probes, unchanged, not_archived, errors, missed_bars, generator_priority, wanted_events_per_second,
    wanted_reads_per_second, workers, rates, highest_rate_in_time, fsync_median_ms, filesystem, void.

    `rates`: before that, so many events and as many reads a second, `rounds` rounds each; `highest_rate_in_time` is the
    highest at which nothing failed and the 99th percentile kept to 5 ms, None without one. Raises DependencyError
    without a C compiler.
    """
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    disk = judge_disk(home)
    wanted = Rate(events_per_second, reads_per_second)
    steps = [Rate(each, each) for each in sorted(rates)]
    people = READERS + sum(_probes(one, seconds) * (rounds + 1) for one in (*steps, wanted))
    with SmallInstallation(home, variables, people=people) as installation:
        bench = _Bench(home, installation, workers=workers, seconds=seconds)
        bench.round(steps[0] if steps else wanted)  # warm-up
        at_rates = [_Found.of(one, [bench.round(one) for _ in range(rounds)], say) for one in steps]
        found = _Found.of(wanted, [bench.round(wanted) for _ in range(rounds)], say)
    shutil.rmtree(home, ignore_errors=True)
    in_time = [one.rate for one in (*at_rates, found) if one.is_in_time and one.rate.events == one.rate.reads]
    return make_report(
        "bench freshness",
        found.figures,
        str(variables.get(names.CODE_VERSION, "")),
        **disk,
        probes=sum(one.probes.probes for one in found.rounds),
        unchanged=sum(one.unchanged for one in found.rounds),
        not_archived=sum(max(0, one.events.ok_due.count - one.archive.events) for one in found.rounds),
        errors=sum(one.errors for one in found.rounds),
        generator_priority=found.rounds[0].reads.priority,
        missed_bars=["event_to_answer_p99_ms"] if found.p99_ms >= MOST_P99_MS else [],
        wanted_events_per_second=events_per_second,
        wanted_reads_per_second=reads_per_second,
        workers=workers,
        rates=[one.told() for one in at_rates],
        highest_rate_in_time=max((rate.events for rate in in_time), default=None),
    )


class _Found(NamedTuple):
    """The rounds of one rate."""

    rate: Rate
    rounds: Sequence[Round]
    figures: Mapping[str, Figure]

    @classmethod
    def of(cls, rate: Rate, rounds: Sequence[Round], say: Say) -> _Found:
        samples = [one.figures() for one in rounds]
        figures = {name: figure(_unit(name), [sample[name] for sample in samples]) for name in samples[0]}
        seen = {name: one["median"] for name, one in figures.items()}
        say(
            f"{rate.events:,} + {rate.reads:,}: {seen['events_per_second']:,.0f} events/s, "
            f"{seen['reads_per_second']:,.0f} reads/s, answer changed after {seen['event_to_answer_p50_ms']:.1f} ms "
            f"(p50), {seen['event_to_answer_p99_ms']:.1f} ms (p99), archived after {seen['archive_lag_p99_ms']:,.0f} "
            f"ms, {seen['cores']:.2f} cores"
        )
        return cls(rate, rounds, figures)

    @property
    def p99_ms(self) -> float:
        return self.figures["event_to_answer_p99_ms"]["median"]

    @property
    def is_in_time(self) -> bool:
        """Whether every answer changed, nothing failed, and the 99th percentile keeps to the bar."""
        return self.p99_ms < MOST_P99_MS and not any(one.errors or one.unchanged for one in self.rounds)

    def told(self) -> dict[str, Any]:
        """For the report: medians over the rounds."""
        medians = {name: one["median"] for name, one in self.figures.items()}
        errors = sum(one.errors + one.unchanged for one in self.rounds)
        return {"rate": self.rate.events, "errors": errors, "is_in_time": self.is_in_time, **medians}


def _probes(rate: Rate, seconds: int) -> int:
    return int(seconds * rate.events / PROBE_EVERY) + 2


def _own_cpu_seconds() -> float:
    """Processor time of programs that this one started and that have ended: the generators' of a round."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _unit(name: str) -> str:
    units = {"ms": "ms", "us": "us", "cores": "cores"}
    return units.get(name.rpartition("_")[2], "1/s")


def _question(number: int) -> bytes:
    name = f"u{number * 7919 % READERS}"
    return http_request("/v1/recommendations", {"user_id": name, "session_id": f"s{name}", "num_results": 10})


def _events(run: str, count: int, *, per_second: float) -> Iterator[bytes]:
    """Each happens as long after the first as it is due: people whose deeds all have one time would be bots."""
    now = datetime.now(UTC)
    for number in range(count):
        moment = format_timestamp(now + timedelta(seconds=number / per_second))
        person = f"b{number * 7919 % BACKGROUND_PEOPLE}"
        yield http_request(
            "/v1/events",
            {
                "event_id": f"{run}-{number}", "event_type": "view_item", "user_id": person,
                "session_id": f"s{person}", "item_id": f"i{number * 104_729 % ITEMS}", "timestamp": moment,
            },
        )  # fmt: skip
