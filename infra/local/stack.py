"""The embedded stack: start it, stop it, say how it is.

Safe to run again at any time, whatever was killed in between: running services are left alone, stale pid files and
orphaned processes are cleared away, half-made databases are made anew, unfinished DAG runs are closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from feature_repo.contracts.environment import AIRFLOW_URL, Environment
from feature_repo.contracts.errors import DependencyError, NightjarError
from infra.importing.mending import mend_imported_tables
from infra.local.airflow_api import AirflowApi
from infra.local.airflow_home import SPARK_POOL, USER, AirflowHome
from infra.local.cluster import CLUSTER_NAMES
from infra.local.ports import choose_ports, read_ports, write_ports
from infra.local.processes import PidFolder, is_alive, memory_megabytes
from infra.local.services import AIRFLOW_DATABASE, AIRFLOW_NAMES, NAMES, PORT_OF, Service, build_services
from infra.local.setup import prepare
from infra.local.variables import (
    CLUSTER_FILE,
    REPOSITORY,
    known_addresses,
    read_book,
    stack_variables,
    write_book,
)

STOP_GRACE_SECONDS = 8.0
LOCK_TIMEOUT_SECONDS = 240.0
_POLL_SECONDS = 0.2

Progress = Callable[[str, str, float], None]
"""Called with (service, state, seconds since `up` began): starting, running, already running, external, failed."""


class ServiceStatus(NamedTuple):
    """One service now. state: running, unwell (alive without answering), stopped, external."""

    name: str
    state: str
    pid: int | None = None
    url: str | None = None
    memory_megabytes: int | None = None
    uptime_seconds: int | None = None


class _Stack:
    """Where one stack keeps its run-time files."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = {**variables}
        self.home = Path(Environment.from_mapping(variables).home)
        self.run = self.home / "run"
        self.pids = PidFolder(self.run, str(self.home))
        self.ports_file = self.run / "ports.json"

    def log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def is_external(self, service: Service) -> bool:
        return service.setting is not None and bool(self.variables.get(service.setting))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One `up` or `down` at a time."""
        self.run.mkdir(parents=True, exist_ok=True)
        with (self.run / "lock").open("w") as file:
            deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise DependencyError(f"another `nightjar up` or `down` holds {file.name}") from None
                    time.sleep(0.2)
            yield


def up(
    variables: Mapping[str, str] | None = None,
    *,
    on_progress: Progress | None = None,
    only: Collection[str] = NAMES,
) -> dict[str, str]:
    """Start whatever is not running and wait until all is well; returns the address book.

    `only` names the services to care for, and must hold what they need themselves; the others are left as they are.
    Raises DependencyError with the last log lines of the first service that did not start. What did start stays, so
    that the next `up` goes on from there.
    """
    stack = _Stack(os.environ if variables is None else variables)
    report = on_progress or (lambda *_: None)
    began = time.monotonic()
    with stack.lock():
        tools = prepare(stack.variables)
        running = {name for name in NAMES if stack.pids.find(name) is not None}
        ports = choose_ports(read_ports(stack.ports_file), in_use_by_us={PORT_OF[n] for n in running if n in PORT_OF})
        write_ports(stack.ports_file, ports)
        book = write_book(stack.variables, ports, tools)
        mend_imported_tables(Environment.from_mapping(book))  # this may be the first start after a power cut
        everything = build_services(stack.home, ports, stack_variables(stack.variables))
        services = {name: service for name, service in everything.items() if name in only}
        running &= services.keys()
        outdated = {n for n in running if stack.pids.fingerprint(n) != services[n].fingerprint()}
        stack.pids.stop(_in_stopping_order(outdated), grace_seconds=STOP_GRACE_SECONDS)
        _Start(stack, services, running - outdated, report, began).all()
        if "airflow-api" in services.keys() - (running - outdated):
            _warm_up(book[AIRFLOW_URL])
    return book


def down(variables: Mapping[str, str] | None = None) -> list[str]:
    """Stop every service of this stack and whatever it left behind; names of what was running."""
    stack = _Stack(os.environ if variables is None else variables)
    if not stack.home.is_dir():
        return []
    with stack.lock():
        # the stores go last: the others finish what they are writing
        stores = [name for name in NAMES if name.startswith("redis")]
        others = [name for name in _in_stopping_order(set(NAMES)) if name not in stores]
        (stack.home / CLUSTER_FILE).unlink(missing_ok=True)
        stopped = stack.pids.stop([*others, *CLUSTER_NAMES], grace_seconds=STOP_GRACE_SECONDS)
        return stopped + stack.pids.stop(stores, grace_seconds=STOP_GRACE_SECONDS)


def status(variables: Mapping[str, str] | None = None) -> list[ServiceStatus]:
    """Every service, in a fixed order."""
    stack = _Stack(os.environ if variables is None else variables)
    if not read_book(str(stack.home)):
        return [ServiceStatus(name, "stopped") for name in NAMES]
    services = build_services(stack.home, _known_ports(stack), stack_variables(stack.variables))
    found = []
    for name in NAMES:
        service, process = services[name], stack.pids.find(name)
        if stack.is_external(service):
            well = service.is_well(float("inf"))
            found.append(ServiceStatus(name, "external" if well else "external, not answering", url=service.url))
        elif process is None:
            found.append(ServiceStatus(name, "stopped", url=service.url))
        else:
            uptime = time.time() - process.create_time()
            state = "running" if service.is_well(uptime) else "unwell"
            memory = memory_megabytes(process)
            found.append(ServiceStatus(name, state, process.pid, service.url, memory, round(uptime)))
    return found


def airflow_api(variables: Mapping[str, str] | None = None) -> AirflowApi:
    """A client of the local stack's Airflow, or of the one that NIGHTJAR_AIRFLOW_URL names."""
    known = known_addresses(os.environ if variables is None else variables)
    home = Path(Environment.from_mapping(known).home)
    if AIRFLOW_URL not in known:
        raise DependencyError(f"no Airflow is known for {home}: start the stack with `nightjar up`")
    return AirflowApi(known[AIRFLOW_URL], USER, AirflowHome(home).password())


