"""The bench of training: its arithmetic and its Spark settings. A fit of each engine is in the tests of als."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.bench.nights.spark_side import plain_spark_conf
from infra.bench.nights.training import Learned, learn, report_of
from infra.local.spark_conf import SETTINGS_FILE


def test_the_report_compares_pair_by_pair() -> None:
    ours = [Learned(2.0, 3.0, 0.12), Learned(1.0, 2.0, 0.12), Learned(4.0, 2.0, 0.12)]
    theirs = [Learned(10.0, 60.0, 0.11), Learned(9.0, 10.0, 0.10), Learned(8.0, 40.0, 0.12)]
    report = report_of(ours, theirs, "v1")
    wall, cpu = report["figures"]["times_less_wall"], report["figures"]["times_less_cpu"]
    assert (wall["min"], wall["median"], wall["max"], wall["ratio"]) == (2.0, 5.0, 9.0, 1.0)
    assert (cpu["min"], cpu["median"], cpu["max"], cpu["ratio"]) == (5.0, 20.0, 20.0, 2.0)
    assert report["figures"]["training_seconds"]["baseline"] == 9.0
    assert report["is_as_good"] is True
    assert report_of(ours, [Learned(1.0, 1.0, 0.13)] * 3, "v1")["is_as_good"] is False


def test_mllib_runs_without_the_java_options_of_short_jobs(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    memory = "spark.driver.memory 3g"
    (ours / SETTINGS_FILE).write_text(f"{memory}\nspark.driver.extraJavaOptions -XX:TieredStopAtLevel=1 -Xss4m\n")
    plain = (plain_spark_conf(ours, tmp_path / "plain") / SETTINGS_FILE).read_text()
    assert plain == f"{memory}\nspark.driver.extraJavaOptions -Duser.timezone=UTC -Xss4m\n"


def test_a_fit_finds_what_its_users_came_for(tmp_path: Path) -> None:
    """Two groups of users with eight items each; everybody's test item is the one of their group that they lack."""
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    lines, wanted = [], []
    for user in range(40):
        own = [f"{'ab'[user % 2]}{item}" for item in range(8)]
        held = own.pop(user % 8)
        lines.append(" ".join([f"u{user}", *own]))
        wanted.append(f"u{user} {held}")
    train.write_text("\n".join(lines) + "\n")
    test.write_text("\n".join(wanted) + "\n")
    found = learn("native", train, test)
    assert found.ndcg == pytest.approx(1.0)
    assert 0 < found.seconds < 60
    assert found.cpu_seconds >= 0
