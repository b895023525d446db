"""How a group of requests is written: as MULTIs, each of one slot.

    MULTI  SET dedup:<event_id> <nonce> NX EX 86400  ...  XADD <stream> events, nonces  ...  EXEC

A delivery is a duplicate iff its SET returned nil; its entry is in the stream all the same, with a nonce that is not
the mark's, and the consumer leaves it out. A crash between write and answer makes a retry a duplicate, never a loss.
Events that are written together share an entry (`contracts.stream_entry`): an XADD of each would cost as much again as
its mark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import hiredis

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
from serving.adapters.event_log import LogEntry, QuarantinedEvent, Waiter
from serving.adapters.redis_pipe import Replies, pack
from serving.native import parts

Value = TypeVar("Value")

DEDUP_SECONDS = 86_400
MAX_MULTI_EVENTS = 500
"""Events of one MULTI: Redis serves nobody else while it carries one out, about 5 us an event."""


@dataclass(slots=True, eq=False)
class WriteRequest:
    """What one request wants written, and who waits for it."""

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


@dataclass(slots=True)
class Multi:
    """One MULTI: packed commands and whose they are.

    `marks` has (request, place of the event in it) for each of the SETs, which come first; empty for the quarantine.
    """

    commands: list[bytes] = field(default_factory=list)
    requests: list[WriteRequest] = field(default_factory=list)
    marks: Sequence[tuple[WriteRequest, int]] = ()
    holds_changes: bool = False

    @property
    def reply_count(self) -> int:
        return len(self.commands) + 2

    def packed(self) -> bytes:
        return _MULTI + b"".join(self.commands) + _EXEC


class Written(Protocol):
    """A group as bytes, and what is to be done with the replies."""

    @property
    def payload(self) -> bytes: ...

    @property
    def reply_count(self) -> int: ...

    def settle(self, replies: Replies) -> None:
        """Say to each request of the group what became of it: which of its events are new, or its `error`."""


_MULTI, _EXEC = pack("MULTI"), pack("EXEC")
_SET_HEAD = b"*6\r\n$3\r\nSET\r\n$"
_SET_TAIL = b"\r\n$2\r\nNX\r\n$2\r\nEX\r\n$%d\r\n%d\r\n" % (len(str(DEDUP_SECONDS)), DEDUP_SECONDS)
_SET = _SET_HEAD + b"%d\r\n%b\r\n$%d\r\n%b" + _SET_TAIL
"""As `pack` would write it: mark and nonce, each with its length."""
_XADD = b"*7\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n$5\r\nevent\r\n$%d\r\n%b\r\n$5\r\nnonce\r\n$%d\r\n%b\r\n"
_XADD_SEVERAL = (
    b"*7\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n$6\r\nevents\r\n$%d\r\n%b\r\n$6\r\nnonces\r\n$%d\r\n%b\r\n"
)
"""As `pack` would write them: stream, event(s), nonce(s), each with its length."""


def _add_to(key: bytes) -> bytes:
    """INCRBY as `pack` would write it, but for the number."""
    return b"*3\r\n$6\r\nINCRBY\r\n$%d\r\n%b\r\n" % (len(key), key)


class GroupPacker:
    """Packs the requests of one tenant."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._streams = [stream_key(partition, tenant).encode() for partition in range(EVENT_PARTITIONS)]
        self._more = [_add_to(more_events_key(stream_key(p, tenant)).encode()) for p in range(EVENT_PARTITIONS)]
        self._marks = [dedup_key(partition, "", tenant).encode() for partition in range(EVENT_PARTITIONS)]
        self._native = None
        if parts.groups is not None:
            self._native = parts.groups.GroupWriter(
                self._streams, self._more, self._marks, _MULTI, _EXEC, _SET_HEAD, _SET_TAIL
            )

    def pack(self, group: Sequence[WriteRequest]) -> Written:
        """The group as it is written. Entries keep their order."""
        packed: Written | None = None
        if self._native is not None:
            packed = self._native.pack(group, MAX_MULTI_EVENTS, MAX_ENTRY_EVENTS)
        return PackedGroup(self.multis(group)) if packed is None else packed

    def multis(self, group: Sequence[WriteRequest]) -> list[Multi]:
        """The group as MULTIs, each of one slot and at most MAX_MULTI_EVENTS events; entries keep their order."""
        by_partition: list[list[tuple[WriteRequest, int]]] = [[] for _ in range(EVENT_PARTITIONS)]
        has_others = False
        for request in group:
            for index, entry in enumerate(request.entries):
                by_partition[partition_of(entry.subject)].append((request, index))
            if request.quarantined or request.changes:
                has_others = True
        multis = [
            self._pack_events(partition, some)
            for partition, events in enumerate(by_partition)
            if events
            for some in _chunks(events, MAX_MULTI_EVENTS)
        ]
        return [*multis, *self._pack_others(group)] if has_others else multis

    def _pack_others(self, group: Sequence[WriteRequest]) -> list[Multi]:
        """What was quarantined, and changes."""
        rejected = [(request, event) for request in group for event in request.quarantined]
        multis = []
        quarantine = quarantine_stream_key(self._tenant)
        for some_rejected in _chunks(rejected, MAX_MULTI_EVENTS):
            multi = Multi()
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
            multi = Multi(holds_changes=True)
            for request, change in some_changes:
                multi.requests.append(request)
                multi.commands.append(pack("XADD", change_stream_key(self._tenant), "*", "change", change))
            multis.append(multi)
        return multis

    def _pack_events(self, partition: int, some: Sequence[tuple[WriteRequest, int]]) -> Multi:
        """The marks of all, then their entries in the same order."""
        stream, marks = self._streams[partition], self._marks[partition]
        size = len(stream)
        multi = Multi(requests=[request for request, _ in some], marks=some)
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
            commands.append(b"%b$%d\r\n%d\r\n" % (self._more[partition], len(str(more)), more))
        return multi


