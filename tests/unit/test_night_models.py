"""What a night trains and how its blend is chosen, without Spark; the bench's shipped choice gives the same lists."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse
from typer.testing import CliRunner

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.times import to_micros
from infra.bench.quality.formats import read_events
from infra.bench.quality.quality_bench import Sources, bench_quality
from infra.bench.quality.ranking import Part
from infra.bench.quality.tasks import open_training
from infra.bench.quality.tuning import Budget
from infra.cli.main import build_app
from spark_jobs.evaluation import blend_choice
from spark_jobs.evaluation.blend_choice import choose_blend
from spark_jobs.evaluation.blending import Pool, join_pools, pool_block, pool_hits, search_weights, weighted_scores
from spark_jobs.evaluation.full_ranking import rank_unseen
from spark_jobs.evaluation.list_quality import ListQuality, category_numbers
from spark_jobs.evaluation.split import TimeSplit, split_by_time
from spark_jobs.evaluation.trials import Choice, Trial, choose_recipe, validation_data, validation_split
from spark_jobs.jobs.pin_run import with_recipes
from spark_jobs.models.blend import blend, standardize
from spark_jobs.models.blend_model import Blend
from spark_jobs.models.factory import Fitted, fit_recipe
from spark_jobs.models.item_content import Described, build_content
from spark_jobs.models.matrix import histories_of, matrix_rows, sort_interactions
from spark_jobs.models.night_models import (
    NIGHT_MODELS,
    Sizes,
    check_models,
    measure_sizes,
    plan_models,
    spectral_factors,
)
from spark_jobs.models.recipe_choice import read_choice_file
from spark_jobs.models.recipes import default_recipe
from tests.builders import utc

FIRST, CUT_OFF = utc("2024-03-01"), utc("2024-04-05")
ITEMS, GROUPS = 60, 4
SLICES = ("<5", "5-20", ">20")


def planted(*, users: int = 160) -> pa.Table:
    """Each user at the items of one of four groups; half of the users go through them in a fixed order."""
    rng = np.random.default_rng(3)
    dealt = rng.permutation(ITEMS)
    rows = []
    for user in range(users):
        days = np.sort(rng.random((6, 14, 40)[user % 3]) * 35)
        start = int(rng.integers(15))
        for step, day in enumerate(days):
            place = (start + step) % 15 if user % 2 else int(rng.integers(15))
            item = place * GROUPS + user % GROUPS if rng.random() < 0.9 else int(rng.integers(ITEMS))
            rows.append((f"u:{user:03d}", int(dealt[item]), "view_item", to_micros(FIRST + timedelta(days=float(day)))))
    names = ("subject_key", "item_number", "event_type", "micros")
    return sort_interactions(pa.table({name: [row[n] for row in rows] for n, name in enumerate(names)}))


@pytest.fixture(scope="module")
def split() -> TimeSplit:
    return split_by_time(planted(), cut_off=CUT_OFF, item_count=ITEMS)


# --- the plan -----------------------------------------------------------------------------------------------------


def test_a_small_shop_trains_everything_and_a_large_one_what_it_can_afford() -> None:
    small = plan_models((), Sizes(40_000, 2_000, 1_500, 30_000, 900, 40_000, 2))
    assert [*small.recipes, "blend", "ranker"] == list(NIGHT_MODELS)
    assert small.may_rank
    assert (small.may_blend, small.blend, small.notes) == (True, None, [])
    assert small.recipes["graph_filter"]["params"]["factors"] == 128
    large = plan_models((), Sizes(10_000_000, 100_000, 20_000, 8_000_000, 20_000, 4_000_000_001, 1))
    assert list(large.recipes) == ["popularity", "item_knn", "als", "rp3beta"]
    assert [note.split()[0] for note in large.notes] == [
        "ease", "graph_filter", "sequential_rules", "trending", "content", "ranker", "segment_popularity",
    ]  # fmt: skip
    again = plan_models((), Sizes(40_000, 2_000, 1_500, 30_000, 900, 40_000, 2), has_repeats=True)
    assert set(again.recipes) - set(small.recipes) == {"repurchase"}
    assert (again.may_blend, again.may_rank) == (True, False)
    assert again.notes == ["ranker orders what is new to a person, and lists may repeat"]


def test_who_names_models_gets_them_and_the_baseline() -> None:
    named = plan_models(("ease", "session_knn", "als"), Sizes(9, 9, 19_000, 9), als_engine="mllib")
    assert list(named.recipes) == ["popularity", "ease", "session_knn", "als"]
    assert (named.may_blend, named.may_rank) == (False, False)
    assert plan_models(("als", "ranker"), Sizes(9, 9, 9, 9)).may_rank
    assert named.recipes["als"]["params"]["engine"] == "mllib"
    assert named.recipes["session_knn"]["params"]["recency"] == 0.0
    with pytest.raises(DataError, match="did you mean 'rp3beta'"):
        plan_models(("rp3bet",), Sizes(9, 9, 9, 9))
    check_models(("ease", "blend", "repurchase"))
    with pytest.raises(DataError, match=r"no model 'alss'.*did you mean 'als'"):
        check_models(("blend", "alss"))


@pytest.mark.parametrize(("side", "factors"), [(40, 16), (300, 32), (1_100, 128), (1_023, 64), (90_000, 256)])
def test_a_graph_filters_low_pass_is_an_eighth_of_the_matrix(side: int, factors: int) -> None:
    assert spectral_factors(Sizes(1, side, 100_000, 1)) == spectral_factors(Sizes(1, 100_000, side, 1)) == factors


def test_sizes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("u:a", 1), ("u:a", 1), ("u:a", 2), ("a:b", 2)]
    table = sort_interactions(pa.table({
        "subject_key": [r[0] for r in rows], "item_number": [r[1] for r in rows], "event_type": ["view_item"] * 4,
        "micros": [1, 2, 3, 4],
    }))  # fmt: skip
    assert measure_sizes(table, item_count=5) == Sizes(4, 2, 5, 3)
    said = build_content(
        {
            1: Described([("text", "red"), ("tags", "old"), ("category", "a"), ("category", "a > b")], [1.0, 0.0]),
            2: Described([("text", "red"), ("text", "red"), ("category", "b")]),
            4: Described([]),
        },
        item_count=5,
    )
    assert measure_sizes(table, item_count=5, content=said) == Sizes(4, 2, 5, 3, 2, 2 * 2 + 4 + 5 * 5 * 2, 2)
    monkeypatch.setattr("spark_jobs.models.content.COMMON_COUNT", 1)  # red is said of two: too common
    assert measure_sizes(table, item_count=5, content=said).meetings == 4 + 5 * 5 * 2


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        (Sizes(9, 9, 50, 9, 19, 1), "content wants 20 described items, there are 19"),
        (Sizes(9, 9, 30_001, 9, 20, 1), "content is for up to 30,000 items, there are 30,001"),
        (Sizes(9, 9, 50, 9, 20, 5_000_000_000), "content would add up 5,000,000,000 meetings"),
        (Sizes(9, 9, 30_000, 9, 20, 4_000_000_000), None),
    ],
)
def test_content_takes_part_where_the_catalogue_says_something(sizes: Sizes, why: str | None) -> None:
    program = plan_models((), sizes)
    assert ("content" in program.recipes) == (why is None)
    assert [note.startswith(why or "") for note in program.notes if "content" in note] == [True] * (why is not None)


# --- the search ---------------------------------------------------------------------------------------------------


def test_a_pool_holds_the_best_of_every_part_and_nothing_that_is_seen() -> None:
    one = np.array([[9, 8, 7, 0, 0]], np.float32)
    two = np.array([[0, 0, 0, 6, 9]], np.float32)
    seen = sparse.csr_matrix(np.array([[1, 0, 0, 0, 0]], np.float32))
    relevant = sparse.csr_matrix(np.array([[0, 0, 1, 0, 1]], np.float32))
    pool = pool_block([one, two], relevant, np.array([3]), seen=seen, depth=2)
    assert pool.values[0].tolist() == [[8, 0], [7, 0], [0, 6], [0, 9]]
    assert pool.is_right.tolist() == [[False, True, False, True]]
    assert pool_hits(pool, weighted_scores(pool, np.array([1.0, 0.0])), 2).tolist() == [[False, True]]
    assert pool_hits(pool, weighted_scores(pool, np.array([0.0, 1.0])), 2).tolist() == [[True, False]]
    wide = join_pools([pool, Pool(pool.values[:, :3], pool.is_right[:, :3], pool.counts)])
    assert wide.values.shape == (2, 4, 2)
    assert not np.isfinite(wide.values[1, 3]).any()


def test_the_search_finds_a_planted_optimum_and_keeps_popularity() -> None:
    names = ["als", "item_knn", "popularity"]

    def target(weights: np.ndarray) -> float:
        return 2.0 - abs(weights[0] - 0.7) - abs(weights[1] - 0.35) - abs(weights[2])

    found, best = search_weights(names, np.array([1.0, 0.0, 0.0]), target, grid=blend_choice.GRID)
    assert found.tolist() == [0.7, 0.35, 0.001]
    assert best == pytest.approx(1.999)


def tried(name: str, split: TimeSplit, validation: TimeSplit) -> Choice:
    recipe = default_recipe(name)
    recipe["params"].update(
        {"als": {"factors": 8, "regularization": 2.0}, "graph_filter": {"factors": 16}}.get(name, {})
    )
    return choose_recipe(
        recipe,
        validation,
        item_count=ITEMS,
        count=0,
        is_wanted=True,
        data=validation_data(validation, item_count=ITEMS),
    )


def test_the_nights_blend_is_chosen_on_validation_and_is_better_there(split: TimeSplit) -> None:
    validation = validation_split(split, item_count=ITEMS, days=7)
    assert validation is not None
    choices = {name: tried(name, split, validation) for name in ("popularity", "item_knn", "als", "sequential_rules")}
    assert all(choice.validated is not None and choice.validated.fitted is not None for choice in choices.values())
    found = choose_blend(choices, validation)
    assert found.validated is not None
    assert found.validated.quality > max(c.validated.quality for c in choices.values() if c.validated)
    assert found.recipe["model"] == "blend"
    assert {"als", "sequential_rules"} & set(found.recipe["params"]["parts"])
    assert "is best of" in found.why
    assert found.trials[0].words == "weighted"
    assert any(t.words.startswith("cascade") for t in found.trials)
    again = choose_blend(choices, validation)
    assert (again.recipe, again.why) == (found.recipe, found.why)
    # The model itself reaches on the validation persons what the pool promised.
    model, matrix = fit_recipe(found.recipe, validation.train, item_count=ITEMS, cut_off=validation.test_start)
    from spark_jobs.evaluation.full_ranking import evaluate

    assert evaluate(model, matrix, validation).per_user["ndcg_at_20"].mean() == pytest.approx(
        found.validated.quality, abs=1e-6
    )
    # Whatever happens in the test window, the choice is the same: it is not an argument.


def test_slices_switch_only_where_it_is_no_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two planted experts: one right for people with few events, one for all others; each is wrong elsewhere."""
    rng = np.random.default_rng(2)
    persons, items = 300, 40
    slices = np.array([SLICES[n % 3] for n in range(persons)])
    right = rng.integers(0, items, persons)
    relevant = sparse.csr_matrix((np.ones(persons, np.float32), (np.arange(persons), right)), shape=(persons, items))

    class Expert:
        def __init__(self, of: set[str]) -> None:
            self.of = of

        def score_block(self, _: Any, rows: np.ndarray) -> np.ndarray:
            scores = np.random.default_rng(len(self.of)).random((persons, items)).astype(np.float32)
            for row in range(persons):
                said = right[row] if slices[row] in self.of else (right[row] + 1) % items
                scores[row, said] = 5.0
            return scores[rows]

    subjects = np.array([f"u:{n:03d}" for n in range(persons)])
    validation = TimeSplit(
        CUT_OFF, 7, "", pa.table({}), subjects, np.array([(3, 9, 30)[n % 3] for n in range(persons)]),
        sparse.csr_matrix((persons, items), dtype=np.float32), relevant, np.ones(items, bool),
    )  # fmt: skip
    from spark_jobs.models.base import InteractionMatrix

    matrix = InteractionMatrix(subjects, sparse.csr_matrix((persons, items), dtype=np.float32), np.zeros(0, np.int64))

    def choice(name: str, of: set[str]) -> Choice:
        recipe = default_recipe(name)
        trial = Trial("default", recipe, {"all": {"ndcg_at_20": 0.5}}, 0.0, {}, Fitted(Expert(of), matrix))  # type: ignore[arg-type]
        return Choice(recipe, [trial], 0, "")

    found = choose_blend({"als": choice("als", {"<5"}), "ease": choice("ease", {"5-20", ">20"})}, validation)
    assert found.recipe["params"]["mode"] in ("weighted", "switching")
    weights = found.recipe["params"]["weights"]
    assert weights["<5"].get("als", 0) > weights["<5"].get("ease", 0)
    assert weights[">20"].get("ease", 0) > weights[">20"].get("als", 0)
    alike = choose_blend({"als": choice("als", set(SLICES)), "ease": choice("ease", set(SLICES))}, validation)
    assert alike.recipe == {} or alike.recipe["params"]["weights"]["<5"] == alike.recipe["params"]["weights"][">20"]
    nobody = choose_blend({"als": choice("als", set())}, validation)
    assert (nobody.recipe, nobody.chosen) == ({}, None)


