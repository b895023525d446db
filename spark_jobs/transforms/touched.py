"""Who and what is touched: whose list, and which item's neighbours, cannot be those of the night before.

A list follows from the person's own history, from what may be shown, and from what is the same for everybody. Each list
is stored with a digest of the first and with words for the last (`MadeBy`). A night that wants to keep a list compares.
Nobody has to tell what happened in between: a late event, a revised one, a withdrawn consent, a merge of two persons or
an erasure changes the history, and so its digest.

A list that is kept is as the model of an earlier night made it: it knows neither what others did since nor new items.
So none is kept for longer than OLDEST_DAYS.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.errors import DataError, nearest
from spark_jobs.models.recipes import recipe_id

AUTO, TOUCHED, ALL = RESCORES = ("auto", "touched", "all")
"""Values of the run parameter `rescore`."""
AUTO_PEOPLE = 100_000
"""From so many people on `auto` keeps lists. A list with its reasons costs some 3 ms of a core, so fewer are made in
minutes; and lists that are a few days old are a little worse than new ones (infra/docs/incremental.md)."""

OLDEST_DAYS = 7
"""A list, a row of neighbours or a chain of warm starts that began so many days ago begins anew."""
LISTS_FORMAT = 1
"""Raise it when the same recipe and history come to give another list, or other neighbours."""

_EVENT = np.dtype([("who_or_what", "<u8"), ("event_type", "<u8"), ("micros", "<i8")])


@dataclass(frozen=True, slots=True)
class MadeBy:
    """What decides lists (or neighbours) besides histories and what may be shown.

    recipe     model and id of the recipe
    rules      what else shapes a list: what is left out of it, how long it is
    items      item numbers below this one are covered by `numbering`
    numbering  `numbering_digest` of them
    """

    recipe: str
    rules: str
    items: int
    numbering: str
    format: int = LISTS_FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def other_than(self, stored: str | None, numbers: pa.Table) -> list[str]:
        """How what made `stored` differs from this, in words; empty when lists made by either may stand together.

        `numbers` are all item numbers of now: items that came since are no difference, items numbered otherwise are.
        """
        try:
            before = json.loads(stored or "")
            before = MadeBy(**{field.name: before[field.name] for field in fields(MadeBy)})
        except (ValueError, KeyError, TypeError):
            return ["they do not say what made them"]
        words = [
            f"{name} was {getattr(before, name)}, is {getattr(self, name)}"
            for name in ("format", "recipe", "rules")
            if getattr(before, name) != getattr(self, name)
        ]
        if numbering_digest(numbers, before.items) != before.numbering:
            words.append("items have other numbers now")
        return words


def made_by(recipe: Mapping[str, Any], rules: str, numbers: pa.Table, *, item_count: int) -> MadeBy:
    """`numbers` are all of gold.item_ids: those below `item_count` never change, whichever night asks."""
    name = f"{recipe['model']} {recipe_id(recipe)}"
    return MadeBy(recipe=name, rules=rules, items=item_count, numbering=numbering_digest(numbers, item_count))


def numbering_digest(numbers: pa.Table, below: int) -> str:
    """Sixteen hex digits of which item has which number, of the numbers below this one."""
    known = numbers.filter(pc.less(numbers["item_number"], below)).sort_by("item_number")
    digest = hashlib.blake2b(digest_size=8)
    for item_id, number in zip(*(known[name].to_pylist() for name in ("item_id", "item_number")), strict=True):
        digest.update(json.dumps([number, item_id]).encode())
    return digest.hexdigest()


class Decision(NamedTuple):
    """Whether the night keeps what it need not make anew (`touched`) or makes everything (`all`), and why."""

    rescore: str
    why: str


def rescore_asked(params: Mapping[str, Any]) -> str:
    """The run's `rescore`. Raises DataError naming the nearest value."""
    asked = str(params.get("rescore") or AUTO)
    if asked not in RESCORES:
        hint = nearest(asked, RESCORES)
        raise DataError(f"rescore is one of {', '.join(RESCORES)}; got {asked!r}{hint}", field="rescore")
    return asked


def decide(asked: str, differences: list[str] | None, *, day: date, people: int) -> Decision:
    """`differences` are those of the lists of `day`, the night before; None when it has no lists."""
    if asked == ALL:
        return Decision(ALL, "everything, as asked")
    if differences is None:
        return Decision(ALL, f"there are no lists of {day}")
    if differences:
        return Decision(ALL, f"the lists of {day} were made otherwise: {'; '.join(differences)}")
    if asked == TOUCHED:
        return Decision(TOUCHED, "what was touched, as asked")
    if people < AUTO_PEOPLE:
        return Decision(ALL, f"{people:,} people are soon scored; from {AUTO_PEOPLE:,} on auto keeps lists")
    return Decision(TOUCHED, f"{people:,} people, and the lists of {day} were made alike")


# --- digests ---------------------------------------------------------------------------------------------------------


class Digests(NamedTuple):
    """A digest of the events of each subject, or of each item; `keys` are sorted."""

    keys: NDArray[Any]
    values: NDArray[np.str_]

    def of(self, keys: NDArray[Any]) -> NDArray[np.str_]:
        """Those of `keys`; the empty text where there are no events."""
        if not len(self.keys):
            return np.full(len(keys), "", dtype="U1")
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, self.values[place], "")


