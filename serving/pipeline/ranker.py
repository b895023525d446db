"""The request-time ranker: trees of the night that order the best of an answer by what is known when it is asked for.

Without I/O: `Wanted` says what of Feast's features it has to know, `PersonFeatures` is the answer to that. The night
learns from the same inputs (`spark_jobs.models.answer_ranker`); a test holds the two orders equal.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from math import nan, nextafter
from typing import Any, NamedTuple

from feature_repo.contracts.ranker_file import (
    ANSWER_INPUTS,
    CATEGORY_VIEW,
    USER_VIEW,
    RankerFile,
    features_used,
    unpack_ranker,
)
from serving.native import parts
from serving.pipeline.tree_scores import Inputs, score_trees
from serving.pipeline.values import Ranking

NOT_PUBLISHED, NO_CONSENT, NO_USER, NO_LIST = "not_published", "no_consent", "no_user", "no_list"
ASKED_ITEMS, NOT_READ = "asked_items", "not_read"
FEATURES_MISSING, FEATURES_STALE = "ranker_features_missing", "ranker_features_stale"
FEATURES_DAMAGED, FEATURES_UNAVAILABLE = "ranker_features_damaged", "ranker_features_unavailable"
FAILURES = (FEATURES_MISSING, FEATURES_STALE, FEATURES_DAMAGED, FEATURES_UNAVAILABLE)
"""Why an order is the first stage's although the ranker should have made it: the answer is degraded. For the reasons
above them it is as it should be."""


class Wanted(NamedTuple):
    """What an answer has to know of its person. `categories`: those of its candidates, each once."""

    user_id: str
    categories: Sequence[str]
    ranker: RequestRanker
    as_of_micros: int


class PersonFeatures(NamedTuple):
    """What is known: values in the order of the ranker's features; NaN where one is missing.

    by_category  of the categories that the person has a row of
    micros       the instant that all of them are stamped with (us since 1970 UTC)
    """

    user: Sequence[float]
    by_category: Mapping[str, Sequence[float]]
    micros: int

    def digest(self) -> str:
        """16 hex digits that stand for the values: a replay shows that it read the same."""
        values = array("f", self.user)
        for category in sorted(self.by_category):
            values.extend(self.by_category[category])
        text = "\n".join(sorted(self.by_category)).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(values.tobytes() + text, digest_size=8).hexdigest()


class RequestRanker:
    """The trees of one version. Values may be views into a memory map.

    depth  so many of the best are put into another order
    user_features, category_features  what has to be read of a person
    """

    def __init__(self, file: RankerFile, name: str) -> None:
        self.depth, self.name, self.learned = file.depth, name, file.learned
        trees = file.trees
        self.user_features = features_used(trees, USER_VIEW)
        self.category_features = features_used(trees, CATEGORY_VIEW)
        self._item_width = len(file.item_columns)
        self._values = file.values
        columns = [*ANSWER_INPUTS, *file.item_columns, *self.user_features, *self.category_features]
        place = {name: number for number, name in enumerate(columns)}
        self.trees = trees._replace(names=columns, inputs=array("i", [place[trees.names[n]] for n in trees.inputs]))
        self._scorer: Any = None if parts.trees is None else parts.trees.TreeScorer(self.trees)

    def wants(self, user_id: str, categories: Sequence[str | None], as_of_micros: int) -> Wanted:
        """What has to be read for candidates of these categories."""
        asked = dict.fromkeys(category for category in categories if category is not None)
        return Wanted(user_id, tuple(asked) if self.category_features else (), self, as_of_micros)

    def rank(
        self,
        best: Sequence[int],
        scores: Mapping[int, float],
        bases: Mapping[int, float],
        votes: Mapping[int, float],
        weight: float,
        categories: Sequence[str | None],
        known: PersonFeatures | str,
    ) -> tuple[list[int], Ranking]:
        """(the items in the order of the trees, what was done). `known`: what is known of the person, or why nothing
        is: then their order stays."""
        if isinstance(known, str):
            return list(best), Ranking(self.name, known)
        ranked = self.order(best, scores, bases, votes, weight, categories, known)
        before = {number: place for place, number in enumerate(best, start=1)}
        moved = {number: (before[number], said) for number, said in ranked}
        return [number for number, _ in ranked], Ranking(self.name, None, known.micros, known.digest(), moved)

    def order(
        self,
        best: Sequence[int],
        scores: Mapping[int, float],
        bases: Mapping[int, float],
        votes: Mapping[int, float],
        weight: float,
        categories: Sequence[str | None],
        person: PersonFeatures,
    ) -> list[tuple[int, float]]:
        """(item number, what the trees say) of `best` (an answer's best items, in its order), best first; what is equal
        keeps its order. `categories`: of each item of `best`."""
        own = array("f")
        for rank, number in enumerate(best):
            own.extend((scores[number], rank, bases.get(number, nan), votes.get(number, 0.0), weight))
        width = len(self.category_features)
        rows: dict[str | None, int] = {None: 0}
        by_category = array("f", [nan] * width)
        for category in categories:
            if category not in rows:
                rows[category] = 0
                if width and category is not None and category in person.by_category:
                    rows[category] = len(by_category) // width
                    by_category.extend(person.by_category[category])
        inputs = Inputs(
            len(best), len(ANSWER_INPUTS), own, array("i", best), self._item_width, self._values,
            array("f", person.user), width, array("i", [rows[category] for category in categories]), by_category,
        )  # fmt: skip
        said = score_trees(self.trees, inputs) if self._scorer is None else self._scorer.scores(*inputs)
        places = sorted(range(len(best)), key=lambda place: -said[place])
        return [(best[place], said[place]) for place in places]


def with_order(scores: Mapping[int, float], ordered: Sequence[int]) -> Mapping[int, float]:
    """The scores, those of `ordered` exchanged so that they fall in its order: its first item has the largest of them,
    and so on. Where two would be equal, the later one is the next smaller number, so that the order holds."""
    changed = dict(scores)
    before = None
    for number, score in zip(ordered, sorted((scores[n] for n in ordered), reverse=True), strict=True):
        if before is not None and score >= before:
            score = nextafter(before, -1.0)
        changed[number] = before = score
    return changed


def read_ranker(data: bytes | memoryview, name: str) -> RequestRanker:
    """From the bytes of `ranker.bin`, or a memory map of them. Raises ContractError if they are no such file."""
    return RequestRanker(unpack_ranker(data), name)
