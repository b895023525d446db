"""Searching for recipes: what is tried, what goes on, what is never looked at."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.times import from_micros, start_of_day, to_micros
from spark_jobs.evaluation import tuning
from spark_jobs.evaluation.split import TimeSplit, split_by_time
from spark_jobs.evaluation.tuning import FamilyStudy, make_rungs, run_studies, with_value
from spark_jobs.jobs import tune_models
from spark_jobs.jobs.tune_models import Search
from spark_jobs.models.matrix import sort_interactions
from spark_jobs.models.recipe_choice import read_choice
from spark_jobs.models.recipes import default_recipe
from spark_jobs.models.search_spaces import GRIDS, search_space
from tests.builders import utc, write_rows

AS_OF = date(2024, 3, 29)
ITEMS = 40
DAY = 86_400_000_000


def interactions(people: int = 120, seed: int = 3) -> pa.Table:
    """People of two tastes, who view and buy items of theirs, a few each day over forty days."""
    rng = np.random.default_rng(seed)
    rows = []
    start = to_micros(start_of_day(AS_OF)) - 40 * DAY
    for person in range(people):
        taste = (person % 2) * (ITEMS // 2)
        for day in range(40):
            for _ in range(rng.integers(0, 3)):
                item = taste + int(rng.integers(0, ITEMS // 2))
                kind = "purchase" if rng.random() < 0.3 else "view_item"
                rows.append((f"u:{person:03d}", item, kind, start + day * DAY + int(rng.integers(0, DAY))))
    names = ("subject_key", "item_number", "event_type", "micros")
    return sort_interactions(pa.table({name: [row[n] for row in rows] for n, name in enumerate(names)}))


def validation_of(table: pa.Table) -> TimeSplit:
    return split_by_time(table, cut_off=start_of_day(AS_OF), item_count=ITEMS, test_days=7)


def study(folder: Path, name: str = "item_knn", *, people: int = 120, seed: int = 7) -> FamilyStudy:
    rungs = make_rungs(validation_of(interactions(people)), item_count=ITEMS, seed=seed)
    return FamilyStudy(name, default_recipe(name), rungs, folder=folder, seed=seed)


def test_the_recipe_as_it_is_comes_first_and_a_stopped_search_goes_on(tmp_path: Path) -> None:
    whole = study(tmp_path / "whole")
    first = [whole.next_trial() for _ in range(4)]
    assert first[0].recipe == default_recipe("item_knn")
    assert [one.number for one in first] == [0, 1, 2, 3]
    assert len({json.dumps(one.recipe, sort_keys=True) for one in first}) == 4
    # Stopped after two, and gone on in another process: the same four.
    two = study(tmp_path / "parts")
    begun = [two.next_trial() for _ in range(2)]
    on = study(tmp_path / "parts")
    assert [one[:4] for one in on.tried()] == [one[:4] for one in begun]
    again = begun + [on.next_trial() for _ in range(2)]
    assert [(one.recipe, one.quality) for one in again] == [(one.recipe, one.quality) for one in first]
    best = on.best()
    assert best is not None
    assert best.quality == max(one.quality for one in first if one.quality is not None)


def test_a_killed_trial_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = study(tmp_path)
    one.next_trial()

    def die(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "_measure", die)
    with pytest.raises(KeyboardInterrupt):
        one.next_trial()
    monkeypatch.undo()
    on = study(tmp_path)
    assert [tried.number for tried in on.tried()] == [0]
    assert on.next_trial().number == 2


def test_a_trial_worse_than_the_median_on_a_quarter_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "LEAST_SAMPLED", 5)
    monkeypatch.setattr(tuning, "STARTUP_TRIALS", 2)
    pruned = study(tmp_path)
    asked: list[int] = []
    values = iter([0.5, 0.5, 0.4, 0.4, 0.1])  # quarter and whole of two trials, then the quarter of a bad one

    def measure(_: Any, split: TimeSplit, __: Any) -> dict[str, dict[str, float]]:
        asked.append(len(split.subjects))
        return {"all": {"ndcg_at_20": next(values)}}

    monkeypatch.setattr(tuning, "_measure", measure)
    tried = [pruned.next_trial() for _ in range(3)]
    assert [one.quality for one in tried] == [0.5, 0.4, None]
    everybody = asked[1]
    assert 5 <= asked[0] < everybody / 2
    assert asked == [asked[0], everybody, asked[0], everybody, asked[0]]


def test_the_quarter_holds_all_that_its_people_did_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "LEAST_SAMPLED", 5)
    validation = validation_of(interactions())
    rungs = make_rungs(validation, item_count=ITEMS, seed=7)
    assert rungs.sampled is not None
    whole = validation.train.to_pandas()
    part = rungs.sampled.train.to_pandas()
    people = set(part["subject_key"])
    assert 0.1 < len(people) / whole["subject_key"].nunique() < 0.45
    expected = whole[whole["subject_key"].isin(people)]
    assert part.astype(str).values.tolist() == expected.astype(str).values.tolist()
    assert set(rungs.sampled.subjects) == people & set(validation.subjects)
    monkeypatch.setattr(tuning, "LEAST_SAMPLED", 1_000)
    assert make_rungs(validation, item_count=ITEMS, seed=7).sampled is None


def test_families_take_turns_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_measure", lambda *_: {"all": {"ndcg_at_20": 0.5}})
    studies = {name: study(tmp_path, name) for name in ("item_knn", "rp3beta")}
    clock = iter(range(100))
    run_studies(studies, spent=lambda: next(clock), budget_seconds=5)
    counts = {name: len(one.tried()) for name, one in studies.items()}
    assert set(counts) == {"item_knn", "rp3beta"}
    assert abs(counts["item_knn"] - counts["rp3beta"]) <= 1
    assert 4 <= sum(counts.values()) <= 8
    before = dict(counts)
    run_studies(studies, spent=lambda: 0.0, budget_seconds=5, most_trials=before["item_knn"])
    assert len(studies["item_knn"].tried()) == before["item_knn"]  # those of before count


def test_a_small_space_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "search_space", lambda _: {("params", "neighbours"): (50, 100)})
    few = study(tmp_path)
    run_studies({"item_knn": few}, spent=lambda: 0.0, budget_seconds=1.0, most_trials=30)
    assert {one.recipe["params"]["neighbours"] for one in few.tried()} == {50, 100}
    assert few.is_exhausted


@pytest.mark.parametrize(
    ("grid", "value", "expected"),
    [
        ((1, 2, 5), 2, (1, 2, 5)),
        ((1, 2, 5), 3, (1, 2, 3, 5)),
        ((1, 2, 5), 0.5, (0.5, 1, 2, 5)),
        ((1, 2, 5), 9, (1, 2, 5, 9)),
        ((None, 90.0, 30.0), 60.0, (None, 90.0, 60.0, 30.0)),
        ((None, 90.0, 30.0), 7.0, (None, 90.0, 30.0, 7.0)),
        ((None, 90.0, 30.0), 360.0, (None, 360.0, 90.0, 30.0)),
        (("log", "bm25"), "bm25", ("log", "bm25")),
    ],
)
def test_the_start_has_a_place_in_its_grid(grid: tuple, value: Any, expected: tuple) -> None:
    assert with_value(grid, value) == expected


def test_every_parameter_of_a_grid_is_one_of_the_model() -> None:
    assert len(GRIDS) >= 9
    for name in GRIDS:
        recipe = default_recipe(name)
        space = search_space(recipe)
        assert space, name
        assert {path[1] for path in space if path[0] == "params"} <= recipe["params"].keys(), name
        assert ("weights", "purchase") not in space  # the most valued keeps its weight
    assert ("weights", "view_item") in search_space(default_recipe("als"))
    assert ("half_life_days",) not in search_space(default_recipe("repurchase"))


class Runs:
    """What the search tells MLflow."""

    def __init__(self) -> None:
        self.run_id, self.logged, self.ended = "r1", [], None

    def __call__(self, *_: Any, **__: Any) -> Runs:
        return self

    def log_family(self, name: str) -> tuple[str, set[int]]:
        return f"run of {name}", set()

    def log_trial(self, run_id: str, family: str, *, number: int, pruned: bool, **_: Any) -> None:
        self.logged.append((run_id, family, number, pruned))

    def end(self, families: Any, *, files: Any) -> None:
        self.ended = (families, files)


def write_shop(environment: Environment) -> None:
    """The interactions above as the tables of an installation."""
    rows = interactions().to_pylist()
    write_rows(environment, "gold.item_ids", [{"item_id": f"i{n}", "item_number": n} for n in range(ITEMS)])
    kept = []
    for row in rows:
        at = from_micros(row["micros"])
        kept.append(
            {
                "subject_key": row["subject_key"], "item_id": f"i{row['item_number']}",
                "event_type": row["event_type"], "event_timestamp": at, "event_date": at.date(),
            }
        )  # fmt: skip
    write_rows(environment, "silver.interactions", kept)


@pytest.fixture
def shop(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> tuple[Environment, Runs]:
    write_shop(environment)
    runs = Runs()
    monkeypatch.setattr(tune_models, "TuningRuns", runs)
    return environment, runs


def test_a_search_finds_recipes_that_a_night_takes(shop: tuple[Environment, Runs]) -> None:
    environment, runs = shop
    words: list[str] = []
    search = Search(models=("item_knn", "als"), minutes=1, most_trials=3)
    found = tune_models.tune_models(environment, search, spent=lambda: 0.0, say=words.append)
    assert set(found.choice.recipes) == {"popularity", "item_knn", "als"}
    assert read_choice(found.choice.to_json()) == found.choice
    assert found.choice.origin["tuned_on"] == AS_OF.isoformat()
    for first, best in found.families.values():
        assert best.quality >= first.quality
    assert sorted({family for _, family, *_ in runs.logged}) == ["als", "item_knn", "popularity"]
    assert len(runs.logged) == 9
    # The test window is the last week, validation the one before: nothing of them is learned from.
    said = next(line for line in words if "validation persons over 7 days" in line)
    assert "interactions before 2024-03-15;" in said


def test_the_test_window_moves_nothing(shop: tuple[Environment, Runs]) -> None:
    """What happened in the last week, planted or not, is the gate's alone."""
    environment, _ = shop
    search = Search(models=("item_knn",), minutes=1, most_trials=2, as_of=AS_OF)
    before = tune_models.tune_models(environment, search, spent=lambda: 0.0)
    write_rows(environment, "silver.interactions", [
        {"subject_key": f"u:{n:03d}", "item_id": "i1", "event_type": "purchase",
         "event_timestamp": utc("2024-03-25"), "event_date": date(2024, 3, 25)}
        for n in range(120)
    ])  # fmt: skip
    after = tune_models.tune_models(environment, search, spent=lambda: 0.0)
    assert before.folder != after.folder  # other data, another search
    qualities = [[one.quality for one in found.trials["item_knn"]] for found in (before, after)]
    assert len(qualities[0]) == 2
    assert qualities[0] == qualities[1]


def test_what_cannot_be_tuned_is_said(shop: tuple[Environment, Runs]) -> None:
    environment, _ = shop
    for search, words in (
        (Search(minutes=0), "minutes is above 0"),
        (Search(models=("itemknn",)), "did you mean 'item_knn'"),
        (Search(as_of=date(2024, 2, 20), most_trials=1), "fewer than 20 persons can be asked"),
        (Search(as_of=date(2023, 1, 1)), "nothing before 2023-01-01"),
    ):
        with pytest.raises(DataError, match=words):
            tune_models.tune_models(environment, search, spent=lambda: 0.0)
