"""What is answered from before the first version is published: the items API's catalogue, and the votes of the day."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serving.adapters.trend_board import TrendBoard
from serving.pipeline.catalogue import NO_VERSION, Catalogue
from serving.pipeline.first_catalogue import with_votes
from serving.pipeline.overlay import CatalogueOverlay
from serving.pipeline.trending import Votes

WINDOW = "1d"
"""Of the trends: a new shop has few events."""


class FirstShelf:
    """Belongs to one event loop. `wall_micros`: UTC microseconds."""

    def __init__(self, overlay: CatalogueOverlay, board: TrendBoard, *, wall_micros: Callable[[], int]) -> None:
        self._overlay = overlay
        self._board = board
        self._wall_micros = wall_micros
        self._made: tuple[Catalogue, Sequence[tuple[str, int]], Catalogue] | None = None

    async def catalogue(self) -> tuple[Catalogue, list[str]] | None:
        """(the catalogue, why it is degraded); None when the shop has put no item.

        Without votes, because nobody has touched anything or the store does not answer, the newest items are left.
        """
        plain = self._overlay.first(self._wall_micros())
        if not plain.numbers:
            return None
        votes, stale = await self._board.votes(WINDOW)
        reasons = [NO_VERSION] if stale is None else [NO_VERSION, stale]
        return self._with(plain, votes), reasons

    def leave(self) -> None:
        """A version is served."""
        self._overlay.leave_first()
        self._made = None

    def _with(self, plain: Catalogue, votes: Votes) -> Catalogue:
        """The same one again for as long as neither has changed: what is worked out of it is kept with it."""
        made = self._made
        if made is None or made[0] is not plain or made[1] != votes.ranked:
            made = self._made = (plain, votes.ranked, with_votes(plain, dict(votes.ranked)))
        return made[2]
