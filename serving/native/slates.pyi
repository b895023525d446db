from collections.abc import Sequence

from feature_repo.contracts.packing import SessionEvent
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.values import Person, RungReport, SlateItem, SlateRequest, Tuning

def choose(
    request: SlateRequest,
    person: Person,
    session: Sequence[SessionEvent],
    catalogue: Catalogue,
    tuning: Tuning,
    now_micros: int,
) -> tuple[list[SlateItem], list[RungReport], float, str] | None: ...
