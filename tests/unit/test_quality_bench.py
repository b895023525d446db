"""The quality bench as a whole on a planted shop: what it writes when, what may not leak, and that it repeats."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from feature_repo.contracts.errors import DataError
from infra.bench.quality import blending, quality_bench, tuning
from infra.bench.quality.blend_weights import BlendWeights
from infra.bench.quality.formats import read_events
from infra.bench.quality.quality_bench import Sources, bench_quality
from infra.bench.quality.ranking import Part, evaluate, evaluate_all
from infra.bench.quality.spaces import families
from infra.bench.quality.tasks import SEED, Task, open_test, open_training, sample
from infra.bench.quality.tuning import Budget, run_trial, tune
from infra.cli.main import build_app
from spark_jobs.evaluation.blending import Pool
from spark_jobs.evaluation.full_ranking import rank_unseen
from spark_jobs.models.factory import fit_recipe
from spark_jobs.models.matrix import histories_of, matrix_rows
from spark_jobs.models.recipes import default_recipe
from spark_jobs.models.search_spaces import changed, value_at

GROUPS = 4
GROUP_SIZE = 8


def write_pairs(folder: Path, *, users: int = 60, seed: int = 1) -> tuple[Path, Path]:
    """Everybody likes one group of items; the test has two more of that group."""
    rng = np.random.default_rng(seed)
    train, test = [], []
    for user in range(users):
        liked = user % GROUPS * GROUP_SIZE + rng.permutation(GROUP_SIZE)
        noise = rng.integers(0, GROUPS * GROUP_SIZE)
        train.append(f"u{user} " + " ".join(f"i{item}" for item in {*liked[:5].tolist(), int(noise)}))
        test.append(f"u{user} " + " ".join(f"i{item}" for item in liked[5:7]))
    paths = folder / "train.txt", folder / "test.txt"
    for path, lines in zip(paths, (train, test), strict=True):
        path.write_text("\n".join(lines) + "\n")
    return paths


def run(
    folder: Path, train: Path, test: Path, *, protocol: str = "pairs", trials: int = 9, **other: Any
) -> dict[str, Any]:
    return bench_quality(
        protocol, Sources(train, test), k=other.pop("k", 3), budget=Budget(60.0, trials=trials),
        shipped_file=folder / "out.shipped.json", **other,
    )  # fmt: skip


def test_pairs_from_files_to_report(tmp_path: Path) -> None:
    train, test = write_pairs(tmp_path)
    report = run(tmp_path, train, test)
    assert report.keys() >= {"name", "code_version", "machine", "figures", "models", "shipped", "seconds", "peak_mb"}
    assert report["models"].keys() >= {"popularity", "item_knn", "ials", "graph_filter", "rp3beta", "ease", "blend"}
    assert all(found.keys() == {"recall@3", "ndcg@3", "hr@3", "mrr@3"} for found in report["models"].values())
    best = report["models"][report["shipped"]]
    assert best["recall@3"] > 0.6 > 2 * report["models"]["popularity"]["recall@3"]
    assert report["figures"]["ndcg@3"]["median"] == best["ndcg@3"]
    assert report["figures"]["ndcg@3"]["baseline"] == report["models"]["popularity"]["ndcg@3"]
    assert report["seconds"] > 0
    assert report["peak_mb"] > 50
    assert report["questions"] == 60
    json.dumps(report)
    shipped = json.loads((tmp_path / "out.shipped.json").read_text())
    assert shipped["shipped"] == report["shipped"]
    assert shipped["recipes"].keys() == report["recipes"].keys()
    again = run(tmp_path, train, test)
    for key in ("models", "shipped", "recipes", "weights", "validation"):
        assert again[key] == report[key], key


def test_the_test_file_moves_nothing_that_is_shipped(tmp_path: Path) -> None:
    """Whatever the test says, and if it is not there, the choice is the same; it is on disk before the opening."""
    train, test = write_pairs(tmp_path)
    shipped = tmp_path / "out.shipped.json"
    run(tmp_path, train, test, trials=3)
    first = shipped.read_bytes()
    test.write_text("u0 i31 i30\nu1 i1\n")
    run(tmp_path, train, test, trials=3)
    assert shipped.read_bytes() == first
    shipped.unlink()
    test.unlink()
    with pytest.raises(DataError, match=r"--test .*test\.txt: there is no such file"):
        run(tmp_path, train, test, trials=3)
    assert shipped.read_bytes() == first


def test_the_test_is_opened_once_and_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = write_pairs(tmp_path)
    opened = []

    def seen(task: Any) -> Any:
        opened.append((tmp_path / "out.shipped.json").is_file())
        return open_test(task)

    monkeypatch.setattr(quality_bench.tasks, "open_test", seen)
    monkeypatch.setattr(blending, "BLEND_GRID", (0.0, 1.0))
    run(tmp_path, train, test, trials=2)
    assert opened == [True]


def test_a_planted_last_item_moves_no_model(tmp_path: Path) -> None:
    """The last items of the sequences are the test: with others in their place, everything learned is the same."""
    lines = [f"u{n} " + " ".join(f"i{(n + step) % 9}" for step in range(5)) for n in range(30)]
    data = tmp_path / "data.txt"
    found = []
    for planted in ("", "i3", "i777"):
        data.write_text("\n".join(f"{line} {planted or f'i{n % 9}'}" for n, line in enumerate(lines)) + "\n")
        task = open_training("sequences", train=data, test=data)
        trials = [run_trial(family.start, task, 3)[0] for family in families(task, 600.0)]
        names = [family.name for family in families(task, 600.0)]
        assert "sequential_rules" in names
        assert "session_knn" in names
        found.append((names, [(trial.target, trial.metrics) for trial in trials], task.training.item_names.tolist()))
    assert found[0] == found[1] == found[2]
    assert max(target for target, _ in found[0][1]) > 0.9, "the order was planted"


def events_csv(seed: int = 2) -> str:
    rng = np.random.default_rng(seed)
    rows = ["user,item,event,time"]
    for user in range(40):
        for _ in range(12):
            item = user % GROUPS * GROUP_SIZE + rng.integers(0, GROUP_SIZE)
            kind = "buy" if rng.random() < 0.4 else "view"
            rows.append(f"u{user},i{item},{kind},{1_700_000_000 + int(rng.integers(0, 9_000_000))}")
    return "\n".join(rows) + "\n"


def test_the_kernels_are_those_of_the_night(tmp_path: Path) -> None:
    """The same events as the night's interactions, by the night's own `fit_recipe`: the same lists."""
    train = tmp_path / "train.csv"
    train.write_text(events_csv())
    task = open_training("events", train=train, test=tmp_path / "none")
    training = task.training
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
    cut_off = datetime.fromtimestamp(training.cut_off // 1_000_000 + 1, tz=UTC)
    compared = 0
    for name in ("popularity", "item_knn", "rp3beta", "graph_filter", "ease", "ials"):
        recipe = default_recipe(name)
        recipe["half_life_days"] = None
        model, matrix = fit_recipe(recipe, pa.table(interactions), item_count=training.item_count, cut_off=cut_off)
        part = Part(recipe, training)
        whole = open_training("events", train=train, test=train).validations[1]._replace(training=training)
        rows = matrix_rows(matrix, training.subjects[whole.questions.users])
        theirs = rank_unseen(model.score_block(histories_of(matrix, rows), rows), matrix.preference[rows], 20)
        ours = rank_unseen(part.scores(whole.questions), matrix.preference[rows], 20)
        np.testing.assert_array_equal(ours, theirs)
        compared += len(rows)
    assert compared > 100


def widths(task: Task, cells: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, list[int]]]:
    """By model with vectors: the width that its search starts at, and those it may try."""
    monkeypatch.setattr("infra.bench.quality.spaces.FACTOR_CELLS", cells)
    space = {family.name: family for family in families(task, 60.0)}
    return {
        name: (space[name].start["params"]["factors"], list(space[name].grids["params", "factors"]))
        for name in ("ials", "graph_filter")
        if name in space
    }


def test_vectors_are_as_wide_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 users and 32 items make 92 rows."""
    train, test = write_pairs(tmp_path)
    task = open_training("pairs", train=train, test=test)
    ials, graph = (64, [16, 32, 64, 128, 192]), (256, [32, 64, 128, 256, 512])
    assert widths(task, 92 * 512, monkeypatch) == {"ials": ials, "graph_filter": graph}
    assert widths(task, 92 * 33, monkeypatch) == {"ials": (32, [16, 32]), "graph_filter": (32, [32])}
    assert widths(task, 92 * 20, monkeypatch) == {"ials": (16, [16])}
    assert widths(task, 92 * 15, monkeypatch) == {}