def history_digests(interactions: pa.Table) -> Digests:
    """By subject key: sixteen hex digits of all its events (`matrix.sort_interactions`) as a multiset.

    Equal when, and only when, the same items were touched by events of the same types at the same microseconds, as
    often. Weights and decay play no part: a day that passes touches nobody.
    """
    subjects = interactions["subject_key"].combine_chunks()
    codes = np.asarray(subjects.indices)
    items = np.asarray(interactions["item_number"].combine_chunks())
    names = np.array(subjects.dictionary.to_pylist(), dtype=np.str_)
    ends = np.searchsorted(codes, np.arange(len(names) + 1))
    return _digest_groups(names, ends, _events(interactions, items.astype(np.uint64)))


def item_digests(interactions: pa.Table) -> Digests:
    """By item number: the same of all the events about an item, whoever's they are."""
    subjects = interactions["subject_key"].combine_chunks()
    words = _words(subjects.dictionary)
    items = np.asarray(interactions["item_number"].combine_chunks())
    order = np.argsort(items, kind="stable")
    events = _events(interactions, words[np.asarray(subjects.indices)])[order]
    counts = np.bincount(items)
    numbers = np.flatnonzero(counts)
    return _digest_groups(numbers, np.r_[0, np.cumsum(counts[numbers])], events)


def _events(interactions: pa.Table, who_or_what: NDArray[np.uint64]) -> NDArray[Any]:
    events = np.empty(interactions.num_rows, _EVENT)
    types = interactions["event_type"].combine_chunks()
    events["who_or_what"] = who_or_what
    events["event_type"] = _words(types.dictionary)[np.asarray(types.indices)]
    events["micros"] = np.asarray(interactions["micros"].combine_chunks())
    return events


def _words(texts: pa.Array) -> NDArray[np.uint64]:
    """Eight bytes for each text: the same in every night, whatever other texts there are."""
    hashes = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts.to_pylist()]
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)


def _digest_groups(keys: NDArray[Any], ends: NDArray[np.integer], events: NDArray[Any]) -> Digests:
    """The events of keys[k] are events[ends[k]:ends[k + 1]]."""
    octets, places = events.view(np.uint8).data, (ends * _EVENT.itemsize).tolist()
    values = [hashlib.blake2b(octets[a:b], digest_size=8).hexdigest() for a, b in pairwise(places)]
    return Digests(keys, np.array(values, dtype="U16"))


# --- what may be kept ------------------------------------------------------------------------------------------------


def oldest_kept(as_of: date) -> date:
    """What was scored on this day or before is scored anew on `as_of`."""
    return as_of - timedelta(days=OLDEST_DAYS)


class Untouched(NamedTuple):
    """keys    users (or item numbers) whose row may be kept, sorted
    touched    why others may not -> how many: `new` (no such row), `history`, `eligible`, `age`; the first that holds
    """

    keys: NDArray[Any]
    touched: Mapping[str, int]


def untouched(
    stored: Iterable[pa.RecordBatch],
    tonight: Digests,
    eligible: NDArray[np.bool_],
    *,
    key: str,
    listed: str,
    as_of: date,
) -> Untouched:
    """Which of tonight's keys have a row in `stored` that still holds.

    Its digest is tonight's, every item in it may be shown, and it is younger than OLDEST_DAYS. A stored row of nobody
    who is asked for (denied, gone, erased) is none that holds.

    key, listed  the columns of the row's key and of the item numbers in it; besides them history_digest, scored_as_of
    """
    kept: list[NDArray[Any]] = []
    why: Counter[str] = Counter()
    oldest = pa.scalar(oldest_kept(as_of), pa.date32())
    for batch in stored:
        keys = np.array(batch[key].to_pylist(), dtype=np.str_ if tonight.keys.dtype.kind == "U" else np.int64)
        digests = np.array(pc.fill_null(batch["history_digest"], "").to_pylist(), dtype=np.str_)
        wanted = tonight.of(keys)
        is_asked, is_made = wanted != "", digests != ""
        same = is_asked & (digests == wanted)
        whole = ~_has_ineligible(batch[listed], eligible)
        young = np.asarray(pc.fill_null(pc.greater(batch["scored_as_of"], oldest), False))
        kept.append(keys[same & whole & young])
        why["history"] += int((is_asked & is_made & ~same).sum())
        why["eligible"] += int((same & ~whole).sum())
        why["age"] += int((same & whole & ~young).sum())
    found = np.sort(np.concatenate(kept)) if kept else tonight.keys[:0]
    why["new"] = len(tonight.keys) - len(found) - sum(why.values())
    return Untouched(found, {name: why[name] for name in ("new", "history", "eligible", "age")})


def _has_ineligible(lists: pa.Array, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """By row: does the list name an item that may not be shown, or that nobody knows any more."""
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0)).astype(np.int64)
    numbers = np.asarray(lists.flatten()).astype(np.int64)
    allowed = np.zeros(len(numbers), bool)
    known = (numbers >= 0) & (numbers < len(eligible))
    allowed[known] = eligible[numbers[known]]
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(rows[~allowed], minlength=len(lengths)) > 0
