"""Answers with a session, as the night measures them: by hand, as serving makes them, and blind to what came later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from feature_repo.contracts.events import SESSION_VOTE_WEIGHTS
from feature_repo.contracts.packing import SessionEvent, session_hash
from feature_repo.contracts.times import to_micros
from serving.pipeline.slate import build_slate
from serving.pipeline.values import Person, SlateRequest, Tuning
from spark_jobs.evaluation.full_ranking import evaluate_ranking
from spark_jobs.evaluation.split import TimeSplit, split_by_time
from spark_jobs.evaluation.with_session import (
    SessionAnswers,
    Sessions,
    fit_session_model,
    session_row_recipe,
    sessions_when_asked,
)
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.factory import Fitted, fit_recipe
from spark_jobs.models.recipes import default_recipe, flat_recipe
from spark_jobs.models.session_transitions import ItemLists, SessionTransitions
from tests.builders import utc
from tests.serving_builders import Shop

CUT_OFF = utc("2024-03-22")
SPLIT = utc("2024-03-15")

Row = tuple[str, int, str, str, str | None]

ROWS: list[Row] = [
    ("u:old", 0, "view_item", "2024-03-01", "o1"),  # 21 days, so that 7 can be held back
    ("u:old", 5, "view_item", "2024-03-02", "o2"),
    ("u:old", 7, "view_item", "2024-03-02T00:01", "o2"),
    ("u:ann", 1, "view_item", "2024-03-10", "a1"),
    ("u:ann", 2, "view_item", "2024-03-14T23:50", "a2"),  # the session that asks began in training
    ("u:ann", 1, "add_to_cart", "2024-03-15T00:01", "a2"),  # had before: nothing is asked for yet
    ("u:ann", 2, "share", "2024-03-15T00:02", "a2"),  # touches, and has no vote
    ("u:ann", 5, "view_item", "2024-03-15T00:03", "a2"),  # asked for, and so are the rest of her items
    ("u:ann", 2, "view_item", "2024-03-15T00:04", "a2"),  # after it: not known
    ("u:ann", 0, "view_item", "2024-03-16", "a3"),
    ("u:bob", 1, "view_item", "2024-03-14T23:59", "b1"),
    ("u:bob", 1, "view_item", "2024-03-15T00:05", "b2"),
    ("u:bob", 5, "view_item", "2024-03-15T00:05", "b2"),  # at the very moment: not before it
    ("u:cat", 1, "view_item", "2024-03-11", "c1"),
    ("u:cat", 1, "view_item", "2024-03-16T09:00", None),  # of no session
    ("u:cat", 7, "view_item", "2024-03-16T09:01", None),
    ("a:guest", 1, "view_item", "2024-03-15T00:00", "a2"),  # somebody else under the same session key
    ("u:dan", 2, "view_item", "2024-03-12", "d1"),
    ("u:dan", 2, "view_item", "2024-03-17T10:00", "d2"),
    ("u:dan", 2, "view_item", "2024-03-17T11:00", "d3"),  # another session than the one that asks
    ("u:dan", 0, "view_item", "2024-03-17T11:01", "d2"),
]


def table(rows: list[Row]) -> pa.Table:
    columns = {
        "subject_key": pa.array([r[0] for r in rows]).dictionary_encode(),
        "item_number": pa.array([r[1] for r in rows], pa.int32()),
        "event_type": pa.array([r[2] for r in rows]).dictionary_encode(),
        "micros": pa.array([to_micros(utc(r[3])) for r in rows]),
        "session_key": pa.array([r[4] for r in rows], pa.string()).dictionary_encode(),
    }
    return pa.table(columns)


def split_of(rows: list[Row], items: int = 8, **other: object) -> TimeSplit:
    plain = table(rows).drop_columns(["session_key"])
    return split_by_time(plain, cut_off=CUT_OFF, item_count=items, test_days=7, **other)  # type: ignore[arg-type]


def told(sessions: Sessions, split: TimeSplit) -> dict[str, list[tuple[int, float]]]:
    parts = zip(split.subjects.tolist(), sessions.starts[:-1], sessions.starts[1:], strict=True)
    return {
        subject: list(zip(sessions.items[a:b].tolist(), sessions.votes[a:b].tolist(), strict=True))
        for subject, a, b in parts
    }


def test_the_session_is_what_was_done_before_the_first_asked_for_item() -> None:
    split = split_of(ROWS)
    assert split.subjects.tolist() == ["u:ann", "u:bob", "u:cat", "u:dan"]
    sessions = sessions_when_asked(table(ROWS), split)
    assert told(sessions, split) == {
        "u:ann": [(2, 1.0), (1, 2.0), (2, 0.0)], "u:bob": [], "u:cat": [], "u:dan": [(2, 1.0)],
    }  # fmt: skip
    assert sessions.has_any.tolist() == [True, False, False, True]
    ann = slice(0, 3)
    assert sessions.micros[ann].tolist() == [
        to_micros(utc(t)) for t in ("2024-03-14T23:50", "2024-03-15T00:01", "2024-03-15T00:02")
    ]
    shuffled = [ROWS[n] for n in np.random.default_rng(3).permutation(len(ROWS))]
    assert told(sessions_when_asked(table(shuffled), split), split) == told(sessions, split)


def test_where_lists_may_repeat_what_was_had_before_is_asked_for_too() -> None:
    split = split_of(ROWS, exclude_seen="none")
    assert split.subjects.tolist() == ["u:ann", "u:bob", "u:cat", "u:dan"]
    sessions = sessions_when_asked(table(ROWS), split)  # ann asks for 1 now, two minutes earlier
    assert told(sessions, split) == {"u:ann": [(2, 1.0)], "u:bob": [], "u:cat": [], "u:dan": []}


def test_only_the_newest_fifty_events_are_remembered() -> None:
    many: list[Row] = [("u:ann", 1, "view_item", f"2024-03-15T00:00:{n:02d}", "a2") for n in range(59)]
    rows = [*ROWS, *many]
    split = split_of(rows)
    sessions = sessions_when_asked(table(rows), split)
    assert len(told(sessions, split)["u:ann"]) == 50
    assert told(sessions, split)["u:ann"][:1] == [(1, 1.0)]  # of a2's view before midnight nothing is left
    assert told(sessions, split)["u:ann"][-1] == (2, 0.0)


class Table:
    """A "model" whose scores are a line for each row of the matrix."""

    source = 1

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores.astype(np.float32)

    def score_block(self, histories: sparse.csr_matrix, rows: np.ndarray) -> np.ndarray:
        assert histories.shape[0] == len(rows)
        return self.scores[rows].copy()


def index(rows: dict[int, list[tuple[int, float]]], items: int, reads: list[int], decay: float) -> SessionTransitions:
    params = {**default_recipe("session_transitions")["params"], "reads": reads, "place_decay": decay}
    model = SessionTransitions(params)
    lengths = [len(rows.get(n, [])) for n in range(items)]
    flat = [entry for n in range(items) for entry in rows.get(n, [])]
    model.lists = ItemLists(
        np.r_[0, np.cumsum(lengths)].astype(np.int64),
        np.array([n for n, _ in flat], np.int32),
        np.array([w for _, w in flat], np.float32),
    )
    return model


def base(split: TimeSplit, scores: np.ndarray) -> Fitted:
    subjects = split.subjects
    matrix = InteractionMatrix(
        subjects, sparse.csr_matrix((len(subjects), scores.shape[1]), dtype=np.float32), np.zeros(0, np.int64)
    )
    return Fitted(Table(scores), matrix)  # type: ignore[arg-type]


def test_an_answer_by_hand() -> None:
    """ann saw 2, put 1 into the cart 11 minutes later, shared 2. Places that vote, newest first: 1 (cart 2, e^0) and 2
    (view 1, e^(-1/2), half of it 30 minutes later). 1 leads to 5 (4) and 6 (1), the second entry of two that are read;
    2, of which one entry is read, to 0 (2)."""
    split = split_of(ROWS)
    sessions = sessions_when_asked(table(ROWS), split)
    model = index({1: [(5, 4.0), (6, 1.0), (7, 9.0)], 2: [(0, 2.0), (5, 50.0)]}, 8, [2, 1], 2.0)
    scores = np.array([
        [0.1, 9.0, 9.0, 0.8, 0.4, 0.2, 0.0, 0.05],  # ann's list: 3, 4, 5, 0, 7 (1 and 2 she had, of 6 nothing is said)
        [0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0],
        [0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # dan has no list
    ])  # fmt: skip
    popular = np.array([0.0, 0.0, 5.0, 4.0, 0.0, 0.0, 2.0, 0.0])
    answers = SessionAnswers(base(split, scores), split, sessions, model, popular)
    found = answers.rank(np.arange(4), 8)

    quiet = np.exp(-0.5) * 0.5 ** (11 / 30)
    votes = {5: 1.0, 6: 2 * 1 / (2 * 4), 0: quiet * 2 / (2 * 4)}
    weight = 4 * (2 + quiet) / (3 + quiet)
    bases = {3: 1.0, 4: 0.5, 5: 0.25, 0: 0.125, 7: 0.0625}
    bases[6] = 0.0625 * 0.999 * 2 / 5  # her list is short: 6 is popular (2 and 3 are, and are closed, or hers already)
    score = {n: (bases.get(n, 0) + weight * votes.get(n, 0)) / (1 + weight) for n in {*bases, *votes}}
    expected = sorted(score, key=lambda n: -score[n])
    assert expected[:3] == [5, 3, 6]
    assert found.numbers[0].tolist() == [*expected, -1, -1]

    # Nobody's session: the model's own row, whatever is silent last (ties by number).
    assert found.numbers[1].tolist() == [0, 2, 3, 4, 5, 6, 7, -1]
    # dan: 2 leads to 0 and, read deeper as the first place, to 5; then what is popular
    assert found.numbers[3].tolist() == [5, 0, 3, 6, -1, -1, -1, -1]
    result = evaluate_ranking(answers.rank, split, ks=(2,))
    assert result.per_user["recall_at_2"].tolist() == [0.5, 0.0, 0.0, 1.0]


def test_answers_are_those_of_serving(tmp_path: Path) -> None:
    """Many sessions, lists of all lengths: the same slate of 20, item by item."""
    rng = np.random.default_rng(7)
    items, people = 60, 120
    names = [f"i{n:02d}" for n in range(items)]
    leads = {
        n: sorted(
            ((int(to), float(w)) for to, w in zip(
                rng.permutation(items)[:12], np.float32(rng.random(12) + 0.01), strict=True)),
            key=lambda entry: (-entry[1], entry[0]),
        )
        for n in range(items) if n % 7
    }  # fmt: skip
    reads, decay = [9, 7, 5, 3], 1.7
    popular = {n: float(60 - n) for n in range(0, 50, 2)}
    shop = Shop(
        {name: {} for name in names},
        popular=[(names[n], score) for n, score in popular.items()],
        leads_to={names[n]: [(names[to], w) for to, w in row] for n, row in leads.items()},
        session_params={"reads": reads, "place_decay": decay},
    )
    catalogue = shop.catalogue(tmp_path)
    types = sorted({*SESSION_VOTE_WEIGHTS, "share"})

    # Everybody had item 0 and nothing else, so that as good as nothing is closed; what they come for is item 59 or 58.
    rows: list[Row] = [("u:000", 59, "view_item", "2024-03-01", "x"), ("u:000", 58, "view_item", "2024-03-01", "x")]
    for n in range(people):
        rows.append((f"u:{n:03d}", 0, "view_item", "2024-03-02", f"first {n}"))
        minute, asked = 0.0, 58 + n % 2
        for _ in range(int(rng.integers(0, 9))):
            minute += float(rng.choice([0.4, 3.0, 25.0]))
            item = int(rng.choice([0, 57, 40, 3, int(rng.integers(57))]))
            when = utc("2024-03-16").timestamp() + 60 * minute
            stamp = str(np.datetime64(int(when * 1e6), "us"))
            rows.append((f"u:{n:03d}", item, str(rng.choice(types)), stamp, f"second {n}"))
        stamp = str(np.datetime64(int((utc("2024-03-16").timestamp() + 60 * (minute + 1)) * 1e6), "us"))
        rows.append((f"u:{n:03d}", asked, "view_item", stamp, f"second {n}"))
    split = split_of(rows, items)
    assert len(split.subjects) == people - 1
    sessions = sessions_when_asked(table(rows), split)
    assert 60 < sessions.has_any.sum() < people - 1

    scores = np.zeros((people - 1, items))
    for line in scores:
        listed = rng.permutation(np.arange(1, items))[: int(rng.choice([0, 1, 15, 30, 50]))]
        line[listed] = rng.random(len(listed)) * rng.choice([1.0, 1e-4]) - (0.5 if rng.random() < 0.3 else 0.0)
    worth = np.array([popular.get(n, 0.0) for n in range(items)])
    answers = SessionAnswers(base(split, scores), split, sessions, index(leads, items, reads, decay), worth)
    found = answers.rank(np.arange(people - 1), 20).numbers

    longest, asked = 0, np.flatnonzero(sessions.has_any)
    for at in asked.tolist():
        part = slice(sessions.starts[at], sessions.starts[at + 1])
        mine = [row for row in rows if row[0] == split.subjects[at] and row[4] and row[4].startswith("second")][:-1]
        assert len(mine) == len(sessions.items[part])
        events = [
            SessionEvent(to_micros(utc(when)), kind, session_hash(key), names[n]) for _, n, kind, when, key in mine
        ]
        own = np.where(scores[at] == 0, -np.inf, scores[at])
        own[0] = -np.inf  # closed
        best = [n for n in np.lexsort((np.arange(items), -own)).tolist() if np.isfinite(own[n])]
        person = Person(candidates=[(n, float(np.float32(own[n])), 1, 0, 0) for n in best] or None)
        request = SlateRequest(
            num_results=20, user_id="u", recent_events=events, exclude_item_ids=frozenset([names[0]])
        )  # fmt: skip
        slate = build_slate(request, person, catalogue, Tuning(), now_micros=events[-1].micros, timer=lambda: 0)
        expected = [item.item_number for item in slate.items]
        assert [n for n in found[at].tolist() if n >= 0] == expected, split.subjects[at]
        longest = max(longest, len(expected))
    assert longest == 20


def shop_of_tastes() -> list[Row]:
    """Twelve people in two groups who look at the items of their group one after the other, every other day."""
    rng = np.random.default_rng(1)
    rows: list[Row] = []
    for n in range(12):
        for day in range(1, 22, 2):
            start = int(rng.integers(8))
            for step in range(3):
                item = (start + step) % 8 + 8 * (n % 2)
                rows.append((f"u:{n:02d}", item, "view_item", f"2024-03-{day:02d}T1{step}:{n:02d}", f"{n} {day}"))
    return rows


def lists_of(rows: list[Row], like: TimeSplit | None = None) -> dict[str, list[int]]:
    """Subject -> their answer, everything learned anew from these rows."""
    split = split_of(rows, 16)
    if like is not None:  # the same questions: what was asked for first stays, whatever was added
        assert set(split.subjects) >= set(like.subjects)
    sessions = sessions_when_asked(table(rows), split)
    settings = {"item_count": 16, "cut_off": split.test_start}
    fitted = fit_recipe(default_recipe("item_knn"), split.train, **settings)  # type: ignore[arg-type]
    popular = fit_recipe(default_recipe("popularity"), split.train, **settings)  # type: ignore[arg-type]
    model, choice, newest = fit_session_model(table(rows), split)
    assert newest is not None
    assert newest < to_micros(SPLIT)
    nobody = sparse.csr_matrix((1, 16), dtype=np.float32)
    answers = SessionAnswers(fitted, split, sessions, model, popular.model.score_block(nobody)[0])
    assert flat_recipe(session_row_recipe("item_knn", choice))["lists_of"] == "item_knn"
    numbers = answers.rank(np.arange(len(split.subjects)), 10).numbers
    return dict(zip(split.subjects.tolist(), numbers.tolist(), strict=True))


@pytest.fixture(scope="module")
def tastes() -> list[Row]:
    """Everybody had all but two items of their group: they come for those, first for something that they know."""
    rows = [row for row in shop_of_tastes() if row[3] < "2024-03-15" and row[1] % 8 < 6]
    rows += [("u:99", item, "view_item", "2024-03-03", f"all {item % 2}") for item in range(16)]
    for n in range(12):
        rows += [
            (f"u:{n:02d}", 8 * (n % 2) + item, "view_item", f"2024-03-17T12:{minute:02d}", f"ask {n}")
            for minute, item in ((1, n % 6), (2, 6 + n // 2 % 2))
        ]
    return rows


def test_what_came_later_moves_nothing(tastes: list[Row]) -> None:
    found = lists_of(tastes)
    assert len(found) == 12
    late: list[Row] = [
        *((f"u:{n:02d}", (n * 5 + 3) % 16, "add_to_cart", "2024-03-17T12:02", f"ask {n}") for n in range(12)),
        *((f"u:{n:02d}", (n * 3 + 1) % 16, "purchase", "2024-03-17T12:03", f"ask {n}") for n in range(12)),
        *((f"a:{n}", n % 16, "view_item", f"2024-03-16T10:{n % 60:02d}", f"crowd {n // 5}") for n in range(200)),
    ]
    assert lists_of([*tastes, *late], split_of(tastes, 16)) == found
    early = [(subject, (item + 1) % 6, kind, "2024-03-17T12:01:30", key)
             for subject, item, kind, when, key in tastes if when == "2024-03-17T12:01"]  # fmt: skip
    assert lists_of([*tastes, *early]) != found, "what came before it does"


def test_a_large_shop_is_learned_from_its_newest_events(tastes: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(tastes, 16)
    newest = [row for row in tastes if "2024-03-09" <= row[3] < "2024-03-15"]
    monkeypatch.setattr("spark_jobs.evaluation.with_session.MOST_EVENTS", len(newest))
    few, _, _ = fit_session_model(table(tastes), split)
    same, _, _ = fit_session_model(table(newest), replace(split))
    assert [column.tolist() for column in few.lists] == [column.tolist() for column in same.lists]
    assert len(few.lists.numbers) > 0