@pytest.mark.parametrize(("length", "has_graph"), [(8, True), (9, False)])
def test_of_short_sessions_a_graph_filter_has_vectors_of_items_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, *, has_graph: bool
) -> None:
    train = tmp_path / "train.txt"
    train.write_text((" ".join(f"i{n}" for n in range(length)) + "\n") * 100)
    task = open_training("sessions", train=train, test=tmp_path / "none")
    assert ("graph_filter" in widths(task, 32 * (length + 1), monkeypatch)) == has_graph


def test_a_blend_asks_no_more_than_the_search_did_where_that_is_all_there_is_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = write_pairs(tmp_path)
    monkeypatch.setattr("infra.bench.quality.tasks.SEARCH_CELLS", 32 * 20)
    task = open_training("pairs", train=train, test=test)
    assert sum(len(asked.questions) for asked in task.searched) == 20
    said: list[str] = []
    budget = Budget(60.0, trials=4)
    blending.tune_blend(task, tune(task, families(task, 60.0), budget, 3, said.append), budget, 3, said.append)
    assert any("on 20 questions" in line for line in said)


def test_events_with_repeats_bring_repurchase(tmp_path: Path) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text(events_csv())
    test.write_text("user,item,event\n" + "".join(f"u{n},i{n % GROUPS * GROUP_SIZE},buy\n" for n in range(40)))
    new_only, allowed = (open_training("events", train=train, test=test, repeats=r) for r in ("new-only", "allowed"))
    assert "repurchase" not in {family.name for family in families(new_only, 60.0)}
    space = {family.name: family for family in families(allowed, 60.0)}
    assert ("weights", "view_item") in space["item_knn"].grids
    assert list(space)[-3:] == ["ials", "session_knn", "graph_filter"], "a small budget ends before what costs most"
    assert ("half_life_days",) in space["ials"].grids
    parts = {name: Part(space[name].start, allowed.training) for name in ("popularity", "repurchase")}
    whole = open_test(allowed)
    found = evaluate_all(parts, {"both": BlendWeights({"popularity": 0.5, "repurchase": 1.0})}, whole, 5).values
    assert found["repurchase"]["recall@5"].shape == (40,)
    assert found["both"]["recall@5"].mean() >= found["popularity"]["recall@5"].mean()
    alone = evaluate(parts["repurchase"], whole, 5)
    assert alone["ndcg@5"] == pytest.approx(found["repurchase"]["ndcg@5"].mean())


