"""Slates that a policy arranges are in native code those of their twin in Python, to the last bit."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.packing import Source
from serving.api import decisions
from serving.native import parts
from serving.pipeline import ruled_slate
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.item_facts import ItemFacts
from serving.pipeline.placements import PRESETS
from serving.pipeline.policy import EXCLUDE, KEEP, SESSION, SlatePolicy, SlateRules
from serving.pipeline.slate import build_slate
from serving.pipeline.values import Person, Slate, SlateRequest, Tuning
from serving.recommender import Answer
from tests.unit.test_native_slates import NOW, SECOND, question, shop

pytestmark = pytest.mark.skipif(parts.ruled is None, reason="serving/native is not compiled (make setup)")

DAY = 86_400 * SECOND


def _facts(drawn: random.Random, size: int) -> ItemFacts:
    """Brands and variants, missing and empty ones among them; at times none of a column."""
    brands = [drawn.choice(["x", "y", "z", "", None]) for _ in range(drawn.choice([0, size, size]))]
    groups = [
        drawn.choice([f"g{drawn.randrange(size // 2 + 1)}", "", None]) for _ in range(drawn.choice([0, size, size]))
    ]
    return ItemFacts(brand=brands, group_id=groups)


def _policy(drawn: random.Random) -> SlatePolicy:
    rules = SlateRules(
        filter=drawn.choice([None, None, None, 'not category == "D"', 'brand == "x"']),
        seen=drawn.choice([SESSION, KEEP, "7d"]),
        bought=drawn.choice([EXCLUDE, KEEP]),
        max_per_category=drawn.choice([None, None, 1, 3]),
        category_depth=drawn.choice([None, 1, 2]),
        max_per_brand=drawn.choice([None, None, 2]),
        one_per_group=drawn.choice([True, False]),
        diversity=drawn.choice([0.0, 0.3, 0.5, 1.0]),
        min_relevance=drawn.choice([0.0, 0.0, 0.05]),
        exploration=drawn.choice([0.0, 0.0, 0.2]),
        rotation=drawn.choice([0.0, 0.1, 1.0]),
        fatigue=drawn.choice([0.0, 0.3, 1.0]),
        frequency_cap=drawn.choice([None, None, 3]),
    )
    if drawn.random() < 0.2:
        rules = PRESETS[drawn.choice(["home", "email", "product_page", "cart"])].rules
    return SlatePolicy(
        rules,
        "home",
        filter=drawn.choice([None, None, 'category == "A"', "not in_session(item)"]),
        reasons=drawn.random() < 0.9,
        seed=f"seed{drawn.randrange(1000)}",
    )


def _showings(drawn: random.Random, person: Person, names: list[str]) -> None:
    """What was shown lately, and how often on which day."""
    state = person.session
    today = NOW // DAY
    state.seen |= {drawn.choice(names): NOW - drawn.randrange(9 * DAY) for _ in range(drawn.choice([0, 5, 20]))}
    state.shown |= {(today - drawn.randrange(9), drawn.choice(names)): drawn.randrange(1, 5) for _ in range(9)}
    state.interests |= {(today - drawn.randrange(3), drawn.choice(names)): 2 for _ in range(3)}


def _outcome(request: SlateRequest, person: Person, catalogue: Catalogue, tuning: Tuning, now: int) -> Slate | str:
    try:
        found = build_slate(request, person, catalogue, tuning, now_micros=now, timer=lambda: 0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if len(found.items) == request.num_results:  # what was taken out is told of short slates only
        found.filtered = {}
    found.policy = None  # told with explain only
    return found


def test_random_policies_get_the_same_slates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = random.Random(20240310)
    compiled: Any = parts.ruled
    answered = asked = explored = 0
    sources: set[Source] = set()

    class Counted:
        def arrange(self, *given: Any) -> Any:
            nonlocal answered
            found = compiled.arrange(*given)
            answered += found is not None
            return found

    for at in range(12):
        sold = shop(drawn)
        catalogue = sold.catalogue(tmp_path / str(at))
        catalogue = replace(
            catalogue, facts=_facts(drawn, len(catalogue.item_ids)), remembered={}, bound_filters={}
        )  # fmt: skip
        for _ in range(60):
            request, person, tuning, now = question(drawn, sold.numbers)
            request.num_results = drawn.choice([1, 2, 4, 8, 20])
            request.policy = _policy(drawn)
            _showings(drawn, person, [*sold.numbers, "unknown"])
            monkeypatch.setattr(ruled_slate, "LOOKED_AT", drawn.choice([2, 8, 96]))  # some are behind those looked at
            monkeypatch.setattr(parts, "ruled", None)
            plain = _outcome(request, person, catalogue, tuning, now)
            monkeypatch.setattr(parts, "ruled", Counted())
            fast = _outcome(request, person, catalogue, tuning, now)
            assert repr(fast) == repr(plain)
            asked += 1
            if isinstance(fast, Slate):
                sources |= {item.source for item in fast.items}
                explored += any(chance < 0.5 for chance in fast.propensities)
                assert _decision(fast, request, catalogue) == _decision(fast, request, catalogue, monkeypatch)
    assert asked == 720
    assert answered > 200  # the others are short, or odd
    assert sources >= {Source.SESSION, Source.ALS, Source.SEGMENT, Source.CATEGORY, Source.POPULARITY}
    assert explored > 15


def _decision(
    slate: Slate, request: SlateRequest, catalogue: Catalogue, without_native: pytest.MonkeyPatch | None = None
) -> bytes:
    answer = Answer(slate, catalogue, 1)

    def written() -> bytes:
        return decisions.recommendation_decision(
            answer, request, recommendation_id="id1", placement="home", may_store=True, tuning="t", now_micros=NOW
        )

    if without_native is None:
        return written()
    with without_native.context() as patch:
        patch.setattr(parts, "writing", None)
        return written()
