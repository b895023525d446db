"""The event log: an event is durable before anybody is told so.

This is the port, and what is written through it. `redis_event_log` is the real one, `memory_event_log` its twin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from feature_repo.contracts.errors import DependencyError

OnDurable = Callable[[Sequence[bool]], None]
"""Called with what `append` will return, in the turn of the event loop before any request of the group goes on."""


class Waiter(Protocol):
    """Somebody who waits for the log without a coroutine of their own."""

    def on_durable(self, is_new: Sequence[bool]) -> None:
        """An `OnDurable`."""

    def on_answer(self, is_new: Sequence[bool], error: DependencyError | None) -> None:
        """What `append` would return, or raise. Once, after `on_durable` of all of the group."""


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


class CoroutineWaiter:
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
