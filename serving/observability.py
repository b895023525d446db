"""What the serving processes count. In a multi-worker server the numbers are summed over workers when read.

prometheus_client decides at import whether it counts in memory or in files (PROMETHEUS_MULTIPROC_DIR), so that variable
has to be set before this module is imported; `serving.__main__` does. The files of a worker that ended stay until the
server is started anew, so no counter ever falls while it runs.

Labels take their values from fixed lists (routes, status codes, rungs, reasons), never from what a client sends.
"""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY
from prometheus_client.values import ValueClass

REQUEST_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

REQUESTS = Counter("nightjar_api_requests_total", "Answered HTTP requests", ["route", "status"])
REQUEST_SECONDS = Histogram(
    "nightjar_api_request_seconds", "Time to answer, in seconds", ["route"], buckets=REQUEST_BUCKETS
)
SLATES = Counter("nightjar_api_slates_total", "Slates by the rung that gave them", ["fallback_level"])
DEGRADED = Counter("nightjar_api_degraded_total", "Degraded answers by reason", ["reason"])
RANKINGS = Counter(
    "nightjar_api_rankings_total",
    "Answers of placements with a ranker, by what it did: ranked, or why the order is the first stage's",
    ["outcome"],
)
SECOND_READS = Counter("nightjar_api_second_reads_total", "Requests that read twice because the pointer had moved")
IDENTITY_READS = Counter("nightjar_api_identity_reads_total", "Further reads because a person's devices were not known")
STALE_FEATURES = Counter(
    "nightjar_api_stale_features_total", "Features too far behind the served version to be used, by view", ["view"]
)
FEATURE_ROWS = Counter(
    "nightjar_api_feature_rows_total",
    "Rows of features that rankers asked for, by where they were: kept or store",
    ["where"],
)
KEPT_ROWS_DROPPED = Counter(
    "nightjar_api_kept_rows_dropped_total",
    "Kept rows of features that were dropped: changed in the store, full, or lost with the connection or a flush",
    ["why"],
)
TRACKING_LOSSES = Counter(
    "nightjar_api_tracking_losses_total",
    "Times that kept rows of features were given up: the connection ended, the store was flushed or tells nothing",
    ["why"],
)
REFUSED_RECORDS = Counter("nightjar_api_refused_records_total", "Records that could not be used", ["why"])
EVENTS = Counter("nightjar_api_events_total", "Events received, by answer", ["status"])
QUARANTINED = Counter("nightjar_api_events_quarantined_total", "Quarantined events by reason", ["reason"])
NOT_STORED = Counter("nightjar_api_events_not_stored_total", "Events counted only: their person said no to storing")
CATALOGUE_CHANGES = Counter(
    "nightjar_api_catalogue_changes_total", "Changes of items and users received, by answer", ["kind", "status"]
)
DECISIONS = Counter(
    "nightjar_api_decisions_total", "Decisions by what became of them: logged (on disk) or lost", ["outcome"]
)
DECISION_FLUSH_SECONDS = Histogram(
    "nightjar_api_decision_flush_seconds",
    "Time of one write and fsync of decisions, in seconds",
    buckets=REQUEST_BUCKETS,
)
DECISION_FAILURES = Counter("nightjar_api_decision_failures_total", "Writes of decisions that the disk refused")
ADMISSION_REFUSALS = Counter(
    "nightjar_api_admission_refusals_total", "Requests refused because too many were under way, by whose", ["kind"]
)
CIRCUIT_OPENINGS = Counter(
    "nightjar_api_circuit_openings_total", "Times that reads of the online store were given up until it answers again"
)
WORKER_STARTS = Counter("nightjar_api_worker_starts_total", "Worker processes started since the server was")


class _Soon:
    """What was counted in this turn of the event loop and is not written yet."""

    def __init__(self) -> None:
        self.counted: dict[tuple[Counter, str], int] = {}
        self.children: dict[tuple[Counter, str], Counter] = {}
        """What `labels` returned: it takes a lock and a tuple each time. Labels come from fixed lists."""
        self.loop: asyncio.AbstractEventLoop | None = None

    def write(self) -> None:
        counted, self.counted = self.counted, {}
        for key, count in counted.items():
            child = self.children.get(key)
            if child is None:
                child = self.children[key] = key[0].labels(key[1])
            child.inc(count)


_soon = _Soon()


def count_soon(counter: Counter, label: str, times: int = 1) -> None:
    """`counter.labels(label).inc(times)`, written at the beginning of the loop's next turn together with all others.

    For the thread of an event loop; without one running it is written at once.
    """
    key = (counter, label)
    if key in _soon.counted and _soon.loop is not None and not _soon.loop.is_closed():
        _soon.counted[key] += times
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        counter.labels(label).inc(times)
        return
    if not _soon.counted or _soon.loop is not loop:
        loop.call_soon(_soon.write)
        _soon.loop = loop
    _soon.counted[key] = _soon.counted.get(key, 0) + times


def render_metrics() -> bytes:
    """The Prometheus text of all workers of this server."""
    _soon.write()
    if ValueClass._multiprocess:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    else:
        registry = REGISTRY
    return generate_latest(registry)
