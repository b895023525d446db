from typing import Any

from serving.adapters.online import OnlineRecords
from serving.native.answers import AnswerWriter
from serving.pipeline.catalogue import Catalogue

class GivenWriter(AnswerWriter):
    def rank(
        self,
        question: tuple[Any, ...],
        item_ids: list[str],
        started: int,
        catalogue: Catalogue,
        read: OnlineRecords,
        feature_micros: int | None,
        now_micros: int,
        changes_micros: int | None,
    ) -> tuple[bytes, bytes, str] | None: ...
