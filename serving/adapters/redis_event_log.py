"""The event log in Redis role `log`. It runs with `appendfsync always`: its reply means that the entries are on disk.

Group commit: what all requests of one turn of the event loop want written goes out as one write, with one MULTI per
partition, and meets one fsync. While writes are under way the next group gathers, and where requests keep coming it
does so for a moment after each write (`gathering`), so groups grow with the load. What waits or is under way is
bounded: beyond that a request is refused at once, and nothing of it was written.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import hiredis
from redis.exceptions import RedisError

from feature_repo.contracts.errors import DependencyError
from serving.adapters.event_log import (
    CoroutineWaiter,
    LogEntry,
    OnDurable,
    OverloadedError,
    QuarantinedEvent,
    Waiter,
)
from serving.adapters.gathering import PAUSE_SECONDS, Gathering
from serving.adapters.log_writes import GroupPacker, WriteRequest, Written
from serving.adapters.redis_pipe import RedisPipe, Replies, open_pipe

logger = logging.getLogger("nightjar.serving")

MAX_GROUP_EVENTS = 4_000
"""Events of one write; a single request may exceed it."""
MAX_WRITES_UNDER_WAY = 2
"""One that Redis is syncing and one that it can read meanwhile."""


class RedisEventLog:
    """Redis role `log`, over one shared connection. Belongs to the event loop that first uses it."""

    def __init__(
        self,
        url: str,
        *,
        tenant: str,
        timeout_seconds: float,
        max_queued_events: int = 20_000,
        max_queued_bytes: int = 33_554_432,
    ) -> None:
        """`timeout_seconds`: longest wait for the confirmation of one write, and for a connection.

        `max_queued_events`, `max_queued_bytes`: bound of what waits or is under way.
        """
        self._url = url
        self._packer = GroupPacker(tenant)
        self._timeout = timeout_seconds
        self._max_events = max_queued_events
        self._max_bytes = max_queued_bytes
        self._queued_events = 0
        self._queued_bytes = 0
        self._waiting: deque[WriteRequest] = deque()
        self._waiting_events = 0
        self._gathering = Gathering()
        self._pausing: asyncio.TimerHandle | None = None
        self._writers: set[asyncio.Future[Any]] = set()
        self._is_scheduled = False
        self._pipe: RedisPipe | None = None
        self._opening: asyncio.Task[RedisPipe] | None = None

    @property
    def has_room(self) -> bool:
        return self._queued_events < self._max_events and self._queued_bytes < self._max_bytes

    def require_room(self) -> None:
        if not self.has_room:
            raise OverloadedError(f"no room for more events: {self._full()}")

    async def append(
        self,
        entries: Sequence[LogEntry],
        quarantined: Sequence[QuarantinedEvent] = (),
        *,
        on_durable: OnDurable | None = None,
    ) -> list[bool]:
        event_count = len(entries) + len(quarantined)
        if not event_count:
            return []
        waiter = CoroutineWaiter(on_durable)
        byte_count = sum([len(e.event) for e in entries]) + sum([len(q.raw) for q in quarantined])
        self._wait_for(WriteRequest(entries, quarantined, event_count, byte_count, waiter, [False] * len(entries)))
        return list(await waiter.done)

    def submit(self, entries: Sequence[LogEntry], waiter: Waiter) -> None:
        known: int | None = getattr(entries, "byte_count", None)  # native code has added it up
        byte_count = sum([len(e.event) for e in entries]) if known is None else known
        self._wait_for(WriteRequest(entries, (), len(entries), byte_count, waiter, [False] * len(entries)))

    async def append_changes(self, changes: Sequence[bytes]) -> list[str]:
        if not changes:
            return []
        waiter = CoroutineWaiter()
        positions: list[str] = []
        byte_count = sum(map(len, changes))
        self._wait_for(WriteRequest((), (), len(changes), byte_count, waiter, [], changes=changes, positions=positions))
        await waiter.done
        return positions

    def _wait_for(self, request: WriteRequest) -> None:
        """Put a request in the queue. Raises OverloadedError when there is no room."""
        event_count, byte_count = request.event_count, request.byte_count
        has_room = (
            self._queued_events + event_count <= self._max_events and self._queued_bytes + byte_count <= self._max_bytes
        )
        if self._queued_events and not has_room:
            raise OverloadedError(f"no room for {event_count} events of {byte_count} bytes: {self._full()}")
        self._queued_events += event_count
        self._queued_bytes += byte_count
        self._waiting.append(request)
        self._waiting_events += event_count
        goes_on = self._gathering.come(self._waiting_events)
        if not self._is_scheduled:
            self._schedule()
        elif self._pausing is not None and not goes_on:
            self._pausing.cancel()
            self._pausing = None
            asyncio.get_running_loop().call_soon(self._start_write)

    def _full(self) -> str:
        return (
            f"{self._queued_events} events ({self._queued_bytes} bytes) wait for the event log, at most "
            f"{self._max_events} events and {self._max_bytes} bytes may"
        )

    def _schedule(self) -> None:
        """Write at the end of this turn of the loop, so that every request of the turn is in the group, or after a
        pause."""
        if not self._is_scheduled and self._waiting and len(self._writers) < MAX_WRITES_UNDER_WAY:
            self._is_scheduled = True
            loop = asyncio.get_running_loop()
            left = self._gathering.left(self._waiting_events)
            if left > 0:
                self._gathering.wait()
                self._pausing = loop.call_later(left, self._start_write)
            else:
                loop.call_soon(self._start_write)

    def _start_write(self) -> None:
        self._is_scheduled, self._pausing = False, None
        group: list[WriteRequest] = []
        count = 0
        while self._waiting and (not group or count + self._waiting[0].event_count <= MAX_GROUP_EVENTS):
            group.append(self._waiting.popleft())
            count += group[-1].event_count
        self._waiting_events -= count
        if group:
            self._gathering.write()
            if self._pipe is not None and self._pipe.is_open:
                self._send(self._pipe, group)  # in this turn: every turn more is one batch of requests to wait for
            else:
                self._watch(asyncio.get_running_loop().create_task(self._connect(group)), self._on_written)
        self._schedule()

    def _watch(self, writer: asyncio.Future[Any], done: Callable[[asyncio.Future[Any]], None]) -> None:
        self._writers.add(writer)
        writer.add_done_callback(done)

    def _on_written(self, writer: asyncio.Future[Any]) -> None:
        self._writers.discard(writer)
        self._schedule()

    async def _connect(self, group: Sequence[WriteRequest]) -> None:
        """Write a group as soon as there is a connection, or answer each of its requests that there is none."""
        try:
            pipe = await self._connected()
        except TimeoutError:
            self._give_up(None, group, self._too_late())
        except (OSError, RedisError, hiredis.HiredisError) as error:
            self._give_up(None, group, f"{type(error).__name__}: {error}")
        except asyncio.CancelledError:
            self._give_up(None, group, "it was stopped")
            raise
        except Exception as error:
            logger.exception("a write of %d requests failed", len(group))
            self._give_up(None, group, type(error).__name__)
        else:
            self._send(pipe, group)

    def _send(self, pipe: RedisPipe, group: Sequence[WriteRequest]) -> None:
        """Write a group; each of its requests will be answered, whatever happens."""
        try:
            written = self._packer.pack(group)
        except Exception as error:
            logger.exception("a write of %d requests failed", len(group))
            self._give_up(pipe, group, type(error).__name__)
            return
        replies = pipe.send(written.payload, written.reply_count)
        late = asyncio.get_running_loop().call_later(self._timeout, pipe.close, self._too_late())
        self._watch(replies, partial(self._on_replies, pipe, group, written, late))

    def _on_replies(
        self,
        pipe: RedisPipe,
        group: Sequence[WriteRequest],
        written: Written,
        late: asyncio.TimerHandle,
        done: asyncio.Future[Replies],
    ) -> None:
        late.cancel()
        error = done.exception()
        if error is not None:
            self._give_up(pipe, group, f"{type(error).__name__}: {error}")
        else:
            written.settle(done.result())
            self._writers.discard(done)
            if self._pausing is None and self._waiting and self._gathering.left(self._waiting_events) <= 0:
                self._start_write()  # Redis works on the next group while this one is answered
            self._answer(group)
        self._on_written(done)

    def _too_late(self) -> str:
        return f"no confirmation within {self._timeout * 1000:.0f} ms"

    def _answer(self, group: Sequence[WriteRequest]) -> None:
        """Tell all of a group that it is durable, and then each what became of it."""
        for request in group:
            self._queued_events -= request.event_count
            self._queued_bytes -= request.byte_count
            if request.error is None:
                request.waiter.on_durable(request.is_new)
        for request in group:
            try:
                request.waiter.on_answer(request.is_new, request.error)
            except Exception:  # one who waited must not keep the others waiting
                logger.exception("an answer of the event log was not taken")

    def _give_up(self, pipe: RedisPipe | None, group: Sequence[WriteRequest], why: str) -> None:
        """Nobody knows what of the group was written: end its connection, so that no late reply meets another group.

        What waits behind it was not written and has waited long enough: it is refused too.
        """
        if pipe is not None:
            pipe.close(why)
        refused = [*group, *self._waiting]
        self._waiting.clear()
        self._waiting_events = 0
        for request in refused:
            request.error = DependencyError(f"the event log does not answer: {why}")
        self._answer(refused)

    async def _connected(self) -> RedisPipe:
        """The shared connection. Raises TimeoutError, OSError or hiredis.ReplyError when there is none to be had."""
        if self._pipe is None or not self._pipe.is_open:
            if self._opening is None or self._opening.done():
                opening = asyncio.wait_for(open_pipe(self._url), self._timeout)
                self._opening = asyncio.get_running_loop().create_task(opening)
            self._pipe = await asyncio.shield(self._opening)
        return self._pipe

    async def close(self) -> None:
        while self._writers or self._waiting:
            if self._writers:
                await asyncio.wait(list(self._writers))
            else:
                await asyncio.sleep(PAUSE_SECONDS)
        if self._pipe is not None:
            self._pipe.close()
