"""The supervisor on small stand-in services: order, failure, repetition, addresses, what a killed Airflow left."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from feature_repo.contracts.errors import DependencyError
from infra.local import stack as stack_module
from infra.local.airflow_home import AirflowHome
from infra.local.java import Java
from infra.local.processes import PidFolder
from infra.local.services import Service
from infra.local.setup import Tools
from infra.local.variables import (
    code_version,
    known_addresses,
    read_book,
    stack_environment,
    stack_variables,
    write_book,
)

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
PORTS = {"api": 1, "airflow": 2, "mlflow": 3, "redis-log": 4, "redis-online": 5}
TOOLS = Tools(java=Java("/java", 17, "PATH"), spark_conf="/spark")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    for file in (tmp_path / "home" / "run").glob("*.pid"):
        process = PidFolder(file.parent, str(tmp_path / "home")).find(file.stem)
        if process is not None:
            with contextlib.suppress(psutil.Error):
                process.kill()


@pytest.fixture
def start(home: Path) -> Callable[..., list[str]]:
    """Run the starter on these services; returns what was reported, as `service state`."""

    def run(
        *services: Service, running: frozenset[str] = frozenset(), given: dict[str, str] | None = None
    ) -> list[str]:
        reported: list[str] = []
        variables = {"NIGHTJAR_HOME": str(home), "PATH": os.environ["PATH"], **(given or {})}
        stack = stack_module._Stack(variables)
        starter = stack_module._Start(
            stack, {s.name: s for s in services}, set(running) | {"scheduler", "airflow-api"},
            lambda name, state, _: reported.append(f"{name} {state}"), 0.0,
        )  # fmt: skip
        try:
            starter.all()
        except DependencyError as error:
            reported.append(str(error))
        return reported

    return run


def service(name: str, command: list[str] = SLEEP, **options: object) -> Service:
    values: dict[str, object] = {"is_well": lambda _: True, "variables": dict(os.environ), **options}
    return Service(name=name, command=command, **values)  # type: ignore[arg-type]


def test_a_service_starts_after_what_it_needs(start: Callable[..., list[str]]) -> None:
    slow = service("mlflow", is_well=lambda since: since > 0.5)
    reported = start(service("api", needs=("mlflow",)), slow)
    assert reported == ["mlflow starting", "mlflow running", "api starting", "api running"]


def test_one_that_dies_tells_its_last_words_and_holds_back_who_needs_it(
    start: Callable[..., list[str]], home: Path
) -> None:
    (home / "logs").mkdir(parents=True)
    (home / "logs" / "mlflow.log").write_text("words of an earlier start\n")
    broken = service("mlflow", [sys.executable, "-c", "print('no such database')"], is_well=lambda _: False)
    reported = start(broken, service("api", needs=("mlflow",)))
    assert reported[:2] == ["mlflow starting", "mlflow failed"]
    assert len(reported) == 3
    assert reported[2].startswith("mlflow ended at its start")
    assert reported[2].endswith("\nno such database")
    assert "earlier" not in reported[2]


def test_one_that_never_answers_is_stopped_and_told(start: Callable[..., list[str]], home: Path) -> None:
    reported = start(service("mlflow", is_well=lambda _: False, start_timeout_seconds=0.3))
    assert "mlflow does not answer after 0 s" in reported[-1]
    assert PidFolder(home / "run", str(home)).find("mlflow") is None


def test_a_running_service_is_left_alone(start: Callable[..., list[str]], home: Path) -> None:
    start(service("api"))
    first = PidFolder(home / "run", str(home)).find("api")
    assert first is not None
    assert start(service("api"), running=frozenset({"api"})) == ["api already running"]
    assert PidFolder(home / "run", str(home)).find("api") == first


def test_a_server_of_somebody_else_is_used_not_started(start: Callable[..., list[str]]) -> None:
    given = {"MLFLOW_TRACKING_URI": "http://mlflow.shop:5000"}
    theirs = service("mlflow", setting="MLFLOW_TRACKING_URI", url="http://mlflow.shop:5000")
    assert start(theirs, given=given) == ["mlflow external"]
    silent = theirs._replace(is_well=lambda _: False)
    assert start(silent, given=given) == [
        "mlflow failed",
        "MLFLOW_TRACKING_URI names http://mlflow.shop:5000, which does not answer",
    ]


def test_a_changed_setting_changes_the_fingerprint() -> None:
    base = service("api", variables={"NIGHTJAR_REDIS_LOG_URL": "redis://a", "TERM": "x"})
    other_terminal = base._replace(variables={"NIGHTJAR_REDIS_LOG_URL": "redis://a", "TERM": "y"})
    other_redis = base._replace(variables={"NIGHTJAR_REDIS_LOG_URL": "redis://b", "TERM": "x"})
    assert base.fingerprint() == other_terminal.fingerprint()
    assert base.fingerprint() != other_redis.fingerprint()
    # a store does not care for the addresses of others
    store, moved = base._replace(runs_our_code=False), other_redis._replace(runs_our_code=False)
    assert store.fingerprint() == moved.fingerprint()
    assert store.fingerprint() != store._replace(command=[*SLEEP, "--port", "1"]).fingerprint()


class TestAddressBook:
    def test_written_and_read_back(self, home: Path) -> None:
        book = write_book({"NIGHTJAR_HOME": str(home)}, PORTS, TOOLS)
        assert read_book(str(home)) == book
        environment = stack_environment({"NIGHTJAR_HOME": str(home)})
        assert environment.redis_log_url == "redis://127.0.0.1:4/0"
        assert environment.mlflow_uri == "http://127.0.0.1:3"
        assert environment.code_version == code_version()

    def test_what_a_person_set_wins_unless_it_is_empty(self, home: Path) -> None:
        given = {"NIGHTJAR_HOME": str(home), "NIGHTJAR_REDIS_LOG_URL": "redis://theirs:1/0", "MLFLOW_TRACKING_URI": ""}
        write_book({"NIGHTJAR_HOME": str(home)}, PORTS, TOOLS)
        known = known_addresses(given)
        assert known["NIGHTJAR_REDIS_LOG_URL"] == "redis://theirs:1/0"
        assert known["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:3"

    def test_children_get_all_they_need(self, home: Path) -> None:
        write_book({"NIGHTJAR_HOME": str(home)}, PORTS, TOOLS)
        given = {"NIGHTJAR_HOME": str(home), "PATH": "/bin", "JAVA_HOME": "/old", "PYTHONDONTWRITEBYTECODE": "1"}
        child = stack_variables(given)
        assert child["PATH"] == f"{Path(sys.executable).parent}:/bin"
        assert child["JAVA_HOME"] == "/java"
        assert child["SPARK_CONF_DIR"] == "/spark"
        assert child["PYSPARK_PYTHON"] == child["PYSPARK_DRIVER_PYTHON"] == sys.executable
        assert (child["TZ"], child["OPENBLAS_NUM_THREADS"]) == ("UTC", "1")
        assert child["AIRFLOW_CONN_SPARK_DEFAULT"] == '{"conn_type": "spark", "host": "local[*]"}'
        assert "127.0.0.1" in child["NO_PROXY"].split(",")
        assert "PYTHONDONTWRITEBYTECODE" not in child

    def test_a_cluster_is_a_connection(self, home: Path) -> None:
        given = {"NIGHTJAR_HOME": str(home), "AIRFLOW_CONN_SPARK_DEFAULT": "spark://master:7077"}
        assert stack_variables(given)["AIRFLOW_CONN_SPARK_DEFAULT"] == "spark://master:7077"

    def test_a_damaged_book_is_as_good_as_none(self, home: Path) -> None:
        (home / "run").mkdir(parents=True)
        (home / "run" / "environment.json").write_text('{"NIGHT')
        assert read_book(str(home)) == {}


class TestAirflowHome:
    def test_the_password_is_kept_and_private(self, home: Path) -> None:
        password = AirflowHome(home).password()
        assert len(password) >= 12
        assert AirflowHome(home).password() == password
        assert stat.S_IMODE((home / "airflow" / "passwords.json").stat().st_mode) == 0o600

    def test_all_components_share_the_keys_and_stay_on_loopback(self, home: Path) -> None:
        first = AirflowHome(home).variables({}, url="http://127.0.0.1:9", port=9)
        again = AirflowHome(home).variables({}, url="http://127.0.0.1:9", port=9)
        assert first == again
        assert len(first["AIRFLOW__API_AUTH__JWT_SECRET"]) >= 64
        assert first["AIRFLOW__API__HOST"] == "127.0.0.1"
        assert first["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:9/execution/"
        assert stat.S_IMODE((home / "airflow" / "secrets.json").stat().st_mode) == 0o600

    @pytest.mark.parametrize(("given", "scheduled"), [({}, "False"), ({"NIGHTJAR_SCHEDULE": "on"}, "True")])
    def test_nothing_is_scheduled_unless_asked(self, home: Path, given: dict[str, str], scheduled: str) -> None:
        variables = AirflowHome(home).variables(given, url="http://127.0.0.1:9", port=9)
        assert variables["AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE"] == scheduled

    def test_what_a_killed_scheduler_left_is_closed_and_the_rest_kept(self, home: Path) -> None:
        airflow = AirflowHome(home)
        assert airflow.close_unfinished_runs() == 0  # no database yet
        airflow.folder.mkdir(parents=True)
        with contextlib.closing(sqlite3.connect(airflow.database)) as connection, connection:
            connection.execute("CREATE TABLE dag_run (run_id, state, end_date)")
            connection.execute("CREATE TABLE task_instance (task_id, state, end_date)")
            connection.executemany(
                "INSERT INTO dag_run VALUES (?, ?, ?)",
                [("r1", "running", None), ("r2", "queued", None), ("r3", "success", "then"), ("r4", "failed", "then")],
            )
            connection.executemany(
                "INSERT INTO task_instance VALUES (?, ?, ?)",
                [
                    ("t1", "running", None),
                    ("t2", "up_for_retry", "then"),
                    ("t3", "success", "then"),
                    ("t4", None, None),
                ],
            )
        assert airflow.close_unfinished_runs() == 2
        with contextlib.closing(sqlite3.connect(airflow.database)) as connection:
            runs = dict(connection.execute("SELECT run_id, state FROM dag_run"))
            tasks = dict(connection.execute("SELECT task_id, state FROM task_instance"))
            kept = connection.execute("SELECT end_date FROM task_instance WHERE task_id = 't2'").fetchone()
            unended = connection.execute("SELECT count(*) FROM dag_run WHERE end_date IS NULL").fetchone()
        assert runs == {"r1": "failed", "r2": "failed", "r3": "success", "r4": "failed"}
        assert tasks == {"t1": "failed", "t2": "failed", "t3": "success", "t4": None}
        assert kept == ("then",)
        assert unended == (0,)
        assert airflow.close_unfinished_runs() == 0
