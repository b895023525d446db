"""One worker process: its own listener on the shared port, its own event loop.

Started by `python -m serving`, which holds the other end of this process's stdin: when that end closes, the parent is
gone, and so is the worker.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time

import uvicorn

from serving.api.slate_protocol import SlateProtocol
from serving.main import app_from_environment
from serving.observability import WORKER_STARTS

BACKLOG = 2048
LONGEST_GOODBYE_SECONDS = 15.0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that shares its port with the other workers; the kernel spreads connections over them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.listen(BACKLOG)
    return listener


def _end_with_parent() -> None:
    """In a thread: when the parent is gone, end in good order, and without one if that takes too long."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LONGEST_GOODBYE_SECONDS)
    os._exit(1)


def run_worker(host: str, port: int) -> None:
    """Serve until SIGTERM, SIGINT or the end of the parent; requests under way are finished."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = uvicorn.Config(
        app_from_environment(),
        loop="uvloop",
        http=SlateProtocol,
        lifespan="on",
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    listener = listen(host, port)
    WORKER_STARTS.inc()
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    run_worker(sys.argv[1], int(sys.argv[2]))
