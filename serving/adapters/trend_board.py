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

_Place = tuple[str, str]
"""A window, and a region; "": all regions together."""


class _Copy(NamedTuple):
    votes: Votes
    read_at: float


class TrendBoard:
    """Belongs to one event loop. `timer`: monotonic seconds; `wall_micros`: UTC.

    The votes of a region come with those of all regions, as `Votes.regional`. They are read only of a region that has
    any in the window: whoever asks for made-up regions costs nothing, and copies are at most as many as regions.
    """

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
        self._copies: dict[_Place, _Copy] = {}
        self._renewed: dict[_Place, _Copy] = {}
        self._reading: dict[_Place, asyncio.Task[Votes]] = {}
        self._joined: dict[_Place, tuple[Votes, Votes, Votes]] = {}
        """Votes of all, of the region, and of both: the same object as long as neither was read again."""

    def fresh(self, window: str, region: str | None = None) -> Votes | None:
        """The votes of a window when the copies that are here are fresh. Asked on the event loop: when most of their
        time is over, the next ones are read meanwhile."""
        whole = self._fresh((window, ""))
        if whole is None or region is None or region not in whole.regions:
            return whole
        own = self._fresh((window, region))
        return None if own is None else self._join((window, region), whole, own)

    async def votes(self, window: str, region: str | None = None) -> tuple[Votes, str | None]:
        """(the votes of a window, why they are not fresh or None).

        They are as old as `refresh_seconds` at most. When the store does not answer, the last copy goes on for five
        minutes; without one there are no votes.
        """
        whole, stale = await self._votes((window, ""))
        if region is None or region not in whole.regions:
            return whole, stale
        own, own_stale = await self._votes((window, region))
        return self._join((window, region), whole, own), stale or own_stale

    def _fresh(self, place: _Place) -> Votes | None:
        held = self._copies.get(place)
        if held is None:
            return None
        age = self._timer() - held.read_at
        if age >= self._refresh_seconds:
            return None
        if age >= self._refresh_seconds * _RENEWED_AT and self._renewed.get(place) is not held:
            self._renewed[place] = held  # once: a store that is down is not asked by everybody
            self._renew(place)
        return held.votes

    async def _votes(self, place: _Place) -> tuple[Votes, str | None]:
        fresh = self._fresh(place)
        if fresh is not None:
            return fresh, None
        held, now = self._copies.get(place), self._timer()
        try:
            return await asyncio.shield(self._renew(place)), None
        except DependencyError:
            if held is not None and now - held.read_at < OLDEST_SECONDS:
                return held.votes, TRENDS_DOWN
            return NO_VOTES, TRENDS_DOWN

    def _join(self, place: _Place, whole: Votes, own: Votes) -> Votes:
        joined = self._joined.get(place)
        if joined is None or joined[0] is not whole or joined[1] is not own:
            joined = self._joined[place] = (whole, own, whole._replace(regional=own))
        return joined[2]

    def _renew(self, place: _Place) -> asyncio.Task[Votes]:
        """The reading of a window that is under way."""
        reading = self._reading.get(place)
        if reading is None or reading.done():
            reading = self._reading[place] = asyncio.get_running_loop().create_task(self._read(place))
            reading.add_done_callback(_heard)
        return reading

    async def _read(self, place: _Place) -> Votes:
        window, region = place
        found = await self._store.read(window, now_micros=self._wall_micros(), region=region)
        # At most 96 tables of 2,000 items: too long for the loop.
        votes = (await asyncio.to_thread(add_up, found.tables))._replace(regions=found.regions)
        self._copies[place] = _Copy(votes, self._timer())
        if not region:
            self._leave_regions(window, votes.regions)
        return votes

    def _leave_regions(self, window: str, regions: frozenset[str]) -> None:
        """Forget the copies of regions that have no votes any more, or for which nobody asked for long."""
        oldest = self._timer() - OLDEST_SECONDS
        for place, held in list(self._copies.items()):
            if place[0] == window and place[1] and (place[1] not in regions or held.read_at < oldest):
                del self._copies[place]
                self._renewed.pop(place, None)
                self._reading.pop(place, None)
                self._joined.pop(place, None)


def _heard(reading: asyncio.Task[Votes]) -> None:
    """Where nobody waits for it, a failure is told by the next one who does."""
    if not reading.cancelled():
        reading.exception()