# --- lists --------------------------------------------------------------------------------------------------------


def test_lists_measured_by_hand() -> None:
    """Three people; item 0 is everybody's, 1 and 2 are had together by two, 3 by one."""
    rows = [("u:a", 0), ("u:a", 1), ("u:a", 2), ("u:b", 0), ("u:b", 1), ("u:b", 2), ("u:c", 0), ("u:c", 3)]
    train = sort_interactions(pa.table({
        "subject_key": [r[0] for r in rows], "item_number": [r[1] for r in rows], "event_type": ["view_item"] * 8,
        "micros": list(range(8)),
    }))  # fmt: skip
    seen = sparse.csr_matrix(np.array([[1, 1, 1, 0, 0], [1, 0, 0, 1, 0]], np.float32))
    relevant = sparse.csr_matrix(np.array([[0, 0, 0, 1, 0], [0, 1, 0, 0, 0]], np.float32))
    split = TimeSplit(
        CUT_OFF, 7, "", train, np.array(["u:a", "u:c"]), np.array([3, 2]), seen, relevant,
        np.array([True, True, True, True, False]),
    )  # fmt: skip
    lists = np.full((2, 20), -1, np.int32)
    lists[0, :1] = [3]
    lists[1, :2] = [1, 2]
    found = ListQuality(split, categories=category_numbers(["A > x", "A", "B", None, "B"])).measure(lists)
    assert found["novelty_at_20"] == pytest.approx((np.log2(3) + np.log2(1.5)) / 2)
    assert found["serendipity_at_20"] == 0.0, "popularity alone has all of them in its twenty"
    assert found["diversity_at_20"] == pytest.approx(0.0, abs=1e-6), "items 1 and 2 are always had together"
    # a: history A A B, list without a category; c: history A (3 has none), list A B.
    first = 2 / 3 * np.log2(1 / 0.01) + 1 / 3 * np.log2(1 / 0.01)
    second = np.log2(1 / (0.99 * 0.5 + 0.01))
    assert found["miscalibration_at_20"] == pytest.approx((first + second) / 2)
    assert "miscalibration_at_20" not in ListQuality(split).measure(lists)
    apart = lists.copy()
    apart[1, :2] = [1, 4]
    assert ListQuality(split).measure(apart)["diversity_at_20"] == pytest.approx(0.5)


