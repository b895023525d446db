from collections.abc import Sequence
from typing import Any

from serving.adapters.online import OnlineRecords
from serving.native.answers import AnswerWriter
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.policy import SlatePolicy
from serving.pipeline.trending import Votes

class PageWriter(AnswerWriter):
    def open(
        self,
        asked: tuple[Any, ...],
        started: int,
        catalogue: Catalogue,
        read: OnlineRecords,
        segment: str | None,
        feature_micros: int | None,
        now_micros: int,
        changes_micros: int | None,
    ) -> Page | None: ...

class Page:
    payloads: list[bytes]
    levels: list[str]

    def place(
        self, place: tuple[Any, ...], answer_id: str, policy: SlatePolicy | None, votes: Votes | None
    ) -> bool: ...
    def taken_ids(self) -> frozenset[str]: ...
    def add(self, content: bytes, payload: bytes, item_ids: Sequence[str]) -> None: ...
    def body(self) -> bytes: ...
