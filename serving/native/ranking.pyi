from collections.abc import Sequence

from feature_repo.contracts.packing import SessionEvent
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.values import Person, SlateItem, SlateRequest, Tuning

def rank(
    item_ids: Sequence[str],
    request: SlateRequest,
    person: Person,
    session: Sequence[SessionEvent],
    catalogue: Catalogue,
    tuning: Tuning,
    now_micros: int,
) -> tuple[list[SlateItem], list[int], list[str], int, int, float, bool] | None: ...
def are_plain_ids(values: list[object]) -> bool: ...
