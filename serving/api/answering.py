"""What all routes do with an answer: it gets its id, it is written, and its decision is logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from serving.adapters.online import OnlineRecords
from serving.api.decisions import recommendation_decision, tuning_digest
from serving.api.rendering import ranker_report, render_answer
from serving.api.services import Services
from serving.lists import KINDS, RECOMMENDATIONS
from serving.native import parts
from serving.observability import SLATES, count_soon
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.values import SlateRequest
from serving.recommender import Answer, Asker, asks_ranker

logger = logging.getLogger("nightjar.serving")

MAX_NAMES = 1_024
"""So many names of placements, which clients choose, are remembered with what is to be said of them."""
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Question(NamedTuple):
    """A request for a slate, read and checked, at `now_micros`.

    may_store   False: the request says that nothing of its person may be kept
    include     attributes that the items shall have; none: title, category, price
    is_dry_run  no decision is logged
    kind        of the decision: recommendations, rank, trending ...
    """

    slate: SlateRequest
    recommendation_id: str
    placement: str
    may_store: bool
    now_micros: int
    include: Sequence[str] = ()
    is_dry_run: bool = False
    kind: str = RECOMMENDATIONS


class SlateAnswers:
    """Answers of one process, as the bodies of responses. Raises what the recommender raises."""

    def __init__(self, services: Services) -> None:
        self._recommender = services.recommender
        self._timer = services.timer
        self._decisions = services.decisions
        self._overlay = services.overlay
        self._wall_micros = services.wall_micros
        tuning = services.settings.tuning()
        self._tuning = tuning_digest(tuning)
        self._placements = services.placements
        self._misspelt: dict[str, bytes] = {}
        self._writer: Any = None
        self._given: Any = None
        self._pages: Any = None
        self._means = (tuning, self._tuning, services.timer, services.overlay.refuses_storing)

    async def answer(self, question: Question, started: int) -> bytes:
        """The body of a 200. `started`: when the request came, of the services' timer."""
        return self.write(await self._recommender.recommend(question.slate), question, started)

    def submit(self, question: Question, started: int, answered: Callable[[bytes | None], None]) -> bool:
        """`answer` for those who do not wait: `answered` is called in a later turn of the loop, with None when `answer`
        has to be asked after all; so it has when this returns False."""
        if asks_ranker(question.slate):
            if self._recommender.may_rank_at_once(question.slate):
                return self._recommender.submit_meeting(
                    question.slate, partial(self._build_ranked, question, started), answered
                )  # fmt: skip
            asyncio.get_running_loop().call_soon(answered, None)  # it reads twice
            return True
        at_once = None if parts.arranged is None else partial(self._write_at_once, question, started)
        return self._recommender.submit_meeting(
            question.slate, partial(self._build, question, started), answered, at_once
        )  # fmt: skip

    def _build(self, question: Question, started: int, asker: Asker) -> bytes:
        slate = self._recommender.slate(asker, asker.request)
        return self.write(self._recommender.answer(asker, slate), question, started)

    def _build_ranked(self, question: Question, started: int, asker: Asker) -> bytes | None:
        """The same with a ranker; None when what it has to know is not kept."""
        made = self._recommender.kept_slate(asker, asker.request)
        if made is None:
            return None
        slate, degraded = made
        return self.write(self._recommender.answer(asker, slate, degraded=degraded), question, started)

    def _write_at_once(
        self, question: Question, started: int, catalogue: Catalogue, records: OnlineRecords
    ) -> bytes | None:
        """What `_build` makes, by native code in one call; None when that has to do it."""
        found = self._segment(records, catalogue)
        if found is None or question.include or question.is_dry_run:
            return None
        if self._writer is None:
            self._writer = parts.arranged.ArrangedWriter(*self._means)
        policy = question.slate.policy
        is_arranged = policy is not None and policy.rules.arrange
        write = self._writer.arrange if is_arranged else self._writer.write
        content = self._logged(
            write(question, started, catalogue, records, *found, self._wall_micros(), self._overlay.heard_micros)
        )
        return content and self._with_warning(content, question.placement)

    def rank_at_once(
        self, question: Question, item_ids: list[str], started: int, catalogue: Catalogue, records: OnlineRecords
    ) -> bytes | None:
        """The same of given items."""
        found = self._segment(records, catalogue)
        if found is None:
            return None
        if self._given is None:
            self._given = parts.given.GivenWriter(*self._means)
        content = self._logged(
            self._given.rank(
                question, item_ids, started, catalogue, records, found[1], self._wall_micros(),
                self._overlay.heard_micros,
            )
        )  # fmt: skip
        return content and self._with_warning(content, question.placement)

    def open_page(self, asked: tuple[Any, ...], started: int, catalogue: Catalogue, records: OnlineRecords) -> Any:
        """A page (`pages.PageQuestion`) as native code makes it (`native.pages.Page`); None when the twin has to."""
        found = self._segment(records, catalogue)
        if found is None:
            return None
        if self._pages is None:
            self._pages = parts.pages.PageWriter(*self._means)
        return self._pages.open(
            asked, started, catalogue, records, *found, self._wall_micros(), self._overlay.heard_micros
        )  # fmt: skip

    def _segment(self, records: OnlineRecords, catalogue: Catalogue) -> tuple[str | None, int | None] | None:
        """The person's category and its time; None when something has to be told of them."""
        return (None, None) if records.segment is None else self._recommender.usable_segment(records, catalogue)

    def _logged(self, written: tuple[bytes, bytes, str] | None) -> bytes | None:
        if written is None:
            return None
        content, payload, level = written
        count_soon(SLATES, level)
        self._decisions.append(payload)
        return content

    def write(
        self,
        answer: Answer,
        question: Question,
        started: int,
        *,
        inputs: Mapping[str, Any] = NOTHING,
        more: Mapping[str, Any] = NOTHING,
    ) -> bytes:
        """The body of an answer, whose decision is logged. `inputs`: what else the slate depended on, for the decision;
        `more`: further fields of the body."""
        content = self._rendered(answer, question, started)
        if not question.is_dry_run:
            self.log([self.decision(answer, question, inputs)])
            content = with_fields(content, more) if more else content
        return self._with_warning(content, question.placement)

    def body(self, answer: Answer, question: Question, started: int) -> bytes:
        """The body of an answer."""
        return self._with_warning(self._rendered(answer, question, started), question.placement)

    def _rendered(self, answer: Answer, question: Question, started: int) -> bytes:
        asked = question.slate
        content = render_answer(
            answer,
            recommendation_id=question.recommendation_id,
            placement=question.placement,
            num_results=asked.num_results,
            explain=asked.explain,
            now_micros=question.now_micros,
            took_micros=(self._timer() - started) // 1000,
            include=question.include,
        )
        if answer.slate.ranking is None:
            return content
        return with_fields(content, {"ranker": ranker_report(answer.slate.ranking)})

    def warning_of(self, placement: str) -> bytes:
        """The field by which an answer for this placement ends when its name looks misspelt; else nothing. What a list
        or a place of a page is called by itself (`new`, `home.new`) is nobody's mistake."""
        found = self._misspelt.get(placement)
        if found is None:
            is_own = placement.rpartition(".")[2] in KINDS
            words = None if is_own else self._placements.misspelt(placement)
            if len(self._misspelt) >= MAX_NAMES:
                self._misspelt.clear()
            found = self._misspelt[placement] = b"" if words is None else b',"warnings":' + orjson.dumps([words])
        return found

    def _with_warning(self, content: bytes, placement: str) -> bytes:
        warning = self.warning_of(placement)
        return content[:-1] + warning + b"}" if warning else content

    def decision(self, answer: Answer, question: Question, inputs: Mapping[str, Any] = NOTHING) -> bytes:
        """The payload of its decision."""
        return recommendation_decision(
            answer,
            question.slate,
            recommendation_id=question.recommendation_id,
            placement=question.placement,
            may_store=question.may_store and not answer.refuses_storing,
            tuning=self._tuning,
            now_micros=question.now_micros,
            kind=question.kind,
            more=inputs,
        )

    def log(self, payloads: Sequence[bytes]) -> None:
        """Decisions that were made."""
        for payload in payloads:
            self._decisions.append(payload)


def with_fields(content: bytes, more: Mapping[str, Any]) -> bytes:
    """A JSON object, already written, with further fields at its end."""
    return content[:-1] + b"," + orjson.dumps(more)[1:]
