"""The time split and full ranking: rows that each break one plausible mistake, and a slow oracle."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.times import to_micros
from spark_jobs.evaluation.full_ranking import evaluate
from spark_jobs.evaluation.split import TimeSplit, split_by_time
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.matrix import build_matrix, histories_of, matrix_rows
from tests.builders import utc

CUT_OFF = utc("2024-03-22")

ROWS = [
    ("u:old", 0, "2024-03-01"),  # starts the history: 21 days, so that 7 can be held back
    ("u:old", 5, "2024-03-14"),
    ("u:ann", 1, "2024-03-10"),
    ("u:ann", 2, "2024-03-14T23:59:59.999999"),  # the last instant of training
    ("u:ann", 2, "2024-03-15"),  # the first of the test window; had it before: not counted
    ("u:ann", 0, "2024-03-16"),  # new to her, known: a test item
    ("u:ann", 0, "2024-03-17"),  # twice: still one test item
    ("u:ann", 9, "2024-03-17"),  # nobody had it in training: nothing can find it
    ("u:ann", 5, "2024-03-22"),  # at the cut-off: not seen
    ("u:bob", 1, "2024-03-11"),
    ("u:bob", 1, "2024-03-18"),  # only what he had: no test person
    ("u:new", 1, "2024-03-19"),  # no training event: no test person
    ("a:guest", 1, "2024-03-11"),  # anonymous: trains, is not judged
    ("a:guest", 2, "2024-03-18"),
]


def table(rows: list[tuple[str, int, str]]) -> pa.Table:
    return pa.table(
        {
            "subject_key": [r[0] for r in rows],
            "item_number": pa.array([r[1] for r in rows], pa.int32()),
            "event_type": ["view_item"] * len(rows),
            "micros": [to_micros(utc(r[2])) for r in rows],
        }
    )


def split(rows: list[tuple[str, int, str]], **other: int) -> TimeSplit:
    return split_by_time(table(rows), cut_off=CUT_OFF, item_count=10, **other)


def items_of(matrix: sparse.csr_matrix, row: int) -> list[int]:
    return matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]].tolist()


def test_who_is_judged_on_what() -> None:
    found = split(ROWS)
    assert (found.test_days, found.test_start, found.note) == (7, utc("2024-03-15"), "")
    assert found.train.num_rows == 6
    assert set(found.train["subject_key"].to_pylist()) == {"u:old", "u:ann", "u:bob", "a:guest"}
    assert found.subjects.tolist() == ["u:ann"]
    assert found.train_event_counts.tolist() == [2]
    assert items_of(found.relevant, 0) == [0]
    assert items_of(found.seen, 0) == [1, 2]
    assert np.flatnonzero(found.known_items).tolist() == [0, 1, 2, 5]


@pytest.mark.parametrize(
    ("first_day", "asked", "days", "note"),
    [
        ("2024-03-01", 7, 7, ""),
        ("2024-03-02", 7, 6, "the history is 20.0 days long, so the test window is 6 days, not 7"),
        ("2024-03-18T12:00:00", 7, 1, "the history is 3.5 days long, so the test window is 1 day, not 7"),
        ("2024-03-20", 7, 0, "the history is 2.0 days long: too short to hold back even one day"),
        ("2024-03-01", 3, 3, ""),
    ],
)
def test_the_window_shrinks_with_the_history(first_day: str, asked: int, days: int, note: str) -> None:
    found = split([("u:a", 1, first_day), ("u:b", 0, first_day), ("u:a", 0, "2024-03-21T12:00:00")], test_days=asked)
    assert found.test_days == days
    assert found.note.startswith(note)
    assert len(found.subjects) == (1 if days else 0)


def test_nobody_came_back() -> None:
    found = split([("u:a", 1, "2024-03-01"), ("u:b", 1, "2024-03-21")])
    assert found.note == "nobody of 1 events in the last 7 days came back for something new"
    assert found.relevant.shape == (0, 10)


def test_nothing_before_the_cut_off() -> None:
    with pytest.raises(DataError, match="no interactions before 2024-03-22"):
        split([("u:a", 1, "2024-03-22")])
    with pytest.raises(DataError, match="test_days must be at least 1, got 0"):
        split(ROWS, test_days=0)


def test_slices_by_training_events() -> None:
    rows = [("u:4", 0, "2024-03-01")] * 4 + [("u:5", 0, "2024-03-02")] * 5 + [("u:20", 0, "2024-03-02")] * 20
    rows += [("u:21", 0, "2024-03-02")] * 21 + [("u:x", 1, "2024-03-02")]
    rows += [(subject, 1, "2024-03-20") for subject in ("u:4", "u:5", "u:20", "u:21")]
    found = split(rows)
    assert dict(zip(found.subjects.tolist(), found.slices.tolist(), strict=True)) == {
        "u:4": "<5", "u:5": "5-20", "u:20": "5-20", "u:21": ">20",
    }  # fmt: skip


def test_a_sample_of_persons_is_seeded_and_sorted() -> None:
    rows = [(f"u:{n:03d}", 0, "2024-03-01") for n in range(50)] + [("u:x", 1, "2024-03-01")]
    rows += [(f"u:{n:03d}", 1, "2024-03-20") for n in range(50)]
    few, again = split(rows, max_test_users=10), split(list(reversed(rows)), max_test_users=10)
    assert few.subjects.tolist() == again.subjects.tolist() == sorted(few.subjects.tolist())
    assert len(few.subjects) == 10
    assert few.relevant.shape == few.seen.shape == (10, 10)
    assert few.subjects.tolist() != [f"u:{n:03d}" for n in range(10)]


class Table:
    """A "model" whose scores are a table by matrix row; row -1 (nobody) gets the last line."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores.astype(np.float32)

    def score_block(self, histories, rows):
        assert histories.shape == (len(rows), self.scores.shape[1])
        return self.scores[rows].copy()


