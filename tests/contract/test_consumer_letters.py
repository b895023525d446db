"""Entries that cannot be applied, alone and in entries of several events, on real Redis and on the twins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from feature_repo.contracts.keys import session_key, session_key_before
from feature_repo.contracts.session_record import SessionState, pack_session, unpack_session
from serving.speed import applier as applier_module
from serving.speed import care as care_module
from serving.speed.applier import MAX_DELIVERIES
from serving.speed.entries import read_logged
from serving.speed.session_state import fold_event
from tests.consumer_world import HERE, NOON, TENANT, CrashError, Crashing, World, click, drain

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

        monkeypatch.setattr(applier_module, "fold_records", None)  # it calls none of what is planted
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

        monkeypatch.setattr(applier_module, "fold_records", None)  # it calls none of what is planted
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

        monkeypatch.setattr(applier_module, "fold_records", None)  # it calls none of what is planted
        monkeypatch.setattr(applier_module, "pack_session", pack)
        world.deliver(click("e1", "a", 1), click("bad", "wrong", 2), click("e2", "b", 3))
        world.alone().consume(block_ms=None)
        assert (world.items(), world.counters()) == (["a", "b"], {"applied": 2, "dead_lettered": 1})

    def test_a_record_under_its_former_key_stays_when_nothing_of_its_subject_can_be_applied(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One subject's only event is a duplicate, another's only one fails, a third's is applied."""
        records = {}
        for number, user in enumerate(("u1", "u3", "u4")):
            state = SessionState()
            fold_event(state, {**click("e0", f"old{number}", user_id=user), "timestamp": NOON})
            records[user] = pack_session(state)
            world.put(session_key_before(session_key(f"u:{user}", TENANT)), records[user])
        world.deliver(click("twice", "x", user_id="u1"), click("bad", "wrong", user_id="u3"))
        world.deliver(click("good", "y", user_id="u4"))
        world.unmark(HERE, "twice")
        world.mark(HERE, "twice", b"another")

        def fold(state: SessionState, event: Mapping[str, Any]) -> None:
            if event["event_id"] == "bad":
                raise RecursionError("too deep")
            fold_event(state, event)

        monkeypatch.setattr(applier_module, "fold_records", None)  # it calls none of what is planted
        monkeypatch.setattr(applier_module, "fold_event", fold)
        drain(world.alone())
        assert world.counters() == {"applied": 1, "duplicate": 1, "dead_lettered": 1}
        for user in ("u1", "u3"):
            key = session_key(f"u:{user}", TENANT)
            assert (world.get(key), world.get(session_key_before(key))) == (None, records[user])
        assert (world.items("u4"), world.get(session_key_before(session_key("u:u4", TENANT)))) == (["old2", "y"], None)

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

        monkeypatch.setattr(applier_module, "fold_records", None)  # it calls none of what is planted
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
        assert sizes == [5] * 8  # two entries are more than a batch

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

        monkeypatch.setattr(applier_module, "fold_records", None)  # it calls none of what is planted
        monkeypatch.setattr(applier_module, "fold_event", fold)
        monkeypatch.setattr(applier_module, "read_logged", read)
        world.deliver(click("e0", "i0", 0))
        # one that is read by `read_logged` also where common events are read in native code
        world.deliver_together(
            *(click(f"e{n}", f"i{n}", n, **({"colour": "red"} if n == 5 else {})) for n in range(1, 11))
        )
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
