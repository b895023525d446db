"""The second stage: on planted data that the first stage cannot order and a feature can."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy import sparse

from feature_repo.contracts.changes import PATCH
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.feature_table import FEATURE_VIEWS
from feature_repo.contracts.run import Run
from feature_repo.contracts.times import to_micros
from spark_jobs.evaluation.contestants import (
    second_stage,
    why_no_categories,
    why_no_ranker,
    with_categories,
    without_ranker,
)
from spark_jobs.evaluation.full_ranking import evaluate
from spark_jobs.evaluation.split import TimeSplit, split_by_time
from spark_jobs.evaluation.trials import Choice, Trial
from spark_jobs.io.entity_features import load_entity_features
from spark_jobs.models.entity_features import CategoryFeatures, EntityFeatures
from spark_jobs.models.factory import Fitted, fit, load_model, newest_learned, remember
from spark_jobs.models.matrix import histories_of
from spark_jobs.models.night_models import Program
from spark_jobs.models.ranker import Ranker, stage, why_no_trees
from spark_jobs.models.recipes import blend_recipe, default_recipe, flat_recipe, ranker_recipe
from spark_jobs.models.training_data import TrainingData
from spark_jobs.transforms.candidates import Scoring, score_block
from tests.builders import make_run, utc, write_rows

CUT_OFF = utc("2024-04-05")
START, ITEMS, USERS = utc("2024-03-01"), 60, 240
DAY = timedelta(days=1)
KIND = np.arange(ITEMS) % 6
"""Half of the people (even numbers) come for items of kind 0 next, the others for kind 3; nothing they did tells."""
TOLD = 160
"""Of the first so many people their taste is known."""


def planted() -> pa.Table:
    """Everybody has had twelve items by chance; each week brings one of their taste that they lack."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(USERS):
        had = rng.permutation(ITEMS)[:12]
        rows += [(user, int(item), START + DAY * float(rng.random() * 20)) for item in had]
        came_for = np.setdiff1d(np.flatnonzero((0, 3)[user % 2] == KIND), had)
        rng.shuffle(came_for)
        for week, item in enumerate(came_for[:4]):
            rows.append((user, int(item), START + DAY * (20.5 + 3.7 * week + float(rng.random()))))
    return pa.table(
        {
            "subject_key": [f"u:{user:03d}" for user, *_ in rows],
            "item_number": pa.array([item for _, item, _ in rows], pa.int32()),
            "event_type": ["view_item"] * len(rows),
            "micros": pa.array([to_micros(moment) for *_, moment in rows], pa.int64()),
        }
    )


class Features:
    """`asked`: the days, in order."""

    def __init__(self, *, missing: date | None = None) -> None:
        self.asked: list[date] = []
        self.missing = missing

    def __call__(self, day: date) -> EntityFeatures | None:
        self.asked.append(day)
        if day == self.missing:
            return None
        noise = np.random.default_rng(day.toordinal()).random((ITEMS, 1)).astype(np.float32)
        items = np.column_stack([KIND.astype(np.float32), noise]).astype(np.float32)
        items[1] = np.nan
        users = np.full((TOLD + 1, 1), np.nan, np.float32)
        users[:-1, 0] = np.arange(TOLD) % 2
        rows = {f"{user:03d}": user for user in range(TOLD)}
        return EntityFeatures(rows, ["user_taste"], users, ["item_kind", "item_noise"], items)


FIRST = {**default_recipe("popularity"), "half_life_days": None}
SMALL = {"rounds": 30, "least_rows": 5, "depth": 40}


def recipe_of(first: Mapping[str, Any] = FIRST, **params: Any) -> dict[str, Any]:
    found = ranker_recipe(first)
    found["params"] |= {**SMALL, **params}
    return found


@pytest.fixture(scope="module")
def split() -> TimeSplit:
    return split_by_time(planted(), cut_off=CUT_OFF, item_count=ITEMS)


@pytest.fixture(scope="module")
def fitted(split: TimeSplit) -> tuple[Fitted, Features]:
    features = Features()
    data = TrainingData(split.train, item_count=ITEMS, cut_off=split.test_start, features=features)
    return fit(recipe_of(), data), features


def test_it_finds_what_the_first_stage_cannot(split: TimeSplit, fitted: tuple[Fitted, Features]) -> None:
    first = fit(FIRST, TrainingData(split.train, item_count=ITEMS, cut_off=split.test_start))
    plain, ranked = (evaluate(one.model, one.matrix, split).per_user["ndcg_at_20"] for one in (first, fitted[0]))
    assert len(split.subjects) > 200
    told = split.subjects < f"u:{TOLD:03d}"
    assert ranked[told].mean() > 1.3 * plain[told].mean()
    assert ranked[~told].mean() > 0.7 * plain[~told].mean()


