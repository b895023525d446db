"""What is answered from before the first version is published: the items API's catalogue, and the votes of the day."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serving.adapters.trend_board import TrendBoard
from serving.pipeline.catalogue import NO_VERSION, Catalogue, PopularList, RankedList
from serving.pipeline.first_catalogue import with_votes
from serving.pipeline.overlay import CatalogueOverlay
from serving.pipeline.trending import Scope, Votes, voted_rows

WINDOW = "1d"
"""Of the trends: a new shop has few events."""


class FirstShelf:
    """Belongs to one event loop. `wall_micros`: UTC microseconds."""

    def __init__(self, overlay: CatalogueOverlay, board: TrendBoard, *, wall_micros: Callable[[], int]) -> None:
        self._overlay = overlay
        self._board = board
        self._wall_micros = wall_micros
        self._made: tuple[Catalogue, Sequence[tuple[str, int]], Catalogue] | None = None
        self._by_region: dict[str, PopularList] = {}
        """What the catalogue that was made holds of regions, for whom somebody asked."""
        self._placed: dict[str, Votes] = {}

    async def catalogue(self, region: str | None = None) -> tuple[Catalogue, list[str]] | None:
        """(the catalogue, why it is degraded); None when the shop has put no item. What is touched in the region is
        popular there, where it has enough votes.

        Without votes, because nobody has touched anything or the store does not answer, the newest items are left.
        """
        plain = self._overlay.first(self._wall_micros())
        if not plain.numbers:
            return None
        votes, stale = await self._board.votes(WINDOW, region)
        reasons = [NO_VERSION] if stale is None else [NO_VERSION, stale]
        catalogue = self._with(plain, votes)
        if region is not None:
            self._place(region, votes, catalogue)
        return catalogue, reasons

    def leave(self) -> None:
        """A version is served."""
        self._overlay.leave_first()
        self._made = None

    def _with(self, plain: Catalogue, votes: Votes) -> Catalogue:
        """The same one again for as long as neither has changed: what is worked out of it is kept with it."""
        made = self._made
        if made is None or made[0] is not plain or made[1] != votes.ranked:
            self._by_region, self._placed = {}, {}
            catalogue = with_votes(plain, dict(votes.ranked), by_region=self._by_region)
            made = self._made = (plain, votes.ranked, catalogue)
        return made[2]

    def _place(self, region: str, votes: Votes, catalogue: Catalogue) -> None:
        """Lay what the region says now over the catalogue; regions are as many as have votes."""
        if votes.regional is None:
            self._by_region.pop(region, None)
            self._placed.pop(region, None)
        elif self._placed.get(region) is not votes.regional:
            self._placed[region] = votes.regional
            self._by_region.pop(region, None)
            voted = voted_rows(votes, catalogue, None, region)
            if voted.scope is Scope.REGION:
                self._by_region[region] = RankedList((number, float(count)) for number, count in voted.rows)
