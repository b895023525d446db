"""The bench of publication: its arithmetic, and the brute force that our lists are held to."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from scipy import sparse

from infra.bench.nights import publishing
from infra.bench.nights.publishing import Published, hold_to_brute_force, report_of
from spark_jobs.models.als import Als
from spark_jobs.models.recipes import default_recipe
from spark_jobs.transforms.candidates import Scoring


def scoring(seed: int = 3) -> Scoring:
    rng = np.random.default_rng(seed)
    model = Als({**default_recipe("als")["params"], "factors": 8})
    model.item_factors = (rng.normal(size=(40, 8)) / 4).astype(np.float32)
    model.item_factors[7] = model.item_factors[3]  # a tie
    had = sparse.csr_matrix((rng.random((30, 40)) < 0.15).astype(np.float32))
    model.user_factors = model.fold_in(had)
    users = np.array([f"u{n}" for n in range(30)])
    return Scoring(
        model=model, user_ids=users, rows=np.arange(30), histories=had, seen=had, eligible=np.ones(40, bool),
        as_of=date(2024, 3, 8), per_user=10, explained=0,
    )  # fmt: skip


def test_lists_are_those_of_brute_force_and_another_list_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "LIST_LENGTH", 10)
    ours = scoring()
    assert hold_to_brute_force(ours, np.arange(30)) == (30, 0)
    blind = replace(ours, eligible=np.arange(40) != 11)  # what was best is left out of some lists
    identical, wrong = hold_to_brute_force(blind, np.arange(30))
    assert identical + wrong == 30
    assert wrong > 3
    nearly = scoring()
    nearly.model.item_factors[7] *= np.float32(1 + 1e-7)  # type: ignore[attr-defined]
    assert hold_to_brute_force(nearly, np.arange(30))[1] == 0


def test_the_report_is_per_core_and_pair_by_pair() -> None:
    ours = [Published(2.0, 1_000, 0.5, 0.004, 10, 9, 0), Published(4.0, 1_000, 0.5, 0.002, 10, 10, 1)]
    theirs = [Published(20.0, 1_000), Published(12.0, 1_000)]
    report = report_of(ours, theirs, "v1")
    figures = report["figures"]
    assert (figures["times_less_wall"]["min"], figures["times_less_wall"]["max"]) == (3.0, 10.0)
    assert figures["rows_per_second_per_core"]["median"] == 375_000.0
    assert figures["publication_seconds"]["baseline"] == 16.0
    assert (report["sampled"], report["identical"], report["wrong"]) == (20, 19, 1)
