"""What the ranker of a request has to know of its person: Feast's features, read at once, behind a breaker of its own.

The person's row and those of the categories of their candidates are one write to Redis. Whatever goes wrong is a word
(`pipeline.ranker.FAILURES`), never an exception: the answer keeps the order of its first stage, and says why.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import nan

from feature_repo.contracts.errors import ContractError, DependencyError
from feature_repo.contracts.ranker_file import CATEGORY_VIEW, USER_VIEW
from serving.adapters.circuit import PROBE_SECONDS, Breaker
from serving.adapters.feature_store import Asked, FeatureColumns, FeatureStore, Value
from serving.observability import STALE_FEATURES, count_soon
from serving.pipeline.ranker import (
    FEATURES_DAMAGED,
    FEATURES_MISSING,
    FEATURES_STALE,
    FEATURES_UNAVAILABLE,
    PersonFeatures,
    Wanted,
)

logger = logging.getLogger("nightjar.serving")

MICROS = 1_000_000


class RankerFeatures:
    """Belongs to one event loop. `seconds` is a monotonic clock."""

    def __init__(
        self,
        store: FeatureStore,
        *,
        probe_seconds: float = PROBE_SECONDS,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        probe = partial(store.read, USER_VIEW, [], [("",)])
        self._breaker = Breaker("the features of the ranker", probe, probe_seconds=probe_seconds, seconds=seconds)

    async def read(self, wanted: Wanted) -> PersonFeatures | str:
        """The features, or why they cannot be had. Rows count when they are as old as the person's row: those of
        categories that are older were left by a night before, and the trees know them as missing."""
        if self._breaker.probing is not None:
            return FEATURES_UNAVAILABLE
        ranker = wanted.ranker
        pairs = [(wanted.user_id, category) for category in wanted.categories]
        try:
            user, by_category = await self._store.read_all(
                [
                    Asked(USER_VIEW, ranker.user_features, [(wanted.user_id,)]),
                    Asked(CATEGORY_VIEW, ranker.category_features, pairs),
                ]
            )
        except DependencyError:
            self._breaker.note(has_failed=True)
            return FEATURES_UNAVAILABLE
        except ContractError:
            logger.exception("a feature of somebody cannot be read; their answer is not ranked")
            return FEATURES_DAMAGED
        self._breaker.note(has_failed=False)
        return _known(wanted, user, by_category)

    async def close(self) -> None:
        """Give the connection back."""
        self._breaker.close()
        await self._store.close()


def _known(wanted: Wanted, user: FeatureColumns, by_category: FeatureColumns) -> PersonFeatures | str:
    micros = user.micros[0]
    if micros is None:
        return FEATURES_MISSING
    if wanted.as_of_micros - micros > USER_VIEW.fresh_for.total_seconds() * MICROS:
        count_soon(STALE_FEATURES, USER_VIEW.name)
        return FEATURES_STALE
    rows = {
        category: _numbers([column[place] for column in by_category.values])
        for place, category in enumerate(wanted.categories)
        if by_category.micros[place] == micros
    }
    return PersonFeatures(_numbers([column[0] for column in user.values]), rows, micros)


def _numbers(values: Sequence[Value]) -> list[float]:
    """NaN where a value is missing."""
    return [nan if value is None else float(value) for value in values]
