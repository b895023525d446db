"""The consumer's behaviour, on real Redis and on the twins in memory: one suite for both."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.contracts.events import check_event
from feature_repo.contracts.keys import (
    EVENT_PARTITIONS,
    applied_key,
    fence_key,
    partition_of,
    session_key,
    session_key_v1,
    trend_key,
)
from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED
from feature_repo.contracts.session_record import pack_session
from feature_repo.contracts.trend_record import WINDOWS, unpack_trend
from tests.consumer_world import HERE, NOON, TENANT, CrashError, Crashing, MemoryWorld, RedisWorld, World, click, drain
from tests.session_oracle import oracle

GOLDEN_V1 = Path(__file__).parents[1] / "golden" / "session_v1.bin"


class Asked:
    """Streams, and of which partitions each read was."""

    def __init__(self, streams: Any) -> None:
        self._streams = streams
        self.partitions: list[set[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streams, name)

    def read(self, after: Mapping[int, str], **how: Any) -> Any:
        self.partitions.append(set(after))
        return self._streams.read(after, **how)


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

    def test_partitions_with_a_backlog_take_turns_and_what_is_new_goes_along(self, world: World) -> None:
        users = {partition_of(f"u:u{number}"): f"u{number}" for number in range(60)}
        for partition in (0, 1):
            user = users[partition]
            world.deliver(*(click(f"{user}-{n}", f"i{n}", n, user_id=user) for n in range(7)))
        world.streams = asked = Asked(world.streams)  # type: ignore[assignment]
        applier = world.alone(batch=2)
        assert [applier.consume(block_ms=1000), applier.is_behind] == [4, True]  # two of each
        assert [applier.consume(block_ms=1000), applier.is_behind] == [2, True]  # two more of the first
        world.deliver(click("new", "n", user_id=users[2]))
        assert [applier.consume(block_ms=1000), applier.is_behind] == [3, True]  # two of the second, and the new one
        assert world.items(users[2]) == ["n"]
        assert [applier.consume(block_ms=1000) for _ in range(3)] == [2, 2, 1]  # the first one's last
        assert [applier.is_behind, applier.consume(block_ms=1000), applier.is_behind] == [True, 1, False]
        first, second = {0, 2, 3}, {1, 2, 3}
        assert asked.partitions == [{0, 1, 2, 3}, first, second, first, second, first, {0, 1, 2, 3}]
        assert world.items(users[0]) == world.items(users[1]) == [f"i{n}" for n in range(7)]

    def test_a_step_says_how_new_the_newest_is_that_it_applied(self) -> None:
        """Whoever rests in a backlog must know of somebody who waits for the effect of what they have just done."""
        world = MemoryWorld()
        users = {partition_of(f"u:u{number}"): f"u{number}" for number in range(60)}
        world.deliver(click("new", "n", user_id=users[0]))
        (_, fields), before = world.memory.entries[0][-1], 1_709_899_200_000_000
        world.memory.entries[0] = [("1709899300000-0", fields)]
        world.deliver(*(click(f"old-{n}", f"i{n}", n, user_id=users[2]) for n in range(5)))
        applier = world.alone(batch=2)
        assert [applier.consume(block_ms=None), applier.reached_micros] == [3, before + 100_000_000]
        assert [applier.consume(block_ms=None), applier.reached_micros] == [2, before]
        assert [applier.consume(block_ms=None), applier.reached_micros] == [1, before]
        assert [applier.consume(block_ms=None), applier.reached_micros] == [0, 0]

    def test_nothing_comes_only_when_nothing_is_there(self, world: World) -> None:
        """The first partition has been read to its end and nobody knows it; the second has more."""
        users = {partition_of(f"u:u{number}"): f"u{number}" for number in range(60)}
        for partition, count in ((0, 2), (1, 3)):
            user = users[partition]
            world.deliver(*(click(f"{user}-{n}", f"i{n}", n, user_id=user) for n in range(count)))
        applier = world.alone(batch=2)
        assert [applier.consume(block_ms=1000) for _ in range(2)] == [4, 1]

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

    def test_a_record_of_format_1_is_found_when_the_newer_one_of_a_known_person_is_gone(self, world: World) -> None:
        applier = world.alone()
        world.deliver(click("e1", "a"))
        applier.consume(block_ms=None)
        world.put(session_key("u:u1", TENANT), None)
        world.put(session_key_v1("u:u1", TENANT), GOLDEN_V1.read_bytes())
        world.deliver(click("e2", "b"))
        applier.consume(block_ms=None)
        assert world.items() == ["i1", "ä" * 128, "b"]
        assert world.get(session_key_v1("u:u1", TENANT)) is None

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
