"""The order of given items in native code is that of its twin in Python, to the last bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.packing import CANDIDATE_ROW, CandidateRows, ItemMark, SessionState, Source
from serving.native import parts
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.rank_given import UNKNOWN_ITEM, rank_given
from serving.pipeline.values import Person, Slate, SlateRequest, Tuning
from tests.serving_builders import Shop
from tests.unit.test_native_slates import NOW, question, shop

pytestmark = pytest.mark.skipif(parts.ranking is None, reason="serving/native is not compiled (make setup)")


def _outcome(
    item_ids: list[str], request: SlateRequest, person: Person, catalogue: Catalogue, tuning: Tuning, now: int
) -> Slate | str:
    try:
        return rank_given(item_ids, request, person, catalogue, tuning, now_micros=now, timer=lambda: 0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_random_lists_get_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = random.Random(20240309)
    compiled: Any = parts.ranking
    answered = asked = unknown = filtered = 0
    levels: set[str] = set()
    sources: set[Source] = set()

    class Counted:
        def rank(self, *given: Any) -> Any:
            nonlocal answered
            found = compiled.rank(*given)
            answered += found is not None
            return found

    for at in range(10):
        sold = shop(drawn)
        catalogue = sold.catalogue(tmp_path / str(at))
        names = [*sold.numbers, "unknown", "ü"]
        for _ in range(50):
            request, person, tuning, now = question(drawn, sold.numbers)
            item_ids = [drawn.choice(names) for _ in range(drawn.choice([1, 3, 12, 60, 200]))]
            request.num_results = drawn.choice([1, 5, len(item_ids)])
            monkeypatch.setattr(parts, "ranking", None)
            plain = _outcome(item_ids, request, person, catalogue, tuning, now)
            monkeypatch.setattr(parts, "ranking", Counted())
            fast = _outcome(item_ids, request, person, catalogue, tuning, now)
            assert repr(fast) == repr(plain)
            asked += 1
            if isinstance(fast, Slate):
                levels.add(fast.fallback_level)
                sources |= {item.source for item in fast.items}
                unknown += any(item.item_number == UNKNOWN_ITEM for item in fast.items)
                filtered += bool(fast.filtered)
    assert asked == 500
    assert answered > 350  # the others are odd
    assert levels == {"personal", "session", "popular", "given"}
    assert sources >= {Source.GIVEN, Source.SESSION, Source.ALS, Source.POPULARITY}
    assert min(unknown, filtered) > 30


def test_what_was_dismissed_goes_behind_and_ties_keep_the_given_order(tmp_path: Path) -> None:
    catalogue = Shop({f"i{number}": {} for number in range(6)}, popular=[("i5", 1.0)]).catalogue(tmp_path)
    unpopular = ["i2", "i0", "i4", "i1"]
    person = Person(session=SessionState([], [], [ItemMark(1, "i0")]))
    found = rank_given(
        unpopular * 2, SlateRequest(9, "u1"), person, catalogue, Tuning(), now_micros=NOW, timer=lambda: 0
    )
    assert [item.item_id for item in found.items] == [unpopular[at] for at in (0, 2, 3, 1)]


def test_a_list_that_is_cut_short_is_not_read_beyond(tmp_path: Path) -> None:
    sold = shop(random.Random(9))
    catalogue = sold.catalogue(tmp_path)
    short = CandidateRows(b"\0" * 12 + CANDIDATE_ROW.pack(9, 1.0, 3, 1, 1) * 3, 40)
    assert parts.ranking is not None
    names = list(sold.numbers)
    assert parts.ranking.rank(names, SlateRequest(1, "u1"), Person(short), [], catalogue, Tuning(), NOW) is None
