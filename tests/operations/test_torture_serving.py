"""The ordeal of serving: its proxy, its judge, and a small one on the real programs."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from infra.bench.events.ingest import free_port
from infra.bench.serving.fault_proxy import FAULTS, FaultProxy
from infra.bench.serving.judging import judge
from infra.bench.serving.steady_load import FIELDS, Rules, Seen, SteadyLoad, _Question
from infra.bench.serving.torture import torture_serving
from infra.local.redis_server import RunningServer


@pytest.mark.redis
class TestProxy:
    @asynccontextmanager
    async def proxy(self, redis_url: str, tmp_path: Path) -> AsyncIterator[tuple[FaultProxy, Redis]]:
        """A proxy in front of a server that knows `a`, beside one that is empty."""
        port = free_port()
        with RunningServer("online", tmp_path / "empty") as empty:
            proxy = FaultProxy(port, redis_port=int(redis_url.rsplit(":", 1)[1].split("/")[0]), empty_port=empty.port)
            await proxy.start()
            client = Redis(
                port=port, socket_timeout=0.6, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0), retry_on_error=[]
            )
            await client.set("a", "1")
            yield proxy, client
            await client.aclose()
            for connection in list(proxy.connections):
                connection.cut()
            await proxy.stop()

    async def outcome(self, client: Redis) -> Any:
        try:
            return await client.get("a")
        except (RedisError, OSError, TimeoutError) as error:
            return type(error).__name__

    async def test_every_fault_is_felt_and_ends(self, redis_url: str, tmp_path: Path) -> None:
        async with self.proxy(redis_url, tmp_path) as (proxy, client):
            felt: dict[str, list[Any]] = {}
            for fault in FAULTS:
                await proxy.change(fault)
                began = asyncio.get_running_loop().time()
                felt[fault] = [await self.outcome(client) for _ in range(8 if fault in ("resets", "half") else 2)]
                if fault == "slow":
                    assert asyncio.get_running_loop().time() - began >= 0.2
                await proxy.change("none")
                async with asyncio.timeout(20):
                    while await self.outcome(client) != b"1":
                        await asyncio.sleep(0.02)
        assert felt["dead"] == ["ConnectionError", "ConnectionError"]
        assert felt["hung"] == ["TimeoutError", "TimeoutError"]
        assert set(felt["slow"]) <= {b"1", "TimeoutError"}
        assert b"1" in felt["slow"]
        assert felt["oom"] == ["OutOfMemoryError", "OutOfMemoryError"] or set(felt["oom"]) == {"ResponseError"}
        assert felt["empty"][-1] is None
        for fault in ("resets", "half", "garbage"):
            assert set(felt[fault]) - {b"1"}, fault

    async def test_what_a_hung_one_held_comes_late(self, redis_url: str, tmp_path: Path) -> None:
        async with self.proxy(redis_url, tmp_path) as (proxy, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy._port)
            await proxy.change("hung")
            writer.write(b"GET a\r\n")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(10), 0.2)
            await proxy.change("none")
            assert await asyncio.wait_for(reader.read(10), 10) == b"$1\r\n1\r\n"
            writer.close()


def counts(**named: int) -> list[int]:
    return [named.get(name, 0) for name in FIELDS]


class TestJudge:
    def test_shares_are_of_what_should_have_left_meanwhile(self) -> None:
        buckets = {
            499: counts(sent=50, failed=50),  # before
            501: counts(sent=10, good=8, late=1, refused=1, personal=3, not_personal=1),
            540: counts(sent=10, good=8, unclean=1, unsent=1, personal=4),
            550: counts(sent=10, failed=10),  # after
        }
        harm = judge(Seen(buckets, 0, {}, {}, []), 10.0, 11.0, 0.2)
        assert (harm.questions, harm.good_share, harm.valid_share) == (20, 0.8, 0.85)
        assert (harm.unclean, harm.failed, harm.unsent, harm.refused, harm.personal_share) == (1, 0, 1, 1, 7 / 8)

    def test_spells_are_told_worst_first(self) -> None:
        buckets = {number: counts(sent=4, good=4) for number in range(480, 1000)}
        for number, good in ((510, 0), (515, 3), (521, 2), (600, 1), (701, 0), (702, 0), (703, 0)):
            buckets[number] = counts(sent=4, good=good, late=4 - good)
        harm = judge(Seen(buckets, 0, {}, {}, []), 10.0, 14.0, 0.2)  # 701 comes after it
        assert harm.spells == [(0.2, 0.12, 5), (2.0, 0.02, 3), (0.42, 0.02, 2)]
        many = {number: counts(sent=number, good=0) for number in range(510, 690, 10)}
        assert [spell[2] for spell in judge(Seen(many, 0, {}, {}, []), 10.0, 14.0, 0.2).spells] == [
            680, 670, 660, 650, 640,
        ]  # fmt: skip

    def test_recovery_is_the_end_of_the_last_tenth_of_a_second_without_personal_lists(self) -> None:
        def recovery(ended: float, *dark: int) -> float | None:
            buckets = {number: counts(sent=2, good=2, personal=2) for number in range(500, 650)}
            buckets |= {number: counts(sent=2, good=2, not_personal=2) for number in dark}
            return judge(Seen(buckets, 0, {}, {}, []), 10.0, ended, 1.0).recovery_seconds

        assert recovery(11.0) == 0.0
        assert recovery(11.0, 550) == pytest.approx(0.1)  # two of ten
        assert recovery(11.0, 550, 551, 563) == pytest.approx(0.3)
        assert recovery(11.2, 550) == pytest.approx(0.0)  # before its end
        assert recovery(11.0, *range(550, 600)) is None
        one_of_twenty = {number: counts(sent=5, good=5, personal=5) for number in range(500, 650)}
        one_of_twenty[551] = counts(sent=5, good=5, personal=4, not_personal=1)
        assert judge(Seen(one_of_twenty, 0, {}, {}, []), 10.0, 11.0, 1.0).recovery_seconds == 0.0


class TestRules:
    @pytest.mark.parametrize(
        ("change", "wrong"),
        [
            ({}, None),
            ({"model_version": "c"}, "version c was never published"),
            ({"items": ["i1"] * 10}, "1 items of 10"),
            ({"items": [f"i{n}" for n in range(11, 20)]}, "9 items of 10"),
            ({"items": ["i0", *(f"i{n}" for n in range(11, 20))]}, "a hidden item"),
            ({"items": ["i5", *(f"i{n}" for n in range(11, 20))]}, "an excluded item"),
            ({"items": ["j5", *(f"i{n}" for n in range(11, 20))]}, "items of two versions"),
            ({"model_version": "b"}, "items of two versions"),
            ({"fallback_level": "personal"}, "a personal list for one who said no"),
        ],
    )
    def test_each_is_looked_at(self, change: dict[str, Any], wrong: str | None) -> None:
        answer = {
            "model_version": "a",
            "items": [f"i{n}" for n in range(10, 20)],
            "fallback_level": "popular",
            **change,
        }
        answer["items"] = [{"item_id": item} for item in answer["items"]]
        rules = Rules({"a": "i", "b": "j"}, ["i0"], 10)
        load = SteadyLoad(1, rate=1, connections=1, key="", rules=rules)
        assert load._broken_rule(answer, _Question(b"", 0, frozenset({"i5"}), False)) == wrong


RUSH_SECONDS = 1 if shutil.which("cc") or shutil.which("gcc") or shutil.which("clang") else 0
"""The generator of the rush is compiled."""


@pytest.mark.redis
def test_a_small_ordeal_is_survived(tmp_path: Path) -> None:
    """Two harms for a moment: what is said of time is for quiet machines, what is said of rules holds here too."""
    said: list[str] = []
    report = torture_serving(
        tmp_path / "home", os.environ, seconds=0.4, settle_seconds=0.4, rate=100, flips=20,
        overload_seconds=RUSH_SECONDS, faults=("dead", "garbage"), say=said.append,
        settings={"NIGHTJAR_SERVING_ONLINE_TIMEOUT_MS": "200"},
    )  # fmt: skip
    assert list(report["harms"]) == ["dead", "garbage"]
    for harm in [report["quiet"], report["flips_harm"], *report["harms"].values()]:
        assert (harm["unclean"], harm["failed"]) == (0, 0), (said, report["examples"])
        assert harm["questions"] >= 20
    assert report["harms"]["dead"]["personal_share"] == 0.0
    assert (report["worker_ends"], report["figures"]["mixed_answers"]["max"]) == (0, 0)
    assert len(report["versions_seen"]) == 2
    if RUSH_SECONDS:
        assert report["goodput_per_second"] > 0
        assert report["refused_per_second"] > 0
        assert report["generator_cores"] > 0
        assert report["offered_per_second"] == pytest.approx(5 * report["peak_per_second"], rel=1e-3)
        assert report["figures"]["overload_worker_goodput"]["max"] > 0
