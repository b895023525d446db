"""Long work on a store that answers people too: in pieces, with rests as long as the work asks for."""

from __future__ import annotations

from collections.abc import Callable

from spark_jobs.giving_way import LONGEST_REST_SECONDS, in_pieces


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.rests: list[float] = []

    def pieces_of(self, count: int, size: int, work: Callable[[list[int]], float]) -> list[list[int]]:
        """The pieces of range(count); `work` says how long each one takes."""
        found = []
        for piece in in_pieces(range(count), size, seconds=lambda: self.now, sleep=self.rests.append):
            self.now += work(piece)
            found.append(piece)
        return found


def test_every_row_comes_once_and_in_order() -> None:
    assert Clock().pieces_of(7, 3, lambda _: 0.0) == [[0, 1, 2], [3, 4, 5], [6]]
    assert Clock().pieces_of(0, 3, lambda _: 0.0) == []


def test_a_rest_is_three_times_as_long_as_the_work_before_it_and_never_longer_than_a_hundredth_second() -> None:
    clock = Clock()
    clock.pieces_of(5, 2, lambda piece: 0.0005 if piece == [0, 1] else 0.002 if piece == [2, 3] else 60.0)
    assert [round(rest, 6) for rest in clock.rests] == [0.0015, 0.006, LONGEST_REST_SECONDS]
