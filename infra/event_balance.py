"""Do the numbers of the event path add up? Counted from the streams, the counters beside them, and the bronze tables.

    received  = accepted + duplicate + quarantined     what was kept; counted by the log itself
    accepted  = applied + dead-lettered + waiting      the consumer's counters, moved in one MULTI with its position
    logged    = archived + waiting                     rows of bronze against entries, for each stream

Exact: the log counts every entry that a stream ever got (Redis 7 and Valkey) and, beside it, how many more events than
one these held; the consumer counts in the transaction that has the effects, and a table's rows are counted up to the
position that the archiver has confirmed. Numbers hold since the log was created; the consumer's since the store
`online` was. Events of people who do not allow storing are in none of these: the API counts them, since it started.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc
import redis
from deltalake.exceptions import DeltaError
from redis.exceptions import RedisError, ResponseError

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import (
    EVENT_PARTITIONS,
    applied_key,
    archived_key,
    more_events_key,
    quarantine_stream_key,
    speed_counters_key,
    stream_key,
)
from feature_repo.contracts.stream_entry import beyond_first, split_entry
from infra.importing.tables import find_table
from serving.speed.positions import START, after, position_number

_PAGE = 1_000
_TRIES = 10


@dataclass(frozen=True, slots=True)
class StreamCount:
    """Events of one stream. `logged`: all it ever got, or None when the server does not count entries (Redis 6)."""

    stream: str
    logged: int | None
    archived: int
    waiting_for_archive: int
    waiting_for_consumer: int | None


@dataclass(frozen=True, slots=True)
class Identity:
    """Two counts of one thing. `holds` is None when one of them cannot be had."""

    name: str
    left: int | None
    right: int
    holds: bool | None
    parts: Mapping[str, int]


@dataclass(frozen=True)
class EventBalance:
    """`outcomes` are the consumer's counters as stored."""

    streams: Sequence[StreamCount]
    outcomes: Mapping[str, int]
    identities: Sequence[Identity]

    @property
    def holds(self) -> bool:
        """Whether no identity is broken."""
        return all(identity.holds is not False for identity in self.identities)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"holds": self.holds, **asdict(self)}


class _TrimmedMeanwhileError(Exception):
    """The archiver forgot entries while they were counted: count again."""


def balance_events(env: Environment, log: redis.Redis, online: redis.Redis) -> EventBalance:
    """Count while events flow: a count during which a stream was trimmed is made again, and what is then still missing
    is missing. Raises DependencyError when a store does not answer."""
    try:
        for _ in range(_TRIES):
            with contextlib.suppress(_TrimmedMeanwhileError):
                return _balance(env, log, online, may_be_trimmed=False)
        return _balance(env, log, online, may_be_trimmed=True)
    except (RedisError, DeltaError, OSError) as error:
        raise DependencyError(f"the event path cannot be counted: {error}") from error


def _balance(env: Environment, log: redis.Redis, online: redis.Redis, *, may_be_trimmed: bool) -> EventBalance:
    partitions = range(EVENT_PARTITIONS)
    with online.pipeline(transaction=True) as pipe:  # positions and counters as they were at one instant
        pipe.mget([applied_key(p, env.tenant) for p in partitions])
        pipe.hgetall(speed_counters_key(env.tenant))
        applied, stored = pipe.execute()

    def count(stream: str, tables: Sequence[str], position: bytes | None) -> StreamCount:
        return _count(env, log, stream, tables, position, may_be_trimmed=may_be_trimmed)

    outcomes = {name.decode(): int(count) for name, count in stored.items()}
    streams = [
        count(stream_key(p, env.tenant), ("bronze.events", "bronze.quarantine"), position or START.encode())
        for p, position in zip(partitions, applied, strict=True)
    ]
    refused = count(quarantine_stream_key(env.tenant), ("bronze.quarantine",), None)
    return EventBalance([*streams, refused], outcomes, _identities(streams, refused, outcomes))


