"""Trials and what is shown of a night: neighbours, the choice on validation, profile, examples, pictures, cards."""

from __future__ import annotations

import hashlib
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.times import to_micros
from spark_jobs.evaluation import trials
from spark_jobs.evaluation.data_profile import profile_interactions, profile_markdown
from spark_jobs.evaluation.examples import (
    choose_persons,
    describe_persons,
    examples_html,
    explain_examples,
    item_numbers,
    person_key,
    rank_examples,
)
from spark_jobs.evaluation.full_ranking import evaluate, ranking_of
from spark_jobs.evaluation.gate import BASELINE, Contestant, quality_intervals
from spark_jobs.evaluation.intervals import mean_interval
from spark_jobs.evaluation.metrics import CURVE_DEPTH, gini, lorenz
from spark_jobs.evaluation.model_card import model_card
from spark_jobs.evaluation.pictures import draw_pictures
from spark_jobs.evaluation.split import TimeSplit, split_by_time
from spark_jobs.evaluation.trials import choose_recipe, choose_recipes, some_people, validation_split
from spark_jobs.models import training_data
from spark_jobs.models.factory import fit, fit_recipe
from spark_jobs.models.matrix import sort_interactions
from spark_jobs.models.neighbourhood import FACTORS, neighbours
from spark_jobs.models.recipes import RECIPES, blend_recipe, default_recipe, recipe_id
from spark_jobs.models.threads import by_blocks
from spark_jobs.models.training_data import TrainingData
from tests.builders import utc

FIRST, CUT_OFF = utc("2024-03-01"), utc("2024-03-29")
ITEMS = 30


def planted() -> pa.Table:
    """60 users in three groups, each at the ten items of its group, 20 events in 28 days; one anonymous visitor."""
    rng = np.random.default_rng(3)
    rows = []
    for user in range(60):
        for _ in range(3 if user % 10 == 0 else 20):
            item = int(rng.integers(10)) * 3 + user % 3
            subject = f"u:{user:02d}" if user != 5 else "a:guest"
            moment = FIRST + timedelta(days=float(rng.random() * 28))
            rows.append((subject, item, "purchase" if rng.random() < 0.2 else "view_item", to_micros(moment)))
    return interactions(rows)


def interactions(rows: list[tuple[str, int, str, int]]) -> pa.Table:
    names = ("subject_key", "item_number", "event_type", "micros")
    return sort_interactions(pa.table({name: [row[n] for row in rows] for n, name in enumerate(names)}))


@pytest.fixture(scope="module")
def split() -> TimeSplit:
    return split_by_time(planted(), cut_off=CUT_OFF, item_count=ITEMS)


def test_a_large_shop_tries_recipes_on_some_of_its_people() -> None:
    names = [f"u:{n}" for n in range(200)]
    rows = [(name, item, "view_item", 1000 * item) for n, name in enumerate(names) for item in range(1 + n % 7)]
    columns = ("subject_key", "item_number", "event_type", "micros")
    events = sort_interactions(pa.table({c: [row[n] for row in rows] for n, c in enumerate(columns)}))
    assert some_people(events, len(rows)) is events

    few = some_people(events, 300).to_pydict()

    left, expected = 300, set()
    for name in sorted(names, key=lambda k: hashlib.blake2b(k.encode(), digest_size=8, salt=b"trials").digest()):
        left -= 1 + names.index(name) % 7
        if left < 0:
            break
        expected.add(name)
    assert 60 < len(expected) < 100
    assert set(few["subject_key"]) == expected
    assert len(few["subject_key"]) == sum(1 + names.index(name) % 7 for name in expected)  # nobody is cut
    grown = [*rows, *((f"u:new{n}", 0, "view_item", 5) for n in range(5))]
    again = some_people(sort_interactions(pa.table({c: [r[n] for r in grown] for n, c in enumerate(columns)})), 300)
    assert len(expected & set(again["subject_key"].to_pylist())) >= len(expected) - 10


