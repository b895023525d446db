"""The weights of a blend: one set for all, or one for running sessions of each length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.bench.quality.training import Questions


class BlendWeights(NamedTuple):
    """What each part of a blend counts.

    of_all       part -> weight
    of_prefixes  slice of `PREFIX_SLICES` -> part -> weight, which then count instead; None: `of_all` does
    """

    of_all: Mapping[str, float]
    of_prefixes: Mapping[str, Mapping[str, float]] | None = None

    def parts(self) -> list[str]:
        """The parts that count for anybody, sorted."""
        sets = [self.of_all] if self.of_prefixes is None else list(self.of_prefixes.values())
        return sorted({name for weights in sets for name, weight in weights.items() if weight})

    def of(self, part: str, questions: Questions) -> NDArray[np.float32]:
        """What the part counts for each question."""
        if self.of_prefixes is None:
            return np.full(len(questions), self.of_all.get(part, 0.0), np.float32)
        found = [self.of_prefixes[name].get(part, 0.0) for name in questions.prefix_slices().tolist()]
        return np.array(found, np.float32)
