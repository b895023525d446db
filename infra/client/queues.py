"""Events that are sent in the background, many at a time.

`put` never waits. The queue is bounded; what it cannot take, or cannot send, it drops, and says so: in its statistics,
to the callback, and in the log of the logger `nightjar.client`. Always, once closed:
put = sent + quarantined + dropped.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from infra.client.clients import AsyncNightjarClient, NightjarClient
from infra.client.errors import ClientError, RefusedError, UnavailableError
from infra.client.events import with_id
from infra.client.retries import RetryPolicy
from infra.client.values import EventResult

logger = logging.getLogger("nightjar.client")

Event = Mapping[str, Any]
OnDropped = Callable[[Sequence[Event], str], None]
OnResults = Callable[[Sequence[EventResult]], None]

_WRONG_EVENTS = frozenset({400, 413, 415, 422})
"""These speak of the body: the batch is dropped. Other refusals (401, 403, 404) speak of the address or of what stands
before it; they can be mended, so the events wait."""


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """Counts of events since the queue was made. `sent`: accepted or duplicate; `waiting`: none of the others yet."""

    put: int = 0
    sent: int = 0
    quarantined: int = 0
    dropped: int = 0
    waiting: int = 0


class _Turn(NamedTuple):
    """What the sender does next: send `batch`, or wait for so many seconds (None: until something is put)."""

    batch: list[dict[str, Any]]
    wait: float | None = None


class _Backlog:
    """The queue's state and rules, without threads or tasks: the caller holds its lock, or is alone."""

    def __init__(
        self,
        max_batch: int,
        max_delay_seconds: float,
        max_waiting: int,
        on_dropped: OnDropped | None,
        on_results: OnResults | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """As the parameters of `EventQueue`. Raises ValueError for limits that make no sense."""
        if max_batch < 1 or max_waiting < max_batch or max_delay_seconds < 0:
            raise ValueError(f"expected 1 <= max_batch <= max_waiting, got {max_batch} and {max_waiting}")
        self._max_batch, self._max_delay, self._max_waiting = max_batch, max_delay_seconds, max_waiting
        self._on_dropped, self._on_results, self._clock = on_dropped, on_results, clock
        self._waiting: deque[tuple[float, dict[str, Any]]] = deque()
        self._not_before = 0.0
        self._failures = 0
        self.limit = max_batch
        self.is_hurried = False
        self.is_closed = False
        self.counts = QueueStatistics()

    def add(self, event: Event) -> tuple[str, list[dict[str, Any]]]:
        """(the event's id, what is dropped for want of room). Raises ValueError or TypeError for what is no JSON."""
        ready = with_id(event)
        json.dumps(ready, allow_nan=False)  # in a batch it would take its neighbours along
        self.counts = replace(self.counts, put=self.counts.put + 1)
        if self.is_closed or len(self._waiting) >= self._max_waiting:
            return ready["event_id"], [ready]
        self._waiting.append((self._clock(), ready))
        return ready["event_id"], []

    def next_turn(self) -> _Turn:
        now = self._clock()
        if not self._waiting:
            return _Turn([])
        due = self._waiting[0][0] + self._max_delay
        if self.is_hurried or len(self._waiting) >= self._max_batch:
            due = now
        due = max(due, self._not_before)
        if due > now:
            return _Turn([], due - now)
        return _Turn([event for _, event in list(self._waiting)[: self.limit]])

    def settle(self, batch: Sequence[Event], outcome: Sequence[EventResult] | ClientError, policy: RetryPolicy) -> str:
        """Note what became of a batch. Returns why it is dropped, or an empty text."""
        if isinstance(outcome, RefusedError) and outcome.status == 413 and len(batch) > 1:
            self.limit = len(batch) // 2
            return ""
        is_refused = isinstance(outcome, RefusedError) and outcome.status in _WRONG_EVENTS
        if isinstance(outcome, UnavailableError | RefusedError) and not is_refused:
            self._failures += 1
            if self._failures == 1:
                logger.warning("cannot send now, %d event(s) wait: %s", len(self._waiting), outcome)
            asked = outcome.retry_after if isinstance(outcome, UnavailableError) else None
            self._not_before = self._clock() + (asked or 0.0) + policy.jitter(self._failures)
            return ""
        for _ in batch:
            self._waiting.popleft()
        self.limit, self._failures = self._max_batch, 0
        if isinstance(outcome, ClientError):
            return str(outcome)
        taken = sum(result.is_taken for result in outcome)
        self.counts = replace(
            self.counts,
            sent=self.counts.sent + taken,
            quarantined=self.counts.quarantined + len(outcome) - taken,
        )
        return ""

    def give_up(self) -> list[dict[str, Any]]:
        """Everything that waits, taken out."""
        left = [event for _, event in self._waiting]
        self._waiting.clear()
        return left

    def statistics(self) -> QueueStatistics:
        return replace(self.counts, waiting=len(self._waiting))

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    def report_dropped(self, events: Sequence[Event], why: str) -> None:
        """Tell; called without the lock."""
        if events:
            logger.warning("dropped %d event(s): %s", len(events), why)
            if self._on_dropped:
                _call(self._on_dropped, events, why)

    def report_results(self, results: Sequence[EventResult]) -> None:
        """Tell; called without the lock."""
        refused = [result for result in results if not result.is_taken]
        if refused:
            first = refused[0]
            logger.warning("%d event(s) quarantined, the first %s: %s", len(refused), first.event_id, first.detail)
        if self._on_results:
            _call(self._on_results, results)

    def count_dropped(self, events: Sequence[Event]) -> None:
        self.counts = replace(self.counts, dropped=self.counts.dropped + len(events))


def _call(callback: Callable[..., None], *arguments: Any) -> None:
    """A callback that fails must not end the sender."""
    try:
        callback(*arguments)
    except Exception:
        logger.exception("a callback of the event queue failed")


_NO_ROOM = "the queue is full or closed"
_ONE_TRY = RetryPolicy(attempts=1)
"""The queue itself tries again: so a close can end it between two attempts."""


class EventQueue:
    """Events in the background of a program with threads. Use it with `with`, or call `close`; else the end of the
    program does. After a fork make a new one: threads do not fork."""

    def __init__(
        self,
        client: NightjarClient,
        *,
        max_batch: int = 100,
        max_delay_seconds: float = 1.0,
        max_waiting: int = 10_000,
        on_dropped: OnDropped | None = None,
        on_results: OnResults | None = None,
        policy: RetryPolicy | None = None,
        close_seconds: float = 10.0,
    ) -> None:
        """
        max_batch          events in a request at most; as many are sent at once
        max_delay_seconds  fewer are sent when the oldest has waited so long
        max_waiting        events that wait or are under way at most; what is put beyond that is dropped
        on_dropped         is given what is dropped and why
        on_results         is given what became of the events of each request
        policy             its waits between attempts count, not their number: the queue tries until it is closed
        close_seconds      how long the end of `with` or of the program waits for what is left
        """
        self._client = client
        self._policy = policy or RetryPolicy()
        self._close_seconds = close_seconds
        self._backlog = _Backlog(max_batch, max_delay_seconds, max_waiting, on_dropped, on_results)
        self._changed = threading.Condition()
        self._is_sending = False
        self._is_ending = False
        self._thread = threading.Thread(target=self._send_all, name="nightjar-events", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, event: Event) -> str:
        """Take an event; its id. It never waits: an event for which there is no room is dropped, and reported.

        Raises ValueError or TypeError for an event that is no JSON.
        """
        with self._changed:
            event_id, dropped = self._backlog.add(event)
            self._backlog.count_dropped(dropped)
            self._changed.notify_all()
        self._backlog.report_dropped(dropped, _NO_ROOM)
        return event_id

    def flush(self, timeout_seconds: float | None = None) -> bool:
        """Send what waits without waiting for more; whether all of it was settled in time."""
        with self._changed:
            self._backlog.is_hurried = True
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: self._backlog.is_empty, timeout_seconds)
            finally:
                self._backlog.is_hurried = False

    def close(self, timeout_seconds: float | None = None) -> QueueStatistics:
        """Send what waits, for at most so long (default: `close_seconds`); drop, and report, what is left then."""
        with self._changed:
            self._backlog.is_closed = True
        self.flush(self._close_seconds if timeout_seconds is None else timeout_seconds)
        with self._changed:
            left = self._backlog.give_up()
            self._backlog.count_dropped(left)
            self._is_ending = True
            self._changed.notify_all()
        self._backlog.report_dropped(left, "not sent before the queue was closed")
        atexit.unregister(self.close)
        return self.statistics()

    def statistics(self) -> QueueStatistics:
        """What became of everything so far."""
        with self._changed:
            return self._backlog.statistics()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send_all(self) -> None:
        while True:
            with self._changed:
                turn = self._backlog.next_turn()
                while not turn.batch and not self._is_ending:
                    self._changed.wait(turn.wait)
                    turn = self._backlog.next_turn()
                if self._is_ending:
                    return
            outcome = self._attempt(turn.batch)
            with self._changed:
                if self._is_ending:  # counted as dropped: nobody waits for it any more
                    return
                why = self._backlog.settle(turn.batch, outcome, self._policy)
                if why:
                    self._backlog.count_dropped(turn.batch)
                self._changed.notify_all()
            self._backlog.report_dropped(turn.batch if why else [], why)
            if not isinstance(outcome, ClientError):
                self._backlog.report_results(outcome)

    def _attempt(self, batch: Iterable[Event]) -> Sequence[EventResult] | ClientError:
        try:
            return self._client.send(batch, policy=_ONE_TRY)
        except ClientError as error:
            return error
        except Exception as error:  # an event that is no JSON, a closed client: the batch goes, the sender stays
            return ClientError(f"{type(error).__name__}: {error}")


