"""Airflow on one machine: LocalExecutor, SQLite, loopback, one user with a generated password.

Everything is set by environment variables; its files lie in NIGHTJAR_HOME/airflow. What a killed stack left in its
database is closed here, before a scheduler starts.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from feature_repo.contracts.errors import DependencyError
from infra.local.variables import REPOSITORY

USER = "admin"
SCHEDULE = "NIGHTJAR_SCHEDULE"
"""`on`: the embedded scheduler also starts the nightly run at midnight UTC. Otherwise runs are started by hand only."""

SPARK_POOL = "spark"
MIGRATE_TIMEOUT_SECONDS = 300


class AirflowHome:
    """The folder of one embedded Airflow."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "airflow"
        self.database = self.folder / "airflow.db"
        self._passwords = self.folder / "passwords.json"
        self._secrets = self.folder / "secrets.json"
        self._ready = self.folder / "database.ready"

    def password(self) -> str:
        """The password of `admin`, generated the first time (file mode 0600)."""
        return self._kept(self._passwords, {USER: secrets.token_urlsafe(12)})[USER]

    def variables(self, base: Mapping[str, str], *, url: str, port: int) -> dict[str, str]:
        """`base` and all of Airflow's settings, for every Airflow process and the tasks it starts."""
        self.password()
        keys = self._kept(
            self._secrets,
            {
                "jwt": secrets.token_urlsafe(64),
                "session": secrets.token_urlsafe(32),
                "fernet": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            },
        )
        settings = {
            "CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__PARALLELISM": "4",
            "CORE__DEFAULT_TIMEZONE": "utc",
            "CORE__FERNET_KEY": keys["fernet"],
            "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
            "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self._passwords),
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.database}",
            "API__HOST": "127.0.0.1",
            "API__PORT": str(port),
            "API__BASE_URL": url,
            "API__WORKERS": "1",
            "API__SECRET_KEY": keys["session"],
            "API_AUTH__JWT_SECRET": keys["jwt"],
            "LOGGING__BASE_LOG_FOLDER": str(self.folder / "logs"),
            # the embedded stack never starts a run on its own, unless asked to
            "SCHEDULER__USE_JOB_SCHEDULE": str(base.get(SCHEDULE, "").lower() in ("on", "true", "1")),
            # each round of the scheduler takes 30 ms of a processor, and each task waits for one round
            "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1",
            # a task whose process was killed is retried after a minute, not after five
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
            "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
            # also how long it may take to notice that a task has ended: 5 s by default, for each of ten tasks
            "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "WORKERS__MAX_FAILED_HEARTBEATS": "30",
            "DAG_PROCESSOR__REFRESH_INTERVAL": "30",
            # a file that changed is read at the next refresh all the same
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
            "DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "DAG_PROCESSOR__PRINT_STATS_INTERVAL": "0",
        }
        return {
            **base,
            "AIRFLOW_HOME": str(self.folder),
            **{f"AIRFLOW__{name}": value for name, value in settings.items()},
        }

    def prepare_database(self, variables: Mapping[str, str], log: Path) -> None:
        """Create or migrate the database, once per Airflow version. A database whose creation was killed is replaced.

        Raises DependencyError with the last log lines.
        """
        wanted = version("apache-airflow")
        if self.database.exists() and self._ready.exists() and self._ready.read_text() == wanted:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._ready.exists():  # never was whole: nothing in it can be worth keeping
            for path in self.folder.glob("airflow.db*"):
                path.unlink()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            done = subprocess.run(
                [sys.executable, "-m", "airflow", "db", "migrate"],
                env=dict(variables), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                timeout=MIGRATE_TIMEOUT_SECONDS,
            )  # fmt: skip
        if done.returncode != 0:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise DependencyError(f"Airflow's database could not be prepared ({log}):\n{last}")
        self._ready.write_text(wanted)

    def close_unfinished_runs(self) -> int:
        """Mark the runs that a killed scheduler left unfinished as failed, with their tasks; how many there were.

        Only while no scheduler runs. `max_active_runs` would otherwise let them block every later run.
        """
        if not self.database.exists():
            return 0
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as connection, connection:
            runs = connection.execute(
                "UPDATE dag_run SET state = 'failed', end_date = ? WHERE state IN ('running', 'queued')", (now,)
            ).rowcount
            connection.execute(
                "UPDATE task_instance SET state = 'failed', end_date = coalesce(end_date, ?) WHERE state IN ('running',"
                " 'queued', 'scheduled', 'restarting', 'up_for_retry', 'up_for_reschedule', 'deferred')",
                (now,),
            )
        return runs

    def _kept(self, path: Path, fresh: Mapping[str, str]) -> dict[str, str]:
        """The values in a private file, which is created with `fresh` when it is missing, damaged or lacks a name."""
        with contextlib.suppress(OSError, ValueError):
            values = json.loads(path.read_text())
            if isinstance(values, dict) and set(fresh) <= set(values):
                return values
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(dict(fresh), file)
        partial.replace(path)
        return dict(fresh)
