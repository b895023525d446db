"""Slices by region, category and item age, against counting person by person."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from feature_repo.contracts.times import to_micros
from spark_jobs.evaluation.full_ranking import evaluate
from spark_jobs.evaluation.further_slices import further_slices
from spark_jobs.jobs.trained_models import further_metrics
from tests.unit.test_metrics_split import Table, items_of, random_night

AGES = (("items under 13 days", 0, 13), ("items of 13 days", 13, 14), ("items over 30 days", 30, 1_000))
"""The history begins two weeks before the test."""
REGIONS = ("DE", "SE", None, "FR", "DE")


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.evaluation.further_slices.LEAST_PERSONS", 4)
    monkeypatch.setattr("spark_jobs.evaluation.further_slices.MOST_GROUPS", 2)
    monkeypatch.setattr("spark_jobs.evaluation.further_slices.AGES", AGES)


def test_slices_against_a_slow_oracle() -> None:
    matrix, split, scores = random_night(3)
    evaluation = evaluate(Table(scores), matrix, split, ks=(10, 20))
    subjects = split.subjects.tolist()
    regions = {s: region for n, s in enumerate(subjects) if (region := REGIONS[n % 5]) is not None}
    plans = {s: "gold" for n, s in enumerate(subjects) if n % 3 == 0}
    categories = [("Home > A", "Toys", "Home", None, "Rare")[n % 5] for n in range(45)]
    slices = further_slices(
        split, attributes={"region": regions | {"u:stranger": "SE"}, "plan": plans}, categories=categories
    )
    start = to_micros(split.test_start)
    first = dict(
        zip(split.train["item_number"].to_pylist()[::-1], split.train["micros"].to_pylist()[::-1], strict=True)
    )
    for item, at in zip(split.train["item_number"].to_pylist(), split.train["micros"].to_pylist(), strict=True):
        first[item] = min(first[item], at)
    days = {item: (start - at) / to_micros_of(timedelta(days=1)) for item, at in first.items()}

    names = ["region DE", "region FR", "plan gold"]
    assert list(slices.people) == names, "of the two regions of equal size the first by name"
    assert slices.people["plan gold"].tolist() == [n % 3 == 0 for n in range(len(subjects))]
    assert slices.people["region DE"].tolist() == [regions.get(s) == "DE" for s in subjects]
    assert [name for name in slices.items if name.startswith("category")] == ["category Home", "category Toys"]
    ages = {name: (low, high) for name, low, high in AGES[:2]}
    assert [name for name in slices.items if name.startswith("items")] == list(ages), "the history has no older ones"
    for name, (low, high) in ages.items():
        assert set(np.flatnonzero(slices.items[name])) == {n for n, age in days.items() if low <= age < high}

    measured, counts = slices.measure(evaluation, split), slices.person_counts(split)
    assert measured.keys() == counts.keys()
    home = {n for n in range(45) if (categories[n] or "").startswith("Home")}
    row_of = {s: n for n, s in enumerate(matrix.subjects.tolist())}
    shares = []
    for place, subject in enumerate(subjects):
        wanted = set(items_of(split.relevant, place)) & home
        left = [n for n in range(45) if n not in items_of(split.seen, place)]
        best = set(sorted(left, key=lambda n: (-scores[row_of[subject]][n], n))[:20])
        if wanted:
            shares.append(len(wanted & best) / len(wanted))
    assert len(shares) > 5
    assert counts["category Home"] == len(shares)
    assert measured["category Home"]["recall_at_20"] == pytest.approx(np.mean(shares))
    assert measured["category Home"]["hit_rate_at_20"] == pytest.approx(np.mean(np.array(shares) > 0))
    inside = slices.people["region DE"]
    assert counts["region DE"] == inside.sum()
    assert measured["region DE"]["ndcg_at_10"] == pytest.approx(evaluation.per_user["ndcg_at_10"][inside].mean())


def to_micros_of(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


def test_without_users_or_a_catalogue_there_are_ages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _, split, _ = random_night(3)
    found = further_slices(split)
    assert found.people == {}
    assert all(name.startswith("items") for name in found.items)
    assert len(found.items) == 2
    monkeypatch.setattr("spark_jobs.evaluation.further_slices.LEAST_PERSONS", 1_000)
    assert further_slices(split, attributes={"region": dict.fromkeys(split.subjects.tolist(), "DE")}) == ({}, {})


def test_names_that_mlflow_takes() -> None:
    recall = {"recall_at_20": 0.5, "hit_rate_at_20": 1.0}
    found = further_metrics({"region São Paulo / SP": recall, "items under 7 days": recall})
    assert found == {"recall_at_20__region_S_o_Paulo_SP": 0.5, "recall_at_20__items_under_7_days": 0.5}
