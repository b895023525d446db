"""Five people of the test, what they did, what each model would show them and why: quality that one can read.

Nobody is named: a person is an opaque key (`person_key`), the same in every night, so that an erasure can find what is
kept about a person. Who denies `train` is in no interaction, hence never here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.times import from_micros
from spark_jobs.evaluation.full_ranking import Rank
from spark_jobs.evaluation.split import SLICES, TimeSplit
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.blend_model import Blend
from spark_jobs.models.matrix import histories_of, matrix_rows
from spark_jobs.models.ranker import Ranker

PERSONS, LIST_LENGTH, HISTORY_LENGTH = 5, 8, 8
_SEED = 20_240_229


class Why(TypedDict):
    """Why an item is in a list.

    shares   source -> its share of all that speaks for the item, 0 to 1, largest first: of a blend its parts, of any
             other model itself; empty where nothing speaks for it
    reasons  item numbers of the past that spoke most for it, none to two, best first
    """

    shares: dict[str, float]
    reasons: list[int]


def person_key(tenant: str, subject_key: str) -> str:
    """Twelve hex digits of SHA-256 over tenant and subject key."""
    return hashlib.sha256(f"{tenant}\n{subject_key}".encode()).hexdigest()[:12]


def choose_persons(split: TimeSplit) -> NDArray[np.int64]:
    """Places of at most PERSONS test persons in the split, the slices in turn, seeded; fewest events first."""
    rng = np.random.default_rng(_SEED)
    queues = [list(rng.permutation(np.flatnonzero(split.slices == name))) for name in SLICES if name != "all"]
    chosen: list[int] = []
    while len(chosen) < PERSONS and any(queues):
        chosen += [int(queue.pop(0)) for queue in queues if queue][: PERSONS - len(chosen)]
    return np.array(sorted(chosen, key=lambda n: (int(split.train_event_counts[n]), n)), dtype=np.int64)


def rank_examples(rank: Rank, persons: NDArray[np.int64]) -> list[list[int]]:
    """The item numbers that each of `persons` would see, best first."""
    if len(persons) == 0:
        return []
    return [[int(n) for n in row if n >= 0] for row in rank(persons, LIST_LENGTH).numbers]


def explain_examples(
    model: Model,
    matrix: InteractionMatrix,
    split: TimeSplit,
    persons: NDArray[np.int64],
    lists: Sequence[Sequence[int]],
) -> list[list[Why]]:
    """Why each item of `lists` (a list for each of `persons`) is there. A ranker orders what its first stage brought,
    so that stage is asked."""
    told_by = model.first if isinstance(model, Ranker) and model.first is not None else model
    found: list[list[Why]] = []
    for place, numbers in zip(persons.tolist(), lists, strict=True):
        rows = matrix_rows(matrix, split.subjects[[place]])
        history, row = histories_of(matrix, rows), int(rows[0])
        reasons = told_by.explain(history, row, numbers)
        shares = (
            told_by.shares(history, row, numbers)
            if isinstance(told_by, Blend)
            else [{told_by.name: 1.0}] * len(numbers)
        )
        found.append(
            [
                Why(
                    shares={name: round(share, 6) for name, share in share_of.items()},
                    reasons=[int(number) for number in reason if number is not None],
                )
                for share_of, reason in zip(shares, reasons, strict=True)
            ]
        )
    return found


def describe_persons(split: TimeSplit, persons: NDArray[np.int64], *, tenant: str) -> list[dict[str, Any]]:
    """One entry a person: key, slice, number of events, history (newest first: item number, event type, UTC day; an
    item once, at its newest event) and the items that they came for in the test window."""
    found = []
    subjects = split.train["subject_key"].combine_chunks()
    codes, words = np.asarray(subjects.indices), subjects.dictionary.cast(pa.string())
    for place in persons.tolist():
        subject = str(split.subjects[place])
        own = split.train.take(pa.array(np.flatnonzero(codes == pc.index(words, subject).as_py())))
        events = sorted(own.to_pylist(), key=lambda e: (-e["micros"], e["item_number"], e["event_type"]))
        newest: dict[int, Mapping[str, Any]] = {}
        for event in events:
            newest.setdefault(event["item_number"], event)
        part = slice(split.relevant.indptr[place], split.relevant.indptr[place + 1])
        found.append(
            {
                "key": person_key(tenant, subject),
                "slice": str(split.slices[place]),
                "events": int(split.train_event_counts[place]),
                "history": [
                    {
                        "item_number": n,
                        "event_type": e["event_type"],
                        "day": from_micros(e["micros"]).date().isoformat(),
                    }
                    for n, e in list(newest.items())[:HISTORY_LENGTH]
                ],
                "later": sorted(int(n) for n in split.relevant.indices[part]),
            }
        )
    return found


def item_numbers(examples: Sequence[Mapping[str, Any]]) -> list[int]:
    """Every item number that the examples speak of, ascending."""
    numbers: set[int] = set()
    for one in examples:
        numbers |= {h["item_number"] for h in one["history"]} | set(one["later"])
        numbers |= {n for listed in one["lists"].values() for n in listed}
        numbers |= {n for said in one.get("why", {}).values() for why in said for n in why["reasons"]}
    return sorted(numbers)


def examples_html(examples: Sequence[Mapping[str, Any]], titles: Mapping[int, str], *, as_of: str) -> str:
    """The examples (with `lists`: contestant -> item numbers, and `why`: contestant -> a `Why` for each of them) as one
    page without scripts or outside addresses. A contestant without `why` shows its list alone."""
    people = "".join(_person(number, one, titles) for number, one in enumerate(examples, start=1))
    nobody = "" if examples else "<p>Nobody could be tested tonight.</p>"
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Examples, {escape(as_of)}</title>
<style>
body {{ font: 14px/1.45 system-ui, sans-serif; color: #1f2933; max-width: 1200px; margin: 24px auto; padding: 0 16px; }}
h1 {{ font-size: 20px; }} h2 {{ font-size: 16px; margin: 28px 0 6px; }} p {{ margin: 4px 0 10px; color: #52606d; }}
table {{ border-collapse: collapse; width: 100%; table-layout: fixed; }}
th {{ text-align: left; border-bottom: 2px solid #cbd2d9; padding: 4px 8px; }}
td {{ vertical-align: top; padding: 4px 8px; border-bottom: 1px solid #e4e7eb; }}
ol, ul {{ margin: 0; padding-left: 20px; }} small {{ color: #7b8794; }}
.hit {{ background: #d9f2e3; font-weight: 600; }}
</style></head><body><h1>What each model would show, {escape(as_of)}</h1>
<p>Test persons, chosen by a seed, who had not yet done what they did in the test window. A marked item is one they then
came for. Below an item stand the past items that spoke most for it and, of a blend, the share of each part. Keys are
opaque; nothing else about the person is kept.</p>{nobody}{people}</body></html>
"""


