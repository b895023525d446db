"""Best first."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

from feature_repo.contracts.errors import RequestError
from serving.pipeline.values import ScoredCandidate


def order_candidates(scored: Iterable[ScoredCandidate], slate_size: int) -> list[ScoredCandidate]:
    """Best first, at most `slate_size`. Ties break by item_id, so equal inputs give equal slates.
    Candidates whose score is not finite are left out."""
    if slate_size <= 0:
        raise RequestError(f"slate_size must be positive, got {slate_size}", field="num_results")
    finite = (candidate for candidate in scored if math.isfinite(candidate.score))
    return heapq.nsmallest(slate_size, finite, key=lambda candidate: (-candidate.score, candidate.item_id))
