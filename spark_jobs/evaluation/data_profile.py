"""What the training data looks like, in numbers and as a page: the first thing to look at when quality moves."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from feature_repo.contracts.times import format_timestamp, from_micros
from spark_jobs.models.matrix import distinct

HEAD_SHARES = (0.01, 0.1, 0.2)
_LENGTHS = ((1, 1), (2, 4), (5, 9), (10, 20), (21, 49), (50, 99), (100, None))
_MICROS_PER_DAY = 86_400_000_000


def profile_interactions(interactions: pa.Table, *, item_count: int) -> dict[str, Any]:
    """Counts over all interactions before `as_of` (columns as `models.matrix.load_interactions` gives them, not empty).

    density          distinct (subject, item) pairs over subjects x items that have an event
    history_length   events per subject: quantiles, and subjects by range (`high` None: no end)
    head             share of events that falls on the most frequent 1 %, 10 %, 20 % of the items that have any, rounded
                     up to whole items
    events_by_day    UTC day -> event type -> count, days without events left out
    """
    subjects = np.asarray(interactions["subject_key"].combine_chunks().indices)
    words = interactions["subject_key"].combine_chunks().dictionary.to_pylist()
    items = np.asarray(interactions["item_number"].combine_chunks())
    micros = np.asarray(interactions["micros"].combine_chunks())
    types = interactions["event_type"].combine_chunks()
    type_codes, type_names = np.asarray(types.indices), types.dictionary.to_pylist()

    lengths = np.bincount(subjects, minlength=len(words))
    by_item = np.sort(np.bincount(items, minlength=item_count))[::-1]
    present = int((by_item > 0).sum())
    pairs = len(distinct(subjects.astype(np.int64) * item_count + items))
    days = micros // _MICROS_PER_DAY
    first_day = int(days.min())
    by_day: dict[str, dict[str, int]] = {}
    for code, name in enumerate(type_names):
        counts = np.bincount(days[type_codes == code] - first_day)
        for day in np.flatnonzero(counts).tolist():
            date = from_micros((first_day + day) * _MICROS_PER_DAY).date().isoformat()
            by_day.setdefault(date, {})[name] = int(counts[day])
    first, last = from_micros(int(micros.min())), from_micros(int(micros.max()))
    quantiles = np.quantile(lengths, [0.1, 0.5, 0.9, 0.99])
    return {
        "events": interactions.num_rows,
        "first_event_at": format_timestamp(first),
        "last_event_at": format_timestamp(last),
        "days": round((last - first) / timedelta(days=1), 1),
        "subjects": len(words),
        "users": sum(word.startswith("u:") for word in words),
        "items": item_count,
        "items_with_events": present,
        "density": round(pairs / (len(words) * present), 9),
        "pairs": pairs,
        "events_by_type": {name: int((type_codes == code).sum()) for code, name in enumerate(type_names)},
        "events_by_day": dict(sorted(by_day.items())),
        "history_length": {
            "p10": float(quantiles[0]), "p50": float(quantiles[1]), "p90": float(quantiles[2]),
            "p99": float(quantiles[3]), "max": int(lengths.max()),
            "ranges": [
                {"low": low, "high": high,
                 "subjects": int(((lengths >= low) & (lengths <= (high or lengths.max()))).sum())}
                for low, high in _LENGTHS
            ],
        },
        "head": {
            f"{share:g}": round(float(by_item[: int(np.ceil(share * present))].sum() / len(items)), 6)
            for share in HEAD_SHARES
        },
    }  # fmt: skip


def profile_markdown(profile: Mapping[str, Any], *, as_of: str) -> str:
    """The profile as a page."""
    lengths, head = profile["history_length"], profile["head"]
    per_subject = profile["events"] / profile["subjects"]
    rows = [
        ("events", f"{profile['events']:,}"),
        ("from, to", f"{profile['first_event_at']}, {profile['last_event_at']} ({profile['days']:g} days)"),
        ("subjects", f"{profile['subjects']:,}, of them {profile['users']:,} identified users"),
        ("items", f"{profile['items']:,} in the catalogue, {profile['items_with_events']:,} with an event"),
        ("density", f"{profile['density']:.3%} ({profile['pairs']:,} pairs of subject and item)"),
        ("events per subject", f"mean {per_subject:.1f}, median {lengths['p50']:g}, p90 {lengths['p90']:g}, "
                               f"p99 {lengths['p99']:g}, most {lengths['max']:,}"),
        *((f"events on the top {float(share):.0%} of items", f"{value:.1%}") for share, value in head.items()),
    ]  # fmt: skip
    lines = [
        f"# Data before {as_of}",
        "",
        "Interactions that models may learn from: item known, consent to train, no bot.",
        "",
    ]
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    lines += ["", "## Events by type", "", "| type | events | share |", "| --- | ---: | ---: |"]
    by_type = sorted(profile["events_by_type"].items(), key=lambda pair: (-pair[1], pair[0]))
    lines += [f"| {name} | {count:,} | {count / profile['events']:.1%} |" for name, count in by_type]
    lines += ["", "## Subjects by number of events", "", "| events | subjects |", "| --- | ---: |"]
    lines += [f"| {range_words(r)} | {r['subjects']:,} |" for r in lengths["ranges"]]
    return "\n".join(lines) + "\n"


def range_words(one: Mapping[str, Any]) -> str:
    """`1`, `2-4`, `100+`."""
    if one["high"] is None:
        return f"{one['low']}+"
    return str(one["low"]) if one["low"] == one["high"] else f"{one['low']}-{one['high']}"
