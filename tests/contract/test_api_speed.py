"""The speed layer on a real Redis and a real Delta table: effects exactly once, whatever dies in between."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from deltalake import DeltaTable
from redis.exceptions import ConnectionError as RedisGoneError

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import (
    EVENT_PARTITIONS,
    applied_key,
    archived_key,
    dead_letter_stream_key,
    dedup_key,
    partition_of,
    quarantine_stream_key,
    session_key,
    speed_counters_key,
    stream_key,
)
from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED, SessionState, unpack_session
from feature_repo.contracts.tables import table, table_path
from serving.adapters.event_log import LogEntry, QuarantinedEvent, RedisEventLog
from serving.speed.archiver import EVENTS_TABLE, QUARANTINE_TABLE, Archiver
from serving.speed.consumer import Consumer
from serving.speed.delta_archive import DeltaArchive
from serving.speed.positions import position_number
from serving.speed.roles import Lease

TENANT = "default"
HERE = partition_of("u:u1")


def click(event_id: str, item: str, second: int = 0, **more: Any) -> dict[str, Any]:
    moment = f"2024-03-08T12:00:{second:02d}Z"
    base = {"event_id": event_id, "event_type": "view_item", "user_id": "u1", "item_id": item, "timestamp": moment}
    return {**base, **more}


class Speed(NamedTuple):
    """Both roles on one server, as a small installation may have it."""

    client: redis.Redis
    url: str
    consumer: Consumer
    nonces: Iterator[int]

    async def deliver(self, *events: dict[str, Any]) -> list[bool]:
        """What POST /v1/events does: one request with these events."""
        log = RedisEventLog(self.url, tenant=TENANT, timeout_seconds=1)
        entries = [
            LogEntry(f"u:{e['user_id']}", e["event_id"], f"n{next(self.nonces)}", json.dumps(e).encode())
            for e in events
        ]
        try:
            return await log.append(entries)
        finally:
            await log.close()

    def state(self, user: str = "u1") -> SessionState:
        record = self.client.get(session_key(f"u:{user}"))
        assert record is not None
        return unpack_session(record)

    def items(self, user: str = "u1") -> list[str]:
        return [event.item_id for event in self.state(user).events]

    def counters(self) -> dict[str, int]:
        return {k.decode(): int(v) for k, v in self.client.hgetall(speed_counters_key()).items()}


def new_consumer(client: redis.Redis) -> Consumer:
    consumer = Consumer(client, client, tenant=TENANT, batch=100, session_ttl_seconds=1000)
    consumer.resume()
    return consumer


@pytest.fixture
def speed(redis_url: str) -> Iterator[Speed]:
    with redis.Redis.from_url(redis_url) as client:
        yield Speed(client, redis_url, new_consumer(client), itertools.count())


class CrashError(Exception):
    """The process dies here."""


def crash(*_: Any, **__: Any) -> None:
    raise CrashError


class TestConsumer:
    async def test_events_become_session_records(self, speed: Speed) -> None:
        await speed.deliver(click("e1", "late", 30), click("e2", "early", 10), click("e3", "x", user_id="u2"))
        assert speed.consumer.consume(block_ms=None) == 3
        assert (speed.items(), speed.items("u2")) == (["early", "late"], ["x"])
        assert 990 < speed.client.ttl(session_key("u:u1")) <= 1000
        last = speed.client.xrevrange(stream_key(HERE), count=1)[0][0]
        assert speed.client.get(applied_key(HERE)) == last
        assert speed.counters() == {"applied": 3}
        assert speed.consumer.consume(block_ms=None) == 0

    async def test_duplicates_count_once_and_a_late_event_finds_its_place(self, speed: Speed) -> None:
        assert await speed.deliver(click("e1", "a", 20)) == [True]
        speed.consumer.consume(block_ms=None)
        # The same id again, with another item, before and after the consumer has seen the first; and a late event.
        again = [click("e1", "wrong"), click("e2", "b", 5), click("e2", "wrong")]
        assert await speed.deliver(*again) == [False, True, False]
        speed.consumer.consume(block_ms=None)
        assert speed.items() == ["b", "a"]
        assert speed.counters() == {"applied": 2, "duplicate": 2}

    async def test_a_mark_that_is_gone_can_refuse_nobody(self, speed: Speed) -> None:
        await speed.deliver(click("e1", "a"))
        speed.client.delete(dedup_key(HERE, "e1"))
        speed.consumer.consume(block_ms=None)
        assert speed.items() == ["a"]

    async def test_a_crash_before_the_write_changes_nothing_and_is_made_up_for(
        self, speed: Speed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await speed.deliver(click("e1", "a", 1), click("e2", "b", 2))
        with monkeypatch.context() as patch:
            patch.setattr(redis.client.Pipeline, "execute", crash)
            with pytest.raises(CrashError):
                speed.consumer.consume(block_ms=None)
        assert speed.client.exists(session_key("u:u1"), applied_key(HERE), speed_counters_key()) == 0
        new_consumer(speed.client).consume(block_ms=None)
        assert speed.items() == ["a", "b"]
        assert speed.counters() == {"applied": 2}

    async def test_a_crash_after_the_write_repeats_nothing(self, speed: Speed, monkeypatch: pytest.MonkeyPatch) -> None:
        execute = redis.client.Pipeline.execute

        def write_and_die(pipe: Any, *args: Any, **kwargs: Any) -> None:
            execute(pipe, *args, **kwargs)
            raise CrashError

        await speed.deliver(click("e1", "a", 1), click("e2", "b", 2))
        with monkeypatch.context() as patch:
            patch.setattr(redis.client.Pipeline, "execute", write_and_die)
            with pytest.raises(CrashError):
                speed.consumer.consume(block_ms=None)
        restarted = new_consumer(speed.client)
        assert restarted.consume(block_ms=None) == 0
        assert speed.counters() == {"applied": 2}
        # A consumer that never learned that its write arrived reads the same entries, and writes nothing.
        assert speed.consumer.consume(block_ms=None) == 2
        assert speed.counters() == {"applied": 2}
        assert speed.consumer.consume(block_ms=None) == 0

    async def test_of_two_consumers_the_slower_one_changes_nothing(
        self, speed: Speed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await speed.deliver(click("e1", "a"))
        faster = new_consumer(speed.client)
        mget = redis.client.Pipeline.mget

        def overtaken(pipe: Any, keys: Any) -> Any:
            values = mget(pipe, keys)
            monkeypatch.setattr(redis.client.Pipeline, "mget", mget)
            faster.consume(block_ms=None)
            return values

        monkeypatch.setattr(redis.client.Pipeline, "mget", overtaken)
        speed.consumer.consume(block_ms=None)
        assert speed.counters() == {"applied": 1}
        await speed.deliver(click("e2", "b", 9))
        assert speed.consumer.consume(block_ms=None) == 1
        assert (speed.items(), speed.counters()) == (["a", "b"], {"applied": 2})

    @pytest.mark.parametrize(
        "poison",
        [
            b"{",
            b"[]",
            b"{}",
            b'{"event_id":"p","user_id":"u1","event_type":"view_item","item_id":"a"}',
            b'{"event_id":"p","user_id":"u1","event_type":"view_item","item_id":7,"timestamp":"2024-03-08T12:00:00Z"}',
            b'{"event_id":"\\ud800","user_id":"u1"}',
        ],
        ids=["no json", "a list", "nobody", "no time", "item id a number", "id without utf-8"],
    )
    async def test_poison_is_buried_and_the_stream_goes_on(self, speed: Speed, poison: bytes) -> None:
        await speed.deliver(click("e1", "a", 1))
        position = speed.client.xadd(stream_key(HERE), {"event": poison, "nonce": "n"})
        await speed.deliver(click("e2", "b", 2))
        speed.consumer.consume(block_ms=None)
        assert speed.items() == ["a", "b"]
        assert speed.counters() == {"applied": 2, "dead_lettered": 1}
        letters = [fields for _, fields in speed.client.xrange(dead_letter_stream_key())]
        assert [(f[b"stream"].decode(), f[b"position"], f[b"event"]) for f in letters] == [
            (stream_key(HERE), position, poison)
        ]
        assert letters[0][b"error"]

    async def test_a_damaged_record_starts_anew_without_consent(self, speed: Speed) -> None:
        speed.client.set(session_key("u:u1"), b"\x01damaged")
        await speed.deliver(click("e1", "a"))
        speed.consumer.consume(block_ms=None)
        assert (speed.items(), speed.state().flags) == (["a"], FLAG_PERSONALIZE_DENIED)
        assert speed.counters() == {"applied": 1, "damaged_session": 1}

    async def test_consent_reaches_the_record(self, speed: Speed) -> None:
        await speed.deliver(click("e1", "a", consent={"personalize": False}))
        speed.consumer.consume(block_ms=None)
        assert speed.state().flags == FLAG_PERSONALIZE_DENIED

    async def test_an_emptied_store_is_rebuilt_from_the_stream(self, speed: Speed) -> None:
        await speed.deliver(click("e1", "a", 1), click("e2", "b", 2))
        speed.consumer.consume(block_ms=None)
        speed.client.delete(session_key("u:u1"), applied_key(HERE))
        new_consumer(speed.client).consume(block_ms=None)
        assert speed.items() == ["a", "b"]


class Archive(NamedTuple):
    client: redis.Redis
    speed: Speed
    lakehouse: str

    def new_archiver(self, may_write: Callable[[], bool] = lambda: True) -> Archiver:
        archiver = Archiver(
            self.client, self.client, lakehouse=self.lakehouse, tenant=TENANT, max_entries=500, may_write=may_write
        )
        archiver.resume()
        return archiver

    def rows(self, name: str = EVENTS_TABLE) -> list[dict[str, Any]]:
        found = DeltaTable(table_path(self.lakehouse, name)).to_pyarrow_table()
        assert found.schema.names == list(table(name).columns)
        return sorted(found.to_pylist(), key=lambda row: (row["source"], row["source_position"], row.get("event_id")))

    def ids(self) -> list[str]:
        return sorted(row["event_id"] for row in self.rows())


@pytest.fixture
def archive(speed: Speed, tmp_path: Path) -> Archive:
    return Archive(speed.client, speed, str(tmp_path / "lakehouse"))


class TestArchiver:
    async def test_every_column_of_an_event_arrives(self, archive: Archive) -> None:
        event = click(
            "e1", "i1", 5, anonymous_id="a1", session_id="s1", quantity=2, price=3, value=6.5, currency="GBP",
            recommendation_id="r1", placement="home", channel="web", consent={"train": False, "share": True},
            properties={"b": 1, "a": "ü"}, page_view_id="p1", context={"region": "DE"},
            timestamp="2024-03-08T00:30:00+01:00",
        )  # fmt: skip
        await archive.speed.deliver(event)
        stream = stream_key(HERE)
        (stream_id, _), *_ = archive.client.xrange(stream)
        archive.new_archiver().archive()
        (row,) = archive.rows()
        assert row.pop("received_at").timestamp() * 1000 == int(stream_id.split(b"-")[0])
        assert (row.pop("event_timestamp").isoformat(), row.pop("event_date").isoformat()) == (
            "2024-03-07T23:30:00+00:00",
            "2024-03-07",
        )
        properties = {
            "a": "ü", "b": 1, "page_view_id": "p1", "context": {"region": "DE"}, "consent": {"share": True},
        }  # fmt: skip
        assert json.loads(row.pop("properties")) == properties
        assert row == {
            "event_id": "e1", "event_type": "view_item", "user_id": "u1", "anonymous_id": "a1", "session_id": "s1",
            "item_id": "i1", "quantity": 2, "price": 3.0, "value": 6.5, "currency": "GBP", "recommendation_id": "r1",
            "placement": "home", "channel": "web", "consent_train": False, "consent_personalize": None,
            "source": stream, "source_position": position_number(stream_id.decode()),
        }  # fmt: skip

    async def test_an_order_is_one_row_per_line_and_all_partitions_are_read(self, archive: Archive) -> None:
        lines = [{"item_id": "a", "quantity": 2, "price": 1.5}, {"item_id": "b"}]
        order = {**click("o1", "unused"), "event_type": "purchase", "items": lines}
        del order["item_id"]
        users = [f"u{number}" for number in range(12)]
        assert len({partition_of(f"u:{user}") for user in users}) == EVENT_PARTITIONS
        await archive.speed.deliver(order, *(click(f"e-{user}", "i", user_id=user) for user in users))
        archive.new_archiver().archive()
        assert archive.ids() == sorted(["o1:0", "o1:1", *(f"e-{user}" for user in users)])
        found = [row for row in archive.rows() if row["event_id"].startswith("o1")]
        assert [(r["item_id"], r["quantity"], r["price"]) for r in found] == [("a", 2, 1.5), ("b", None, None)]
        assert DeltaTable(table_path(archive.lakehouse, EVENTS_TABLE)).version() == 1  # created, then one commit

    async def test_every_delivery_is_archived_once(self, archive: Archive) -> None:
        archiver = archive.new_archiver()
        await archive.speed.deliver(click("e1", "a"), click("e1", "a"))  # bronze keeps deliveries: silver deduplicates
        archiver.archive()
        await archive.speed.deliver(click("e2", "b"))
        assert archiver.archive() == 1
        assert archiver.archive() == 0
        assert archive.ids() == ["e1", "e1", "e2"]

    @pytest.mark.parametrize("dies_at", ["fsync", "archived position", "trim"])
    async def test_a_crash_after_the_commit_repeats_nothing(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch, dies_at: str
    ) -> None:
        await archive.speed.deliver(click("e1", "a"), click("e2", "b"))
        archive.speed.consumer.consume(block_ms=None)
        archiver = archive.new_archiver()
        target, method = {
            "fsync": (DeltaArchive, "_sync_commits"),
            "archived position": (redis.Redis, "set"),
            "trim": (redis.Redis, "xtrim"),
        }[dies_at]
        with monkeypatch.context() as patch:
            patch.setattr(target, method, crash)
            with pytest.raises(CrashError):
                archiver.archive()
        assert archive.ids() == ["e1", "e2"]
        assert archive.client.xlen(stream_key(HERE)) == 2  # nothing is forgotten before everything is safe
        await archive.speed.deliver(click("e3", "c"))
        archive.speed.consumer.consume(block_ms=None)
        archive.new_archiver().archive()
        assert archive.ids() == ["e1", "e2", "e3"]
        assert archive.client.xlen(stream_key(HERE)) == 0

    async def test_a_crash_before_the_commit_loses_nothing(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await archive.speed.deliver(click("e1", "a"))
        archiver = archive.new_archiver()
        with monkeypatch.context() as patch:
            patch.setattr("serving.speed.delta_archive.write_deltalake", crash)
            with pytest.raises(CrashError):
                archiver.archive()
        assert (archive.rows(), archive.client.get(archived_key(stream_key(HERE)))) == ([], None)
        archive.new_archiver().archive()
        assert archive.ids() == ["e1"]

    async def test_a_stream_is_trimmed_below_what_is_applied_and_archived(self, archive: Archive) -> None:
        await archive.speed.deliver(click("e1", "a"))
        archive.speed.consumer.consume(block_ms=None)
        await archive.speed.deliver(click("e2", "b"))
        archiver = archive.new_archiver()
        archiver.archive()
        # e2 is archived but not applied: it stays.
        assert [json.loads(f[b"event"])["event_id"] for _, f in archive.client.xrange(stream_key(HERE))] == ["e2"]
        archive.speed.consumer.consume(block_ms=None)
        archiver.archive()
        assert archive.client.xlen(stream_key(HERE)) == 0
        await archive.speed.deliver(click("e3", "c", 3))
        assert archive.speed.consumer.consume(block_ms=None) == 1
        archiver.archive()
        assert (archive.ids(), archive.speed.items()) == (["e1", "e2", "e3"], ["a", "b", "c"])

    async def test_nothing_is_trimmed_while_the_applied_position_is_unknown(self, archive: Archive) -> None:
        await archive.speed.deliver(click("e1", "a"))
        archive.new_archiver().archive()
        assert archive.client.xlen(stream_key(HERE)) == 1

    async def test_quarantined_bytes_arrive_as_they_came(self, archive: Archive) -> None:
        log = RedisEventLog(archive.speed.url, tenant=TENANT, timeout_seconds=1)
        bad = [QuarantinedEvent(b"\x00{\xff", "unreadable", "", "words")]
        bad.append(QuarantinedEvent(b"{}", "missing_subject", "user_id", "w"))
        await log.append([], bad)
        await log.close()
        archive.new_archiver().archive()
        found = [(row["raw"], row["reason"], row["field"], row["detail"]) for row in archive.rows(QUARANTINE_TABLE)]
        assert found == [(b"\x00{\xff", "unreadable", None, "words"), (b"{}", "missing_subject", "user_id", "w")]
        assert archive.client.xlen(quarantine_stream_key()) == 0

    async def test_an_entry_that_is_no_event_is_quarantined_and_the_others_go_on(self, archive: Archive) -> None:
        await archive.speed.deliver(click("e1", "a"))
        archive.client.xadd(stream_key(HERE), {"event": b'{"event_id":"p"}', "nonce": "n"})
        await archive.speed.deliver(click("e2", "b", price=10**400))
        archive.new_archiver().archive()
        assert archive.ids() == ["e1"]
        bad = archive.rows(QUARANTINE_TABLE)
        assert [(row["reason"], row["source"]) for row in bad] == [("unreadable", stream_key(HERE))] * 2
        assert bad[0]["raw"] == b'{"event_id":"p"}'
        archive.new_archiver().archive()
        assert len(archive.rows(QUARANTINE_TABLE)) == 2

    async def test_who_lost_the_role_writes_nothing(self, archive: Archive) -> None:
        await archive.speed.deliver(click("e1", "a"))
        with pytest.raises(DependencyError, match="role was lost"):
            archive.new_archiver(may_write=lambda: False).archive()
        assert archive.rows() == []

    def test_the_tables_keep_the_contracts_shape(self, archive: Archive) -> None:
        archive.new_archiver()
        for name in (EVENTS_TABLE, QUARANTINE_TABLE):
            made = DeltaTable(table_path(archive.lakehouse, name))
            assert made.metadata().partition_columns == list(table(name).partition_by)
            assert made.metadata().configuration["delta.enableDeletionVectors"] == "false"
            assert made.protocol().min_reader_version == 1

    async def test_data_log_and_folders_are_on_disk_before_the_position_moves(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archiver = archive.new_archiver()
        done: list[str] = []
        real_set = redis.Redis.set

        def watched_set(*args: Any, **kwargs: Any) -> Any:
            done.append("position")
            return real_set(*args, **kwargs)

        monkeypatch.setattr("serving.speed.delta_archive._fsync", lambda path: done.append(path.name))
        monkeypatch.setattr(redis.Redis, "set", watched_set)
        await archive.speed.deliver(click("e1", "a"))
        done.clear()
        archiver.archive()
        assert done[0].endswith(".parquet")
        # what is named comes before what names it
        assert done[1:] == ["event_date=2024-03-08", "events", f"{1:020d}.json", "_delta_log", "position"]

    async def test_a_checkpoint_and_every_commit_since_the_last_sync_are_on_disk(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table_archive = DeltaArchive(archive.lakehouse, EVENTS_TABLE, tenant=TENANT)
        table_archive.open()
        done: list[str] = []
        monkeypatch.setattr("serving.speed.delta_archive._fsync", lambda path: done.append(path.name))
        with monkeypatch.context() as patch:
            patch.setattr(DeltaArchive, "_sync_commits", lambda _: None)
            for number in (1, 2):  # two commits before one sync, as a vacuum makes them
                table_archive.append([], {"archiver:x": number})
        table_archive._opened().create_checkpoint()
        table_archive.append([], {"archiver:x": 3})
        commits = [name for name in done if name.endswith(".json")]
        assert commits == [f"{version:020d}.json" for version in (1, 2, 3)]
        assert {f"{2:020d}.checkpoint.parquet", "_last_checkpoint"} <= set(done)
        done.clear()
        table_archive.append([], {"archiver:x": 4})
        assert [name for name in done if name.endswith(".json")] == [f"{4:020d}.json"]


class TestLease:
    def test_one_holds_the_role_and_the_other_waits_for_its_end(self, redis_url: str) -> None:
        now = [0.0]
        with redis.Redis.from_url(redis_url) as client:
            first = Lease(client, "role", seconds=3, timer=lambda: now[0])
            second = Lease(client, "role", seconds=3, timer=lambda: now[0])
            assert (first.hold(), second.hold(), first.hold()) == (True, False, True)
            assert 0 < client.pttl("role") <= 3000
            first.release()
            assert (second.hold(), first.hold()) == (True, False)

    def test_a_term_is_renewed_after_a_third_of_it(self, redis_url: str) -> None:
        now = [0.0]
        with redis.Redis.from_url(redis_url) as client:
            lease = Lease(client, "role", seconds=3, timer=lambda: now[0])
            lease.hold()
            client.pexpire("role", 1500)
            now[0] = 0.9
            assert lease.hold()
            assert client.pttl("role") <= 1500
            now[0] = 1.1
            assert lease.hold()
            assert client.pttl("role") > 2000

    def test_who_slept_through_a_term_finds_out(self, redis_url: str) -> None:
        now = [0.0]
        with redis.Redis.from_url(redis_url) as client:
            sleeper = Lease(client, "role", seconds=3, timer=lambda: now[0])
            other = Lease(client, "role", seconds=3, timer=lambda: now[0])
            sleeper.hold()
            client.delete("role")  # the term ended
            assert other.hold()
            now[0] = 5.0
            assert not sleeper.hold()
            sleeper.release()  # must not take the role from its new owner
            assert client.exists("role")
            assert other.hold()

    def test_a_redis_that_is_gone_is_an_error_not_a_yes(self) -> None:
        with redis.Redis.from_url("redis://127.0.0.1:1/0", socket_timeout=0.1) as client, pytest.raises(RedisGoneError):
            Lease(client, "role", seconds=3).hold()
