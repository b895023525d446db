"""What the four protocols have in common: something to learn from, questions, and what would have been right.

A validation slice is cut from the training data alone. The answers of the test are read by `open_test`, which is called
once, when everything has been decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import DataError
from infra.bench.quality import formats
from infra.bench.quality.event_words import canonical_types, most_valued
from infra.bench.quality.training import Questions, Training
from spark_jobs.models.item_content import Described, build_content
from spark_jobs.models.matrix import sort_interactions
from spark_jobs.models.sequences import make_sequences

PROTOCOLS = ("pairs", "sessions", "sequences", "events")
REPEATS = ("new-only", "allowed")

PAIRS_SHARE = 0.1
"""Of each user's pairs that validation takes. More of them would thin the graph so much that another model is best."""
PAIRS_QUESTIONS, MOST_PAIRS_SLICES = 4_000, 4
"""Where fewer users than that have something to hold back, validation takes several tenths, each by itself: what a few
hundred users answer, chance answers with them."""
EVENTS_SHARE = 0.2
"""Of the target events, the newest, that validation takes."""
SESSION_SHARE = 0.05
"""Of the training sessions of two items or more, the newest, that validation takes."""
LONGEST_PREFIX = 200
"""Of a session that is validated on, so many last places: no model reads more."""
MOST_QUESTIONS = 12_000
"""Validation, all slices together, has at most so many: the weights of the blend are searched on them."""
SEARCH_QUESTIONS = 2_400
MOST_PREFIXES = 6_000
"""The search of a model's own parameters asks at most so many: twice as many cost twice and narrow the choice by a
third."""
MOST_CELLS = 1_000_000_000
SEARCH_CELLS = 250_000_000
"""... and at most so many scores."""
SEED = 20_240_229

ONLY_TYPE = "interaction"


class Slice(NamedTuple):
    """Questions and what would have been right.

    relevant         CSR questions x items: the answers that can be found at all
    relevant_counts  how many answers each question has, those that nobody could know included
    seen             CSR questions x items that are never offered; None: everything may be
    negatives        CSR questions x items to rank each answer against; None: all items are ranked
    """

    training: Training
    questions: Questions
    relevant: sparse.csr_matrix
    relevant_counts: NDArray[np.int64]
    seen: sparse.csr_matrix | None
    negatives: sparse.csr_matrix | None = None


def sample(asked: Slice, most: int) -> Slice:
    """At most so many of the questions, evenly over all."""
    if len(asked.questions) <= most:
        return asked
    rows = np.linspace(0, len(asked.questions) - 1, most).astype(np.int64)
    return asked._replace(
        questions=asked.questions.part(rows),
        relevant=asked.relevant[rows],
        relevant_counts=asked.relevant_counts[rows],
        seen=None if asked.seen is None else asked.seen[rows],
    )


@dataclass(frozen=True, slots=True)
class Task:
    """One bench: all training data, and the validation slices cut from it.

    searched  the same slices with no more questions than the search of a model's parameters asks
    """

    protocol: str
    training: Training
    validations: tuple[Slice, ...]
    searched: tuple[Slice, ...]
    removes_seen: bool
    train_path: Path
    test_path: Path
    negatives_path: Path | None


# --- reading -------------------------------------------------------------------------------------------------------


