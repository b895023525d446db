"""Votes by region as the consumer keeps them, on real Redis and on the twins in memory: one suite for both."""

from __future__ import annotations

from typing import Any

import pytest

from feature_repo.contracts.keys import partition_of, region_trend_key, session_key, trend_key, trend_regions_key
from feature_repo.contracts.trend_record import MAX_REGIONS, WINDOWS, unpack_regions, unpack_trend
from serving.speed.metrics import StreamPositions
from serving.speed.trend_tables import LEFT_OUT
from tests.consumer_world import HERE, NOON, TENANT, CrashError, Crashing, MemoryWorld, RedisWorld, World, click, drain

MINUTE, HOUR = int(NOON.timestamp()) // 60, int(NOON.timestamp()) // 3600
OTHERS = ("u3", "u8", "u15")
"""Users of the partition of u1."""


def seen_in(region: object, event_id: str, item: str, second: int = 0, **more: Any) -> dict[str, Any]:
    return click(event_id, item, second, context={"region": region}, **more)


def table(world: World, region: str, *, window: int = 0, bucket: int = MINUTE) -> dict[str, int]:
    """Item -> votes of one bucket; `region` "": of all regions."""
    key = region_trend_key(window, bucket, HERE, region, TENANT) if region else trend_key(window, bucket, HERE, TENANT)
    record = world.get(key)
    return unpack_trend(record).votes if record else {}


def regions(world: World, *, window: int = 0, bucket: int = MINUTE) -> list[str]:
    record = world.get(trend_regions_key(window, bucket, HERE, TENANT))
    return unpack_regions(record) if record else []