def _person(number: int, one: Mapping[str, Any], titles: Mapping[int, str]) -> str:
    later = set(one["later"])

    def title(item_number: int) -> str:
        return escape(titles.get(item_number, f"item number {item_number} (no title)"))

    def words_of(why: Why) -> str:
        shares = ", ".join(f"{escape(name)} {share:.0%}" for name, share in why["shares"].items() if share < 1)
        because = " and ".join(title(n) for n in why["reasons"])
        said = "; ".join(word for word in (f"because of {because}" if because else "", shares) if word)
        return f"<br><small>{said}</small>" if said else ""

    def listed(name: str, numbers: Sequence[int]) -> str:
        said = one.get("why", {}).get(name) or [None] * len(numbers)
        rows = (
            f"<li{' class=hit' if n in later else ''}>{title(n)}{words_of(why) if why else ''}</li>"
            for n, why in zip(numbers, said, strict=True)
        )
        return f"<ol>{''.join(rows)}</ol>" if numbers else "<small>nothing</small>"

    history = "".join(
        f"<li>{title(h['item_number'])}<br><small>{escape(h['event_type'])}, {h['day']}</small></li>"
        for h in one["history"]
    )
    came_for = ", ".join(title(n) for n in one["later"][:LIST_LENGTH])
    more = len(one["later"]) - LIST_LENGTH
    came_for += f" and {more} more" if more > 0 else ""
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("did, newest first", *one["lists"]))
    cells = "".join(f"<td>{listed(name, numbers)}</td>" for name, numbers in one["lists"].items())
    events = "1 event" if one["events"] == 1 else f"{one['events']:,} events"
    return (
        f"<h2>Person {number} <small>{one['key']}, {events} before the test window</small></h2>"
        f"<p>Then came for: {came_for}</p>"
        f"<table><tr>{heads}</tr><tr><td><ul>{history}</ul></td>{cells}</tr></table>"
    )