def open_training(
    protocol: str,
    *,
    train: Path,
    test: Path,
    negatives: Path | None = None,
    repeats: str = "new-only",
    attributes: Path | None = None,
) -> Task:
    """Read the training data and cut the validation. The test file is not touched, not even looked for.

    `attributes`: what is said of the items; those that are not in the training data are left out.
    """
    made = {"pairs": _open_pairs, "sessions": _open_sessions, "sequences": _open_sequences, "events": _open_events}
    training, validations = made[protocol](train, repeats == "allowed")
    if attributes is not None:
        _describe(training, validations, attributes)
    validations = tuple(found for found in validations if len(found.questions))
    if not validations:
        raise DataError(
            f"{train}: nothing to validate on: each user (or session) has one item, or items that nobody else has",
            field="--train",
        )
    removes = protocol != "sessions" and not (protocol == "events" and repeats == "allowed")
    most = SEARCH_QUESTIONS if protocol != "sessions" else MOST_PREFIXES
    most = min(most, max(1, SEARCH_CELLS // max(1, training.item_count)))
    searched = tuple(sample(found, max(1, most // len(validations))) for found in validations)
    return Task(protocol, training, validations, searched, removes, train, test, negatives)


def _describe(training: Training, validations: Sequence[Slice], path: Path) -> None:
    said = formats.read_attributes(path, "--attributes")
    numbers = formats.numbered(list(said), training.item_names)
    described = {
        int(number): Described([("tags", word) for word in words])
        for number, words in zip(numbers, said.values(), strict=True)
        if number >= 0
    }
    if not described:
        raise DataError(
            f"--attributes {path}: none of its {len(said):,} items is in the training data; it begins with "
            f"{next(iter(said))!r}, the training data with {training.item_names[0]!r}",
            field="--attributes",
        )
    content = build_content(described, item_count=training.item_count)
    for one in (training, *(found.training for found in validations)):
        one.content = content


def open_test(task: Task) -> Slice:
    """Read the test, once. Raises DataError when it is not there, cannot be read, or asks about nobody."""
    option = "--data" if task.protocol == "sequences" else "--test"
    training, path = task.training, task.test_path
    if task.protocol == "sessions":
        found = formats.read_prefixes(path, option)
        whole = _session_slice(training, found.prefixes, found.targets)
        return _with_negatives(whole, task, [str(line) for line in range(len(found.targets))])
    if task.protocol == "events":
        events = formats.read_events(path, option)
        chosen = np.ones(len(events.user), bool)
        if events.event is not None:
            types = np.array(canonical_types(events.event), dtype=object)
            targets = np.isin(types, list(training.target_types))
            chosen = targets if targets.any() else chosen
        users, items = events.user[chosen], events.item[chosen]
    else:
        lists = formats.read_lists(path, option)
        users, items, places = formats.flatten(lists)
        if task.protocol == "sequences":
            users, items = _last_of_each(users, items, places, lists, count=1)
    names = np.unique(users.astype(str)).astype(object)
    whole = _user_slice(training, names, users, items, removes_seen=task.removes_seen)
    if not (whole.relevant_counts > 0).any():
        raise DataError(f"{option} {path}: nobody in it has an item that may be recommended", field=option)
    kept = names[whole.relevant_counts > 0]
    return _with_negatives(_only(whole, whole.relevant_counts > 0), task, list(kept))


def _open_pairs(path: Path, _: bool) -> tuple[Training, Sequence[Slice]]:
    users, items, _places = formats.flatten(formats.read_lists(path, "--train"))
    training = _table_training(users, items)
    chance = np.random.default_rng(SEED).random(len(users))
    slices = _pairs_slices(users)
    tenths = _shares_of_each(users, chance, slices)
    return training, [_holdout(training, users, items, held, removes_seen=True, slices=slices) for held in tenths]


def _open_sequences(path: Path, _: bool) -> tuple[Training, Sequence[Slice]]:
    lists = formats.read_lists(path, "--data")
    lists = formats.Lists(lists.users, [found[:-1] if len(found) > 1 else found for found in lists.items])
    users, items, places = formats.flatten(lists)
    micros = places * 1_000_000
    training = _table_training(users, items, micros=micros, has_order=True)
    lengths = np.repeat(np.array([len(found) for found in lists.items]), [len(found) for found in lists.items])
    held = (places == lengths - 1) & (lengths > 1)
    return training, [_holdout(training, users, items, held, removes_seen=True, micros=micros, has_order=True)]


def _open_events(path: Path, repeats: bool) -> tuple[Training, Sequence[Slice]]:
    events = formats.read_events(path, "--train")
    if events.event is not None:
        types = np.array(canonical_types(events.event), dtype=object)
    elif events.rating is not None:
        liked = events.rating >= events.rating.mean()
        types = np.where(liked, "rating_high", "rating_low").astype(object)
    else:
        types = np.full(len(events.user), ONLY_TYPE, dtype=object)
    targets = most_valued(types)
    form = {"types": types, "micros": events.micros, "has_order": events.micros is not None, "target_types": targets}
    training = _table_training(events.user, events.item, **form)  # type: ignore[arg-type]
    is_target = np.isin(types, list(targets))
    if events.micros is None:
        return training, _events_by_chance(training, events, is_target, form, repeats=repeats)
    micros = events.micros
    cut = int(np.quantile(micros[is_target], 1 - EVENTS_SHARE, method="lower")) + 1
    late = micros >= cut
    cuts = [
        _holdout(
            training, events.user, events.item, late & is_target, removes_seen=not repeats,
            repeats=repeats, dropped=late, cut_off=cut, slices=2, **form,  # type: ignore[arg-type]
        )
    ]  # fmt: skip
    frame = pd.DataFrame({"user": events.user, "micros": np.where(is_target, micros, np.iinfo(np.int64).min)})
    newest = frame.groupby("user")["micros"].transform("max").to_numpy()
    has_target = newest > np.iinfo(np.int64).min
    held = is_target & (micros == newest)
    cuts.append(
        _holdout(
            training, events.user, events.item, held, removes_seen=not repeats, repeats=repeats,
            dropped=held | (repeats & has_target & (micros >= newest)), slices=2, **form,  # type: ignore[arg-type]
        )
    )  # fmt: skip
    if not any(len(found.questions) for found in cuts):  # what each did, they did at one time
        return training, _events_by_chance(training, events, is_target, form, repeats=repeats)
    return training, cuts


def _events_by_chance(
    training: Training,
    events: formats.Events,
    is_target: NDArray[np.bool_],
    form: Mapping[str, Any],
    *,
    repeats: bool,
) -> Sequence[Slice]:
    """Shares of each user's target events, where no time says which come last."""
    chance = np.random.default_rng(SEED).random(len(is_target))
    slices = _pairs_slices(events.user[is_target])
    tenths = _shares_of_each(events.user, np.where(is_target, chance, -1.0), slices)
    return [
        _holdout(
            training, events.user, events.item, held & is_target, removes_seen=not repeats, repeats=repeats,
            slices=slices, **form,
        )
        for held in tenths
    ]  # fmt: skip


def _open_sessions(path: Path, _: bool) -> tuple[Training, Sequence[Slice]]:
    lines = formats.read_sessions(path, "--train")
    flat = np.array([item for line in lines for item in line], dtype=object)
    names = np.unique(flat.astype(str)).astype(object)
    training = _session_training(names, lines)
    asked = [number for number, line in enumerate(lines) if len(line) > 1]  # a click alone leads nowhere
    first = asked[-max(1, int(len(asked) * SESSION_SHARE))] if asked else len(lines) - 1
    earlier = _session_training(names, lines[:first])
    ends = [(line, end) for line in lines[first:] for end in range(1, len(line))]
    most = min(MOST_PREFIXES, max(1, SEARCH_CELLS // max(1, len(names))))
    if len(ends) > most:
        chosen = np.sort(np.random.default_rng(SEED).choice(len(ends), most, replace=False))
        ends = [ends[number] for number in chosen]
    prefixes = [line[max(0, end - LONGEST_PREFIX) : end] for line, end in ends]
    return training, [_session_slice(earlier, prefixes, [line[end] for line, end in ends])]


# --- making --------------------------------------------------------------------------------------------------------


def _table_training(
    users: NDArray[np.object_],
    items: NDArray[np.object_],
    *,
    types: NDArray[np.object_] | None = None,
    micros: NDArray[np.int64] | None = None,
    has_order: bool = False,
    target_types: tuple[str, ...] = (ONLY_TYPE,),
    names: tuple[NDArray[np.object_], NDArray[np.object_]] | None = None,
    cut_off: int | None = None,
) -> Training:
    user_names, item_names = names or (np.unique(users.astype(str)), np.unique(items.astype(str)))
    user_names, item_names = user_names.astype(object), item_names.astype(object)
    when = np.zeros(len(users), np.int64) if micros is None else micros
    kinds = np.full(len(users), ONLY_TYPE, dtype=object) if types is None else types
    table = sort_interactions(
        pa.table(
            {
                "subject_key": pa.DictionaryArray.from_arrays(
                    pa.array(formats.numbered(users, user_names).astype(np.int32)),
                    pa.array([f"u:{name}" for name in user_names], pa.string()),
                ),
                "item_number": pa.array(formats.numbered(items, item_names).astype(np.int32)),
                "event_type": pa.array(kinds, pa.string()).dictionary_encode(),
                "micros": pa.array(when),
            }
        )
    )
    counts = pd.Series(kinds).value_counts(sort=False)
    return Training(
        item_names=item_names,
        user_names=user_names,
        table=table,
        sessions=None,
        cut_off=cut_off if cut_off is not None else (int(when.max()) + 1 if len(when) else 1),
        has_time=micros is not None and types is not None,
        has_order=has_order,
        types={str(name): int(counts[name]) for name in sorted(counts.index)},
        target_types=target_types,
    )


def _session_training(names: NDArray[np.object_], lines: Sequence[Sequence[str]]) -> Training:
    numbers = formats.numbered(np.array([item for line in lines for item in line], dtype=object), names)
    ends = np.cumsum([len(line) for line in lines])
    sessions = make_sequences(np.split(numbers, ends[:-1]) if len(ends) else [], item_count=len(names))
    return Training(
        item_names=names, user_names=np.empty(0, object), table=None, sessions=sessions, cut_off=sessions.cut_off,
        has_time=False, has_order=True, types={ONLY_TYPE: len(numbers)}, target_types=(ONLY_TYPE,),
    )  # fmt: skip


def _holdout(
    training: Training,
    users: NDArray[np.object_],
    items: NDArray[np.object_],
    held: NDArray[np.bool_],
    *,
    removes_seen: bool,
    repeats: bool = False,
    dropped: NDArray[np.bool_] | None = None,
    types: NDArray[np.object_] | None = None,
    micros: NDArray[np.int64] | None = None,
    has_order: bool = False,
    target_types: tuple[str, ...] = (ONLY_TYPE,),
    cut_off: int | None = None,
    slices: int = 1,
) -> Slice:
    """Train without the rows that are held (and `dropped`), ask for the items of those held.

    Where seen items are never offered, what else a user did with a held item is taken away too, or it would be seen:
    only if `dropped` is no cut through time, where what came before simply makes it an item that was seen.
    """
    gone = held if dropped is None else dropped
    if not repeats and cut_off is None:
        pairs = pd.MultiIndex.from_arrays([users, items])
        gone = gone | pairs.isin(pairs[held])
    kept = ~gone
    earlier = _table_training(
        users[kept], items[kept], types=None if types is None else types[kept],
        micros=None if micros is None else micros[kept], has_order=has_order, target_types=target_types,
        names=(training.user_names, training.item_names),
        cut_off=training.cut_off if cut_off is None else cut_off,
    )  # fmt: skip
    names = training.user_names
    known = np.unique(formats.numbered(users[kept], names))
    whole = _user_slice(earlier, names, users[held], items[held], removes_seen=removes_seen)
    has_history = np.isin(np.arange(len(names)), known)
    sold = np.bincount(np.asarray(earlier.table["item_number"]), minlength=training.item_count) > 0  # type: ignore[index]
    findable = np.asarray(whole.relevant @ sold.astype(np.float32)).ravel() > 0
    chosen = np.flatnonzero((whole.relevant_counts > 0) & has_history & findable)
    most = min(MOST_QUESTIONS, max(1, MOST_CELLS // max(1, training.item_count))) // slices
    if len(chosen) > most:
        chosen = np.sort(np.random.default_rng(SEED).choice(chosen, most, replace=False))
    mask = np.zeros(len(names), bool)
    mask[chosen] = True
    return _only(whole, mask)


def _user_slice(
    training: Training,
    names: NDArray[np.object_],
    users: NDArray[np.object_],
    items: NDArray[np.object_],
    *,
    removes_seen: bool,
) -> Slice:
    """One question for each of `names`; the answers are (users, items), each once, without those that are seen."""
    rows, numbers = formats.numbered(users, names), formats.numbered(items, training.item_names)
    shape = (len(names), training.item_count)
    known = numbers >= 0
    relevant = _pattern(rows[known], numbers[known], shape)
    strangers = pd.DataFrame({"row": rows[~known], "item": items[~known]}).drop_duplicates()["row"].to_numpy(np.int64)
    place = formats.numbered(names, training.user_names)
    seen = None
    if removes_seen:
        assert training.table is not None
        subjects = np.asarray(training.table["subject_key"].combine_chunks().indices)
        words = training.table["subject_key"].combine_chunks().dictionary.to_pylist()
        owners = formats.numbered([word[2:] for word in words], training.user_names)[subjects]
        had = _pattern(owners, np.asarray(training.table["item_number"]), (len(training.user_names), shape[1]))
        picked = sparse.csr_matrix(
            (np.ones(int((place >= 0).sum()), np.float32), (np.flatnonzero(place >= 0), place[place >= 0])),
            shape=(len(names), len(training.user_names)),
        )
        seen = sparse.csr_matrix(picked @ had)
        relevant = sparse.csr_matrix(relevant - relevant.multiply(seen))
        relevant.eliminate_zeros()
        relevant.sort_indices()
    counts = np.diff(relevant.indptr) + np.bincount(strangers, minlength=len(names))
    return Slice(training, Questions(place), relevant, counts.astype(np.int64), seen)


def _session_slice(training: Training, prefixes: Sequence[Sequence[str]], targets: Sequence[str]) -> Slice:
    """One question a prefix. Items that nobody had in training are left out of it; as a target they are a miss."""
    lengths = [len(prefix) for prefix in prefixes]
    flat = formats.numbered(np.array([item for prefix in prefixes for item in prefix], object), training.item_names)
    rows = np.repeat(np.arange(len(prefixes)), lengths)
    known = flat >= 0
    ends = np.cumsum(np.bincount(rows[known], minlength=len(prefixes)))
    asked = make_sequences(np.split(flat[known], ends[:-1]), item_count=training.item_count)
    answers = formats.numbered(np.array(targets, object), training.item_names)
    relevant = _pattern(np.flatnonzero(answers >= 0), answers[answers >= 0], (len(prefixes), training.item_count))
    questions = Questions(np.full(len(prefixes), -1, np.int64), asked)
    return Slice(training, questions, relevant, np.ones(len(prefixes), np.int64), None)


def _with_negatives(whole: Slice, task: Task, names: Sequence[str]) -> Slice:
    if task.negatives_path is None:
        return whole
    lists = formats.read_negatives(task.negatives_path, "--negatives", by_line=task.protocol == "sessions")
    users, items, _ = formats.flatten(lists)
    order = np.argsort(np.array(names, dtype=str), kind="stable")
    sorted_names = np.array(names, dtype=object)[order]
    place = formats.numbered(users, sorted_names)
    rows = np.where(place >= 0, order[place], -1)
    numbers = formats.numbered(items, task.training.item_names)
    kept = (rows >= 0) & (numbers >= 0)
    negatives = _pattern(rows[kept], numbers[kept], whole.relevant.shape)
    without = np.flatnonzero(np.diff(negatives.indptr) == 0)
    if len(without):
        raise DataError(
            f"--negatives {task.negatives_path}: no known item for {names[without[0]]!r} and {len(without) - 1:,} "
            f"others of {len(names):,} in the test",
            field="--negatives",
        )
    return whole._replace(negatives=negatives)


def _only(whole: Slice, mask: NDArray[np.bool_]) -> Slice:
    rows = np.flatnonzero(mask)
    return whole._replace(
        questions=whole.questions.part(rows),
        relevant=whole.relevant[rows],
        relevant_counts=whole.relevant_counts[rows],
        seen=None if whole.seen is None else whole.seen[rows],
    )


def _pairs_slices(users: NDArray[np.object_]) -> int:
    """How many tenths validation takes, by how many users have something to hold back."""
    asked = int((np.unique(users.astype(str), return_counts=True)[1] > 1).sum())
    return min(MOST_PAIRS_SLICES, max(1, -(-PAIRS_QUESTIONS // max(1, asked))))


def _shares_of_each(users: NDArray[np.object_], chance: NDArray[np.float64], slices: int) -> list[NDArray[np.bool_]]:
    """Of each user's rows the PAIRS_SHARE with the largest chance (rounded, at least 1, never the last one left), then
    the next so many, and so on; no row is in two. A user with too few rows for a later slice is not in it."""
    frame = pd.DataFrame({"user": users, "chance": chance})
    groups = frame.groupby("user")["chance"]
    rank, size = groups.rank(method="first", ascending=False).to_numpy(), groups.transform("size").to_numpy()
    wanted = np.minimum(np.maximum(np.round(size * PAIRS_SHARE), 1), size - 1)
    return [np.asarray((rank > number * wanted) & (rank <= (number + 1) * wanted)) for number in range(slices)]


def _last_of_each(
    users: NDArray[np.object_],
    items: NDArray[np.object_],
    places: NDArray[np.int64],
    lists: formats.Lists,
    *,
    count: int,
) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    lengths = np.repeat(np.array([len(found) for found in lists.items]), [len(found) for found in lists.items])
    last = (places >= lengths - count) & (lengths > count)
    return users[last], items[last]


def _pattern(rows: NDArray[np.integer], columns: NDArray[np.integer], shape: tuple[int, int]) -> sparse.csr_matrix:
    found = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    found.sum_duplicates()
    found.data[:] = 1.0
    return found
