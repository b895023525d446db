"""A role that one process holds at a time, and the loop of a process that holds it.

A step may take longer than a term: a table is opened on a slow disk, a day is compacted. A thread of its own (`Heart`)
renews the lease meanwhile, so that nobody takes a role from whom works on it.
"""

from __future__ import annotations

import logging
import secrets
import signal
import threading
import time
from collections.abc import Callable

import redis
from redis.exceptions import RedisError, WatchError

from feature_repo.contracts.errors import NightjarError
from serving.speed.metrics import RoleMetrics

logger = logging.getLogger("nightjar.speed")

RETRY_SECONDS = 0.5


LONGEST_SILENCE_SECONDS = 300.0
"""So long a worker may be at one piece of work and keep its role; who hangs is to be replaced at last."""


class Lease:
    """A key with a TTL that holds its owner's token. A process that stops renewing loses the role after `seconds`.

    `hold` is for the worker, `beat` for a thread beside it.
    """

    def __init__(
        self, client: redis.Redis, key: str, *, seconds: float, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis = client
        self._key = key
        self._milliseconds = int(seconds * 1000)
        self._timer = timer
        self._token = secrets.token_hex(8)
        self._renewed_at: float | None = None
        self._asked_at = 0.0
        """When the worker last asked."""
        self._turn = threading.Lock()

    @property
    def pause_seconds(self) -> float:
        """A third of a term: how often it is renewed."""
        return self._milliseconds / 3000

    def hold(self) -> bool:
        """True when this process has the role for at least two thirds of a term. Asks Redis once in a third of one."""
        with self._turn:
            self._asked_at = self._timer()
            return self._is_fresh() or self._ask()

    def beat(self) -> None:
        """Renew the role if this process has it and its worker asked for it within LONGEST_SILENCE_SECONDS."""
        with self._turn:
            is_at_work = self._timer() - self._asked_at < LONGEST_SILENCE_SECONDS
            if self._renewed_at is not None and is_at_work and not self._is_fresh():
                self._ask()

    def _is_fresh(self) -> bool:
        return self._renewed_at is not None and self._timer() - self._renewed_at < self.pause_seconds

    def _ask(self) -> bool:
        asked_at = self._timer()
        is_ours = self._renew() or bool(self._redis.set(self._key, self._token, nx=True, px=self._milliseconds))
        self._renewed_at = asked_at if is_ours else None
        return is_ours

    def release(self) -> None:
        """Give the role up, so that another process need not wait for the end of the term."""
        with self._turn:
            self._change(lambda pipe: pipe.delete(self._key))
            self._renewed_at = None

    def _renew(self) -> bool:
        return self._change(lambda pipe: pipe.pexpire(self._key, self._milliseconds))

    def _change(self, change: Callable[[redis.client.Pipeline], object]) -> bool:
        """`change` in a transaction that fails when the key is not, or is no longer, ours."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.watch(self._key)
            if pipe.get(self._key) != self._token.encode():
                return False
            pipe.multi()
            change(pipe)
            try:
                pipe.execute()
            except WatchError:
                return False
        return True


class Heart:
    """Calls `lease.beat` from a thread of its own; `with` ends it. A process that was stopped does not beat either."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._lease.pause_seconds):
            try:
                self._lease.beat()
            except (RedisError, OSError) as error:  # the worker meets it as well, and says so
                logger.info("the role could not be renewed: %s", error)


def run_role(
    name: str,
    lease: Lease,
    *,
    resume: Callable[[], None],
    step: Callable[[threading.Event], None],
    metrics: RoleMetrics,
) -> int:
    """Wait for the role, then `resume` once and `step` for ever, until SIGTERM or SIGINT; the exit code.

    A store that does not answer, or a step that fails, is logged and tried again; the role is resumed anew after it.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with Heart(lease):
        _work(name, lease, resume, step, metrics, stopping)
    try:
        lease.release()
    except (RedisError, OSError):
        logger.warning("%s: the role could not be given up; it ends with its term", name)
    return 0


def _work(
    name: str,
    lease: Lease,
    resume: Callable[[], None],
    step: Callable[[threading.Event], None],
    metrics: RoleMetrics,
    stopping: threading.Event,
) -> None:
    has_resumed = was_waiting = False
    while not stopping.is_set():
        try:
            if not lease.hold():
                if not was_waiting:
                    logger.warning("%s: another process has the role; waiting", name)
                has_resumed, was_waiting = False, True
                metrics.role_held.set(0)
                stopping.wait(RETRY_SECONDS)
                continue
            if not has_resumed:
                resume()
                has_resumed, was_waiting = True, False
                metrics.role_held.set(1)
                metrics.takeovers.inc()
                logger.warning("%s: running", name)
            step(stopping)
            metrics.step_done()
        except (RedisError, OSError, NightjarError) as error:
            has_resumed = False
            metrics.failures.inc()
            logger.warning("%s: %s: %s; trying again", name, type(error).__name__, error)
            stopping.wait(RETRY_SECONDS)
