"""What a steady load saw of one harm: how many answers were good, when they were not, and how soon lists were personal
again."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from infra.bench.serving.steady_load import BUCKET_SECONDS, FIELDS, Seen

TENTH = 5
"""Of a second, in buckets."""
SPELLS = 5
NOBODY: Mapping[str, float] = MappingProxyType({})


class Spell(NamedTuple):
    """A time in which answers were missing, with no tenth of a second between: from when on (since the harm began), how
    long, how many questions."""

    began_seconds: float
    seconds: float
    questions: int


class Harm(NamedTuple):
    """What was seen of one fault. Shares are of the questions that should have left while it lasted.

    `good_share`: a 200 within 50 ms that keeps all rules; `valid_share`: such a one at any time. `recovery_seconds`:
    from its end to the first moment from which on known users (nine of ten in each tenth of a second) have personal
    lists again; None: not in time. `spells`: the worst times without a good answer; `processor`: who used it
    meanwhile (api, load, proxy, redis, others, and what the machine's host took), in processors.
    """

    questions: int
    good_share: float
    valid_share: float
    unclean: int
    failed: int
    unsent: int
    refused: int
    personal_share: float
    recovery_seconds: float | None
    spells: list[Spell]
    processor: dict[str, float]


def judge(
    seen: Seen, began: float, ended: float, settle_seconds: float, processor: Mapping[str, float] = NOBODY
) -> Harm:
    """What `seen` says of a time, on the monotonic clock, and of `settle_seconds` after it."""
    counts = dict.fromkeys(FIELDS, 0)
    for number in range(int(began / BUCKET_SECONDS) + 1, int(ended / BUCKET_SECONDS)):
        for name, count in zip(FIELDS, seen.buckets.get(number, ()), strict=False):
            counts[name] += count
    sent = max(1, counts["sent"])
    asked_personally = max(1, counts["personal"] + counts["not_personal"])
    return Harm(
        counts["sent"],
        counts["good"] / sent,
        (counts["good"] + counts["late"]) / sent,
        counts["unclean"],
        counts["failed"],
        counts["unsent"],
        counts["refused"],
        counts["personal"] / asked_personally,
        _recovery(seen, ended, settle_seconds),
        _spells(seen, began, ended),
        dict(processor),
    )


def _spells(seen: Seen, began: float, ended: float) -> list[Spell]:
    """The worst first; of those that are equally bad the earlier one."""
    sent, good = FIELDS.index("sent"), FIELDS.index("good")
    found: list[list[int]] = []
    for number in range(int(began / BUCKET_SECONDS) + 1, int(ended / BUCKET_SECONDS)):
        counts = seen.buckets.get(number)
        if counts is None or counts[sent] == counts[good]:
            continue
        if found and number - found[-1][1] <= TENTH:
            found[-1][1:] = [number, found[-1][2] + counts[sent] - counts[good]]
        else:
            found.append([number, number, counts[sent] - counts[good]])
    found.sort(key=lambda spell: -spell[2])
    return [
        Spell(round(first * BUCKET_SECONDS - began, 2), round((last + 1 - first) * BUCKET_SECONDS, 2), missing)
        for first, last, missing in found[:SPELLS]
    ]


def _recovery(seen: Seen, ended: float, settle_seconds: float) -> float | None:
    """Seconds from `ended` to the end of the last tenth of a second in which fewer than nine of ten known users had a
    personal list; None: that is the last one looked at."""
    personal, not_personal = FIELDS.index("personal"), FIELDS.index("not_personal")
    nobody = [0] * len(FIELDS)
    first, last = int(ended / BUCKET_SECONDS), int((ended + settle_seconds) / BUCKET_SECONDS) - 1
    recovered_at = first
    for start in range(first, last - TENTH + 1, TENTH):
        found = [seen.buckets.get(number, nobody) for number in range(start, start + TENTH)]
        good, bad = sum(counts[personal] for counts in found), sum(counts[not_personal] for counts in found)
        if bad and good < 9 * bad:
            recovered_at = start + TENTH
    if recovered_at > last - TENTH:
        return None
    return max(0.0, recovered_at * BUCKET_SECONDS - ended)
