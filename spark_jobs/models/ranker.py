"""Learning to rank: a second stage that orders the best of a first one by what is known of the person and the items.

LambdaMART (C. Burges: From RankNet to LambdaRank to LambdaMART: an overview, 2010) by LightGBM. The trees are kept as
LightGBM's text, never pickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import ContractError, DataError, DependencyError
from spark_jobs.models.artifacts import load_arrays, part_folder, save_arrays
from spark_jobs.models.base import InteractionMatrix, Model, Terms
from spark_jobs.models.blend_model import Blend, cascade
from spark_jobs.models.entity_features import EntityFeatures
from spark_jobs.models.matrix import histories_of, matrix_rows
from spark_jobs.models.ranking import mask_items, top_items

RANKER = "ranker"
PEOPLE_PER_BLOCK = 128
LEAST_PEOPLE = 50
"""Fewer people to learn from than this, who came for something in their list, teach the order of a few lists alone."""
TRUNCATION = 20
"""Pairs count only if one of them stands in the first so many places: that is what is shown."""


class Staged(NamedTuple):
    """What the first stage says of some people: its best items, and the values of `names` for each of them.

    scores   float32, people x items: the first stage's own
    numbers  int32, people x depth; -1 where there are fewer
    values   float32, people x depth x names
    """

    scores: NDArray[np.float32]
    numbers: NDArray[np.int32]
    values: NDArray[np.float32]
    names: Sequence[str]


class Ranker:
    """The `depth` best new items of the first stage are ordered by the trees; all others come below, in its order.

    Learned from people who came back in the days that were held back: each is a list of the first stage as it was then,
    in which what they came for is better than what they did not.

    params
        first          the recipe of the first stage
        depth          how many of its items are ordered anew
        label_days     length of the window held back to learn from, before the cut-off
        most_people    people to learn from; a seeded sample of more
        by_category    whether it reads what users did in the categories of items; where it is not said: no
        rounds, leaves, learning_rate, least_rows   of the trees: how many, leaves each, step, rows in a leaf at least
        seed

    Inputs of the trees: score and rank in the first stage, what each of its parts says, and the features of the item,
    of the user and, with `by_category`, of the user in the item's category (`EntityFeatures`) at the same instant.
    """

    name = RANKER

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: Mapping[str, Any] = dict(params)
        self.source = 0
        self.text = ""
        self.first: Model | None = None
        self._features: EntityFeatures | None = None
        self._user_rows: NDArray[np.int64] = np.empty(0, np.int64)
        self._trees: Any = None

    @property
    def reads_categories(self) -> bool:
        return bool(self.params.get("by_category", False))

    # --- learning ------------------------------------------------------------------------------------------------

    def fit(self, matrix: InteractionMatrix) -> None:  # noqa: ARG002
        """Never: a matrix holds nothing back. `factory.fit` learns and assembles."""
        raise DataError("the ranker learns from a window that is held back: `factory.fit`", field="model")

    def learn(
        self, first: Model, matrix: InteractionMatrix, came_for: pa.Table, features: EntityFeatures
    ) -> dict[str, int]:
        """Grow the trees; returns how many people and rows they grew from.

        first, matrix   the first stage, fitted on what was before the window, and what it learned from
        came_for        subject_key, item_number of what happened in the window; repeats allowed
        features        at the beginning of the window

        With fewer than LEAST_PEOPLE people there are no trees, and the order stays the first stage's. Raises
        DependencyError without LightGBM.
        """
        rows, wanted = self._people(matrix, came_for)
        blocks, labels, sizes = [], [], []
        names: Sequence[str] = ()
        user_rows = features.rows_of(matrix.subjects[rows])
        for start in range(0, len(rows), PEOPLE_PER_BLOCK):
            part = slice(start, start + PEOPLE_PER_BLOCK)
            staged = stage(first, histories_of(matrix, rows[part]), rows[part], int(self.params["depth"]))
            values, names = self._inputs(staged, features, user_rows[part])
            listed = staged.numbers >= 0
            codes = np.arange(len(listed))[:, None] * matrix.item_count + np.maximum(staged.numbers, 0)
            hits = np.isin(codes, _codes(wanted[part])) & listed
            useful = hits.any(axis=1) & (listed & ~hits).any(axis=1)
            for place in np.flatnonzero(useful):
                blocks.append(values[place][listed[place]])
                labels.append(hits[place][listed[place]])
                sizes.append(int(listed[place].sum()))
        self.text, self._trees = "", None
        rows_learned = sum(sizes)
        if len(sizes) >= LEAST_PEOPLE:
            self.text = grow_trees(np.concatenate(blocks), np.concatenate(labels), sizes, names, self.params)
        return {"people": len(sizes), "rows": rows_learned}

    def _people(self, matrix: InteractionMatrix, came_for: pa.Table) -> tuple[NDArray[np.int64], sparse.csr_matrix]:
        """(rows of identified people who came for something new and known, CSR of what that was)."""
        subjects = came_for["subject_key"].cast(pa.string()).combine_chunks()
        coded = subjects.dictionary_encode()
        coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
        names = np.array(coded.dictionary.to_pylist(), dtype=np.str_)
        is_user = np.char.startswith(names, "u:") if len(names) else np.empty(0, bool)
        by_name = np.where(is_user, matrix_rows(matrix, names), -1)
        rows, items = by_name[np.asarray(coded.indices)], np.asarray(came_for["item_number"])
        known = np.bincount(matrix.preference.indices, minlength=matrix.item_count) > 0
        kept = (rows >= 0) & known[items]
        pattern = sparse.csr_matrix(
            (np.ones(int(kept.sum()), np.float32), (rows[kept], items[kept])), shape=matrix.preference.shape
        )
        pattern.sum_duplicates()
        had = matrix.preference.astype(bool).astype(np.float32)
        new = sparse.csr_matrix(pattern - pattern.multiply(had))
        new.eliminate_zeros()
        people = np.flatnonzero(np.diff(new.indptr))
        most = int(self.params["most_people"])
        if len(people) > most:
            rng = np.random.default_rng(int(self.params["seed"]))
            people = np.sort(rng.choice(people, size=most, replace=False))
        return people.astype(np.int64), new[people]

    def assemble(self, first: Model, matrix: InteractionMatrix, features: EntityFeatures) -> None:
        """Take the first stage fitted on everything, and the features at the cut-off. Rows are those of `matrix`."""
        self.first, self._features, self.source = first, features, first.source
        self._user_rows = features.rows_of(matrix.subjects)

    # --- scoring -------------------------------------------------------------------------------------------------

    def score_block(self, histories: sparse.csr_matrix, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        first, features = self._whole()
        count = histories.shape[0]
        rows = np.full(count, -1, np.int64) if rows is None else np.asarray(rows, np.int64)
        if not self.text:
            return first.score_block(histories, rows)
        staged = stage(first, histories, rows, int(self.params["depth"]))
        nobody = len(features.user_values) - 1
        user_rows = np.where(rows >= 0, self._user_rows[np.maximum(rows, 0)], nobody) if len(self._user_rows) else (
            np.full(count, nobody)
        )  # fmt: skip
        values, _ = self._inputs(staged, features, user_rows)
        listed = staged.numbers >= 0
        second = np.full(staged.scores.shape, -np.inf, np.float32)
        places, ranks = np.nonzero(listed)
        if len(places):
            second[places, staged.numbers[places, ranks]] = self._predict(values[listed])
        return cascade(staged.scores, second, np.isfinite(second))

    def _inputs(
        self, staged: Staged, features: EntityFeatures, user_rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], list[str]]:
        values, names = with_features(staged, features, user_rows)
        if not self.reads_categories:
            return values, names
        if features.by_category is None:
            raise ContractError("the ranker reads features of users by category, and was given none")
        own = features.by_category.of(user_rows, np.maximum(staged.numbers, 0))
        return np.concatenate([values, own], axis=2), [*names, *features.by_category.names]

    def _whole(self) -> tuple[Model, EntityFeatures]:
        if self.first is None or self._features is None:
            raise ContractError("a loaded ranker knows no features: `remember` the interactions")
        return self.first, self._features

    def _predict(self, table: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._trees is None:
            self._trees = trees_of(self.text)
        found: NDArray[np.float64] = self._trees.predict(table, num_threads=1)
        return found.astype(np.float32)

    def similar(self, item_number: int, count: int) -> list[tuple[int, float]]:
        """The first stage's."""
        return self._whole()[0].similar(item_number, count)

    def explain(
        self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]
    ) -> list[tuple[int | None, int | None]]:
        """The first stage's: it brought the item; the trees chose its place."""
        return self._whole()[0].explain(history, row, item_numbers)

    def terms(self, history: sparse.csr_matrix, row: int, item_numbers: Sequence[int]) -> Terms:
        return self._whole()[0].terms(history, row, item_numbers)

    # --- files ---------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """For executors: the trees travel as text."""
        return {**self.__dict__, "_trees": None}

    def save(self, folder: Path) -> None:
        """The trees, and the first stage in a folder of its own. Features are not saved."""
        first, _ = self._whole()
        text = np.frombuffer(self.text.encode("utf-8"), np.uint8)
        save_arrays(folder, model=self.name, params=self.params, arrays={"trees": text}, parts={"first": first.save})

    @classmethod
    def load(cls, folder: Path) -> Ranker:
        from spark_jobs.models.factory import load_model  # it knows this model too

        params, arrays = load_arrays(folder, model=cls.name)
        model = cls(params)
        model.text = arrays["trees"].tobytes().decode("utf-8")
        model.first = load_model(part_folder(folder, "first"))
        model.source = model.first.source
        return model


