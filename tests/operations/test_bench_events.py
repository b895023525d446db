"""The benches of the event path: short runs on real servers; what they measure is not judged here."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import orjson
import pytest
import redis

from feature_repo.contracts.events import check_event, subject_key
from feature_repo.contracts.keys import EVENT_PARTITIONS, stream_key
from feature_repo.contracts.stream_entry import split_entry
from feature_repo.contracts.times import format_timestamp, from_micros, to_micros
from infra.bench import disk
from infra.bench.disk import filesystem_of, judge_disk
from infra.bench.events import load as event_load
from infra.bench.events.archive_lag import ArchiveLag
from infra.bench.events.backlog import backlog_entries, bench_backlog, fill_log
from infra.bench.events.freshness import Rate, Round, _Found, bench_freshness
from infra.bench.events.ingest import bench_ingest
from infra.bench.events.probes import Probes
from infra.bench.sender import Sent, Times
from serving.adapters.json_bytes import encode_json


class TestDisk:
    def test_memory_keeps_nothing(self) -> None:
        if filesystem_of(Path("/dev/shm")) != "tmpfs":
            pytest.skip("no /dev/shm in memory here")
        folder = Path("/dev/shm") / f"nightjar-test-{os.getpid()}"
        try:
            assert "in memory" in judge_disk(folder)["void"]
        finally:
            shutil.rmtree(folder)

    @pytest.mark.parametrize(("median", "is_void"), [(0.099, True), (0.1, False), (3.0, False)])
    def test_a_disk_that_answers_at_once_is_not_believed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, median: float, is_void: bool
    ) -> None:
        monkeypatch.setattr(disk, "fsync_median_ms", lambda _: median)
        monkeypatch.setattr(disk, "filesystem_of", lambda _: "ext4")
        found = judge_disk(tmp_path)
        assert (found["fsync_median_ms"], found["void"] is not None) == (median, is_void)

    def test_an_fsync_takes_time_and_leaves_nothing(self, tmp_path: Path) -> None:
        assert disk.fsync_median_ms(tmp_path) > 0
        assert list(tmp_path.iterdir()) == []


@pytest.mark.redis
@pytest.mark.parametrize("has_wrk", [pytest.param(True, marks=pytest.mark.soak), False], ids=["wrk", "own client"])
def test_bench_ingest_measures_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_wrk: bool) -> None:
    if has_wrk and not shutil.which("wrk"):
        pytest.skip("wrk is not installed")
    if not has_wrk:
        monkeypatch.setattr(event_load, "shutil", type("Nothing", (), {"which": staticmethod(lambda _: None)}))
    report = bench_ingest(
        tmp_path / "home", os.environ, pairs=1, seconds=1, connections=8, batch=10, say=lambda _: None
    )
    assert (report["errors"], report["missing"]) == (0, 0)
    assert report["generator"] == ("wrk" if has_wrk else "infra.bench.events.load")
    for name in ("single_events_per_second", "batched_events_per_second", "cpu_us_per_event"):
        found = report["figures"][name]
        assert found["median"] > 0
        assert found["baseline"] > 0
    assert report["fsync_median_ms"] > 0
    assert not (tmp_path / "home").exists()


@pytest.mark.soak
@pytest.mark.redis
def test_bench_freshness_sees_every_probe_change(tmp_path: Path) -> None:
    report = bench_freshness(
        tmp_path / "home", os.environ, rounds=1, seconds=2, events_per_second=200, reads_per_second=50,
        rates=[100], say=lambda _: None,
    )  # fmt: skip
    assert (report["probes"], report["unchanged"], report["errors"]) == (8, 0, 0)
    assert 0 < report["figures"]["event_to_answer_p99_ms"]["median"] < 10_000
    assert [(one["rate"], one["errors"]) for one in report["rates"]] == [(100, 0)]
    figures = {name: one["median"] for name, one in report["figures"].items()}
    programs = ("api", "consumer", "archiver", "redis_log", "redis_online", "generator")
    assert all(figures[f"{program}_cpu_us"] > 0 for program in programs)
    assert 0 < figures["cores"] < 8


@pytest.mark.parametrize(
    ("p99_ms", "changed", "failed", "is_in_time"),
    [(4.9, 10, 0, True), (5.0, 10, 0, False), (4.9, 9, 0, False), (4.9, 10, 1, False)],
)
def test_a_rate_is_kept_up_with_when_all_is_right_and_in_time(
    p99_ms: float, changed: int, failed: int, is_in_time: bool
) -> None:
    times = Times(100, 1.0, 2.0, 3.0, 4.0)
    sent = Sent(10.0, 100, failed, 0, 0, 0, 0, "fifo", times, times, times, Times(0), Times(0))
    probes = Probes(10, changed, 0, 1.0, p99_ms, 6.0)
    cpu = {"api": 0.5, "consumer": 0.25, "generator": 0.25}
    said: list[str] = []
    found = _Found.of(Rate(100, 100), [Round(probes, sent, sent, cpu, ArchiveLag(100, 1.0, 2.0))], said.append)
    assert found.is_in_time is is_in_time
    # half a second for 200 requests, a quarter for 100 events, a quarter for 200 requests; a second in ten
    assert [found.told()[name] for name in ("api_cpu_us", "consumer_cpu_us", "generator_cpu_us", "cores")] == [
        2500.0, 2500.0, 1250.0, 0.1,
    ]  # fmt: skip
    assert len(said) == 1


class TestBacklog:
    def test_its_events_are_what_the_api_would_have_written(self) -> None:
        until = 1_709_902_800_000_000
        entries = list(backlog_entries(4_000, seed=1, until_micros=until))
        events = [check_event(orjson.loads(entry.event), received_at=from_micros(until))[0] for entry in entries]
        assert len(events) == 4_000
        assert all(event is not None for event in events)
        for entry, event in zip(entries, events, strict=True):
            assert event is not None
            assert entry.event_id == event["event_id"]
            assert entry.subject == subject_key(event.get("user_id"), event.get("anonymous_id"))
            assert entry.event == encode_json({**event, "timestamp": format_timestamp(event["timestamp"])})
        assert len({entry.event_id for entry in entries}) == 4_000
        assert len({entry.subject for entry in entries}) > 1_500
        assert len({event["event_type"] for event in events if event}) == 8
        assert events[-1] is not None
        assert to_micros(events[-1]["timestamp"]) == until
        assert entries == list(backlog_entries(4_000, seed=1, until_micros=until))

    @pytest.mark.redis
    def test_it_lies_in_the_log_with_its_marks(self, redis_url: str) -> None:
        entries = backlog_entries(9_000, seed=1, until_micros=1_709_902_800_000_000)
        assert asyncio.run(fill_log(redis_url, entries)) == 9_000
        with redis.Redis.from_url(redis_url) as client:
            streams = [client.xrange(stream_key(partition)) for partition in range(EVENT_PARTITIONS)]
            assert sum(len(split_entry(fields)) for stream in streams for _, fields in stream) == 9_000
            assert sum(map(len, streams)) < 4_500  # most share an entry, as the API writes them
            assert sum(1 for _ in client.scan_iter("nj:default:*dedup*", count=5_000)) == 9_000

    @pytest.mark.soak
    @pytest.mark.redis
    def test_it_is_drained_to_the_last_event(self, tmp_path: Path) -> None:
        report = bench_backlog(
            tmp_path / "home", os.environ, events=20_000, reads_per_second=50, seconds=1, consumers=2, seed=3,
            say=lambda _: None,
        )  # fmt: skip
        assert (report["applied"], report["dead_letters"], report["errors"]) == (20_000, 0, 0)
        assert report["figures"]["events_per_second_per_core"]["median"] > 0
        figures = report["figures"]
        ends = [figures[name]["median"] for name in ("answer_p99_ms_quiet", "answer_p99_ms_drained")]
        assert min(ends) <= figures["answer_p99_ms_draining"]["baseline"] <= max(ends)
        assert figures["answer_cpu_us_drained"]["baseline"] == figures["answer_cpu_us_quiet"]["median"] > 0
        assert not (tmp_path / "home").exists()
