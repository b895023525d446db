"""What the tests of the consumer share: both roles of Redis, real and as twins in memory, and how to look into them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import redis

from feature_repo.contracts.keys import (
    EVENT_PARTITIONS,
    dead_letter_stream_key,
    dedup_key,
    members_key,
    owner_key,
    partition_of,
    session_key,
    speed_counters_key,
    stream_key,
)
from feature_repo.contracts.session_record import SessionState, unpack_session
from serving.speed.applier import Applier
from serving.speed.memory_stores import MemoryEventStreams, MemoryStateStore
from serving.speed.ownership import Ownership
from serving.speed.stores import (
    Changes,
    EventStreams,
    RedisEventStreams,
    RedisStateStore,
    StateStore,
)

TENANT = "shop"
HERE = partition_of("u:u1")
NOON = datetime(2024, 3, 8, 12, tzinfo=UTC)


def click(event_id: str, item: str, second: int = 0, **more: Any) -> dict[str, Any]:
    moment = (NOON + timedelta(seconds=second)).isoformat()
    base = {"event_id": event_id, "event_type": "view_item", "user_id": "u1", "item_id": item, "timestamp": moment}
    return {**base, **more}


class World:
    """Both roles in one of their two forms, and how a test looks into them. Receipt is in March 2024 too."""

    streams: EventStreams
    store: StateStore

    def __init__(self) -> None:
        self.sequence = itertools.count(1)
        self.nonces = itertools.count()

    def deliver(self, *events: Mapping[str, Any], raw: bytes | None = None) -> list[str]:
        """What POST /v1/events does with each, or with `raw` bytes of nobody's making; positions."""
        positions = []
        for event in events:
            subject = f"u:{event['user_id']}"
            nonce = b"n%d" % next(self.nonces)
            partition = partition_of(subject)
            self.mark(partition, event["event_id"], nonce)
            positions.append(self.add(partition, {b"event": raw or json.dumps(event).encode(), b"nonce": nonce}))
        return positions

    def deliver_together(self, *events: Mapping[str, Any], raws: Mapping[str, bytes] | None = None) -> str:
        """The same, as one entry; `raws` replaces the bytes of some by event id. All of one partition."""
        nonces = [b"n%d" % next(self.nonces) for _ in events]
        for event, nonce in zip(events, nonces, strict=True):
            self.mark(HERE, event["event_id"], nonce)
        lines = [(raws or {}).get(event["event_id"], json.dumps(event).encode()) for event in events]
        return self.add(HERE, {b"events": b"\n".join(lines), b"nonces": b"\n".join(nonces)})

    def mark(self, partition: int, event_id: str, nonce: bytes) -> None:
        raise NotImplementedError

    def unmark(self, partition: int, event_id: str) -> None:
        raise NotImplementedError

    def add(self, partition: int, fields: Mapping[bytes, bytes]) -> str:
        raise NotImplementedError

    def get(self, key: str) -> bytes | None:
        raise NotImplementedError

    def put(self, key: str, value: bytes | None) -> None:
        raise NotImplementedError

    def seconds_left(self, key: str) -> float:
        raise NotImplementedError

    def counters(self) -> dict[str, int]:
        raise NotImplementedError

    def letters(self) -> list[tuple[int, str, bytes, str, int]]:
        """(partition, position, event, error, deliveries)"""
        raise NotImplementedError

    def pass_seconds(self, seconds: float) -> None:
        """Let the terms of owners run out."""
        raise NotImplementedError

    def applier(self, member: str = "one", batch: int = 100, timer: Callable[[], float] = lambda: 0.0) -> Applier:
        ownership = Ownership(self.store, term_seconds=5, member=member, timer=timer)
        return Applier(
            self.streams, self.store, ownership, tenant=TENANT, batch=batch, session_ttl_seconds=1000
        )  # fmt: skip

    def alone(self, batch: int = 100) -> Applier:
        applier = self.applier("alone", batch)
        applier.resume()
        return applier

    def state(self, user: str = "u1") -> SessionState:
        record = self.get(session_key(f"u:{user}", TENANT))
        assert record is not None
        return unpack_session(record)

    def items(self, user: str = "u1") -> list[str]:
        return [event.item_id for event in self.state(user).events]


