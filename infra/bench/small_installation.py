"""An installation of its own for a bench: both Redis roles, a small published version, the programs that serve it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import psutil
import redis

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from infra.bench.events.ingest import free_port, listens
from infra.bench.small_version import publish_small_version
from infra.local.redis_server import RunningServer
from infra.local.variables import REPOSITORY

START_SECONDS = 300.0
"""On a machine that others keep busy; one that ends by itself is not waited for."""
CONSUMER, ARCHIVER = "serving.speed.consumer", "serving.speed.archiver"


class SmallInstallation:
    """Redis `log` and `online`, and whatever `start` starts; `with` ends all of it. `logs` has a file per program."""

    def __init__(
        self, home: Path, variables: Mapping[str, str], *, people: int, settings: Mapping[str, str] | None = None
    ) -> None:
        """In `home`, which exists. `people`: those who have a list. `settings`: further variables of its programs."""
        self._stack = ExitStack()
        self.log = self._stack.enter_context(RunningServer("log", home / "redis-log"))
        self.online = self._stack.enter_context(RunningServer("online", home / "redis-online"))
        self.variables = {
            **{name: value for name, value in variables.items() if not name.startswith("NIGHTJAR_")},
            names.HOME: str(home),
            names.REDIS_LOG_URL: self.log.url,
            names.REDIS_ONLINE_URL: self.online.url,
            "PYTHONUNBUFFERED": "1",
            # all of it on one machine, with the load: what is measured shall not be the ladder
            "NIGHTJAR_SERVING_ONLINE_TIMEOUT_MS": "50",
            **(settings or {}),
        }
        self.environment = Environment.from_mapping(self.variables)
        self.logs = home / "logs"
        self.logs.mkdir()
        with redis.Redis.from_url(self.online.url) as client:
            publish_small_version(self.environment, client, people=people)

    def start(self, module: str, *words: str) -> psutil.Popen:
        """Run `python -m module words`; it ends with the installation."""
        with self.log_of(module).open("ab") as output:
            process = psutil.Popen(
                [sys.executable, "-m", module, *words], env=self.variables, cwd=REPOSITORY, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output,
            )  # fmt: skip
        self._stack.callback(_end, process)
        return process

    def start_api(self, *, workers: int) -> tuple[psutil.Popen, int]:
        """The API's supervisor and its port, once that is listened on. Raises DependencyError when it never is."""
        port = free_port()
        process = self.start("serving", "--port", str(port), "--workers", str(workers))
        deadline = time.monotonic() + START_SECONDS
        while not listens(port) or len(process.children()) < workers:
            if process.poll() is not None or time.monotonic() > deadline:
                raise DependencyError(f"the API did not start on port {port}; see {self.log_of('serving')}")
            time.sleep(0.05)
        return process, port

    def log_of(self, module: str) -> Path:
        """What the programs of this module print."""
        return self.logs / f"{module}.log"

    def __enter__(self) -> SmallInstallation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """Processor time of these processes so far."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _end(process: psutil.Popen) -> None:
    if process.poll() is not None:
        return  # it ended by itself
    process.terminate()
    try:
        process.wait(20)
    except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
        process.kill()
        process.wait()
