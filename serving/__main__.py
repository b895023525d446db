"""`python -m serving --host 127.0.0.1 --port 8000 --workers 2`: a supervisor of worker processes.

Each worker has its own SO_REUSEPORT listener. A worker that dies is replaced; SIGTERM or SIGINT ends all of them, after
the requests under way. Metrics of all workers lie in PROMETHEUS_MULTIPROC_DIR (by default
$NIGHTJAR_HOME/run/metrics-PORT); what an earlier server left there is removed at the start.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError, NightjarError
from serving.settings import MULTIPROCESS_FOLDER, ServingSettings

SHORT_LIFE_SECONDS = 5.0
MAX_SHORT_LIVES = 5
"""So many workers in a row that die young mean that something is wrong for good: the supervisor gives up."""
STOP_SECONDS = 10.0


class Supervisor:
    """Keeps `workers` worker processes alive."""

    def __init__(self, host: str, port: int, workers: int, environment: dict[str, str]) -> None:
        self._command = [sys.executable, "-m", "serving.worker", host, str(port)]
        self._environment = environment
        self._count = workers
        self._workers: dict[subprocess.Popen[bytes], float] = {}
        self._stopping = False
        self._short_lives = 0

    def run(self) -> int:
        """Until a signal: 0; when workers keep dying young: 1."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        while not self._stopping:
            self._replace_the_dead()
            if self._short_lives >= MAX_SHORT_LIVES:
                print(f"error: {MAX_SHORT_LIVES} workers in a row died within seconds; see above", file=sys.stderr)
                self._stop_all()
                return 1
            time.sleep(0.2)
        self._stop_all()
        return 0

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _replace_the_dead(self) -> None:
        for worker, started in list(self._workers.items()):
            if worker.poll() is None:
                if time.monotonic() - started > SHORT_LIFE_SECONDS:
                    self._short_lives = 0
                continue
            del self._workers[worker]
            lived = time.monotonic() - started
            self._short_lives = self._short_lives + 1 if lived < SHORT_LIFE_SECONDS else 0
            print(
                f"worker {worker.pid} ended with {worker.returncode} after {lived:.0f} s", file=sys.stderr, flush=True
            )
        while len(self._workers) < self._count and self._short_lives < MAX_SHORT_LIVES:
            worker = subprocess.Popen(self._command, stdin=subprocess.PIPE, env=self._environment)
            self._workers[worker] = time.monotonic()

    def _stop_all(self) -> None:
        for worker in self._workers:
            worker.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self._workers:
            try:
                worker.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def claim_port(host: str, port: int) -> int:
    """The port itself, or a free one for 0. Raises DependencyError when somebody else listens there: with SO_REUSEPORT
    the workers would silently share it with a stranger of the same user."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DependencyError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
        return int(probe.getsockname()[1])


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving", description="The Nightjar API server.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 picks a free one (default: 8000)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (default: 1)")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error(f"--workers must be at least 1, got {arguments.workers}")
    try:
        environment = Environment.from_mapping(os.environ)
        ServingSettings.from_mapping(os.environ)
        port = claim_port(arguments.host, arguments.port)
    except NightjarError as error:
        print(f"error {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    folder = Path(os.environ.get(MULTIPROCESS_FOLDER, f"{environment.home}/run/metrics-{port}"))
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob("*.db"):
        left_over.unlink()
    print(f"serving on http://{arguments.host}:{port} with {arguments.workers} worker(s)", flush=True)
    variables = {**os.environ, MULTIPROCESS_FOLDER: str(folder)}
    return Supervisor(arguments.host, port, arguments.workers, variables).run()


if __name__ == "__main__":
    sys.exit(main())
