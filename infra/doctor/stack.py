"""The stack and its data: ports, services, what a kill left behind, the tables."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from feature_repo.contracts import environment as names
from feature_repo.contracts.errors import NightjarError
from feature_repo.contracts.tables import TABLES, table_path
from infra.doctor.checks import Check, State, Subject
from infra.doctor.store import examine_store
from infra.local.ports import USUAL_PORTS, is_free, read_ports
from infra.local.processes import STACK, PidFolder, is_alive
from infra.local.services import NAMES, PORT_OF

_START_TIME_TOLERANCE_SECONDS = 2.0
_ADDRESS_OF = {
    "redis-log": names.REDIS_LOG_URL,
    "redis-online": names.REDIS_ONLINE_URL,
    "mlflow": names.MLFLOW_URI,
}


class Pid(NamedTuple):
    """A pid file: what it names, and whether that process lives and is ours."""

    service: str
    pid: int
    lives: bool


def pids(subject: Subject) -> list[Pid]:
    """Every pid file of this stack. Unlike `PidFolder.find`, nothing is removed."""
    found = []
    for file in sorted((subject.home / "run").glob("*.pid")):
        try:
            record = json.loads(file.read_text())
            pid, started = int(record["pid"]), float(record["started"])
        except (OSError, ValueError, TypeError, KeyError):
            found.append(Pid(file.stem, 0, False))
            continue
        try:
            process = psutil.Process(pid)
            is_same = abs(process.create_time() - started) <= _START_TIME_TOLERANCE_SECONDS
            lives = is_same and is_alive(process) and process.environ().get(STACK) == str(subject.home)
        except psutil.Error:
            lives = False
        found.append(Pid(file.stem, pid, lives))
    return found


def examine_ports(subject: Subject) -> Check:
    """The port of each service that is not running: free, or taken by a stranger (then `up` takes the next one)."""
    needed = "free ports, or the next ones"
    running = {pid.service for pid in pids(subject) if pid.lives}
    remembered = read_ports(subject.home / "run" / "ports.json")
    taken = []
    for service, port_name in PORT_OF.items():
        port = remembered.get(port_name, USUAL_PORTS[port_name])
        if service not in running and not _is_given(subject, service) and not is_free(port):
            taken.append(f"{port} ({service}{f', by {owner}' if (owner := _listener(port)) else ''})")
    if taken:
        remedy = "nightjar up takes the next free ones and prints them; or stop the program that has them"
        return Check("ports", State.WARN, f"taken by others: {', '.join(taken)}", needed, remedy)
    return Check("ports", State.OK, f"{len(PORT_OF)} looked at, none taken by others", needed)


def _listener(port: int) -> str:
    """`name, pid N` of who listens; empty when the system does not tell."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()}, pid {connection.pid}"
    except psutil.Error:
        pass
    return ""


def examine_services(subject: Subject) -> Check:
    """All running and answering, or none. A part of them means that something died."""
    needed = "all services running, or none"
    running = {pid.service for pid in pids(subject) if pid.lives}
    given = {service: subject.given[_ADDRESS_OF[service]] for service in _ADDRESS_OF if _is_given(subject, service)}
    silent = [service for service, url in given.items() if not _connects(url)]
    if silent:
        hosts = ", ".join(f"{service} at {urlsplit(given[service]).netloc.rpartition('@')[2]}" for service in silent)
        remedy = f"start that server, or unset {_ADDRESS_OF[silent[0]]}"
        return Check("services", State.FAIL, f"given by you, and not answering: {hosts}", needed, remedy)
    if not running:
        return Check("services", State.OK, "none running (nightjar up starts them)", needed)
    missing = [name for name in NAMES if name not in running and name not in given]
    if missing:
        return Check("services", State.FAIL, f"not running: {', '.join(missing)}", needed, "nightjar up")
    ports = read_ports(subject.home / "run" / "ports.json")
    listening = [service for service, name in PORT_OF.items() if service in running and name in ports]
    deaf = [service for service in listening if not _connects(f"tcp://127.0.0.1:{ports[PORT_OF[service]]}")]
    if deaf:
        remedy = f"nightjar logs {deaf[0]}; then nightjar down && nightjar up"
        return Check("services", State.FAIL, f"running without answering: {', '.join(deaf)}", needed, remedy)
    seen = f"{len(running)} running" + (f", {len(given)} of yours" if given else "")
    return Check("services", State.OK, seen, needed)


def _is_given(subject: Subject, service: str) -> bool:
    """Whether somebody's own server is used instead of ours: set in the environment, not by the address book."""
    name = _ADDRESS_OF.get(service)
    return name is not None and bool(subject.given.get(name))


def _connects(url: str) -> bool:
    address = urlsplit(url)
    try:
        with socket.create_connection((address.hostname or "127.0.0.1", address.port or 80), timeout=0.5):
            return True
    except OSError:
        return False


def examine_leftovers(subject: Subject) -> Check:
    """Processes of this stack that no pid file names, and pid files that name nobody."""
    needed = "no processes or pid files of a killed run"
    known = pids(subject)
    stale = [pid.service for pid in known if not pid.lives]
    families = {p.pid for pid in known if pid.lives for p in _with_children(pid.pid)}
    orphans = [p.pid for p in PidFolder(subject.home / "run", str(subject.home)).leftovers() if p.pid not in families]
    words = []
    if orphans:
        words.append(f"orphaned processes {', '.join(map(str, sorted(orphans)))}")
    if stale:
        words.append(f"pid files of {', '.join(stale)} name no process of ours")
    if words:
        return Check("leftovers", State.WARN, "; ".join(words), needed, "nightjar down  (or up: both clear them away)")
    return Check("leftovers", State.OK, "none", needed)


def _with_children(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def examine_lakehouse(subject: Subject) -> Check:
    """Opens every table's newest version; of an object store it opens one and tries a conditional write instead."""
    needed = "tables whose logs can be read"
    root = subject.environment.lakehouse
    if subject.environment.store is not None:
        return examine_store(subject)
    from spark_jobs.io.light_delta import open_table

    there = [n for n in TABLES if Path(table_path(root, n, tenant=subject.environment.tenant)).exists()]
    for name in there:
        path = table_path(root, name, tenant=subject.environment.tenant)
        try:
            opened = open_table(subject.environment, name)
            problem = "" if opened is not None else "a folder without a Delta log"
        except NightjarError as error:
            problem = str(error).rpartition(": ")[2]
        if problem:
            remedy = f"ls -la {path}/_delta_log; restore it from a copy, or remove the folder and run the night again"
            if name.startswith("bronze."):
                remedy = f"ls -la {path}/_delta_log; restore it from a copy: bronze is the truth, nothing can remake it"
            return Check("lakehouse", State.FAIL, f"{name}: {problem}", needed, remedy)
    return Check("lakehouse", State.OK, f"{len(there)} tables in {root}" if there else f"{root}: no tables yet", needed)