def stage(first: Model, histories: sparse.csr_matrix, rows: NDArray[np.int64], depth: int) -> Staged:
    """The first stage's best items of each person that are new to them, with its score, rank and what its parts say."""
    said = first.score_parts(histories, rows) if isinstance(first, Blend) else None
    scores = first.score_block(histories, rows) if said is None else said.scores
    new = scores.copy()
    new[~np.isfinite(new)] = -np.inf
    mask_items(new, histories)
    numbers, values = top_items(new, depth)
    listed = np.isfinite(values)
    numbers = np.where(listed, numbers, -1)
    places = np.arange(len(numbers))[:, None]
    parts = dict(said.said) if said is not None else {}
    part_names = first.part_names() if isinstance(first, Blend) else []
    columns = [
        np.where(listed, values, np.nan),
        np.where(listed, np.arange(numbers.shape[1], dtype=np.float32), np.nan),
    ]
    for name in part_names:
        own = parts[name][places, np.maximum(numbers, 0)] if name in parts else np.full(numbers.shape, np.nan)
        columns.append(np.where(listed, own, np.nan))
    names = ["first_score", "first_rank", *(f"said_{name}" for name in part_names)]
    return Staged(scores, numbers, np.stack(columns, axis=2).astype(np.float32), names)


def with_features(
    staged: Staged, features: EntityFeatures, user_rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], list[str]]:
    """(people x depth x inputs, the names of the inputs)."""
    items = features.item_values[np.maximum(staged.numbers, 0)]
    users = np.broadcast_to(
        features.user_values[user_rows][:, None, :], (*staged.numbers.shape, len(features.user_names))
    )
    values = np.concatenate([staged.values, items, users], axis=2)
    return values, [*staged.names, *features.item_names, *features.user_names]


