"""A list and what tops it up are in native code those of their twin in Python, to the last bit."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.packing import Source
from serving.native import parts
from serving.pipeline.candidates import Rung
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.filters import SlateFilter
from serving.pipeline.list_slate import in_words, list_slate, popular_rungs
from serving.pipeline.values import Reason, Slate
from tests.unit.test_native_slates import NOW, shop

pytestmark = pytest.mark.skipif(parts.shelving is None, reason="serving/native is not compiled (make setup)")

SCORES: Sequence[Sequence[Any]] = (
    (9, 7, 7, 3, 1), (1.0, 0.5, 0.5, 1e-9), (2.0, 0.0, -1.0), (0.0,), (5.0, float("nan"), float("inf")), (1.0, -0.0),
)  # fmt: skip


def _rungs(drawn: random.Random, size: int) -> list[Rung]:
    found = []
    for at in range(drawn.randrange(4)):
        some = drawn.choice(SCORES)
        rows = [(drawn.randrange(size + (at == 3)), drawn.choice(some)) for _ in range(drawn.choice([0, 1, 7, 30]))]
        if drawn.random() < 0.9:
            rows.sort(key=lambda row: -row[1])
        found.append(Rung(f"rung {at}", rows, drawn.choice([Source.ITEM_KNN, Source.NEW, Source.POPULARITY])))
    return found


def _slate(
    rungs: Sequence[Rung], catalogue: Catalogue, taken_out: Mapping[int, str], wanted: int, whole: bool, now: int
) -> Slate | str:
    def offered() -> Iterator[Rung]:
        yield from rungs
        yield from popular_rungs(catalogue, "A > B", "DE")

    def tell(number: int, source: Source) -> tuple[Reason, ...]:
        return in_words(f"{number} {source.name}")

    try:
        return list_slate(
            offered(), own="rung 0", wanted=wanted, catalogue=catalogue, tell=tell, whole=whole,
            eligible=SlateFilter(catalogue, taken_out=taken_out, now_micros=now, uncounted="asked"),
        )  # fmt: skip
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_random_lists_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = random.Random(20240311)
    compiled: Any = parts.shelving
    asked = answered = short = told = 0

    class Counted:
        def shelve(self, *given: Any) -> Any:
            nonlocal answered
            found = compiled.shelve(*given)
            answered += found is not None
            return found

    for at in range(10):
        catalogue = shop(drawn).catalogue(tmp_path / str(at))
        size = len(catalogue.item_ids)
        for _ in range(60):
            taken_out = {drawn.randrange(size): drawn.choice(["bought", "asked"]) for _ in range(drawn.randrange(9))}
            wanted, whole, now = drawn.choice([1, 4, 12, 100]), drawn.random() < 0.3, NOW + drawn.choice([0, 1_000_000])
            given = (_rungs(drawn, size), catalogue, taken_out, wanted, whole, now)
            monkeypatch.setattr(parts, "shelving", None)
            plain = _slate(*given)
            monkeypatch.setattr(parts, "shelving", Counted())
            fast = _slate(*given)
            assert repr(fast) == repr(plain)
            asked += 1
            if isinstance(fast, Slate):
                short += len(fast.items) < wanted
                told += bool(fast.filtered)
    assert asked == 600
    assert answered > 350  # the others are odd
    assert min(short, told) > 60
