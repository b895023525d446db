"""Run the night through the real scheduler and follow it: what `nightjar run nightly` and the demo do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypedDict, TypeVar

from feature_repo.contracts.errors import DataError, DependencyError, nearest
from feature_repo.contracts.run import run_key
from feature_repo.contracts.times import parse_as_of
from infra.local.airflow_api import TERMINAL_STATES, AirflowApi
from infra.local.stack import airflow_api

DAG_ID = "nightly_recommendations"
PUBLISH_MODES = ("auto", "never", "always")
TASKS = (
    "pin_run", "refine_events", "build_features", "train_models", "judge_models", "score_users",
    "materialize_features", "verify_publication", "flip_version", "attribute_events",
)  # fmt: skip
"""In an order in which they can run: materialize_features may run beside score_users (a test holds this to the DAG)."""

SPARK_TASKS = frozenset({"refine_events", "build_features", "train_models", "score_users"})
"""Those that go through spark-submit (held to the DAG by the same test); the others are plain Python."""

_ONE_DAY = timedelta(days=1)
_POLL_SECONDS, _MOST_POLL_SECONDS = 1.0, 3.0
_POLLS = 60
"""A wait of a minute is looked at once a second, a longer one less often: each look costs Airflow's API 50 ms of the
processors that the night wants."""
_PATIENCE_SECONDS = 30.0
_SCHEDULER_SILENCE_SECONDS = 60.0

_Answer = TypeVar("_Answer")

Progress = Callable[[str, str, float | None, int], None]
"""Called when a task changes: (task_id, state, its seconds so far, try number)."""


class TaskTime(TypedDict):
    """One task of a night. `seconds` is the duration of its last try."""

    task_id: str
    state: str | None
    seconds: float | None
    tries: int


class Night(TypedDict):
    """One DAG run. `failed_task` and `errors` (the `error ...` lines of its log) are set when it failed."""

    dag_run_id: str
    run_key: str
    state: str
    seconds: float | None
    tasks: list[TaskTime]
    failed_task: str | None
    errors: list[str]


def run_nightly(
    as_of: str | None = None,
    *,
    publish: str = "auto",
    params: Mapping[str, Any] | None = None,
    wait: bool = True,
    variables: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> Night:
    """Trigger `nightly_recommendations` and, when `wait`, follow it to its end. A failed run is returned, not raised.

    `as_of` is a day (UTC); None means the day after the last event. Raises DataError before anything is triggered when
    a parameter is wrong, DependencyError when Airflow or its scheduler does not answer.
    """
    conf = check_request(as_of, publish, params or {}, today=datetime.now(UTC))
    with airflow_api(os.environ if variables is None else variables) as airflow:
        airflow.wait_for_dag(DAG_ID)
        known = airflow.params(DAG_ID)
        for name in conf:
            if name not in known:
                raise DataError(f"the night has no parameter {name!r}{nearest(name, known)}", field=name)
        return _start(airflow, DAG_ID, conf, wait=wait, on_progress=on_progress)


def run_dag(
    dag_id: str,
    conf: Mapping[str, Any],
    *,
    wait: bool = True,
    variables: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> Night:
    """Trigger another DAG with these parameters, as `run_nightly` triggers the night."""
    with airflow_api(os.environ if variables is None else variables) as airflow:
        airflow.wait_for_dag(dag_id)
        return _start(airflow, dag_id, conf, wait=wait, on_progress=on_progress)


def _start(
    airflow: AirflowApi, dag_id: str, conf: Mapping[str, Any], *, wait: bool, on_progress: Progress | None
) -> Night:
    airflow.unpause(dag_id)
    dag_run_id = airflow.trigger(dag_id, conf)
    if wait:
        return follow(airflow, dag_run_id, on_progress, dag_id=dag_id)
    return _describe(airflow, dag_run_id, dag_id)


def check_request(as_of: str | None, publish: str, params: Mapping[str, Any], *, today: datetime) -> dict[str, Any]:
    """The DAG run's configuration. Raises DataError naming the value and what would be right.

    The latest `as_of` is tomorrow: such a run sees everything up to now.
    """
    conf = dict(params)
    for name in ("as_of", "publish"):
        if name in conf:
            raise DataError(f"{name} has an option of its own: --{name.replace('_', '-')}", field=name)
    if publish not in PUBLISH_MODES:
        raise DataError(
            f"publish is one of {', '.join(PUBLISH_MODES)}, got {publish!r}{nearest(publish, PUBLISH_MODES)}",
            field="publish",
        )
    conf["publish"] = publish
    if as_of is not None:
        day, latest = parse_as_of(as_of), today.astimezone(UTC).date() + _ONE_DAY
        if day > latest:
            raise DataError(
                f"as_of {day} lies in the future: today is {latest - _ONE_DAY} (UTC), so {latest} is the "
                "latest possible, and sees everything up to now",
                field="as_of",
            )
        conf["as_of"] = day.isoformat()
    return conf


def follow(airflow: AirflowApi, dag_run_id: str, on_progress: Progress | None = None, *, dag_id: str = DAG_ID) -> Night:
    """Wait for the end of a run. Short silences of Airflow are sat out; a scheduler that is gone is told.

    Raises DependencyError when Airflow is silent for 30 s or the scheduler for a minute.
    """
    report = on_progress or (lambda *_: None)
    shown: dict[str, tuple[str | None, int]] = {}
    for night in _answers(airflow, lambda: _describe(airflow, dag_run_id, dag_id), dag_run_id):
        for task in night["tasks"]:
            now = (task["state"], task["tries"])
            if task["state"] and shown.get(task["task_id"]) != now:
                shown[task["task_id"]] = now
                report(task["task_id"], task["state"], task["seconds"], task["tries"])
        if night["state"] in TERMINAL_STATES:
            return _with_errors(airflow, night, dag_id)
    raise AssertionError("the answers end with an exception")


def backfill_nights(
    first: str,
    last: str,
    *,
    variables: Mapping[str, str] | None = None,
    on_night: Callable[[Night], None] | None = None,
) -> list[Night]:
    """Run the nights with `as_of` from `first` to `last` (days, UTC) one after another; oldest first.

    They are backfills: each rebuilds the tables of its day and publishes nothing. A day that has run before runs again
    with what it pinned then. `on_night` is called with each night as it ends. A failed night is returned, not raised,
    and the nights after it run. Raises DataError when the days are in the wrong order or Airflow refuses,
    DependencyError when Airflow or its scheduler falls silent.
    """
    from_day, to_day = parse_as_of(first) - _ONE_DAY, parse_as_of(last) - _ONE_DAY  # as_of ends the interval
    if to_day < from_day:
        raise DataError(f"a backfill goes forward in time, got {first} to {last}", field="to")
    with airflow_api(os.environ if variables is None else variables) as airflow:
        airflow.wait_for_dag(DAG_ID)
        airflow.unpause(DAG_ID)
        nights = []
        for day in (from_day + n * _ONE_DAY for n in range((to_day - from_day).days + 1)):
            night = _backfill_one(airflow, day)
            if on_night is not None:
                on_night(night)
            nights.append(_with_errors(airflow, night))
        return nights


def _backfill_one(airflow: AirflowApi, day: date) -> Night:
    """The night of one interval, ended. A backfill of its own: Airflow makes the runs of a longer one in a transaction
    each, and when its SQLite is locked for one of them it takes the others away from under its scheduler."""
    backfill = airflow.backfill(DAG_ID, day, day)

    def ask() -> tuple[bool, list[Night]]:
        return airflow.backfill_has_ended(backfill), _backfilled(airflow, day, day)

    for ended, nights in _answers(airflow, ask, f"backfill {backfill}"):
        if ended:
            (night,) = nights
            return night
    raise AssertionError("the answers end with an exception")


def _backfilled(airflow: AirflowApi, from_day: date, to_day: date) -> list[Night]:
    runs = airflow.runs_between(DAG_ID, from_day, to_day)
    return [_describe(airflow, run["dag_run_id"]) for run in runs if run["run_type"] == "backfill"]


def _answers(airflow: AirflowApi, ask: Callable[[], _Answer], what: str) -> Iterator[_Answer]:
    """What `ask` returns, again and again without end (`poll_seconds`); silences are sat out as `follow` says."""
    began = last_answer = last_beat = time.monotonic()
    while True:
        try:
            answer = ask()
            if airflow.health()["scheduler"]["status"] == "healthy":
                last_beat = time.monotonic()
            last_answer = time.monotonic()
        except DependencyError:
            if time.monotonic() - last_answer > _PATIENCE_SECONDS:
                raise
            time.sleep(_POLL_SECONDS)
            continue
        yield answer
        if time.monotonic() - last_beat > _SCHEDULER_SILENCE_SECONDS:
            raise DependencyError(f"Airflow's scheduler is not running, so {what} does not go on: `nightjar up`")
        time.sleep(poll_seconds(time.monotonic() - began))


def poll_seconds(waited: float) -> float:
    """The pause before the next look at what has been waited for so long (seconds)."""
    return min(_MOST_POLL_SECONDS, max(_POLL_SECONDS, waited / _POLLS))


def last_night(variables: Mapping[str, str] | None = None) -> Night | None:
    """The run that was started last, or None when there was none yet."""
    with airflow_api(os.environ if variables is None else variables) as airflow:
        night = last_night_of(airflow)
        return None if night is None else _with_errors(airflow, night)


def last_night_of(airflow: AirflowApi) -> Night | None:
    """The same, asked of a given Airflow and without the errors."""
    run = airflow.last_run(DAG_ID)
    return None if run is None else _describe(airflow, run["dag_run_id"])


def _describe(airflow: AirflowApi, dag_run_id: str, dag_id: str = DAG_ID) -> Night:
    run = airflow.run(dag_id, dag_run_id)
    by_id = {task["task_id"]: task for task in airflow.task_instances(dag_id, dag_run_id)}
    tasks = [
        TaskTime(
            task_id=name,
            state=by_id[name]["state"],
            seconds=_seconds(by_id[name]),
            tries=int(by_id[name].get("try_number") or 0),
        )
        for name in (TASKS if dag_id == DAG_ID else sorted(by_id))
        if name in by_id
    ]
    return Night(
        dag_run_id=dag_run_id,
        run_key=run_key(dag_run_id),
        state=str(run["state"]),
        seconds=_seconds(run),
        tasks=tasks,
        failed_task=next((t["task_id"] for t in tasks if t["state"] == "failed"), None),
        errors=[],
    )


def _with_errors(airflow: AirflowApi, night: Night, dag_id: str = DAG_ID) -> Night:
    if night["failed_task"] is None:
        return night
    tries = next(task["tries"] for task in night["tasks"] if task["task_id"] == night["failed_task"])
    log = airflow.task_log(dag_id, night["dag_run_id"], night["failed_task"], max(tries, 1))
    return {**night, "errors": error_lines(log)}


def error_lines(log: list[str]) -> list[str]:
    """The `error <Name>: ...` lines of a task's log, each once, with the lines that continue them."""
    found: list[str] = []
    for line in log:
        text = line.strip()
        if text.startswith("error ") and text.split(":")[0].endswith("Error") and text not in found:
            found.append(text)
    return found


def _seconds(row: Mapping[str, Any]) -> float | None:
    if not row.get("start_date"):
        return None
    started = datetime.fromisoformat(row["start_date"])
    ended = datetime.fromisoformat(row["end_date"]) if row.get("end_date") else datetime.now(UTC)
    return round((ended - started).total_seconds(), 1)
