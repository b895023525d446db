"""What answers would be worth whose best a ranker orders when they are asked for (`with_ranker`), and whether to do so.

The trees learn from answers as serving gives them (`with_session`): seven days are held back, the first stage and the
session index are learned from what was before, and the people who came then are asked as in the evaluation, each once,
with the session that they were in. What they came for in those days is better than what they did not; features are
those of the beginning of the window. In the evaluation all of that lies before the test window.

The row is of no recipe, as that of `with_session`: it is never published itself. The gate lets a night publish a ranker
if the row is better than the one beside it, by more than chance (`ranker_verdict`); then one is learned that holds back
the last seven days before as_of, and comes into the bundle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import DataError
from spark_jobs.evaluation.split import TimeSplit, split_by_time
from spark_jobs.evaluation.with_session import Scored, SessionAnswers, Sessions, fit_session_model, sessions_when_asked
from spark_jobs.models.answer_ranker import DEFAULTS, AnswerRanker, Best, Lesson
from spark_jobs.models.entity_features import EntityFeatures
from spark_jobs.models.factory import Fitted, fit
from spark_jobs.models.ranker import LEAST_PEOPLE
from spark_jobs.models.recipes import default_recipe
from spark_jobs.models.session_transitions import SessionTransitions
from spark_jobs.models.training_data import TrainingData

WITH_RANKER = "with_ranker"
"""The name of the row."""
MOST_EVENTS = 3_000_000
"""A shop with more learns no ranker: its first stage would be fitted once more. As for `ranker`."""
PEOPLE_PER_BLOCK = 128


class RankerVerdict(NamedTuple):
    """Whether a night may publish a request-time ranker, and why, in words."""

    publishes: bool
    words: str


class RankedAnswers(SessionAnswers):
    """The answers of `with_session`, each with its best put in order by the trees. `features`: of the moment at which
    the test window begins."""

    def __init__(
        self,
        base: Fitted,
        split: TimeSplit,
        sessions: Sessions,
        model: SessionTransitions,
        popular: NDArray[np.floating],
        *,
        ranker: AnswerRanker,
        features: EntityFeatures,
    ) -> None:
        super().__init__(base, split, sessions, model, popular)
        self._ranker, self._features = ranker, features
        self._user_rows = features.rows_of(split.subjects)

    def answers(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Everybody's answer is other than their list."""
        return np.ones(len(places), bool)

    def answer(self, person: int, listed: NDArray[np.int32], values: NDArray[np.floating]) -> NDArray[np.int32]:
        found = self.scored(person, listed, values)
        best = best_of(found, self._ranker.depth)
        if not len(listed):  # whose list is nobody's own is not ranked
            return found.numbers
        first = self._ranker.order(best, self._features, int(self._user_rows[person]))
        return np.r_[first, found.numbers[len(first) :]].astype(np.int32)


def best_of(found: Scored, depth: int) -> Best:
    """The first `depth` items of an answer."""
    return Best(found.numbers[:depth], found.scores[:depth], found.bases[:depth], found.votes[:depth], found.weight)


def learn_ranker(
    recipe: Mapping[str, Any], data: TrainingData, met: pa.Table, *, by_category: bool, policy: str
) -> AnswerRanker:
    """A ranker of answers over lists of this recipe, learned from the last days of `data` alone.

    met     as `io.interactions.read_interactions` gives it; what is at or after the cut-off of `data` changes nothing
    policy  the run parameter `exclude_seen`

    Raises DataError when there are no features of the instant from which on it learns, or too few people came back,
    DependencyError without LightGBM.
    """
    ranker = AnswerRanker({"by_category": by_category})
    split = split_by_time(
        data.interactions,
        cut_off=data.cut_off,
        item_count=data.item_count,
        test_days=int(ranker.params["label_days"]),
        max_test_users=int(ranker.params["most_people"]),
        exclude_seen=policy,
    )
    if len(split.subjects) < LEAST_PEOPLE:
        raise DataError(
            f"{len(split.subjects)} people came back in the days that it learns from, {LEAST_PEOPLE} are wanted. "
            f"{split.note}".rstrip(),
            field="people",
        )
    features = data.features_at(split.test_start, by_category=by_category)
    past = data.before(split.test_start)
    base = fit(recipe, past)
    model, _, _ = fit_session_model(met, split)
    answers = SessionAnswers(base, split, sessions_when_asked(met, split), model, popular_scores(past))
    ranker.learn(_lessons(answers, split, features, ranker.depth), features)
    if not ranker.text:
        raise DataError(
            f"{ranker.learned['people']} people came for something in their answer, {LEAST_PEOPLE} are wanted",
            field="people",
        )
    return ranker


