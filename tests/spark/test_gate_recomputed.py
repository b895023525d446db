"""The gate's verdict once more, from what a night stored of each person: means, intervals and limits in plain loops.

Nothing of `evaluation.gate` or `evaluation.intervals` is used here. What is agreed beforehand is how they draw: persons
by `default_rng(20_240_229).integers`, 1,000 times, in the order of their keys.
"""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import GateRefusedError
from feature_repo.contracts.run import EVALUATION_FILE, GATE_FILE, USER_METRICS_FILE
from feature_repo.contracts.times import parse_timestamp
from spark_jobs.io.run_store import folder_of, read_report
from tests.spark.test_train_models import A_DAY_EARLIER, night, planted_events, shop, shuffled, write_shop

__all__ = ["shop"]
pytestmark = pytest.mark.spark

RESAMPLES, SEED = 1000, 20_240_229
Values = dict[str, dict[str, float]]


def stored_persons(path: Path) -> tuple[Values, dict[str, str]]:
    """(contestant -> subject -> NDCG@20, subject -> slice), both by subject."""
    ndcg: Values = {}
    slices: dict[str, str] = {}
    for row in pq.read_table(path).sort_by("subject_key").to_pylist():
        ndcg.setdefault(row["contestant"], {})[row["subject_key"]] = row["ndcg_at_20"]
        slices[row["subject_key"]] = row["slice"]
    return ndcg, slices


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def bounds(found: list[float]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles, on the line between the two nearest."""
    found = sorted(found)
    quantiles = []
    for share in (0.025, 0.975):
        place = share * (len(found) - 1)
        below = int(place)
        quantiles.append(found[below] + (place - below) * (found[below + 1] - found[below]))
    return quantiles[0], quantiles[1]


def paired(one: list[float], other: list[float]) -> dict[str, Any]:
    """The difference of two means over the same persons, in its own units and relative to the other."""
    differences, relative = [], []
    for drawn in np.random.default_rng(SEED).integers(0, len(one), size=(RESAMPLES, len(one))).tolist():
        first, second = mean([one[n] for n in drawn]), mean([other[n] for n in drawn])
        differences.append(first - second)
        relative.append((first - second) / second if second > 0 else None)
    difference = mean(one) - mean(other)
    lower, upper = bounds(differences)
    if len(one) >= 30:  # what a normal distribution would say is near
        each = [a - b for a, b in zip(one, other, strict=True)]
        deviation = sqrt(sum((value - difference) ** 2 for value in each) / len(each))
        assert upper - lower == pytest.approx(2 * 1.96 * deviation / sqrt(len(each)), rel=0.15)
    found: dict[str, Any] = {"difference": {"mean": difference, "lower": lower, "upper": upper}, "relative": None}
    if None not in relative:
        low, high = bounds(relative)
        found["relative"] = {"mean": difference / mean(other), "lower": low, "upper": high}
    return found


def checks_of(name: str, evaluation: dict[str, Any], ndcg: Values, champion: str | None) -> dict[str, Any]:
    """Check -> (value, passed) of one challenger, by the limits of docs and defaults."""
    model, test = evaluation["models"][name], evaluation["test"]
    beyond = model["beyond_accuracy"]
    coverage = beyond["distinct_items_at_20"] / min(test["known_items"], 20 * test["users"])
    learned, start = parse_timestamp(model["learned_until"]), parse_timestamp(test["start"])
    hours = (learned - start).total_seconds() / 3600
    minutes = (model["fit_seconds"] + model["score_seconds"] / test["users"] * test["people"]) / 60
    own = list(ndcg[name].values())
    over_popular = paired(own, list(ndcg["popularity"].values()))["difference"]["lower"]
    found = {
        "finite_scores": (model["non_finite_count"], model["non_finite_count"] == 0),
        "coverage": (coverage, coverage >= 0.02),
        "concentration": (beyond["top_share_at_20"], beyond["top_share_at_20"] <= 0.9),
        "no_future": (hours, hours < 0),
        "fast_enough": (minutes, minutes <= 120),
        "size": (model["file_bytes"] / 1e6, model["file_bytes"] <= 4096e6),
        "beats_popularity": (over_popular, over_popular > 0),
    }
    if champion not in (None, name):
        loss = paired(own, list(ndcg[champion].values()))["relative"]["lower"]
        found["not_worse_than_champion"] = (loss, loss > -0.01)
    return found


def recompute(environment: Environment, run_key: str) -> dict[str, Any]:
    """Recompute the verdict of a run and hold its gate.json to it; returns what was found by challenger."""
    evaluation = read_report(environment, run_key, EVALUATION_FILE)
    report = read_report(environment, run_key, GATE_FILE)
    ndcg, slices = stored_persons(folder_of(environment, run_key) / USER_METRICS_FILE)
    champion = None if evaluation["champion"] is None else evaluation["champion"]["contestant"]
    assert set(ndcg) == set(evaluation["models"])
    assert {tuple(of_one) for of_one in ndcg.values()} == {tuple(sorted(slices))}, "everybody under every model"
    assert len(slices) >= 20

    checked = {name: checks_of(name, evaluation, ndcg, champion) for name in ndcg if name != "popularity"}
    said: dict[str, Any] = {name: {} for name in checked}
    for check in report["checks"]:
        if check["model"] is not None:
            said[check["model"]][check["name"]] = (pytest.approx(check["value"], rel=1e-9, abs=1e-12), check["passed"])
    assert checked == said

    passing = [name for name, found in checked.items() if all(passed for _, passed in found.values())]
    best = max(passing, key=lambda name: mean(list(ndcg[name].values())), default=None)
    kept = champion is not None and evaluation["models"][champion]["recipe"]["model"] != "popularity"
    verdict = "publish" if best else "refused" if kept else "baseline"
    assert (report["verdict"], report["contestant"]) == (verdict, best)
    assert report["recipe"] == (evaluation["models"][best]["recipe"] if best else None)

    compared = 0
    for one in report["comparisons"]:
        people = [person for person in slices if one["slice"] in ("all", slices[person])]
        own, other = ([ndcg[one[side]][person] for person in people] for side in ("model", "against"))
        assert one["users"] == len(people)
        for unit, values in paired(own, other).items():
            assert one[unit] == (None if values is None else pytest.approx(values, rel=1e-9, abs=1e-12))
        compared += 1
    assert compared >= 2 * len(checked)
    return {"passing": passing, "checked": checked, "verdict": verdict, "best": best}


def chosen(**recipes: dict[str, Any]) -> dict[str, Any]:
    """Run parameters of a night that trains these recipes."""
    return {"models": None, "recipes": {"format": 1, "recipes": recipes, "blend": "none"}}


def test_the_verdict_follows_from_what_is_stored_of_each_person(spark: SparkSession, shop: Environment) -> None:
    """A first night; one with a champion, a challenger that passes and two that fail, each for a reason of its own;
    one of shuffled data, where nobody passes and the champion stays."""
    write_shop(shop, planted_events())
    bought = {"model": "item_knn", "weights": {"purchase": 1.0}, "params": {}}  # of a seventh of the events
    night(spark, shop, as_of=A_DAY_EARLIER, params=chosen(bought=bought))
    first = recompute(shop, "r1")
    assert (first["verdict"], first["passing"]) == ("publish", ["bought"])

    scarce = {**bought, "params": {"neighbours": 1}}
    shrunk = {"model": "als", "params": {"regularization": 1e9}}
    others = {"item_knn": {"params": {}}, "trending": {"params": {}}, "scarce": scarce, "shrunk": shrunk}
    night(spark, shop, "r2", params=chosen(bought=bought, **others))
    second = recompute(shop, "r2")
    assert (second["verdict"], second["best"]) == ("publish", "item_knn")
    assert second["passing"] == ["bought", "item_knn"]
    fails = {
        name: [check for check, (_, passed) in found.items() if not passed] for name, found in second["checked"].items()
    }
    assert fails["scarce"] == ["not_worse_than_champion"]
    assert fails["shrunk"] == fails["trending"] == ["beats_popularity", "not_worse_than_champion"]

    write_shop(shop, shuffled(planted_events()))
    with pytest.raises(GateRefusedError):
        night(spark, shop, "r3")
    third = recompute(shop, "r3")
    assert (third["verdict"], third["passing"]) == ("refused", [])
