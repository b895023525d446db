"""The trees that order the best of an answer when it is asked for: LambdaMART, over what is known at that moment.

`ranker` (models.ranker) orders lists in the night, and knows nothing of the session. This one orders what an answer has
made of list and session, in the request (`serving.pipeline.ranker`): both sides read the inputs of
`contracts.ranker_file`, and a test holds their orders equal.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.ranker_file import ANSWER_INPUTS, ITEM_VIEW, features_used, pack_ranker
from feature_repo.contracts.tree_text import read_trees
from spark_jobs.models.artifacts import load_arrays, save_arrays
from spark_jobs.models.entity_features import EntityFeatures
from spark_jobs.models.ranker import LEAST_PEOPLE, grow_trees, trees_of

ANSWER_RANKER = "answer_ranker"
DEFAULTS: Mapping[str, Any] = {
    "depth": 100, "label_days": 7, "most_people": 3_000, "rounds": 60, "leaves": 7, "learning_rate": 0.08,
    "least_rows": 100, "seed": 7, "by_category": False,
}  # fmt: skip
"""As those of `ranker`, which see."""


class Best(NamedTuple):
    """The best of one answer, in its order: item numbers, scores, bases (NaN: of no list), votes, and how loud the
    session is."""

    numbers: NDArray[np.int32]
    scores: NDArray[np.float64]
    bases: NDArray[np.float64]
    votes: NDArray[np.float64]
    weight: float


class Lesson(NamedTuple):
    """One person's answer, and which of its items they came for. `user_row`: theirs in the features."""

    best: Best
    hits: NDArray[np.bool_]
    user_row: int


class AnswerRanker:
    """`params`: DEFAULTS. Without trees (too few people to learn from) an order stays what it is."""

    name = ANSWER_RANKER

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = {**DEFAULTS, **params}
        self.text = ""
        self.learned: Mapping[str, int] = {"people": 0, "rows": 0}
        self._trees: Any = None

    @property
    def depth(self) -> int:
        return int(self.params["depth"])

    def learn(self, lessons: Iterable[Lesson], features: EntityFeatures) -> None:
        """Grow the trees. `features`: at the instant from which on people came. Raises DependencyError without
        LightGBM."""
        blocks, labels, sizes = [], [], []
        for best, hits, user_row in lessons:
            if hits.any() and not hits.all():
                blocks.append(self.inputs(best, features, user_row))
                labels.append(hits)
                sizes.append(len(hits))
        self.text, self._trees = "", None
        self.learned = {"people": len(sizes), "rows": sum(sizes)}
        if len(sizes) >= LEAST_PEOPLE:
            names = self.input_names(features)
            self.text = grow_trees(np.concatenate(blocks), np.concatenate(labels), sizes, names, self.params)

    def input_names(self, features: EntityFeatures) -> list[str]:
        """What each column of `inputs` is."""
        of_users = features.by_category if self._reads_categories(features) else None
        by_category = () if of_users is None else of_users.names
        return [*ANSWER_INPUTS, *features.item_names, *features.user_names, *by_category]

    def inputs(self, best: Best, features: EntityFeatures, user_row: int) -> NDArray[np.float32]:
        """A row for each item of `best`: what it is in the answer, then features of item, user and user by category."""
        count = len(best.numbers)
        own = np.column_stack(
            [best.scores, np.arange(count), best.bases, best.votes, np.full(count, best.weight)]
        ).astype(np.float32)
        users = np.broadcast_to(features.user_values[user_row], (count, len(features.user_names)))
        parts = [own, features.item_values[best.numbers], users]
        if self._reads_categories(features):
            assert features.by_category is not None
            parts.append(features.by_category.of(np.array([user_row]), best.numbers[None, :])[0])
        return np.concatenate(parts, axis=1)

    def order(self, best: Best, features: EntityFeatures, user_row: int) -> NDArray[np.int32]:
        """The items of `best` in the order of the trees; what they find equal keeps its order."""
        if not self.text or not len(best.numbers):
            return best.numbers
        if self._trees is None:
            self._trees = trees_of(self.text)
        said = self._trees.predict(self.inputs(best, features, user_row), num_threads=1)
        return best.numbers[np.argsort(-said, kind="stable")]

    def _reads_categories(self, features: EntityFeatures) -> bool:
        wanted = bool(self.params["by_category"])
        if wanted and features.by_category is None:
            raise ContractError("the ranker reads features of users by category, and was given none")
        return wanted

    def file(self, features: EntityFeatures) -> bytes:
        """`ranker.bin`, with the features of items as they are now."""
        columns = features_used(read_trees(self.text), ITEM_VIEW)
        place = [list(features.item_names).index(name) for name in columns]
        values = np.ascontiguousarray(features.item_values[:, place], np.float32)
        return pack_ranker(
            self.text, depth=self.depth, learned=self.learned, items=len(values),
            values=array("f", values.tobytes()),
        )  # fmt: skip

    def save(self, folder: Path) -> None:
        """The trees, as text. Features are not saved."""
        text = np.frombuffer(self.text.encode("utf-8"), np.uint8)
        params = {**self.params, **{f"learned_{name}": count for name, count in self.learned.items()}}
        save_arrays(folder, model=self.name, params=params, arrays={"trees": text})

    @classmethod
    def load(cls, folder: Path) -> AnswerRanker:
        params, arrays = load_arrays(folder, model=cls.name)
        model = cls({name: params[name] for name in DEFAULTS})
        model.learned = {name: params[f"learned_{name}"] for name in ("people", "rows")}
        model.text = arrays["trees"].tobytes().decode("utf-8")
        return model