def test_it_learns_at_the_beginning_of_the_window_and_ranks_with_what_is_known_now(
    split: TimeSplit, fitted: tuple[Fitted, Features]
) -> None:
    assert split.test_start == utc("2024-03-29")
    assert fitted[1].asked == [date(2024, 3, 22), date(2024, 3, 29)]


def test_what_came_after_moves_nothing(split: TimeSplit, fitted: tuple[Fitted, Features]) -> None:
    later = pa.concat_tables([
        split.train.cast(planted().schema) if split.train.schema != planted().schema else split.train,
        pa.table({
            "subject_key": ["u:000"] * 3, "item_number": pa.array([1, 2, 3], pa.int32()),
            "event_type": ["view_item"] * 3, "micros": pa.array([to_micros(split.test_start) + n for n in range(3)]),
        }),
    ])  # fmt: skip
    again = fit(recipe_of(), TrainingData(later, item_count=ITEMS, cut_off=split.test_start, features=Features()))
    mine, other = fitted[0].model, again.model
    assert isinstance(mine, Ranker)
    assert isinstance(other, Ranker)
    assert mine.text == other.text
    rows = np.arange(50)
    histories = histories_of(fitted[0].matrix, rows)
    np.testing.assert_array_equal(mine.score_block(histories, rows), other.score_block(histories, rows))


def test_the_best_new_items_are_ordered_anew_and_all_others_stay_below(fitted: tuple[Fitted, Features]) -> None:
    model, matrix = fitted[0]
    assert isinstance(model, Ranker)
    assert model.first is not None
    rows = np.arange(30)
    histories = histories_of(matrix, rows)
    scores, first = model.score_block(histories, rows), model.first.score_block(histories, rows)
    for place in range(30):
        new = [n for n in range(ITEMS) if n not in histories[place].indices]
        head = sorted(new, key=lambda n, p=place: (-first[p, n], n))[:40]
        below = [n for n in range(ITEMS) if n not in head]
        assert scores[place, head].min() > scores[place, below].max()
        order = sorted(below, key=lambda n, p=place: (-first[p, n], n))
        assert order == sorted(below, key=lambda n, p=place: (-scores[p, n], n))
        best = sorted(head, key=lambda n, p=place: -scores[p, n])[:3]
        assert KIND[best].tolist() == [(0, 3)[place % 2]] * 3
    stranger = model.score_block(histories[:1])
    assert set(KIND[np.argsort(-stranger[0])[:6]]) == {0, 3}, "of a stranger only the items' features are known"


def test_from_disk_it_is_the_same_once_it_remembers(
    split: TimeSplit, fitted: tuple[Fitted, Features], tmp_path: Path
) -> None:
    model, matrix = fitted[0]
    model.save(tmp_path / "ranker")
    loaded = load_model(tmp_path / "ranker")
    assert isinstance(loaded, Ranker)
    rows = np.arange(20)
    histories = histories_of(matrix, rows)
    with pytest.raises(ContractError, match="knows no features"):
        loaded.score_block(histories, rows)
    data = TrainingData(split.train, item_count=ITEMS, cut_off=split.test_start, features=Features())
    remember(loaded, recipe_of(), data)
    expected = model.score_block(histories, rows)
    np.testing.assert_array_equal(loaded.score_block(histories, rows), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).score_block(histories, rows), expected)
    assert newest_learned(fitted[0]) == int(np.asarray(split.train["micros"]).max())


