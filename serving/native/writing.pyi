from collections.abc import Mapping, Sequence
from typing import Any

from serving.pipeline.catalogue import Catalogue
from serving.pipeline.values import SlateItem

def answer(
    items: Sequence[SlateItem],
    catalogue: Catalogue,
    recommendation_id: str,
    placement: str,
    took_micros: int,
    level: str,
    reason: str | None,
    degraded: Sequence[str],
    now_micros: int,
    feature_micros: int | None,
    session_micros: int | None,
    changes_micros: int | None,
    filtered: Mapping[str, int] | None = None,
) -> bytes | None: ...
def decision(
    items: Sequence[SlateItem],
    catalogue: Catalogue,
    recommendation_id: str,
    kind: str,
    placement: str,
    subject: str | None,
    session: str | None,
    level: str,
    reason: str | None,
    degraded: Sequence[str],
    inputs: Mapping[str, Any],
    now_micros: int,
    propensities: Sequence[float] = (),
) -> bytes | None: ...