def _identities(streams: Sequence[StreamCount], refused: StreamCount, outcomes: Mapping[str, int]) -> list[Identity]:
    logged = _sum([s.logged for s in streams])
    waiting = sum(s.waiting_for_consumer or 0 for s in streams)
    duplicate = outcomes.get("duplicate", 0)
    applied, dead = outcomes.get("applied", 0), outcomes.get("dead_lettered", 0)
    accepted = applied + dead + waiting
    quarantined = refused.archived + refused.waiting_for_archive
    kept = {
        "archived": sum(s.archived for s in streams),
        "waiting for the archiver": sum(s.waiting_for_archive for s in streams),
    }
    return [
        _identity(
            "received", _sum([logged, refused.logged]),
            {"accepted": accepted, "duplicate": duplicate, "quarantined": quarantined},
        ),
        _identity(
            "accepted", None if logged is None else logged - duplicate,
            {"applied": applied, "dead-lettered": dead, "waiting for the consumer": waiting},
        ),
        _identity("accepted and duplicate", logged, kept),
        _identity(
            "quarantined", refused.logged,
            {"archived": refused.archived, "waiting for the archiver": refused.waiting_for_archive},
        ),
    ]  # fmt: skip


def _identity(name: str, left: int | None, parts: Mapping[str, int]) -> Identity:
    right = sum(parts.values())
    return Identity(name, left, right, None if left is None else left == right, parts)


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _count(
    env: Environment,
    log: redis.Redis,
    stream: str,
    tables: Sequence[str],
    applied: bytes | None,
    *,
    may_be_trimmed: bool,
) -> StreamCount:
    """`applied`: the consumer's position; None for a stream that nobody consumes."""
    position: Any = log.get(archived_key(stream))
    archived = position.decode() if position else START
    rows = _archived(env, tables, stream, position_number(archived))
    with log.pipeline(transaction=True) as pipe:  # of one instant
        pipe.get(more_events_key(stream))
        pipe.xinfo_stream(stream)
        counted, about = pipe.execute(raise_on_error=False)
    about, more = _found(about), int(counted or 0)
    if about is None:  # nothing ever came
        return StreamCount(stream, 0, rows, 0, None if applied is None else 0)
    end = about["last-generated-id"].decode()
    to_archive = _events(log, stream, archived, end)
    to_apply = None if applied is None else _events(log, stream, applied.decode(), end)
    lowest = min(archived, archived if applied is None else applied.decode(), key=position_number)
    forgotten = (_about(log, stream) or about).get("max-deleted-entry-id", b"0-0").decode()
    if not may_be_trimmed and position_number(forgotten) > position_number(lowest):
        raise _TrimmedMeanwhileError
    logged = about.get("entries-added")
    return StreamCount(stream, None if logged is None else int(logged) + more, rows, to_archive, to_apply)


def _found(about: Any) -> dict[str, Any] | None:
    """XINFO STREAM by field, or None when there is no such stream."""
    if isinstance(about, ResponseError) and "no such key" in str(about):
        return None
    if isinstance(about, Exception):
        raise about
    return dict(about)


def _about(log: redis.Redis, stream: str) -> dict[str, Any] | None:
    try:
        return _found(log.xinfo_stream(stream))
    except ResponseError as error:
        return _found(error)


def _events(log: redis.Redis, stream: str, behind: str, end: str) -> int:
    """Events of the entries in (behind, end]."""
    count, start = 0, after(behind)
    while True:
        found: Any = log.xrange(stream, min=start, max=end, count=_PAGE)
        count += sum(len(split_entry(fields)) for _, fields in found)
        if len(found) < _PAGE:
            return count
        start = after(found[-1][0].decode())


def _archived(env: Environment, tables: Sequence[str], stream: str, until: int) -> int:
    """Events of a stream that are rows of these tables, up to a position. The lines of one order are one event."""
    total = 0
    is_its = (pc.field("source") == stream) | pc.starts_with(pc.field("source"), beyond_first(stream))
    for name in tables:
        delta = find_table(env, name)
        if delta is not None:
            names = ["source", "source_position"]
            rows = delta.to_pyarrow_dataset().to_table(
                columns=names, filter=is_its & (pc.field("source_position") <= until)
            )
            total += rows.group_by(names).aggregate([]).num_rows
    return total
