"""The night's session model in a request: a few short rows of a memory map, added up.

Work is bounded by the recipe: of the item that stands `step` places from the end of the session the first reads[step]
entries are read, so an answer never reads more than the sum of them, whatever the session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

from feature_repo.contracts.session_index import unpack_session_index


class SessionIndex:
    """For each item what comes next in sessions (`contracts.session_index`).

    recipe    the model and its params, as published
    reads     step from the end of the session -> how many entries of the item there are read
    loudness  step -> e^(-step / place_decay)
    """

    __slots__ = ("_numbers", "_offsets", "_weights", "loudness", "reads", "recipe")

    def __init__(
        self,
        recipe: Mapping[str, Any],
        offsets: memoryview[int],
        numbers: memoryview[int],
        weights: memoryview[float],
    ) -> None:
        """The columns may be views into a memory map; nothing of them is copied but the rows that are asked for."""
        self.recipe = recipe
        self.reads = tuple(recipe["params"]["reads"])
        self.loudness = tuple(exp(-step / recipe["params"]["place_decay"]) for step in range(len(self.reads)))
        self._offsets, self._numbers, self._weights = offsets, numbers, weights

    @property
    def columns(self) -> tuple[memoryview[int], memoryview[int], memoryview[float]]:
        """offsets, numbers and weights, as they lie in the file."""
        return self._offsets, self._numbers, self._weights

    def row(self, item_number: int, count: int) -> dict[int, float]:
        """The first `count` of what the item leads to, best first: number -> weight. Empty for an unknown item."""
        numbers, weights = self._entries(item_number, count)
        return dict(zip(numbers, weights, strict=True))

    def _entries(self, item_number: int, count: int) -> tuple[list[int], list[float]]:
        if not 0 <= item_number < len(self._offsets) - 1:
            return [], []
        start = self._offsets[item_number]
        end = min(self._offsets[item_number + 1], start + count)
        weights: list[float] = self._weights[start:end].tolist()  # type: ignore[assignment]  # a list of what is in it
        return self._numbers[start:end].tolist(), weights

    def scores(self, item_numbers: Sequence[int]) -> dict[int, float]:
        """What comes next in a session of these items, oldest first: number -> score.

        The same as the model `session_transitions` gives the session. An item several times in a row has one place; one
        that comes again speaks from its latest; one without a row takes its place all the same.
        """
        sums: dict[int, float] = {}
        heard: set[int] = set()
        step, latest = -1, -1
        for item_number in reversed(item_numbers):
            if item_number == latest:
                continue
            step, latest = step + 1, item_number
            if step == len(self.reads):
                break
            if item_number not in heard:
                heard.add(item_number)
                numbers, weights = self._entries(item_number, self.reads[step])
                if step == 0:  # as loud as can be
                    sums = dict(zip(numbers, weights, strict=True))
                    continue
                loudness, so_far = self.loudness[step], sums.get
                for number, weight in zip(numbers, weights, strict=True):
                    sums[number] = so_far(number, 0.0) + loudness * weight
        return sums


def read_session_index(data: bytes | memoryview) -> SessionIndex:
    """From the bytes of `session_index.bin`, or a memory map of them. Raises ContractError if they are no such file."""
    return SessionIndex(*unpack_session_index(data))
