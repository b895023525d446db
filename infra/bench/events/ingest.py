"""`nightjar bench ingest`: events that one worker core makes durable in a second, beside a plain FastAPI application.

One worker of ours and one of the baseline run all the time, each with a Redis of its own, and only one has load. They
are measured in turns, so that whatever the machine does otherwise meets both. The worker has a core to itself; its
Redis and the load generator share the others.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import redis

from feature_repo.contracts import environment as names
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import EVENT_PARTITIONS, more_events_key, stream_key
from infra.bench.disk import judge_disk
from infra.bench.events.load import Load, apply_load, generator_name
from infra.bench.report import Figure, figure, make_report
from infra.local.redis_server import RunningServer
from infra.local.variables import REPOSITORY
from serving.settings import MULTIPROCESS_FOLDER

Say = Callable[[str], None]

WARM_UP_SECONDS = 1
START_SECONDS = 60.0
LASTING_PORTS = range(20_000, 32_768)
"""Linux gives connections ports from 32,768 on, other systems from 49,152."""


class Sample(NamedTuple):
    """One measurement of one side. Processor times are microseconds per event."""

    events_per_second: float
    worker_cpu_us: float
    redis_cpu_us: float
    worker_busy: float
    errors: int
    missing: int
    load: Load

    @property
    def events_per_core_second(self) -> float:
        """Events in a second of the worker's processor time: what its core would do if nothing kept it waiting."""
        return 1e6 / max(self.worker_cpu_us, 0.001)


