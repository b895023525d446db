"""What lists are like beyond accuracy: novelty, serendipity, diversity within a list, calibration by category.

Definitions, for the top k of a person, each averaged over the persons:
    novelty         mean over the items of -log2(share of the training's people who have it): bits of surprise
    serendipity     share of the k places with an answer that popularity's own list for that person does not have
    diversity       mean over pairs of items of 1 - cosine of who has them; 1: no pair has anybody in common
    miscalibration  sum over categories of p log2(p / (.99 q + .01 p)), p the person's history by category, q the list:
                    0 when the list has the categories of the history in proportion. Only where items have categories

S. Vargas, P. Castells: Rank and relevance in novelty and diversity metrics (2011); H. Steck: Calibrated
recommendations (2018). Measured on at most MOST_PERSONS persons, evenly spaced: means move little beyond.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from spark_jobs.evaluation.metrics import metric_name
from spark_jobs.evaluation.split import TimeSplit
from spark_jobs.models.matrix import distinct
from spark_jobs.models.ranking import mask_items, top_items

MOST_PERSONS = 1_000
K = 20
CELLS_PER_BLOCK = 4_000_000
ALIKE = 0.01
"""Of p that q is mixed with, so that a category missing from the list costs much and not everything."""


def sampled_persons(count: int) -> NDArray[np.int64]:
    """Places of the persons that are measured."""
    return np.unique(np.linspace(0, max(0, count - 1), min(MOST_PERSONS, count)).astype(np.int64))


class ListQuality:
    """Measures lists of the sampled persons of one split. `categories` is a number for each item, -1 for none; None
    where there is no catalogue."""

    def __init__(self, split: TimeSplit, *, categories: NDArray[np.int64] | None = None) -> None:
        self.persons = sampled_persons(len(split.subjects))
        codes = np.asarray(split.train["subject_key"].combine_chunks().indices).astype(np.int64)
        items = np.asarray(split.train["item_number"].combine_chunks()).astype(np.int64)
        item_count = len(split.known_items)
        pairs = distinct(codes * np.int64(max(1, item_count)) + items)
        owners, items = pairs // max(1, item_count), pairs % max(1, item_count)
        self.having = np.bincount(items, minlength=item_count)
        numbers = np.cumsum(np.diff(owners, prepend=-1) > 0) - 1  # people in their order: pairs are sorted by owner
        people = int(numbers[-1]) + 1 if len(numbers) else 0
        self.surprise = -np.log2(np.maximum(self.having, 1) / max(1, people))
        share = 1.0 / np.sqrt(np.maximum(self.having, 1))
        self._owners = sparse.csr_matrix(
            (share[items].astype(np.float32), (items, numbers)),
            shape=(item_count, people),
        )
        self.relevant = split.relevant[self.persons]
        self._popular = _popular_lists(self.having, split.seen[self.persons])
        self._categories = categories
        self._history = _history(split, self.persons) if categories is not None else None

    def measure(self, lists: NDArray[np.int32]) -> dict[str, float]:
        """By name with k. `lists` is persons x K item numbers, -1 where there is none; empty without any person."""
        if lists.size == 0:
            return {}
        listed = lists >= 0
        lengths = np.maximum(listed.sum(axis=1), 1)
        surprise = np.where(listed, self.surprise[np.maximum(lists, 0)], 0.0).sum(axis=1) / lengths
        hits = _contains(self.relevant, lists) & listed
        expected = (lists[:, :, None] == self._popular[:, None, :]).any(axis=2)
        found = {
            "novelty": float(surprise.mean()),
            "serendipity": float((hits & ~expected).sum(axis=1).mean() / K),
            "diversity": float(self._diversity(lists, listed).mean()),
        }
        if self._categories is not None and self._history is not None:
            distances = _distances(self._history, lists, self._categories)
            if len(distances):
                found["miscalibration"] = float(distances.mean())
        return {metric_name(name, K): value for name, value in found.items()}

    def _diversity(self, lists: NDArray[np.int32], listed: NDArray[np.bool_]) -> NDArray[np.float64]:
        rows = np.repeat(np.arange(len(lists)), listed.sum(axis=1))
        places = sparse.csr_matrix(
            (np.ones(len(rows), np.float32), (rows, lists[listed])), shape=(len(lists), len(self.having))
        )
        sums = places @ self._owners
        squares = np.asarray(sums.multiply(sums).sum(axis=1), np.float64).ravel()
        lengths = listed.sum(axis=1)
        own = np.asarray(places @ (self.having > 0).astype(np.float64)).ravel()
        pairs = lengths * (lengths - 1)
        return np.where(pairs > 0, 1.0 - (squares - own) / np.maximum(pairs, 1), 0.0)


def category_numbers(names: list[str | None]) -> NDArray[np.int64]:
    """A number for each item's top category (`A` of `A > B`); -1 for an item without one."""
    tops = [(name or "").partition(" > ")[0].strip() for name in names]
    known = {name: number for number, name in enumerate(sorted(set(tops) - {""}))}
    return np.array([known.get(name, -1) for name in tops], dtype=np.int64)


