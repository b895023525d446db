"""Best first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from operator import itemgetter

from feature_repo.contracts.errors import RequestError

_SCORE = itemgetter(1)


def order_candidates(scores: Mapping[int, float], slate_size: int, item_ids: Sequence[str | None]) -> list[int]:
    """The item numbers with the best scores, best first, at most `slate_size`.

    Ties break by item_id, so equal inputs give equal slates. Candidates whose score is not finite are left out.
    """
    if slate_size <= 0:
        raise RequestError(f"slate_size must be positive, got {slate_size}", field="num_results")
    if all(map(math.isfinite, scores.values())):
        ranked = sorted(scores.items(), key=_SCORE, reverse=True)[: slate_size + 1]
        if not _has_ties([score for _, score in ranked]):
            return [number for number, _ in ranked[:slate_size]]
    best = sorted(filter(math.isfinite, scores.values()), reverse=True)[:slate_size]
    if not best:
        return []
    # Only what reaches the last place's score is compared by id: sorting floats is much cheaper than sorting pairs.
    reach = [number for number, score in scores.items() if best[0] >= score >= best[-1]]
    return sorted(reach, key=lambda number: (-scores[number], item_ids[number]))[:slate_size]


def leading_candidates(bases: Mapping[int, float], slate_size: int, item_ids: Sequence[str | None]) -> frozenset[int]:
    """The same items as `order_candidates`, in no order, of scores that mostly lie best first already."""
    values = list(bases.values())
    if len(values) <= slate_size:
        return frozenset(bases)
    if min(values[:slate_size]) > max(values[slate_size:]):
        return frozenset(islice(bases, slate_size))
    return frozenset(order_candidates(bases, slate_size, item_ids))


def _has_ties(descending: Sequence[float]) -> bool:
    return len(set(descending)) < len(descending)