class Side:
    """A server under test: its Redis, its one worker, and the cores that they may use. What it says goes to `said`."""

    def __init__(
        self,
        name: str,
        log: RunningServer,
        command: Sequence[str],
        variables: Mapping[str, str],
        cores: Cores,
        said: Path,
    ) -> None:
        self.name = name
        self._log = log
        self._cores = cores
        self.port = free_port()
        command = [word.replace("{port}", str(self.port)) for word in command]
        self._said = said
        with said.open("ab") as words:
            self._process = subprocess.Popen(
                command, env=dict(variables), cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=words, stderr=words
            )
        _pin(self._process.pid, cores.worker)
        _pin(log.process.pid, cores.others)
        self._wait()

    def measure(self, *, seconds: int, connections: int, batch: int, run: str) -> Sample:
        """Load it for `seconds`, after a short warm-up, on an empty log."""
        moment = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        client = redis.Redis.from_url(self._log.url)
        with client:
            client.flushall()
            options: dict[str, Any] = {"connections": connections, "batch": batch, "moment": moment}
            apply_load(self.port, seconds=WARM_UP_SECONDS, run=f"{run}w", cores=self._cores.others, **options)
            client.flushall()
            worker, server = self._cpu_seconds(), _cpu_seconds([psutil.Process(self._log.process.pid)])
            began = time.monotonic()
            load = apply_load(self.port, seconds=seconds, run=run, cores=self._cores.others, **options)
            passed = time.monotonic() - began
            worker = self._cpu_seconds() - worker
            server = _cpu_seconds([psutil.Process(self._log.process.pid)]) - server
            kept = sum(_events_kept(client, stream_key(partition)) for partition in range(EVENT_PARTITIONS))
            client.flushall()
        events = max(1, load.requests * batch)
        return Sample(
            events_per_second=events / load.seconds,
            worker_cpu_us=worker / events * 1e6,
            redis_cpu_us=server / events * 1e6,
            worker_busy=worker / passed,
            errors=load.errors,
            missing=max(0, load.requests * batch - kept),
            load=load,
        )

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _cpu_seconds(self) -> float:
        """Of the server's processes: a supervisor does nothing, but it is counted."""
        process = psutil.Process(self._process.pid)
        return _cpu_seconds([process, *process.children(recursive=True)])

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not listens(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise DependencyError(not_listening(self.name, self.port, self._said))
            time.sleep(0.05)


def _events_kept(client: redis.Redis, stream: str) -> int:
    """Events that lie in a stream: its entries, and those beyond the first of each."""
    entries: Any = client.xlen(stream)
    more: Any = client.get(more_events_key(stream))
    return int(entries) + int(more or 0)


class Cores(NamedTuple):
    """Who runs where."""

    worker: Sequence[int]
    others: Sequence[int]

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The first core for the worker, all others for the rest; on one core they share it."""
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
        return cls(usable[:1], usable[1:] or usable[:1])


def bench_ingest(
    home: Path, variables: Mapping[str, str], *, pairs: int, seconds: int, connections: int, batch: int, say: Say
) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report.

    Figures: `single_events_per_second`, `batched_events_per_second` (`batch` events a request), the same of a second of
    the worker's processor time (`..._per_core_second`), `cpu_us_per_event` and `batched_cpu_us_per_event` (of the
    worker), `redis_cpu_us_per_event`, `batched_redis_cpu_us_per_event`, each against the baseline. Further keys:
    errors, missing (acknowledged, but not in the stream), fsync_median_ms, filesystem, void, worker_busy, generator.
    """
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    disk = judge_disk(home)
    cores = Cores.of_this_machine()
    samples: dict[tuple[str, int], list[Sample]] = {}
    with ExitStack() as stack:
        sides = _sides(stack, home, variables, cores)
        for pair in range(pairs):
            for size in (1, batch):
                for side in sides if pair % 2 == 0 else reversed(sides):
                    # half as many connections with batches: more would only wait longer, on either side
                    open_connections = connections if size == 1 else max(1, connections // 2)
                    sample = side.measure(
                        seconds=seconds, connections=open_connections, batch=size, run=f"{side.name[0]}{pair}b{size}"
                    )
                    samples.setdefault((side.name, size), []).append(sample)
                    say(
                        f"pair {pair + 1}, {side.name}, {size} a request: {sample.events_per_second:,.0f} events/s, "
                        f"{sample.worker_cpu_us:.1f} us of the worker each, p99 {sample.load.p99_ms:.1f} ms"
                        f"{f', {sample.errors} errors' if sample.errors else ''}"
                    )
    shutil.rmtree(home, ignore_errors=True)
    return _report(variables, samples, batch, disk, connections)


def _report(
    variables: Mapping[str, str],
    samples: Mapping[tuple[str, int], Sequence[Sample]],
    batch: int,
    disk: Mapping[str, Any],
    connections: int,
) -> dict[str, Any]:
    def compared(unit: str, size: int, field: str) -> Figure:
        ours, baseline = ([getattr(s, field) for s in samples[name, size]] for name in ("nightjar", "baseline"))
        return figure(unit, ours, baseline=baseline)

    ours = [sample for (name, _), some in samples.items() if name == "nightjar" for sample in some]
    return make_report(
        "bench ingest",
        {
            "single_events_per_second": compared("1/s", 1, "events_per_second"),
            "batched_events_per_second": compared("1/s", batch, "events_per_second"),
            "single_events_per_core_second": compared("1/s", 1, "events_per_core_second"),
            "batched_events_per_core_second": compared("1/s", batch, "events_per_core_second"),
            "cpu_us_per_event": compared("us", 1, "worker_cpu_us"),
            "batched_cpu_us_per_event": compared("us", batch, "worker_cpu_us"),
            "redis_cpu_us_per_event": compared("us", 1, "redis_cpu_us"),
            "batched_redis_cpu_us_per_event": compared("us", batch, "redis_cpu_us"),
            "p99_ms": compared_load(samples, 1),
        },
        str(variables.get(names.CODE_VERSION, "")),
        **disk,
        errors=sum(sample.errors for sample in ours),
        missing=sum(sample.missing for sample in ours),
        worker_busy=round(min(sample.worker_busy for sample in ours), 3),
        generator=generator_name(),
        batch=batch,
        connections=connections,
    )


def compared_load(samples: Mapping[tuple[str, int], Sequence[Sample]], size: int) -> Figure:
    """The 99th percentile of the answer's time, ours against the baseline's."""
    ours, baseline = ([s.load.p99_ms for s in samples[name, size]] for name in ("nightjar", "baseline"))
    return figure("ms", ours, baseline=baseline)


def _sides(stack: ExitStack, home: Path, variables: Mapping[str, str], cores: Cores) -> list[Side]:
    log = stack.enter_context(RunningServer("log", home / "redis-log"))
    online = stack.enter_context(RunningServer("online", home / "redis-online"))
    unsynced = stack.enter_context(RunningServer("online", home / "redis-baseline"))
    here = {
        **{name: value for name, value in variables.items() if not name.startswith("NIGHTJAR_SERVING_")},
        names.HOME: str(home),
        names.REDIS_LOG_URL: log.url,
        names.REDIS_ONLINE_URL: online.url,
        MULTIPROCESS_FOLDER: str(home / "metrics"),
    }
    ours = [sys.executable, "-m", "serving", "--port", "{port}", "--workers", "1"]
    theirs = [sys.executable, "-m", "infra.bench.events.baseline", "{port}", unsynced.url]
    sides = []
    for name, server, command in (("nightjar", log, ours), ("baseline", unsynced, theirs)):
        sides.append(Side(name, server, command, here, cores, home / f"{name}.log"))
        stack.callback(sides[-1].stop)
    return sides


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _pin(pid: int, cores: Sequence[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, cores)


def not_listening(name: str, port: int, said: Path) -> str:
    """What to say of a program that does not listen; its last words, from the file `said`, are in it."""
    return f"{name} did not start to listen on port {port}: {said.read_text(errors='replace')[-500:].strip()}"


def listens(port: int) -> bool:
    """Whether somebody takes connections on this port of the loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def lasting_port() -> int:
    """A port that nobody uses now and that the kernel gives to no connection while its server is down.

    A client that tries and tries to reach a server that is down may even be given its port, and so hold it."""
    while True:
        port = secrets.choice(LASTING_PORTS)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