@pytest.fixture(autouse=True)
def _tables_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Redis the tables of 2024 would end at once."""
    if isinstance(world, RedisWorld):
        monkeypatch.setattr("feature_repo.contracts.trend_record.TrendWindow.expires_at", lambda *_: 4_000_000_000)


def test_a_vote_counts_in_its_region_and_in_all(world: World) -> None:
    world.deliver(
        seen_in("DE", "e1", "a"),
        seen_in("DE", "e2", "a", user_id=OTHERS[0]),
        seen_in("FR", "e3", "a", user_id=OTHERS[1]),
        click("e4", "a", user_id=OTHERS[2]),  # from nowhere
        seen_in("FR", "e5", "b", user_id=OTHERS[2]),
        seen_in("FR", "e6", "c", event_type="search"),  # no vote
    )
    world.alone().consume(block_ms=None)
    for window, bucket in ((0, MINUTE), (1, HOUR * 12), (2, HOUR)):
        assert table(world, "", window=window, bucket=bucket) == {"a": 4, "b": 1}
        assert table(world, "DE", window=window, bucket=bucket) == {"a": 2}
        assert table(world, "FR", window=window, bucket=bucket) == {"a": 1, "b": 1}
        assert regions(world, window=window, bucket=bucket) == ["DE", "FR"]
    assert world.state().regions == {(0, MINUTE // 5, "a"): "DE", (1, HOUR, "a"): "DE", (2, HOUR // 24, "a"): "DE"}
    if isinstance(world, MemoryWorld):
        keys = [region_trend_key(2, HOUR, HERE, "DE", TENANT), trend_regions_key(2, HOUR, HERE, TENANT)]
        assert [world.seconds_left(key) for key in keys] == [3600 + 2 * 86_400] * 2


def test_regions_are_words_as_they_are_said(world: World) -> None:
    """An odd case is another region; a word of 65 bytes, or with a NUL, and what is no word is none."""
    world.deliver(
        seen_in("de", "e1", "a"), seen_in("DE", "e2", "b"), seen_in("x" * 65, "e3", "c"), seen_in("x" * 64, "e4", "d"),
        seen_in("a\0b", "e5", "e"), seen_in(["DE"], "e6", "f"), seen_in("US:NY", "e7", "g"), seen_in(49, "e8", "h"),
    )  # fmt: skip
    world.deliver(
        click("e9", "a", user_id=OTHERS[0], context={"country": "DE", "location": {"country": "FR"}}),
        click("f1", "b", user_id=OTHERS[0], context={"location": {"country": "FR"}}),
        click("f2", "c", user_id=OTHERS[0], context={"region": "", "country": "DE"}),
    )
    world.alone().consume(block_ms=None)
    assert sorted(regions(world)) == ["49", "DE", "FR", "US:NY", "de", "x" * 64]
    assert table(world, "") == {"a": 2, "b": 2, "c": 2, "d": 1, "e": 1, "f": 1, "g": 1, "h": 1}
    assert [table(world, region) for region in ("de", "DE", "FR")] == [{"a": 1}, {"a": 1, "b": 1, "c": 1}, {"b": 1}]
    assert [table(world, region) for region in ("x" * 64, "US:NY", "49")] == [{"d": 1}, {"g": 1}, {"h": 1}]


def test_a_late_event_takes_the_vote_from_the_region_to_which_it_went(world: World) -> None:
    """First seen at 12:02 in DE, for all that was known; then at 12:01 in FR, then at 12:00 by nobody knows where."""
    applier = world.alone()
    told = []
    for event in (seen_in("DE", "e1", "a", 130), seen_in("FR", "e2", "a", 70), click("e3", "a", 10)):
        world.deliver(event)
        applier.consume(block_ms=None)
        told.append(
            [[table(world, region, bucket=MINUTE + n).get("a", 0) for n in range(3)] for region in ("", "DE", "FR")]
        )
    assert told == [
        [[0, 0, 1], [0, 0, 1], [0, 0, 0]],
        [[0, 1, 0], [0, 0, 0], [0, 1, 0]],
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
    ]
    assert [table(world, region, window=2, bucket=HOUR) for region in ("", "DE", "FR")] == [{"a": 1}, {"a": 1}, {}]


@pytest.mark.parametrize("order", [("DE", "FR", None), (None, "FR", "DE"), ("FR", None, "DE")])
def test_of_one_bucket_the_region_that_sorts_first_has_the_vote(world: World, order: tuple[str | None, ...]) -> None:
    """Whatever comes first, and with one event in a batch: a tie, and no region only where none is named."""
    applier = world.alone()
    for number, region in enumerate(order):
        more = {} if region is None else {"context": {"region": region}}
        world.deliver(click(f"e{number}", "a", 5 - number, **more))
        applier.consume(block_ms=None)
    assert [table(world, region) for region in ("", "DE", "FR")] == [{"a": 1}, {"a": 1}, {}]


def test_one_subject_is_bounded_in_every_region_and_in_all(world: World) -> None:
    """Forty items, each seen in three regions: eight votes in all, each in one region, whatever gives way to what."""
    applier = world.alone()
    for number in range(40):
        for place, region in enumerate(("DE", "FR", "NL")):
            world.deliver(seen_in(region, f"{number}-{region}", f"i{number}", (number * 7 + place) % 50))
        applier.consume(block_ms=None)
    everywhere = table(world, "", window=2, bucket=HOUR)
    by_region = {region: table(world, region, window=2, bucket=HOUR) for region in ("DE", "FR", "NL")}
    assert (sum(everywhere.values()), set(everywhere.values())) == (8, {1})
    assert by_region == {"DE": everywhere, "FR": {}, "NL": {}}


def test_a_bot_moves_no_region(world: World) -> None:
    """Twenty views in a second pass; of the others none counts, and what counted before stays where it went."""
    world.deliver(*(seen_in("DE", f"e{n}", "a" if n < 20 else f"b{n}", 1) for n in range(40)))
    world.deliver(seen_in("FR", "f1", "c", 70))
    drain(world.alone(batch=7))
    assert (table(world, "DE"), table(world, "FR", bucket=MINUTE + 1)) == ({"a": 1}, {})
    assert (table(world, ""), regions(world, bucket=MINUTE + 1)) == ({"a": 1}, [])


def test_a_merge_and_its_undoing_move_no_vote(world: World) -> None:
    """The device's votes are the device's, the user's the user's: two subjects, before and after."""
    edge = {"user_id": OTHERS[0], "anonymous_id": "phone"}
    world.deliver(seen_in("DE", "e1", "a", user_id=OTHERS[0]), seen_in("FR", "e2", "b"))
    world.deliver(seen_in("FR", "e3", "c", 5, event_type="identify", **edge))
    world.deliver(seen_in("FR", "e4", "d", 6, event_type="unmerge", **edge))
    drain(world.alone(batch=1))
    assert [table(world, region) for region in ("", "DE", "FR")] == [{"a": 1, "b": 1}, {"a": 1}, {"b": 1}]


def test_who_is_not_to_be_learned_from_moves_no_region(world: World) -> None:
    world.deliver(seen_in("DE", "e1", "a", consent={"train": False}), seen_in("DE", "e2", "b", 1, consent={}))
    world.alone().consume(block_ms=None)
    assert table(world, "DE") == {"b": 1}


def test_regions_beyond_the_bound_count_for_all_together_and_are_told(world: World) -> None:
    users = [f"u{number}" for number in range(1000)]
    here = [user for user in users if partition_of(f"u:{user}") == HERE][: MAX_REGIONS + 2]
    applier = world.alone()
    for number, user in enumerate(here):
        world.deliver(seen_in(f"R{number}", f"e{user}", "a", 30, user_id=user))
    drain(applier)
    assert len(here) == 66
    assert regions(world) == [f"R{number}" for number in range(64)]
    assert [table(world, region) for region in ("", "R63", "R64", "R65")] == [{"a": 66}, {"a": 1}, {}, {}]
    assert world.counters()[LEFT_OUT] == 2 * len(WINDOWS)
    if isinstance(world, RedisWorld):
        shown = {
            one.name: one for one in StreamPositions("consumer", world.client, world.client, tenant=TENANT).collect()
        }
        assert [one.value for one in shown["nightjar_consumer_region_votes_left_out"].samples] == [6]
        assert {one.labels["outcome"]: one.value for one in shown["nightjar_consumer_entries"].samples} == {
            "applied": 66, "dead_lettered": 0, "duplicate": 0,
        }  # fmt: skip
    # What was left out is not taken back; a region that has a table goes on; the next bucket has room again.
    world.deliver(seen_in("R65", "late", "a", 20, user_id=here[65]), seen_in("R0", "more", "b", 31, user_id=here[65]))
    world.deliver(seen_in("R0", "far", "a", 2, user_id=here[64]), seen_in("R64", "next", "c", 65, user_id=here[65]))
    drain(applier)
    assert [table(world, region) for region in ("", "R0")] == [{"a": 66, "b": 1}, {"a": 2, "b": 1}]
    assert (regions(world, bucket=MINUTE + 1), table(world, "R64", bucket=MINUTE + 1)) == (["R64"], {"c": 1})


def test_another_process_goes_on_where_one_ended(world: World) -> None:
    """Tables and lists are read anew after a crash before the write, and by another owner."""
    world.deliver(seen_in("DE", "e1", "a"), seen_in("FR", "e2", "b", user_id=OTHERS[0]))
    applier = world.alone()
    applier.consume(block_ms=None)
    real, applier._store = applier._store, Crashing(applier._store, is_written=False)  # type: ignore[assignment]
    world.deliver(seen_in("NL", "e3", "a", user_id=OTHERS[1]))
    with pytest.raises(CrashError):
        applier.consume(block_ms=None)
    applier._store = real
    applier.consume(block_ms=None)
    world.deliver(seen_in("PL", "e4", "a", user_id=OTHERS[2]), seen_in("DE", "e5", "a", user_id=OTHERS[2], second=1))
    drain(world.alone())
    assert regions(world)[:3] == ["DE", "FR", "NL"]
    assert table(world, "") == {"a": 3, "b": 1}
    assert [table(world, region) for region in ("DE", "FR", "NL", "PL")] == [{"a": 2}, {"b": 1}, {"a": 1}, {}]


def test_damaged_tables_and_lists_begin_anew(world: World) -> None:
    world.put(trend_regions_key(0, MINUTE, HERE, TENANT), b"\1DE\0DE")
    world.put(region_trend_key(1, HOUR * 12, HERE, "DE", TENANT), b"?")
    world.deliver(seen_in("DE", "e1", "a"))
    world.alone().consume(block_ms=None)
    assert (regions(world), table(world, "DE", window=1, bucket=HOUR * 12)) == (["DE"], {"a": 1})
    assert world.counters() == {"applied": 1, "damaged_trend": 2}


def test_who_names_no_region_has_the_record_and_the_keys_of_before(world: World) -> None:
    world.deliver(click("e1", "a", context={"device": "phone"}))
    world.alone().consume(block_ms=None)
    record = world.get(session_key("u:u1", TENANT))
    assert record is not None
    assert record[0] == 3
    assert regions(world) == []
    world.deliver(seen_in("DE", "e2", "b", 5))
    world.alone().consume(block_ms=None)
    record = world.get(session_key("u:u1", TENANT))
    assert record is not None
    assert record[0] == 4
    assert world.state().regions == {(0, MINUTE // 5, "b"): "DE", (1, HOUR, "b"): "DE", (2, HOUR // 24, "b"): "DE"}
