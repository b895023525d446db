from collections.abc import Callable
from typing import Any

from serving.adapters.online import OnlineRecords
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.values import Tuning

class AnswerWriter:
    def __init__(
        self, tuning: Tuning, digest: str, timer: Callable[[], int], refuses_storing: Callable[[str | None], bool]
    ) -> None: ...
    def write(
        self,
        question: tuple[Any, ...],
        started: int,
        catalogue: Catalogue,
        read: OnlineRecords,
        segment: str | None,
        feature_micros: int | None,
        now_micros: int,
        changes_micros: int | None,
    ) -> tuple[bytes, bytes, str] | None: ...
