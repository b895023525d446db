"""The time split: models learn from what came before, and are asked for what came after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.events import EventType
from feature_repo.contracts.times import from_micros, to_micros
from spark_jobs.models.activity import ACTIVITY_SLICES, activity_slices
from spark_jobs.models.matrix import sort_interactions

TEST_DAYS = 7
MAX_TEST_USERS = 20_000
"""More persons than this narrow the intervals no further that matters; a seeded sample of them is judged."""
_SAMPLE_SEED = 20_240_229

SLICES = ("all", *ACTIVITY_SLICES)
"""By the number of a person's training events."""

SEEN_POLICIES = (INTERACTED, PURCHASED, NONE) = ("interacted", "purchased", "none")
"""Values of the run parameter `exclude_seen`: what of a person's past is never recommended to them again."""

SLICE_SUFFIX = {"all": "", "<5": "__lt5", "5-20": "__5to20", ">20": "__gt20"}
"""What a slice adds to a metric's name in MLflow."""


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Training events, and the persons whose test items the models must find.

    test_start          aware UTC; training is before it, the test window is [test_start, cut_off)
    test_days           length of the test window; 0 when the history is too short to hold anything back
    note                in words, when the window was shortened or nothing can be tested; else empty
    train               interactions before test_start, sorted
    subjects            the test persons, sorted
    train_event_counts  training events of each
    seen                CSR, persons x items: what is never to be recommended to them (pattern)
    relevant            CSR, persons x items: their test items (pattern), at least one each
    known_items         by item number: it had a training event
    """

    test_start: datetime
    test_days: int
    note: str
    train: pa.Table
    subjects: NDArray[np.str_]
    train_event_counts: NDArray[np.int64]
    seen: sparse.csr_matrix
    relevant: sparse.csr_matrix
    known_items: NDArray[np.bool_]

    @property
    def slices(self) -> NDArray[np.str_]:
        """The slice of each person, other than `all`."""
        return activity_slices(self.train_event_counts)


def split_by_time(
    interactions: pa.Table,
    *,
    cut_off: datetime,
    item_count: int,
    test_days: int = TEST_DAYS,
    max_test_users: int = MAX_TEST_USERS,
    exclude_seen: str = INTERACTED,
) -> TimeSplit:
    """Hold back the last `test_days` days before `cut_off`.

    A test person is an identified user ("u:" subject: nobody else gets a published list) with at least one training
    event and at least one test item: an item of the test window that may be recommended to them and is known (somebody
    had it in training). What may be is decided by `exclude_seen`, as for the published lists: nothing that they had in
    training (interacted), nothing that they bought then (purchased), or everything (none). The window shrinks so that
    training keeps at least two thirds of the history.

    Raises DataError when there is no interaction before `cut_off`, or when a parameter is below 1.
    """
    for name, value in (("test_days", test_days), ("max_test_users", max_test_users)):
        if value < 1:
            raise DataError(f"{name} must be at least 1, got {value}", field=name)
    events = sort_interactions(interactions)
    events = events.filter(pc.less(events["micros"], to_micros(cut_off)))
    if events.num_rows == 0:
        raise DataError(f"no interactions before {cut_off.date().isoformat()}: there is nothing to learn from")
    days, note = _affordable_days(from_micros(pc.min(events["micros"]).as_py()), cut_off, test_days)
    test_start = cut_off - timedelta(days=days)
    is_train = pc.less(events["micros"], to_micros(test_start))
    train, test = sort_interactions(events.filter(is_train)), events.filter(pc.invert(is_train))

    codes = np.asarray(events["subject_key"].combine_chunks().indices)
    words = np.array(events["subject_key"].combine_chunks().dictionary.to_pylist(), dtype=np.str_)
    items, in_train = np.asarray(events["item_number"]), np.asarray(is_train.combine_chunks())
    shape = (len(words), item_count)
    closed = in_train & _is_closed(events, exclude_seen)
    had, got = _pattern(codes[closed], items[closed], shape), _pattern(codes[~in_train], items[~in_train], shape)
    known_items = np.bincount(items[in_train], minlength=item_count) > 0
    fresh = (got - got.multiply(had)).tocsr() @ sparse.diags(known_items.astype(np.float32))
    relevant = _without_zeros(fresh)
    event_counts = np.bincount(codes[in_train], minlength=len(words))
    is_user = np.char.startswith(words, "u:")
    persons = np.flatnonzero(is_user & (event_counts > 0) & (np.diff(relevant.indptr) > 0))
    if len(persons) == 0 and days:
        note = f"{note}; " if note else ""
        note += f"nobody of {test.num_rows:,} events in the last {days} days came back for something new"
    if len(persons) > max_test_users:
        rng = np.random.default_rng(_SAMPLE_SEED)
        persons = np.sort(rng.choice(persons, size=max_test_users, replace=False))
    return TimeSplit(
        test_start=test_start,
        test_days=days,
        note=note,
        train=train,
        subjects=words[persons],
        train_event_counts=event_counts[persons],
        seen=had[persons],
        relevant=relevant[persons],
        known_items=known_items,
    )


def _is_closed(events: pa.Table, exclude_seen: str) -> NDArray[np.bool_]:
    """Which events close their item for the person."""
    if exclude_seen == PURCHASED:
        return np.asarray(
            pc.equal(pc.cast(events["event_type"], pa.string()), EventType.PURCHASE.value).combine_chunks()
        )
    return np.full(events.num_rows, exclude_seen != NONE)


def _affordable_days(first: datetime, cut_off: datetime, wanted: int) -> tuple[int, str]:
    history_days = (cut_off - first) / timedelta(days=1)
    days = min(wanted, int(history_days // 3))
    if days == wanted:
        return days, ""
    history = f"the history is {history_days:.1f} days long"
    if days == 0:
        return 0, f"{history}: too short to hold back even one day, so nothing can be tested"
    return days, f"{history}, so the test window is {days} day{'s' if days > 1 else ''}, not {wanted}"


def _pattern(rows: NDArray[np.integer], columns: NDArray[np.integer], shape: tuple[int, int]) -> sparse.csr_matrix:
    matrix = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def _without_zeros(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    matrix = sparse.csr_matrix(matrix)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


def seen_policy(params: Mapping[str, Any]) -> str:
    """The run's `exclude_seen`. Raises DataError naming the nearest policy."""
    policy = str(params.get("exclude_seen") or INTERACTED)
    if policy not in SEEN_POLICIES:
        hint = nearest(policy, SEEN_POLICIES)
        raise DataError(
            f"exclude_seen is one of {', '.join(SEEN_POLICIES)}; got {policy!r}{hint}", field="exclude_seen"
        )
    return policy