def test_over_a_blend_it_reads_what_each_part_says_and_reasons_are_the_blends(split: TimeSplit) -> None:
    parts = {"popularity": FIRST, "item_knn": {**default_recipe("item_knn"), "half_life_days": None}}
    weights = {part: {"popularity": 0.1, "item_knn": 1.0} for part in ("<5", "5-20", ">20")}
    recipe = recipe_of(blend_recipe(parts, weights))
    data = TrainingData(split.train, item_count=ITEMS, cut_off=split.test_start, features=Features())
    model, matrix = fit(recipe, data)
    assert isinstance(model, Ranker)
    assert model.first is not None
    staged = stage(model.first, histories_of(matrix, np.arange(4)), np.arange(4), 7)
    assert staged.names == ["first_score", "first_rank", "said_item_knn", "said_popularity"]
    assert staged.values.shape == (4, 7, 4)
    scoring = Scoring(
        model=model, user_ids=np.array(["000", "001"]), rows=np.array([0, 1]), histories=matrix.preference,
        seen=matrix.preference, eligible=np.ones(ITEMS, bool), as_of=date(2024, 3, 29), per_user=10,
    )  # fmt: skip
    batch = score_block(scoring, 0)
    had = set(matrix.preference[0].indices.tolist())
    assert len(batch["item_numbers"][0].as_py()) == 10
    assert set(batch["first_reasons"][0].as_py()) - {None} <= had
    assert set(batch["sources"][0].as_py()) <= {1, 2}
    history = histories_of(matrix, np.array([0]))
    assert model.explain(history, 0, [5, 7]) == model.first.explain(history, 0, [5, 7])
    assert model.similar(5, 3) == model.first.similar(5, 3)
    flat = flat_recipe(recipe)
    assert (flat["model"], len(str(flat["first"])), flat["depth"]) == ("ranker", 8, 40)


class Tastes(Features):
    """Of users and items nothing but noise; what they did in categories (kinds of items) tells their taste."""

    def __call__(self, day: date) -> EntityFeatures | None:
        found = super().__call__(day)
        assert found is not None
        pairs = [user * 6 + kind for user in range(TOLD) for kind in ((0, 3)[user % 2], 1)]
        shares = [[0.9], [0.1]] * TOLD
        values = np.array([*shares, [np.nan]], np.float32)
        categories = KIND.astype(np.int64)
        categories[6] = -1
        by_category = CategoryFeatures(["share"], categories, 6, np.array(pairs, np.int64), values)
        if day == self.missing_categories:
            by_category = None
        noise = np.random.default_rng(day.toordinal()).random((ITEMS, 2)).astype(np.float32)
        return found._replace(user_values=found.user_values * 0, item_values=noise, by_category=by_category)

    missing_categories: date | None = None


def test_what_a_user_did_in_categories_decides(split: TimeSplit, tmp_path: Path) -> None:
    data = TrainingData(split.train, item_count=ITEMS, cut_off=split.test_start, features=Tastes())
    without, with_it = (fit(recipe_of(**more), data) for more in ({}, {"by_category": True}))
    told = split.subjects < f"u:{TOLD:03d}"
    blind, ranked = (evaluate(*one, split).per_user["ndcg_at_20"][told].mean() for one in (without, with_it))
    assert ranked > 1.3 * blind
    model, matrix = with_it
    assert isinstance(model, Ranker)
    assert "feature_names=first_score first_rank item_kind item_noise user_taste share\n" in model.text
    rows = np.arange(20)
    histories = histories_of(matrix, rows)
    expected = model.score_block(histories, rows)
    best = [n for n in np.argsort(-expected[0]).tolist() if n not in histories[0].indices][:3]
    assert KIND[best].tolist() == [0, 0, 0]
    assert 6 not in best, "it has no category"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).score_block(histories, rows), expected)
    model.save(tmp_path / "ranker")
    loaded = load_model(tmp_path / "ranker")
    remember(loaded, recipe_of(by_category=True), data)
    np.testing.assert_array_equal(loaded.score_block(histories, rows), expected)


def test_the_values_of_a_pair_are_found_by_user_and_category() -> None:
    values = np.array([[1.0], [2.0], [3.0], [np.nan]], np.float32)
    features = CategoryFeatures(["x"], np.array([1, -1, 0, 1]), 2, np.array([1, 2, 3]), values)
    found = features.of(np.array([0, 1, 2]), np.array([[0, 1, 2], [0, 2, 3], [0, 1, 2]]))[:, :, 0].tolist()
    # pairs: user 0 in category 1, user 1 in both; user 2 is nobody; item 1 has no category
    assert found == [
        pytest.approx([1.0, np.nan, np.nan], nan_ok=True), [3.0, 2.0, 3.0],
        pytest.approx([np.nan] * 3, nan_ok=True),
    ]  # fmt: skip


