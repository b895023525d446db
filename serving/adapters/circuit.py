"""A circuit breaker in front of a store: one that does not answer is not asked, until it answers again.

Closed, every read goes through. When the store has failed seven times in a row, or about half of the recent times, it
opens: reads fail at once, and the ladder answers without them. Open, a probe of its own asks every `PROBE_SECONDS`; no
person waits for that. A probe that is answered closes it.

Many requests share a connection, and when it ends or is late all of their reads fail together: that is one failure. So
a store that had no processor for ten milliseconds costs those who asked meanwhile their personal answers, and nobody
else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from feature_repo.contracts.errors import DependencyError
from serving.adapters.online import Answered, OnlineRecords, OnlineStore
from serving.observability import CIRCUIT_OPENINGS

logger = logging.getLogger("nightjar.serving")

PROBE_SECONDS = 0.1
TOGETHER_SECONDS = 0.005
"""Reads that fail within it fail of one thing, and count once; so do those that are answered. Raising it: later
openings, and longer waits of those who ask meanwhile."""
WEIGHT = 0.1
"""Of the last time in the moving share of failures."""
OPENS_AT = 0.5
"""From this share on: seven failures in a row, or about half of the recent times."""
_FORGOTTEN = 0.001


class FailureShare:
    """The moving share of failures, of one dependency. `seconds` is a monotonic clock."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self.value = 0.0
        self._counts_again_at = [0.0, 0.0]
        """From when on the next answer is a time of its own, and the next failure."""

    def note(self, *, has_failed: bool) -> bool:
        """Count an answer or a failure; whether the circuit is to open."""
        now = self._seconds()
        if now < self._counts_again_at[has_failed]:
            return False
        self._counts_again_at[has_failed] = now + TOGETHER_SECONDS
        self.value *= 1 - WEIGHT
        if not has_failed:
            if self.value < _FORGOTTEN:
                self.value = 0.0
            return False
        self.value += WEIGHT
        return self.value > OPENS_AT


class Breaker:
    """Counts answers and failures of one dependency; opens, and asks `probe` until it answers. Of one event loop.

    what     the dependency, as the log names it
    probe    a question that costs little; raises DependencyError while nobody answers
    seconds  a monotonic clock
    """

    def __init__(
        self,
        what: str,
        probe: Callable[[], Awaitable[object]],
        *,
        probe_seconds: float = PROBE_SECONDS,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._probe = what, probe
        self._probe_seconds = probe_seconds
        self.failures = FailureShare(seconds)
        self.probing: asyncio.Task[None] | None = None
        """None: closed."""

    def note(self, *, has_failed: bool) -> None:
        """Count an answer or a failure, and open where it is time."""
        if self.failures.note(has_failed=has_failed) and self.probing is None:
            CIRCUIT_OPENINGS.inc()
            logger.warning("%s: no answer; asked again every %g s", self._what, self._probe_seconds)
            self.probing = asyncio.get_running_loop().create_task(self._until_an_answer())

    def close(self) -> None:
        """Probe no more."""
        if self.probing is not None:
            self.probing.cancel()

    async def _until_an_answer(self) -> None:
        while True:
            await asyncio.sleep(self._probe_seconds)
            try:
                await self._probe()
            except DependencyError:
                continue
            except Exception:  # what nobody foresaw is no reason to give up for good
                logger.exception("%s: a probe failed", self._what)
                continue
            break
        self.failures.value = 0.0
        self.probing = None
        logger.warning("%s: answers again", self._what)


class GuardedStore:
    """An `OnlineStore` behind a breaker. Belongs to one event loop. `seconds` is a monotonic clock."""

    def __init__(
        self,
        store: OnlineStore,
        *,
        probe_seconds: float = PROBE_SECONDS,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        probe = partial(store.read, version=None, user_id=None, anonymous_id=None)
        self.breaker = Breaker("the online store", probe, probe_seconds=probe_seconds, seconds=seconds)

    @property
    def is_open(self) -> bool:
        """Whether reads fail without being tried."""
        return self.breaker.probing is not None

    async def read(
        self, *, version: str | None, user_id: str | None, anonymous_id: str | None, joined: Sequence[str] = ()
    ) -> OnlineRecords:
        if self.breaker.probing is not None:
            raise _given_up()
        try:
            found = await self.store.read(version=version, user_id=user_id, anonymous_id=anonymous_id, joined=joined)
        except DependencyError as error:
            self._note(error)
            raise
        self._note(found)
        return found

    def submit(
        self,
        answered: Answered,
        *,
        version: str | None,
        user_id: str | None,
        anonymous_id: str | None,
        joined: Sequence[str] = (),
    ) -> None:
        if self.breaker.probing is not None:
            asyncio.get_running_loop().call_soon(answered, _given_up())
            return

        self.store.submit(
            partial(self.on_read, answered),
            version=version,
            user_id=user_id,
            anonymous_id=anonymous_id,
            joined=joined,
        )

    def on_read(self, answered: Answered, found: OnlineRecords | DependencyError) -> None:
        if self.breaker.failures.value or type(found) is not OnlineRecords:
            self._note(found)
        answered(found)

    async def close(self) -> None:
        self.breaker.close()
        await self.store.close()

    def _note(self, found: OnlineRecords | DependencyError) -> None:
        self.breaker.note(has_failed=isinstance(found, DependencyError))


def _given_up() -> DependencyError:
    return DependencyError("the online store does not answer: it was given up until it does")
