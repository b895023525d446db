"""Answers and decisions that native code writes are the bytes of their twins."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.packing import SessionEvent, Source
from serving.api.decisions import recommendation_decision
from serving.api.rendering import render_answer
from serving.native import described, parts
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.values import Reason, Slate, SlateItem, SlateRequest
from serving.recommender import Answer
from tests.serving_builders import Shop

pytestmark = pytest.mark.skipif(parts.writing is None, reason=f"serving answers from {described()}")

NOW = 1_709_900_000_123_456
WORDS = (
    "plain",
    'quo"ted',
    "back\\slash",
    "line\nend",
    "bell\x07",
    "del\x7f",
    "ü日本\U0001f600",
    "",
    "</script>",
    "\u2028",
)
SCORES = (
    1.0, 0.5, 0.001, 0.0010004999, 0.0009999999, 0.9999995, 0.99999949999, 0.999999, 0.1234565, 0.1234575, 0.0000005,
    0.0, 1e-7, 5e-324, 1.0000001, 2.5, 123456.7891234, 1e16, 1e22, -0.25, 1 / 3, 2 / 3, 0.1, 0.3, 0.7000005,
)  # fmt: skip


class Writer:
    """Writes with native code and without; both ways give the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.native_texts = 0

    def write(self, what: Callable[[], bytes]) -> bytes:
        with self._patch.context() as patch:
            patch.setattr(parts, "writing", None)
            plain = what()
        seen: list[bytes | None] = []
        with self._patch.context() as patch:
            patch.setattr(parts, "writing", _Watched(parts.writing, seen))
            fast = what()
        self.native_texts += seen != [] and seen[-1] is not None
        assert fast == plain
        return fast


class _Watched:
    def __init__(self, module: Any, seen: list[bytes | None]) -> None:
        self._module, self._seen = module, seen

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> bytes | None:
            self._seen.append(getattr(self._module, name)(*given))
            return self._seen[-1]

        return call


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    return Writer(monkeypatch)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    items = {
        f"i{at}{word}": {"title": word, "category": word or None, "price": at / 3} for at, word in enumerate(WORDS)
    }
    return Shop(items, first_number=2).catalogue(tmp_path)


def item(catalogue: Catalogue, number: int, score: float, *reasons: Reason, source: Source = Source.ALS) -> SlateItem:
    return SlateItem(number, catalogue.item_id(number), score, 0.0, 0.0, source, reasons)


def answer_of(catalogue: Catalogue, items: list[SlateItem], **more: Any) -> Answer:
    about: dict[str, Any] = {
        "fallback_level": "personal", "fallback_reason": None, "filtered": {}, "rungs": [], "session": [],
        "session_weight": 0.5, "personalized": True, "stage_micros": {},
    }  # fmt: skip
    circumstances = {name: more.pop(name) for name in list(more) if name not in about and name != "propensities"}
    return Answer(Slate(items=items, **{**about, **more}), catalogue, 1, **circumstances)


def body(
    answer: Answer, *, placement: str = "default", took_micros: int = 531, wanted: int | None = None
) -> bytes:  # fmt: skip
    return render_answer(
        answer, recommendation_id="id1", placement=placement, num_results=wanted or len(answer.slate.items),
        explain=False, now_micros=NOW, took_micros=took_micros,
    )  # fmt: skip


def decision(answer: Answer, request: SlateRequest, *, placement: str = "default") -> bytes:
    return recommendation_decision(
        answer, request, recommendation_id="id1", placement=placement, may_store=True, tuning="x", now_micros=NOW
    )


