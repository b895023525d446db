"""What the serving processes count. In a multi-worker server the numbers are summed over workers when read.

prometheus_client decides at import whether it counts in memory or in files (PROMETHEUS_MULTIPROC_DIR), so that variable
has to be set before this module is imported; `serving.__main__` does.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY, Collector
from prometheus_client.values import ValueClass

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

REQUESTS = Counter("nightjar_requests_total", "Answered HTTP requests", ["route", "status"])
REQUEST_SECONDS = Histogram("nightjar_request_seconds", "Time to answer", ["route"], buckets=_BUCKETS)
SLATES = Counter("nightjar_slates_total", "Slates by the rung that gave them", ["fallback_level"])
DEGRADED = Counter("nightjar_degraded_total", "Degraded answers by reason", ["reason"])
SECOND_READS = Counter("nightjar_second_reads_total", "Requests that read twice because the pointer had moved")
REFUSED_RECORDS = Counter("nightjar_refused_records_total", "Records that could not be used", ["why"])
EVENTS = Counter("nightjar_events_total", "Events received, by answer", ["status"])
QUARANTINED = Counter("nightjar_events_quarantined_total", "Quarantined events by reason", ["reason"])
NOT_STORED = Counter("nightjar_events_not_stored_total", "Events counted only: their person said no to storing")


class SpeedCounters(Collector):
    """What the stream consumer counted (it keeps its numbers in the online store)."""

    def __init__(self, counters: Mapping[str, int]) -> None:
        self._counters = counters

    def collect(self) -> list[CounterMetricFamily]:
        family = CounterMetricFamily(
            "nightjar_consumer_entries", "Stream entries by what became of them", labels=["outcome"]
        )
        for name, count in sorted(self._counters.items()):
            family.add_metric([name], count)
        return [family]


def render_metrics(consumer: Mapping[str, int]) -> bytes:
    """The Prometheus text of all workers and of the consumer."""
    if ValueClass._multiprocess:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    else:
        registry = REGISTRY
    extra = CollectorRegistry()
    extra.register(SpeedCounters(consumer))
    return generate_latest(registry) + generate_latest(extra)
