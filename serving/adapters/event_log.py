"""The event log: an event is durable before anybody is told so.

    MULTI  SET dedup:<event_id> <nonce> NX EX 86400  ...  XADD <stream> events, nonces  ...  EXEC

Redis role `log` runs with `appendfsync always`, so its reply means that the entries are on disk. A delivery is a
duplicate iff its SET returned nil; its entry is in the stream all the same, with a nonce that is not the mark's, and
the consumer leaves it out. A crash between write and answer makes a retry a duplicate, never a loss. Events that are
written together share an entry (`contracts.stream_entry`): an XADD of each would cost as much again as its mark.

Group commit: what all requests of one turn of the event loop want written goes out as one write, with one MULTI per
partition, and meets one fsync. While writes are under way the next group gathers, so groups grow with the load. What
waits or is under way is bounded: beyond that a request is refused at once, and nothing of it was written.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import hiredis
from redis.exceptions import RedisError

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import (
    EVENT_PARTITIONS,
    change_stream_key,
    dedup_key,
    more_events_key,
    partition_of,
    quarantine_stream_key,
    quoted,
    stream_key,
)
from feature_repo.contracts.stream_entry import MAX_ENTRY_EVENTS, join_lines
from serving.adapters.redis_pipe import RedisPipe, Replies, open_pipe, pack

logger = logging.getLogger("nightjar.serving")

Value = TypeVar("Value")
OnDurable = Callable[[Sequence[bool]], None]
"""Called with what `append` will return, in the turn of the event loop before any request of the group goes on."""


class Waiter(Protocol):
    """Somebody who waits for the log without a coroutine of their own."""

    def on_durable(self, is_new: Sequence[bool]) -> None:
        """An `OnDurable`."""

    def on_answer(self, is_new: Sequence[bool], error: DependencyError | None) -> None:
        """What `append` would return, or raise. Once, after `on_durable` of all of the group."""


DEDUP_SECONDS = 86_400
MAX_MULTI_EVENTS = 500
"""Events of one MULTI: Redis serves nobody else while it carries one out, about 5 us an event."""
MAX_GROUP_EVENTS = 4_000
"""Events of one write; a single request may exceed it."""
MAX_WRITES_UNDER_WAY = 2
"""One that Redis is syncing and one that it can read meanwhile."""


class LogEntry(NamedTuple):
    """One checked event: its subject (which picks the partition), its id, its mark, its JSON, and whether it may share
    a stream entry with others (not one with `items`)."""

    subject: str
    event_id: str
    nonce: str
    event: bytes
    may_share: bool = False


class QuarantinedEvent(NamedTuple):
    """One rejected event: its bytes, the stable reason, the field that broke the rule ("" for none), words."""

    raw: bytes
    reason: str
    field: str
    detail: str


class OverloadedError(DependencyError):
    """More waits to be written than this process may hold. Nothing of the request was written."""


class EventLog(Protocol):
    """Raises DependencyError when the log does not confirm in time; then nothing, a part or all of it was written."""

    @property
    def has_room(self) -> bool:
        """Whether the queue is not full."""

    def require_room(self) -> None:
        """Raises OverloadedError when the queue is full: a request can be refused before its body is even read."""

    async def append(
        self,
        entries: Sequence[LogEntry],
        quarantined: Sequence[QuarantinedEvent] = (),
        *,
        on_durable: OnDurable | None = None,
    ) -> list[bool]:
        """Make all of it durable. For each entry, in order: True when it was new, False when a duplicate.

        Raises OverloadedError at once when there is no room. A request that finds the queue empty always has room.
        """

    def submit(self, entries: Sequence[LogEntry], waiter: Waiter) -> None:
        """`append` of one event or more, for a `Waiter`. OverloadedError is raised now."""

    async def append_changes(self, changes: Sequence[bytes]) -> list[str]:
        """Make changes of items and users (`changes.Change` as JSON) durable; the position of each. Raises as `append`.

        Changes of one item or user keep their order, also over several requests.
        """

    async def close(self) -> None:
        """Give the connections back."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """One request: what it wants written, and who waits for it."""

    entries: Sequence[LogEntry]
    quarantined: Sequence[QuarantinedEvent]
    event_count: int
    byte_count: int
    waiter: Waiter
    is_new: list[bool]
    error: DependencyError | None = None
    changes: Sequence[bytes] = ()
    positions: list[str] | None = None
    """Of the changes."""


class _Coroutine:
    """A `Waiter` for a coroutine, which awaits `done`; it may have been cancelled meanwhile."""

    def __init__(self, on_durable: OnDurable | None = None) -> None:
        self.done: asyncio.Future[Sequence[bool]] = asyncio.get_running_loop().create_future()
        self._on_durable = on_durable

    def on_durable(self, is_new: Sequence[bool]) -> None:
        if self._on_durable is not None and not self.done.done():
            self._on_durable(is_new)

    def on_answer(self, is_new: Sequence[bool], error: DependencyError | None) -> None:
        if self.done.done():
            return  # its client has gone
        if error is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(is_new)


@dataclass(slots=True)
class _Multi:
    """One MULTI: packed commands and whose they are.

    `marks` has (request, place of the event in it) for each of the SETs, which come first; empty for the quarantine.
    """

    commands: list[bytes] = field(default_factory=list)
    requests: list[_Waiting] = field(default_factory=list)
    marks: Sequence[tuple[_Waiting, int]] = ()
    holds_changes: bool = False

    @property
    def reply_count(self) -> int:
        return len(self.commands) + 2


_MULTI, _EXEC = pack("MULTI"), pack("EXEC")
_SET = (b"*6\r\n$3\r\nSET\r\n$%%d\r\n%%b\r\n$%%d\r\n%%b\r\n$2\r\nNX\r\n$2\r\nEX\r\n$%d\r\n%d\r\n") % (
    len(str(DEDUP_SECONDS)),
    DEDUP_SECONDS,
)
"""As `pack` would write it: mark and nonce, each with its length."""
_XADD = b"*7\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n$5\r\nevent\r\n$%d\r\n%b\r\n$5\r\nnonce\r\n$%d\r\n%b\r\n"
_XADD_SEVERAL = (
    b"*7\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n$6\r\nevents\r\n$%d\r\n%b\r\n$6\r\nnonces\r\n$%d\r\n%b\r\n"
)
"""As `pack` would write them: stream, event(s), nonce(s), each with its length."""


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
        self._tenant = tenant
        self._timeout = timeout_seconds
        self._max_events = max_queued_events
        self._max_bytes = max_queued_bytes
        self._queued_events = 0
        self._queued_bytes = 0
        self._waiting: deque[_Waiting] = deque()
        self._writers: set[asyncio.Future[Any]] = set()
        self._is_scheduled = False
        self._pipe: RedisPipe | None = None
        self._opening: asyncio.Task[RedisPipe] | None = None
        self._streams = [stream_key(partition, tenant).encode() for partition in range(EVENT_PARTITIONS)]
        self._more = [more_events_key(stream_key(partition, tenant)) for partition in range(EVENT_PARTITIONS)]
        self._marks = [dedup_key(partition, "", tenant).encode() for partition in range(EVENT_PARTITIONS)]

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
        waiter = _Coroutine(on_durable)
        byte_count = sum([len(e.event) for e in entries]) + sum([len(q.raw) for q in quarantined])
        self._wait_for(_Waiting(entries, quarantined, event_count, byte_count, waiter, [False] * len(entries)))
        return list(await waiter.done)

    def submit(self, entries: Sequence[LogEntry], waiter: Waiter) -> None:
        byte_count = len(entries[0].event) if len(entries) == 1 else sum([len(e.event) for e in entries])
        self._wait_for(_Waiting(entries, (), len(entries), byte_count, waiter, [False] * len(entries)))

    async def append_changes(self, changes: Sequence[bytes]) -> list[str]:
        if not changes:
            return []
        waiter = _Coroutine()
        positions: list[str] = []
        byte_count = sum(map(len, changes))
        self._wait_for(_Waiting((), (), len(changes), byte_count, waiter, [], changes=changes, positions=positions))
        await waiter.done
        return positions

    def _wait_for(self, request: _Waiting) -> None:
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
        self._schedule()

    def _full(self) -> str:
        return (
            f"{self._queued_events} events ({self._queued_bytes} bytes) wait for the event log, at most "
            f"{self._max_events} events and {self._max_bytes} bytes may"
        )

    def _schedule(self) -> None:
        """Write at the end of this turn of the loop, so that every request of the turn is in the group."""
        if not self._is_scheduled and self._waiting and len(self._writers) < MAX_WRITES_UNDER_WAY:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._start_write)

    def _start_write(self) -> None:
        self._is_scheduled = False
        group: list[_Waiting] = []
        count = 0
        while self._waiting and (not group or count + self._waiting[0].event_count <= MAX_GROUP_EVENTS):
            group.append(self._waiting.popleft())
            count += group[-1].event_count
        if group:
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

    async def _connect(self, group: Sequence[_Waiting]) -> None:
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

    def _send(self, pipe: RedisPipe, group: Sequence[_Waiting]) -> None:
        """Write a group; each of its requests will be answered, whatever happens."""
        try:
            multis = self._pack(group)
            payload = b"".join([_MULTI + b"".join(multi.commands) + _EXEC for multi in multis])
        except Exception as error:
            logger.exception("a write of %d requests failed", len(group))
            self._give_up(pipe, group, type(error).__name__)
            return
        replies = pipe.send(payload, sum([multi.reply_count for multi in multis]))
        late = asyncio.get_running_loop().call_later(self._timeout, pipe.close, self._too_late())
        self._watch(replies, partial(self._on_replies, pipe, group, multis, late))

    def _on_replies(
        self,
        pipe: RedisPipe,
        group: Sequence[_Waiting],
        multis: Sequence[_Multi],
        late: asyncio.TimerHandle,
        done: asyncio.Future[Replies],
    ) -> None:
        late.cancel()
        error = done.exception()
        if error is not None:
            self._give_up(pipe, group, f"{type(error).__name__}: {error}")
        else:
            replies, at = done.result(), 0
            for multi in multis:
                _settle(multi, replies[at : at + multi.reply_count])
                at += multi.reply_count
            self._writers.discard(done)
            self._start_write()  # Redis works on the next group while this one is answered
            self._answer(group)
        self._on_written(done)

    def _too_late(self) -> str:
        return f"no confirmation within {self._timeout * 1000:.0f} ms"

    def _answer(self, group: Sequence[_Waiting]) -> None:
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

    def _give_up(self, pipe: RedisPipe | None, group: Sequence[_Waiting], why: str) -> None:
        """Nobody knows what of the group was written: end its connection, so that no late reply meets another group.

        What waits behind it was not written and has waited long enough: it is refused too.
        """
        if pipe is not None:
            pipe.close(why)
        refused = [*group, *self._waiting]
        self._waiting.clear()
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

    def _pack(self, group: Sequence[_Waiting]) -> list[_Multi]:
        """The group as MULTIs, each of one slot and at most MAX_MULTI_EVENTS events; entries keep their order."""
        by_partition: list[list[tuple[_Waiting, int]]] = [[] for _ in range(EVENT_PARTITIONS)]
        rejected: list[tuple[_Waiting, QuarantinedEvent]] = []
        for request in group:
            for index, entry in enumerate(request.entries):
                by_partition[partition_of(entry.subject)].append((request, index))
            if request.quarantined:
                rejected += [(request, event) for event in request.quarantined]
        multis = [
            self._pack_events(partition, some)
            for partition, events in enumerate(by_partition)
            for some in _chunks(events, MAX_MULTI_EVENTS)
        ]
        quarantine = quarantine_stream_key(self._tenant)
        for some_rejected in _chunks(rejected, MAX_MULTI_EVENTS):
            multi = _Multi()
            for request, event in some_rejected:
                multi.requests.append(request)
                fields = (
                    "raw",
                    event.raw,
                    "reason",
                    event.reason,
                    "field",
                    event.field,
                    "detail",
                    event.detail.encode("utf-8", "replace"),
                )
                multi.commands.append(pack("XADD", quarantine, "*", *fields))
            multis.append(multi)
        changes = [(request, change) for request in group for change in request.changes]
        for some_changes in _chunks(changes, MAX_MULTI_EVENTS):
            multi = _Multi(holds_changes=True)
            for request, change in some_changes:
                multi.requests.append(request)
                multi.commands.append(pack("XADD", change_stream_key(self._tenant), "*", "change", change))
            multis.append(multi)
        return multis

    def _pack_events(self, partition: int, some: Sequence[tuple[_Waiting, int]]) -> _Multi:
        """The marks of all, then their entries in the same order."""
        stream, marks = self._streams[partition], self._marks[partition]
        size = len(stream)
        multi = _Multi(requests=[request for request, _ in some], marks=some)
        commands = multi.commands
        events: list[tuple[bytes, bytes, bool]] = []
        for request, index in some:
            _, event_id, nonce_text, event, may_share = request.entries[index]
            mark = marks + quoted(event_id).encode()
            nonce = nonce_text.encode()
            commands.append(_SET % (len(mark), mark, len(nonce), nonce))
            events.append((event, nonce, may_share))
        more = 0
        for run in _runs(events):
            if len(run) > 1:
                together, nonces = join_lines([one[0] for one in run]), join_lines([one[1] for one in run])
                if together is not None and nonces is not None:
                    commands.append(_XADD_SEVERAL % (size, stream, len(together), together, len(nonces), nonces))
                    more += len(run) - 1
                    continue
            for event, nonce, _ in run:
                commands.append(_XADD % (size, stream, len(event), event, len(nonce), nonce))
        if more:
            commands.append(pack("INCRBY", self._more[partition], more))
        return multi

    async def close(self) -> None:
        while self._writers:
            await asyncio.wait(list(self._writers))
        if self._pipe is not None:
            self._pipe.close()


def _settle(multi: _Multi, replies: Replies) -> None:
    """What Redis said about one MULTI: +OK, one +QUEUED for each command, then the results or an error."""
    results = replies[-1]
    said = [*replies, *results] if isinstance(results, list) else replies
    if results is None or hiredis.ReplyError in set(map(type, said)):
        refused = [reply for reply in said if isinstance(reply, hiredis.ReplyError)]
        words = str(refused[0]) if refused else "the transaction was discarded"
        for request in multi.requests:
            request.error = DependencyError(f"the event log cannot take more: {words}")
        return
    for (request, index), result in zip(multi.marks, results, strict=False):
        request.is_new[index] = result is not None
    if multi.holds_changes:
        for request, position in zip(multi.requests, results, strict=True):
            assert request.positions is not None
            request.positions.append(position.decode())


def _runs(events: Sequence[tuple[bytes, bytes, bool]]) -> Iterator[Sequence[tuple[bytes, bytes, bool]]]:
    """Those that share a stream entry: neighbours that may. Each is (event, nonce, may_share)."""
    start = 0
    for at, (_, _, may_share) in enumerate(events):
        if at > start and not (may_share and events[start][2] and at - start < MAX_ENTRY_EVENTS):
            yield events[start:at]
            start = at
    if events:
        yield events[start:]


def _chunks(values: Sequence[Value], size: int) -> Iterator[Sequence[Value]]:
    return (values[at : at + size] for at in range(0, len(values), size))


class MemoryEventLog:
    """The twin: lists instead of streams. `is_down` makes every call raise; `is_full` leaves no room."""

    def __init__(self, *, tenant: str) -> None:
        self._tenant = tenant
        self.marks: dict[str, str] = {}
        self.streams: dict[str, list[tuple[bytes, str]]] = {}
        self.quarantined: list[QuarantinedEvent] = []
        self.changes: list[tuple[str, bytes]] = []
        """(position, change): the change stream."""
        self.change_count = 0
        """Changes ever taken; the last position."""
        self.is_down = False
        self.is_full = False

    @property
    def has_room(self) -> bool:
        return not self.is_full

    def require_room(self) -> None:
        if self.is_full:
            raise OverloadedError("no room for more events: it is set to be full")

    async def append(
        self,
        entries: Sequence[LogEntry],
        quarantined: Sequence[QuarantinedEvent] = (),
        *,
        on_durable: OnDurable | None = None,
    ) -> list[bool]:
        waiter = _Coroutine(on_durable)
        self._submit(entries, quarantined, waiter)
        return list(await waiter.done)

    def submit(self, entries: Sequence[LogEntry], waiter: Waiter) -> None:
        self._submit(entries, (), waiter)

    def _submit(self, entries: Sequence[LogEntry], quarantined: Sequence[QuarantinedEvent], waiter: Waiter) -> None:
        self.require_room()
        asyncio.get_running_loop().call_soon(self._write, entries, quarantined, waiter)

    def _write(self, entries: Sequence[LogEntry], quarantined: Sequence[QuarantinedEvent], waiter: Waiter) -> None:
        loop = asyncio.get_running_loop()
        if self.is_down:
            error = DependencyError("the event log does not answer: it is set to be down")
            loop.call_soon(waiter.on_answer, [], error)
            return
        is_new = []
        for entry in entries:
            partition = partition_of(entry.subject)
            mark = dedup_key(partition, entry.event_id, self._tenant)
            is_new.append(mark not in self.marks)
            self.marks.setdefault(mark, entry.nonce)
            self.streams.setdefault(stream_key(partition, self._tenant), []).append((entry.event, entry.nonce))
        self.quarantined += quarantined
        waiter.on_durable(is_new)
        loop.call_soon(waiter.on_answer, is_new, None)

    async def append_changes(self, changes: Sequence[bytes]) -> list[str]:
        self.require_room()
        if self.is_down:
            raise DependencyError("the event log does not answer: it is set to be down")
        positions = [f"{self.change_count + number}-0" for number in range(1, len(changes) + 1)]
        self.change_count += len(changes)
        self.changes += zip(positions, changes, strict=True)
        return positions

    async def close(self) -> None:
        """Nothing to give back."""