def test_what_may_be_recommended_decides_what_is_asked() -> None:
    rows = [
        ("u:a", 0, "view_item", "2024-03-02"),
        ("u:a", 1, "purchase", "2024-03-03"),
        ("u:b", 2, "view_item", "2024-03-04"),
        ("u:a", 0, "purchase", "2024-04-01"),
        ("u:a", 1, "purchase", "2024-04-01"),
        ("u:a", 2, "view_item", "2024-04-01"),
    ]
    names = ("subject_key", "item_number", "event_type", "micros")
    table = sort_interactions(
        pa.table({n: [to_micros(utc(r[k])) if n == "micros" else r[k] for r in rows] for k, n in enumerate(names)})
    )
    asked = {}
    for policy in ("interacted", "purchased", "none"):
        found = split_by_time(table, cut_off=CUT_OFF, item_count=3, exclude_seen=policy)
        asked[policy] = (found.seen.indices.tolist(), found.relevant.indices.tolist())
    assert asked == {"interacted": ([0, 1], [2]), "purchased": ([1], [0, 2]), "none": ([], [0, 1, 2])}


# --- the bench's choice in the night ------------------------------------------------------------------------------


def events_csv(users: int = 60) -> str:
    rng = np.random.default_rng(2)
    rows = ["user,item,event,time"]
    for user in range(users):
        for _ in range(12):
            item = user % GROUPS * 10 + rng.integers(0, 10)
            kind = "buy" if rng.random() < 0.4 else "view"
            rows.append(f"u{user},i{item},{kind},{1_700_000_000 + int(rng.integers(0, 9_000_000))}")
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("repeats", ["new-only", "allowed"])
def test_a_night_with_the_shipped_choice_gives_the_lists_of_the_bench(repeats: str, tmp_path: Path) -> None:
    """bench -> shipped file -> `nightjar recipes apply` -> the night's own fit on the same events: the same top 20."""
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text(events_csv())
    test.write_text("user,item,event\n" + "".join(f"u{n},i{n % GROUPS * 10 + 1},buy\n" for n in range(60)))
    shipped_file = tmp_path / "out.shipped.json"
    bench_quality(
        "events", Sources(train, test), k=5, budget=Budget(60.0, trials=8), shipped_file=shipped_file, repeats=repeats
    )
    shipped = json.loads(shipped_file.read_text())
    if shipped["shipped"] != "blend":  # so few trials may find one model enough; then the blend is asked for
        best = shipped["shipped"]
        shipped |= {
            "shipped": "blend",
            "weights": {best: 1.0, "item_knn": 0.25, "sequential_rules": 0.4, "popularity": 0.001},
        }
        shipped_file.write_text(json.dumps(shipped))
    home = tmp_path / "home"
    applied = CliRunner().invoke(build_app(), ["recipes", "apply", str(shipped_file)], env={"NIGHTJAR_HOME": str(home)})
    assert applied.exit_code == 0, applied.output
    params = with_recipes(Environment.from_mapping({"NIGHTJAR_HOME": str(home)}), {"trials": 3})
    assert params["trials"] == 3
    from spark_jobs.models.recipe_choice import read_choice

    program = plan_models((), Sizes(1, 1, 1, 1), choice=read_choice(params["recipes"]))
    assert program.blend is not None

    task = open_training("events", train=train, test=test, repeats=repeats)
    training = task.training
    weights = {name: weight for name, weight in shipped["weights"].items() if weight}
    parts = {name: Part(shipped["recipes"][name], training) for name in sorted(weights)}
    questions = task.validations[0].questions
    everybody = type(questions)(np.arange(len(training.user_names)))
    scores = blend([(weights[name], parts[name].scores(everybody)) for name in sorted(weights)])

    events = read_events(train, "--train")
    assert events.micros is not None
    assert events.event is not None
    numbers = {str(name): number for number, name in enumerate(training.item_names)}
    interactions = {
        "subject_key": [f"u:{user}" for user in events.user],
        "item_number": [numbers[item] for item in events.item],
        "event_type": [{"view": "view_item", "buy": "purchase"}[kind] for kind in events.event],
        "micros": events.micros.tolist(),
    }
    micros = training.cut_off  # ages are counted from here
    cut_off = datetime.fromtimestamp(micros // 1_000_000, tz=UTC) + timedelta(microseconds=micros % 1_000_000)
    model, matrix = fit_recipe(program.blend, pa.table(interactions), item_count=training.item_count, cut_off=cut_off)
    assert isinstance(model, Blend)
    rows = matrix_rows(matrix, training.subjects)
    assert (rows >= 0).all()
    nothing = sparse.csr_matrix((len(rows), training.item_count), dtype=np.float32)
    seen = nothing if repeats == "allowed" else matrix.preference[rows]
    theirs = rank_unseen(scores, seen, 20)
    ours = rank_unseen(model.score_block(histories_of(matrix, rows), rows), seen, 20)
    np.testing.assert_array_equal(ours, theirs)
    assert (ours >= 0).sum() == 60 * 20


def test_applied_recipes_come_and_go(tmp_path: Path) -> None:
    environment = Environment.from_mapping({"NIGHTJAR_HOME": str(tmp_path / "home")})
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"format": 1, "recipes": {"als": {"params": {"alpha": 9.0}}}}))

    def nightjar(*words: str) -> Any:
        found = CliRunner().invoke(build_app(), ["recipes", *words], env={"NIGHTJAR_HOME": environment.home})
        assert found.exit_code == 0, found.output
        return found.output

    assert "defaults" in nightjar("show")
    assert with_recipes(environment, {"test_days": 3}) == {"test_days": 3}
    nightjar("apply", str(file), "--dry-run")
    assert not Path(environment.recipes).exists()
    assert json.loads(nightjar("apply", str(file), "--json"))["changed"]
    assert not json.loads(nightjar("apply", str(file), "--json"))["changed"]
    assert "als" in nightjar("show")
    pinned = with_recipes(environment, {"test_days": 3})
    assert pinned["recipes"]["recipes"]["als"]["params"]["alpha"] == 9.0
    assert with_recipes(environment, {"recipes": "default"}) == {}
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"format": 1, "recipes": {"als": {"params": {"alpha": 1.0}}}, "blend": "none"}))
    assert with_recipes(environment, {"recipes": str(other)})["recipes"]["blend"] == "none"
    assert read_choice_file(other).may_blend is False
    nightjar("reset")
    assert with_recipes(environment, {}) == {}
    lines = (Path(environment.home) / "audit" / "default.jsonl").read_text().splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["apply_recipes", "reset_recipes"]
    file.write_text(json.dumps({"format": 1, "recipes": {"alss": {"params": {}}}}))
    with pytest.raises(DataError, match="did you mean"):
        with_recipes(environment, {"recipes": str(file)})


def test_standardising_is_what_the_bench_does() -> None:
    scores = np.random.default_rng(1).random((5, 9)).astype(np.float32)
    np.testing.assert_array_equal(blend([(0.5, scores.copy())]), standardize(scores.copy()) * np.float32(0.5))
