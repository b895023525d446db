"""`nightjar bench quality`: tune on validation, write down what would be published, refit, open the test once."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from feature_repo.contracts.errors import DataError, nearest
from infra.bench.quality import tasks
from infra.bench.quality.blending import Blended, tune_blend
from infra.bench.quality.ranking import Part, Recipe, evaluate_all
from infra.bench.quality.spaces import families
from infra.bench.quality.training import Training
from infra.bench.quality.tuning import Budget, Found, tune
from infra.bench.report import figure, make_report

Say = Callable[[str], None]
BLEND = "blend"
REST_SHARE, LEAST_REST_SECONDS = 0.5, 240.0
"""Of the budget, and at least, for the test: then what is published goes on alone, and the other models have been asked
of a sample."""


class Sources(NamedTuple):
    """The files of a bench. `sequences` has one file: it stands in `train` and in `test`."""

    train: Path
    test: Path
    negatives: Path | None = None
    attributes: Path | None = None


def bench_quality(
    protocol: str,
    sources: Sources,
    *,
    k: int,
    budget: Budget,
    shipped_file: Path,
    repeats: str = "new-only",
    code_version: str = "unknown",
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """The report. `shipped_file` is on disk before the test file is opened, and stays if that fails.

    Beside the common form: `protocol`, `k`, `models` {name: {"recall@k", "ndcg@k", "hr@k", "mrr@k"}}, `shipped` (the
    name in `models` of what the night would publish), `recipes`, `weights` (of the blend), `weights_of_prefixes` (by
    the length of a running session, where the blend follows it, else null), `validation`, `questions`,
    `sampled_questions` (of models that had no time for all), `seconds` (wall, everything), `seconds_of` {"tune",
    "refit", "test"}, `seconds_of_models` {name: {"refit": wall, "test": processor}}, `peak_mb`.
    """
    _check(protocol, repeats, k)
    task = tasks.open_training(
        protocol,
        train=sources.train,
        test=sources.test,
        negatives=sources.negatives,
        repeats=repeats,
        attributes=sources.attributes,
    )
    training = task.training
    if training.content is not None:
        said = training.content
        say(f"{said.terms.shape[1]:,} attributes; {said.described_count:,} of {training.item_count:,} items have any")
    say(
        f"{sum(training.types.values()):,} rows, {len(training.user_names):,} users, {training.item_count:,} items; "
        f"validation asks {' + '.join(f'{len(v.questions):,}' for v in task.validations)} questions"
    )
    found = tune(task, families(task, budget.seconds), budget, k, say)
    blended = tune_blend(task, found, budget, k, say)
    weights = blended.weights
    choice = _choice(found, blended)
    choice |= {"protocol": protocol, "k": k, "repeats": repeats, "train_sha256": _sha256(sources.train)}
    _write_shipped(choice, shipped_file)
    say(f"{budget.spent():6.0f} s  would publish {choice['shipped']}: {shipped_file}")
    tuned = budget.spent()
    recipes = {name: one.best.recipe for name, one in found.items() if one.best is not None}
    for one in found.values():
        one.parts = []
    parts, seconds_of_refit = _refit(recipes, training)
    refitted = budget.spent()
    say(f"{refitted:6.0f} s  refitted on all training data ({_longest(seconds_of_refit)}); opening the test")
    asked = tasks.open_test(task)
    last = budget.spent() + max(LEAST_REST_SECONDS, REST_SHARE * budget.seconds)
    shipped = choice["shipped"]
    measured = evaluate_all(
        parts, {BLEND: weights}, asked, k,
        needed=shipped, may_go_on=lambda: budget.trials is not None or budget.spent() < last,
    )  # fmt: skip
    values = measured.values
    done = budget.spent()
    say(f"{done:6.0f} s  {len(asked.questions):,} questions of the test (processor: {_longest(measured.seconds)})")
    models = {
        name: {metric: float(f"{found_values.mean():.6g}") for metric, found_values in metrics.items()}
        for name, metrics in values.items()
    }
    sampled = {name: len(next(iter(metrics.values()))) for name, metrics in values.items()}
    sampled = {name: count for name, count in sampled.items() if count < len(asked.questions)}
    if sampled:
        say(f"the time was up: {', '.join(sampled)} were asked {min(sampled.values()):,} of them, evenly")
    seconds_of = {"tune": tuned, "refit": refitted - tuned, "test": done - refitted}
    peak = peak_mb()
    figures = {
        metric: figure("share", [value], baseline=[models["popularity"][metric]])
        for metric, value in models[shipped].items()
    }
    figures |= {"seconds": figure("s", [done]), "peak_mb": figure("MB", [peak])}
    return make_report(
        f"quality {protocol}",
        figures,
        code_version,
        protocol=protocol,
        k=k,
        repeats=repeats if protocol == "events" else None,
        models=models,
        shipped=shipped,
        recipes=recipes,
        weights=weights.of_all,
        weights_of_prefixes=weights.of_prefixes,
        validation=choice["validation"],
        questions=len(asked.questions),
        sampled_questions=sampled,
        seconds=round(done, 2),
        seconds_of={name: round(value, 2) for name, value in seconds_of.items()},
        seconds_of_models={
            name: {"refit": round(seconds_of_refit[name], 2), "test": round(measured.seconds[name], 2)}
            for name in sorted(parts)
        },
        peak_mb=peak,
    )


def _refit(recipes: Mapping[str, Recipe], training: Training) -> tuple[dict[str, Part], dict[str, float]]:
    """(the recipes fitted, by name; the seconds that each took)."""
    parts, seconds = {}, {}
    for name, recipe in sorted(recipes.items()):
        begun = time.monotonic()
        parts[name] = Part(recipe, training)
        seconds[name] = time.monotonic() - begun
    return parts, seconds


def _longest(seconds: Mapping[str, float]) -> str:
    """The three that took most, in words."""
    most = sorted(seconds, key=lambda name: -seconds[name])[:3]
    return ", ".join(f"{name} {seconds[name]:.1f} s" for name in most)


def _check(protocol: str, repeats: str, k: int) -> None:
    for option, value, known in (("--protocol", protocol, tasks.PROTOCOLS), ("--repeats", repeats, tasks.REPEATS)):
        if value not in known:
            hint = nearest(value, known)
            raise DataError(f"{option} {value!r}, expected one of {', '.join(known)}{hint}", field=option)
    if k < 1:
        raise DataError(f"--k {k}, expected at least 1", field="--k")
    if repeats == "allowed" and protocol != "events":
        raise DataError(f"--repeats allowed is for --protocol events, not {protocol}", field="--repeats")


def _choice(found: Mapping[str, Found], blended: Blended) -> dict[str, Any]:
    """What would be published: the blend, if it is better than the best single model on validation questions that did
    not choose its weights."""
    targets = {name: one.best.target for name, one in found.items() if one.best is not None}
    best = max(sorted(targets), key=lambda name: targets[name])
    is_blend = len(blended.weights.parts()) > 1 and blended.target > blended.single
    return {
        "shipped": BLEND if is_blend else best,
        "weights": blended.weights.of_all,
        "weights_of_prefixes": blended.weights.of_prefixes,
        "recipes": {name: one.best.recipe for name, one in found.items() if one.best is not None},
        "validation": {
            "target": {**targets, BLEND: blended.target},
            "best_single_on_the_same": blended.single,
            "metrics": {name: one.best.metrics for name, one in found.items() if one.best is not None},
            "trials": {name: one.trials for name, one in found.items()},
        },
    }


def _write_shipped(choice: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(choice, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def peak_mb() -> float:
    """The most memory this process ever held, MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