def test_neighbours_are_near_distinct_and_the_same_every_time() -> None:
    assert set(FACTORS) == set(RECIPES)
    for name in RECIPES:
        recipe = default_recipe(name)
        found = neighbours(recipe, 6)
        assert len(found) == 6
        assert neighbours(recipe, 6) == found
        assert neighbours(recipe, 2) == found[:2]
        assert recipe == default_recipe(name), "the recipe itself is untouched"
        assert len({recipe_id(n.recipe) for n in found} | {recipe_id(recipe)}) == 7
        assert "," not in found[0].words
        assert found[0].recipe["weights"] == recipe["weights"]
    als = {n.words: n.recipe["params"] for n in neighbours(default_recipe("als"), 8)}
    assert als["factors 96"] == {**default_recipe("als")["params"], "factors": 96}
    assert isinstance(als["factors 96"]["factors"], int)


def test_what_has_no_size_has_no_neighbour() -> None:
    recipe = {**default_recipe("popularity"), "half_life_days": None}
    assert sorted(n.words for n in neighbours(recipe, 9)) == ["subject_cap 2", "subject_cap 32"]
    assert neighbours(default_recipe("als"), 0) == []


def test_validation_never_sees_the_test_window(split: TimeSplit) -> None:
    validation = validation_split(split, item_count=ITEMS, days=7)
    assert validation is not None
    assert (validation.test_start, validation.test_days) == (utc("2024-03-16"), 6), "a third of what there is"
    newest = max(validation.train["micros"].to_pylist())
    assert newest < to_micros(utc("2024-03-16")) < to_micros(split.test_start)
    # whatever happens in the test window, the validation part is the same
    rows = [row for row in planted().to_pylist() if row["micros"] < to_micros(split.test_start)]
    rows.append(
        {"subject_key": "u:01", "item_number": 2, "event_type": "purchase", "micros": to_micros(utc("2024-03-28"))}
    )
    other = split_by_time(sort_interactions(pa.Table.from_pylist(rows)), cut_off=CUT_OFF, item_count=ITEMS)
    again = validation_split(other, item_count=ITEMS, days=7)
    assert again is not None
    assert again.train.equals(validation.train)
    assert (again.relevant != validation.relevant).nnz == 0