def random_night(seed: int) -> tuple[InteractionMatrix, TimeSplit, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = [
        (f"u:{rng.integers(30):02d}", int(rng.integers(40)), f"2024-03-{rng.integers(1, 22):02d}") for _ in range(400)
    ]
    found = split_by_time(table(rows), cut_off=CUT_OFF, item_count=45, test_days=7)
    matrix = build_matrix(
        found.train, item_count=45, weights={"view_item": 1.0}, half_life_days=None, cut_off=found.test_start
    )
    scores = rng.integers(0, 6, size=(len(matrix.subjects) + 1, 45)).astype(float)  # many ties
    return matrix, found, scores


@pytest.mark.parametrize("cells", [45, 45 * 7, 10**6])
def test_full_ranking_against_a_slow_oracle(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.evaluation.full_ranking.CELLS_PER_BLOCK", cells)
    matrix, found, scores = random_night(3)
    scores[2, 4] = np.nan
    result = evaluate(Table(scores), matrix, found, ks=(5, 10))
    row_of = {s: n for n, s in enumerate(matrix.subjects.tolist())}
    assert len(found.subjects) > 15
    shown = np.zeros(45, int)
    for place, subject in enumerate(found.subjects.tolist()):
        own = np.nan_to_num(scores[row_of[subject]], nan=-1.0)
        left = [n for n in range(45) if n not in items_of(found.seen, place)]
        best = sorted(left, key=lambda n: (-own[n], n))[:10]
        shown[best] += 1
        relevant = items_of(found.relevant, place)
        gained = sum(1 / np.log2(rank + 1) for rank, n in enumerate(best, 1) if n in relevant)
        ideal = sum(1 / np.log2(rank + 1) for rank in range(1, min(10, len(relevant)) + 1))
        assert result.per_user["ndcg_at_10"][place] == pytest.approx(gained / ideal)
        assert result.per_user["recall_at_5"][place] == pytest.approx(
            len(set(best[:5]) & set(relevant)) / len(relevant)
        )
    assert result.exposed[10].tolist() == shown.tolist()
    assert result.non_finite_count == (1 if matrix.subjects[2] in found.subjects else 0)
    beyond = result.beyond_accuracy()
    assert beyond["distinct_items_at_10"] == (shown > 0).sum()
    assert beyond["coverage_at_10"] == pytest.approx(((shown > 0) & found.known_items).sum() / found.known_items.sum())


def test_means_by_slice() -> None:
    matrix, found, scores = random_night(3)
    result = evaluate(Table(scores), matrix, found, ks=(10,))
    means = result.by_slice(found.slices)
    assert set(means) == {"all"} | set(found.slices.tolist())
    assert len(means) >= 3
    inside = found.slices == "5-20"
    assert means["5-20"]["mrr_at_10"] == pytest.approx(result.per_user["mrr_at_10"][inside].mean())
    assert means["all"]["mrr_at_10"] == pytest.approx(result.per_user["mrr_at_10"].mean())


def test_a_person_whose_events_have_no_weight_is_nobody() -> None:
    matrix, _, _ = random_night(3)
    subjects = np.array([matrix.subjects[1], "u:zzz", matrix.subjects[0], "a:aaa"])
    rows = matrix_rows(matrix, subjects)
    assert rows.tolist() == [1, -1, 0, -1]
    histories = histories_of(matrix, rows).toarray()
    expected = matrix.preference.toarray()
    assert histories[[0, 2]].tolist() == expected[[1, 0]].tolist()
    assert histories[[1, 3]].sum() == 0