def test_a_blend_weighs_what_each_part_says_of_all_items(tmp_path: Path) -> None:
    """Also of those that were seen: striking them out is for the list, not for the scale."""
    train, test = write_pairs(tmp_path)
    task = open_training("pairs", train=train, test=test)
    space = {family.name: family for family in families(task, 60.0)}
    parts = {name: Part(space[name].start, task.training) for name in ("item_knn", "popularity")}
    asked = open_test(task)
    found = evaluate_all(parts, {"both": BlendWeights({"item_knn": 0.5, "popularity": 1.0})}, asked, 3).values
    assert asked.seen is not None
    for row in range(len(asked.questions)):
        question = asked.questions.part(np.array([row]))
        total = np.zeros(task.training.item_count)
        for name, weight in (("item_knn", 0.5), ("popularity", 1.0)):
            scores = parts[name].scores(question)[0].astype(np.float64)
            total += weight * (scores - scores.mean()) / (scores.std() or 1.0)
        unseen = sorted(set(range(len(total))) - set(asked.seen[row].indices), key=lambda n: (-round(total[n], 5), n))
        hits = len(set(unseen[:3]) & set(asked.relevant[row].indices))
        assert found["both"]["recall@3"][row] == pytest.approx(hits / asked.relevant_counts[row])


