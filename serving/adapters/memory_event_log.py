"""The event log's twin in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import dedup_key, partition_of, stream_key
from serving.adapters.event_log import (
    CoroutineWaiter,
    LogEntry,
    OnDurable,
    OverloadedError,
    QuarantinedEvent,
    Waiter,
)


class MemoryEventLog:
    """Lists instead of streams. `is_down` makes every call raise; `is_full` leaves no room."""

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
        waiter = CoroutineWaiter(on_durable)
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
