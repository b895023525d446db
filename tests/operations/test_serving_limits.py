"""`nightjar bench serving-limits`: its generator, its shop, its judgements, and a small run on the real programs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.errors import DataError, DependencyError
from feature_repo.contracts.packing import PackedCandidate, Source, pack_candidates
from infra.bench import sender as generator
from infra.bench.sender import Sender, Sent, Times, http_request, write_requests
from infra.bench.serving.limits.bench import Sizes, bench_limits
from infra.bench.serving.limits.flat import report_of
from infra.bench.serving.limits.open_loop import is_behind, missed, step_of
from infra.bench.serving.limits.setting import Cost
from infra.bench.serving.limits.shop import LargeShop
from infra.bench.serving.limits.start import is_right
from spark_jobs.transforms.candidates import pack_batch

MIX = {"people": 5_000, "items": 1_000, "candidates": 200, "neighbours": 30, "session_events": 5}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
ANSWERS = {
    b"/ok": OK,
    b"/poor": b'HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{"degraded":true}',
    b"/full": b"HTTP/1.1 503 no\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
    b"/wrong": b"HTTP/1.1 500 no\r\ncontent-length: 0\r\n\r\n",
    b"/last": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
}  # fmt: skip


@asynccontextmanager
async def server(stall_seconds: float = 0.0) -> AsyncIterator[int]:
    """A server that answers by the path, in two pieces; the first request stops all of it for a while."""
    left = [stall_seconds]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(2)
                time.sleep(left.pop() if left else 0)
                path = head.split(b" ", 2)[1]
                if path == b"/gone":
                    break
                answer = ANSWERS[path]
                writer.write(answer[:30])
                await writer.drain()
                writer.write(answer[30:])
                if path == b"/last":
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Sender:
    try:
        return Sender(tmp_path_factory.mktemp("sender"))
    except DependencyError as error:
        pytest.skip(str(error)[:60])


async def sent(sender: Sender, folder: Path, paths: list[str], stall: float = 0.0, **options: Any) -> Sent:
    requests = write_requests(folder / "requests", [http_request(path, {}) for path in paths])
    async with server(stall) as port:
        return await asyncio.to_thread(sender.send, port, requests, **options)


class TestSender:
    async def test_every_request_is_accounted_for(self, sender: Sender, tmp_path: Path) -> None:
        paths = ["/ok"] * 4 + ["/poor", "/full", "/full", "/wrong", "/gone", "/last"]
        found = await sent(sender, tmp_path, paths, rate=200, seconds=0.5, connections=5)
        assert found.sent == 100
        assert (found.ok_due.count, found.refused_sent.count, found.failed) == (60, 20, 20)
        assert (found.degraded, found.unanswered, found.dropped, found.errors) == (10, 0, 0, 40)
        assert found.in_time <= 60
        assert (found.seconds, found.lag.count) == (0.5, 100)

    async def test_so_is_every_one_of_many_whose_answers_are_looked_at_together(
        self, sender: Sender, tmp_path: Path
    ) -> None:
        found = await sent(sender, tmp_path, ["/ok"] * 4 + ["/full"], rate=1_000, seconds=0.4, connections=20)
        assert (found.sent, found.lag.count) == (400, 400)
        assert (found.ok_due.count, found.refused_due.count, found.failed) == (320, 80, 0)

    async def test_times_count_from_when_a_request_was_due(self, sender: Sender, tmp_path: Path) -> None:
        # 60 of 100 requests are due while the server stands still; one connection waits for it, 59 have none
        found = await sent(sender, tmp_path, ["/ok"], stall=0.3, rate=200, seconds=0.5, connections=1)
        assert found.ok_due.count == 100
        assert found.ok_due.p50 >= 45
        assert found.ok_due.p99 >= 250

    async def test_what_comes_after_the_end_is_told_apart(self, sender: Sender, tmp_path: Path) -> None:
        found = await sent(sender, tmp_path, ["/ok"], stall=0.7, rate=100, seconds=0.2, connections=2)
        assert (found.ok_due.count, found.in_time, found.per_second) == (20, 0, 0.0)

    async def test_a_closed_loop_keeps_each_connection_busy(self, sender: Sender, tmp_path: Path) -> None:
        found = await sent(sender, tmp_path, ["/ok", "/ok", "/last"], rate=0, seconds=0.3, connections=3)
        assert found.ok_due.count > 3
        assert (found.errors, found.lag.count) == (0, 0)
        assert found.ok_due.count - found.in_time <= 3

    async def test_it_ends_when_it_is_told(self, sender: Sender, tmp_path: Path) -> None:
        requests = write_requests(tmp_path / "requests", [http_request("/ok", {})])
        async with server() as port:
            running = sender.start(port, requests, rate=100, seconds=60, connections=2)
            await asyncio.sleep(0.3)
            found = await asyncio.to_thread(running.end)
        assert found.ok_due.count == found.sent > 3
        assert found.seconds < 50

    def test_what_goes_wrong_is_said(self, sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        nothing = write_requests(tmp_path / "none", [])
        with pytest.raises(DependencyError, match="holds no request"):
            sender.send(1, nothing, rate=1, seconds=1, connections=1)
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(generator.shutil, "which", lambda _: None)
        with pytest.raises(DependencyError, match="apt install gcc"):
            Sender(tmp_path)


def test_the_lists_of_a_large_shop_are_those_that_are_published() -> None:
    shop = LargeShop(MIX)
    batches = list(shop.batches())
    assert [batch.num_rows for batch in batches] == [2_000, 2_000, 1_000]
    records = dict(record for batch in batches for record in pack_batch("2024-03-08-00000000", batch))
    assert len(records) == 5_000
    for person in (0, 1, 999, 2_000, 4_999):
        rows = shop.candidates_of(person)
        assert len({row.item_number for row in rows}) == 200
        assert all(0 <= row.item_number < 1_000 for row in rows)
        packed = [PackedCandidate(number, score, Source.ALS, reason) for number, score, reason in rows]
        assert records[f"u{person}"] == pack_candidates("2024-03-08-00000000", packed)
    assert len(set(records.values())) == 5_000
    for number in (0, 998):
        near = shop.neighbours_of(number)
        assert len(dict(near)) == 30
        assert number not in dict(near)
    with pytest.raises(DataError, match="399 items, expected at least 400"):
        LargeShop(MIX, items=399)


NOTHING = Times(0)


def seen(*, p99: float = 1.0, p50: float = 0.5, lag: float = 0.1, ok: int = 100, refused: int = 0) -> Sent:
    times = Times(ok, p50, p99, p99, p99)
    return Sent(1.0, ok, 0, 0, 0, 0, 0, "usual", Times(ok, lag, lag), times, times, Times(refused), Times(refused))


def test_a_rate_is_judged_by_what_was_measured_at_it() -> None:
    def step(rate: float, *some: Sent) -> dict[str, Any]:
        return step_of(rate, some)

    assert missed("rank", [step(2_000, seen(p99=4.9))]) == []
    assert missed("rank", [step(1_000, seen()), step(2_000, seen(p99=5.0))]) == [
        "rank: p99 of 5 ms at 2000/s, asked for: 5"
    ]
    assert missed("rank", [step(2_000, seen(p99=1), seen(p99=4), seen(p99=9))]) == []  # the median counts
    assert missed("open_loop", [step(5_000, seen())]) == [
        "open_loop: 10000 requests a second were not reached or not tried"
    ]
    assert missed("pages", [step(2_000, seen(p99=9, lag=0.3))]) == [
        "pages: void, the generator was 0.3 ms late at 2000/s"
    ]
    assert missed("pages", [step(2_000, seen(lag=0.3), seen(), seen())]) == []
    assert missed("pages", [step(2_000, seen(refused=3))]) == ["pages: 3 errors at 2000/s"]
    assert not is_behind(seen(p50=999, refused=1))
    assert is_behind(seen(p50=1_001))
    assert is_behind(seen(refused=2))


def test_flat_is_a_tenth_more_at_most() -> None:
    def costs(*values: float) -> list[Cost]:
        return [Cost(seen(), value, 10.0) for value in values]

    found = {"usual": costs(100, 90, 500), "people": costs(110, 20, 700), "items": costs(111, 112, 90)}
    figures, more = report_of(found, 1_000_000, 200_000)
    assert (figures["cpu_us_people"]["ratio"], figures["cpu_us_items"]["ratio"]) == (1.1, 1.11)
    assert more["missed_bars"] == ["flat: 1.11 times the processor time with 200,000 items"]
    found["usual"][0] = Cost(seen(refused=2), 100, 10)
    assert report_of(found, 1, 1)[1]["missed_bars"][-1] == "flat: 2 errors"


def test_an_answer_is_right_when_it_is_personal_whole_and_of_the_version() -> None:
    answer = {"model_version": "v", "fallback_level": "personal", "items": [{}] * 10}
    assert is_right(answer, "v")
    for change in ({"model_version": "w"}, {"fallback_level": "popular"}, {"items": [{}] * 9}):
        assert not is_right({**answer, **change}, "v")


SMALL = Sizes(
    rounds=1, seconds=0.3, connections=4, workers=1, rates=(40,), publication_rate=40, publication_people=300,
    flat_people=400, flat_items=900, usual_people=200, usual_items=800,
)  # fmt: skip


@pytest.mark.redis
def test_a_small_run_measures_rates_and_a_publication(sender: Sender, tmp_path: Path) -> None:
    """What is said of time is for quiet machines."""
    parts = ["open_loop", "rank", "pages", "publication"]
    report = bench_limits(tmp_path / "home", os.environ, parts=parts, sizes=SMALL, seed=7, say=lambda _: None)
    figures = report["figures"]
    for kind in parts[:3]:
        assert {f"{kind}_cpu_us", f"{kind}_40_p50_ms", f"{kind}_40_p99_ms"} <= figures.keys()
        (step,) = report[f"{kind}_rates"]
        assert (step["sent"], step["errors"], step["degraded"]) == (12, 0, 0)
    assert figures["publication_rows_per_core"]["min"] > 0
    assert figures["publication_p99_ms"]["baseline"] > 0
    assert report["publication_errors"] == 0
    assert "open_loop: 10000 requests a second were not reached or not tried" in report["missed_bars"]
    assert not (tmp_path / "home").exists()


@pytest.mark.redis
@pytest.mark.soak
def test_a_small_run_measures_flatness_and_the_start(sender: Sender, tmp_path: Path) -> None:
    report = bench_limits(
        tmp_path / "home", os.environ, parts=["flat", "start"], sizes=SMALL, seed=7, say=lambda _: None
    )
    assert (report["flat_errors"], report["start_errors"], report["flat_degraded"]) == (0, 0, 0)
    assert {"cpu_us_people", "cpu_us_items", "start_seconds", "worker_start_seconds"} <= report["figures"].keys()
    assert 20 < report["figures"]["memory_mb_per_worker"]["median"] < 500


def test_a_part_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no part 'rnk'.*rank"):
        bench_limits(tmp_path, os.environ, parts=["rnk"], sizes=SMALL, seed=7, say=lambda _: None)
