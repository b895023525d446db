from collections.abc import Iterator, Mapping, Sequence

from feature_repo.contracts.packing import SessionEvent
from serving.pipeline.candidates import Rung
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.item_filters import ItemFilter, PersonalFilter
from serving.pipeline.policy import SlateRules
from serving.pipeline.values import Person, RungReport, SlateItem, SlateRequest, Tuning

def arrange(
    rules: SlateRules,
    request: SlateRequest,
    person: Person,
    session: Sequence[SessionEvent],
    catalogue: Catalogue,
    tuning: Tuning,
    now_micros: int,
    taken_out: Mapping[int, str],
    filters: Sequence[ItemFilter | PersonalFilter],
    rungs: Iterator[Rung],
    depth: int,
    rotation_seed: int,
    shown: Mapping[int, tuple[int, int]],
    exploration_seed: str,
) -> tuple[list[SlateItem], list[RungReport], float, Sequence[float]] | None: ...
