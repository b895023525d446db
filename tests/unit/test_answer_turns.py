"""Answers take turns with the event loop's other work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from serving.turns import FIRST_ESTIMATE_NS, Turns

MS = 1_000_000


class World:
    """Work that takes time on a clock of its own, and something else that the loop has to do between."""

    def __init__(self) -> None:
        self.now = self.away = 0
        self.turns = Turns(lambda: self.now + self.away, processor_timer=lambda: self.now)
        self.happened: list[Any] = []

    def work(self, name_and_ms: tuple[Any, float]) -> None:
        name, ms = name_and_ms
        self.happened.append(name)
        self.now += int(ms * MS)

    async def asker(self, name: Any, ms: float) -> None:
        await self.turns.mine()
        self.work((name, ms))

    async def loop_turns(self, count: int) -> None:
        """What else there is to do, in each turn of the loop."""
        for _ in range(count):
            await asyncio.sleep(0)
            self.happened.append("-")


def names(happened: Iterable[Any]) -> str:
    return "".join(str(name) for name in happened).rstrip("-")


async def test_short_work_is_done_at_once() -> None:
    world = World()
    world.turns.expected = 9
    for name in range(9):
        world.turns.do(world.work, (name, 0.1))
    assert (names(world.happened), world.turns.expected) == ("012345678", 0)


async def test_the_loop_has_its_turn_after_a_millisecond() -> None:
    world = World()
    for name in range(8):
        world.turns.do(world.work, (name, 0.4))
    assert names(world.happened) == "012"
    await world.loop_turns(5)
    assert names(world.happened) == "012345-67"
    await world.loop_turns(2)
    world.turns.do(world.work, (8, 5.0))  # nobody waits: at once
    world.turns.do(world.work, (9, 5.0))
    assert world.happened[-1] == 8
    await world.loop_turns(2)
    assert 9 in world.happened


async def test_who_comes_later_is_served_later() -> None:
    world = World()
    world.turns.do(world.work, ("a", 2))
    tasks = [asyncio.create_task(world.asker(name, 2)) for name in "bc"]
    await asyncio.sleep(0)
    world.turns.do(world.work, ("d", 2))
    await asyncio.gather(*tasks)
    await world.loop_turns(3)
    assert names(name for name in world.happened if name != "-") == "abcd"


async def test_nobody_overtakes_who_was_granted_a_turn_and_has_not_begun() -> None:
    world = World()
    tasks = [asyncio.create_task(world.asker(name, 2)) for name in "abc"]
    await asyncio.sleep(0)
    for name in "defgh":
        world.turns.do(world.work, (name, 0.1))
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    await world.loop_turns(5)
    assert names(name for name in world.happened if name != "-") == "abcdefgh"


async def test_tasks_get_one_turn_each() -> None:
    world = World()
    tasks = [asyncio.create_task(world.asker(name, 2)) for name in range(4)]
    await world.loop_turns(10)
    await asyncio.gather(*tasks)
    said = names(world.happened)
    assert said.replace("-", "") == "0123"
    assert not any(pair in said for pair in ("01", "12", "23"))


async def test_who_has_gone_takes_nobodys_turn() -> None:
    world = World()
    first, gone, last = (asyncio.create_task(world.asker(name, 2)) for name in "abc")
    await asyncio.sleep(0)
    gone.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(first, last)
    assert names(world.happened) == "ac"


async def test_work_that_fails_takes_nobodys_turn(caplog: pytest.LogCaptureFixture) -> None:
    world = World()

    def fail(_: object) -> None:
        raise ValueError("a bug")

    world.turns.do(world.work, ("a", 2))
    world.turns.do(fail, None)
    world.turns.do(world.work, ("b", 2))
    await world.loop_turns(3)
    assert names(name for name in world.happened if name != "-") == "ab"
    assert "was not made" in caplog.text


async def test_the_wait_is_what_the_ones_before_take() -> None:
    world = World()
    assert world.turns.each_ns == FIRST_ESTIMATE_NS
    for _ in range(200):
        world.turns.do(world.work, ("", 3))
        await asyncio.sleep(0)
    world.turns.expected = 7
    assert world.turns.wait_ns == pytest.approx(21 * MS, rel=0.01)
    world.turns.do(world.work, ("", 3))
    world.away += 900 * MS  # it had no processor
    await asyncio.sleep(0)
    assert world.turns.each_ns == pytest.approx(3 * MS, rel=0.01)
    world.turns.do(world.work, ("", 900))  # it looked for garbage
    await asyncio.sleep(0)
    assert world.turns.each_ns < 3.3 * MS
    for _ in range(200):
        world.turns.do(world.work, ("", 0.02))
        await asyncio.sleep(0)
    assert world.turns.each_ns == pytest.approx(0.02 * MS, rel=0.02)


async def test_who_was_let_in_counts_until_they_have_asked() -> None:
    turns = World().turns
    turns.expect()
    turns.expect()
    assert turns.expected == 2
    await asyncio.sleep(0)
    assert turns.expected == 0
