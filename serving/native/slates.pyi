from collections.abc import Mapping, Sequence

from feature_repo.contracts.packing import SessionEvent
from serving.pipeline.catalogue import Catalogue, PopularList
from serving.pipeline.item_filters import ItemFilter, PersonalFilter
from serving.pipeline.values import Person, RungReport, SlateItem, SlateRequest, Tuning

def choose(
    request: SlateRequest,
    person: Person,
    session: Sequence[SessionEvent],
    catalogue: Catalogue,
    tuning: Tuning,
    now_micros: int,
    taken_out: Mapping[int, str] | None = ...,
    filters: Sequence[ItemFilter | PersonalFilter] = ...,
    added: list[PopularList] | None = ...,
) -> tuple[list[SlateItem], list[RungReport], float, str] | None: ...