def _popular_lists(having: NDArray[np.int64], seen: sparse.csr_matrix) -> NDArray[np.int32]:
    """What popularity alone would show each person: the items that most people have, without those of `seen`."""
    found = np.full((seen.shape[0], K), -1, np.int32)
    step = max(1, CELLS_PER_BLOCK // max(1, len(having)))
    for start in range(0, seen.shape[0], step):
        part = seen[start : start + step]
        scores = np.tile(having.astype(np.float32), (part.shape[0], 1))
        mask_items(scores, part)
        numbers, values = top_items(scores, K)
        found[start : start + step, : numbers.shape[1]] = np.where(np.isfinite(values), numbers, -1)
    return found


def _history(split: TimeSplit, persons: NDArray[np.int64]) -> sparse.csr_matrix:
    """Which items each of the persons had in training, whatever may be recommended to them."""
    column = split.train["subject_key"].combine_chunks()
    names = np.array(column.dictionary.to_pylist(), dtype=np.str_)
    subjects = split.subjects[persons]
    order = {str(name): place for place, name in enumerate(subjects.tolist())}
    place = np.array([order.get(str(name), -1) for name in names.tolist()], dtype=np.int64)
    rows = place[np.asarray(column.indices)]
    items = np.asarray(split.train["item_number"].combine_chunks())
    kept = rows >= 0
    had = sparse.csr_matrix(
        (np.ones(int(kept.sum()), np.float32), (rows[kept], items[kept])),
        shape=(len(persons), len(split.known_items)),
    )
    had.sum_duplicates()
    had.data[:] = 1.0
    return had


def _contains(relevant: sparse.csr_matrix, lists: NDArray[np.int32]) -> NDArray[np.bool_]:
    width = relevant.shape[1]
    wanted = np.repeat(np.arange(relevant.shape[0]), np.diff(relevant.indptr)) * width + relevant.indices
    return np.isin(np.arange(len(lists))[:, None] * width + lists, wanted)


def _distances(
    history: sparse.csr_matrix, lists: NDArray[np.int32], categories: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The divergence of each person who has any category in their history."""
    count = int(categories.max(initial=-1)) + 1
    if count == 0:
        return np.empty(0)
    named = np.flatnonzero(categories >= 0)
    by_category = sparse.csr_matrix((np.ones(len(named)), (named, categories[named])), shape=(len(categories), count))
    rows = np.repeat(np.arange(len(lists)), (lists >= 0).sum(axis=1))
    listed = sparse.csr_matrix((np.ones(len(rows)), (rows, lists[lists >= 0])), shape=(len(lists), len(categories)))
    past = np.asarray((history @ by_category).todense(), np.float64)
    shown = np.asarray((listed @ by_category).todense(), np.float64)
    told = past.sum(axis=1) > 0
    p = past[told] / past[told].sum(axis=1, keepdims=True)
    q = shown[told] / np.maximum(shown[told].sum(axis=1, keepdims=True), 1.0)
    mixed = (1 - ALIKE) * q + ALIKE * p
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p / mixed), 0.0)
    return np.asarray(terms.sum(axis=1))
