"""Who owns a partition, on real Redis and on the twins: fences, and shares of members that come and go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from feature_repo.contracts.keys import (
    EVENT_PARTITIONS,
    applied_key,
    delivering_key,
)
from feature_repo.contracts.session_record import SessionState
from serving.speed import applier as applier_module
from serving.speed.applier import Applier
from serving.speed.ownership import fair_share
from serving.speed.session_state import fold_event
from serving.speed.stores import (
    Changes,
    FencedError,
    OvertakenError,
)
from tests.consumer_world import HERE, TENANT, World, click, drain


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

        monkeypatch.setattr(applier_module, "fold_records", None)  # it calls none of what is planted
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
