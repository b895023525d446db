"""What the ranker of a request has to know of its person: Feast's features, read at once, behind a breaker of its own.

The person's row and those of the categories of their candidates are one write to Redis; of somebody who was just here
they are kept, and nothing is read. Whatever goes wrong is a word
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
from serving.adapters.feature_rows import FeatureRow, Value
from serving.adapters.feature_store import Asked, FeatureStore
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
        try:
            found = await self._store.read_rows(_asked(wanted))
        except DependencyError:
            self._breaker.note(has_failed=True)
            return FEATURES_UNAVAILABLE
        except ContractError:
            logger.exception("a feature of somebody cannot be read; their answer is not ranked")
            return FEATURES_DAMAGED
        self._breaker.note(has_failed=False)
        return _known(wanted, found)

    def kept(self, wanted: Wanted) -> PersonFeatures | str | None:
        """`read` without a round trip, where all of it is kept; else None."""
        found = self._store.kept_rows(_asked(wanted))
        return None if found is None else _known(wanted, found)

    def keeps(self, user_id: str) -> bool:
        """Whether it is worth a try: somebody's own row is kept."""
        return self._store.keeps(USER_VIEW, (user_id,))

    async def close(self) -> None:
        """Give the connection back."""
        self._breaker.close()
        await self._store.close()


def _asked(wanted: Wanted) -> list[Asked]:
    ranker, user_id = wanted.ranker, wanted.user_id
    return [
        Asked(USER_VIEW, ranker.user_features, [(user_id,)]),
        Asked(CATEGORY_VIEW, ranker.category_features, [(user_id, category) for category in wanted.categories]),
    ]


def _known(wanted: Wanted, found: Sequence[Sequence[FeatureRow]]) -> PersonFeatures | str:
    """How old a row is counts each time: another version may be served than when it was read."""
    (user,), by_category = found
    micros = user[-1]
    if micros is None:
        return FEATURES_MISSING
    if wanted.as_of_micros - micros > USER_VIEW.fresh_for.total_seconds() * MICROS:
        count_soon(STALE_FEATURES, USER_VIEW.name)
        return FEATURES_STALE
    rows = {
        category: _numbers(row[:-1])
        for category, row in zip(wanted.categories, by_category, strict=True)
        if row[-1] == micros
    }
    return PersonFeatures(_numbers(user[:-1]), rows, micros)


def _numbers(values: Sequence[Value]) -> list[float]:
    """NaN where a value is missing."""
    return [nan if value is None else float(value) for value in values]
