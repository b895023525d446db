"""The breaker in front of the online store: when it opens, what it costs, and how it closes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from prometheus_client import REGISTRY

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import pointer_key
from serving.adapters.circuit import GuardedStore
from serving.adapters.online import MemoryOnlineStore, OnlineRecords
from serving.main import create_app
from serving.settings import ServingSettings


class Store(MemoryOnlineStore):
    """A store that counts what it is asked. `is_broken`: it raises what no store should."""

    def __init__(self) -> None:
        super().__init__(tenant="default")
        self.asked = 0
        self.is_broken = False
        self.strings[pointer_key()] = b"v"

    async def read(
        self, *, version: str | None, user_id: str | None, anonymous_id: str | None, joined: Sequence[str] = ()
    ) -> OnlineRecords:
        self.asked += 1
        if self.is_broken:
            raise ValueError("nobody foresaw this")
        return await super().read(version=version, user_id=user_id, anonymous_id=anonymous_id, joined=joined)


class Clock:
    """Seconds that pass when somebody says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


async def outcomes(guarded: GuardedStore, count: int, *, apart: float = 0.01) -> str:
    """`.` for an answer, `x` for none, so many seconds apart."""
    found = ""
    for _ in range(count):
        CLOCK.now += apart
        try:
            await guarded.read(version=None, user_id=None, anonymous_id=None)
            found += "."
        except DependencyError:
            found += "x"
    return found


def openings() -> float:
    return REGISTRY.get_sample_value("nightjar_api_circuit_openings_total") or 0.0


async def test_it_opens_after_seven_failures_and_then_asks_nobody() -> None:
    store, before = Store(), openings()
    guarded = GuardedStore(store, probe_seconds=60, seconds=CLOCK)
    assert await outcomes(guarded, 3) == "..."
    store.is_down = True
    assert await outcomes(guarded, 6) == "xxxxxx"
    assert not guarded.is_open
    assert await outcomes(guarded, 1) == "x"
    assert guarded.is_open
    asked = store.asked
    assert asked == 10
    assert await outcomes(guarded, 1000) == "x" * 1000
    assert store.asked == asked
    assert openings() == before + 1
    await guarded.close()


async def test_one_failure_among_answers_opens_nothing_and_half_of_them_does() -> None:
    store = Store()
    guarded = GuardedStore(store, probe_seconds=60, seconds=CLOCK)
    for _ in range(200):
        store.is_down = False
        assert await outcomes(guarded, 2) == ".."
        store.is_down = True
        assert await outcomes(guarded, 1) == "x"
    assert not guarded.is_open
    for _ in range(40):
        store.is_down = False
        await outcomes(guarded, 1)
        store.is_down = True
        await outcomes(guarded, 2)
    assert guarded.is_open
    await guarded.close()


async def test_probes_ask_for_nobody_and_close_it() -> None:
    store = Store()
    guarded = GuardedStore(store, probe_seconds=0.01, seconds=CLOCK)
    store.is_down = True
    await outcomes(guarded, 7)
    assert guarded.is_open
    await asyncio.sleep(0.1)
    assert guarded.is_open
    assert 8 <= store.asked <= 20  # seven reads, then one probe every 10 ms at most
    store.is_broken = True  # a probe that fails otherwise goes on too
    await asyncio.sleep(0.05)
    store.is_broken = store.is_down = False
    async with asyncio.timeout(5):
        while guarded.is_open:
            await asyncio.sleep(0.005)
    assert await outcomes(guarded, 10) == "." * 10
    store.is_down = True
    assert await outcomes(guarded, 6) == "xxxxxx"  # what was before is forgotten
    assert not guarded.is_open


async def test_those_who_do_not_wait_are_counted_and_answered_too() -> None:
    store = Store()
    guarded = GuardedStore(store, probe_seconds=60, seconds=CLOCK)

    async def submitted() -> str:
        CLOCK.now += 0.01
        answered: asyncio.Future[OnlineRecords | DependencyError] = asyncio.get_running_loop().create_future()
        guarded.submit(answered.set_result, version=None, user_id=None, anonymous_id=None)
        assert not answered.done()
        return "x" if isinstance(await answered, DependencyError) else "."

    assert await submitted() == "."
    store.is_down = True
    assert [await submitted() for _ in range(10)] == ["x"] * 10
    assert (guarded.is_open, store.asked) == (True, 8)
    await guarded.close()


async def test_reads_that_fail_together_are_one_failure() -> None:
    """A connection that ends takes the reads of a hundred requests with it."""
    store, before = Store(), openings()
    guarded = GuardedStore(store, probe_seconds=60, seconds=CLOCK)

    async def fail(count: int) -> None:
        many = [guarded.read(version=None, user_id=None, anonymous_id=None) for _ in range(count)]
        assert all(isinstance(one, DependencyError) for one in await asyncio.gather(*many, return_exceptions=True))

    store.is_down = True
    for _ in range(6):
        CLOCK.now += 0.01
        await fail(50)
        assert not guarded.is_open
    CLOCK.now += 0.01
    await fail(50)
    assert (guarded.is_open, openings()) == (True, before + 1)
    await guarded.close()


async def test_reads_that_are_answered_together_count_once_too() -> None:
    store = Store()
    guarded = GuardedStore(store, probe_seconds=60, seconds=CLOCK)
    for _ in range(40):
        store.is_down = guarded.is_open
        await outcomes(guarded, 20, apart=0.0001)
        store.is_down = True
        await outcomes(guarded, 20, apart=0.0006)
    assert guarded.is_open  # answers within 2 ms, failures for 12 ms: one to three
    await guarded.close()


def test_the_service_has_one_in_front_of_its_store(environment: Environment) -> None:
    assert isinstance(create_app(environment, ServingSettings()).state.services.store, GuardedStore)


@pytest.mark.redis
async def test_with_a_real_server_that_comes_and_goes(redis_url: str, environment: Environment) -> None:
    app = create_app(
        environment._replace(redis_online_url=redis_url, redis_log_url=redis_url),
        ServingSettings(online_timeout_ms=2000),
    )
    store = app.state.services.store
    assert await outcomes(store, 20) == "." * 20
    await store.close()
