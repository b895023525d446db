"""An installation of its own under torture: the programs of the event path, started again when they die."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import NightjarError
from infra.bench.events.ingest import lasting_port, listens
from infra.bench.events.power import Disk, compiler
from infra.local.redis_server import Role, answers, find_server, server_command
from infra.local.variables import REPOSITORY

Control = Literal["everysec", "no marks"]
"""How an installation is weakened, so that the ordeal must see harm."""
SETTLE_SECONDS = 60.0
JOB_SECONDS = 3 * SETTLE_SECONDS
"""For a program that begins beside the harm: it waits for others that must start again first, and so must it."""
FILE_STORE_ALLOWED = "MLFLOW_ALLOW_FILE_STORE"
"""What MLflow wants to be told before it keeps runs in a folder."""


class TortureError(NightjarError):
    """The installation did not come back."""


@dataclass(slots=True)
class Program:
    """One program of the installation and how to start it again."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Installation:
    """The programs under torture."""

    def __init__(self, folder: Path, variables: Mapping[str, str], *, control: Control | None) -> None:
        self.home = folder / "installation"
        self._logs = folder / "logs"
        for path in (self.home, self._logs):
            path.mkdir(parents=True)
        self.disk = Disk(self.home, folder / "shim") if compiler() else None
        self._ports = {name: lasting_port() for name in ("redis-log", "redis-online", "api")}
        self.url = f"http://127.0.0.1:{self._ports['api']}"
        self.log_url = f"redis://127.0.0.1:{self._ports['redis-log']}/0"
        self.online_url = f"redis://127.0.0.1:{self._ports['redis-online']}/0"
        self._variables = {
            **{name: value for name, value in variables.items() if not name.startswith("NIGHTJAR_")},
            names.HOME: str(self.home),
            names.REDIS_LOG_URL: self.log_url,
            names.REDIS_ONLINE_URL: self.online_url,
            names.MLFLOW_URI: (folder / "mlflow").as_uri(),
            FILE_STORE_ALLOWED: "true",
            "NIGHTJAR_SERVING_ARCHIVE_SECONDS": "0.1",
            "NIGHTJAR_SERVING_LEASE_SECONDS": "0.6",
            "NIGHTJAR_SERVING_LOG_TIMEOUT_MS": "700",
            "PYTHONUNBUFFERED": "1",
        }
        self.environment = Environment.from_mapping(self._variables)
        python = sys.executable
        api = [python, "-m", "serving", "--port", str(self._ports["api"]), "--workers", "2"]
        programs = [
            Program("redis-log", self._redis("log", "everysec" if control == "everysec" else "always")),
            Program("redis-online", self._redis("online", "always")),
            Program("api", api),
            Program("consumer", [python, "-m", "serving.speed.consumer"]),
            Program("archiver", [python, "-m", "serving.speed.archiver"]),
            Program("second archiver", [python, "-m", "serving.speed.archiver"]),
        ]
        self.programs = {program.name: program for program in programs}
        self._jobs: dict[str, subprocess.Popen[bytes]] = {}
        self.restarts = 0

    def _redis(self, role: Role, fsync: str) -> list[str]:
        name = f"redis-{role}"
        binary = find_server(self._variables)
        command = server_command(
            binary, role, port=self._ports[name], folder=self.home / name, pid_file=self.home / name / "redis.pid"
        )
        return [*command, "--appendonly", "yes", "--appendfsync", fsync, "--save", ""]

    def start(self) -> None:
        """Start everything, wait until it is well, and count all that is there as on disk."""
        self.start_the_dead()
        self.wait_until_well()
        self.settle_disk()

    def settle_disk(self) -> None:
        if self.disk is not None:
            self.disk.settled()

    def start_the_dead(self) -> None:
        for program in self.programs.values():
            if not program.is_alive():
                if program.process is not None:
                    self.restarts += 1
                program.process = self._started(program.name, program.command)

    def start_job(self, name: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
        """A program that ends by itself (`python words`), beside everything else; one of its name at a time."""
        self._jobs[name] = self._started(name, [sys.executable, *words])
        return self._jobs[name]

    def _started(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        shim = {} if self.disk is None else self.disk.variables()
        with (self._logs / f"{name}.log").open("ab") as output:
            return subprocess.Popen(
                command, env={**self._variables, **shim}, cwd=REPOSITORY, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output,
            )  # fmt: skip

    def wait_until_well(self) -> None:
        """Raises TortureError when a server does not answer in time."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while not (
            answers(self._ports["redis-log"]) and answers(self._ports["redis-online"]) and listens(self._ports["api"])
        ):
            if time.monotonic() > deadline:
                raise TortureError(f"the installation did not come back; see {self._logs}")
            self.start_the_dead()
            time.sleep(0.05)

    def pids_of(self, victim: str) -> list[int]:
        """The processes that one may kill: of the API its workers, not their supervisor; a job while it runs."""
        if victim not in {"api worker", *self.programs}:
            job = self._jobs.get(victim)
            return [job.pid] if job is not None and job.poll() is None else []
        program = self.programs["api" if victim == "api worker" else victim]
        if not program.is_alive() or program.process is None:
            return []
        pid = program.process.pid
        if victim != "api worker":
            return [pid]
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def kill_everything(self) -> None:
        """As a power cut does: nobody says goodbye."""
        workers = self.pids_of("api worker")
        for job in self._jobs.values():
            if job.poll() is None:
                job.kill()
                job.wait()
        for program in self.programs.values():
            if program.is_alive() and program.process is not None:
                program.process.kill()
        for program in self.programs.values():
            if program.process is not None:
                program.process.wait()
        for pid in workers:  # their supervisor has gone, so they are nobody's children of ours
            send_signal(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while any(_is_running(pid) for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.01)

    def newest_append_file(self) -> Path:
        """The end of the log's append-only file."""
        files = (self.home / "redis-log").rglob("*.aof")
        return max((f for f in files if ".base." not in f.name), key=lambda f: f.stat().st_mtime)


def send_signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
