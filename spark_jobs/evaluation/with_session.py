"""What answers would be worth: tonight's best lists, each blended with the session that asks (`with_session`).

The lists of all other rows are the night's: they know nothing of today. An answer does: serving blends the list with
the running session. This row measures that, of the same persons, by the same metrics, nothing else changed. It is of
no recipe: it is never published, and the gate does not judge it.

    asked    when a test person came for the first of their test items, at the first event with it in the test window
    session  what they did before that moment, strictly, in the session of that event: the newest MAX_EVENTS of it
    answer   the person's published list (CANDIDATES_PER_USER of the model, zeros left out; popular items below a short
             one) and the session's votes, by `contracts.session_blend`, as serving's pipeline makes it; what the
             session touched leaves, what was closed to the person stays closed, as in every row

Who asks with the first event of a session has none: their answer is the list that the model's own row has. The list and
the session index are learned from the training split; nothing at or after the moment that is asked for is known.
Every item counts as eligible; dismissals, which are no interactions, and the rules of placements are left aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.events import SESSION_VOTE_WEIGHTS
from feature_repo.contracts.packing import session_hash
from feature_repo.contracts.session_blend import (
    BELOW,
    HALF_LIFE_SECONDS,
    SESSION_WEIGHT,
    SESSION_WEIGHT_ALONE,
    normaliser,
    session_loudness,
)
from feature_repo.contracts.session_record import MAX_EVENTS
from feature_repo.contracts.times import to_micros
from spark_jobs.evaluation.full_ranking import Ranked, rank_unseen
from spark_jobs.evaluation.list_quality import K
from spark_jobs.evaluation.session_choice import Choice, choose_session_recipe
from spark_jobs.evaluation.split import TimeSplit
from spark_jobs.models.base import Model
from spark_jobs.models.factory import Fitted, build_sequence_model
from spark_jobs.models.matrix import histories_of, matrix_rows
from spark_jobs.models.ranking import top_items
from spark_jobs.models.session_transitions import SessionTransitions
from spark_jobs.transforms.candidates import CANDIDATES_PER_USER, silence_zeros
from spark_jobs.transforms.session_index import scattered, session_sequences, sessions_of

WITH_SESSION = "with_session"
"""The name of the row."""
MOST_EVENTS = 2_000_000
"""So many of the newest training events the session index of the row is learned from; the published one from all. An
item hears its newest 500 sessions alone, so older ones change little, and the row costs seconds on any shop."""
_NEVER = np.iinfo(np.int64).max


class Sessions(NamedTuple):
    """The session of each test person when they asked, oldest event first; empty for whom there is none.

    starts   int64, length persons + 1
    items    int32
    votes    float64: how loudly the event votes by its type; 0: it does not
    micros   int64: us since 1970 UTC
    """

    starts: NDArray[np.int64]
    items: NDArray[np.int32]
    votes: NDArray[np.float64]
    micros: NDArray[np.int64]

    @property
    def has_any(self) -> NDArray[np.bool_]:
        """By person: was there a session?"""
        return np.diff(self.starts) > 0


def sessions_when_asked(events: pa.Table, split: TimeSplit) -> Sessions:
    """The sessions of the test persons of `split`, from interactions as `io.interactions.read_interactions` gives them.

    What happened at one moment has no order: it gets the one that the session index has too. Of events of several
    sessions at the very moment that is asked for, the session of the smallest hash is taken.
    """
    item_count = len(split.known_items)
    owner = pc.index_in(_words(events["subject_key"]), value_set=pa.array(split.subjects.tolist(), pa.string()))
    person = np.asarray(pc.fill_null(_by_row(events["subject_key"], owner), -1))
    mine = np.flatnonzero(person >= 0)
    rows = events.take(pa.array(mine))
    person, items, micros = person[mine].astype(np.int64), np.asarray(rows["item_number"]), np.asarray(rows["micros"])
    session, is_named = _hashes(rows["session_key"])
    wanted = np.repeat(np.arange(len(split.subjects)), np.diff(split.relevant.indptr)) * np.int64(item_count)
    is_asked = (micros >= to_micros(split.test_start)) & np.isin(
        person * np.int64(item_count) + items, wanted + split.relevant.indices
    )
    moment = np.full(len(split.subjects), _NEVER)
    np.minimum.at(moment, person[is_asked], micros[is_asked])
    asks = is_asked & (micros == moment[person]) & is_named
    asking = np.full(len(split.subjects), _NEVER)
    np.minimum.at(asking, person[asks], session[asks])
    has_asking = np.zeros(len(split.subjects), bool)
    has_asking[person[asks]] = True
    kept = is_named & has_asking[person] & (session == asking[person]) & (micros < moment[person])
    votes = _by_type(rows["event_type"])
    person, items, micros, session, votes = (a[kept] for a in (person, items, micros, session, votes))
    order = np.lexsort((items, scattered(session, items), micros, person))
    person = person[order]
    from_end = np.searchsorted(person, person, side="right") - np.arange(len(person))
    order, person = order[from_end <= MAX_EVENTS], person[from_end <= MAX_EVENTS]
    starts = np.searchsorted(person, np.arange(len(split.subjects) + 1)).astype(np.int64)
    return Sessions(starts, items[order].astype(np.int32), votes[order], micros[order].astype(np.int64))


def fit_session_model(events: pa.Table, split: TimeSplit) -> tuple[SessionTransitions, Choice, int | None]:
    """(the session index of the training split, how its recipe was chosen, us of the newest event in it), made as
    score_users makes the published one, from the newest MOST_EVENTS."""
    is_train = pc.less(events["micros"], to_micros(split.test_start))
    rows = events.filter(is_train)
    if rows.num_rows > MOST_EVENTS:
        oldest = np.partition(np.asarray(rows["micros"]), rows.num_rows - MOST_EVENTS)[rows.num_rows - MOST_EVENTS]
        rows = rows.filter(pc.greater_equal(rows["micros"], int(oldest)))
    place = rows.schema.get_field_index("session_key")
    compact = _words(rows["session_key"]).take(_codes(rows["session_key"])).dictionary_encode()
    sequences = session_sequences(
        sessions_of(rows.set_column(place, "session_key", compact)),
        item_count=len(split.known_items),
        cut_off=split.test_start,
    )
    choice = choose_session_recipe(sequences)
    model = build_sequence_model(choice.recipe["model"], choice.recipe["params"])
    assert isinstance(model, SessionTransitions)
    model.fit(sequences)
    newest = int(sequences.micros.max()) if len(sequences.micros) else None
    return model, choice, newest


def session_row_recipe(base: str, choice: Choice) -> dict[str, Any]:
    """What the row was made by, in the form of a recipe; nothing can be fitted from it."""
    params = {
        "lists_of": base, "manner": choice.manner, "session_weight": SESSION_WEIGHT,
        "session_weight_alone": SESSION_WEIGHT_ALONE, "half_life_seconds": HALF_LIFE_SECONDS,
        **{f"session.{name}": value for name, value in choice.recipe["params"].items()},
    }  # fmt: skip
    return {"model": WITH_SESSION, "weights": dict(SESSION_VOTE_WEIGHTS), "half_life_days": None, "params": params}


class Scored(NamedTuple):
    """All items of an answer, best first, ties by number.

    bases   their scores in the list, before the session speaks; NaN of what the session alone brought
    votes   the session's, 0 where it has none
    weight  how loud the session is; 0: nobody votes
    """

    numbers: NDArray[np.int32]
    scores: NDArray[np.float64]
    bases: NDArray[np.float64]
    votes: NDArray[np.float64]
    weight: float


class SessionAnswers:
    """Answers for the test persons of a split; `rank` is a `full_ranking.Rank`.

    base      the model whose lists are blended, and its people
    sessions  by test person
    model     the session index
    popular   by item number: the score that the list of popular items has it with
    """

    def __init__(
        self,
        base: Fitted,
        split: TimeSplit,
        sessions: Sessions,
        model: SessionTransitions,
        popular: NDArray[np.floating],
    ) -> None:
        self._base, self._matrix = base
        self._split, self._sessions = split, sessions
        self._lists = model.lists
        self._reads = [int(count) for count in model.params["reads"]]
        self._place_decay = float(model.params["place_decay"])
        best = np.lexsort((np.arange(len(popular)), -popular))
        self._popular = best[popular[best] > 0]
        self._popular_scores = popular[self._popular].astype(np.float64)

    def rank(self, places: NDArray[np.int64], count: int) -> Ranked:
        """The `count` best items of each person's answer."""
        rows = matrix_rows(self._matrix, self._split.subjects[places])
        scores = self._base.score_block(histories_of(self._matrix, rows), rows)
        non_finite = int((np.isnan(scores) | (scores == np.inf)).sum())
        numbers = rank_unseen(scores, self._split.seen[places], count)
        asking = np.flatnonzero(self.answers(places))
        lists = _published(self._base, scores[asking])
        for at, (listed, values) in zip(asking.tolist(), lists, strict=True):
            answer = self.answer(int(places[at]), listed, values)[: numbers.shape[1]]
            numbers[at] = -1
            numbers[at, : len(answer)] = answer
        return Ranked(numbers, non_finite)

    def answers(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whose answers are other than their list: those who were in a session."""
        return self._sessions.has_any[places]

    def lists(self, places: NDArray[np.int64]) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """(items, scores) of each person's own list, as it is published."""
        rows = matrix_rows(self._matrix, self._split.subjects[places])
        scores = self._base.score_block(histories_of(self._matrix, rows), rows)
        rank_unseen(scores, self._split.seen[places], 1)
        return _published(self._base, scores)

    def answer(self, person: int, listed: NDArray[np.int32], values: NDArray[np.floating]) -> NDArray[np.int32]:
        """All items of the answer, best first. `listed` and `values` are the person's own list."""
        return self.scored(person, listed, values).numbers

    def scored(self, person: int, listed: NDArray[np.int32], values: NDArray[np.floating]) -> Scored:
        """The same with what made it so."""
        part = slice(self._sessions.starts[person], self._sessions.starts[person + 1])
        touched = self._sessions.items[part]
        voting = self._voting_places(touched, self._sessions.votes[part], self._sessions.micros[part])
        closed = self._split.seen.indices[self._split.seen.indptr[person] : self._split.seen.indptr[person + 1]]
        out = np.union1d(closed, touched)
        voted, votes = self._votes(voting, out)
        most = SESSION_WEIGHT if len(listed) else SESSION_WEIGHT_ALONE
        weight = session_loudness(sum(loudness for _, _, loudness in voting), most) if len(voted) else 0.0
        offered, bases = self._bases(listed, values, touched, out)
        numbers, row = np.unique(np.r_[offered, voted], return_inverse=True)
        base, vote = np.full(len(numbers), np.nan), np.zeros(len(numbers))
        base[row[: len(offered)]] = bases
        vote[row[len(offered) :]] = votes
        score = (np.nan_to_num(base, nan=0.0) + weight * vote) / (1 + weight)
        order = np.lexsort((numbers, -score))
        return Scored(numbers[order].astype(np.int32), score[order], base[order], vote[order], weight)

    def _voting_places(
        self, items: NDArray[np.int32], votes: NDArray[np.float64], micros: NDArray[np.int64]
    ) -> list[tuple[int, int, float]]:
        """(item, steps from the newest voting event, loudness) of the places that speak, newest first."""
        found: list[tuple[int, int, float]] = []
        heard: set[int] = set()
        newest, step, latest, is_repeat = None, -1, -1, False
        for item, vote, at in zip(*(column[::-1].tolist() for column in (items, votes, micros)), strict=True):
            if vote <= 0:
                continue
            newest = at if newest is None else newest
            if item != latest:
                step, latest, is_repeat = step + 1, item, item in heard
                if step == len(self._reads):
                    break
                heard.add(item)
            if is_repeat:
                continue
            loudness = vote * exp(-step / self._place_decay) * 0.5 ** ((newest - at) / 1e6 / HALF_LIFE_SECONDS)
            if found and found[-1][0] == item:  # several events on one item are one place: the loudest speaks
                if loudness > found[-1][2]:
                    found[-1] = (item, step, loudness)
            elif len(self._lists.of(item)[0]):
                found.append((item, step, loudness))
        return found

    def _votes(
        self, voting: Sequence[tuple[int, int, float]], out: NDArray[np.integer]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(items that may be shown, their votes: the largest is 1)."""
        if not voting:
            return np.empty(0, np.int64), np.empty(0)
        rows = [(*self._lists.of(item, self._reads[step]), loudness) for item, step, loudness in voting]
        numbers, row = np.unique(np.concatenate([found for found, _, _ in rows]), return_inverse=True)
        said = np.concatenate([loudness * weights.astype(np.float64) for _, weights, loudness in rows])
        sums = np.bincount(row, weights=said, minlength=len(numbers))
        kept = (sums > 0) & ~np.isin(numbers, out)
        top = float(sums[kept].max(initial=0.0))
        return numbers[kept].astype(np.int64), sums[kept] / (top or 1.0)

    def _bases(
        self,
        listed: NDArray[np.int32],
        values: NDArray[np.floating],
        touched: NDArray[np.int32],
        out: NDArray[np.integer],
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(items, their bases in (0, 1]): the list without what the session touched; when that leaves fewer than K,
        popular items below it."""
        scale = normaliser(float(values[0]), float(values[-1])) if len(listed) else normaliser(1.0, 1.0)
        own = ~np.isin(listed, touched)
        numbers = listed[own].astype(np.int64)
        bases = np.array([scale(float(value)) for value in values[own]])
        if len(numbers) >= K or not len(self._popular):
            return numbers, bases
        ceiling = float(bases[-1]) * BELOW if len(bases) else 1.0
        scale = normaliser(float(self._popular_scores[0]), float(self._popular_scores[-1]))
        more = ~np.isin(self._popular, np.union1d(out, numbers))
        filled = np.array([ceiling * scale(value) for value in self._popular_scores[more].tolist()])
        return np.r_[numbers, self._popular[more]], np.r_[bases, filled]


def _published(model: Model, scores: NDArray[np.float32]) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """(items, scores) of each row's list as score_users makes it; what is closed scores -inf here already."""
    silence_zeros(model, scores)
    numbers, values = top_items(scores, CANDIDATES_PER_USER)
    return [(n[np.isfinite(v)], v[np.isfinite(v)]) for n, v in zip(numbers, values, strict=True)]


def _codes(column: pa.ChunkedArray) -> pa.Array:
    """The place of each row's word in `_words`; null where there is none."""
    return column.combine_chunks().indices


def _words(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().dictionary.cast(pa.string())


def _by_row(column: pa.ChunkedArray, by_word: pa.Array) -> pa.Array:
    return by_word.take(_codes(column))


def _by_type(column: pa.ChunkedArray) -> NDArray[np.float64]:
    weights = pa.array(
        [float(SESSION_VOTE_WEIGHTS.get(word, 0.0)) for word in _words(column).to_pylist()], pa.float64()
    )
    return np.asarray(_by_row(column, weights))


def _hashes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(64 bits that stand for the session key, is there one) of each row; only keys that occur are looked at."""
    codes = np.asarray(pc.fill_null(_codes(column), -1)).astype(np.int64)
    used = np.unique(codes[codes >= 0])
    words = _words(column).take(pa.array(used)).to_pylist()
    bits = np.array([session_hash(word or "") for word in words], dtype=np.uint64).astype(np.int64)
    is_word = np.array([word is not None for word in words], dtype=bool)
    place = np.searchsorted(used, np.maximum(codes, 0))
    place = np.minimum(place, max(0, len(used) - 1))
    if not len(used):
        return np.zeros(len(codes), np.int64), np.zeros(len(codes), bool)
    return bits[place], (codes >= 0) & is_word[place]
