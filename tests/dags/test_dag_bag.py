"""The night as Airflow reads it, and how its tasks start jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.local.night import SPARK_TASKS, TASKS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def module(airflow_home: Path) -> Any:
    """The DAG file as a module."""
    from dags import nightly_recommendations

    return nightly_recommendations


@pytest.fixture
def dag(module: Any) -> Any:
    return module.dag


def dag_run(run_type: str, **values: Any) -> SimpleNamespace:
    empty = {"data_interval_end": None, "start_date": None, "run_after": datetime(2024, 3, 8, 1, tzinfo=UTC)}
    return SimpleNamespace(run_type=run_type, **{**empty, **values})


def test_tasks_run_one_after_another_but_features_beside_the_lists(dag: Any) -> None:
    assert len(dag.tasks) == len(TASKS) == 10
    waits_for = {task.task_id: set(task.upstream_task_ids) for task in dag.tasks}
    assert waits_for == {
        "pin_run": set(),
        "refine_events": {"pin_run"},
        "build_features": {"refine_events"},
        "train_models": {"build_features"},
        "judge_models": {"train_models"},
        "score_users": {"judge_models"},
        "materialize_features": {"judge_models"},
        "verify_publication": {"score_users", "materialize_features"},
        "flip_version": {"verify_publication"},
        "attribute_events": {"flip_version"},
    }


def test_the_named_order_is_one_in_which_they_can_run(dag: Any) -> None:
    """Benches and reproductions run the tasks by it, one at a time."""
    assert sorted(TASKS) == sorted(dag.task_ids)
    for place, name in enumerate(TASKS):
        assert dag.get_task(name).upstream_task_ids <= set(TASKS[:place])


def test_spark_tasks_are_submitted_one_at_a_time(dag: Any) -> None:
    submitted = {task.task_id for task in dag.tasks if hasattr(task, "application")}
    assert submitted == SPARK_TASKS
    for name in sorted(SPARK_TASKS):
        task = dag.get_task(name)
        assert task.pool == "spark"
        assert task.application == str(ROOT / "spark_jobs" / "jobs" / f"{name}.py")
        assert task.application_args == ["--run-key", "{{ run_key(dag_run.run_id) }}"]
    assert {dag.get_task(name).pool for name in set(TASKS) - SPARK_TASKS} == {"default_pool"}


def test_settings_go_to_spark_as_a_file_and_not_on_the_class_path(module: Any) -> None:
    from dags.job_operators import settings_of

    assert settings_of({}) == {}
    given = settings_of({"SPARK_CONF_DIR": "/settings"})
    assert given["properties_file"] == "/settings/spark-defaults.conf"
    assert given["env_vars"] == {"SPARK_CONF_DIR": "/settings/none"}


def test_every_task_is_retried_twice_after_a_short_while(dag: Any) -> None:
    assert [(t.retries, t.retry_delay.total_seconds()) for t in dag.tasks] == [(2, 10.0)] * 10
    assert dag.max_active_runs == 1
    assert dag.catchup is False


def test_the_interval_is_a_day_that_ends_at_midnight_utc(dag: Any) -> None:
    timetable = dag.timetable
    assert type(timetable).__name__ == "CronDataIntervalTimetable"
    assert timetable.expression == "0 0 * * *"
    assert str(timetable.timezone) == "UTC"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("as_of", "2011-12-10", "10.12.2011"),
        ("publish", "never", "sometimes"),
        ("test_days", 7, 0),
        ("max_quarantined_share", 0.5, 1.5),
        ("exclude_seen", "purchased", "bought"),
        ("rescore", "touched", "some"),
        ("shares", "none", "some"),
    ],
)
def test_params_take_good_values_and_refuse_bad_ones(dag: Any, name: str, good: object, bad: object) -> None:
    from airflow.sdk import Param
    from airflow.sdk.exceptions import ParamValidationError

    param = dag.params.get_param(name)
    assert isinstance(param, Param)
    assert param.resolve(good) == good
    param.resolve(param.value)  # the default stands
    with pytest.raises(ParamValidationError):
        param.resolve(bad)


def test_jobs_get_only_the_params_that_were_set(module: Any) -> None:
    params = {"as_of": "2024-03-08", "publish": "auto", "test_days": 0, "exclude_seen": None, "note": "x"}
    assert json.loads(module.job_params(params)) == {"test_days": 0, "note": "x"}


def test_run_types(module: Any) -> None:
    end = datetime(2024, 3, 8, tzinfo=UTC)
    assert module.job_run_type(dag_run("manual")) == "manual"
    assert module.job_run_type(dag_run("manual", data_interval_end=end)) == "manual"
    assert module.job_run_type(dag_run("scheduled", data_interval_end=end)) == "scheduled"
    assert module.job_run_type(dag_run("backfill", data_interval_end=end)) == "backfill"
    assert module.job_run_type(dag_run("asset_triggered")) == "manual"


def test_a_manual_run_without_dates_renders(dag: Any) -> None:
    """A manual run has no logical date: every template must stand that."""
    task = dag.get_task("pin_run")
    run = dag_run("manual", run_id="manual__2024-03-08T01:02:03+00:00", start_date=datetime(2024, 3, 8, 1, tzinfo=UTC))
    context = {"dag_run": run, "params": {"as_of": None, "publish": "never", "test_days": 3}, **dag.user_defined_macros}
    environment = dag.get_template_env()
    rendered = [environment.from_string(text).render(context) for text in task.arguments]
    assert rendered == [
        "--run-key",
        "manual__2024-03-08T01-02-03-00-00",
        "--dag-run-id=manual__2024-03-08T01:02:03+00:00",
        "--run-type=manual",
        "--as-of=auto",
        "--data-interval-end=",
        "--publish=never",
        "--today=2024-03-08",
        '--params={"test_days": 3}',
    ]


def test_a_backfill_renders_the_end_of_its_interval(dag: Any) -> None:
    task = dag.get_task("pin_run")
    run = dag_run(
        "backfill",
        run_id="backfill__2024-03-07",
        start_date=datetime(2024, 6, 1, 23, 59, tzinfo=UTC),
        data_interval_end=datetime(2024, 3, 8, tzinfo=UTC),
    )
    context = {"dag_run": run, "params": {"as_of": None, "publish": "auto"}, **dag.user_defined_macros}
    environment = dag.get_template_env()
    rendered = [environment.from_string(text).render(context) for text in task.arguments]
    assert "--run-type=backfill" in rendered
    assert "--data-interval-end=2024-03-08T00:00:00+00:00" in rendered
    assert "--today=2024-06-01" in rendered


@pytest.fixture
def python_job(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the task of a job whose program is given: a package of jobs in the child's working folder."""

    def make(program: str, **options: Any) -> Any:
        from dags.job_operators import PythonJobOperator

        package = tmp_path / "spark_jobs" / "jobs"
        package.mkdir(parents=True)
        for folder in (package.parent, package):
            (folder / "__init__.py").touch()
        (package / "some_job.py").write_text(program)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("NIGHTJAR_HOME", str(tmp_path))
        return PythonJobOperator(task_id="some_job", job="some_job", run_key="k1", arguments=["--x=1"], **options)

    return make


