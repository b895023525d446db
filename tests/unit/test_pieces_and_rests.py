"""Long work on a store that answers people too: in pieces, with rests as long as the asking before them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from spark_jobs.giving_way import ask_in_pieces

MS = 0.001


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.rests: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.rests.append(round(seconds, 6))

    def ask(
        self,
        count: int,
        size: int,
        asking: Callable[[list[int]], float],
        *,
        making: Mapping[int, float] | None = None,
        looking: float = 0.0,
    ) -> list[tuple[list[int], int]]:
        """range(count) asked about in pieces, and the sum of each as its answer. Seconds: `asking` of a piece, `making`
        of a row, `looking` at an answer."""

        def rows() -> Iterator[int]:
            for row in range(count):
                self.now += (making or {}).get(row, 0.0)
                yield row

        def ask(piece: list[int]) -> int:
            self.now += asking(piece)
            return sum(piece)

        found = []
        for piece, answer in ask_in_pieces(rows(), size, ask, seconds=lambda: self.now, sleep=self.sleep):
            self.now += looking
            found.append((piece, answer))
        return found


def test_every_row_comes_once_and_in_order_each_piece_with_its_answer() -> None:
    assert Clock().ask(7, 3, lambda _: 0.0) == [([0, 1, 2], 3), ([3, 4, 5], 12), ([6], 6)]
    assert Clock().ask(0, 3, lambda _: 0.0) == []


def test_a_rest_is_nine_times_as_long_as_the_asking_before_it_and_never_longer_than_a_fiftieth_second() -> None:
    clock = Clock()
    clock.ask(7, 2, lambda piece: 0.5 * MS if piece == [0, 1] else 2 * MS if piece == [2, 3] else 60.0)
    # none before the first piece, none after the last
    assert clock.rests == [0.0045, 0.018, 0.02]


def test_making_the_next_piece_and_looking_at_an_answer_are_rest_for_the_store() -> None:
    clock = Clock()
    clock.ask(6, 2, lambda _: 2 * MS, making={3: 1.5 * MS, 4: 30 * MS}, looking=0.5 * MS)
    # after [0, 1]: 18 of rest, of which 0.5 and 1.5 are over; after [2, 3]: making [4, 5] took longer than all of it
    assert clock.rests == [0.016]
