"""What answers would be worth: the rows of an evaluation that are of no model, `with_session` and `with_ranker`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.contracts.errors import DataError
from spark_jobs.evaluation.session_choice import Choice
from spark_jobs.evaluation.with_ranker import (
    WITH_RANKER,
    RankedAnswers,
    learn_ranker,
    popular_scores,
    ranker_row_recipe,
)
from spark_jobs.evaluation.with_session import (
    WITH_SESSION,
    SessionAnswers,
    Sessions,
    fit_session_model,
    session_row_recipe,
)
from spark_jobs.jobs.resources import measured
from spark_jobs.jobs.trained_models import Examination, Trained
from spark_jobs.models.factory import Fitted
from spark_jobs.models.session_transitions import SessionTransitions
from spark_jobs.models.training_data import TrainingData


def why_no_sessions(sessions: Sessions) -> str:
    """Why there is nothing to say of answers with a session; empty when there is."""
    if sessions.has_any.any():
        return ""
    return f"none of {len(sessions.starts) - 1:,} test persons had a session running when they came for something"


class TrainedAnswers:
    """Answers over the lists of the best model. `best`: its name, and how it was fitted; `trained`: what was found of
    it; `met`: the interactions with their sessions; `folder`: where each row's files go, by its name."""

    def __init__(
        self,
        best: tuple[str, Fitted],
        trained: Trained,
        met: pa.Table,
        sessions: Sessions,
        data: TrainingData,
        examination: Examination,
        folder: Path,
    ) -> None:
        self._name, self._fitted = best
        self._known = [] if trained.learned_until is None else [trained.learned_until]
        self._met, self._sessions, self._data = met, sessions, data
        self._examination, self._folder = examination, folder
        self._learned: tuple[SessionTransitions, Choice, NDArray[np.float32]] | None = None

    def rows(
        self, recipe: Mapping[str, Any], *, no_ranker: str, by_category: bool, policy: str
    ) -> tuple[dict[str, Trained], list[str]]:
        """(the rows, why others are left out). `recipe`: of the best model; `no_ranker`: why no ranker can be learned,
        empty when one can; it reads what users did in categories `by_category`."""
        rows: dict[str, Trained] = {}
        left_out = []
        why = why_no_sessions(self._sessions)
        if why:
            left_out.append(f"{WITH_SESSION}: {why}")
        else:
            rows[WITH_SESSION] = self._with_session()
        if not no_ranker:
            beside = WITH_SESSION if WITH_SESSION in rows else self._name
            try:
                rows[WITH_RANKER] = self._with_ranker(recipe, beside, by_category=by_category, policy=policy)
            except DataError as error:
                no_ranker = str(error)
        if no_ranker:
            left_out.append(f"{WITH_RANKER}: {no_ranker}")
        for words in left_out:
            print(f"left out: {words}", flush=True)
        return rows, left_out

    def _with_session(self) -> Trained:
        """The answers that blend the lists with the session that asks."""
        folder = self._folder / WITH_SESSION
        with measured() as usage:
            model, choice, popular = self._session_model()
        model.save(folder)
        answers = SessionAnswers(self._fitted, self._examination.split, self._sessions, model, popular)
        return self._examination.of(
            answers.rank,
            session_row_recipe(self._name, choice),
            folder,
            usage,
            learned_until=max(self._known, default=None),
            beside=self._name,
        )

    def _with_ranker(self, recipe: Mapping[str, Any], beside: str, *, by_category: bool, policy: str) -> Trained:
        """The same answers, their best put in order by trees that are learned of the days before the split."""
        folder, split = self._folder / WITH_RANKER, self._examination.split
        with measured() as usage:
            ranker = learn_ranker(recipe, self._data, self._met, by_category=by_category, policy=policy)
            model, _, popular = self._session_model()
        ranker.save(folder)
        features = self._data.features_at(split.test_start, by_category=by_category)
        answers = RankedAnswers(
            self._fitted, split, self._sessions, model, popular, ranker=ranker, features=features
        )  # fmt: skip
        return self._examination.of(
            answers.rank,
            ranker_row_recipe(self._name, ranker),
            folder,
            usage,
            learned_until=max(self._known, default=None),
            beside=beside,
        )

    def _session_model(self) -> tuple[SessionTransitions, Choice, NDArray[np.float32]]:
        """The session index of the training split, and what is popular in it; made once."""
        if self._learned is None:
            model, choice, newest = fit_session_model(self._met, self._examination.split)
            if newest is not None:
                self._known.append(newest)
            self._learned = model, choice, popular_scores(self._data)
        return self._learned
