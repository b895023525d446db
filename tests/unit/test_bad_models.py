"""Broken models and publications, one fault each, stopped by the gate or the publication's checks; sound ones pass.

Models are fitted on a small planted shop and go the way of a night: evaluate, judge. `VALIDATED` stands for what a
recipe reached on the validation window.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.packing import PackedCandidate, pack_candidates
from feature_repo.contracts.times import from_micros, to_micros
from spark_jobs.evaluation.full_ranking import evaluate
from spark_jobs.evaluation.gate import (
    BASELINE,
    METRIC,
    PUBLISH,
    RECALL,
    REFUSED,
    Contestant,
    Night,
    Thresholds,
    Verdict,
    judge,
    random_recall,
)
from spark_jobs.evaluation.split import TimeSplit, split_by_time
from spark_jobs.models.artifacts import MANIFEST_FILE
from spark_jobs.models.factory import Fitted, fit, load_model, newest_learned
from spark_jobs.models.matrix import sort_interactions
from spark_jobs.models.recipes import blend_recipe, default_recipe
from spark_jobs.models.training_data import TrainingData
from spark_jobs.transforms.list_checks import list_faults
from spark_jobs.transforms.record_checks import record_faults, row_count
from tests.builders import utc

FIRST, CUT_OFF = utc("2024-03-01"), utc("2024-03-29")
ITEMS, GROUPS = 80, 4
SLICES = ("<5", "5-20", ">20")
VALIDATED = 0.3
SMALL = {"als": {"factors": 8, "iterations": 6, "regularization": 1.0}, "ials": {"factors": 8, "iterations": 5},
         "graph_filter": {"factors": 8}}  # fmt: skip


def planted() -> pa.Table:
    """80 users in four groups, each with a taste for twenty items, at two dozen events. Item numbers are dealt out, so
    that a user's number says nothing of an item's: a swap would pass otherwise."""
    rng = np.random.default_rng(8)
    dealt = rng.permutation(ITEMS)
    share = 1.0 / np.arange(1, 21) ** 0.5
    rows = []
    for user in range(80):
        for _ in range(24):
            item = int(rng.choice(20, p=share / share.sum())) * GROUPS + user % GROUPS
            item = item if rng.random() < 0.9 else int(rng.integers(ITEMS))
            rows.append(
                (
                    f"u:{user:02d}",
                    int(dealt[item]),
                    "view_item",
                    to_micros(FIRST + timedelta(days=float(rng.random() * 28))),
                )
            )
    names = ("subject_key", "item_number", "event_type", "micros")
    return sort_interactions(pa.table({name: [row[n] for row in rows] for n, name in enumerate(names)}))


@pytest.fixture(scope="module")
def split() -> TimeSplit:
    return split_by_time(planted(), cut_off=CUT_OFF, item_count=ITEMS)


@pytest.fixture(scope="module")
def data(split: TimeSplit) -> TrainingData:
    return TrainingData(split.train, item_count=ITEMS, cut_off=split.test_start)


def recipe_of(name: str, **params: object) -> dict[str, Any]:
    found = default_recipe(name)
    found["params"].update({**SMALL.get(name, {}), **params})
    return found


def blended(weights: dict[str, float], **other: Any) -> dict[str, Any]:
    used = {**weights, **(other.get("second") or {})}
    return blend_recipe({name: recipe_of(name) for name in used}, dict.fromkeys(SLICES, weights), **other)


def contestant(name: str, fitted: Fitted, split: TimeSplit, **other: Any) -> Contestant:
    """As train_models and judge_models make one."""
    found = evaluate(fitted.model, fitted.matrix, split)
    beyond = found.beyond_accuracy()
    newest = newest_learned(fitted)
    ahead = (from_micros(newest) - split.test_start) / timedelta(hours=1) if newest is not None else None
    values: dict[str, Any] = {
        "name": name, "recipe": {"model": name}, "per_user": {m: found.per_user[m] for m in (METRIC, RECALL)},
        "distinct_items": int(beyond["distinct_items_at_20"]), "top_share": beyond["top_share_at_20"],
        "non_finite_count": found.non_finite_count, "hours_ahead": ahead, "validated": VALIDATED, "minutes": 1.0,
        "file_mb": 1.0, **other,
    }  # fmt: skip
    return Contestant(**values)


@pytest.fixture(scope="module")
def popularity(split: TimeSplit, data: TrainingData) -> Contestant:
    return contestant(BASELINE, fit(recipe_of(BASELINE), data), split, validated=0.12)


@pytest.fixture(scope="module")
def item_knn(split: TimeSplit, data: TrainingData) -> Contestant:
    """A sound model beside the broken one: it is what wins then."""
    return contestant("item_knn", fit(recipe_of("item_knn"), data), split)


@pytest.fixture(scope="module")
def als(data: TrainingData) -> Fitted:
    return fit(recipe_of("als"), data)


def verdict_of(
    split: TimeSplit, *contestants: Contestant, champion: str | None = None, age_days: float = 0.5
) -> Verdict:
    night = Night(
        slices=split.slices, known_items=int(split.known_items.sum()), data_age_days=age_days,
        random_recall=random_recall(ITEMS, np.diff(split.seen.indptr)), champion=champion,
    )  # fmt: skip
    return judge(contestants, night, Thresholds())


def failed_checks(found: Verdict, name: str = "als") -> set[str]:
    return {check.name for check in found.checks if check.model == name and not check.passed}


class Changed:
    """A fitted model whose scores come out changed."""

    def __init__(self, inner: Any, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.inner, self.change = inner, change

    def score_block(self, histories: sparse.csr_matrix, rows: np.ndarray | None = None) -> np.ndarray:
        return self.change(self.inner.score_block(histories, rows).copy())


def with_factors(fitted: Fitted, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Fitted:
    """The same als with other vectors."""
    model = type(fitted.model)(fitted.model.params)
    users, items = change(fitted.model.user_factors.copy(), fitted.model.item_factors.copy())  # type: ignore[attr-defined]
    model.user_factors, model.item_factors = users, items  # type: ignore[attr-defined]
    return Fitted(model, fitted.matrix)


def one_nan(users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    items[3, 0] = np.nan
    return users, items


def overflown(users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return users * np.float32(1e25), items * np.float32(1e25)


def test_the_sound_model_wins(split: TimeSplit, popularity: Contestant, als: Fitted) -> None:
    found = verdict_of(split, popularity, contestant("als", als, split))
    assert (found.verdict, found.contestant) == (PUBLISH, "als"), found.reasons


@pytest.mark.parametrize(
    ("change", "check"),
    [
        pytest.param(one_nan, "finite_scores", id="NaN in the factors"),
        pytest.param(overflown, "finite_scores", id="factors that overflow"),
        pytest.param(lambda u, i: (np.roll(u, 1, axis=0), i), "beats_popularity", id="users by the wrong id map"),
        pytest.param(lambda u, i: (u, np.roll(i, 1, axis=0)), "beats_popularity", id="items by the wrong id map"),
        pytest.param(
            lambda u, i: (i[: len(u)], np.vstack([u, i[len(u) :]])), "beats_popularity", id="users and items swapped"
        ),
        pytest.param(lambda u, i: (u * 0, i), "beats_popularity", id="vectors that were never learned"),
        pytest.param(lambda u, i: (np.tile(u.mean(axis=0), (len(u), 1)), i), "beats_popularity", id="everybody alike"),
    ],
)
def test_a_model_with_broken_vectors_is_stopped(
    change: Any, check: str, split: TimeSplit, popularity: Contestant, item_knn: Contestant, als: Fitted
) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        found = verdict_of(split, popularity, item_knn, contestant("als", with_factors(als, change), split))
    assert found.contestant == "item_knn"
    assert check in failed_checks(found)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        pytest.param(lambda s: -s, "beats_popularity", id="worst first"),
        pytest.param(lambda s: np.random.default_rng(1).random(s.shape, np.float32), "beats_popularity", id="random"),
        pytest.param(lambda s: np.zeros_like(s), "beats_popularity", id="no opinion, so ties by number"),
        pytest.param(lambda s: np.tile(s.mean(axis=0), (len(s), 1)), "beats_popularity", id="popularity collapse"),
        pytest.param(lambda s: np.full_like(s, -np.inf), "coverage", id="nothing to offer"),
    ],
)
def test_a_model_with_broken_scores_is_stopped(
    change: Any, check: str, split: TimeSplit, popularity: Contestant, item_knn: Contestant, als: Fitted
) -> None:
    broken = Fitted(Changed(als.model, change), als.matrix)  # type: ignore[arg-type]
    values = contestant("als", als, split)
    evaluated = evaluate(broken.model, broken.matrix, split)
    beyond = evaluated.beyond_accuracy()
    found = verdict_of(
        split, popularity, item_knn,
        replace(
            values, per_user={m: evaluated.per_user[m] for m in (METRIC, RECALL)},
            distinct_items=int(beyond["distinct_items_at_20"]), top_share=beyond["top_share_at_20"],
        ),
    )  # fmt: skip
    assert found.contestant == "item_knn"
    assert check in failed_checks(found)


def leaked(name: str) -> Fitted:
    """Fitted on everything, the test window too: its matrix says so whatever anybody told it."""
    return fit(recipe_of(name), TrainingData(planted(), item_count=ITEMS, cut_off=CUT_OFF))


@pytest.mark.parametrize("name", ["als", "sequential_rules"])
def test_leaked_labels_are_seen_in_what_the_model_holds(name: str, split: TimeSplit, popularity: Contestant) -> None:
    broken = contestant(name, leaked(name), split)
    assert broken.quality > 2 * popularity.quality, "it would have won"
    found = verdict_of(split, popularity, broken)
    assert found.contestant != name
    assert failed_checks(found, name) >= {"no_future"}
    assert any("holds events of the test window: its newest event is " in words for words in found.reasons)


def test_leaked_labels_are_seen_in_the_rise_over_validation(
    split: TimeSplit, popularity: Contestant, als: Fitted
) -> None:
    """By a way that no matrix shows: the answers themselves are added to the scores of half of the persons."""
    sound = contestant("als", als, split, validated=VALIDATED)
    peeked = {METRIC: np.minimum(1.0, sound.per_user[METRIC] + 0.9), RECALL: np.ones(len(split.subjects))}
    found = verdict_of(split, popularity, replace(sound, per_user=peeked, validated=0.15))
    assert found.contestant != "als"
    assert failed_checks(found) == {"plausible"}
    easier = replace(popularity, validated=popularity.quality / 3)
    assert failed_checks(verdict_of(split, easier, replace(sound, per_user=peeked, validated=0.15))) == set(), (
        "when the baseline rose three times too, it is the window"
    )


def test_a_blend_of_a_leaked_part_is_stopped(split: TimeSplit, popularity: Contestant, als: Fitted) -> None:
    part = contestant("item_knn", leaked("item_knn"), split)
    blend = contestant("blend", als, split, parts=("als", "item_knn"))
    found = verdict_of(split, popularity, contestant("als", als, split), part, blend)
    assert failed_checks(found, "blend") == {"sound_parts"}
    assert found.contestant == "als"


@pytest.mark.parametrize(
    ("fault", "check"),
    [({"minutes": 500.0}, "fast_enough"), ({"file_mb": 9000.0}, "size")],
    ids=["too slow", "too large"],
)
def test_a_model_that_costs_too_much_is_stopped(
    fault: dict[str, float], check: str, split: TimeSplit, popularity: Contestant, als: Fitted
) -> None:
    found = verdict_of(split, popularity, contestant("als", als, split, **fault))
    assert failed_checks(found) == {check}
    assert found.contestant != "als"


def test_stale_data_and_a_worse_challenger_are_stopped(split: TimeSplit, popularity: Contestant, als: Fitted) -> None:
    sound = contestant("als", als, split)
    assert verdict_of(split, popularity, sound, age_days=8.0).verdict == REFUSED
    weak = replace(sound, name="rp3beta", per_user={m: v * 0.95 for m, v in sound.per_user.items()})
    found = verdict_of(split, popularity, sound, weak, champion="als")
    assert failed_checks(found, "rp3beta") == {"not_worse_than_champion"}
    assert found.contestant == "als"


# --- artifacts ----------------------------------------------------------------------------------------------------


def tampered(folder: Path) -> None:
    path = folder / "item_factors.npy"
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", 9.0))


def truncated(folder: Path) -> None:
    path = folder / "item_factors.npy"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    """With a manifest that fits it: a pickle is refused for what it is."""
    import hashlib

    np.save(folder / "item_factors.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    content = (folder / "item_factors.npy").read_bytes()
    manifest["files"]["item_factors.npy"]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def missing(folder: Path) -> None:
    (folder / "user_factors.npy").unlink()


def renamed(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, "model": "neural"}))


@pytest.mark.parametrize("fault", [tampered, truncated, pickled, missing, renamed])
def test_a_broken_artifact_is_never_loaded(fault: Callable[[Path], None], als: Fitted, tmp_path: Path) -> None:
    folder = tmp_path / "als"
    als.model.save(folder)
    load_model(folder)
    fault(folder)
    with pytest.raises(ContractError):
        load_model(folder)


# --- publications -------------------------------------------------------------------------------------------------

VERSION = "2024-03-29-0a1b2c3d"
ROWS = [PackedCandidate(4, 3.0, 3, 1, None), PackedCandidate(2, 2.0, 3, 1, 5), PackedCandidate(9, 0.5, 1)]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (pack_candidates(VERSION, ROWS)[:-3], "damaged record"),
        (b"", "damaged record"),
        (pack_candidates("2024-03-28-0a1b2c3d", ROWS), "record of version 2024-03-28-0a1b2c3d"),
        (pack_candidates(VERSION, [ROWS[0], ROWS[0]._replace(score=2.5)]), "item listed twice"),
        (pack_candidates(VERSION, [ROWS[1], ROWS[0]]), "rows out of order"),
        (pack_candidates(VERSION, [ROWS[0]._replace(score=float("nan"))]), "score not finite"),
        (pack_candidates(VERSION, [ROWS[0]._replace(score=float("inf"))]), "score not finite"),
    ],
    ids=["truncated", "empty", "of yesterday", "doubled id", "unordered", "NaN", "infinite"],
)
def test_a_broken_record_is_found(record: bytes, fault: str) -> None:
    good = pack_candidates(VERSION, ROWS)
    assert record_faults(VERSION, [good, record, good]) == [None, fault, None]
    assert row_count(good) == 3


def fault_by_hand(rows: list[PackedCandidate]) -> str | None:
    """Of the rows of one record, as a person would look for it."""
    if not all(math.isfinite(row.score) for row in rows):
        return "score not finite"
    if [*rows] != sorted(rows, key=lambda row: (-row.score, row.item_number)):
        return "rows out of order"
    return "item listed twice" if len({row.item_number for row in rows}) < len(rows) else None


def test_of_many_records_each_has_its_own_fault() -> None:
    random = Random(8)
    scores = (0.5, 0.25, 0.25, 0.0, -1.0, math.inf, math.nan)
    many = []
    for _ in range(3_000):
        rows = [
            PackedCandidate(random.choice((1, 2, 3, 2**32 - 2)), random.choice(scores[: random.randint(4, 7)]), 1)
            for _ in range(random.randint(0, 3))
        ]
        is_left = random.random() < 0.3 or any(math.isnan(row.score) for row in rows)
        many.append(rows if is_left else sorted(rows, key=lambda row: (-row.score, row.item_number)))
    expected = [fault_by_hand(rows) for rows in many]
    records: list[bytes | None] = [pack_candidates(VERSION, rows) for rows in many]
    for place in range(0, len(many), 100):
        records[place], expected[place] = None, "no record"
    assert len(set(expected)) == 5
    assert record_faults(VERSION, records) == expected
    assert record_faults(VERSION, []) == []


CATALOGUE = {
    "item_number": [0, 1, 2, 3, 5], "is_hidden": [False, False, True, False, False],
    "created_at": [None, None, None, "2024-03-29T00:00:00Z", None],
    "expire_time": [None, "2024-03-30T00:00:00Z", None, None, "2024-03-29T00:00:00Z"],
}  # fmt: skip


def lists(*rows: tuple[str, list[int], list[float]]) -> pa.Table:
    return pa.table(
        {"user_id": [r[0] for r in rows], "item_numbers": [r[1] for r in rows], "scores": [r[2] for r in rows]}
    )


@pytest.mark.parametrize(
    ("items", "scores", "fault"),
    [
        ([0, 2], [2.0, 1.0], "items that are hidden, expired or not there yet: 1 places, first of 'ann'"),
        ([0, 3], [2.0, 1.0], "items that are hidden, expired or not there yet: 1 places"),
        ([5, 0], [2.0, 1.0], "items that are hidden, expired or not there yet: 1 places"),
        ([0, 4], [2.0, 1.0], "item numbers that no item has: 1 places"),
        ([0, 999], [2.0, 1.0], "item numbers that no item has: 1 places"),
        ([0, -1], [2.0, 1.0], "item numbers that no item has: 1 places"),
        ([0, 1], [3e9, 1.0], "scores that are no number of usual size: 1 places"),
        ([0, 1], [float("nan"), 1.0], "scores that are no number of usual size: 1 places"),
        ([0, 1, 0], [3.0, 2.0, 1.0], "items listed twice: 1 places"),
    ],
    ids=[
        "hidden",
        "not yet there",
        "expired",
        "no item",
        "beyond the catalogue",
        "negative",
        "wrong scale",
        "NaN",
        "twice",
    ],
)
def test_a_list_of_what_may_not_be_published_is_found(items: list[int], scores: list[float], fault: str) -> None:
    sound = ("bob", [1, 0], [1.0, 0.5])
    found = list_faults(lists(("ann", items, scores), sound), CATALOGUE, cut_off=CUT_OFF)
    assert len(found) == 1
    assert found[0].startswith(fault)
    assert list_faults(lists(sound), CATALOGUE, cut_off=CUT_OFF) == []
    assert list_faults(lists(sound, sound), CATALOGUE, cut_off=CUT_OFF) == ["users with more than one list: 1"]


# --- sound ones ---------------------------------------------------------------------------------------------------

SOUND = [
    recipe_of("item_knn"), recipe_of("item_knn", neighbours=20), recipe_of("item_knn", shrinkage=0.0),
    recipe_of("item_knn", weighting="tfidf"), recipe_of("item_knn", weighting="bm25"),
    recipe_of("als"), recipe_of("als", factors=4), recipe_of("als", alpha=20.0), recipe_of("als", seed=11),
    recipe_of("ials"), recipe_of("ials", unobserved=0.2), recipe_of("ials", regularization=0.3),
    recipe_of("rp3beta"), recipe_of("rp3beta", beta=0.0), recipe_of("rp3beta", alpha=1.2),
    recipe_of("ease"), recipe_of("ease", regularization=30.0), recipe_of("ease", dropout=0.3),
    recipe_of("graph_filter"), recipe_of("graph_filter", sharpening=0.0), recipe_of("sequential_rules", backward=1.0),
    blended({"als": 1.0, "popularity": 0.001}),
    blended({"als": 1.0, "ease": 0.5, "item_knn": 0.5, "popularity": 0.001}),
    blended({"rp3beta": 1.0}, mode="switching"),
    blended({"item_knn": 1.0}, mode="cascade", second={"als": 1.0}, depth=50),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SOUND)), ids=[f"{n} {r['model']}" for n, r in enumerate(SOUND)])
def test_a_sound_model_passes(number: int, split: TimeSplit, data: TrainingData, popularity: Contestant) -> None:
    one = contestant("challenger", fit(SOUND[number], data), split)
    found = verdict_of(split, popularity, one)
    assert (found.verdict, found.contestant) == (PUBLISH, "challenger"), found.reasons
    assert failed_checks(found, "challenger") == set()


def test_there_are_enough_of_both() -> None:
    assert len(SOUND) == 25
