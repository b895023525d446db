"""The event log: an event is durable before anybody is told so.

    MULTI  SET dedup:<event_id> <nonce> NX EX 86400   XADD <stream> event, nonce  ...  EXEC

for all events of one partition at once. Redis role `log` runs with `appendfsync always`, so its reply means that the
entries are on disk. A delivery is a duplicate iff its SET returned nil; its entry is in the stream all the same, with a
nonce that is not the mark's, and the consumer leaves it out. A crash between write and answer makes a retry a
duplicate, never a loss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import dedup_key, partition_of, quarantine_stream_key, stream_key

DEDUP_SECONDS = 86_400


class LogEntry(NamedTuple):
    """One checked event: its subject (which picks the partition), its id, its mark and its JSON."""

    subject: str
    event_id: str
    nonce: str
    event: bytes


class QuarantinedEvent(NamedTuple):
    """One rejected event: its bytes, the stable reason, the field that broke the rule ("" for none), words."""

    raw: bytes
    reason: str
    field: str
    detail: str


class EventLog(Protocol):
    """Raises DependencyError when the log does not confirm in time; then nothing, a part or all of it was written."""

    async def append(self, entries: Sequence[LogEntry], quarantined: Sequence[QuarantinedEvent] = ()) -> list[bool]:
        """Make all of it durable. For each entry, in order: True when it was new, False when a duplicate."""

    async def close(self) -> None:
        """Give the connections back."""


class RedisEventLog:
    """Redis role `log`."""

    def __init__(self, url: str, *, tenant: str, timeout_seconds: float, max_connections: int) -> None:
        self._tenant = tenant
        self._timeout = timeout_seconds
        self._redis = redis.asyncio.Redis(
            connection_pool=redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=max_connections,
                timeout=timeout_seconds,
                socket_timeout=timeout_seconds,
                socket_connect_timeout=timeout_seconds,
                # Never repeated by itself: a second XADD of a delivery that did arrive would be an entry too many.
                retry=Retry(NoBackoff(), 0),
            )
        )

    async def append(self, entries: Sequence[LogEntry], quarantined: Sequence[QuarantinedEvent] = ()) -> list[bool]:
        by_partition: dict[int, list[int]] = {}
        for index, entry in enumerate(entries):
            by_partition.setdefault(partition_of(entry.subject), []).append(index)
        writes = [
            self._append_partition(partition, [entries[i] for i in indices])
            for partition, indices in by_partition.items()
        ]
        if quarantined:
            writes.append(self._append_quarantine(quarantined))
        try:
            async with asyncio.timeout(2 * self._timeout):
                answers = await asyncio.gather(*writes)
        except (RedisError, OSError, TimeoutError) as error:
            raise DependencyError(f"the event log does not answer: {type(error).__name__}") from error
        is_new = [False] * len(entries)
        for indices, answer in zip(by_partition.values(), answers, strict=False):
            for index, new in zip(indices, answer, strict=True):
                is_new[index] = new
        return is_new

    async def _append_partition(self, partition: int, entries: Sequence[LogEntry]) -> list[bool]:
        stream = stream_key(partition, self._tenant)
        pipe = self._redis.pipeline(transaction=True)
        for entry in entries:
            pipe.set(dedup_key(partition, entry.event_id, self._tenant), entry.nonce, nx=True, ex=DEDUP_SECONDS)
            pipe.xadd(stream, {"event": entry.event, "nonce": entry.nonce})
        return [bool(mark) for mark in (await pipe.execute())[::2]]

    async def _append_quarantine(self, quarantined: Sequence[QuarantinedEvent]) -> list[bool]:
        pipe = self._redis.pipeline(transaction=True)
        for event in quarantined:
            pipe.xadd(
                quarantine_stream_key(self._tenant),
                {"raw": event.raw, "reason": event.reason, "field": event.field, "detail": event.detail},
            )
        await pipe.execute()
        return []

    async def close(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()


class MemoryEventLog:
    """The twin: lists instead of streams. `is_down` makes every call raise."""

    def __init__(self, *, tenant: str) -> None:
        self._tenant = tenant
        self.marks: dict[str, str] = {}
        self.streams: dict[str, list[tuple[bytes, str]]] = {}
        self.quarantined: list[QuarantinedEvent] = []
        self.is_down = False

    async def append(self, entries: Sequence[LogEntry], quarantined: Sequence[QuarantinedEvent] = ()) -> list[bool]:
        if self.is_down:
            raise DependencyError("the event log does not answer: it is set to be down")
        is_new = []
        for entry in entries:
            partition = partition_of(entry.subject)
            mark = dedup_key(partition, entry.event_id, self._tenant)
            is_new.append(mark not in self.marks)
            self.marks.setdefault(mark, entry.nonce)
            self.streams.setdefault(stream_key(partition, self._tenant), []).append((entry.event, entry.nonce))
        self.quarantined += quarantined
        return is_new

    async def close(self) -> None:
        """Nothing to give back."""
