"""One suite for each store on both forms: the real Redis and its twin in memory."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import (
    candidates_key,
    dedup_key,
    edges_key,
    partition_of,
    pointer_key,
    quarantine_stream_key,
    session_key,
    session_key_v1,
    stream_key,
)
from serving.adapters.event_log import EventLog, LogEntry, QuarantinedEvent
from serving.adapters.feast_online import entity_key
from serving.adapters.memory_event_log import MemoryEventLog
from serving.adapters.online import (
    SEGMENT_FIELD,
    SEGMENT_TIME_FIELD,
    MemoryOnlineStore,
    OnlineRecords,
    OnlineStore,
    RedisOnlineStore,
)
from serving.adapters.redis_event_log import RedisEventLog

TENANT = "shop"
V1, V2 = "2024-03-08-00000001", "2024-03-09-00000002"
NOBODY_LISTENS = "redis://127.0.0.1:1/0"

Put = Callable[[str, bytes], Any]
PutHash = Callable[[Any, dict[bytes, bytes]], Any]


@pytest.fixture(params=["redis", "memory"])
async def online(request: pytest.FixtureRequest) -> AsyncIterator[tuple[OnlineStore, Put, PutHash]]:
    """The store, and how a test writes a string and a hash into it."""
    if request.param == "memory":
        twin = MemoryOnlineStore(tenant=TENANT)
        yield twin, twin.strings.__setitem__, twin.hashes.__setitem__
        return
    url = request.getfixturevalue("redis_url")
    store = RedisOnlineStore(url, tenant=TENANT, timeout_seconds=1)
    with redis.Redis.from_url(url) as client:
        yield store, client.set, lambda key, fields: client.hset(key, mapping=fields)
    await store.close()


class TestOnlineStore:
    async def test_an_empty_store_knows_nothing(self, online: tuple[OnlineStore, Put, PutHash]) -> None:
        store, _, _ = online
        assert await store.read(version=V1, user_id="u1", anonymous_id=None) == OnlineRecords(None)
        assert await store.read(version=None, user_id=None, anonymous_id=None) == OnlineRecords(None)

    async def test_one_read_brings_all_of_one_person(self, online: tuple[OnlineStore, Put, PutHash]) -> None:
        store, put, put_hash = online
        put(pointer_key(TENANT), V2.encode())
        put(candidates_key(V1, "u 1", TENANT), b"first")
        put(candidates_key(V2, "u 1", TENANT), b"second")
        put(session_key("u:u 1", TENANT), b"session of the user")
        put(session_key("a:x", TENANT), b"session of the stranger")
        put_hash(
            entity_key(["user_id"], ["u 1"]),
            {SEGMENT_FIELD: b"\x12\x01A", SEGMENT_TIME_FIELD: b"\x08\x05", b"other": b"o"},
        )

        read = await store.read(version=V1, user_id="u 1", anonymous_id="x")
        assert read == OnlineRecords(V2, b"first", b"session of the user", b"\x12\x01A", b"\x08\x05")
        assert (await store.read(version=V2, user_id="u 1", anonymous_id=None)).candidates == b"second"
        assert await store.read(version=V1, user_id=None, anonymous_id="x") == OnlineRecords(
            V2, None, b"session of the stranger"
        )
        assert await store.read(version=None, user_id="u 1", anonymous_id=None) == OnlineRecords(
            V2, None, b"session of the user", b"\x12\x01A", b"\x08\x05"
        )
        assert await store.read(version=V1, user_id="u 2", anonymous_id=None) == OnlineRecords(V2)

    async def test_a_session_of_the_older_format_counts_while_there_is_no_newer_one(
        self, online: tuple[OnlineStore, Put, PutHash]
    ) -> None:
        store, put, _ = online
        put(session_key_v1("u:u1", TENANT), b"older")
        assert (await store.read(version=None, user_id="u1", anonymous_id=None)).session == b"older"
        put(session_key("u:u1", TENANT), b"newer")
        assert (await store.read(version=None, user_id="u1", anonymous_id=None)).session == b"newer"

    async def test_the_same_read_brings_edges_and_what_others_did(
        self, online: tuple[OnlineStore, Put, PutHash]
    ) -> None:
        store, put, put_hash = online
        put(session_key("u:u 1", TENANT), b"session of the user")
        put(session_key("a:x", TENANT), b"session of the phone")
        put_hash(edges_key("u:u 1", TENANT), {b"a:x": b"edge", b"a:y": b"other"})
        put_hash(edges_key("a:y", TENANT), {b"u:u 1": b"other"})

        read = await store.read(version=None, user_id="u 1", anonymous_id=None, joined=["a:x", "a:y"])
        assert (read.session, read.joined) == (b"session of the user", {"a:x": b"session of the phone"})
        assert read.edges == {"u:u 1": {b"a:x": b"edge", b"a:y": b"other"}, "a:y": {b"u:u 1": b"other"}}
        alone = await store.read(version=None, user_id=None, anonymous_id="y")
        assert (alone.session, alone.joined, alone.edges) == (None, {}, {"a:y": {b"u:u 1": b"other"}})

    async def test_many_readers_at_once_each_get_their_own(self, online: tuple[OnlineStore, Put, PutHash]) -> None:
        store, put, _ = online
        for number in range(40):
            put(candidates_key(V1, f"u{number}", TENANT), b"%d" % number)
        reads = [store.read(version=V1, user_id=f"u{number}", anonymous_id=None) for number in range(40)]
        assert [record.candidates for record in await asyncio.gather(*reads)] == [b"%d" % n for n in range(40)]


async def test_an_online_store_that_is_down_says_so() -> None:
    twin = MemoryOnlineStore(tenant=TENANT)
    twin.is_down = True
    for store in (twin, RedisOnlineStore(NOBODY_LISTENS, tenant=TENANT, timeout_seconds=0.05)):
        with pytest.raises(DependencyError, match="online store does not answer"):
            await store.read(version=None, user_id="u1", anonymous_id=None)


async def test_a_redis_that_hangs_costs_no_more_than_the_timeout() -> None:
    server = await asyncio.start_server(lambda reader, _: reader.read(), "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    store = RedisOnlineStore(url, tenant=TENANT, timeout_seconds=0.05)
    started = asyncio.get_running_loop().time()
    with pytest.raises(DependencyError, match="TimeoutError"):
        await store.read(version=None, user_id="u1", anonymous_id=None)
    assert asyncio.get_running_loop().time() - started < 0.5
    server.close()


class LogView:
    """How a test looks into a log of either form."""

    def __init__(self, twin: MemoryEventLog | None, client: redis.Redis | None) -> None:
        self.twin, self.client = twin, client

    def entries(self, partition: int) -> list[tuple[bytes, str]]:
        stream = stream_key(partition, TENANT)
        if self.twin is not None:
            return self.twin.streams.get(stream, [])
        assert self.client is not None
        return [(f[b"event"], f[b"nonce"].decode()) for _, f in self.client.xrange(stream)]

    def mark(self, partition: int, event_id: str) -> str | None:
        key = dedup_key(partition, event_id, TENANT)
        if self.twin is not None:
            return self.twin.marks.get(key)
        assert self.client is not None
        found = self.client.get(key)
        return found.decode() if found else None

    def quarantined(self) -> list[tuple[bytes, str, str, str]]:
        if self.twin is not None:
            return [tuple(event) for event in self.twin.quarantined]
        assert self.client is not None
        rows = [fields for _, fields in self.client.xrange(quarantine_stream_key(TENANT))]
        return [(f[b"raw"], f[b"reason"].decode(), f[b"field"].decode(), f[b"detail"].decode()) for f in rows]


@pytest.fixture(params=["redis", "memory"])
async def log(request: pytest.FixtureRequest) -> AsyncIterator[tuple[EventLog, LogView]]:
    if request.param == "memory":
        twin = MemoryEventLog(tenant=TENANT)
        yield twin, LogView(twin, None)
        return
    url = request.getfixturevalue("redis_url")
    real = RedisEventLog(url, tenant=TENANT, timeout_seconds=1)
    with redis.Redis.from_url(url) as client:
        yield real, LogView(None, client)
    await real.close()


class TestEventLog:
    async def test_a_second_delivery_is_a_duplicate_and_leaves_the_first_mark(
        self, log: tuple[EventLog, LogView]
    ) -> None:
        store, view = log
        here = partition_of("u:1")
        first, again = LogEntry("u:1", "e1", "n1", b"{1}"), LogEntry("u:1", "e1", "n2", b"{2}")
        assert await store.append([first]) == [True]
        assert await store.append([again, LogEntry("u:1", "e2", "n3", b"{3}")]) == [False, True]
        # The duplicate is in the stream, but not with the mark's nonce: the consumer leaves it out.
        assert view.entries(here) == [(b"{1}", "n1"), (b"{2}", "n2"), (b"{3}", "n3")]
        assert (view.mark(here, "e1"), view.mark(here, "e2")) == ("n1", "n3")

    async def test_twice_in_one_request_counts_once(self, log: tuple[EventLog, LogView]) -> None:
        store, _ = log
        twins = [LogEntry("u:1", "e1", f"n{number}", b"{}") for number in range(3)]
        assert await store.append(twins) == [True, False, False]

    async def test_answers_keep_their_order_across_partitions(self, log: tuple[EventLog, LogView]) -> None:
        store, view = log
        subjects = [f"u:{number}" for number in range(20)]
        assert len({partition_of(subject) for subject in subjects}) == 4
        known = [LogEntry(subject, "same id", "old", b"{}") for subject in subjects[:7]]
        # An id belongs to its partition: the same id of subjects of one partition is one event.
        partitions: set[int] = set()
        expected = [not (partition_of(s) in partitions or partitions.add(partition_of(s))) for s in subjects[:7]]
        assert await store.append(known) == expected
        new = [LogEntry(subject, f"id {subject}", "new", subject.encode()) for subject in subjects]
        mixed = [new[0], known[0], *new[1:], known[1]]
        assert await store.append(mixed) == [True, False, *[True] * 19, False]
        written = [event for p in range(4) for event, nonce in view.entries(p) if nonce == "new"]
        assert sorted(written) == sorted(subject.encode() for subject in subjects)

    async def test_quarantined_bytes_are_kept_as_they_came(self, log: tuple[EventLog, LogView]) -> None:
        store, view = log
        bad = QuarantinedEvent(b'{"a":\x00\xff}', "unreadable", "", "words with ü")
        assert await store.append([], [bad]) == []
        assert await store.append([LogEntry("u:1", "e1", "n1", b"{}")], [bad._replace(field="item_id")]) == [True]
        assert view.quarantined() == [
            (b'{"a":\x00\xff}', "unreadable", "", "words with ü"),
            (b'{"a":\x00\xff}', "unreadable", "item_id", "words with ü"),
        ]


async def test_a_mark_lives_for_a_day(redis_url: str) -> None:
    store = RedisEventLog(redis_url, tenant=TENANT, timeout_seconds=1)
    await store.append([LogEntry("u:1", "e1", "n1", b"{}")])
    await store.close()
    with redis.Redis.from_url(redis_url) as client:
        assert 86_390 < client.ttl(dedup_key(partition_of("u:1"), "e1", TENANT)) <= 86_400


async def test_mark_and_entry_are_one_transaction_of_one_round_trip_per_partition(redis_url: str) -> None:
    """A crash between the two would be an event that is a duplicate of nothing, or one that is applied twice."""
    store = RedisEventLog(redis_url, tenant=TENANT, timeout_seconds=1)
    subjects = [f"u:{number}" for number in range(20)]
    with redis.Redis.from_url(redis_url) as client:
        client.config_resetstat()
        await store.append([LogEntry(subject, f"id {subject}", "n", b"{}") for subject in subjects])
        calls = {name: stats["calls"] for name, stats in client.info("commandstats").items()}
    await store.close()
    assert {name: calls[f"cmdstat_{name}"] for name in ("multi", "exec", "set", "xadd")} == {
        "multi": 4, "exec": 4, "set": 20, "xadd": 20,
    }  # fmt: skip


async def test_a_log_that_is_down_or_full_says_so(redis_url: str) -> None:
    twin = MemoryEventLog(tenant=TENANT)
    twin.is_down = True
    entry = LogEntry("u:1", "e1", "n1", b"x" * 200_000)
    for store in (twin, RedisEventLog(NOBODY_LISTENS, tenant=TENANT, timeout_seconds=0.05)):
        with pytest.raises(DependencyError, match="event log does not answer"):
            await store.append([entry])
    full = RedisEventLog(redis_url, tenant=TENANT, timeout_seconds=1)
    with redis.Redis.from_url(redis_url) as client:
        before = client.config_get("maxmemory")["maxmemory"]
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(DependencyError, match="event log cannot take more: OOM"):
                await full.append([entry])
            # All or nothing: a refused entry leaves no mark that would turn its retry into a duplicate.
            assert client.keys("*") == []
        finally:
            client.config_set("maxmemory", before)
    assert await full.append([entry]) == [True]
    await full.close()


def test_the_segment_field_is_four_bytes() -> None:
    assert struct.calcsize("<I") == len(SEGMENT_FIELD)
    assert SEGMENT_TIME_FIELD == b"_ts:user_features"