def test_the_best_on_validation_enters_and_a_tie_keeps_the_default(
    split: TimeSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = validation_split(split, item_count=ITEMS, days=7)
    qualities = {"default": 0.2, "a": 0.3, "b": 0.3, "c": 0.1}

    def run_trial(words: str, recipe: object, *_: object) -> trials.Trial:
        return trials.Trial(words, {"name": words}, {"all": {"ndcg_at_20": qualities[words]}}, 0.0)

    monkeypatch.setattr(trials, "_run_trial", run_trial)
    monkeypatch.setattr(trials, "neighbours", lambda _, count: [trials_neighbour(w) for w in "abc"][:count])
    found = choose_recipe(default_recipe("als"), validation, item_count=ITEMS, count=3)
    assert (found.chosen, found.recipe) == (1, {"name": "a"})
    assert "a is best of 4 trials: validation NDCG@20 0.3000, the default 0.2000" in found.why
    qualities.update(a=0.2, b=0.2)
    found = choose_recipe(default_recipe("als"), validation, item_count=ITEMS, count=3)
    assert (found.chosen, found.recipe) == (0, {"name": "default"})


def test_trials_side_by_side_are_those_one_after_the_other(split: TimeSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {name: default_recipe(name) for name in ("popularity", "item_knn", "als", "sequential_rules")}
    recipes["als"]["params"].update(factors=4, iterations=3, regularization=2.0)
    validation = validation_split(split, item_count=ITEMS, days=7)
    assert validation is not None
    found = []
    for count in (1, 3):
        monkeypatch.setattr("spark_jobs.models.threads.thread_count", lambda count=count: count)
        found.append(choose_recipes(recipes, validation, item_count=ITEMS, count=2))
    alone, together = found
    assert list(together) == list(recipes)
    for name, choice in together.items():
        assert (choice.recipe, choice.chosen, choice.why) == (alone[name].recipe, alone[name].chosen, alone[name].why)
        assert [(t.words, t.metrics, t.steps) for t in choice.trials] == [
            (t.words, t.metrics, t.steps) for t in alone[name].trials
        ]
        assert [t.fitted is not None for t in choice.trials] == [n == choice.chosen for n in range(len(choice.trials))]
        one, other = (c[name].validated.fitted for c in found)
        people = np.arange(one.matrix.preference.shape[0])
        scores = [fitted.model.score_block(fitted.matrix.preference, people) for fitted in (one, other)]
        assert scores[0].tobytes() == scores[1].tobytes()
    assert [len(choice.trials) for choice in together.values()] == [3, 3, 3, 1]


def test_matrices_and_sequences_are_made_once_by_several_threads(
    split: TimeSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TrainingData(split.train, item_count=ITEMS, cut_off=split.test_start)
    made = []

    def slow(make: Any) -> Any:
        def making(*args: Any, **options: Any) -> Any:
            made.append(1)
            time.sleep(0.05)
            return make(*args, **options)

        return making

    monkeypatch.setattr(training_data, "build_matrix", slow(training_data.build_matrix))
    monkeypatch.setattr(training_data, "build_sequences", slow(training_data.build_sequences))
    recipe = default_recipe("popularity")
    found = list(by_blocks(lambda _: (data.matrix(recipe), data.sequences(recipe)), range(6), threads=6))
    assert len(made) == 2
    assert all(one[0] is found[0][0] for one in found)


def trials_neighbour(words: str):
    from spark_jobs.models.neighbourhood import Neighbour

    return Neighbour(words, {})


def test_nothing_is_tried_without_cause_or_persons(split: TimeSplit) -> None:
    recipe = default_recipe("als")
    validation = validation_split(split, item_count=ITEMS, days=7)
    for count, part, one in (
        (0, validation, recipe),
        (3, None, recipe),
        (3, validation, default_recipe("als", engine="mllib")),
    ):
        found = choose_recipe(one, part, item_count=ITEMS, count=count)
        assert (found.recipe, found.trials, found.chosen) == (one, (), None)
    few = split_by_time(
        interactions([("u:1", 1, "view_item", to_micros(FIRST))] * 2), cut_off=CUT_OFF, item_count=ITEMS
    )
    assert validation_split(few, item_count=ITEMS, days=7) is None


def test_als_tells_each_sweep_and_is_not_changed_by_it(split: TimeSplit) -> None:
    recipe = default_recipe("als")
    recipe["params"].update(factors=4, iterations=5, regularization=2.0)
    validation = validation_split(split, item_count=ITEMS, days=7)
    assert validation is not None
    found = choose_recipe(recipe, validation, item_count=ITEMS, count=1)
    steps = found.trials[0].steps
    assert [len(steps[name]) for name in ("training_loss", "validation_ndcg_at_20")] == [5, 5]
    assert steps["training_loss"][-1] < steps["training_loss"][0]
    assert all(0 <= value <= 1 for value in steps["validation_ndcg_at_20"])
    told: list[float] = []
    watched, _ = fit_recipe(
        recipe, split.train, item_count=ITEMS, cut_off=CUT_OFF, after_sweep=lambda _: lambda s: told.append(s.loss)
    )
    plain, _ = fit_recipe(recipe, split.train, item_count=ITEMS, cut_off=CUT_OFF)
    assert len(told) == 5
    assert watched.item_factors.tobytes() == plain.item_factors.tobytes()


def test_gini_and_lorenz_by_hand() -> None:
    known = np.array([True, True, True, True, False])
    assert gini(np.array([0, 0, 0, 8, 9]), known) == pytest.approx(0.75)  # all on one of four: 1 - 1/4
    assert gini(np.array([2, 2, 2, 2, 9]), known) == 0
    assert gini(np.array([3, 1, 0, 4, 9]), known) == pytest.approx((1 * -1 + 3 * 1 + 4 * 3) / (4 * 8))
    assert gini(np.zeros(5, np.int64), known) == 0
    assert lorenz(np.array([3, 1, 0, 4, 9]), known, points=4) == pytest.approx([0, 0, 1 / 8, 4 / 8, 1])
    assert lorenz(np.zeros(5, np.int64), known, points=2) == [0, 0.5, 1]


def test_recall_by_k_ends_where_the_metric_is(split: TimeSplit) -> None:
    model, matrix = fit_recipe(default_recipe("item_knn"), split.train, item_count=ITEMS, cut_off=split.test_start)
    found = evaluate(model, matrix, split)
    assert found.recall_by_k.shape == (CURVE_DEPTH,)
    assert found.recall_by_k[9] == pytest.approx(found.per_user["recall_at_10"].mean())
    assert found.recall_by_k[19] == pytest.approx(found.per_user["recall_at_20"].mean())
    assert (np.diff(found.recall_by_k) >= 0).all()


def test_the_profile_by_hand() -> None:
    day = to_micros(FIRST)
    hour = 3_600_000_000
    table = interactions(
        [("u:1", 0, "view_item", day), ("u:1", 0, "purchase", day + hour), ("u:1", 2, "view_item", day + 30 * hour),
         ("a:x", 0, "view_item", day + 2 * hour), ("u:2", 0, "view_item", day + 2 * hour)]
    )  # fmt: skip
    found = profile_interactions(table, item_count=4)
    assert (found["events"], found["subjects"], found["users"], found["items"], found["items_with_events"]) == (
        5,
        3,
        2,
        4,
        2,
    )
    assert (found["pairs"], found["density"]) == (4, pytest.approx(4 / 6))
    assert found["events_by_type"] == {"purchase": 1, "view_item": 4}
    assert found["events_by_day"] == {"2024-03-01": {"purchase": 1, "view_item": 3}, "2024-03-02": {"view_item": 1}}
    assert [r["subjects"] for r in found["history_length"]["ranges"]] == [2, 1, 0, 0, 0, 0, 0]
    assert (found["history_length"]["p50"], found["history_length"]["max"]) == (1, 3)
    assert found["head"] == {"0.01": 0.8, "0.1": 0.8, "0.2": 0.8}
    page = profile_markdown(found, as_of="2024-03-08")
    assert "| density | 66.667% (4 pairs of subject and item) |" in page
    assert "| view_item | 4 | 80.0% |" in page


def test_examples_show_titles_and_no_person(split: TimeSplit) -> None:
    persons = choose_persons(split)
    assert len(persons) == len(set(persons.tolist())) == 5
    assert {"<5", "5-20"} <= set(split.slices[persons])
    model, matrix = fit_recipe(default_recipe("item_knn"), split.train, item_count=ITEMS, cut_off=split.test_start)
    lists = rank_examples(ranking_of(model, matrix, split), persons)
    examples = [
        {**one, "lists": {"item_knn": lists[n]}} for n, one in enumerate(describe_persons(split, persons, tenant="t"))
    ]
    for place, one in zip(persons.tolist(), examples, strict=True):
        subject = str(split.subjects[place])
        assert one["key"] == person_key("t", subject) != person_key("other", subject)
        had = {h["item_number"] for h in one["history"]}
        assert not had & set(one["lists"]["item_knn"]), "what they had is not shown"
        assert set(one["later"]) == set(split.relevant[place].indices.tolist())
        days = [h["day"] for h in one["history"]]
        assert days == sorted(days, reverse=True)
    titles = {n: f"<Item & {n}>" for n in item_numbers(examples)}
    page = examples_html(examples, titles, as_of="2024-03-29")
    assert "&lt;Item &amp;" in page
    assert "<Item" not in page
    assert "u:" not in page
    assert page.count("<h2>Person") == 5
    assert "Nobody could be tested" in examples_html([], {}, as_of="2024-03-29")


def test_examples_say_which_past_items_and_which_parts_spoke(split: TimeSplit) -> None:
    persons = choose_persons(split)
    parts = {name: default_recipe(name) for name in ("item_knn", "popularity", "rp3beta")}
    weights = {"item_knn": 0.6, "popularity": 0.2, "rp3beta": 0.4}
    recipe = blend_recipe(parts, dict.fromkeys(("<5", "5-20", ">20"), weights))
    data = TrainingData(split.train, item_count=ITEMS, cut_off=split.test_start)
    blend, matrix = fit(recipe, data)
    lists = rank_examples(ranking_of(blend, matrix, split), persons)
    found = explain_examples(blend, matrix, split, persons, lists)
    assert [len(one) for one in found] == [len(numbers) for numbers in lists]
    mixed = 0
    for place, numbers, said in zip(persons.tolist(), lists, found, strict=True):
        row = int(np.flatnonzero(matrix.subjects == split.subjects[place])[0])
        history = matrix.preference[row]
        of_parts = {}
        for name, weight in weights.items():  # the slow way: each part fitted and scored alone, then standardized
            alone, own = fit(parts[name], data)
            own_row = int(np.flatnonzero(own.subjects == split.subjects[place])[0])
            scores = alone.score_block(own.preference[own_row], np.array([own_row]))[0].astype(np.float64)
            of_parts[name] = weight * (scores - scores.mean()) / scores.std()
        for number, why in zip(numbers, said, strict=True):
            speaking = {name: values[number] for name, values in of_parts.items() if values[number] > 0}
            shares = {name: value / sum(speaking.values()) for name, value in speaking.items()}
            assert why["shares"] == pytest.approx(shares, abs=1e-4)
            assert list(why["shares"].values()) == sorted(why["shares"].values(), reverse=True)
            assert set(why["reasons"]) <= set(history.indices.tolist())
            mixed += len(shares) > 1
    assert mixed > 5
    assert any(len(why["reasons"]) == 2 for said in found for why in said)
    single, own = fit(parts["item_knn"], data)
    (alone,) = explain_examples(single, own, split, persons[-1:], [[3, 5]])
    assert [why["shares"] for why in alone] == [{"item_knn": 1.0}] * 2

    person = describe_persons(split, persons[:1], tenant="t")[0]
    why = {"shares": {"item_knn": 0.75, "popularity": 0.25}, "reasons": [7, 8]}
    one = {**person, "lists": {"blend": [1], "popularity": [2]}, "why": {"blend": [why]}}
    assert {7, 8} <= set(item_numbers([one]))
    page = examples_html([one], {1: "Tea", 2: "Bag", 7: "Pot & lid", 8: "Cup"}, as_of="2024-03-29")
    assert "Tea<br><small>because of Pot &amp; lid and Cup; item_knn 75%, popularity 25%</small>" in page
    assert "<li>Bag</li>" in page


def test_intervals_of_all_contestants_are_those_of_each(split: TimeSplit) -> None:
    rng = np.random.default_rng(1)
    slices = np.array(["<5"] * 4 + [">20"] * 6)
    values = {"ndcg_at_20": rng.random(10), "recall_at_20": rng.random(10)}
    contestants = [
        Contestant(BASELINE, {}, values, 1, 0.1, 0),
        Contestant("als", {}, {k: v / 2 for k, v in values.items()}, 1, 0.1, 0),
    ]
    found = quality_intervals(contestants, slices)
    assert set(found["als"]) == {"all", "<5", ">20"}
    expected = mean_interval(values["ndcg_at_20"][:4])
    assert found[BASELINE]["<5"]["ndcg_at_20"] == {**expected._asdict(), "persons": 4}
    assert found["als"]["all"]["recall_at_20"]["upper"] == pytest.approx(
        found[BASELINE]["all"]["recall_at_20"]["upper"] / 2
    )


def evaluated(split: TimeSplit) -> tuple[dict[str, object], dict[str, object]]:
    """evaluation.json and gate.json of two models, as far as pictures and cards read them."""
    models, contestants = {}, []
    for name in ("popularity", "item_knn"):
        model, matrix = fit_recipe(default_recipe(name), split.train, item_count=ITEMS, cut_off=split.test_start)
        found = evaluate(model, matrix, split)
        models[name] = {
            "recipe": default_recipe(name), "metrics": found.by_slice(split.slices),
            "beyond_accuracy": found.beyond_accuracy(), "recall_by_k": found.recall_by_k.tolist(),
            "lorenz_at_20": found.lorenz(20), "manifest_sha256": "ab" * 32,
            "further_slices": {"region DE": {"recall_at_20": 0.125}},
        }  # fmt: skip
        contestants.append(Contestant(name, {}, found.per_user, 1, 0.1, 0))
    evaluation = {
        "as_of": "2024-03-29", "run_key": "r1", "models": models, "delta_versions": {"silver.interactions": 4},
        "profile": profile_interactions(planted(), item_count=ITEMS),
        "test": {"days": 7, "start": "2024-03-22T00:00:00Z", "note": "", "users": len(split.subjects),
                 "item_count": ITEMS, "known_items": ITEMS, "random_recall_at_20": 0.1,
                 "users_by_further_slice": {"region DE": 1_234}},
    }  # fmt: skip
    gate = {
        "contestant": "item_knn", "verdict": "publish", "intervals": quality_intervals(contestants, split.slices),
    }  # fmt: skip
    return evaluation, gate


def test_pictures_of_a_night_and_of_one_without_test_persons(split: TimeSplit, tmp_path: Path) -> None:
    from matplotlib import image

    evaluation, gate = evaluated(split)
    drawn = draw_pictures(tmp_path / "a", evaluation, gate["intervals"])
    names = {path.stem for path in drawn}
    assert names == {
        "data_profile", "model_comparison", "slices", "recall_by_k", "popularity_concentration", "coverage",
    }  # fmt: skip
    for path in drawn:
        pixels = image.imread(path)[:, :, :3]
        assert min(pixels.shape[:2]) >= 300
        assert (pixels < 0.5).any(axis=2).mean() > 0.003, f"{path.name} is all but empty"
    evaluation["test"] = {**evaluation["test"], "users": 0}
    assert [p.stem for p in draw_pictures(tmp_path / "c", evaluation, {})] == ["data_profile"]


def test_a_model_card_says_quality_data_consent_limits_and_pins(split: TimeSplit) -> None:
    evaluation, gate = evaluated(split)
    card = model_card("item_knn", evaluation, gate, code_version="abc1234", pins={"bronze.events": 7}, tenant="default")
    everybody = gate["intervals"]["item_knn"]["all"]["ndcg_at_20"]
    for words in (
        "# item_knn, as_of 2024-03-29", "| region DE | 1,234 | 0.1250 |", "published: a personal model won",
        f"{everybody['mean']:.4f} ({everybody['lower']:.4f} to {everybody['upper']:.4f})", "**Consent.**",
        "deny `train`",
        "## Meant for", "## Limits", "| code | `abc1234` |", "| bronze.events | Delta version 7 |",
        "| silver.interactions | Delta version 4 |", "| neighbours | 100 |",
    ):  # fmt: skip
        assert words in card, words
    assert "not taken tonight" in model_card(
        "popularity", evaluation, gate, code_version="x", pins={}, tenant="default"
    )
    untested = {**gate, "intervals": {"item_knn": {}}}
    assert "Nobody could be tested" in model_card(
        "item_knn", evaluation, untested, code_version="x", pins={}, tenant="default"
    )
