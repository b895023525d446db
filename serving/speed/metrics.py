"""What the consumer and the archiver measure, and the loopback port on which they show it.

Every process has a registry of its own. What it did since its start are counters and histograms; how far it is behind
is read from the stores when somebody asks, so that a waiting second process shows the same as the one at work.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter, time
from typing import Any

import redis
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import (
    EVENT_PARTITIONS,
    applied_key,
    archived_key,
    change_stream_key,
    dead_letter_stream_key,
    quarantine_stream_key,
    speed_counters_key,
    stream_key,
)
from serving.speed.positions import START, after, receipt_micros
from serving.speed.trend_tables import LEFT_OUT

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)


class RoleMetrics:
    """What every process with a role shows: does it have the role, does it get on, how often did it fail."""

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        prefix = f"nightjar_{service}"
        self.role_held = Gauge(f"{prefix}_role_held", "1 while this process has the role", registry=self.registry)
        self.takeovers = Counter(
            f"{prefix}_takeovers_total", "Times this process took up the role, also again", registry=self.registry
        )
        self.failures = Counter(
            f"{prefix}_failures_total", "Steps that failed and were tried again", registry=self.registry
        )
        self._last_step = Gauge(
            f"{prefix}_step_timestamp_seconds", "When the last step ended well, Unix time", registry=self.registry
        )

    def step_done(self) -> None:
        """A step ended well."""
        self._last_step.set(time())


class ConsumerMetrics(RoleMetrics):
    """Of one consumer process."""

    def __init__(self) -> None:
        super().__init__("consumer")
        self.partitions_owned = Gauge(
            "nightjar_consumer_partitions_owned", "Event partitions this process owns now", registry=self.registry
        )
        self.fenced = Counter(
            "nightjar_consumer_fenced_total",
            "Batches given up because a partition has another owner or another position by now",
            registry=self.registry,
        )
        self.batch_entries = Histogram(
            "nightjar_consumer_batch_entries",
            "Events applied at once",
            buckets=_SIZES,
            registry=self.registry,
        )
        self.apply_seconds = Histogram(
            "nightjar_consumer_apply_seconds",
            "Time to apply a batch, in seconds: reading records, writing them back",
            buckets=_SECONDS,
            registry=self.registry,
        )


class ArchiverMetrics(RoleMetrics):
    """Of one archiver process. Label `table`: one of `archiver.TABLES`, or silver.decisions."""

    def __init__(self) -> None:
        super().__init__("archiver")
        table = ["table"]
        self.rows = Counter(
            "nightjar_archiver_rows_total", "Rows committed since this process began", table, registry=self.registry
        )
        self.batch_rows = Histogram(
            "nightjar_archiver_batch_rows", "Rows in one commit", table, buckets=_SIZES, registry=self.registry
        )
        self.commit_seconds = Histogram(
            "nightjar_archiver_commit_seconds",
            "Time of one commit, in seconds, fsync included",
            table,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.fsync_seconds = Histogram(
            "nightjar_archiver_fsync_seconds",
            "Time until a commit was on disk, in seconds",
            table,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.decision_files = Gauge(
            "nightjar_archiver_decision_files", "Files of decisions not yet deleted", registry=self.registry
        )
        self.damaged_decision_bytes = Counter(
            "nightjar_archiver_damaged_decision_bytes_total",
            "Bytes of decision files that were cut short or damaged, and left out",
            registry=self.registry,
        )


class StreamPositions(Collector):
    """How far the effects of the streams are, read from the stores: lag in seconds by stream, lengths, outcomes.

    Lag is the age, by the log's own clock, of the oldest entry that is not done yet; 0 when there is none. While a
    store does not answer the numbers are left out and `nightjar_<service>_stores_up` is 0.
    """

    def __init__(self, service: str, log: redis.Redis, online: redis.Redis, *, tenant: str) -> None:
        self._service = service
        self._log = log
        self._online = online
        self._tenant = tenant

    @classmethod
    def from_environment(cls, service: str, environment: Environment) -> StreamPositions:
        """With connections of its own and a short patience: who asks for metrics waits two seconds at most, twice."""
        log, online = (
            redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
            for url in (environment.redis_log_url, environment.redis_online_url)
        )
        return cls(service, log, online, tenant=environment.tenant)

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(f"nightjar_{self._service}_stores_up", "1 while both Redis roles answer")
        found: list[Metric] = []
        with contextlib.suppress(RedisError):
            found = self._consumer() if self._service == "consumer" else self._archiver()
        up.add_metric([], float(bool(found)))
        yield up
        yield from found

    def _consumer(self) -> list[Metric]:
        tenant = self._tenant
        lag = GaugeMetricFamily(
            "nightjar_consumer_lag_seconds", "Age of the oldest entry not yet in a session record", labels=["partition"]
        )
        outcomes = CounterMetricFamily(
            "nightjar_consumer_entries", "Events by what became of them, exactly once", labels=["outcome"]
        )
        bots = CounterMetricFamily(
            "nightjar_consumer_bot_entries", "Of the applied entries: those of subjects that behave like bots"
        )
        left_out = CounterMetricFamily(
            "nightjar_consumer_region_votes_left_out",
            "Votes for regions beyond the first 64 of their bucket: they count for all regions together alone",
        )
        letters = GaugeMetricFamily("nightjar_consumer_dead_letters_kept", "Entries in the dead-letter stream")
        now = self._now_micros()
        for partition in range(EVENT_PARTITIONS):
            position: Any = self._online.get(applied_key(partition, tenant))
            lag.add_metric([str(partition)], self._age(stream_key(partition, tenant), position, now))
        counters: Mapping[bytes, bytes] = self._online.hgetall(speed_counters_key(tenant))  # type: ignore[assignment]
        bots.add_metric([], int(counters.get(b"bot", 0)))
        left_out.add_metric([], int(counters.get(LEFT_OUT.encode(), 0)))
        for outcome in sorted({b"applied", b"dead_lettered", b"duplicate", *counters} - {b"bot", LEFT_OUT.encode()}):
            outcomes.add_metric([outcome.decode()], int(counters.get(outcome, 0)))
        letters.add_metric([], self._length(dead_letter_stream_key(tenant)))
        return [lag, outcomes, bots, left_out, letters]

    def _archiver(self) -> list[Metric]:
        lag = GaugeMetricFamily(
            "nightjar_archiver_lag_seconds", "Age of the oldest entry not yet in Delta", labels=["stream"]
        )
        length = GaugeMetricFamily(
            "nightjar_archiver_stream_entries", "Entries a stream still holds: not applied or not archived",
            labels=["stream"],
        )  # fmt: skip
        now = self._now_micros()
        for name, stream in _streams(self._tenant):
            position: Any = self._log.get(archived_key(stream))
            lag.add_metric([name], self._age(stream, position, now))
            length.add_metric([name], self._length(stream))
        return [lag, length]

    def _now_micros(self) -> int:
        seconds, micros = self._log.time()  # type: ignore[misc]
        return int(seconds) * 1_000_000 + int(micros)

    def _age(self, stream: str, position: bytes | None, now_micros: int) -> float:
        oldest: Any = self._log.xrange(stream, min=after(position.decode() if position else START), count=1)
        if not oldest:
            return 0.0
        return max(0.0, (now_micros - receipt_micros(oldest[0][0].decode())) / 1e6)

    def _length(self, stream: str) -> int:
        return int(self._log.xlen(stream))  # type: ignore[arg-type]


def _streams(tenant: str) -> Sequence[tuple[str, str]]:
    """(name in labels, key)"""
    events = [(f"events-{p}", stream_key(p, tenant)) for p in range(EVENT_PARTITIONS)]
    return [*events, ("quarantine", quarantine_stream_key(tenant)), ("changes", change_stream_key(tenant))]


@contextmanager
def timed(observe: Callable[[float], None]) -> Iterator[None]:
    """Hand the seconds that the block took to `observe`, unless it failed."""
    began = perf_counter()
    yield
    observe(perf_counter() - began)


def metrics_port() -> tuple[str, int]:
    """--metrics-host (default 127.0.0.1) and --metrics-port (default 0: no port) of this process's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--metrics-host", default="127.0.0.1", help="address of /metrics (default: 127.0.0.1)")
    parser.add_argument("--metrics-port", type=int, default=0, help="port of /metrics; 0: none (default: 0)")
    arguments = parser.parse_args(sys.argv[1:])
    return arguments.metrics_host, arguments.metrics_port


def show_metrics(registry: CollectorRegistry, host: str, port: int) -> None:
    """Serve /metrics in a thread of its own; nothing for port 0. Raises DependencyError when the port is taken."""
    if port == 0:
        return
    try:
        start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise DependencyError(
            f"cannot show metrics on {host}:{port}: {error.strerror}; choose another --metrics-port"
        ) from error
