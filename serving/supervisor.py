"""The supervisor of worker processes: it keeps them alive, and replaces them one after another without a lost request.

It holds one SO_REUSEPORT socket for each worker, bound but not listening; the worker listens on it as soon as it can
answer. A worker that is replaced in good order and its successor share that socket, so no connection that waits in its
queue is lost. A worker that dies takes its socket with it: the kernel gives new connections to the others at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import FrameType

from feature_repo.contracts.errors import NightjarError

logger = logging.getLogger("nightjar.supervisor")

SHORT_LIFE_SECONDS = 5.0
MAX_SHORT_LIVES = 5
"""So many workers in a row that die young mean that something is wrong for good: the supervisor gives up."""
STOP_SECONDS = 10.0
READY_SECONDS = 60.0
"""Within this a successor has to answer; else it is ended, and the worker that it was to replace stays."""
DRAIN_SECONDS = 20.0
"""Within this a replaced worker has to end."""
DRAIN = b"d"
"""What a worker reads from its stdin when it is being replaced."""


class _Worker:
    """One process and the pipe through which it says that it can answer."""

    def __init__(self, listener: socket.socket, environment: Mapping[str, str]) -> None:
        read, write = os.pipe()
        command = [sys.executable, "-m", "serving.worker", str(listener.fileno()), str(write)]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, pass_fds=(listener.fileno(), write), env=dict(environment)
            )
        finally:
            os.close(write)
        self.ready_pipe = read
        self.started = time.monotonic()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def age(self) -> float:
        return time.monotonic() - self.started

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def said(self) -> bytes | None:
        """b"1" once it can answer, b"" when it ended before, None while it has said nothing."""
        if not select.select([self.ready_pipe], [], [], 0)[0]:
            return None
        return os.read(self.ready_pipe, 1)

    def drain(self) -> None:
        """Let it finish what it has begun, and end."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(DRAIN)
            self.process.stdin.flush()
        self.started = time.monotonic()

    def forget(self) -> None:
        """Close our ends."""
        os.close(self.ready_pipe)
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()


class _Slot:
    """A socket, the worker that has it, and perhaps the one that will."""

    def __init__(self, listener: socket.socket, worker: _Worker) -> None:
        self.listener = listener
        self.worker = worker
        self.successor: _Worker | None = None


class Supervisor:
    """Keeps `workers` worker processes alive. SIGHUP replaces them all; SIGTERM or SIGINT ends them."""

    def __init__(self, host: str, port: int, workers: int, environment: Callable[[], Mapping[str, str]]) -> None:
        """`environment` gives the variables of the workers; asked again with every SIGHUP, and may raise."""
        self._host, self._port, self._count = host, port, workers
        self._read_environment = environment
        self._environment = environment()
        self._slots: list[_Slot] = []
        self._to_replace: deque[_Slot] = deque()
        self._draining: list[_Worker] = []
        self._is_stopping = self._is_asked_to_roll = False
        self._short_lives = 0

    def run(self) -> int:
        """Until a signal: 0; when workers keep dying young: 1."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        woken, wake = os.pipe()
        for end in (woken, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        while not self._is_stopping:
            if self._is_asked_to_roll:
                self._begin_roll()
            self._replace_the_dead()
            if self._short_lives >= MAX_SHORT_LIVES:
                logger.error("%d workers in a row died within seconds; see above", MAX_SHORT_LIVES)
                self._stop_all()
                return 1
            self._roll()
            self._look_after_the_draining()
            waits_for = [slot.successor.ready_pipe for slot in self._slots if slot.successor is not None]
            select.select([woken, *waits_for], [], [], 0.2)
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
        self._stop_all()
        return 0

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._is_asked_to_roll = True
        elif number != signal.SIGCHLD:
            self._is_stopping = True

    def _replace_the_dead(self) -> None:
        for slot in list(self._slots):
            if not slot.worker.has_ended():
                if slot.worker.age > SHORT_LIFE_SECONDS:
                    self._short_lives = 0
                continue
            lived = slot.worker.age
            self._short_lives = self._short_lives + 1 if lived < SHORT_LIFE_SECONDS else 0
            logger.error("worker %d ended with %s after %.0f s", slot.worker.pid, slot.worker.process.returncode, lived)
            slot.worker.forget()
            if slot.successor is not None:  # it has the socket already
                slot.worker, slot.successor = slot.successor, None
                continue
            self._slots.remove(slot)
            slot.listener.close()
        while len(self._slots) < self._count and self._short_lives < MAX_SHORT_LIVES:
            listener = bound_socket(self._host, self._port)
            self._slots.append(_Slot(listener, _Worker(listener, self._environment)))

    def _begin_roll(self) -> None:
        self._is_asked_to_roll = False
        try:
            self._environment = self._read_environment()
        except NightjarError as error:
            logger.error("nothing is replaced: %s", error)
            return
        self._to_replace = deque(self._slots)

    def _roll(self) -> None:
        """One step: start the next successor, or hand over to the one that is ready."""
        for slot in self._slots:
            if slot.successor is None:
                continue
            said = slot.successor.said()
            if said is None and slot.successor.age < READY_SECONDS:
                return
            if said == b"1":
                logger.warning("worker %d takes over from %d", slot.successor.pid, slot.worker.pid)
                slot.worker.drain()
                self._draining.append(slot.worker)
                slot.worker, slot.successor = slot.successor, None
            else:
                logger.error("worker %d never answered; worker %d stays", slot.successor.pid, slot.worker.pid)
                _end(slot.successor)
                slot.successor = None
                self._to_replace.clear()
        while self._to_replace:
            slot = self._to_replace.popleft()
            if slot in self._slots:
                slot.successor = _Worker(slot.listener, self._environment)
                return

    def _look_after_the_draining(self) -> None:
        for worker in list(self._draining):
            if worker.has_ended():
                worker.forget()
            elif worker.age > DRAIN_SECONDS:
                logger.error("worker %d did not end within %.0f s; it is killed", worker.pid, DRAIN_SECONDS)
                _end(worker)
            else:
                continue
            self._draining.remove(worker)

    def _stop_all(self) -> None:
        workers = [slot.worker for slot in self._slots] + self._draining
        workers += [slot.successor for slot in self._slots if slot.successor is not None]
        for worker in workers:
            worker.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in workers:
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that shares its port with those of the other workers; it takes nothing until somebody listens on it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    return bound


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    worker.forget()