def test_random_answers_are_the_same_bytes(catalogue: Catalogue, writer: Writer) -> None:
    drawn = random.Random(3)
    moments = (None, 0, NOW, NOW - 1, NOW - 499, NOW - 500, NOW - 1_499_500, NOW + 9_000_000, NOW - 86_400_000_000)
    reasons = [Reason(name, word or None, f"because of {word}") for name in (None, "i1") for word in WORDS]
    written = 0
    for _ in range(400):
        items = [
            item(
                catalogue,
                drawn.randrange(2, 2 + len(WORDS)),
                drawn.choice([drawn.choice(SCORES), drawn.random(), drawn.random() ** 9, drawn.randrange(10**7) / 1e7]),
                *drawn.sample(reasons, drawn.choice([0, 1, 1, 2])),
                source=drawn.choice(list(Source)),
            )
            for _ in range(drawn.randrange(12))
        ]
        aged = replace(
            catalogue, last_event_micros=drawn.choice(moments), published_micros=drawn.choice(moments), remembered={}
        )
        session = [SessionEvent(drawn.choice([0, NOW, NOW - 77]), "view_item", 5, drawn.choice(WORDS))]
        answer = answer_of(
            drawn.choice([aged, catalogue]),
            items,
            fallback_level=drawn.choice(["personal", "popular", "none"]),
            fallback_reason=drawn.choice([None, "consent"]),
            session=drawn.choice([[], session]),
            degraded=drawn.choice([[], ["feature_stale", 'odd"']]),
            feature_micros=drawn.choice(moments),
            changes_micros=drawn.choice(moments),
            personalized=drawn.choice([True, False]),
        )
        placement = drawn.choice(WORDS)
        request = SlateRequest(
            7, drawn.choice([None, "u1", *WORDS[1:7]]), "a1", drawn.choice([None, "s1"]), drawn.choice([None, *WORDS]),
            exclude_item_ids=frozenset(drawn.sample(WORDS, 2)),
        )  # fmt: skip
        took_micros = drawn.choice([0, 1, 999, 1000, 1500, 123456, 5_000_010])
        content = writer.write(partial(body, answer, placement=placement, took_micros=took_micros))
        assert len(json.loads(content)["items"]) == len(items)
        payload = writer.write(partial(decision, answer, request, placement=placement))
        assert json.loads(payload)["inputs"]["num_results"] == 7
        written += 2
    assert written == 800
    assert writer.native_texts == written


@pytest.mark.parametrize(
    "score", [*SCORES, *(n / 1e6 + half for n in range(1000, 1_000_000, 9973) for half in (0, 5e-7))]
)
def test_scores(catalogue: Catalogue, writer: Writer, score: float) -> None:
    found = json.loads(writer.write(lambda: body(answer_of(catalogue, [item(catalogue, 2, score)]))))
    assert found["items"][0]["score"] == round(score, 6)
    assert writer.native_texts == 1


def test_what_the_shop_changes_is_written_from_then_on(catalogue: Catalogue, writer: Writer) -> None:
    answer = answer_of(catalogue, [item(catalogue, 2, 0.5, Reason("i1", "Pot", "because you viewed Pot"))])
    before = json.loads(writer.write(lambda: body(answer)))["items"][0]["attributes"]
    catalogue.attributes[2] = {**(catalogue.attributes[2] or {}), "price": 7.25}
    after = json.loads(writer.write(lambda: body(answer)))["items"][0]["attributes"]
    assert {**before, "price": 7.25} == after != before
    assert writer.native_texts == 2


def test_reasons_that_are_gone_are_not_mistaken_for_new_ones(catalogue: Catalogue) -> None:
    """A reason made where another one lay in memory has words of its own."""
    for at in range(200):
        answer = answer_of(catalogue, [item(catalogue, 3, 0.5, Reason(None, None, f"number {at}"))])
        assert json.loads(body(answer))["items"][0]["reasons"][0]["text"] == f"number {at}"
        del answer
    assert catalogue.remember("reasons as JSON") == {}  # that is the twin's


def test_chances_and_what_was_taken_out_of_a_short_slate(catalogue: Catalogue, writer: Writer) -> None:
    drawn = answer_of(catalogue, [item(catalogue, 2, 0.5)], propensities=(0.25,), filtered={"bought": 2, "hidden": 1})
    assert json.loads(writer.write(lambda: decision(drawn, SlateRequest(1))))["propensities"] == [0.25]
    short = json.loads(writer.write(lambda: body(drawn, wanted=2)))
    assert list(short)[-1] == "filtered"
    assert short["filtered"] == {"bought": 2, "hidden": 1}
    assert "filtered" not in json.loads(writer.write(lambda: body(drawn)))
    assert writer.native_texts == 3


def test_the_twin_writes_what_is_odd(catalogue: Catalogue, writer: Writer) -> None:
    unknown = SlateItem(-1, "elsewhere", 0.5, 0.0, 0.0, Source.GIVEN, ())
    given = answer_of(catalogue, [item(catalogue, 2, 0.5), unknown])
    assert json.loads(writer.write(lambda: body(given)))["items"][1]["item_id"] == "elsewhere"
    assert json.loads(writer.write(lambda: decision(given, SlateRequest(2))))["numbers"] == [2, -1]
    assert (
        json.loads(writer.write(lambda: decision(given, SlateRequest(2, "half \ud800"))))["subject"] == "u:half \ud800"
    )
    ancient = answer_of(catalogue, [], changes_micros=-(10**18))
    assert json.loads(writer.write(lambda: body(ancient)))["freshness"]["catalogue"] > 1e11
    assert writer.native_texts == 0