def test_a_job_gets_its_arguments(python_job: Any, tmp_path: Path) -> None:
    task = python_job(f"import sys; open({str(tmp_path / 'seen')!r}, 'w').write(' '.join(sys.argv[1:]))")
    task.execute({})
    assert (tmp_path / "seen").read_text() == "--run-key k1 --x=1"


@pytest.mark.parametrize(("code", "never_retried"), [(2, True), (1, False), (3, False)])
def test_exit_code_two_is_never_retried(python_job: Any, code: int, never_retried: bool) -> None:
    from airflow.sdk.exceptions import AirflowException, AirflowFailException

    task = python_job(f"import sys; print('error DataError: no items'); print('bye'); sys.exit({code})")
    with pytest.raises(AirflowException, match="error DataError: no items") as caught:
        task.execute({})
    assert isinstance(caught.value, AirflowFailException) is never_retried


@pytest.mark.parametrize(("printed", "changed"), [("changed shelf", ["shelf"]), ("unchanged shelf", [])])
def test_a_job_says_which_assets_it_changed(
    python_job: Any, monkeypatch: pytest.MonkeyPatch, printed: str, changed: list[str]
) -> None:
    from airflow.sdk import Asset

    events: list[str] = []
    task = python_job(f"print({printed!r}); print('changed other')", may_change=[Asset(name="shelf", uri="x-test://a")])
    recorder = SimpleNamespace(add=lambda asset: events.append(asset.name))
    task.execute({"outlet_events": dict.fromkeys(task.outlets, recorder)})
    assert events == changed
    assert len(task.outlets) == 1


