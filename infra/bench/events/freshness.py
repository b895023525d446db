"""`nightjar bench freshness`: how soon an acknowledged event changes its person's next answer, under load.

Redis `log` and `online`, an API with two workers, the consumer and the archiver, as an installation has them. Events
and questions come at fixed rates from the compiled generator; among them are people who look when their answer knows
of what they did (`probes`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from feature_repo.contracts import environment as names
from feature_repo.contracts.times import format_timestamp
from infra.bench.disk import judge_disk
from infra.bench.events.archive_lag import ArchiveLag, measure_archive_lag
from infra.bench.events.probes import Probes, Probing
from infra.bench.report import figure, make_report
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


class Round(NamedTuple):
    """What one round saw."""

    probes: Probes
    events: Sent
    reads: Sent
    cpu_seconds: Mapping[str, float]
    """Processor time by program."""
    archive: ArchiveLag

    @property
    def errors(self) -> int:
        """Requests without a 2xx."""
        return self.probes.errors + self.events.errors + self.reads.errors

    def figures(self) -> dict[str, float]:
        """By name: milliseconds, answers a second, and microseconds of a program's processor time per event, of the
        API's per request."""
        events = max(self.events.ok_due.count, 1)
        requests = {"api": events + self.reads.ok_due.count}
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
        }


def bench_freshness(
    home: Path,
    variables: Mapping[str, str],
    *,
    rounds: int,
    seconds: int,
    events_per_second: int,
    reads_per_second: int,
    say: Say,
) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report.

    Figures, one sample a round: `event_to_answer_p99_ms` and `event_to_answer_p50_ms` (acknowledgement to changed
    answer), `sent_to_answer_p99_ms`, `event_p99_ms`, `read_p99_ms` (from the intended send), `generator_lag_p99_ms`,
    `events_per_second` and `reads_per_second` (answered in time), `archive_lag_p99_ms` (receipt to the commit that has
    the event); processor time: `api_cpu_us` (a request), `consumer_cpu_us` and `archiver_cpu_us` (an event). Further
    keys: probes, unchanged, not_archived, errors, missed_bars, generator_priority, wanted_events_per_second,
    wanted_reads_per_second, fsync_median_ms, filesystem, void. Raises DependencyError without a C compiler.
    """
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    disk = judge_disk(home)
    per_second = events_per_second / PROBE_EVERY
    probes = int(seconds * per_second) + 2
    background = events_per_second - per_second
    people = READERS + (rounds + 1) * probes
    with SmallInstallation(home, variables, people=people) as installation:
        sender = Sender(home)
        api, port = installation.start_api(workers=2)
        programs = {
            "api": api.children(),
            "consumer": [installation.start(CONSUMER)],
            "archiver": [installation.start(ARCHIVER)],
        }
        reads = write_requests(home / "reads", (_question(number) for number in range(READERS)))
        found: list[Round] = []
        for number in range(rounds + 1):
            run = f"{time.time_ns():x}"
            count = int(seconds * background) + CONNECTIONS
            events = write_requests(home / "events", _events(run, count, per_second=background))
            before = {name: cpu_seconds(processes) for name, processes in programs.items()}
            sending = [
                sender.start(port, path, rate=rate, seconds=seconds, connections=CONNECTIONS)
                for path, rate in ((events, background), (reads, reads_per_second))
            ]
            probing = Probing(
                port, seconds=seconds, per_second=per_second, first_person=READERS + number * probes, run=run
            )
            probed, sent, read = probing.wait(), sending[0].wait(), sending[1].wait()
            used = {name: cpu_seconds(some) - before[name] for name, some in programs.items()}
            archived = measure_archive_lag(installation.environment.lakehouse, f"{run}-", sent.ok_due.count)
            one = Round(probed, sent, read, used, archived)
            if number == 0:
                continue  # warm-up
            found.append(one)
            seen = one.figures()
            say(
                f"round {number}: {seen['events_per_second']:,.0f} events/s, {seen['reads_per_second']:,.0f} reads/s, "
                f"answer changed after {seen['event_to_answer_p50_ms']:.1f} ms (p50), "
                f"{seen['event_to_answer_p99_ms']:.1f} ms (p99), archived after {seen['archive_lag_p99_ms']:,.0f} ms"
            )
    shutil.rmtree(home, ignore_errors=True)
    samples = [one.figures() for one in found]
    figures = {name: figure(_unit(name), [sample[name] for sample in samples]) for name in samples[0]}
    is_late = figures["event_to_answer_p99_ms"]["median"] >= MOST_P99_MS
    return make_report(
        "bench freshness",
        figures,
        str(variables.get(names.CODE_VERSION, "")),
        **disk,
        probes=sum(one.probes.probes for one in found),
        unchanged=sum(one.probes.probes - one.probes.changed for one in found),
        not_archived=sum(max(0, one.events.ok_due.count - one.archive.events) for one in found),
        errors=sum(one.errors for one in found),
        generator_priority=found[0].reads.priority,
        missed_bars=["event_to_answer_p99_ms"] if is_late else [],
        wanted_events_per_second=events_per_second,
        wanted_reads_per_second=reads_per_second,
    )


def _unit(name: str) -> str:
    return "ms" if name.endswith("_ms") else "us" if name.endswith("_us") else "1/s"


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
