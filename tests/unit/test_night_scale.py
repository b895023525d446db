"""The bench of large nights: its shops, its slope, its memory, its report. The night itself is a soak."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.errors import DataError
from infra.bench.nights.scale import Measured, MemoryWatch, bench_night, log_slope, memory_of, report_of, scale_shop
from infra.local.processes import STACK


def measured(events: int, seconds: float, **tasks: float | None) -> Measured:
    times: Any = [{"task_id": name, "state": "success", "seconds": took, "tries": 1} for name, took in tasks.items()]
    night: Any = {"state": "success", "seconds": seconds, "tasks": times}
    return Measured(events, night, 2_500_000_000)


def test_the_shops() -> None:
    shops = [scale_shop(events) for events in (10_000_000, 300_000, 1_000)]
    assert [(shop.user_count, shop.item_count) for shop in shops] == [(100_000, 20_000), (3_000, 15_000), (10, 200)]


def test_twice_the_events_in_twice_the_time_is_a_slope_of_one() -> None:
    assert log_slope([100, 200, 800], [3.0, 6.0, 24.0]) == pytest.approx(1.0)
    assert log_slope([100, 400], [3.0, 48.0]) == pytest.approx(2.0)
    assert log_slope([100, 200, 400], [5.0, 5.0, 5.0]) == pytest.approx(0.0)


def test_the_report_is_about_the_largest_night() -> None:
    small = measured(1_000, 60.0, pin_run=2.0, refine_events=8.0, sensor=None)
    large = measured(4_000, 240.0, pin_run=2.0, refine_events=18.0, something_else=20.0)
    report = report_of([small, large], "v1")
    figures = report["figures"]
    assert (figures["night_seconds"]["median"], figures["night_seconds"]["ratio"]) == (240.0, 0.5)
    assert figures["peak_gb"]["ratio"] == 0.3125
    assert figures["refine_events_seconds"]["median"] == 18.0
    assert "something_else_seconds" not in figures
    assert figures["work_slope"]["median"] == 1.0
    assert [(row["events"], row["work_seconds"]) for row in report["nights"]] == [(1_000, 10.0), (4_000, 40.0)]
    assert "work_slope" not in report_of([large], "v1")["figures"]


def test_a_size_that_no_shop_has_is_refused_before_anything_runs(tmp_path: Path) -> None:
    said: list[str] = []
    for sizes in ([], [1_000, 99], [1_000, 50_000_000]):
        with pytest.raises(DataError, match=r"at least one size|event_count must lie in"):
            bench_night(tmp_path / "home", {}, event_counts=sizes, say=said.append)
    assert said == []
    assert not (tmp_path / "home").exists()


def test_memory_is_that_of_all_processes_of_the_installation(tmp_path: Path) -> None:
    """A process, and its child, each with 60 MB that they touch; a third one is of another installation."""
    hold = "x = bytearray(b'1') * 60_000_000; print('there', flush=True); sys.stdin.read()"
    twice = (
        "import subprocess, sys; "
        f"c = subprocess.Popen([sys.executable, '-c', \"import sys; {hold}\"], stdin=subprocess.PIPE, "
        f"stdout=subprocess.PIPE); c.stdout.readline(); {hold}; c.stdin.close(); c.wait()"
    )

    def start(code: str, home: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, STACK: home}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        return process

    mine, other = start(twice, str(tmp_path)), start("import sys; " + hold, "elsewhere")
    try:
        assert 120_000_000 < memory_of(str(tmp_path)) < 180_000_000
        with MemoryWatch(tmp_path) as watch:
            pass
        assert 120_000_000 < watch.peak_bytes < 180_000_000
    finally:
        for process in (mine, other):
            process.communicate()
    assert memory_of(str(tmp_path)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how many processes share a page")
def test_what_processes_share_counts_once(tmp_path: Path) -> None:
    forks = (
        "import os, sys; x = bytearray(b'1') * 60_000_000; r, w = os.pipe(); p = os.fork(); "
        "p or (os.close(w), os.read(r, 1), os._exit(0)); print('there', flush=True); sys.stdin.read(); os.close(w); "
        "os.waitpid(p, 0)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", forks],
        env={**os.environ, STACK: str(tmp_path)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        assert 60_000_000 < memory_of(str(tmp_path)) < 100_000_000
    finally:
        process.communicate()