def log_file(service: str, variables: Mapping[str, str] | None = None) -> Path:
    """Where a service of the stack writes its log."""
    return _Stack(os.environ if variables is None else variables).log(service)


def _known_ports(stack: _Stack) -> dict[str, int]:
    """The remembered ports; 0 for one that was forgotten (its service then shows as stopped)."""
    return {**dict.fromkeys(PORT_OF.values(), 0), **read_ports(stack.ports_file)}


def _in_stopping_order(services: set[str]) -> list[str]:
    return [name for name in reversed(NAMES) if name in services]


class _Start:
    """Starts services in parallel, each as soon as what it needs is well."""

    def __init__(
        self, stack: _Stack, services: Mapping[str, Service], running: set[str], report: Progress, began: float
    ) -> None:
        self._stack = stack
        self._services = services
        self._running = running
        self._report_to = report
        self._began = began
        self._done = {name: threading.Event() for name in (*services, AIRFLOW_DATABASE)}
        self._failures: list[NightjarError] = []
        self._guard = threading.Lock()

    def all(self) -> None:
        """Returns when every service is well. Raises the first failure once nothing is starting any more."""
        threads = []
        if self._services.keys() & set(AIRFLOW_NAMES):
            threads.append(threading.Thread(target=self._database, daemon=True))
        threads += [threading.Thread(target=self._service, args=(s,), daemon=True) for s in self._services.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # a join without timeout cannot be interrupted by Ctrl-C
                thread.join(0.2)
        if self._failures:
            raise self._failures[0]

    def _report(self, name: str, state: str) -> None:
        with self._guard:
            self._report_to(name, state, time.monotonic() - self._began)

    def _fail(self, name: str, error: NightjarError) -> None:
        self._report(name, "failed")
        with self._guard:
            self._failures.append(error)

    def _database(self) -> None:
        airflow = AirflowHome(self._stack.home)
        try:
            if not self._running & set(AIRFLOW_NAMES):
                variables = self._services["airflow-api"].variables
                airflow.prepare_database(variables, self._stack.log(AIRFLOW_DATABASE))
            if "scheduler" not in self._running:
                self._stack.pids.end_leftovers("scheduler")
                airflow.close_unfinished_runs()
        except Exception as error:
            self._fail(AIRFLOW_DATABASE, _as_failure(AIRFLOW_DATABASE, error))
        else:
            self._done[AIRFLOW_DATABASE].set()

    def _service(self, service: Service) -> None:
        try:
            if self._stack.is_external(service):
                if not service.is_well(float("inf")):
                    raise DependencyError(f"{service.setting} names {service.url}, which does not answer")
                self._report(service.name, "external")
            elif service.name in self._running and self._becomes_well(service):
                self._report(service.name, "already running")
            else:
                if not self._wait_for(service.needs):
                    return
                self._report(service.name, "starting")
                self._start(service)
                self._report(service.name, "running")
        except Exception as error:
            self._fail(service.name, _as_failure(service.name, error))
        else:
            self._done[service.name].set()

    def _wait_for(self, needs: tuple[str, ...]) -> bool:
        """False when one of them failed: that failure is the one to tell."""
        for name in needs:
            while not self._done[name].wait(_POLL_SECONDS):
                if self._failures:
                    return False
        return True

    def _becomes_well(self, service: Service) -> bool:
        """Whether a running service answers within 20 s; one that does not is stopped, to be started again."""
        process = self._stack.pids.find(service.name)
        deadline = time.monotonic() + 20
        while process is not None and is_alive(process) and time.monotonic() < deadline:
            if service.is_well(time.time() - process.create_time()):
                return True
            time.sleep(_POLL_SECONDS)
        self._stack.pids.stop([service.name], grace_seconds=STOP_GRACE_SECONDS)
        return False

    def _start(self, service: Service) -> None:
        stack, name = self._stack, service.name
        stack.pids.end_leftovers(name)
        if service.before is not None:
            service.before()
        log = stack.log(name)
        process, log_start = stack.pids.start(
            name,
            service.command,
            variables=service.variables,
            cwd=REPOSITORY,
            log=log,
            fingerprint=service.fingerprint(),
        )
        started = time.monotonic()
        while not service.is_well(time.monotonic() - started):
            waited = time.monotonic() - started
            if not is_alive(process) or waited > service.start_timeout_seconds:
                how = "ended at its start" if not is_alive(process) else f"does not answer after {waited:.0f} s"
                stack.pids.stop([name], grace_seconds=STOP_GRACE_SECONDS)
                raise DependencyError(f"{name} {how}. The end of {log}:\n{_tail(log, log_start)}")
            time.sleep(_POLL_SECONDS)
        if name == "airflow-api":
            with airflow_api(stack.variables) as api:
                api.ensure_pool(SPARK_POOL, 1, "one Spark task at a time on one machine")


def _warm_up(airflow_url: str) -> None:
    """Have Airflow build its execution API now, in the background: the first task would wait 3-6 s for it."""
    with contextlib.suppress(httpx.HTTPError):
        httpx.get(f"{airflow_url}/execution/health", timeout=0.3, trust_env=False)


def _as_failure(name: str, error: Exception) -> NightjarError:
    return error if isinstance(error, NightjarError) else DependencyError(f"{name}: {type(error).__name__}: {error}")


def _tail(log: Path, start: int, lines: int = 15) -> str:
    """The last lines written since byte `start`."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    return "\n".join(text.strip().splitlines()[-lines:]) or "(it wrote nothing)"
