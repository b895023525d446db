"""Further slices of a comparison: people by what they let the shop know, items by age and by category.

    <attribute> <value>   test persons whose attribute has that value (`region`, or any other of the users table); the
                      MOST_GROUPS with most of them. Who denies training is in no interaction, so in no slice either
    in a session      test persons who had a session running when they came for something (`with_session`)
    category <name>   test items of that top category; the MOST_GROUPS with most of them
    items <age>       test items whose first training event lies less than 7 days before the test, 7 to 30, or more

A slice of people has their means of the usual metrics. A slice of items has, over the persons with a test item in it,
the mean share of those that their top 20 held (`recall`) and whether it held any (`hit_rate`); the list itself is that
of the whole catalogue. Slices of fewer than LEAST_PERSONS persons are left out: they would show chance, and persons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.times import to_micros
from spark_jobs.evaluation.full_ranking import ModelEvaluation
from spark_jobs.evaluation.metrics import metric_name
from spark_jobs.evaluation.split import TimeSplit

K = 20
MOST_GROUPS = 5
LEAST_PERSONS = 20
DAY_MICROS = 86_400_000_000
AGES = (("items under 7 days", 0, 7), ("items of 7 to 30 days", 7, 30), ("items over 30 days", 30, 100_000))

Metrics = Mapping[str, float]


class FurtherSlices(NamedTuple):
    """By name: which test persons, and which items (by number)."""

    people: Mapping[str, NDArray[np.bool_]]
    items: Mapping[str, NDArray[np.bool_]]

    def person_counts(self, split: TimeSplit) -> dict[str, int]:
        """How many persons each slice is over."""
        of_items = {name: int(_persons_with(split.relevant, inside).sum()) for name, inside in self.items.items()}
        return {**{name: int(inside.sum()) for name, inside in self.people.items()}, **of_items}

    def measure(self, evaluation: ModelEvaluation, split: TimeSplit) -> dict[str, Metrics]:
        """Slice -> metric -> mean."""
        found: dict[str, Metrics] = {
            name: {metric: float(values[inside].mean()) for metric, values in evaluation.per_user.items()}
            for name, inside in self.people.items()
        }
        for name, inside in self.items.items():
            asked = _persons_with(split.relevant, inside)
            wanted = np.asarray(split.relevant @ inside.astype(np.float64)).ravel()[asked]
            hits = np.asarray(evaluation.hits @ inside.astype(np.float64)).ravel()[asked]
            found[name] = {
                metric_name("recall", K): float((hits / wanted).mean()),
                metric_name("hit_rate", K): float((hits > 0).mean()),
            }
        return found


def further_slices(
    split: TimeSplit,
    *,
    attributes: Mapping[str, Mapping[str, str]] | None = None,
    categories: Sequence[str | None] | None = None,
    people: Mapping[str, NDArray[np.bool_]] | None = None,
) -> FurtherSlices:
    """`attributes`: attribute -> subject key -> value; `categories`: by item number its category, `A > B` or None;
    `people`: slices of test persons that the caller knows, by name."""
    found: dict[str, NDArray[np.bool_]] = {}
    for name, values in (attributes or {}).items():
        found |= _groups(name, [values.get(str(subject)) for subject in split.subjects.tolist()])
    people = {**found, **(people or {})}
    people = {name: inside for name, inside in people.items() if inside.sum() >= LEAST_PERSONS}
    items: dict[str, NDArray[np.bool_]] = {}
    if categories is not None:
        wanted = np.asarray(split.relevant.sum(axis=0)).ravel()
        tops = [(name or "").partition(" > ")[0].strip() or None for name in categories]
        items |= _groups("category", tops, weights=wanted)
    items |= _by_age(split)
    persons = {name: _persons_with(split.relevant, inside).sum() for name, inside in items.items()}
    return FurtherSlices(people, {name: items[name] for name in items if persons[name] >= LEAST_PERSONS})


def _groups(
    kind: str, names: Sequence[str | None], *, weights: NDArray[np.float64] | None = None
) -> dict[str, NDArray[np.bool_]]:
    """The largest groups, by the number (or weight) of their members, ties by name."""
    column = np.array([name or "" for name in names], dtype=np.str_)
    known, codes = np.unique(column, return_inverse=True)
    sizes = np.bincount(codes, weights=weights, minlength=len(known))
    order = sorted((n for n in range(len(known)) if known[n]), key=lambda n: (-sizes[n], str(known[n])))
    return {f"{kind} {known[n]}": codes == n for n in order[:MOST_GROUPS]}


def _by_age(split: TimeSplit) -> dict[str, NDArray[np.bool_]]:
    first = np.full(len(split.known_items), np.iinfo(np.int64).max)
    np.minimum.at(first, np.asarray(split.train["item_number"]), np.asarray(split.train["micros"]))
    days = (to_micros(split.test_start) - first) / DAY_MICROS
    return {name: split.known_items & (days >= low) & (days < high) for name, low, high in AGES}


def _persons_with(relevant: sparse.csr_matrix, inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(relevant @ inside.astype(np.float64)).ravel() > 0