def test_what_an_earlier_try_left_is_stopped_and_nobody_else(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dags.job_operators import stop_leftovers

    def start(home: str, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)", *words]
        environ = {**os.environ, "NIGHTJAR_HOME": home, **variables}
        child = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    monkeypatch.setenv("NIGHTJAR_HOME", str(tmp_path))
    left = start(str(tmp_path), "job.py", "--run-key", "k1")
    unnamed = start(str(tmp_path), "job.py", NIGHTJAR_TASK="k1")  # a program that is not told its run
    others = [
        start(str(tmp_path), "job.py", "--run-key", "k2"),
        start(str(tmp_path), "other.py", "--run-key", "k1"),
        start(str(tmp_path / "neighbour"), "job.py", "--run-key", "k1"),
        start(str(tmp_path), "job.py"),  # a person's own
    ]
    try:
        stop_leftovers("job.py", "k1")
        assert left.poll() is not None
        assert unnamed.poll() is not None
        time.sleep(0.2)
        assert [child.poll() for child in others] == [None] * 4
        monkeypatch.delenv("NIGHTJAR_HOME")
        stop_leftovers("job.py", "k2")
        assert others[0].poll() is None
    finally:
        for child in (left, unnamed, *others):
            child.kill()
            child.wait()


def test_only_a_scheduled_night_has_an_hour_to_keep(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback of the deadline, as Airflow calls it; the job is a program that writes its arguments down."""
    from dags import deadlines

    (tmp_path / "seen_job.py").write_text("import sys; open('seen', 'a').write(' '.join(sys.argv[1:]) + '\\n')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deadlines, "JOB", "seen_job")
    run = {"dag_run_id": "r1", "state": "failed", "data_interval_end": "2024-03-09T00:00:00Z"}
    due = {"deadline_time": "2024-03-09 06:00:00+00:00"}
    for kind in ("backfill", "manual", "asset_triggered"):
        deadlines.night_is_late({"dag_run": {**run, "run_type": kind}, "deadline": due})
    assert not (tmp_path / "seen").exists()
    deadlines.night_is_late({"dag_run": {**run, "run_type": "scheduled"}, "deadline": due})
    assert (tmp_path / "seen").read_text() == (
        "--dag-run-id=r1 --state=failed --data-interval-end=2024-03-09T00:00:00Z --due=2024-03-09 06:00:00+00:00\n"
    )


def test_the_night_is_due_at_six(dag: Any) -> None:
    (alert,) = dag.deadline
    assert type(alert.reference).__name__ == "DagRunLogicalDateDeadline"
    # the logical date of the night that may start on the 9th is the 8th, 00:00
    assert datetime(2024, 3, 8, tzinfo=UTC) + alert.interval == datetime(2024, 3, 9, 6, tzinfo=UTC)
    assert alert.callback.path == "dags.deadlines.night_is_late"