class RedisWorld(World):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.client = redis.Redis.from_url(url)
        self.streams = RedisEventStreams(self.client, tenant=TENANT)
        self.store = RedisStateStore(self.client, tenant=TENANT)

    def mark(self, partition: int, event_id: str, nonce: bytes) -> None:
        self.client.set(dedup_key(partition, event_id, TENANT), nonce, nx=True, ex=86_400)

    def unmark(self, partition: int, event_id: str) -> None:
        self.client.delete(dedup_key(partition, event_id, TENANT))

    def add(self, partition: int, fields: Mapping[bytes, bytes]) -> str:
        position = f"1709899200000-{next(self.sequence)}"
        self.client.xadd(stream_key(partition, TENANT), fields, id=position)  # type: ignore[arg-type]
        return position

    def get(self, key: str) -> bytes | None:
        return self.client.get(key)  # type: ignore[return-value]

    def put(self, key: str, value: bytes | None) -> None:
        if value is None:
            self.client.delete(key)
        else:
            self.client.set(key, value)

    def seconds_left(self, key: str) -> float:
        return self.client.pttl(key) / 1000  # type: ignore[operator]

    def counters(self) -> dict[str, int]:
        return {k.decode(): int(v) for k, v in self.client.hgetall(speed_counters_key(TENANT)).items()}

    def letters(self) -> list[tuple[int, str, bytes, str, int]]:
        rows = [fields for _, fields in self.client.xrange(dead_letter_stream_key(TENANT))]
        partitions = {stream_key(p, TENANT).encode(): p for p in range(EVENT_PARTITIONS)}
        return [
            (partitions[f[b"stream"]], f[b"position"].decode(), f[b"event"], f[b"error"].decode(),
             int(f[b"deliveries"]))
            for f in rows
        ]  # fmt: skip

    def pass_seconds(self, seconds: float) -> None:
        for partition in range(EVENT_PARTITIONS):
            self.client.delete(owner_key(partition, TENANT))
        for name, at in self.client.zrange(members_key("consumer", TENANT), 0, -1, withscores=True):
            self.client.zadd(members_key("consumer", TENANT), {name: at - seconds * 1000})


class MemoryWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1_709_899_200_000
        self.memory = MemoryEventStreams()
        self.twin = MemoryStateStore(tenant=TENANT, now_ms=lambda: self.now_ms)
        self.streams, self.store = self.memory, self.twin

    def mark(self, partition: int, event_id: str, nonce: bytes) -> None:
        self.memory.dedup.setdefault((partition, event_id), nonce)

    def unmark(self, partition: int, event_id: str) -> None:
        del self.memory.dedup[partition, event_id]

    def add(self, partition: int, fields: Mapping[bytes, bytes]) -> str:
        position = f"1709899200000-{next(self.sequence)}"
        self.memory.entries.setdefault(partition, []).append((position, fields))
        return position

    def get(self, key: str) -> bytes | None:
        return self.twin.get(key)

    def put(self, key: str, value: bytes | None) -> None:
        if value is None:
            self.twin.strings.pop(key, None)
        else:
            self.twin.put(key, value)

    def seconds_left(self, key: str) -> float:
        return (self.twin.until[key] - self.now_ms) / 1000

    def counters(self) -> dict[str, int]:
        return self.twin.counters

    def letters(self) -> list[tuple[int, str, bytes, str, int]]:
        return [(one.partition, one.position, one.event, one.error, one.deliveries) for one in self.memory.letters]

    def pass_seconds(self, seconds: float) -> None:
        self.now_ms += int(seconds * 1000)


def drain(applier: Applier) -> None:
    """Consume until nothing comes."""
    while applier.consume(block_ms=None):
        pass


class CrashError(Exception):
    """The process dies here."""


class Crashing:
    """A state store whose next commit dies, before or after it has written."""

    def __init__(self, store: StateStore, *, is_written: bool) -> None:
        self._store = store
        self._is_written = is_written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def transaction(self, claims: Mapping[int, str]) -> Any:
        return _CrashingTransaction(self._store.transaction(claims), self._is_written)


class _CrashingTransaction:
    def __init__(self, context: Any, is_written: bool) -> None:
        self._context = context
        self._is_written = is_written

    def __enter__(self) -> Any:
        self._inner = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def commit(self, changes: Changes) -> None:
        if self._is_written:
            self._inner.commit(changes)
        raise CrashError
