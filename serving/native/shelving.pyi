from collections.abc import Callable, Iterator, Mapping

from feature_repo.contracts.packing import Source
from serving.pipeline.candidates import Rung
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.values import Reason, RungReport, SlateItem

def shelve(
    rungs: Iterator[Rung],
    kept: list[Rung],
    wanted: int,
    taken_out: Mapping[int, str],
    catalogue: Catalogue,
    now_micros: int,
    whole: bool,
    tell: Callable[[int, Source], tuple[Reason, ...]],
) -> tuple[list[SlateItem], list[RungReport], list[int]] | None: ...
