"""`python -m serving --host 127.0.0.1 --port 8000 --workers 2`: a supervisor of worker processes.

Each worker has its own SO_REUSEPORT listener. A worker that dies is replaced; SIGTERM or SIGINT ends all of them, after
the requests under way; SIGHUP replaces them one after another, with the settings and the code as they are then, and no
request is lost. Metrics of all workers lie in PROMETHEUS_MULTIPROC_DIR (by default $NIGHTJAR_HOME/run/metrics-PORT);
what an earlier server left there is removed at the start.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError, NightjarError
from serving import native
from serving.logs import log_to
from serving.settings import MULTIPROCESS_FOLDER, PREFIX, ServingSettings
from serving.supervisor import Supervisor


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


def worker_variables(
    host: str, workers: int, variables: Mapping[str, str], settings_file: Path | None = None
) -> dict[str, str]:
    """The environment of the workers: `variables`, what the file says instead, and what they cannot know by themselves:
    how many they are, and whether requests need a key. Raises DataError."""
    found = {**variables, **(read_settings(settings_file) if settings_file else {})}
    keys = ServingSettings.from_mapping(found).api_keys
    if keys == "auto":
        keys = "off" if is_loopback(host) else "on"
    found |= {f"{PREFIX}API_KEYS": keys, f"{PREFIX}WORKER_COUNT": str(workers)}
    ServingSettings.from_mapping(found)
    Environment.from_mapping(found)
    return found


def read_settings(path: Path) -> dict[str, str]:
    """A file of lines NIGHTJAR_SERVING_NAME=value; blank lines and lines from `#` on are left out. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the settings file {path} cannot be read: {type(error).__name__}") from error
    found = {}
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        name, is_setting, value = text.partition("=")
        if not is_setting or not name.strip().startswith(PREFIX):
            raise DataError(f"{path}, line {number}: expected {PREFIX}NAME=value, got {text[:80]!r}")
        found[name.strip()] = value.strip()
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`; of names only localhost is known to be."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving", description="The Nightjar API server.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 picks a free one (default: 8000)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (default: 1)")
    parser.add_argument(
        "--settings", type=Path, help=f"a file of lines {PREFIX}NAME=value, read again with every SIGHUP"
    )
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error(f"--workers must be at least 1, got {arguments.workers}")

    def variables() -> dict[str, str]:
        found = worker_variables(arguments.host, arguments.workers, os.environ, arguments.settings)
        return {**found, MULTIPROCESS_FOLDER: str(folder)}

    try:
        environment = Environment.from_mapping(os.environ)
        first = worker_variables(arguments.host, arguments.workers, os.environ, arguments.settings)
        port = claim_port(arguments.host, arguments.port)
    except NightjarError as error:
        print(f"error {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    folder = Path(os.environ.get(MULTIPROCESS_FOLDER, f"{environment.home}/run/metrics-{port}"))
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob("*.db"):
        left_over.unlink()
    if first[f"{PREFIX}API_KEYS"] == "on":
        print("requests need an API key: nightjar keys create NAME --scope read", flush=True)
    print(f"serving on http://{arguments.host}:{port} with {arguments.workers} worker(s)", flush=True)
    print(f"it works in {native.described()}", flush=True)
    logs = log_to()
    try:
        return Supervisor(arguments.host, port, arguments.workers, variables).run()
    finally:
        logs.stop()


if __name__ == "__main__":
    sys.exit(main())
