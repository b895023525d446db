"""The benches of the event path: short runs on real servers; what they measure is not judged here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from infra.bench import disk, event_load
from infra.bench.disk import filesystem_of, judge_disk
from infra.bench.freshness import bench_freshness
from infra.bench.ingest import bench_ingest


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
    assert report["generator"] == ("wrk" if has_wrk else "infra.bench.event_load")
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
        say=lambda _: None,
    )  # fmt: skip
    assert (report["probes"], report["unchanged"], report["errors"]) == (8, 0, 0)
    assert 0 < report["figures"]["event_to_answer_p99_ms"]["median"] < 10_000
