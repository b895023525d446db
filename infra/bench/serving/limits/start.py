"""How soon a server that is started gives a right answer, and what a worker keeps in memory for itself."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import psutil

from feature_repo.contracts.errors import DependencyError
from infra.bench.events.ingest import free_port
from infra.bench.report import Figure, figure
from infra.bench.serving.limits.setting import Setting, Shop
from infra.bench.serving.throughput import our_command
from infra.local.variables import REPOSITORY

MOST_SECONDS = 1.0
MOST_MEMORY_MB = 80.0
WORKERS = 2
_LONGEST_SECONDS = 120.0
_RESULTS = 10


def measure_start(setting: Setting, *, rounds: int) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Figures `start_seconds` (from the command to the first right answer), `worker_start_seconds` (from the death of
    the only worker to the first right answer of its successor) and `memory_mb_per_worker` (two workers, after load:
    pages that no other process shares); `missed_bars`."""
    with ExitStack() as stack:
        shop = setting.publish(stack, "start")
        starts, successors = [], []
        for turn in range(rounds):
            server = _Server(shop)
            try:
                starts.append(server.wait_for_answer())
                (worker,) = server.process.children()
                worker.kill()
                worker.wait(20)
                successors.append(server.wait_for_answer())
            finally:
                server.stop()
            setting.say(f"round {turn + 1}: {starts[-1]:.2f} s, a successor {successors[-1]:.2f} s")
        served = setting.serve(stack, shop, workers=WORKERS, is_pinned=False)
        requests = setting.write_mix(shop, "start", 20_000)
        errors = setting.measure(served, requests).sent.errors
        memory = [worker.memory_full_info().uss / 1e6 for worker in served.workers()]
        setting.say(f"{len(memory)} workers, MB of their own: {', '.join(f'{one:.1f}' for one in memory)}")
    figures = {
        "start_seconds": figure("s", starts, baseline=[MOST_SECONDS]),
        "worker_start_seconds": figure("s", successors, baseline=[MOST_SECONDS]),
        "memory_mb_per_worker": figure("MB", memory, baseline=[MOST_MEMORY_MB]),
    }
    missed = [
        f"{name}: {figures[name]['median']:.3g}, asked for: less than {most:g}"
        for name, most in (("worker_start_seconds", MOST_SECONDS), ("memory_mb_per_worker", MOST_MEMORY_MB))
        if figures[name]["median"] >= most
    ]
    missed += [f"start: {errors} errors"] if errors else []
    return figures, {"start_errors": errors, "missed_bars": missed}


class _Server:
    """A server with one worker, asked from the moment of its start."""

    def __init__(self, shop: Shop) -> None:
        self.port, self._shop = free_port(), shop
        command = [word.replace("{port}", str(self.port)) for word in our_command(1)]
        self.process = psutil.Popen(
            command, env=shop.variables, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def wait_for_answer(self) -> float:
        """Seconds from now to the first right answer. Raises DependencyError when none comes."""
        began = time.monotonic()
        while not self._answers_rightly():
            if self.process.poll() is not None or time.monotonic() - began > _LONGEST_SECONDS:
                raise DependencyError(f"the server on port {self.port} gave no right answer")
            time.sleep(0.005)
        return time.monotonic() - began

    def stop(self) -> None:
        """End it and its worker."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
            self.process.kill()
            self.process.wait()

    def _answers_rightly(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            body = json.dumps({"user_id": "u1", "session_id": "s1", "num_results": _RESULTS})
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._shop.key}"}
            connection.request("POST", "/v1/recommendations", body, headers)
            answer = connection.getresponse()
            return answer.status == 200 and is_right(json.loads(answer.read()), self._shop.version)
        except OSError:
            return False
        finally:
            connection.close()


def is_right(answer: Mapping[str, Any], version: str) -> bool:
    """Whether a known user got a whole personal slate of this version."""
    return (
        answer["model_version"] == version
        and answer["fallback_level"] == "personal"
        and len(answer["items"]) == _RESULTS
    )
