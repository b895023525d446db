"""Trends: how many subjects touched which item in a stretch of time. Windows, buckets, and the packed table of one.

A window is covered by buckets of event time; each partition of the events has a table per bucket. A subject has one
vote per item and *period* (a stretch as long as the window, on the clock), in the first bucket in which it touched the
item, and at most MAX_VOTES of them in a period: those for the items whose hash is smallest, so that which ones count
depends on nothing but what was touched. One subject alone therefore adds at most 2 to an item in any window.

A vote whose event named a region (`regions`) counts once more, in a table of that region; a vote goes to one region at
most, so what bounds a subject holds in each region as well as in all. A region has tables in a bucket when it is among
the first MAX_REGIONS of that bucket and partition: a list of their own says which those are.

A table is exact up to 2 x KEPT_ITEMS items. Beyond, it is cut to the KEPT_ITEMS most voted, and all lose the votes of
the best one that is left out (Misra and Gries 1982): whatever has lost L in sum says between n - L and n for an item
with n votes, and L <= N / (KEPT_ITEMS + 1) for N votes in that bucket and partition. A region's keeps KEPT_OF_REGION.

Trend table v1 (little-endian)
    header  <BBIIIII  format=1, window, bucket, votes counted (N), votes lost (L), items, bytes of the names
    names   UTF-8, joined by NUL: item ids, in any order
    votes   <I each, in the order of the names
It names items, never categories: what category an item is in, the version that serves says. A region's is the same.

Region list v1
    <B format=1, then the regions that have tables, in the order in which they came: UTF-8, joined by NUL
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from feature_repo.contracts.errors import ContractError, nearest

FORMAT_V1 = 1
KEPT_ITEMS = 1000
KEPT_OF_REGION = 250
MAX_REGIONS = 64
"""Regions of a bucket and partition that have tables; votes for others count for all regions together alone."""
MAX_VOTES = 8
MICROS = 1_000_000


class TrendWindow(NamedTuple):
    """`number` is stored. Times in seconds of event time; a bucket divides the window."""

    name: str
    number: int
    seconds: int
    bucket_seconds: int

    @property
    def buckets(self) -> int:
        """How many buckets cover the window."""
        return self.seconds // self.bucket_seconds

    def expires_at(self, bucket: int) -> int:
        """Unix time at which no reader looks at the bucket any more, with one window to spare for late events."""
        return (bucket + 1) * self.bucket_seconds + 2 * self.seconds

    def buckets_at(self, now_micros: int) -> range:
        """The buckets that cover the window at that instant: the running one and those before it, so between `seconds`
        less one bucket and `seconds`."""
        running = now_micros // MICROS // self.bucket_seconds
        return range(running - self.buckets + 1, running + 1)


WINDOWS = (TrendWindow("5m", 0, 300, 60), TrendWindow("1h", 1, 3600, 300), TrendWindow("1d", 2, 86_400, 3600))
"""Numbers are stored: append, never renumber."""


def trend_window(name: str) -> TrendWindow:
    """By name. Raises ContractError naming the nearest one that exists."""
    for window in WINDOWS:
        if window.name == name:
            return window
    names = [window.name for window in WINDOWS]
    raise ContractError(f"no trend window {name!r}, there are {', '.join(names)}{nearest(name, names)}")


def vote_order(item_id: str) -> tuple[int, str]:
    """Which items a subject speaks for when it touched more than MAX_VOTES: the smallest."""
    return zlib.crc32(item_id.encode("utf-8")), item_id


@dataclass(slots=True)
class TrendTable:
    """The votes of one bucket. `counted`: all votes ever put in; `lost`: the most by which `votes` may be short.

    `kept`: KEPT_ITEMS, or KEPT_OF_REGION. Change it by its methods alone.
    """

    window: int
    bucket: int
    votes: dict[str, int] = field(default_factory=dict)
    counted: int = 0
    lost: int = 0
    kept: int = field(default=KEPT_ITEMS, compare=False)
    _names: bytes | None = field(default=None, init=False, repr=False, compare=False)
    """The names as they are packed, as long as they are the same: a busy table changes in its counts."""

    def add(self, item_id: str) -> None:
        """One more subject speaks for the item."""
        self.counted += 1
        held = self.votes.get(item_id)
        if held is not None:
            self.votes[item_id] = held + 1
            return
        self.votes[item_id] = 1
        self._names = None
        if len(self.votes) > 2 * self.kept:
            self._cut()

    def withdraw(self, item_id: str) -> None:
        """A subject no longer speaks for it; what the table has forgotten cannot become fewer."""
        left = self.votes.get(item_id, 0) - 1
        if left > 0:
            self.votes[item_id] = left
        elif self.votes.pop(item_id, None) is not None:
            self._names = None

    def _cut(self) -> None:
        loss = sorted(self.votes.values(), reverse=True)[self.kept]
        self.votes = {item_id: count - loss for item_id, count in self.votes.items() if count > loss}
        self.lost += loss


_HEADER = struct.Struct("<BBIIIII")


def pack_trend(table: TrendTable) -> bytes:
    """The table as bytes. Item ids are those of checked events: not empty, and without NUL."""
    names, count = table._names, len(table.votes)
    if names is None:
        names = table._names = "\0".join(table.votes).encode("utf-8")
    header = _HEADER.pack(FORMAT_V1, table.window, table.bucket, table.counted, table.lost, count, len(names))
    return header + names + struct.pack(f"<{count}I", *table.votes.values())


def unpack_trend(record: bytes, *, kept: int = KEPT_ITEMS) -> TrendTable:
    """Inverse of `pack_trend`; `kept` says whether it is a region's. Raises ContractError when the record is not a
    whole v1 table."""
    try:
        form, window, bucket, counted, lost, count, name_bytes = _HEADER.unpack_from(record)
        if form != FORMAT_V1:
            raise ContractError(f"trend table format {form}, expected {FORMAT_V1}")
        at = _HEADER.size + name_bytes
        if len(record) != at + 4 * count:
            raise ContractError(f"a trend table of {count} items has {at + 4 * count} bytes, got {len(record)}")
        names = record[_HEADER.size : at].decode("utf-8").split("\0") if count else []
        votes = struct.unpack_from(f"<{count}I", record, at)
    except (struct.error, UnicodeDecodeError) as error:
        raise ContractError(f"a trend table of {len(record)} bytes is cut short or damaged") from error
    if len(names) != count:
        raise ContractError(f"a trend table is damaged: {count} items promised, {len(names)} named")
    return TrendTable(window, bucket, dict(zip(names, votes, strict=True)), counted, lost, kept)


def pack_regions(regions: Sequence[str]) -> bytes:
    """The regions that have tables in a bucket, as bytes. They are not empty, and without NUL."""
    return bytes([FORMAT_V1]) + "\0".join(regions).encode("utf-8")


def unpack_regions(record: bytes) -> list[str]:
    """Inverse of `pack_regions`. Raises ContractError when the record is not a v1 list."""
    if not record or record[0] != FORMAT_V1:
        raise ContractError(f"not a region list of format {FORMAT_V1}: {record[:1]!r}")
    try:
        regions = record[1:].decode("utf-8").split("\0") if len(record) > 1 else []
    except UnicodeDecodeError as error:
        raise ContractError(f"a region list of {len(record)} bytes is damaged") from error
    if not all(regions) or len(set(regions)) != len(regions):
        raise ContractError(f"a region list of {len(record)} bytes names a region twice, or none")
    return regions


def most_votes(votes: Mapping[str, int]) -> list[tuple[str, int]]:
    """(item id, votes), most first; ties by id."""
    return sorted(votes.items(), key=_most_votes_first)


def _most_votes_first(row: tuple[str, int]) -> tuple[int, str]:
    return -row[1], row[0]
