"""Sources that are read every few seconds, and the metrics they gave last.

A scrape never waits for a store: it gets what the last refresh found. A source that could not be read shows nothing
and says so in `nightjar_exporter_source_up`, so that an old number is never taken for a new one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import perf_counter, time

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from feature_repo.contracts.errors import DependencyError

logger = logging.getLogger("nightjar.exporter")

Source = Callable[[], Iterable[Metric]]


class Snapshot(Collector):
    """The last answer of each source. `clock` is Unix time in seconds."""

    def __init__(self, sources: Mapping[str, Source], clock: Callable[[], float] = time) -> None:
        self._sources = sources
        self._clock = clock
        self._found: dict[str, list[Metric]] = {}
        self._seconds: dict[str, float] = {}
        self._refreshed_at: float | None = None

    def refresh(self) -> None:
        """Read every source once."""
        for name, source in self._sources.items():
            began = perf_counter()
            try:
                self._found[name] = list(source())
            except Exception as error:  # whatever is wrong with one source must not hide the others
                self._found.pop(name, None)
                expected = isinstance(error, DependencyError)
                logger.warning("%s: %s: %s", name, type(error).__name__, error, exc_info=None if expected else error)
            self._seconds[name] = perf_counter() - began
        self._refreshed_at = self._clock()

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "nightjar_exporter_source_up", "1 when the last refresh could read the source", labels=["source"]
        )
        seconds = GaugeMetricFamily(
            "nightjar_exporter_refresh_seconds", "Time of the last refresh, in seconds", labels=["source"]
        )
        refreshed = GaugeMetricFamily(
            "nightjar_exporter_refresh_timestamp_seconds", "When all sources were last read, Unix time"
        )
        for name in self._sources:
            if name in self._seconds:
                up.add_metric([name], float(name in self._found))
                seconds.add_metric([name], self._seconds[name])
        if self._refreshed_at is not None:
            refreshed.add_metric([], self._refreshed_at)
        yield from (up, seconds, refreshed)
        for found in list(self._found.values()):
            yield from found