def _lessons(answers: SessionAnswers, split: TimeSplit, features: EntityFeatures, depth: int) -> Iterator[Lesson]:
    user_rows = features.rows_of(split.subjects)
    for start in range(0, len(split.subjects), PEOPLE_PER_BLOCK):
        places = np.arange(start, min(start + PEOPLE_PER_BLOCK, len(split.subjects)))
        for person, (listed, values) in zip(places.tolist(), answers.lists(places), strict=True):
            if not len(listed):
                continue
            best = best_of(answers.scored(person, listed, values), depth)
            wanted = split.relevant.indices[split.relevant.indptr[person] : split.relevant.indptr[person + 1]]
            yield Lesson(best, np.isin(best.numbers, wanted), int(user_rows[person]))


def popular_scores(data: TrainingData) -> NDArray[np.float32]:
    """By item number: the score that the list of popular items has it with."""
    nobody = sparse.csr_matrix((1, data.item_count), dtype=np.float32)
    scores: NDArray[np.float32] = fit(default_recipe("popularity"), data).model.score_block(nobody)[0]
    return scores


def ranker_row_recipe(base: str, ranker: AnswerRanker) -> dict[str, Any]:
    """What the row was made by, in the form of a recipe; nothing can be fitted from it."""
    learned = {f"learned_{name}": count for name, count in ranker.learned.items()}
    params = {"lists_of": base, **{name: ranker.params[name] for name in DEFAULTS}, **learned}
    return {"model": WITH_RANKER, "weights": {}, "half_life_days": None, "params": params}


def why_no_answer_ranker(events: int, persons: int, missing: str) -> str:
    """Why none is learned tonight; empty when one may be. `missing`: why trees or features are not there."""
    if events > MOST_EVENTS:
        return f"it is learned from up to {MOST_EVENTS:,} events, there are {events:,}"
    if persons < LEAST_PEOPLE:
        return f"there are {persons} test persons, and it wants {LEAST_PEOPLE}"
    return missing


def ranker_verdict(
    evaluation: Mapping[str, Any], comparisons: Sequence[Mapping[str, Any]], winner: str | None
) -> RankerVerdict:
    """Whether the night publishes a ranker: only where its answers are better than without, by more than chance (the
    95 % interval of the paired difference in NDCG@20 over all persons lies above 0), over the lists that win."""
    row = evaluation["models"].get(WITH_RANKER)
    if row is None:
        told = [note for note in evaluation.get("left_out", ()) if note.startswith(f"{WITH_RANKER}: ")]
        return RankerVerdict(False, told[0].partition(": ")[2] if told else "none was learned")
    lists_of = row["recipe"]["params"]["lists_of"]
    if lists_of != winner:
        return RankerVerdict(
            False, f"it was learned over the lists of {lists_of}, and {winner or 'nothing'} is published"
        )
    [found] = [
        one["difference"] for one in comparisons
        if one["model"] == WITH_RANKER and one["against"] == row["beside"] and one["slice"] == "all"
    ]  # fmt: skip
    span = f"NDCG@20 {found['mean']:+.4f} beside {row['beside']}, 95 % {found['lower']:+.4f} to {found['upper']:+.4f}"
    if row["non_finite_count"]:
        return RankerVerdict(False, "the lists below it have scores that are not finite")
    return RankerVerdict(found["lower"] > 0, f"{'it wins' if found['lower'] > 0 else 'it does not win'}: {span}")