class AsyncEventQueue:
    """The same for asyncio. Use it with `async with`, or call `aclose`."""

    def __init__(
        self,
        client: AsyncNightjarClient,
        *,
        max_batch: int = 100,
        max_delay_seconds: float = 1.0,
        max_waiting: int = 10_000,
        on_dropped: OnDropped | None = None,
        on_results: OnResults | None = None,
        policy: RetryPolicy | None = None,
        close_seconds: float = 10.0,
    ) -> None:
        """As `EventQueue`; made inside of a running event loop."""
        self._client = client
        self._policy = policy or RetryPolicy()
        self._close_seconds = close_seconds
        self._backlog = _Backlog(max_batch, max_delay_seconds, max_waiting, on_dropped, on_results)
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._send_all(), name="nightjar-events")

    def put(self, event: Event) -> str:
        """As `EventQueue.put`."""
        event_id, dropped = self._backlog.add(event)
        self._backlog.count_dropped(dropped)
        self._backlog.report_dropped(dropped, _NO_ROOM)
        self._wake.set()
        return event_id

    async def flush(self, timeout_seconds: float | None = None) -> bool:
        """As `EventQueue.flush`."""
        self._backlog.is_hurried = True
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self._backlog.is_empty:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            return False
        finally:
            self._backlog.is_hurried = False
        return True

    async def aclose(self, timeout_seconds: float | None = None) -> QueueStatistics:
        """As `EventQueue.close`."""
        self._backlog.is_closed = True
        await self.flush(self._close_seconds if timeout_seconds is None else timeout_seconds)
        self._task.cancel()
        await asyncio.wait([self._task])
        left = self._backlog.give_up()
        self._backlog.count_dropped(left)
        self._backlog.report_dropped(left, "not sent before the queue was closed")
        return self.statistics()

    def statistics(self) -> QueueStatistics:
        """As `EventQueue.statistics`."""
        return self._backlog.statistics()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send_all(self) -> None:
        while True:
            turn = self._backlog.next_turn()
            if not turn.batch:
                self._wake.clear()
                try:
                    async with asyncio.timeout(turn.wait):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                continue
            outcome = await self._attempt(turn.batch)
            why = self._backlog.settle(turn.batch, outcome, self._policy)
            if why:
                self._backlog.count_dropped(turn.batch)
            self._settled.set()
            self._backlog.report_dropped(turn.batch if why else [], why)
            if not isinstance(outcome, ClientError):
                self._backlog.report_results(outcome)

    async def _attempt(self, batch: Iterable[Event]) -> Sequence[EventResult] | ClientError:
        try:
            return await self._client.send(batch, policy=_ONE_TRY)
        except ClientError as error:
            return error
        except Exception as error:
            return ClientError(f"{type(error).__name__}: {error}")
