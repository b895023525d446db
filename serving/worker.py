"""One worker process: its own listener on the shared port, its own event loop.

Started by the supervisor, which hands it a bound socket and a pipe to say that it can answer, and holds the other end
of its stdin. When that end closes, the supervisor is gone, and so is the worker; when it brings `DRAIN`, a successor
has taken over, and the worker ends without letting anybody down: connections stay open until their next request is
answered, with `connection: close`.
"""

# ruff: noqa: E402

from __future__ import annotations

import gc

gc.disable()  # until the first answer: what is imported and loaded stays, and to look for garbage in it takes time

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

import uvicorn

from serving.api.front_protocol import FrontProtocol, admission_of
from serving.logs import log_to
from serving.main import app_from_environment
from serving.observability import WORKER_STARTS
from serving.supervisor import DRAIN

LONGEST_GOODBYE_SECONDS = 15.0
GRACE_SECONDS = 2.0
"""How long a connection on which nothing is under way may bring one more request to a worker that is replaced."""


class _Server(uvicorn.Server):
    """It says when it can answer."""

    def __init__(self, config: uvicorn.Config, ready_pipe: int) -> None:
        super().__init__(config)
        self._ready_pipe = ready_pipe

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            os.write(self._ready_pipe, b"1")
        os.close(self._ready_pipe)


def _listen_to_supervisor() -> None:
    """In a thread: when we are replaced, or the supervisor is gone, end in good order, and without one if that takes
    too long."""
    if os.read(sys.stdin.fileno(), 1) == DRAIN:
        FrontProtocol.grace_seconds = GRACE_SECONDS
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LONGEST_GOODBYE_SECONDS)
    os._exit(1)


def _end(_number: int, _frame: FrameType | None) -> None:
    """uvicorn raises the signal that ended it once more, when all is done; before it runs there is nothing to do."""
    raise SystemExit(0)


def run_worker(listener: socket.socket, ready_pipe: int) -> None:
    """Serve until SIGTERM, SIGINT or the word of the supervisor; requests under way are finished."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal's is the supervisor's
    threading.Thread(target=_listen_to_supervisor, daemon=True).start()
    logs = log_to()
    app = app_from_environment()
    FrontProtocol.admission = admission_of(app.services)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=FrontProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=7,
    )
    WORKER_STARTS.inc()
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_Server(config, ready_pipe).serve(sockets=[listener]))
    finally:
        logs.stop()


if __name__ == "__main__":
    run_worker(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
