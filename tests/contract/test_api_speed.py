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
    archived_key,
    partition_of,
    quarantine_stream_key,
    session_key,
    speed_counters_key,
    stream_key,
)
from feature_repo.contracts.packing import SessionState, unpack_session
from feature_repo.contracts.tables import table, table_path
from serving.adapters.event_log import LogEntry, QuarantinedEvent
from serving.adapters.redis_event_log import RedisEventLog
from serving.speed.archiver import EVENTS_TABLE, PAGE_ENTRIES, QUARANTINE_TABLE, Archiver
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

    async def deliver(self, *events: dict[str, Any], may_share: bool = False) -> list[bool]:
        """What POST /v1/events does: one request with these events."""
        log = RedisEventLog(self.url, tenant=TENANT, timeout_seconds=1)
        entries = [
            LogEntry(f"u:{e['user_id']}", e["event_id"], f"n{next(self.nonces)}", json.dumps(e).encode(), may_share)
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

    async def test_each_event_of_an_entry_is_a_delivery_with_a_place_of_its_own(self, archive: Archive) -> None:
        events = [click(f"e{number}", f"i{number}", number % 60) for number in range(70)]
        events[3]["price"] = 10**400
        await archive.speed.deliver(*events, click("e1", "again"), may_share=True)
        assert archive.client.xlen(stream_key(HERE)) == 2
        archiver = archive.new_archiver()
        assert (archiver.archive(), archiver.archive()) == (71, 0)
        assert archive.ids() == sorted([*(event["event_id"] for event in events if event is not events[3]), "e1"])
        (bad,) = archive.rows(QUARANTINE_TABLE)
        places = {(row["source"], row["source_position"]) for row in [*archive.rows(), bad]}
        assert len(places) == 71
        assert (bad["reason"], bad["source"]) == ("unreadable", f"{stream_key(HERE)}#03")
        assert archive.speed.consumer.consume(block_ms=None) == 71
        assert archive.speed.counters() == {"applied": 69, "duplicate": 1, "dead_lettered": 1}

    async def test_a_round_takes_a_share_of_events_not_of_entries(self, archive: Archive) -> None:
        await archive.speed.deliver(*(click(f"e{number}", "i") for number in range(1000)), may_share=True)
        archiver = archive.new_archiver()
        assert archiver.stream_share == 83
        sizes = list(iter(archiver.archive, 0))
        assert (sum(sizes), max(sizes) <= 83 + 64 * PAGE_ENTRIES) == (1000, True)
        assert len(archive.ids()) == 1000

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

        monkeypatch.setattr("feature_repo.contracts.torn_commits.sync", lambda path: done.append(path.name))
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
        monkeypatch.setattr("feature_repo.contracts.torn_commits.sync", lambda path: done.append(path.name))
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