def test_categories_are_read_only_where_all_days_have_them(
    split: TimeSplit, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Any = SimpleNamespace(cut_off=CUT_OFF)
    program = Program({}, True, may_rank=True)
    features = Tastes()
    assert why_no_categories(night_split(50), run, features) == ""
    assert with_categories(program, None, "") == (replace(program, by_category=True), None)
    features.missing_categories = date(2024, 3, 22)
    why = why_no_categories(night_split(50), run, features)
    assert why == "there are no features of users by category of 2024-03-22"
    live = ranker_recipe(FIRST, by_category=True)
    found, met = with_categories(program, live, why)
    assert (found.by_category, met) == (False, ranker_recipe(FIRST))
    assert found.notes == [f"ranker goes without what users did in categories: {why}"] == [capsys.readouterr().out[:-1]]
    assert with_categories(program, FIRST, why)[1] == FIRST
    data = TrainingData(split.train, item_count=ITEMS, cut_off=split.test_start, features=features)
    with pytest.raises(DataError, match="no features of users by category of 2024-03-22"):
        fit(recipe_of(by_category=True), data)
    assert isinstance(fit(recipe_of(), data).model, Ranker), "a recipe that does not ask needs none"
    singles = {"popularity": Choice(FIRST, (), None, "")}
    assert second_stage(singles, by_category=True).recipe == ranker_recipe(FIRST, by_category=True)


def test_what_cannot_be_learned_is_said(split: TimeSplit) -> None:
    cases = {
        date(2024, 3, 22): r"no features of 2024-03-22.*rederive --from 2024-03-22 --to 2024-03-23",
        date(2024, 3, 29): "no features of 2024-03-29",
    }
    for missing, words in cases.items():
        features = Features(missing=missing)
        data = TrainingData(split.train, item_count=ITEMS, cut_off=split.test_start, features=features)
        with pytest.raises(DataError, match=words):
            fit(recipe_of(), data)
    with pytest.raises(DataError, match="no features of"):
        fit(recipe_of(), TrainingData(split.train, item_count=ITEMS, cut_off=split.test_start))


def test_with_few_to_learn_from_the_order_stays_that_of_the_first_stage(split: TimeSplit, tmp_path: Path) -> None:
    few = split.train.filter(pc.less(split.train["subject_key"].cast(pa.string()), "u:030"))
    data = TrainingData(few, item_count=ITEMS, cut_off=split.test_start, features=Features())
    model, matrix = fit(recipe_of(), data)
    assert isinstance(model, Ranker)
    assert model.text == ""
    rows = np.arange(20)
    histories = histories_of(matrix, rows)
    first = fit(FIRST, data).model.score_block(histories, rows)
    np.testing.assert_array_equal(model.score_block(histories, rows), first)
    model.save(tmp_path / "ranker")
    loaded = load_model(tmp_path / "ranker")
    remember(loaded, recipe_of(), data)
    np.testing.assert_array_equal(loaded.score_block(histories, rows), first)


def test_a_machine_without_openmp_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "lightgbm":
                raise OSError("libgomp.so.1: cannot open shared object file")

    assert why_no_trees() == ""
    monkeypatch.delitem(sys.modules, "lightgbm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    run: Any = SimpleNamespace(cut_off=CUT_OFF)
    assert "libgomp.so.1: cannot open" in why_no_ranker(night_split(50), run, Features())
    assert "apt install libgomp1" in why_no_trees()


def test_only_new_items_that_somebody_had_teach_and_a_sample_is_enough(split: TimeSplit) -> None:
    data = TrainingData(split.train, item_count=ITEMS + 1, cut_off=split.test_start)
    past = fit(FIRST, data.before(utc("2024-03-22")))
    own = int(past.matrix.preference[0].indices[0])
    came_for = pa.table({"subject_key": ["u:000", "u:000", "u:000", "u:000", "a:x", "u:999"],
                         "item_number": pa.array([own, 6, 6, ITEMS, 6, 6], pa.int32())})  # fmt: skip
    rows, wanted = Ranker(recipe_of()["params"])._people(past.matrix, came_for)
    assert past.matrix.subjects[rows].tolist() == ["u:000"]
    assert wanted.indices.tolist() == [6]
    everybody = data.since(utc("2024-03-22"), FIRST["weights"])
    for most, expected in ((10, 10), (10_000, 240)):
        rows, _ = Ranker(recipe_of(most_people=most)["params"])._people(past.matrix, everybody)
        assert len(rows) == expected
        assert (np.diff(rows) > 0).all()


def test_an_event_at_the_first_instant_of_the_window_is_in_it_and_one_at_the_cut_off_is_not() -> None:
    start = utc("2024-03-22")
    moments = [to_micros(start) - 1, to_micros(start), to_micros(CUT_OFF) - 1, to_micros(CUT_OFF)]
    table = pa.table({"subject_key": ["u:1"] * 5, "item_number": pa.array([0, 1, 2, 3, 4], pa.int32()),
                      "event_type": ["view_item"] * 4 + ["page_view"], "micros": [*moments, moments[1]]})  # fmt: skip
    data = TrainingData(table, item_count=5, cut_off=CUT_OFF)
    assert data.since(start, {"view_item": 1.0, "page_view": 0.0})["item_number"].to_pylist() == [1, 2]
    assert data.before(start).interactions["item_number"].to_pylist() == [0]


def night_split(persons: int) -> Any:
    return SimpleNamespace(test_start=utc("2024-03-29"), subjects=np.arange(persons))


def test_a_night_that_cannot_learn_it_knows_why() -> None:
    run: Any = SimpleNamespace(cut_off=CUT_OFF)
    features = Features()
    assert why_no_ranker(night_split(50), run, features) == ""
    assert sorted(features.asked) == [date(2024, 3, 22), date(2024, 3, 29), date(2024, 4, 5)]
    assert why_no_ranker(night_split(49), run, features) == "there are 49 test persons, and it wants 50"
    none = Features(missing=date(2024, 3, 22))
    assert why_no_ranker(night_split(50), run, none) == "there are no features of 2024-03-22"


def test_a_champion_that_cannot_be_learned_is_met_by_its_first_stage(capsys: pytest.CaptureFixture[str]) -> None:
    program = Program({}, True, notes=["ease"], may_rank=True)
    als = default_recipe("als")
    for live, expected in ((None, None), (als, als), (ranker_recipe(als), als)):
        found, met = without_ranker(program, live, "no features")
        assert (found.may_rank, found.notes, met) == (False, ["ease", "ranker: no features"], expected)
    told = capsys.readouterr().out
    assert told.count("left out: ranker: no features") == 3
    assert told.count("the champion is a ranker: its first stage stands for it tonight") == 1


def test_it_stands_on_the_blend_or_on_what_did_best() -> None:
    def choice(name: str, quality: float | None) -> Choice:
        tried = () if quality is None else (Trial("default", {}, {"all": {"ndcg_at_20": quality}}, 0.0),)
        return Choice(default_recipe(name), tried, None if quality is None else 0, "")

    singles = {"popularity": choice("popularity", 0.1), "als": choice("als", 0.3), "item_knn": choice("item_knn", 0.2)}
    assert second_stage(singles).recipe == ranker_recipe(default_recipe("als"))
    blend = blend_recipe({"als": default_recipe("als")}, {part: {"als": 1.0} for part in ("<5", "5-20", ">20")})
    assert second_stage({**singles, "blend": Choice(blend, (), None, "")}).recipe["params"]["first"] == blend
    assert second_stage({**singles, "blend": replace(choice("als", 0.9), recipe={})}).recipe == ranker_recipe(
        default_recipe("als")
    )
    untried = {"popularity": choice("popularity", None), "als": choice("als", None)}
    assert second_stage(untried).recipe == ranker_recipe(default_recipe("popularity"))


def test_features_come_from_the_tables_that_feast_reads(environment: Environment) -> None:
    day, users, items = date(2024, 3, 22), FEATURE_VIEWS["user_features"], FEATURE_VIEWS["item_features"]
    numbers = pa.table({"item_id": ["b", "a"], "item_number": pa.array([2, 0], pa.int32())})
    later = make_run(environment, "2024-03-29", pins={users.table: 0, items.table: 0})
    assert load_entity_features(environment, numbers, 3, later, day) is None
    count, share = "user_view_count_7d", next(f.name for f in items.features if f.type == "double")
    stamped = {"feature_timestamp": utc("2024-03-22"), "as_of": day}
    write_rows(environment, users.table, [
        {"user_id": "ü", count: 12, **stamped}, {"user_id": "v", count: None, **stamped},
        {"user_id": "late", count: 9, **stamped, "as_of": day + DAY},
    ])  # fmt: skip
    assert load_entity_features(environment, numbers, 3, later, day) is None, "the items are missing"
    write_rows(environment, items.table, [
        {"item_id": "b", share: 0.25, **stamped}, {"item_id": "gone", share: 0.5, **stamped},
    ])  # fmt: skip
    found = load_entity_features(environment, numbers, 3, later, day)
    assert found is not None
    assert set(found.user_rows) == {"ü", "v"}
    assert "user_top_category_90d" not in found.user_names, "a text is no number"
    column = list(found.user_names).index(count)
    rows = found.rows_of(np.array(["u:ü", "u:late", "a:ü", "u:v"]))
    assert found.user_values[rows, column].tolist() == pytest.approx([12.0, np.nan, np.nan, np.nan], nan_ok=True)
    assert rows[1] == rows[2] == len(found.user_values) - 1
    values = found.item_values[:, list(found.item_names).index(share)]
    assert values.tolist() == pytest.approx([np.nan, np.nan, 0.25], nan_ok=True)
    assert sparse.issparse(found.item_values) is False
    write_rows(environment, users.table, [{"user_id": "after the pin", count: 1, **stamped}])
    again = load_entity_features(environment, numbers, 3, later, day)
    assert again is not None
    assert set(again.user_rows) == {"ü", "v"}
    assert again.by_category is None, "nobody did anything in a category"
    own = load_entity_features(environment, numbers, 3, make_run(environment, day), day)
    assert own is not None
    assert set(own.user_rows) == {"ü", "v", "after the pin"}, "its own day it has just made"
    assert load_entity_features(environment, numbers, 3, make_run(environment, "2024-03-29"), day) is None


def test_features_by_category_are_of_the_day_and_of_the_pinned_version(environment: Environment) -> None:
    day, later = date(2024, 3, 22), date(2024, 3, 29)
    users, items, pairs = (FEATURE_VIEWS[n] for n in ("user_features", "item_features", "user_category_features"))
    share = "user_category_event_share_90d"
    numbers = pa.table({"item_id": ["b", "a", "c", "d"], "item_number": pa.array([2, 0, 1, 3], pa.int32())})
    stamped = {"feature_timestamp": utc("2024-03-22"), "as_of": day}
    write_rows(environment, users.table, [{"user_id": user, **stamped} for user in ("u", "v")])
    write_rows(environment, items.table, [{"item_id": "a", **stamped}])
    write_rows(environment, "bronze.items", [
        {"item_id": "a", "category": "Home > Mugs"}, {"item_id": "b", "category": "Toys"}, {"item_id": "c"},
        {"item_id": "d", "category": "Toys"},
    ])  # fmt: skip
    write_rows(environment, "bronze.item_changes", [
        {"item_id": item, "operation": PATCH, "fields": json.dumps({"category": category}), "changed_at": utc(moment),
         "received_at": utc(moment), "source": "test", "source_position": n}
        for n, (item, category, moment) in enumerate(
            [("d", "Home > Mugs", "2024-03-21T23:59"), ("a", "Toys", "2024-03-22")]  # the second at the day itself
        )
    ])  # fmt: skip
    write_rows(environment, pairs.table, [
        {"user_id": "v", "category": "Toys", share: 0.75, **stamped},
        {"user_id": "u", "category": "Home > Mugs", share: 1.0, **stamped},
        {"user_id": "v", "category": "Home > Mugs", share: 0.25, **stamped},
        {"user_id": "gone", "category": "Toys", share: 0.5, **stamped},
        {"user_id": "u", "category": "Closed", share: 0.5, **stamped},
        {"user_id": "u", "category": "Toys", share: 0.9, **stamped, "as_of": later},
    ])  # fmt: skip
    pins = {users.table: 0, items.table: 0, pairs.table: 0, "bronze.items": 0, "bronze.item_changes": 0}

    def shares(run: Run) -> list[list[float]]:
        found = load_entity_features(environment, numbers, 4, run, day)
        assert found is not None
        assert found.by_category is not None
        rows = found.rows_of(np.array(["u:u", "u:v", "a:v"]))
        values = found.by_category.of(rows, np.tile(np.arange(4), (3, 1)))
        return values[:, :, list(found.by_category.names).index(share)].tolist()

    none = np.nan
    expected = [[1.0, none, none, 1.0], [0.25, none, 0.75, 0.25], [none] * 4]
    run = make_run(environment, later, pins=pins)
    assert shares(run) == [pytest.approx(row, nan_ok=True) for row in expected]
    write_rows(environment, pairs.table, [{"user_id": "u", "category": "Toys", share: 0.3, **stamped}])
    assert shares(run) == [pytest.approx(row, nan_ok=True) for row in expected], "it came after the pin"
    own = make_run(environment, day, pins=pins)  # of its own day it reads what it has just made
    assert shares(own)[0] == pytest.approx([1.0, none, 0.3, 1.0], nan_ok=True)
    old = load_entity_features(environment, numbers, 4, replace(run, pins={**pins, pairs.table: -1}), day)
    assert old is not None
    assert old.by_category is None
