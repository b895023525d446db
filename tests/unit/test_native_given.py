"""Given items in order, written by native code in one call, are the bytes of the way through all steps."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.packing import (
    FLAG_BOT,
    FLAG_PERSONALIZE_DENIED,
    ItemMark,
    PackedCandidate,
    Source,
    pack_candidates,
    pack_session,
)
from serving.adapters.online import OnlineRecords
from serving.api.answering import Question
from serving.api.list_routes import write_list
from serving.lists import RANK, ListQuestion
from serving.native import described, parts
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.values import SlateRequest
from tests.serving_builders import Shop
from tests.unit.test_native_answers import SEGMENTS, TIMES, BothWays, packed, session
from tests.unit.test_native_slates import NOW, SECOND, question, shop

pytestmark = pytest.mark.skipif(parts.given is None, reason=f"serving answers from {described()}")


class BothRankings(BothWays):
    """Lists of one server, at once and step by step."""

    def rank(
        self, request: SlateRequest, item_ids: list[str], catalogue: Catalogue, records: OnlineRecords, **more: bool
    ) -> bytes | None:
        """What native code gives, after it was compared with what the steps give."""
        asked = Question(request, "id1", 'a"b', more.get("may_store", True), NOW - 3 * SECOND, kind=RANK)

        def by_steps() -> bytes:
            asker = self.recommender.lone_asker(request, catalogue, records, [])
            built = self.services.lists.build_at_once(ListQuestion(RANK, item_ids), asker, asker.request)
            return write_list(self.services, self.answers, asked, asker, built, 5_000)

        return self.compared(self.answers.rank_at_once(asked, item_ids, 5_000, catalogue, records), by_steps)


@pytest.fixture
def both(environment: Environment) -> BothRankings:
    return BothRankings(environment)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    names = [*(f"i{at}" for at in range(6)), "ü ser/1"]
    return Shop(
        {name: {"is_hidden": name == "i3"} for name in names},
        popular=[("i5", 4.0), ("i4", 1.0)],
        neighbours={"i1": [("i2", 1.0), ("i0", 0.5)]},
    ).catalogue(tmp_path)


def test_random_lists_get_the_same_bytes(tmp_path: Path, both: BothRankings) -> None:
    drawn = random.Random(20240309)
    seen: Counter[str] = Counter()
    for at in range(20):
        sold = shop(drawn)
        catalogue = sold.catalogue(tmp_path / str(at))
        names = [*sold.numbers, *["unknown", "ü"][: at % 3]]
        for _ in range(50):
            request, person, _, _ = question(drawn, sold.numbers)
            if drawn.random() < 0.8:
                request.recent_events = ()
            item_ids = [drawn.choice(names) for _ in range(drawn.choice([1, 3, 12, 60, 200]))]
            request.num_results = drawn.choice([1, 5, len(item_ids)])
            records = OnlineRecords(
                catalogue.version,
                packed(catalogue, person.candidates, drawn.choice([0] * 9 + [FLAG_PERSONALIZE_DENIED])),  # type: ignore[arg-type]
                drawn.choice([None, pack_session(replace(person.session, flags=drawn.choice([0] * 9 + [FLAG_BOT])))]),
                drawn.choice(SEGMENTS),
                drawn.choice(TIMES),
            )
            fast = both.rank(request, item_ids, catalogue, records, may_store=drawn.random() < 0.9)
            seen["asked"] += 1
            if fast is not None:
                answer = orjson.loads(fast)
                seen[answer["fallback_level"]] += 1
                seen["filtered"] += bool(answer.get("filtered"))
                seen["short"] += "filtered" in answer
                seen["session"] += any(item["source"] == "session" for item in answer["items"])
    assert seen["asked"] == 1_000
    assert both.at_once > 150  # the others end with unknown ids, are odd, or somebody's who said no
    assert {"personal", "session", "popular", "given"} <= seen.keys()
    assert min(seen["filtered"], seen["short"], seen["session"]) > 20


def test_the_list_leads_then_popularity_then_the_given_order(both: BothRankings, catalogue: Catalogue) -> None:
    listed = pack_candidates(
        catalogue.version,
        [PackedCandidate(catalogue.numbers["i2"], 0.5, Source.ALS, None, None)],
    )
    given = ["ü ser/1", "i1", "i3", "i4", "i2", "i5", "i1"]
    fast = both.rank(SlateRequest(9, "u1"), given, catalogue, OnlineRecords(catalogue.version, listed))
    assert fast is not None
    answer = orjson.loads(fast)
    assert [item["item_id"] for item in answer["items"]] == ["i2", "i5", "i4", "ü ser/1", "i1"]
    assert [item["source"] for item in answer["items"]] == ["als", "popularity", "popularity", "given", "given"]
    assert answer["filtered"] == {"hidden": 1}
    assert (answer["fallback_level"], answer["unknown_item_ids"]) == ("personal", [])


def test_the_session_votes_and_what_was_dismissed_goes_behind(both: BothRankings, catalogue: Catalogue) -> None:
    record = session((30, "i1"), dismissed=[ItemMark(1, "i5")], bought=[ItemMark(1, "i0")])
    given = ["i5", "i4", "i0", "i2"]
    fast = both.rank(SlateRequest(4, "u1"), given, catalogue, OnlineRecords(catalogue.version, None, record))
    assert fast is not None
    answer = orjson.loads(fast)
    assert [item["item_id"] for item in answer["items"]] == ["i2", "i0", "i4", "i5"]
    assert answer["fallback_reason"] == "unknown_user"


def test_unknown_ids_are_left_to_the_steps_unless_they_have_no_place(both: BothRankings, catalogue: Catalogue) -> None:
    nobody = OnlineRecords(catalogue.version)
    assert both.rank(SlateRequest(3), ["i1", "nothing", "i2"], catalogue, nobody) is None
    cut = both.rank(SlateRequest(2), ["i1", "nothing", "i2"], catalogue, nobody)
    assert cut is not None
    assert [item["item_id"] for item in orjson.loads(cut)["items"]] == ["i1", "i2"]


def test_records_cut_short_are_left_to_the_steps(both: BothRankings, catalogue: Catalogue) -> None:
    version, record = catalogue.version, session((30, "i1"), (20, "i2"))
    listed = pack_candidates(version, [PackedCandidate(1, 0.5, Source.ALS, None, None)])
    given, request = ["i2", "i5", "i1"], SlateRequest(3, "u1")
    assert both.rank(request, given, catalogue, OnlineRecords(version, listed, record)) is not None
    for size in range(len(record)):
        assert both.rank(request, given, catalogue, OnlineRecords(version, listed, record[:size])) is None
    for size in range(len(listed)):
        assert both.rank(request, given, catalogue, OnlineRecords(version, listed[:size])) is None
