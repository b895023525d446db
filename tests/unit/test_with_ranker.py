"""Answers in the order of a ranker, as the night measures them: better where features tell, blind to what came later,
and place by place those of serving's pipeline."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.packing import SessionEvent, session_hash
from feature_repo.contracts.ranker_file import ANSWER_INPUTS, RankerFile, pack_ranker, unpack_ranker
from feature_repo.contracts.times import to_micros
from feature_repo.contracts.tree_text import read_trees
from serving.native import parts
from serving.pipeline.policy import RANKER_PUBLISHED, SlatePolicy, SlateRules
from serving.pipeline.ranker import PersonFeatures, RequestRanker, Wanted, with_order
from serving.pipeline.slate import slate_steps
from serving.pipeline.values import Person, Slate, SlateRequest, Tuning
from spark_jobs.evaluation.full_ranking import evaluate_ranking
from spark_jobs.evaluation.split import TimeSplit, split_by_time
from spark_jobs.evaluation.with_ranker import (
    WITH_RANKER,
    RankedAnswers,
    best_of,
    learn_ranker,
    popular_scores,
    ranker_row_recipe,
    ranker_verdict,
    why_no_answer_ranker,
)
from spark_jobs.evaluation.with_session import SessionAnswers, fit_session_model, sessions_when_asked
from spark_jobs.models.answer_ranker import AnswerRanker
from spark_jobs.models.entity_features import CategoryFeatures, EntityFeatures
from spark_jobs.models.factory import fit
from spark_jobs.models.ranker import grow_trees
from spark_jobs.models.recipes import default_recipe
from spark_jobs.models.training_data import TrainingData
from tests.hand_trees import OWN, HandTree, tree_text
from tests.serving_builders import Shop
from tests.unit.test_ranker import CUT_OFF, ITEMS, KIND, TOLD, planted

RECIPE = {**default_recipe("popularity"), "half_life_days": None}
CATEGORY = [None if n == 7 else f"C{n % 5}" for n in range(ITEMS)]


@cache
def met() -> pa.Table:
    """The planted events; what somebody does in six days is a session."""
    rows = planted()
    days = np.asarray(rows["micros"]) // (6 * 86_400_000_000)
    keys = [f"{subject} {day}" for subject, day in zip(rows["subject_key"].to_pylist(), days.tolist(), strict=True)]
    found = rows.append_column("session_key", pa.array(keys).dictionary_encode())
    for name in ("subject_key", "event_type"):
        at = found.schema.get_field_index(name)
        found = found.set_column(at, name, found[name].combine_chunks().dictionary_encode())
    return found


class Features:
    """What people like and what items are; some rows are missing. `asked`: the days, in order."""

    def __init__(self, *, missing: date | None = None) -> None:
        self.asked: list[date] = []
        self.missing = missing

    def __call__(self, day: date) -> EntityFeatures | None:
        self.asked.append(day)
        if day == self.missing:
            return None
        noise = np.random.default_rng(day.toordinal()).random(ITEMS)
        items = np.column_stack([KIND, noise]).astype(np.float32)
        items[1] = np.nan
        users = np.full((TOLD + 1, 2), np.nan, np.float32)
        users[:-1, 0] = np.arange(TOLD) % 2
        users[:-1, 1] = np.arange(TOLD)
        rng = np.random.default_rng(1)
        pairs = np.sort(rng.permutation(TOLD * 5)[:400]).astype(np.int64)
        values = np.vstack([rng.random((400, 1)), [[np.nan]]]).astype(np.float32)
        places = np.array([-1 if c is None else int(c[1:]) for c in CATEGORY])
        return EntityFeatures(
            {f"{user:03d}": user for user in range(TOLD)},
            ["user_night_share_30d", "user_view_count_7d"],
            users,
            ["item_conversion_30d", "item_view_trend_30d"],
            items,
            CategoryFeatures(["user_category_event_share_90d"], places, 5, pairs, values),
        )


SMALL = {"rounds": 30, "least_rows": 5, "depth": 40}


@pytest.fixture(autouse=True)
def _small_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = AnswerRanker({}).params
    monkeypatch.setattr("spark_jobs.models.answer_ranker.DEFAULTS", {**defaults, **SMALL})
    monkeypatch.setattr("spark_jobs.evaluation.with_ranker.DEFAULTS", {**defaults, **SMALL})


@cache
def split() -> TimeSplit:
    return split_by_time(planted(), cut_off=CUT_OFF, item_count=ITEMS)


def training(features: Features | None = None) -> TrainingData:
    return TrainingData(
        split().train, item_count=ITEMS, cut_off=split().test_start, features=features or Features()
    )  # fmt: skip


def learned(events: pa.Table | None = None, features: Features | None = None) -> AnswerRanker:
    if events is None and features is None:
        return usual()
    events = met() if events is None else events
    return learn_ranker(RECIPE, training(features), events, by_category=True, policy="interacted")


@cache
def usual() -> AnswerRanker:
    return learned(met())


def answers(ranker: AnswerRanker | None) -> SessionAnswers:
    data = training()
    model, _, _ = fit_session_model(met(), split())
    given = fit(RECIPE, data), split(), sessions_when_asked(met(), split()), model, popular_scores(data)
    if ranker is None:
        return SessionAnswers(*given)
    return RankedAnswers(*given, ranker=ranker, features=data.features_at(split().test_start, by_category=True))


def test_it_finds_what_list_and_session_cannot() -> None:
    features = Features()
    ranker = learned(features=features)
    assert features.asked == [date(2024, 3, 22)]  # the days before the test window are held back
    plain, ranked = (
        evaluate_ranking(one.rank, split()).per_user["ndcg_at_20"] for one in (answers(None), answers(ranker))
    )
    assert len(split().subjects) > 200
    told = split().subjects < f"u:{TOLD:03d}"
    assert ranked[told].mean() > 1.3 * plain[told].mean()
    assert ranker.learned["people"] > 100
    assert ranker.learned["rows"] <= 40 * ranker.learned["people"]


def test_it_learns_nothing_of_the_test_window() -> None:
    late = met().filter(pc.greater_equal(met()["micros"], to_micros(split().test_start)))
    assert late.num_rows > 100
    doubled = pa.concat_tables([met(), late, late])
    assert learned(doubled).text == learned().text
    earlier = met().filter(pc.less(met()["micros"], to_micros(split().test_start)))
    assert learned(earlier).text == learned().text


def test_what_is_behind_the_best_stays_there() -> None:
    ranker, found = learned(), answers(learned())
    plain = answers(None)
    [(listed, values)] = plain.lists(np.array([3]))
    first, second = plain.answer(3, listed, values), found.answer(3, listed, values)
    assert len(first) > ranker.depth
    assert sorted(first[:40]) == sorted(second[:40])
    assert first[:40].tolist() != second[:40].tolist()
    assert first[40:].tolist() == second[40:].tolist()


def test_without_enough_people_or_features_none_is_learned() -> None:
    with pytest.raises(DataError, match=r"there are no features of 2024-03-22"):
        learned(features=Features(missing=date(2024, 3, 22)))
    few = split().train.filter(pc.less(split().train["subject_key"].cast(pa.string()), "u:030"))
    data = TrainingData(few, item_count=ITEMS, cut_off=split().test_start, features=Features())
    with pytest.raises(DataError, match="people came back in the days that it learns from, 50 are wanted"):
        learn_ranker(RECIPE, data, met(), by_category=True, policy="interacted")
    assert why_no_answer_ranker(3_000_001, 60, "") == "it is learned from up to 3,000,000 events, there are 3,000,001"
    assert why_no_answer_ranker(10, 49, "") == "there are 49 test persons, and it wants 50"
    assert why_no_answer_ranker(10, 50, "no libgomp1") == "no libgomp1"
    assert why_no_answer_ranker(3_000_000, 50, "") == ""


def verdict(lower: float, *, winner: str | None = "als", **row: Any) -> tuple[bool, str]:
    model = {"recipe": {"params": {"lists_of": "als"}}, "beside": "with_session", "non_finite_count": 0, **row}
    difference = {"mean": lower + 0.01, "lower": lower, "upper": lower + 0.02}
    comparisons = [
        {"model": WITH_RANKER, "against": "with_session", "slice": "<5", "difference": {"lower": -1.0}},
        {"model": WITH_RANKER, "against": "with_session", "slice": "all", "difference": difference},
    ]
    return ranker_verdict({"models": {WITH_RANKER: model}}, comparisons, winner)


def test_it_is_published_only_where_it_wins() -> None:
    assert verdict(0.002) == (True, "it wins: NDCG@20 +0.0120 beside with_session, 95 % +0.0020 to +0.0220")
    assert verdict(0.0) == (False, "it does not win: NDCG@20 +0.0100 beside with_session, 95 % +0.0000 to +0.0200")
    assert verdict(-0.005)[0] is False
    assert verdict(0.1, winner="blend") == (False, "it was learned over the lists of als, and blend is published")
    assert verdict(0.1, winner=None) == (False, "it was learned over the lists of als, and nothing is published")
    assert verdict(0.1, non_finite_count=1)[0] is False
    assert ranker_verdict({"models": {}, "left_out": ["ease: big", "with_ranker: no day"]}, [], "als") == (
        False, "no day",
    )  # fmt: skip
    assert ranker_verdict({"models": {}}, [], "als") == (False, "none was learned")


def test_its_files_bring_it_back(tmp_path: Path) -> None:
    ranker = learned()
    ranker.save(tmp_path / "r")
    back = AnswerRanker.load(tmp_path / "r")
    assert (back.text, back.params, back.learned) == (ranker.text, ranker.params, ranker.learned)
    (tmp_path / "r" / "trees.npy").write_bytes((tmp_path / "r" / "trees.npy").read_bytes()[:-1] + b"!")
    with pytest.raises(ContractError):
        AnswerRanker.load(tmp_path / "r")
    assert ranker_row_recipe("als", ranker)["params"]["learned_people"] == ranker.learned["people"]


def test_the_file_of_a_version_holds_trees_and_items() -> None:
    features = Features()(date(2024, 3, 29))
    assert features is not None
    found = unpack_ranker(learned().file(features))
    assert (found.depth, found.learned["people"]) == (40, learned().learned["people"])
    width = len(found.item_columns)
    assert found.item_columns == ["item_conversion_30d", "item_view_trend_30d"]
    values = np.array(found.values).reshape(ITEMS, width)
    np.testing.assert_array_equal(values, features.item_values)
    assert set(found.trees.used) <= {
        *ANSWER_INPUTS, "item_conversion_30d", "item_view_trend_30d", "user_night_share_30d", "user_view_count_7d",
        "user_category_event_share_90d",
    }  # fmt: skip
    assert learned().file(features) == learned().file(features)


def test_a_file_that_is_none_is_refused() -> None:
    features = Features()(date(2024, 3, 29))
    assert features is not None
    ranker = learned()
    data = ranker.file(features)
    for broken, words in (
        (b"", "at least 16 bytes"),
        (b"NJS1" + data[4:], "not a whole ranker.bin: magic b'NJS1'"),
        (data[:-4], "not a whole ranker.bin"),
        (data.replace(b'"depth":40', b'"depth":0 '), "depth is a whole number from 1 to 200, got 0"),
        (data.replace(b'"depth":40', b'"depht":40'), "does not say what it holds: KeyError"),
        (data.replace(b"item_conversion_30d", b"item_conversion_31d"), "no answer has an input 'item_conversion_31d'"),
        (data.replace(b"Tree=3", b"Tree=9"), "ranker.bin: tree 3 calls itself '9'"),
        (data.replace(b"item_view_trend_30d", b"item_view_count_7d "), "ranker.bin"),
    ):
        assert broken != data
        with pytest.raises(ContractError, match=words):
            unpack_ranker(broken)
    with pytest.raises(ContractError, match=r"60 items with 2 features are not 0 values"):
        pack_ranker(ranker.text, depth=40, learned={}, items=60, values=array("f"))


# --- the order of an answer is that of the night ----------------------------------------------------------------------


def of_person(features: EntityFeatures, wanted: Wanted) -> PersonFeatures:
    """What an online store holds of the person, by the arrays of the night."""
    row = features.user_rows.get(wanted.user_id, len(features.user_values) - 1)
    names = list(features.user_names)
    user = [float(features.user_values[row, names.index(name)]) for name in wanted.ranker.user_features]
    assert features.by_category is not None
    by_category = {}
    for category in wanted.categories:
        pair = row * 5 + int(category[1:])
        at = int(np.searchsorted(features.by_category.pairs, pair))
        if at < len(features.by_category.pairs) and features.by_category.pairs[at] == pair:
            by_category[category] = [float(v) for v in features.by_category.values[at]]
    return PersonFeatures(user, by_category, 0)


def published(tmp_path: Path, ranker: AnswerRanker, features: EntityFeatures, lists: Mapping[str, Any]) -> Any:
    shop = Shop({f"{n:02d}": {} if CATEGORY[n] is None else {"category": CATEGORY[n]} for n in range(ITEMS)}, **lists)
    catalogue = shop.catalogue(tmp_path)
    return replace(catalogue, ranker=RequestRanker(unpack_ranker(ranker.file(features)), "0" * 8))


@pytest.mark.parametrize("is_native", [True, False])
def test_an_answer_has_the_order_of_the_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_native: bool) -> None:
    if is_native and parts.trees is None:
        pytest.skip("not compiled")
    if not is_native:
        monkeypatch.setattr(parts, "trees", None)
    features = Features()(split().test_start.date())
    assert features is not None
    ranker = by_chance(features)
    found = answers(ranker)
    model, _, _ = fit_session_model(met(), split())
    rows = {
        f"{n:02d}": [(f"{i:02d}", float(w)) for i, w in zip(*(c.tolist() for c in model.lists.of(n)), strict=True)]
        for n in range(ITEMS)
    }
    popular = popular_scores(training())
    ranks = sorted(((f"{n:02d}", float(s)) for n, s in enumerate(popular) if s > 0), key=lambda r: (-r[1], r[0]))
    catalogue = published(
        tmp_path, ranker, features,
        {"leads_to": rows, "session_params": dict(model.params), "popular": ranks, "as_of": "2024-03-29"},
    )  # fmt: skip
    sessions, places = sessions_when_asked(met(), split()), np.arange(len(split().subjects))
    policy = SlatePolicy(SlateRules(ranker=RANKER_PUBLISHED, bought="keep"), "own")
    moved = asked = 0
    for person, (listed, values) in zip(places.tolist(), found.lists(places), strict=True):
        expected = found.answer(person, listed, values)[:20].tolist()
        mine = slice(sessions.starts[person], sessions.starts[person + 1])
        events = [
            SessionEvent(int(at), "view_item", session_hash("s"), f"{item:02d}")
            for at, item in zip(sessions.micros[mine], sessions.items[mine], strict=True)
        ]
        closed = split().seen.indices[split().seen.indptr[person] : split().seen.indptr[person + 1]]
        request = SlateRequest(
            20, user_id=split().subjects[person][2:], session_id="s", recent_events=events, policy=policy,
            exclude_item_ids=frozenset(f"{n:02d}" for n in closed),
        )  # fmt: skip
        own = [(int(n), float(v), 1, 0xFFFFFFFF, 0xFFFFFFFF) for n, v in zip(listed, values, strict=True)]
        now = events[-1].micros if events else to_micros(split().test_start)
        slate, wanted = ranked(request, Person(own), catalogue, features, now)
        assert [item.item_number for item in slate.items] == expected, person
        assert slate.ranking is not None
        assert slate.ranking.reason is None
        assert set(wanted.categories) <= {"C0", "C1", "C2", "C3", "C4"}
        asked += 1
        moved += [n for n, _ in sorted(slate.ranking.moved.items(), key=lambda m: m[1][0])][:20] != expected
        scores = [item.score for item in slate.items]
        assert scores == sorted(scores, reverse=True)
    assert asked > 200
    assert sessions.has_any.sum() > 50
    assert moved > 150


def by_chance(features: EntityFeatures) -> AnswerRanker:
    """A ranker that looks at everything: what its trees learned from was drawn by lot."""
    ranker, plain = AnswerRanker({"by_category": True, "rounds": 60, "least_rows": 20}), answers(None)
    rng, places = np.random.default_rng(4), np.arange(len(split().subjects))
    tables = [
        ranker.inputs(best_of(plain.scored(person, *own), ranker.depth), features, int(row))
        for person, own, row in zip(
            places.tolist(), plain.lists(places), features.rows_of(split().subjects), strict=True
        )
    ]
    sizes = [len(table) for table in tables]
    names = ranker.input_names(features)
    labels = rng.random(sum(sizes)) < 0.2
    ranker.text = grow_trees(np.concatenate(tables), labels, sizes, names, ranker.params)
    assert set(read_trees(ranker.text).used) == set(names)
    return ranker


def ranked(
    request: SlateRequest, person: Person, catalogue: Any, features: EntityFeatures, now: int
) -> tuple[Slate, Wanted]:
    steps = slate_steps(request, person, catalogue, Tuning(), now_micros=now, timer=lambda: 0)
    wanted = next(steps)
    with pytest.raises(StopIteration) as done:
        steps.send(of_person(features, wanted))
    slate: Slate = done.value.value
    return slate, wanted


@pytest.mark.parametrize("is_native", [True, False])
def test_what_only_the_session_brought_has_no_score_in_the_list(
    monkeypatch: pytest.MonkeyPatch, is_native: bool
) -> None:
    if not is_native:
        monkeypatch.setattr(parts, "trees", None)
    trees = read_trees(tree_text(OWN, [HandTree([("list_score", -0.5, -1, -2)], [1.0, 0.0])]))  # missing goes left
    ranker = RequestRanker(RankerFile(3, {}, trees, [], array("f")), "0" * 8)
    nobody = PersonFeatures([], {}, 0)
    ordered = ranker.order([4, 5, 6], {4: 0.5, 5: 0.4, 6: 0.3}, {4: 0.5, 6: 0.1}, {5: 1.0}, 2.0, [None] * 3, nobody)
    assert ordered == [(5, 1.0), (4, 0.0), (6, 0.0)]  # equal ones keep their order
    changed = with_order({4: 0.5, 5: 0.4, 6: 0.4, 7: 0.1}, [6, 4, 5])
    assert list(changed) == [4, 5, 6, 7]
    assert (changed[6], changed[4], changed[7]) == (0.5, 0.4, 0.1)
    assert 0.3999999 < changed[5] < 0.4  # below the other, so that the order holds
