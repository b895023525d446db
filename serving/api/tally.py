"""Counting many requests at once: metrics of one turn of the event loop are written together."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import Histogram

from serving.observability import EVENTS, REQUEST_BUCKETS, REQUEST_SECONDS, REQUESTS


class RequestTally:
    """Answers 200 of one route, of one event loop, written at the beginning of its next turn."""

    def __init__(self, route: str, timer: Callable[[], int]) -> None:
        self._route = route
        self._timer = timer
        self._requests = REQUESTS.labels(route, "200")
        self._seconds: list[float] = []

    def count(self, started: int) -> None:
        """A request that began at `started` (of `timer`) is answered now."""
        if not self._seconds:
            asyncio.get_running_loop().call_soon(self._write)
        self._seconds.append((self._timer() - started) / 1e9)

    def count_failure(self, started: int, status: int) -> None:
        """A request that ended otherwise."""
        REQUESTS.labels(self._route, str(status)).inc()
        REQUEST_SECONDS.labels(self._route).observe((self._timer() - started) / 1e9)

    def _write(self) -> None:
        seconds, self._seconds = self._seconds, []
        observe_all(seconds, self._route)
        self._requests.inc(len(seconds))


class EventTally:
    """Requests of one route, of one event loop.

    `count` is called for each request of a group within one turn of the loop, before any of them is answered; what it
    gathered is written by `write`, or at the beginning of the next turn. Who answers in the same turn calls `write`
    first. So whoever has seen an answer finds it in /metrics.
    """

    def __init__(self, route: str, timer: Callable[[], int]) -> None:
        self._route = route
        self._timer = timer
        self._requests = REQUESTS.labels(route, "202")
        self._accepted, self._duplicate = EVENTS.labels("accepted"), EVENTS.labels("duplicate")
        self._started: list[int] = []
        self._events = self._new_events = 0

    def count(self, started: int, is_new: Sequence[bool]) -> None:
        """A request that began at `started` (of `timer`) became durable: which of its events are new."""
        if not self._started:
            asyncio.get_running_loop().call_soon(self.write)
        self._started.append(started)
        self._events += len(is_new)
        self._new_events += sum(is_new)

    def count_failure(self, started: int, status: int) -> None:
        """A request that ended otherwise."""
        REQUESTS.labels(self._route, str(status)).inc()
        REQUEST_SECONDS.labels(self._route).observe((self._timer() - started) / 1e9)

    def write(self) -> None:
        """Write down what was counted; nothing when that was done."""
        if not self._started:
            return
        now = self._timer()
        started, self._started = self._started, []
        observe_all([(now - at) / 1e9 for at in started], self._route)
        self._requests.inc(len(started))
        if self._new_events:
            self._accepted.inc(self._new_events)
        if self._events > self._new_events:
            self._duplicate.inc(self._events - self._new_events)
        self._events = self._new_events = 0


_histograms: dict[str, Histogram] = {}
"""What `labels` returned for a route: it takes a lock and a tuple each time."""
_bucket_of = partial(bisect_left, REQUEST_BUCKETS)


def observe_all(seconds: Sequence[float], route: str) -> None:
    """What `observe` of each would do. The library has no such call: this writes the buckets that `observe` writes."""
    histogram = _histograms.get(route)
    if histogram is None:
        histogram = _histograms[route] = REQUEST_SECONDS.labels(route)
    found = Counter(map(_bucket_of, seconds))
    histogram._sum.inc(sum(seconds))
    for bucket, count in found.items():
        histogram._buckets[bucket].inc(count)
