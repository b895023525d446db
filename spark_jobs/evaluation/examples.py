"""Five people of the test, what they did, and what each model would show them: quality that one can read.

Nobody is named: a person is an opaque key (`person_key`), the same in every night, so that an erasure can find what is
kept about a person. Who denies `train` is in no interaction, hence never here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.times import from_micros
from spark_jobs.evaluation.full_ranking import Rank
from spark_jobs.evaluation.split import SLICES, TimeSplit

PERSONS, LIST_LENGTH, HISTORY_LENGTH = 5, 8, 8
_SEED = 20_240_229


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


def describe_persons(split: TimeSplit, persons: NDArray[np.int64], *, tenant: str) -> list[dict[str, Any]]:
    """One entry a person: key, slice, number of events, history (newest first: item number, event type, UTC day; an
    item once, at its newest event) and the items that they came for in the test window."""
    found = []
    for place in persons.tolist():
        subject = str(split.subjects[place])
        own = split.train.filter(pc.equal(pc.cast(split.train["subject_key"], pa.string()), subject))
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
    return sorted(numbers)


def examples_html(examples: Sequence[Mapping[str, Any]], titles: Mapping[int, str], *, as_of: str) -> str:
    """The examples (with `lists`: contestant -> item numbers) as one page without scripts or outside addresses."""
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
came for. Keys are opaque; nothing else about the person is kept.</p>{nobody}{people}</body></html>
"""


def _person(number: int, one: Mapping[str, Any], titles: Mapping[int, str]) -> str:
    later = set(one["later"])

    def title(item_number: int) -> str:
        return escape(titles.get(item_number, f"item number {item_number} (no title)"))

    def listed(numbers: Sequence[int]) -> str:
        rows = (f"<li{' class=hit' if n in later else ''}>{title(n)}</li>" for n in numbers)
        return f"<ol>{''.join(rows)}</ol>" if numbers else "<small>nothing</small>"

    history = "".join(
        f"<li>{title(h['item_number'])}<br><small>{escape(h['event_type'])}, {h['day']}</small></li>"
        for h in one["history"]
    )
    came_for = ", ".join(title(n) for n in one["later"][:LIST_LENGTH])
    more = len(one["later"]) - LIST_LENGTH
    came_for += f" and {more} more" if more > 0 else ""
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("did, newest first", *one["lists"]))
    cells = "".join(f"<td>{listed(numbers)}</td>" for numbers in one["lists"].values())
    events = "1 event" if one["events"] == 1 else f"{one['events']:,} events"
    return (
        f"<h2>Person {number} <small>{one['key']}, {events} before the test window</small></h2>"
        f"<p>Then came for: {came_for}</p>"
        f"<table><tr>{heads}</tr><tr><td><ul>{history}</ul></td>{cells}</tr></table>"
    )
