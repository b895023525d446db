"""The form of a bench report, and where a night is killed."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from feature_repo.contracts.errors import DataError, NightjarError
from infra.bench.nights.kills import _report, draw
from infra.bench.nights.small_night import Night
from infra.bench.report import figure, make_report, write_report
from infra.local import programs
from infra.local.programs import Attempt, attempt


def test_a_figure_tells_its_spread_and_what_it_is_compared_with() -> None:
    assert figure("s", [3.0, 1.0, 10.0]) == {
        "unit": "s", "min": 1.0, "median": 3.0, "max": 10.0, "baseline": None, "ratio": None,
    }  # fmt: skip
    assert figure("s", [4.0, 2.0], baseline=[2.0, 1.0, 9.0]) == {
        "unit": "s", "min": 2.0, "median": 3.0, "max": 4.0, "baseline": 2.0, "ratio": 1.5,
    }  # fmt: skip
    assert figure("kills", [4.0], baseline=[0.0])["ratio"] is None
    for samples, baseline in (([], None), ([1.0], [])):
        with pytest.raises(DataError, match="at least one sample"):
            figure("s", samples, baseline=baseline)


def test_a_report_is_one_json_document(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    write_report(make_report("torture night", {"x": figure("s", [1.0])}, "v1", kills=3), path)
    found = json.loads(path.read_text())
    assert (found["name"], found["code_version"], found["kills"]) == ("torture night", "v1", 3)
    assert found["figures"] == {"x": figure("s", [1.0])}
    assert found["machine"].keys() == {"processor", "cores", "memory_gb", "system", "python"}
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_kill_points_are_spread_over_the_night_by_the_length_of_its_tasks() -> None:
    durations = {"pin": 1.0, "refine": 6.0, "train": 3.0}
    points = [draw(random.Random(n), durations) for n in range(2000)]
    assert points[:50] == [draw(random.Random(n), durations) for n in range(50)]
    counts = Counter(point.task for point in points)
    assert counts.keys() == durations.keys()
    for task, seconds in durations.items():
        assert counts[task] == pytest.approx(200 * seconds, rel=0.15)
        assert all(0.0 <= p.offset <= seconds for p in points if p.task == task)
    assert max(p.offset for p in points if p.task == "refine") > 5.5


def test_a_program_is_killed_with_its_children_and_at_its_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(30)'])"
    monkeypatch.setattr(programs, "command_of", lambda *_: [sys.executable, "-c", child])
    killed = attempt("refine_events", "r", "2025-01-01", variables={}, log=tmp_path / "log", kill_after=0.3)
    assert killed.killed
    assert 0.3 <= killed.seconds < 5
    assert 0 < killed.cpu_seconds < killed.seconds
    monkeypatch.setattr(programs, "command_of", lambda *_: [sys.executable, "-c", "pass"])
    assert not attempt("x", "r", "d", variables={}, log=tmp_path / "log", kill_after=20).killed
    monkeypatch.setattr(programs, "command_of", lambda *_: [sys.executable, "-c", "raise SystemExit('no such day')"])
    with pytest.raises(NightjarError, match=r"x of r ended with exit code 1(.|\n)*no such day"):
        attempt("x", "r", "d", variables={}, log=tmp_path / "log")


def test_nights_that_differ_are_named() -> None:
    quiet = [Night([Attempt("pin_run", 10.0, False, 0.5)], {"t": "1", "u": "2"}, "v")] * 2
    same = Night([Attempt("pin_run", 2.0, True), Attempt("pin_run", 10.0, False)], {"u": "2", "t": "1"}, "v")
    other = Night([Attempt("pin_run", 5.0, True), Attempt("pin_run", 10.0, False)], {"t": "1", "u": "3", "w": "4"}, "v")
    report = _report({}, 7, quiet, [same], 0)
    assert (report["identical"], report["differing"], report["kills"]) == (True, {}, 1)
    assert report["figures"]["time_ratio"]["max"] == 1.2
    assert report["figures"]["pin_run_cpu_seconds"]["median"] == 0.5
    report = _report({}, 7, quiet, [same, other], 1)
    assert (report["identical"], report["differing"]) == (False, {"u": [3], "w": [3]})
    assert (report["kills"], report["missed"], report["compared"]) == (2, 1, 2)
    assert [report["figures"]["lost_seconds"][key] for key in ("min", "median", "max")] == [2.0, 3.5, 5.0]
