"""Ports of a local stack: the usual one of each service when free, else the next free one; kept between starts."""

from __future__ import annotations

import json
import socket
from collections.abc import Collection, Mapping
from pathlib import Path

from feature_repo.contracts.errors import DependencyError

USUAL_PORTS: Mapping[str, int] = {
    "api": 8000,
    "airflow": 8080,
    "mlflow": 5000,
    "redis-log": 6380,
    "redis-online": 6379,
    "consumer": 9101,
    "archiver": 9102,
    "exporter": 9103,
}
_SEARCH_RANGE = 500


def choose_ports(remembered: Mapping[str, int], *, in_use_by_us: Collection[str] = ()) -> dict[str, int]:
    """A port for each service: the remembered one when it is free or our own running service has it.

    Raises DependencyError when none of 500 ports from the usual one up is free.
    """
    chosen: dict[str, int] = {n: remembered[n] for n in USUAL_PORTS if n in in_use_by_us and n in remembered}
    for name, usual in USUAL_PORTS.items():
        if name in chosen:
            continue
        candidates = [remembered[name]] if name in remembered else []
        candidates += range(usual, usual + _SEARCH_RANGE)
        taken = set(chosen.values())
        port = next((p for p in candidates if p not in taken and is_free(p)), None)
        if port is None:
            raise DependencyError(f"no free port for {name} from {usual} to {usual + _SEARCH_RANGE - 1}")
        chosen[name] = port
    return chosen


def is_free(port: int) -> bool:
    """Nobody listens on 127.0.0.1:`port`, and we could."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return False
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def read_ports(path: Path) -> dict[str, int]:
    """The remembered ports; empty when there are none or the file is damaged (they are only a preference)."""
    try:
        values = json.loads(path.read_text())
        return {name: int(values[name]) for name in USUAL_PORTS if name in values}
    except (OSError, ValueError, TypeError):
        return {}


def write_ports(path: Path, ports: Mapping[str, int]) -> None:
    """Remember them, by one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(dict(ports), indent=1))
    partial.replace(path)
