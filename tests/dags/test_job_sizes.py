"""What a task tells Spark beside the settings of the installation, by the size of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

from dags.job_operators import SparkJobOperator, settings_for_size
from feature_repo.contracts.run import Run

DRIVER = "-Duser.timezone=UTC -XX:TieredStopAtLevel=1 -Xss4m"
EXECUTOR = "-XX:TieredStopAtLevel=1"


def installation(home: Path, event_count: int) -> dict[str, str]:
    """A run of so many events, and settings for short jobs."""
    folder = home / "runs" / "default" / "night"
    folder.mkdir(parents=True)
    run = Run("night", "default", "2025-07-01", {}, None, True, "", "m", "v", event_count=event_count)
    (folder / "run.json").write_text(run.to_json())
    conf = home / "spark"
    conf.mkdir()
    lines = ("# comment", "", "spark.master local[*]", f"spark.driver.extraJavaOptions {DRIVER}",
             f"spark.executor.extraJavaOptions {EXECUTOR}", "spark.driver.memory 3g")  # fmt: skip
    (conf / "spark-defaults.conf").write_text("\n".join(lines))
    return {"NIGHTJAR_HOME": str(home), "SPARK_CONF_DIR": str(conf)}


def test_only_a_large_run_is_given_the_optimising_compiler(tmp_path: Path) -> None:
    optimising = {
        "spark.driver.extraJavaOptions": "-Duser.timezone=UTC -Xss4m",
        "spark.executor.extraJavaOptions": "",
    }
    large = installation(tmp_path / "large", 2_000_000)
    assert settings_for_size(large, "night", "train_models") == optimising
    assert settings_for_size(installation(tmp_path / "small", 1_999_999), "night", "train_models") == {}
    in_memory = installation(tmp_path / "in memory", 30_000_000)
    for job in ("refine_events", "build_features"):
        assert settings_for_size(in_memory, "night", job) == {}
    beyond = installation(tmp_path / "beyond", 30_000_001)
    assert settings_for_size(beyond, "night", "refine_events") == optimising


def test_without_a_run_or_settings_nothing_is_said(tmp_path: Path) -> None:
    variables = installation(tmp_path, 9_000_000)
    assert settings_for_size(variables, "another", "train_models") == {}
    assert settings_for_size({"NIGHTJAR_HOME": str(tmp_path)}, "night", "train_models") == {}


def test_the_task_hands_it_to_spark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in installation(tmp_path, 3_000_000).items():
        monkeypatch.setenv(name, value)
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(SparkSubmitOperator, "execute", lambda self, _: told.append(dict(self.conf)))
    task = SparkJobOperator(task_id="train_models", job="train_models", run_key="night", conf={"spark.x": "1"})
    task.execute({})
    assert [one["spark.driver.extraJavaOptions"] for one in told] == ["-Duser.timezone=UTC -Xss4m"]
    assert told[0]["spark.x"] == "1"