@pytest.mark.parametrize("needed", ["both", "item_knn"])
def test_when_the_time_is_up_what_is_published_goes_on_alone(
    tmp_path: Path, needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others were asked of a sample, not of the first users: 4 blocks of 15 of the 60 users at least."""
    train, test = write_pairs(tmp_path)
    task = open_training("pairs", train=train, test=test)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})  # of two threads the second may begin first
    monkeypatch.setattr("infra.bench.quality.ranking.CELLS_PER_BLOCK", 15 * task.training.item_count)
    space = {family.name: family for family in families(task, 60.0)}
    parts = {name: Part(space[name].start, task.training) for name in ("item_knn", "popularity", "ials")}
    asked = open_test(task)
    both = BlendWeights({"item_knn": 0.5, "popularity": 1.0})
    blends = {"both": both, "other": BlendWeights({"ials": 1.0})}
    whole = evaluate_all(parts, blends, asked, 3).values
    assert {len(found["recall@3"]) for found in whole.values()} == {60}
    found, seconds = evaluate_all(parts, blends, asked, 3, needed=needed, may_go_on=lambda: False)
    assert found.keys() == whole.keys()
    assert seconds.keys() == parts.keys()
    for name, metrics in found.items():
        assert len(metrics["recall@3"]) == (60 if name == needed else 15), name
        place = 0 if name == needed else 15 * int(np.random.default_rng(SEED).permutation(4)[0])
        np.testing.assert_array_equal(metrics["ndcg@3"], whole[name]["ndcg@3"][place:][: len(metrics["ndcg@3"])])
    assert np.random.default_rng(SEED).permutation(4)[0] != 0, "or the test would see no shuffling"


def test_the_report_says_who_was_asked_less_and_where_the_time_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = write_pairs(tmp_path)
    report = run(tmp_path, train, test)
    assert report["sampled_questions"] == {}
    assert report["seconds_of_models"].keys() == report["recipes"].keys()
    assert all(found.keys() == {"refit", "test"} for found in report["seconds_of_models"].values())
    monkeypatch.setattr("infra.bench.quality.ranking.CELLS_PER_BLOCK", 15 * 32)
    monkeypatch.setattr(quality_bench, "LEAST_REST_SECONDS", -1e9)
    monkeypatch.setattr(quality_bench, "REST_SHARE", 0.0)
    said: list[str] = []
    hurried = bench_quality(
        "pairs", Sources(train, test), k=3, budget=Budget(2.0), shipped_file=tmp_path / "o.json", say=said.append
    )
    others = {*hurried["models"]} - {hurried["shipped"]}
    assert (
        hurried["sampled_questions"] == dict.fromkeys(sorted(others), 15) or set(hurried["sampled_questions"]) == others
    )
    assert hurried["questions"] == 60
    assert any(line.startswith("the time was up: ") for line in said)


def test_sessions_from_files_to_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    walks = [[(start + step) % 12 for step in range(3 + start % 3)] for start in rng.integers(0, 12, 120)]
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("\n".join(" ".join(f"i{n}" for n in walk) for walk in walks) + "\n")
    test.write_text("\n".join(f"i{n}\ti{(n + 1) % 12}" for n in range(12)) + "\ni0 i1\ti0\n")
    report = run(tmp_path, train, test, protocol="sessions", k=1, trials=9)
    assert report["models"]["sequential_rules"]["hr@1"] == pytest.approx(12 / 13)
    assert report["models"][report["shipped"]]["mrr@1"] >= 12 / 13
    in_order = {"sequential_rules", "session_knn"}
    of_sets = {"popularity", "item_knn", "ease", "rp3beta", "ials", "graph_filter"}
    assert set(report["models"]) == {*in_order, *of_sets, "blend"}


def test_the_search_climbs_each_grid_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = write_pairs(tmp_path)
    task = open_training("pairs", train=train, test=test)
    (family,) = [family for family in families(task, 60.0) if family.name == "rp3beta"]

    def planted(recipe: Any, *_: Any) -> Any:  # the best value stands at beta .7, alpha .6
        params = recipe["params"]
        target = 1 - abs(params["beta"] - 0.7) - abs(params["alpha"] - 0.6)
        return tuning.Trial(recipe, target, (target,), {}, 0.0), []

    monkeypatch.setattr(tuning, "run_trial", planted)
    found = tune(task, [family], Budget(1.0, trials=100), 3, lambda _: None)["rp3beta"]
    assert found.best is not None
    assert (found.best.recipe["params"]["beta"], found.best.recipe["params"]["alpha"]) == (0.7, 0.6)
    assert found.is_finished
    assert found.trials < 15
    assert family.start["params"]["beta"] == 0.5, "the start is untouched"


def test_one_question_chooses_a_model_and_no_weights(tmp_path: Path) -> None:
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("u1 a b c d e\nu2 a z\n")
    test.write_text("u1 z\n")
    report = run(tmp_path, train, test, trials=6)
    assert report["validation"]["best_single_on_the_same"] == report["validation"]["target"]["blend"]
    assert report["shipped"] in report["recipes"], "one model, no blend"
    assert report["weights"] == {report["shipped"]: 1.0}
    assert report["models"][report["shipped"]]["hr@3"] == 1.0


def test_a_budget_is_kept() -> None:
    now = [0.0]
    budget = Budget(100.0, clock=lambda: now[0])
    assert budget.allows(0.8, 0, 79.0)
    now[0] = 50.0
    assert budget.allows(0.8, 0, 29.0)
    assert not budget.allows(0.8, 0, 31.0)
    assert not Budget(1e9, trials=3).allows(0.8, 3, 0.0)


def test_values_in_a_recipe() -> None:
    recipe = {"params": {"a": 1}, "half_life_days": None}
    other = changed(recipe, ("params", "a"), 2)
    assert (value_at(other, ("params", "a")), value_at(recipe, ("params", "a"))) == (2, 1)
    assert changed(recipe, ("half_life_days",), 5.0)["half_life_days"] == 5.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "pair", "--train", "x", "--test", "y"], "did you mean 'pairs'"),
        (["--protocol", "pairs", "--train", "x"], "needs --test FILE"),
        (["--protocol", "sequences"], "needs --data FILE"),
        (["--protocol", "pairs", "--train", "x", "--test", "y"], "--train x: there is no such file"),
        (["--protocol", "pairs", "--train", "x", "--test", "y", "--k", "0"], "--k 0, expected at least 1"),
        (["--protocol", "pairs", "--train", "x", "--test", "y", "--minutes", "0"], "expected more than 0"),
        (["--protocol", "pairs", "--train", "x", "--test", "y", "--repeats", "allowed"], "--protocol events"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(build_app(), ["bench", "quality", "--json", str(tmp_path / "o.json"), *arguments])
    assert found.exit_code != 0
    assert isinstance(found.exception, DataError)
    assert message in str(found.exception)


def test_the_command_writes_the_report(tmp_path: Path) -> None:
    train, test = write_pairs(tmp_path)
    arguments = ["--protocol", "pairs", "--train", str(train), "--test", str(test), "--k", "3", "--minutes", "0.01"]
    found = CliRunner().invoke(
        build_app(), ["bench", "quality", "--json", str(tmp_path / "new" / "o.json"), *arguments]
    )
    assert found.exit_code == 0, found.output
    report = json.loads((tmp_path / "new" / "o.json").read_text())
    assert "popularity" in report["models"]
    assert (tmp_path / "new" / "o.shipped.json").is_file()


def test_slices_with_enough_questions_count_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 2 questions, one of 9 and one of 30: with 10 enough they count 2, 9 and 10; in blends too."""
    train, _ = write_pairs(tmp_path)
    task = open_training("pairs", train=train, test=train)
    slices = tuple(sample(task.validations[0], count) for count in (2, 9, 30))
    task = replace(task, searched=slices, validations=slices)
    monkeypatch.setattr(tuning, "ENOUGH", 10)
    told = iter([0.9, 0.5, 0.1])
    monkeypatch.setattr(tuning, "evaluate", lambda *_: dict.fromkeys(("recall@3", "ndcg@3"), next(told)))
    trial, _ = run_trial(families(task, 60.0)[0].start, task, 3)
    assert trial.target == pytest.approx((2 * 0.9 + 9 * 0.5 + 10 * 0.1) / 21)
    pools = [Pool(np.zeros((n, 1, 1), np.float32), np.zeros((n, 1), bool), np.ones(n, np.int64)) for n in (2, 9, 30)]
    by_count = {2: 0.9, 9: 0.5, 30: 0.1}
    monkeypatch.setattr(blending, "ENOUGH", 10)
    monkeypatch.setattr(blending, "_target", lambda asked, *_: by_count[len(asked)])
    asked = [blending.Asked(pool, np.full(len(pool.counts), "all")) for pool in pools]
    found = blending._mean_target(asked, lambda _: np.ones(1), protocol="pairs", k=3)
    assert found == pytest.approx((2 * 0.9 + 9 * 0.5 + 10 * 0.1) / 21)


def found_of(task: Task, name: str, target: float, seconds: float = 1.0) -> tuning.Found:
    (family,) = [family for family in families(task, 60.0) if family.name == name]
    best = tuning.Trial(family.start, target, (target,), {}, seconds)
    return tuning.Found(family, best, trials=1, seconds=seconds)


@pytest.mark.parametrize(("seconds", "next_one"), [(0.5, "item_knn"), (0.7, "ials")])
def test_the_better_a_model_the_more_time_it_gets(tmp_path: Path, seconds: float, next_one: str) -> None:
    """Half as good as the other, it is charged sixteen times its processor time: 10 seconds stand between 8 and 11."""
    train, test = write_pairs(tmp_path)
    task = open_training("pairs", train=train, test=test)
    found = {"ials": found_of(task, "ials", 0.4, 10.0), "item_knn": found_of(task, "item_knn", 0.2, seconds)}
    assert tuning._next(found, by_trials=False) == next_one


def test_waiting_is_charged_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = write_pairs(tmp_path)
    task = open_training("pairs", train=train, test=test)
    (family,) = [family for family in families(task, 60.0) if family.name == "item_knn"]

    def slow(recipe: Any, *_: Any) -> Any:
        time.sleep(0.5)
        return tuning.Trial(recipe, 0.1, (0.1,), {}, 0.5), []

    monkeypatch.setattr(tuning, "run_trial", slow)
    assert tune(task, [family], Budget(1.0, trials=1), 3, lambda _: None)["item_knn"].seconds < 0.4


def test_a_hopeless_model_is_not_asked_for_the_blend(tmp_path: Path) -> None:
    train, test = write_pairs(tmp_path)
    task = open_training("pairs", train=train, test=test)
    targets = {"popularity": 0.01, "item_knn": 0.29, "ials": 0.31, "graph_filter": 1.0}
    found = {name: found_of(task, name, target) for name, target in targets.items()}
    assert blending._hopeful(found) == ["graph_filter", "ials", "popularity"]


@pytest.mark.parametrize(
    ("days", "half_life"), [(299, None), (301, 180.0), (500, 180.0), (600, 360.0), (1079, 360.0), (1081, None)]
)
def test_a_history_of_a_year_or_two_begins_with_a_half_life(tmp_path: Path, days: int, half_life: float | None) -> None:
    train = tmp_path / "train.csv"
    stamps = [round(days * 86_400 * n / 9) for n in range(10)]
    rows = [f"u{n},i{(n + step) % 5},{stamps[(n + 3 * step) % 10]}" for n in range(10) for step in range(3)]
    train.write_text("user,item,time\n" + "\n".join(rows) + "\n")
    space = {family.name: family for family in families(open_training("events", train=train, test=train), 60.0)}
    assert {space[name].start["half_life_days"] for name in ("item_knn", "ials", "ease")} == {half_life}
    assert space["popularity"].start["half_life_days"] == 90.0