class PackedGroup:
    """A group of any requests."""

    def __init__(self, multis: Sequence[Multi]) -> None:
        self._multis = multis
        self.payload = b"".join([multi.packed() for multi in multis])
        self.reply_count = sum([multi.reply_count for multi in multis])

    def settle(self, replies: Replies) -> None:
        at = 0
        for multi in self._multis:
            settle(multi, replies[at : at + multi.reply_count])
            at += multi.reply_count


def refusal_of(replies: Replies) -> DependencyError | None:
    """Why a MULTI with these replies was not carried out; None when it was."""
    results = replies[-1]
    said = [*replies, *results] if isinstance(results, list) else replies
    if results is not None and hiredis.ReplyError not in set(map(type, said)):
        return None
    refused = [reply for reply in said if isinstance(reply, hiredis.ReplyError)]
    words = str(refused[0]) if refused else "the transaction was discarded"
    return DependencyError(f"the event log cannot take more: {words}")


def settle(multi: Multi, replies: Replies) -> None:
    """What Redis said about one MULTI: +OK, one +QUEUED for each command, then the results or an error."""
    results, refusal = replies[-1], refusal_of(replies)
    if refusal is not None:
        for request in multi.requests:
            request.error = refusal
        return
    for (request, index), result in zip(multi.marks, results, strict=False):
        request.is_new[index] = result is not None
    if multi.holds_changes:
        for request, position in zip(multi.requests, results, strict=True):
            assert request.positions is not None
            request.positions.append(position.decode())


def _runs(events: Sequence[tuple[bytes, bytes, bool]]) -> Iterator[Sequence[tuple[bytes, bytes, bool]]]:
    """Those that share a stream entry: neighbours that may. Each is (event, nonce, may_share)."""
    if 0 < len(events) <= MAX_ENTRY_EVENTS and all(may_share for _, _, may_share in events):
        yield events
        return
    start = 0
    for at, (_, _, may_share) in enumerate(events):
        if at > start and not (may_share and events[start][2] and at - start < MAX_ENTRY_EVENTS):
            yield events[start:at]
            start = at
    if events:
        yield events[start:]


def _chunks(values: Sequence[Value], size: int) -> Iterator[Sequence[Value]]:
    return (values[at : at + size] for at in range(0, len(values), size))
