"""`nightjar bench session-weights`: how loud a session should be beside what the night knew."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.events import EVENT_TYPES, SESSION_GAP, SESSION_VOTE_WEIGHTS
from feature_repo.contracts.packing import NO_REASON, SessionEvent, Source
from feature_repo.contracts.times import from_micros
from infra.bench.quality import tasks
from infra.bench.quality.training import Training
from infra.bench.report import figure, make_report
from infra.bench.serving.sessions_version import load_version, write_version
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.slate import build_slate
from serving.pipeline.values import Person, SlateRequest, Tuning
from spark_jobs.evaluation.session_choice import Choice, choose_session_recipe
from spark_jobs.models.factory import fit_recipe
from spark_jobs.models.ranking import mask_items, top_items
from spark_jobs.models.recipes import default_recipe
from spark_jobs.transforms.candidates import CANDIDATES_PER_USER
from spark_jobs.transforms.session_index import session_sequences

MODELS = ("als", "item_knn")
"""Whose lists a person may have; the better one on validation is taken, as the gate would."""
POLICIES = ("interacted", "none")
WEIGHTS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0, 50.0, 10_000.0)
ALONE = 1e9
"""A weight at which nothing but the session counts."""
VALIDATE_FROM, TEST_FROM = 0.8, 0.9
"""Quantiles of the events' times. What is between them chooses the weights, what is behind them is the test; for each
all that was before is learned from."""
MOST_QUESTIONS = 1_500
QUESTIONS_PER_SESSION = 2
SEED = 20_240_229
GAP_MICROS = SESSION_GAP.total_seconds() * 1e6

Say = Callable[[str], None]


class Question(NamedTuple):
    """What somebody did so far in a session, and what they did next: an item that was new to the session."""

    subject: str
    events: Sequence[SessionEvent]
    target: str


class Stretch(NamedTuple):
    """A stretch of time: what was known before it, and what it asks. Lists by model and subject."""

    catalogue: Catalogue
    lists: Mapping[str, Mapping[str, Sequence[tuple[int, float, int, int, int]]]]
    known: Sequence[Question]
    visitors: Sequence[Question]
    choice: Choice


def bench_session_weights(
    home: Path,
    *,
    events: Path,
    exclude_seen: str = "interacted",
    k: int = 20,
    code_version: str = "unknown",
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """The report: `who` has for `known` (people with a list of their own) and `visitors` (with nothing but the session)
    the hit rate and reciprocal rank at k on the test of `own` (the list, or popular items, alone), `session` alone and
    `blend` with the weight that was best on validation; and `weights`, what each weight reached there.

    Answers are made by the pipeline itself with its default policies: what the session touched leaves. With
    `exclude_seen` interacted, lists and answers have nothing that the person had before that stretch of time.
    """
    if exclude_seen not in POLICIES:
        hint = nearest(exclude_seen, POLICIES)
        raise DataError(
            f"--exclude-seen {exclude_seen!r}, expected {' or '.join(POLICIES)}{hint}", field="exclude_seen"
        )
    shutil.rmtree(home, ignore_errors=True)
    training = tasks.open_training("events", train=events, test=events).training
    if not training.has_time:
        raise DataError(f"--events {events}: needs a column time", field="time")
    shop = _Shop(training, exclude_seen)
    validation = shop.stretch(VALIDATE_FROM, TEST_FROM, home / "validation", MODELS)
    own = {model: _reached(validation, validation.known, model, 0.0, k) for model in MODELS}
    model = max(MODELS, key=lambda name: own[name]["hr"])
    say(f"validation: {len(validation.known)} questions of known people, {len(validation.visitors)} of visitors; "
        f"{validation.choice.manner}; " + ", ".join(f"{name} {own[name]['hr']:.4f}" for name in MODELS))  # fmt: skip
    test = shop.stretch(TEST_FROM, 1.0, home / "test", (model,))
    who: dict[str, dict[str, Any]] = {}
    figures = {}
    for name in ("known", "visitors"):
        tried = {weight: _reached(validation, getattr(validation, name), model, weight, k) for weight in WEIGHTS}
        best = max(WEIGHTS, key=lambda weight: _target(tried[weight]))
        asked = getattr(test, name)
        if not asked or not getattr(validation, name):
            raise DataError(f"--events {events}: no session of {name} to ask about", field="--events")
        found = {
            "own": _reached(test, asked, model, 0.0, k),
            "session": _reached(test, asked, model, ALONE, k),
            "blend": _reached(test, asked, model, best, k),
        }
        for part, reached in found.items():
            say(f"{name:<9} {part:<8} hr@{k} {reached['hr']:.4f}  mrr@{k} {reached['mrr']:.4f}")
        who[name] = {"questions": len(asked), "weight": best, "weights": tried, **found}
        better = max(found["own"]["hr"], found["session"]["hr"])
        figures[f"{name}_hr@{k}"] = figure("share", [found["blend"]["hr"]], baseline=[better])
    return make_report(
        "session weights", figures, code_version, k=k, model=model, manner=test.choice.manner,
        exclude_seen=exclude_seen, who=who,
        reaches_bar=all(
            found["blend"]["hr"] >= max(found["own"]["hr"], found["session"]["hr"]) for found in who.values()
        ),
    )  # fmt: skip


def _target(reached: Mapping[str, float]) -> float:
    return float(np.sqrt(reached["hr"] * reached["mrr"]))


def _reached(stretch: Stretch, asked: Sequence[Question], model: str, weight: float, k: int) -> dict[str, float]:
    """Hit rate and reciprocal rank at k. With the weight ALONE only what the session itself says counts."""
    tuning = replace(Tuning(), session_weight=weight, session_weight_alone=weight)
    gains = []
    for question in asked:
        person = Person(candidates=stretch.lists[model].get(question.subject))
        newest = question.events[-1].micros
        request = SlateRequest(num_results=k, user_id=question.subject, recent_events=question.events)
        slate = build_slate(request, person, stretch.catalogue, tuning, now_micros=newest, timer=_no_time)
        found = [item.item_id for item in slate.items if weight != ALONE or item.vote > 0]
        gains.append(1 / (1 + found.index(question.target)) if question.target in found else 0.0)
    rank = np.array(gains or [0.0])
    return {"hr": round(float((rank > 0).mean()), 6), "mrr": round(float(rank.mean()), 6)}


def _no_time() -> int:
    return 0


class _Shop:
    """Events in sessions: by person and time, a pause of half an hour or more between two."""

    def __init__(self, training: Training, exclude_seen: str) -> None:
        assert training.table is not None
        self.training, self.table, self.exclude_seen = training, training.table, exclude_seen
        self.names = [str(name) for name in training.item_names]
        subjects = training.table["subject_key"].combine_chunks()
        self.subjects = subjects.dictionary.to_pylist()
        owner, items, micros, types = (
            np.asarray(column)
            for column in (
                subjects.indices, training.table["item_number"], training.table["micros"],
                training.table["event_type"].combine_chunks().indices,
            )
        )  # fmt: skip
        self.types = training.table["event_type"].combine_chunks().dictionary.to_pylist()
        chance = np.random.default_rng(SEED).random(len(items))  # what happened at one moment has no order
        order = np.lexsort((chance, micros, owner))
        self.owner, self.items, self.micros, self.kind = owner[order], items[order], micros[order], types[order]
        is_first = np.r_[True, (np.diff(self.owner) != 0) | (np.diff(self.micros) >= GAP_MICROS)]
        self.session = np.cumsum(is_first) - 1
        self.starts = np.r_[np.flatnonzero(is_first), len(items)]

    def stretch(self, start: float, end: float, home: Path, models: Sequence[str]) -> Stretch:
        """What was known before the quantile `start` of time, and what sessions ask that began from there to `end`."""
        first, last = (int(np.quantile(self.micros, at)) for at in (start, end))
        cut_off = from_micros(first)
        before = self.micros < first
        rows = {"session": self.session[before], "item_number": self.items[before], "micros": self.micros[before]}
        sequences = session_sequences(pa.table(rows), item_count=len(self.names), cut_off=cut_off)
        choice = choose_session_recipe(sequences)
        known_events = self.table.filter(pc.less(self.table["micros"], first))
        settings: dict[str, Any] = {"item_count": len(self.names), "cut_off": cut_off}
        popular, matrix = fit_recipe(default_recipe("popularity"), known_events, **settings)
        scores = popular.score_block(matrix.preference[:1], None)[0]
        version = write_version(str(home), self.names, sequences, choice.recipe, popularity=scores)
        had = {subject: set(matrix.preference[row].indices) for row, subject in enumerate(matrix.subjects.tolist())}
        known, visitors = self._questions(first, last, had)
        subjects = sorted({question.subject for question in known})
        lists = {name: self._lists(name, known_events, subjects, settings) for name in models}
        return Stretch(load_version(str(home), version), lists, known, visitors, choice)

    def _questions(self, first: int, last: int, had: Mapping[str, set[int]]) -> tuple[list[Question], list[Question]]:
        rng = np.random.default_rng(SEED)
        found: tuple[list[Question], list[Question]] = ([], [])
        begins = self.micros[self.starts[:-1]]
        for session in np.flatnonzero((begins >= first) & (begins <= last)):
            part = slice(self.starts[session], self.starts[session + 1])
            subject = self.subjects[self.owner[part.start]]
            items = self.items[part].tolist()
            past = had.get(subject)
            taken = past if past is not None and self.exclude_seen == "interacted" else set()
            places = [at for at in range(1, len(items)) if items[at] not in items[:at] and items[at] not in taken]
            chosen = rng.permutation(len(places))[:QUESTIONS_PER_SESSION]
            for at in sorted(places[place] for place in chosen):
                events = [self._event(part.start + place) for place in range(at)]
                found[past is None].append(Question(subject, events, self.names[items[at]]))
        return _some(found[0], rng), _some(found[1], rng)

    def _event(self, at: int) -> SessionEvent:
        """An event type that nobody votes with counts as a view."""
        kind = self.types[self.kind[at]]
        voting = kind if kind in EVENT_TYPES and kind in SESSION_VOTE_WEIGHTS else "view_item"
        return SessionEvent(int(self.micros[at]), voting, 0, self.names[self.items[at]])

    def _lists(
        self, name: str, known_events: pa.Table, subjects: Sequence[str], settings: Mapping[str, Any]
    ) -> dict[str, list[tuple[int, float, int, int, int]]]:
        model, matrix = fit_recipe(default_recipe(name), known_events, **settings)
        rows: NDArray[np.int64] = np.searchsorted(matrix.subjects, np.array(subjects, dtype=np.str_))
        found = {}
        for start in range(0, len(rows), 256):
            block = rows[start : start + 256]
            scores = model.score_block(matrix.preference[block], block)
            if self.exclude_seen == "interacted":
                mask_items(scores, matrix.preference[block])
            numbers, values = top_items(scores, CANDIDATES_PER_USER)
            for row, best, worth in zip(block, numbers.tolist(), values.tolist(), strict=True):
                found[str(matrix.subjects[row])] = [
                    (number, score, int(Source.ALS), NO_REASON, NO_REASON)
                    for number, score in zip(best, worth, strict=True)
                    if np.isfinite(score)
                ]
        return found


def _some(questions: list[Question], rng: np.random.Generator) -> list[Question]:
    if len(questions) <= MOST_QUESTIONS:
        return questions
    return [questions[at] for at in np.sort(rng.choice(len(questions), MOST_QUESTIONS, replace=False))]
