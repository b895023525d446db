"""Rows of features that this process read and keeps, until Redis says that they changed.

Pure bookkeeping: who reads says what it expects, and the connection says what changed (`tracked_pipe`). A row that
changed between its reply and its being kept is not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from sys import getsizeof

from serving.adapters.feature_rows import FeatureRow
from serving.observability import KEPT_ROWS_DROPPED, count_soon

CHANGED, FULL, LOST = "changed", "full", "lost"
ROW_BYTES = 260
"""What a row takes besides its values and texts: key, entry, and its places in the dict. A test weighs it."""
VALUE_BYTES = 36
"""A place in the row, and a number."""


_Kept = tuple[bytes, FeatureRow, int]
"""The fields that it was read with, the row, and what it takes."""


class KeptRows:
    """At most `most_bytes` of them; those that were not asked for the longest leave first. Of one event loop."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._rows: OrderedDict[bytes, _Kept] = OrderedDict()
        self._coming: dict[int, set[bytes]] = {}
        """Of each read that is under way: the keys of which nothing was said since it was sent."""
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def find(self, keys: Iterable[bytes], fields: bytes) -> list[FeatureRow | None]:
        """What is kept of these rows: those read with the same fields."""
        get, use = self._rows.get, self._rows.move_to_end
        found: list[FeatureRow | None] = []
        for key in keys:
            kept = get(key)
            if kept is None or kept[0] != fields:
                found.append(None)
            else:
                use(key)
                found.append(kept[1])
        return found

    @contextmanager
    def expecting(self, keys: Iterable[bytes]) -> Iterator[set[bytes]]:
        """While these rows are read: those among them of which nothing was said meanwhile, which may be kept."""
        coming = set(keys)
        self._coming[id(coming)] = coming
        try:
            yield coming
        finally:
            del self._coming[id(coming)]

    def keep(self, keys: Sequence[bytes], fields: bytes, rows: Sequence[FeatureRow], coming: set[bytes]) -> None:
        """Keep what was read, as far as it may be."""
        for key, row in zip(keys, rows, strict=True):
            if key in coming:
                self._drop(key)
                size = ROW_BYTES + len(key)
                if row[-1] is None:
                    row = _absent(len(row))  # one for all: people have rows of few categories
                else:
                    size += VALUE_BYTES * len(row)
                    for value in row:
                        if type(value) is str:
                            size += getsizeof(value)
                self._rows[key] = (fields, row, size)
                self.bytes += size
        while self.bytes > self._most:
            self.bytes -= self._rows.popitem(last=False)[1][2]
            count_soon(KEPT_ROWS_DROPPED, FULL)

    def changed(self, keys: Sequence[bytes] | None) -> None:
        """These were changed in the store; None: nobody knows which."""
        if keys is None:
            self.lose()
            return
        for key in keys:
            if self._drop(key):
                count_soon(KEPT_ROWS_DROPPED, CHANGED)
            for coming in self._coming.values():
                coming.discard(key)

    def lose(self) -> None:
        """Nothing that is kept, or under way, may be used any more."""
        if self._rows:
            count_soon(KEPT_ROWS_DROPPED, LOST, len(self._rows))
        self._rows.clear()
        self.bytes = 0
        for coming in self._coming.values():
            coming.clear()

    def _drop(self, key: bytes) -> bool:
        kept = self._rows.pop(key, None)
        if kept is None:
            return False
        self.bytes -= kept[2]
        return True


@lru_cache(maxsize=64)
def _absent(width: int) -> FeatureRow:
    return (None,) * width
