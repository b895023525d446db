"""The trends of one process: each window is read at most once in a while, however many requests ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from feature_repo.contracts.errors import DependencyError
from serving.adapters.trends import TrendStore
from serving.pipeline.trending import Votes, add_up

NO_VOTES = Votes((), 0)
TRENDS_DOWN = "trends_unavailable"
OLDEST_SECONDS = 300.0
"""A copy older than this is no trend any more."""
_RENEWED_AT = 0.8
"""Of the time for which a copy is fresh: who asks from then on lets the next one be read, and waits for nothing."""


class _Copy(NamedTuple):
    votes: Votes
    read_at: float


class TrendBoard:
    """Belongs to one event loop. `timer`: monotonic seconds; `wall_micros`: UTC."""

    def __init__(
        self,
        store: TrendStore,
        *,
        refresh_seconds: float,
        wall_micros: Callable[[], int],
        timer: Callable[[], float],
    ) -> None:
        self._store = store
        self._refresh_seconds = refresh_seconds
        self._wall_micros = wall_micros
        self._timer = timer
        self._copies: dict[str, _Copy] = {}
        self._renewed: dict[str, _Copy] = {}
        self._reading: dict[str, asyncio.Task[Votes]] = {}

    def fresh(self, window: str) -> Votes | None:
        """The votes of a window when the copy that is here is fresh. Asked on the event loop: when most of its time is
        over, the next one is read meanwhile."""
        held = self._copies.get(window)
        if held is None:
            return None
        age = self._timer() - held.read_at
        if age >= self._refresh_seconds:
            return None
        if age >= self._refresh_seconds * _RENEWED_AT and self._renewed.get(window) is not held:
            self._renewed[window] = held  # once: a store that is down is not asked by everybody
            self._renew(window)
        return held.votes

    async def votes(self, window: str) -> tuple[Votes, str | None]:
        """(the votes of a window, why they are not fresh or None).

        They are as old as `refresh_seconds` at most. When the store does not answer, the last copy goes on for five
        minutes; without one there are no votes.
        """
        fresh = self.fresh(window)
        if fresh is not None:
            return fresh, None
        held, now = self._copies.get(window), self._timer()
        try:
            return await asyncio.shield(self._renew(window)), None
        except DependencyError:
            if held is not None and now - held.read_at < OLDEST_SECONDS:
                return held.votes, TRENDS_DOWN
            return NO_VOTES, TRENDS_DOWN

    def _renew(self, window: str) -> asyncio.Task[Votes]:
        """The reading of a window that is under way."""
        reading = self._reading.get(window)
        if reading is None or reading.done():
            reading = self._reading[window] = asyncio.get_running_loop().create_task(self._read(window))
            reading.add_done_callback(_heard)
        return reading

    async def _read(self, window: str) -> Votes:
        tables = await self._store.read(window, now_micros=self._wall_micros())
        # At most 96 tables of 2,000 items: too long for the loop.
        votes = await asyncio.to_thread(add_up, tables)
        self._copies[window] = _Copy(votes, self._timer())
        return votes


def _heard(reading: asyncio.Task[Votes]) -> None:
    """Where nobody waits for it, a failure is told by the next one who does."""
    if not reading.cancelled():
        reading.exception()
