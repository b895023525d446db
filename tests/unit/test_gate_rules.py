"""The gate on nights made by hand: each test moves one thing, and the verdict and its words follow."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from feature_repo.contracts.errors import DataError
from spark_jobs.evaluation.gate import (
    BASELINE,
    METRIC,
    PUBLISH,
    PUBLISH_BASELINE,
    RECALL,
    REFUSED,
    Contestant,
    Night,
    Thresholds,
    Verdict,
    judge,
    random_recall,
)
from spark_jobs.evaluation.parameters import read_parameters
from spark_jobs.evaluation.report import COLUMNS, report_markdown

USERS = 60
BASE = np.tile([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], 10)  # mean 0.25


def contestant(name: str, lift: float | np.ndarray = 0.0, **other: object) -> Contestant:
    """A model that is `lift` better than popularity for everybody (or for each)."""
    ndcg = BASE + lift
    values = {
        "name": name, "recipe": {"model": "als" if name == "champion" else name, "params": {"name": name}},
        "per_user": {METRIC: ndcg, RECALL: ndcg}, "distinct_items": 50, "top_share": 0.4, "non_finite_count": 0,
    }  # fmt: skip
    return Contestant(**{**values, **other})


POPULARITY = contestant(BASELINE, distinct_items=22, top_share=0.98)
NIGHT = Night(
    slices=np.array((["<5"] * 3 + ["5-20"] * 2 + [">20"]) * 10), known_items=100, data_age_days=0.5, random_recall=0.1
)
NOISE = np.tile([0.3, -0.3, 0.2, -0.2, 0.1, -0.1], 10)  # mean 0: a model that is other, not better


def verdict_of(*challengers: Contestant, night: Night = NIGHT, **limits: object) -> Verdict:
    return judge([POPULARITY, *challengers], night, replace(Thresholds(), **limits))


def failed(verdict: Verdict) -> list[tuple[str, str | None]]:
    return [(c.name, c.model) for c in verdict.checks if not c.passed]


def test_the_best_passing_challenger_wins() -> None:
    found = verdict_of(contestant("item_knn", 0.05), contestant("als", 0.1))
    assert (found.verdict, found.contestant, found.recipe) == (PUBLISH, "als", contestant("als").recipe)
    assert found.reasons[0] == "als wins with NDCG@20 0.3500 (popularity 0.2500, item_knn 0.3000)"
    assert "als beats popularity: NDCG@20 +0.1000, 95 % +0.1000 to +0.1000" in found.reasons
    assert failed(found) == []


def test_a_tie_goes_to_the_first_name() -> None:
    assert verdict_of(contestant("item_knn", 0.1), contestant("als", 0.1)).contestant == "als"


@pytest.mark.parametrize(
    ("broken", "check", "words"),
    [
        ({"distinct_items": 1}, "coverage", "als fails coverage: 1 of 100 attainable items in the top 20s"),
        ({"top_share": 0.95}, "concentration", "als fails concentration: share of all places .* 0.95 .wanted <= 0.9"),
        ({"non_finite_count": 3}, "finite_scores", "als fails finite_scores: scores that are not finite 3"),
    ],
)
def test_a_better_model_that_fails_a_check_gives_way(broken: dict[str, object], check: str, words: str) -> None:
    found = verdict_of(contestant("item_knn", 0.05), contestant("als", 0.1, **broken))
    assert (found.verdict, found.contestant) == (PUBLISH, "item_knn")
    assert failed(found) == [(check, "als")]

    assert [r for r in found.reasons if re.search(words, r)] != []


def test_better_on_average_is_not_enough() -> None:
    found = verdict_of(contestant("als", NOISE + 0.02), contestant("item_knn", -0.05))
    assert (found.verdict, found.contestant, found.recipe) == (PUBLISH_BASELINE, BASELINE, POPULARITY.recipe)
    assert failed(found) == [("beats_popularity", "als"), ("beats_popularity", "item_knn")]
    assert found.reasons[0].startswith("no personal model passed: the best baseline, popularity")
    assert found.reasons[1].startswith("als does not beat popularity: NDCG@20 +0.0200, 95 % -0.0")


def test_a_run_may_insist_on_a_personal_model() -> None:
    found = verdict_of(contestant("als", NOISE), require_personal=True)
    assert (found.verdict, found.contestant, found.recipe) == (REFUSED, None, None)
    assert found.reasons[-1] == "the run asks for a personal model"


def test_a_personal_champion_is_never_replaced_by_a_baseline() -> None:
    night = replace(NIGHT, champion="als")
    found = verdict_of(contestant("als", NOISE), contestant("item_knn", NOISE), night=night)
    assert found.verdict == REFUSED
    assert found.reasons[-1] == "the served version stays: its recipe is personal (als), and a baseline is not"


def test_a_baseline_champion_may_stay() -> None:
    night = replace(NIGHT, champion=BASELINE)
    assert verdict_of(contestant("als", NOISE), night=night).verdict == PUBLISH_BASELINE
    assert verdict_of(contestant("als", 0.1), night=night).contestant == "als"


def test_the_champions_recipe_stays_when_it_is_best() -> None:
    found = verdict_of(contestant("als", 0.1), contestant("item_knn", 0.05), night=replace(NIGHT, champion="als"))
    assert (found.verdict, found.contestant) == (PUBLISH, "als")
    assert found.reasons[0].endswith("the champion's recipe stays")
    # item_knn loses 0.05 of the champion's 0.35
    assert failed(found) == [("not_worse_than_champion", "item_knn")]
    assert [r for r in found.reasons if r.startswith("item_knn may be worse than the champion's recipe: -1")] != []


def test_a_challenger_that_may_be_worse_than_the_champion_gives_way_to_it() -> None:
    # The challenger is a little better on average and much worse for some: its lower bound is far below -1 %.
    risky = contestant("als", 0.1 + NOISE + 0.01)
    found = verdict_of(risky, contestant("champion", 0.1), night=replace(NIGHT, champion="champion"))
    assert (found.verdict, found.contestant) == (PUBLISH, "champion")
    assert failed(found) == [("not_worse_than_champion", "als")]
    allowed = verdict_of(risky, contestant("champion", 0.1), night=replace(NIGHT, champion="champion"), max_loss=0.5)
    assert allowed.contestant == "als"


@pytest.mark.parametrize(("loss", "passes"), [(0.009, True), (0.011, False)])
def test_the_margin_is_one_per_cent_of_the_champion(loss: float, passes: bool) -> None:
    # Everybody loses the same share of what the champion gives them: the relative difference has no width.
    challenger = contestant("als", 0.1 - loss * (BASE + 0.1))
    found = verdict_of(challenger, contestant("champion", 0.1), night=replace(NIGHT, champion="champion"))
    assert (("not_worse_than_champion", "als") in failed(found)) is not passes


def test_stale_data_is_refused_whatever_the_models() -> None:
    found = verdict_of(contestant("als", 0.1), night=replace(NIGHT, data_age_days=7.5))
    assert (found.verdict, found.recipe) == (REFUSED, None)
    assert found.reasons[0].startswith("the last event is 7.5 days older than as_of (at most 7): the data is stale")
    assert verdict_of(contestant("als", 0.1), night=replace(NIGHT, data_age_days=7.0)).verdict == PUBLISH


def test_worse_than_chance_is_refused_even_on_the_first_night() -> None:
    night = replace(NIGHT, random_recall=0.6)
    found = verdict_of(contestant("als", 0.1), night=night)
    assert found.verdict == REFUSED
    assert found.reasons[0].startswith("best Recall@20 0.3500, a random list expects 0.6000: worse than chance")


def few(count: int, contestants: list[Contestant]) -> list[Contestant]:
    return [replace(c, per_user={m: v[:count] for m, v in c.per_user.items()}) for c in contestants]


@pytest.mark.parametrize(
    ("champion", "publishes", "expected"),
    [
        (None, True, PUBLISH_BASELINE),
        ("popularity", True, PUBLISH_BASELINE),
        ("als", True, REFUSED),
        ("als", False, PUBLISH_BASELINE),
    ],
)
@pytest.mark.parametrize("count", [0, 19])
def test_too_few_to_judge(count: int, champion: str | None, publishes: bool, expected: str) -> None:
    night = replace(NIGHT, slices=NIGHT.slices[:count], note="a note", champion=champion, publishes=publishes)
    found = judge(few(count, [POPULARITY, contestant("als", 0.1)]), night, Thresholds())
    assert found.verdict == expected
    assert f"{count} test persons (at least 20): too few to judge any model" in found.reasons
    assert "a note" in found.reasons


def test_twenty_are_enough() -> None:
    night = replace(NIGHT, slices=NIGHT.slices[:20])
    assert judge(few(20, [POPULARITY, contestant("als", 0.1)]), night, Thresholds()).verdict == PUBLISH


def test_comparisons_cover_references_and_slices() -> None:
    found = verdict_of(contestant("item_knn", 0.05), contestant("als", 0.1), night=replace(NIGHT, champion="als"))
    assert sorted({(c["model"], c["against"]) for c in found.comparisons}) == [
        ("als", "item_knn"), ("als", "popularity"), ("item_knn", "als"), ("item_knn", "popularity"),
    ]  # fmt: skip
    small = [c for c in found.comparisons if (c["model"], c["against"], c["slice"]) == ("als", "item_knn", "<5")]
    assert [(c["users"], round(c["difference"]["lower"], 9)) for c in small] == [(30, 0.05)]


def test_what_a_random_list_finds() -> None:
    # 20 of the 30 items left to one, 20 of 25 to the other; of fewer than 20 everything is shown.
    assert random_recall(30, np.array([0, 5])) == pytest.approx((20 / 30 + 20 / 25) / 2)
    assert random_recall(30, np.array([15])) == 1.0
    assert random_recall(30, np.array([], dtype=np.int64)) == 0.0


def test_the_report_is_json_and_a_page() -> None:
    found = verdict_of(contestant("item_knn", NOISE), contestant("als", 0.1))
    report = json.loads(json.dumps({"as_of": "2024-03-08", **found.to_report()}))
    assert (report["verdict"], report["model"], report["contestant"]) == (PUBLISH, "als", "als")
    metrics = dict.fromkeys(COLUMNS, 0.25)
    evaluation = {
        "test": {"days": 7, "start": "2024-03-01T00:00:00Z", "users": 60, "users_by_slice": {"all": 60}, "note": ""},
        "models": {"als": {"metrics": {"all": metrics}}},
    }
    page = report_markdown(report, evaluation)
    assert "# Gate, as_of 2024-03-08: published: a personal model won" in page
    assert "| als | all | 60 | 0.2500 | 0.2500 |" in page
    assert "| als | popularity | all | 60 | +0.1000 (+0.1000 to +0.1000) | +40.0%" in page
    assert "| NO | beats_popularity | item_knn | item_knn does not beat popularity" in page


# --- parameters --------------------------------------------------------------------------------------------------


def test_parameters_come_as_texts_or_values() -> None:
    given = {"min_test_users": "5", "max_loss": 1, "require_personal": "True", "max_top_share": None, "as_of": "x"}
    assert read_parameters(Thresholds, given) == Thresholds(min_test_users=5, max_loss=1.0, require_personal=True)
    assert read_parameters(Thresholds, {}) == Thresholds()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"min_test_users": "many"}, "parameter min_test_users must be an int, got 'many'"),
        ({"min_test_users": 2.5}, "parameter min_test_users must be an int, got 2.5"),
        ({"require_personal": "perhaps"}, "parameter require_personal must be a bool, got 'perhaps'"),
        ({"max_loss": True}, "parameter max_loss must be a float, got True"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_named(params: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_parameters(Thresholds, params)