def grow_trees(
    table: NDArray[np.float32],
    labels: NDArray[np.bool_],
    sizes: Sequence[int],
    names: Sequence[str],
    params: Mapping[str, Any],
) -> str:
    """LightGBM's text of the trees: the same for the same inputs, on one thread."""
    lightgbm = _lightgbm()
    settings = {
        "objective": "lambdarank", "lambdarank_truncation_level": TRUNCATION, "num_leaves": int(params["leaves"]),
        "learning_rate": float(params["learning_rate"]), "min_data_in_leaf": int(params["least_rows"]),
        "seed": int(params["seed"]), "num_threads": 1, "deterministic": True, "force_row_wise": True, "verbosity": -1,
    }  # fmt: skip
    data = lightgbm.Dataset(table, label=labels.astype(np.int32), group=list(sizes), feature_name=list(names))
    text: str = lightgbm.train(settings, data, num_boost_round=int(params["rounds"])).model_to_string()
    return text


def trees_of(text: str) -> Any:
    """LightGBM's trees of a text."""
    return _lightgbm().Booster(model_str=text)


def _codes(pattern: sparse.csr_matrix) -> NDArray[np.int64]:
    """row x columns + column of each entry."""
    rows = np.repeat(np.arange(pattern.shape[0], dtype=np.int64), np.diff(pattern.indptr))
    return rows * pattern.shape[1] + pattern.indices


def why_no_trees() -> str:
    """Why trees cannot be grown on this machine; empty when they can."""
    try:
        _lightgbm()
    except DependencyError as error:
        return str(error)
    return ""


def _lightgbm() -> Any:
    try:
        import lightgbm
    except OSError as error:  # its library wants the system's OpenMP
        raise DependencyError(
            f"LightGBM cannot be loaded: {error}. Install OpenMP (Debian, Ubuntu: `apt install libgomp1`; macOS: "
            "`brew install libomp`), or leave the model `ranker` out"
        ) from error
    return lightgbm
