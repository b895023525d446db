"""Ranking metrics: by hand, and against lists whose scores others published."""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from math import log2
from pathlib import Path

import numpy as np
import pytest

from spark_jobs.evaluation.intervals import compare_paired, mean_interval
from spark_jobs.evaluation.metrics import coverage, exposure, metric_name, ranking_metrics, top_share

YOOCHOOSE = Path(__file__).parents[3] / "shared" / "data" / "yoochoose-100k"


def hits(*rows: str) -> np.ndarray:
    return np.array([[c == "x" for c in row] for row in rows])


def test_metrics_by_hand() -> None:
    lists = hits("..x.x.", "x.....", ".....x", "......")
    found = ranking_metrics(lists, np.array([3, 1, 2, 9]), ks=(3, 5))
    assert found["recall_at_3"].tolist() == [1 / 3, 1.0, 0.0, 0.0]
    assert found["recall_at_5"].tolist() == [2 / 3, 1.0, 0.0, 0.0]
    assert found["hit_rate_at_3"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert found["mrr_at_3"].tolist() == pytest.approx([1 / 3, 1.0, 0.0, 0.0])
    # First person: hits at ranks 3 and 5 of 3 relevant items; the ideal list has its three hits on top.
    ideal = 1 + 1 / log2(3) + 1 / 2
    assert found["ndcg_at_3"][0] == pytest.approx((1 / 2) / ideal)
    assert found["ndcg_at_5"][0] == pytest.approx((1 / 2 + 1 / log2(6)) / ideal)
    assert found["ndcg_at_5"][1] == 1.0
    assert found["ndcg_at_5"][2] == 0.0, "rank 6 lies beyond 5"
    assert found["mrr_at_5"][2] == 0.0


def test_more_relevant_items_than_places_can_still_be_perfect() -> None:
    found = ranking_metrics(hits("xx.."), np.array([7]), ks=(2,))
    assert (found["ndcg_at_2"][0], found["recall_at_2"][0]) == (1.0, 2 / 7)


def test_a_list_shorter_than_k() -> None:
    found = ranking_metrics(hits(".x"), np.array([1]), ks=(10,))
    assert (found["recall_at_10"][0], found["mrr_at_10"][0]) == (1.0, 0.5)
    assert ranking_metrics(np.zeros((2, 0), bool), np.array([1, 1]), ks=(10,))["mrr_at_10"].tolist() == [0.0, 0.0]


def test_nobody_without_relevant_items() -> None:
    with pytest.raises(ValueError, match="without relevant items"):
        ranking_metrics(hits("x."), np.array([0]))


def test_exposure_coverage_and_concentration_by_hand() -> None:
    numbers = np.array([[0, 1, 2], [0, 1, -1], [0, 3, -1]])
    exposed = exposure(numbers, 6)
    assert exposed.tolist() == [3, 2, 1, 1, 0, 0]
    known = np.array([True, True, True, False, True, False])  # item 3 was shown, and is not known: it does not count
    assert coverage(exposed, known) == 3 / 4
    assert top_share(exposed, 2) == 5 / 7
    assert top_share(np.zeros(4, np.int64), 2) == 0.0


@pytest.mark.parametrize(
    ("name", "hit_rate", "mrr"),
    [("ar", 0.5917, 0.3160), ("sr", 0.5607, 0.3275), ("vsknn", 0.6098, 0.3342), ("gru4rec", 0.5711, 0.3289)],
)
def test_the_stored_lists_of_yoochoose(name: str, hit_rate: float, mrr: float) -> None:
    """Each list predicts the next click of a test session: one relevant item a row."""
    if not YOOCHOOSE.is_dir():
        pytest.skip(f"the golden lists are not here: {YOOCHOOSE}")
    clicks: dict[str, list[tuple[float, str]]] = defaultdict(list)
    with gzip.open(YOOCHOOSE / "yoochoose-clicks-100k_test.txt.gz", "rt") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            clicks[row["SessionId"]].append((float(row["Time"]), row["ItemId"]))
    found = []
    with gzip.open(YOOCHOOSE / f"recoms_rsc15_100k_{name}.csv.gz", "rt") as file:
        for row in csv.DictReader(file, delimiter=";"):
            session = [item for _, item in sorted(clicks[row["SessionId"]], key=lambda click: click[0])]
            target = session[int(row["Position"]) + 1]
            found.append([item == target for item in row["Recommendations"].split(",")[:20]])
    lists = np.zeros((len(found), 20), bool)
    for place, row in enumerate(found):
        lists[place, : len(row)] = row
    metrics = ranking_metrics(lists, np.ones(len(lists), np.int64), ks=(20,))
    assert len(lists) == 387
    assert metrics[metric_name("hit_rate", 20)].mean() == pytest.approx(hit_rate, abs=5e-5)
    assert metrics[metric_name("mrr", 20)].mean() == pytest.approx(mrr, abs=5e-5)
    assert metrics[metric_name("recall", 20)].tolist() == metrics[metric_name("hit_rate", 20)].tolist()


# --- intervals ---------------------------------------------------------------------------------------------------


def test_a_constant_difference_has_no_width() -> None:
    reference = np.linspace(0, 1, 50)
    found = compare_paired(reference + 0.25, reference)
    assert found.users == 50
    assert found.difference == pytest.approx((0.25, 0.25, 0.25))


def test_the_interval_agrees_with_the_normal_one() -> None:
    rng = np.random.default_rng(4)
    reference = rng.random(2000)
    model = reference + rng.normal(0.02, 0.2, 2000)
    found = compare_paired(model, reference)
    differences = model - reference
    half = 1.96 * differences.std(ddof=1) / np.sqrt(2000)
    assert found.difference.mean == pytest.approx(differences.mean())
    assert found.difference.lower == pytest.approx(differences.mean() - half, abs=half / 8)
    assert found.difference.upper == pytest.approx(differences.mean() + half, abs=half / 8)
    assert found.relative is not None
    assert found.relative.mean == pytest.approx(differences.mean() / reference.mean())
    assert found.relative.lower == pytest.approx(found.difference.lower / reference.mean(), rel=0.05)
    assert found == compare_paired(model, reference), "seeded"


def test_pairing_narrows_the_interval() -> None:
    """The same values of the model on other persons: only the pairing is lost, and the interval grows."""
    rng = np.random.default_rng(4)
    reference = rng.random(500)
    paired = compare_paired(reference + 0.05, reference).difference
    unpaired = compare_paired(rng.permutation(reference) + 0.05, reference).difference
    assert paired.upper - paired.lower < 1e-9 < 0.05 < unpaired.upper - unpaired.lower


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random(37)
    whole = mean_interval(values)
    monkeypatch.setattr("spark_jobs.evaluation.intervals._CELLS_PER_BLOCK", 37 * 10)
    assert mean_interval(values) == whole


def test_a_reference_that_finds_nothing_has_no_relative_difference() -> None:
    assert compare_paired(np.ones(3), np.zeros(3)).relative is None
    with pytest.raises(ValueError, match="the same persons, got 2 and 3"):
        compare_paired(np.ones(2), np.zeros(3))
