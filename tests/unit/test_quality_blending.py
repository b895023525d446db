"""The weights of the bench's blend: where running sessions of each length get their own, and that these count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.bench.quality import blending
from infra.bench.quality.blend_weights import BlendWeights
from infra.bench.quality.quality_bench import Sources, bench_quality
from infra.bench.quality.ranking import Part, evaluate_all
from infra.bench.quality.spaces import families
from infra.bench.quality.tasks import Task, open_test, open_training
from infra.bench.quality.training import PREFIX_SLICES
from infra.bench.quality.tuning import Budget, Found, Trial
from spark_jobs.evaluation.blending import Pool

ROUTES = {"a": "bcdef", "b": "cdefa", "g": "hij", "h": "ijg"}


def write_sessions(folder: Path) -> tuple[Path, Path]:
    """Shoppers who walk along routes; the test asks after 1, 1, 2, 3, 4 and no known items."""
    rng = np.random.default_rng(3)
    lines = []
    for number in range(120):
        first = "abgh"[number % 4]
        lines.append(" ".join(first + ROUTES[first][: int(rng.integers(1, 1 + len(ROUTES[first])))]))
    train, test = folder / "train.txt", folder / "test.tsv"
    train.write_text("\n".join(lines) + "\n")
    test.write_text("a\tb\ng\th\na b\tc\na b c\td\na b c d\te\nunknown\ta\n")
    return train, test


def open_sessions(folder: Path) -> Task:
    train, test = write_sessions(folder)
    return open_training("sessions", train=train, test=test)


def test_a_session_is_in_the_slice_of_its_known_places(tmp_path: Path) -> None:
    task = open_sessions(tmp_path)
    assert open_test(task).questions.prefix_slices().tolist() == ["<2", "<2", "2-3", "2-3", ">3", "<2"]
    users = tmp_path / "users.txt"
    users.write_text("u1 a b\nu2 b c a\n")
    asked = open_training("pairs", train=users, test=users).validations[0].questions
    assert asked.prefix_slices().tolist() == ["all"] * 2


def test_weights_of_a_length_count_for_sessions_of_that_length(tmp_path: Path) -> None:
    """Each question gets what a blend with its slice's weights for everybody gives it; no two of the sets agree."""
    task = open_sessions(tmp_path)
    space = {family.name: family for family in families(task, 60.0)}
    parts = {name: Part(space[name].start, task.training) for name in ("item_knn", "popularity", "sequential_rules")}
    sets = {
        "<2": {"popularity": 1.0},
        "2-3": {"item_knn": 1.0, "popularity": 0.2},
        ">3": {"sequential_rules": 1.0, "popularity": -2.0},
    }
    asked = open_test(task)
    blends = {"by length": BlendWeights({"popularity": 1.0}, sets)}
    blends |= {name: BlendWeights(weights) for name, weights in sets.items()}
    assert blends["by length"].parts() == ["item_knn", "popularity", "sequential_rules"]
    found = evaluate_all(parts, blends, asked, 3).values
    slices = asked.questions.prefix_slices().tolist()
    assert len(slices) == 6
    for row, name in enumerate(slices):
        assert found["by length"]["mrr@3"][row] == found[name]["mrr@3"][row], (row, name)
    told = {name: tuple(found[name]["mrr@3"].tolist()) for name in blends}
    assert len(set(told.values())) == 4, "or the sets would not be told apart"


def pools_where(best: dict[str, int], *, questions: int = 48) -> list[blending.Asked]:
    """Questions of each length in turn with two items; the one that part `best[length]` has first is right. Ties go to
    what part 1 has first."""
    slices = np.array([PREFIX_SLICES[number % 3] for number in range(questions)])
    values = np.zeros((questions, 2, 2), np.float32)
    values[:, 1, 0] = values[:, 0, 1] = 1.0
    right: NDArray[np.bool_] = np.zeros((questions, 2), bool)
    right[np.arange(questions), [1 - best[name] for name in slices]] = True
    return [blending.Asked(Pool(values, right, np.ones(questions, np.int64)), slices)]


def found_two(task: Task) -> dict[str, Found]:
    space = {family.name: family for family in families(task, 60.0)}
    targets = {"item_knn": 0.5, "session_knn": 0.6}
    return {
        name: Found(space[name], Trial(space[name].start, target, (target,), {}, 1.0), trials=1)
        for name, target in targets.items()
    }


def blended(
    task: Task, pools: list[blending.Asked], monkeypatch: pytest.MonkeyPatch, budget: Budget | None = None
) -> blending.Blended:
    monkeypatch.setattr(blending, "_pools", lambda *_: pools)
    return blending.tune_blend(task, found_two(task), budget or Budget(60.0, trials=1), 1, lambda _: None)


def test_lengths_get_weights_of_their_own_where_another_part_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blending, "ENOUGH", 16)
    task, pools = open_sessions(tmp_path), pools_where({"<2": 0, "2-3": 1, ">3": 1})
    made = blended(task, pools, monkeypatch)
    assert made.weights.of_prefixes is not None
    assert list(made.weights.of_prefixes) == list(PREFIX_SLICES)
    short, *longer = made.weights.of_prefixes.values()
    assert short["item_knn"] > short.get("session_knn", 0.0)
    assert len(longer) == 2
    assert all(weights["session_knn"] > weights.get("item_knn", 0.0) for weights in longer)
    assert made.target == 1.0
    assert made.single == pytest.approx(2 / 3), "the better part alone is right for two lengths of three"


def test_lengths_share_weights_where_that_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blending, "ENOUGH", 16)
    made = blended(open_sessions(tmp_path), pools_where({"<2": 1, "2-3": 1, ">3": 1}), monkeypatch)
    assert made.weights == BlendWeights({"session_knn": 1.0})
    assert made.target == 1.0


def test_lengths_share_weights_where_few_were_asked_or_the_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, pools = open_sessions(tmp_path), pools_where({"<2": 0, "2-3": 1, ">3": 1})
    monkeypatch.setattr(blending, "ENOUGH", 17)
    assert blended(task, pools, monkeypatch).weights.of_prefixes is None
    monkeypatch.setattr(blending, "ENOUGH", 16)
    assert blended(task, pools, monkeypatch, Budget(0.0)).weights.of_prefixes is None


def test_the_report_tells_the_weights_of_each_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = write_sessions(tmp_path)
    by_length = {name: {"popularity": 1.0, "item_knn": float(n)} for n, name in enumerate(PREFIX_SLICES)}
    made = blending.Blended(BlendWeights({"popularity": 1.0}, by_length), 0.9, 0.1)
    monkeypatch.setattr("infra.bench.quality.quality_bench.tune_blend", lambda *_: made)
    report = bench_quality(
        "sessions", Sources(train, test), k=3, budget=Budget(60.0, trials=3), shipped_file=tmp_path / "o.json"
    )
    assert report["shipped"] == "blend", "of two parts, though `weights` has one"
    assert report["weights_of_prefixes"] == by_length
    assert report["weights"] == {"popularity": 1.0}
