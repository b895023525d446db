"""`nightjar bench training`: implicit ALS by the night's native kernel and by Spark's MLlib, in turns on the same data.

What is timed is learning alone: from the matrix of interactions in memory to the vectors of the items in memory. Each
run has a process of its own, and MLlib a warm session (a small fit comes first) whose JVM compiles as Spark's default
does, with no option of ours. Factors, iterations and alpha are the same for both; the ridge is each engine's default,
because MLlib scales it. How well each finds the test's items is measured by the same code, so that a quick fit that is
worse would show.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from feature_repo.contracts.environment import Environment
from infra.bench.nights.spark_side import ask_side, spark_variables, tell
from infra.bench.report import figure, make_report
from infra.bench.small_installation import cpu_seconds

ENGINES = ("native", "mllib")
LEAST_WALL, LEAST_CPU = 5.0, 10.0
QUESTIONS = 5_000

Say = Callable[[str], None]


class Learned(NamedTuple):
    """One fit. `cpu_seconds`: of the process and its JVM. `ndcg`: NDCG@20 over the test's users (at most QUESTIONS)."""

    seconds: float
    cpu_seconds: float
    ndcg: float


def bench_training(
    home: Path, variables: Mapping[str, str], *, train: Path, test: Path, pairs: int, say: Say
) -> dict[str, Any]:
    """Run it (state in `home`) and return the report. `train`, `test`: lines `user item item ...`.

    Figures: `training_seconds` and `training_cpu_seconds` of the native kernel with MLlib's as baseline,
    `times_less_wall`, `times_less_cpu` (baselines: the bars), `ndcg_at_20` with MLlib's as baseline.
    """
    child = spark_variables(home, variables)
    found: dict[str, list[Learned]] = {engine: [] for engine in ENGINES}
    for pair in range(pairs):
        for engine in ENGINES[:: 1 if pair % 2 == 0 else -1]:
            told = ask_side("infra.bench.nights.training", [engine, str(train), str(test)], child)
            one = Learned(**told)
            found[engine].append(one)
            say(f"pair {pair + 1}, {engine}: {one.seconds:.2f} s, {one.cpu_seconds:.1f} CPU-s, NDCG@20 {one.ndcg:.4f}")
    return report_of(found["native"], found["mllib"], Environment.from_mapping(child).code_version)


def report_of(ours: list[Learned], theirs: list[Learned], code_version: str) -> dict[str, Any]:
    """The report over pairs of fits."""
    pairs = list(zip(ours, theirs, strict=True))
    return make_report(
        "bench training",
        {
            "training_seconds": figure("s", [one.seconds for one in ours], baseline=[one.seconds for one in theirs]),
            "training_cpu_seconds": figure(
                "s", [one.cpu_seconds for one in ours], baseline=[one.cpu_seconds for one in theirs]
            ),
            "times_less_wall": figure("x", [b.seconds / a.seconds for a, b in pairs], baseline=[LEAST_WALL]),
            "times_less_cpu": figure("x", [b.cpu_seconds / a.cpu_seconds for a, b in pairs], baseline=[LEAST_CPU]),
            "ndcg_at_20": figure("share", [one.ndcg for one in ours], baseline=[one.ndcg for one in theirs]),
        },
        code_version,
        is_as_good=min(one.ndcg for one in ours) >= max(one.ndcg for one in theirs),
    )


def learn(engine: str, train: Path, test: Path) -> Learned:
    """One fit in this process."""
    import numpy as np

    from infra.bench.quality import tasks
    from infra.bench.quality.ranking import by_block, measure
    from spark_jobs.models.als import Als, fit_native
    from spark_jobs.models.mllib import fit_mllib
    from spark_jobs.models.recipes import default_recipe

    task = tasks.open_training("pairs", train=train, test=test)
    recipe = {**default_recipe("als", engine=engine), "weights": {tasks.ONLY_TYPE: 1.0}, "half_life_days": None}
    matrix = task.training.matrix(recipe)
    model = Als(recipe["params"])
    if engine == "mllib":
        from spark_jobs.session import get_session

        get_session("bench-training")
        fit_mllib(_some_people(matrix), {**recipe["params"], "iterations": 2})
    me = psutil.Process()
    cpu, began = cpu_seconds([me, *me.children(recursive=True)]), time.perf_counter()
    learned = fit_native(matrix, model.params, None) if engine == "native" else fit_mllib(matrix, model.params)
    seconds, spent = time.perf_counter() - began, cpu_seconds([me, *me.children(recursive=True)]) - cpu
    model.item_factors = np.ascontiguousarray(learned, dtype=np.float32)
    asked = tasks.sample(tasks.open_test(task), QUESTIONS)

    def ask(block: tasks.Slice) -> Any:
        histories, _ = task.training.histories(matrix, block.questions)
        return measure(model.fold_in(histories) @ model.item_factors.T, block, 20)["ndcg@20"]

    return Learned(seconds, spent, float(np.concatenate(list(by_block(asked, ask))).mean()))


def _some_people(matrix: Any) -> Any:
    """A tenth of the matrix."""
    from dataclasses import replace

    rows = max(2, matrix.preference.shape[0] // 10)
    part = matrix.preference[:rows]
    return replace(matrix, subjects=matrix.subjects[:rows], preference=part, last_micros=matrix.last_micros[: part.nnz])


def main() -> None:
    """`python -m infra.bench.nights.training ENGINE TRAIN TEST`: one fit, told on the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    given = parser.parse_args()
    tell(learn(given.engine, given.train, given.test)._asdict())


if __name__ == "__main__":
    main()
