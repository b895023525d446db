"""Best first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from feature_repo.contracts.errors import RequestError


def order_candidates(scores: Mapping[int, float], slate_size: int, item_ids: Sequence[str | None]) -> list[int]:
    """The item numbers with the best scores, best first, at most `slate_size`.

    Ties break by item_id, so equal inputs give equal slates. Candidates whose score is not finite are left out.
    """
    if slate_size <= 0:
        raise RequestError(f"slate_size must be positive, got {slate_size}", field="num_results")
    best = sorted(filter(math.isfinite, scores.values()), reverse=True)[:slate_size]
    if not best:
        return []
    # Only what reaches the last place's score is compared by id: sorting floats is much cheaper than sorting pairs.
    reach = [number for number, score in scores.items() if best[0] >= score >= best[-1]]
    return sorted(reach, key=lambda number: (-scores[number], item_ids[number]))[:slate_size]
