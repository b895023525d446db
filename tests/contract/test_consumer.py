"""The consumer's behaviour, on real Redis and on the twins in memory: one suite for both."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.contracts.events import check_event
from feature_repo.contracts.keys import (
    EVENT_PARTITIONS,
    applied_key,
    dead_letter_stream_key,
    dedup_key,
    delivering_key,
    fence_key,
    members_key,
    owner_key,
    partition_of,
    session_key,
    session_key_v1,
    speed_counters_key,
    stream_key,
    trend_key,
)
from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED
from feature_repo.contracts.session_record import SessionState, pack_session, unpack_session
from feature_repo.contracts.trend_record import WINDOWS, unpack_trend
from serving.speed import applier as applier_module
from serving.speed import care as care_module
from serving.speed.applier import MAX_DELIVERIES, Applier
from serving.speed.entries import read_logged
from serving.speed.ownership import Ownership, fair_share
from serving.speed.session_state import fold_event
from serving.speed.stores import (
    Changes,
    EventStreams,
    FencedError,
    MemoryEventStreams,
    MemoryStateStore,
    OvertakenError,
    RedisEventStreams,
    RedisStateStore,
    StateStore,
)
from tests.session_oracle import oracle

TENANT = "shop"
HERE = partition_of("u:u1")
NOON = datetime(2024, 3, 8, 12, tzinfo=UTC)
GOLDEN_V1 = Path(__file__).parents[1] / "golden" / "session_v1.bin"


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


@pytest.fixture(params=["redis", "memory"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
        return
    made = RedisWorld(request.getfixturevalue("redis_url"))
    yield made
    made.client.close()


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


class TestBatches:
    def test_events_become_session_records(self, world: World) -> None:
        world.deliver(click("e1", "late", 30), click("e2", "early", 10), click("e3", "x", user_id="u2"))
        applier = world.alone()
        assert applier.consume(block_ms=None) == 3
        assert (world.items(), world.items("u2")) == (["early", "late"], ["x"])
        assert 990 < world.seconds_left(session_key("u:u1", TENANT)) <= 1000
        assert world.counters() == {"applied": 3}
        assert world.get(applied_key(HERE, TENANT)) == b"1709899200000-2"
        assert applier.consume(block_ms=None) == 0

    def test_duplicates_count_once_and_a_late_event_finds_its_place(self, world: World) -> None:
        applier = world.alone()
        world.deliver(click("e1", "a", 20))
        applier.consume(block_ms=None)
        # The same id again, with another item, before and after the consumer has seen the first; and a late event.
        world.deliver(click("e1", "wrong"), click("e2", "b", 5), click("e2", "wrong"))
        applier.consume(block_ms=None)
        assert world.items() == ["b", "a"]
        assert world.counters() == {"applied": 2, "duplicate": 2}

    def test_a_mark_that_is_gone_can_refuse_nobody(self, world: World) -> None:
        world.deliver(click("e1", "a"))
        world.unmark(HERE, "e1")
        world.alone().consume(block_ms=None)
        assert world.items() == ["a"]

    def test_a_backlog_is_applied_in_batches_of_many_subjects(self, world: World) -> None:
        users = [f"u{number}" for number in range(60)]
        world.deliver(*(click(f"{user}-{n}", f"i{n}", n, user_id=user) for n in range(3) for user in users))
        applier = world.alone(batch=25)
        handled = list(iter(lambda: applier.consume(block_ms=None), 0))
        assert sum(handled) == 180
        assert max(handled) <= 25 * EVENT_PARTITIONS
        assert [world.items(user) for user in users] == [["i0", "i1", "i2"]] * 60
        assert world.counters() == {"applied": 180}

    def test_a_crash_before_the_write_changes_nothing_and_is_made_up_for(self, world: World) -> None:
        world.deliver(click("e1", "a", 1), click("e2", "b", 2))
        real = world.store
        world.store = Crashing(real, is_written=False)  # type: ignore[assignment]
        with pytest.raises(CrashError):
            world.alone().consume(block_ms=None)
        world.store = real
        keys = [session_key("u:u1", TENANT), applied_key(HERE, TENANT), trend_key(2, 475_020, HERE, TENANT)]
        assert ([world.get(key) for key in keys], world.counters()) == ([None] * 3, {})
        successor = world.alone()
        drain(successor)
        assert (world.items(), world.counters()) == (["a", "b"], {"applied": 2})

    def test_a_crash_after_the_write_repeats_nothing(self, world: World) -> None:
        world.deliver(click("e1", "a", 1), click("e2", "b", 2))
        real = world.store
        world.store = Crashing(real, is_written=True)  # type: ignore[assignment]
        dying = world.alone()
        with pytest.raises(CrashError):
            dying.consume(block_ms=None)
        world.store = real
        assert world.alone().consume(block_ms=None) == 0
        assert world.counters() == {"applied": 2}
        # Should the first one have lived on without learning that its write arrived: it has no fence any more.
        assert dying.consume(block_ms=None) == 0
        assert world.counters() == {"applied": 2}
        assert HERE not in dying.ownership.claims

    def test_a_store_that_was_set_back_is_followed(self, world: World) -> None:
        """Redis `online` restarted from an older snapshot: sessions, positions and fences of a minute ago."""
        applier = world.alone()
        world.deliver(click("e1", "a", 1))
        applier.consume(block_ms=None)
        before = {key: world.get(key) for key in (session_key("u:u1", TENANT), applied_key(HERE, TENANT))}
        world.deliver(click("e2", "b", 2))
        applier.consume(block_ms=None)
        for key, value in before.items():
            world.put(key, value)
        assert [applier.consume(block_ms=None) for _ in range(3)] == [0, 1, 0]  # noticed while nothing comes
        world.deliver(click("e3", "c", 3))
        for key, value in before.items():
            world.put(key, value)
        assert [applier.consume(block_ms=None) for _ in range(3)] == [0, 2, 0]  # noticed by the batch that comes
        assert world.items() == ["a", "b", "c"]

    def test_an_emptied_store_is_rebuilt_from_the_stream(self, world: World) -> None:
        world.deliver(click("e1", "a", 1), click("e2", "b", 2))
        applier = world.alone()
        applier.consume(block_ms=None)
        for key in (session_key("u:u1", TENANT), applied_key(HERE, TENANT), fence_key(HERE, TENANT)):
            world.put(key, None)
        assert applier.consume(block_ms=None) == 0
        assert HERE not in applier.ownership.claims
        successor = world.alone()
        drain(successor)
        assert world.items() == ["a", "b"]

    def test_a_damaged_record_starts_anew_without_consent(self, world: World) -> None:
        world.put(session_key("u:u1", TENANT), b"\x02damaged")
        world.deliver(click("e1", "a"))
        world.alone().consume(block_ms=None)
        assert (world.items(), world.state().flags) == (["a"], FLAG_PERSONALIZE_DENIED)
        assert world.counters() == {"applied": 1, "damaged_session": 1}

    def test_a_record_of_format_1_is_continued_and_replaced(self, world: World) -> None:
        world.put(session_key_v1("u:u1", TENANT), GOLDEN_V1.read_bytes())
        world.deliver(click("e1", "a"))
        world.alone().consume(block_ms=None)
        assert world.items() == ["i1", "ä" * 128, "a"]
        assert (world.state().flags, world.get(session_key_v1("u:u1", TENANT))) == (FLAG_PERSONALIZE_DENIED, None)

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_order_and_repetition_in_any_batches_gives_the_oracles_record(
        self, world: World, data: st.DataObject
    ) -> None:
        if isinstance(world, RedisWorld):
            world.client.flushall()
        else:
            world.__init__()  # type: ignore[misc]
        users = ["u1", "u2"]
        kinds = st.sampled_from(["view_item", "add_to_cart", "purchase", "dislike", "search"])
        made = data.draw(
            st.lists(
                st.tuples(kinds, st.sampled_from("abcdefghijkl"), st.integers(0, 90_000), st.sampled_from(users)),
                max_size=30,
            )
        )  # fmt: skip
        events = [
            click(f"e{n}", item, second, event_type=kind, user_id=user)
            for n, (kind, item, second, user) in enumerate(made)
        ]
        world.deliver(*data.draw(st.permutations(events + events[::2])))
        applier = world.alone(batch=data.draw(st.integers(1, 20)))
        drain(applier)
        for user in {event["user_id"] for event in events}:
            checked = [check_event(e, received_at=NOON + timedelta(days=2))[0] for e in events if e["user_id"] == user]
            expected = oracle([event for event in checked if event is not None])
            assert world.get(session_key(f"u:{user}", TENANT)) == pack_session(expected)
        counts = world.counters()
        assert counts.get("applied", 0) == len(events)
        assert counts.get("duplicate", 0) == len(events[::2])


class TestTrends:
    def votes(self, world: World, user: str = "u1") -> dict[str, dict[str, int]]:
        """Window -> item -> votes at noon and shortly after, of the partition of `user`."""
        found: dict[str, dict[str, int]] = {}
        for window in WINDOWS:
            for bucket in window.buckets_at(int((NOON + timedelta(minutes=4)).timestamp() * 1e6)):
                record = world.get(trend_key(window.number, bucket, partition_of(f"u:{user}"), TENANT))
                for item, count in unpack_trend(record).votes.items() if record else ():
                    found.setdefault(window.name, {}).setdefault(item, 0)
                    found[window.name][item] += count
        return found

    def test_every_window_counts_subjects_and_its_tables_end(self, world: World, monkeypatch: Any) -> None:
        events = [click("e1", "a", 1), click("e2", "a", 70), click("e3", "b", 71), click("e4", "a", 2, user_id="u3")]
        assert partition_of("u:u3") == HERE
        applier = world.alone()
        if isinstance(world, RedisWorld):  # the tables of 2024 would end at once: let them end after all windows
            monkeypatch.setattr("feature_repo.contracts.trend_record.TrendWindow.expires_at", lambda *_: 4_000_000_000)
        world.deliver(*events[:2])
        applier.consume(block_ms=None)
        world.deliver(*events[2:])
        applier.consume(block_ms=None)
        assert self.votes(world) == {window.name: {"a": 2, "b": 1} for window in WINDOWS}
        if isinstance(world, MemoryWorld):
            # The hour from 12:00 of 8 March (bucket 474,972 since 1970) ends with two days to spare.
            hour = int(NOON.timestamp()) // 3600
            assert world.seconds_left(trend_key(2, hour, HERE, TENANT)) == 3600 + 2 * 86_400

    def test_a_vote_that_moves_or_gives_way_leaves_its_old_bucket(self, world: World, monkeypatch: Any) -> None:
        monkeypatch.setattr("feature_repo.contracts.trend_record.TrendWindow.expires_at", lambda *_: 4_000_000_000)
        applier = world.alone()
        for number in range(12):
            world.deliver(click(f"x{number}", f"i{number}", 200))
            applier.consume(block_ms=None)
        world.deliver(*(click(f"y{number}", f"i{number}", 10) for number in range(12)))
        applier.consume(block_ms=None)
        votes = self.votes(world)
        assert [sum(votes[name].values()) for name in ("5m", "1h", "1d")] == [8, 8, 8]
        assert set(votes["5m"].values()) == {1}

    def test_what_no_reader_looks_at_is_not_written(self, world: World) -> None:
        world.deliver(click("e1", "a", -3 * 86_400 - 7200))
        world.alone().consume(block_ms=None)
        day = int(NOON.timestamp()) // 3600 - 3 * 24 - 2
        assert world.get(trend_key(2, day, HERE, TENANT)) is None
        assert world.items() == ["a"]


POISON = {
    "no json": b"{",
    "a list": b"[]",
    "nobody": b"{}",
    "no time": b'{"event_id":"p","user_id":"u1","event_type":"view_item","item_id":"a"}',
    "item id a number": b'{"event_id":"p","user_id":"u1","event_type":"view_item","item_id":7,"timestamp":1709899200}',
    "id without utf-8": b'{"event_id":"\\ud800","user_id":"u1"}',
}


class TestDeadLetters:
    @pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
    def test_poison_is_buried_and_the_stream_goes_on(self, world: World, poison: bytes) -> None:
        world.deliver(click("e1", "a", 1))
        (position,) = world.deliver(click("p", "poison"), raw=poison)
        world.deliver(click("e2", "b", 2))
        world.alone().consume(block_ms=None)
        assert world.items() == ["a", "b"]
        assert world.counters() == {"applied": 2, "dead_lettered": 1}
        ((partition, at, event, error, deliveries),) = world.letters()
        assert (partition, at, event, deliveries) == (HERE, position, poison, 1)
        assert error

    def test_an_entry_that_fails_is_given_up_after_three_deliveries_alone(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The entry in the middle fails half-way, after it has changed its copy of the record."""
        delivered: list[str] = []

        def fold(state: SessionState, event: Mapping[str, Any]) -> None:
            fold_event(state, event)
            if event["event_id"] == "bad":
                delivered.append(event["event_id"])
                raise RecursionError("too deep")

        monkeypatch.setattr(applier_module, "fold_event", fold)
        events = [click("e1", "a", 1), click("bad", "wrong", 2), click("e2", "b", 3), click("e3", "x", user_id="u3")]
        positions = world.deliver(*events)
        world.alone().consume(block_ms=None)
        assert (world.items(), world.items("u3"), len(delivered)) == (["a", "b"], ["x"], MAX_DELIVERIES)
        assert world.counters() == {"applied": 3, "dead_lettered": 1}
        letters = [(at, error, deliveries) for _, at, _, error, deliveries in world.letters()]
        assert letters == [(positions[1], "RecursionError: too deep", 3)]

    def test_an_entry_that_fails_once_is_applied(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        failures = [MemoryError()]

        def fold(state: SessionState, event: Mapping[str, Any]) -> None:
            fold_event(state, event)
            if failures:
                raise failures.pop()

        monkeypatch.setattr(applier_module, "fold_event", fold)
        world.deliver(click("e1", "a", 1), click("e2", "b", 2))
        world.alone().consume(block_ms=None)
        assert (world.items(), world.counters(), world.letters()) == (["a", "b"], {"applied": 2}, [])

    def test_who_makes_a_record_that_cannot_be_written_is_found(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def pack(state: SessionState) -> bytes:
            if any(event.item_id == "wrong" for event in state.events):
                raise ValueError("cannot be packed")
            return pack_session(state)

        monkeypatch.setattr(applier_module, "pack_session", pack)
        world.deliver(click("e1", "a", 1), click("bad", "wrong", 2), click("e2", "b", 3))
        world.alone().consume(block_ms=None)
        assert (world.items(), world.counters()) == (["a", "b"], {"applied": 2, "dead_lettered": 1})

    def test_a_letter_is_written_once_although_the_batch_is_repeated(self, world: World) -> None:
        world.deliver(click("p", "poison"), raw=b"{")
        real = world.store
        world.store = Crashing(real, is_written=False)  # type: ignore[assignment]
        with pytest.raises(CrashError):
            world.alone().consume(block_ms=None)
        world.store = real
        assert len(world.letters()) == 1
        world.alone().consume(block_ms=None)
        assert (len(world.letters()), world.counters()) == (1, {"dead_lettered": 1})

    def test_an_entry_that_kills_its_process_is_buried_unread_after_three(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The process dies while it applies entry 3 of 5: in a batch, then in a small group, then alone."""
        monkeypatch.setattr(care_module, "GROUP_EVENTS", 2)
        deaths = 0

        class Killed(BaseException):
            pass

        def fold(state: SessionState, event: Mapping[str, Any]) -> None:
            nonlocal deaths
            if event["event_id"] == "e3":
                deaths += 1
                raise Killed
            fold_event(state, event)

        monkeypatch.setattr(applier_module, "fold_event", fold)
        world.deliver(*(click(f"e{n}", f"i{n}", n) for n in range(1, 6)))
        seen: list[list[str]] = []
        for _ in range(MAX_DELIVERIES):
            applier = world.alone()
            with pytest.raises(Killed):
                drain(applier)
            record = world.get(session_key("u:u1", TENANT))
            seen.append([event.item_id for event in unpack_session(record).events] if record else [])
        assert (deaths, seen) == (MAX_DELIVERIES, [[], ["i1", "i2"], ["i1", "i2"]])
        applier = world.alone()
        drain(applier)
        assert (deaths, world.items()) == (MAX_DELIVERIES, ["i1", "i2", "i4", "i5"])
        assert world.counters() == {"applied": 4, "dead_lettered": 1}
        ((_, _, _, error, deliveries),) = world.letters()
        assert (error, deliveries) == ("its consumer died in each of 3 deliveries", 3)

    def test_who_died_without_a_guilty_entry_costs_none(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Four owners vanish before they have applied anything: nothing is suspected for ever, nothing is buried."""
        monkeypatch.setattr(care_module, "GROUP_EVENTS", 1)
        monkeypatch.setattr(applier_module, "MAX_GROWTH", 1)
        world.deliver(*(click(f"e{n}", f"i{n}", n) for n in range(1, 11)))
        for _ in range(4):
            world.alone()
        applier = world.alone(batch=2)
        handled = list(iter(lambda: applier.consume(block_ms=None), 0))
        assert handled == [1, 1, 2, 2, 2, 2]  # as many in small groups as may have been under way, then in batches
        assert (world.counters(), world.letters()) == ({"applied": 10}, [])

    def test_a_death_while_the_store_is_written_is_no_entrys_fault(self, world: World) -> None:
        """Five owners die in the commit of the very same entry: it is applied by the sixth."""
        world.deliver(click("e1", "a", 1), click("e2", "b", 2))
        real = world.store
        world.store = Crashing(real, is_written=False)  # type: ignore[assignment]
        for _ in range(5):
            with pytest.raises(CrashError):
                world.alone().consume(block_ms=None)
        world.store = real
        drain(world.alone())
        assert (world.items(), world.counters(), world.letters()) == (["a", "b"], {"applied": 2}, [])

    def test_accepted_is_applied_and_dead_lettered(self, world: World) -> None:
        users = [f"u{number}" for number in range(9)]
        world.deliver(*(click(f"{user}-{n}", f"i{n}", n, user_id=user) for user in users for n in range(4)))
        for user in users[:4]:
            world.deliver(click(f"{user}-poison", "x", user_id=user), raw=b"[")
        applier = world.alone(batch=7)
        drain(applier)
        counts = world.counters()
        assert counts == {"applied": 36, "dead_lettered": 4}
        assert len({(partition, at) for partition, at, *_ in world.letters()}) == counts["dead_lettered"]


class TestSharedEntries:
    def test_each_event_of_an_entry_is_judged_by_its_own_mark(self, world: World) -> None:
        world.deliver(click("e1", "a", 1))
        world.deliver_together(
            click("e2", "b", 2), click("e1", "wrong", 9), click("e3", "c", 3), click("e2", "wrong", 9)
        )
        world.alone().consume(block_ms=None)
        assert (world.items(), world.counters()) == (["a", "b", "c"], {"applied": 3, "duplicate": 2})

    def test_letters_name_the_event_and_the_others_of_its_entry_are_applied(self, world: World) -> None:
        events = [click("e1", "a", 1), click("p", "x"), click("e2", "b", 2), click("q", "x")]
        position = world.deliver_together(*events, raws={"p": b"{", "q": b"7"})
        real = world.store
        world.store = Crashing(real, is_written=False)  # type: ignore[assignment]
        with pytest.raises(CrashError):
            world.alone().consume(block_ms=None)
        world.store = real
        world.alone().consume(block_ms=None)
        assert (world.items(), world.counters()) == (["a", "b"], {"applied": 2, "dead_lettered": 2})
        assert [(at, event) for _, at, event, _, _ in world.letters()] == [(position, b"{"), (position, b"7")]

    def test_an_entry_that_is_torn_is_one_letter(self, world: World) -> None:
        world.add(HERE, {b"events": b"{}\n{}", b"nonces": b"n1"})
        world.add(HERE, {b"no": b"event"})
        world.deliver(click("e1", "a"))
        world.alone().consume(block_ms=None)
        assert (world.items(), world.counters()) == (["a"], {"applied": 1, "dead_lettered": 2})

    def test_large_entries_make_smaller_transactions_and_all_is_applied(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int] = []
        for number in range(8):
            world.deliver_together(*(click(f"e{number}.{n}", f"i{number}.{n}", 5 * number + n) for n in range(5)))
        applier = world.alone(batch=8)
        monkeypatch.setattr(applier._metrics.batch_entries, "observe", sizes.append)
        drain(applier)
        assert (len(world.items()), world.counters()) == (40, {"applied": 40})
        assert sizes == [5, 15, 20]  # two entries are more than a batch; then it may be twice, and four times as large

    def test_of_an_entry_that_kills_only_the_guilty_are_buried(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two of the ten events of one entry kill whoever folds them, one whoever reads it."""
        deaths: list[str] = []

        class Killed(BaseException):
            pass

        def fold(state: SessionState, event: Mapping[str, Any]) -> None:
            if event["event_id"] in ("e3", "e7"):
                deaths.append(event["event_id"])
                raise Killed
            fold_event(state, event)

        def read(partition: int, position: str, number: int, raw: bytes, nonce: bytes) -> Any:
            if b'"e5"' in raw:
                deaths.append("e5")
                raise Killed
            return read_logged(partition, position, number, raw, nonce)

        monkeypatch.setattr(applier_module, "fold_event", fold)
        monkeypatch.setattr(applier_module, "read_logged", read)
        world.deliver(click("e0", "i0", 0))
        world.deliver_together(*(click(f"e{n}", f"i{n}", n) for n in range(1, 11)))
        world.deliver(click("e11", "i11", 11))
        for _ in range(9):
            try:
                drain(world.alone())
            except Killed:
                continue
            break
        assert deaths == ["e5", "e5", "e5", "e3", "e7"]  # the first death is counted for all that were delivered then
        assert world.items() == [f"i{n}" for n in (0, 1, 2, 4, 6, 8, 9, 10, 11)]
        assert world.counters() == {"applied": 9, "dead_lettered": 3}
        assert {json.loads(event)["event_id"] for _, _, event, _, _ in world.letters()} == {"e3", "e5", "e7"}


class TestFences:
    def test_an_owner_that_was_replaced_writes_nothing(self, world: World) -> None:
        sleeper = world.alone()
        world.deliver(click("e1", "a"))
        world.alone().consume(block_ms=None)
        world.deliver(click("e2", "b"))
        assert sleeper.consume(block_ms=None) == 0
        assert (world.items(), world.counters()) == (["a"], {"applied": 1})
        assert HERE not in sleeper.ownership.claims

    def test_an_owner_that_is_replaced_between_its_read_and_its_write_writes_nothing(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.deliver(click("e1", "a"))
        sleeper = world.alone()

        def overtaken(state: SessionState, event: Mapping[str, Any]) -> None:
            monkeypatch.setattr(applier_module, "fold_event", fold_event)
            faster = world.alone()
            drain(faster)
            fold_event(state, event)

        monkeypatch.setattr(applier_module, "fold_event", overtaken)
        assert sleeper.consume(block_ms=None) == 0
        assert (world.items(), world.counters()) == (["a"], {"applied": 1})
        assert sleeper.consume(block_ms=None) == 0
        assert sleeper.ownership.claims == {}

    def test_a_transaction_sees_lost_fences_and_moved_positions(self, world: World) -> None:
        fence, left = world.store.claim(1, "one", term_ms=5000) or ("", "")
        assert (fence, left) == ("1:one", None)
        with world.store.transaction({1: fence, 2: "7:one"}) as transaction, pytest.raises(FencedError) as caught:
            transaction.read([])
        assert caught.value.partitions == {2}
        with world.store.transaction({1: fence}) as transaction:
            assert (transaction.read(["k"]), transaction.positions()) == ([None], {1: None})
            world.put(applied_key(1, TENANT), b"5-0")
            with pytest.raises(OvertakenError):
                transaction.commit(Changes(positions={1: "9-0"}))
        assert world.get(applied_key(1, TENANT)) == b"5-0"

    def test_a_fence_grows_with_every_owner_and_is_kept_by_its_own(self, world: World) -> None:
        assert world.store.claim(0, "one", term_ms=5000) == ("1:one", None)
        assert world.store.claim(0, "two", term_ms=5000) is None
        assert world.store.renew({0: "1:one", 1: "1:one"}, term_ms=5000) == {0}
        world.pass_seconds(6)
        assert world.store.claim(0, "two", term_ms=5000) == ("2:two", "")  # "" : the first one did not say good-bye
        assert world.store.renew({0: "1:one"}, term_ms=5000) == set()
        world.store.release(0, "1:one")  # must not take it from its new owner
        assert world.store.claim(0, "three", term_ms=5000) is None
        world.store.note_delivery(0, "5-0 2")
        world.pass_seconds(6)
        assert world.store.claim(0, "three", term_ms=5000) == ("3:three", "5-0 2")
        world.store.release(0, "3:three")
        assert world.store.claim(0, "four", term_ms=5000) == ("4:four", None)
        assert world.get(delivering_key(0, TENANT)) == b""


class TestShares:
    def test_shares_are_even_and_add_up(self) -> None:
        for count in range(1, 8):
            members = [f"m{number}" for number in range(count)]
            shares = [fair_share(member, members) for member in members]
            assert (sum(shares), max(shares) - min(shares) <= 1) == (EVENT_PARTITIONS, True), count
        assert fair_share("new", ["a", "b"]) == 1  # who is not listed yet counts itself

    def test_who_comes_and_goes_moves_partitions_and_nothing_is_lost(self, world: World) -> None:
        clock = [0.0]
        first, second = (world.applier(name, timer=lambda: clock[0]) for name in ("first", "second"))
        sent = 0

        def send_and_work(*appliers: Applier) -> None:
            nonlocal sent
            users = [f"u{number}" for number in range(12)]
            world.deliver(*(click(f"e{sent}-{user}", f"i{sent}", sent, user_id=user) for user in users))
            sent += 1
            for _ in range(2):
                clock[0] += 2
                for applier in appliers:
                    applier.ownership.tend()
                    applier.consume(block_ms=None)

        def shares() -> list[int]:
            return [len(applier.ownership.claims) for applier in (first, second)]

        send_and_work(first)
        assert shares() == [4, 0]
        send_and_work(first, second)
        assert shares() == [2, 2]
        assert not set(first.ownership.claims) & set(second.ownership.claims)
        send_and_work(first, second)
        first.ownership.leave()
        send_and_work(second)
        assert shares() == [0, 4]
        # The second one dies without a word; the first one, back again, waits for the end of its term.
        first.ownership.tend()
        assert shares()[0] == 0
        world.pass_seconds(6)
        for _ in range(200):
            first.ownership.tend()
            if not first.consume(block_ms=None) and world.counters().get("applied") == 12 * sent:
                break
        assert shares()[0] == 4
        assert world.counters() == {"applied": 12 * sent}
        assert [world.items(f"u{number}") for number in range(12)] == [[f"i{n}" for n in range(sent)]] * 12
        send_and_work(first, second)
        assert world.counters() == {"applied": 12 * sent}
        assert shares() in ([4, 0], [2, 2])
