"""Features of many entities in one round trip, out of Feast's own layout in Redis and without Feast.

One HMGET an entity, its fields hashed once. What comes back is what the SDK gives for every view (a parity test), also
of rows that are kept from an earlier read (`kept_rows`): those cost no round trip, until Redis says that they changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from feature_repo.contracts.errors import ContractError, DependencyError, nearest
from feature_repo.contracts.feature_table import FeatureView
from feature_repo.contracts.keys import DEFAULT_TENANT
from serving.adapters.feast_online import entity_key, feature_field, timestamp_field
from serving.adapters.feature_rows import FeatureRow, Reply, Value, commands_of, keys_of, rows_of
from serving.adapters.kept_rows import KeptRows
from serving.adapters.redis_pipe import PipeCaller
from serving.adapters.tracked_pipe import TrackedCaller
from serving.observability import FEATURE_ROWS, count_soon

logger = logging.getLogger("nightjar.serving")

KEPT, STORE = "kept", "store"
_WHAT = "the features"


class FeatureColumns(NamedTuple):
    """What is known of some entities, in the order asked for.

    values  a list for each feature, with a value for each entity; None: null, or the entity has no row
    micros  by entity: the instant its values are stamped with (us since 1970 UTC); None: no row. Feast applies no ttl
            online: whoever reads looks here
    """

    values: list[list[Value]]
    micros: list[int | None]


class Asked(NamedTuple):
    """Features of a view for some entities, each the values of `view.join_keys` in their order; one may come twice."""

    view: FeatureView
    features: Sequence[str]
    entities: Sequence[Sequence[str]]


class FeatureStore(Protocol):
    """Raises DependencyError when the store does not answer in time, ContractError on a value it cannot read."""

    async def read(
        self, view: FeatureView, features: Sequence[str], entities: Sequence[Sequence[str]]
    ) -> FeatureColumns:
        """Of `entities`, each the values of `view.join_keys` in their order; an entity may come twice.

        Raises ContractError naming the nearest feature when the view has none of a name.
        """

    async def read_all(self, asked: Sequence[Asked]) -> list[FeatureColumns]:
        """`read` of several views in one round trip."""

    async def read_rows(self, asked: Sequence[Asked]) -> list[list[FeatureRow]]:
        """The same, row by row."""

    def kept_rows(self, asked: Sequence[Asked]) -> list[list[FeatureRow]] | None:
        """`read_rows` without a round trip, where everything asked for was read before and has not changed since; else
        None."""

    def keeps(self, view: FeatureView, entity: Sequence[str]) -> bool:
        """Whether a row of it is kept, with whichever features."""

    async def close(self) -> None:
        """Give the connection back."""


class RedisFeatureStore:
    """Redis role `online`, on a connection of its own. Belongs to one event loop.

    keep_bytes  what the rows may take that are kept; 0: none is
    seconds     a monotonic clock
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float,
        keep_bytes: int = 0,
        tenant: str = DEFAULT_TENANT,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kept = KeptRows(keep_bytes)
        self._tracked: TrackedCaller | None = None
        if keep_bytes > 0:
            self._tracked = TrackedCaller(
                url, self.kept, timeout_seconds=timeout_seconds, what=_WHAT, tenant=tenant, seconds=seconds
            )
        self._caller = self._tracked or PipeCaller(url, timeout_seconds=timeout_seconds, what=_WHAT)
        self._reads = 0

    async def read(
        self, view: FeatureView, features: Sequence[str], entities: Sequence[Sequence[str]]
    ) -> FeatureColumns:
        return (await self.read_all([Asked(view, features, entities)]))[0]

    async def read_all(self, asked: Sequence[Asked]) -> list[FeatureColumns]:
        found = await self.read_rows(asked)
        return [_columns(rows, len(one.features)) for rows, one in zip(found, asked, strict=True)]

    async def read_rows(self, asked: Sequence[Asked]) -> list[list[FeatureRow]]:
        shelves = [_Shelf(one) for one in asked]
        if self._tracked is None:
            await self._fetch(shelves)
            return [shelf.whole() for shelf in shelves]
        if self._tracked.may_use():
            for shelf in shelves:
                shelf.rows = self.kept.find(shelf.keys, shelf.fields)
        missing = [shelf.missing() for shelf in shelves]
        count = sum([len(shelf.keys) for shelf in missing])
        _count_rows(sum([len(shelf.keys) for shelf in shelves]) - count, KEPT)
        if count:
            _count_rows(count, STORE)
            with self.kept.expecting([key for shelf in missing for key in shelf.keys]) as coming:
                await self._fetch(missing)
                if self._tracked.may_keep:
                    for shelf in missing:
                        self.kept.keep(shelf.keys, shelf.fields, shelf.whole(), coming)
        for shelf, late in zip(shelves, missing, strict=True):
            shelf.fill(late)
        return [shelf.whole() for shelf in shelves]

    def kept_rows(self, asked: Sequence[Asked]) -> list[list[FeatureRow]] | None:
        if self._tracked is None or not self._tracked.may_use():
            return None
        found, count = [], 0
        for one in asked:
            shelf = _Shelf(one)
            rows = self.kept.find(shelf.keys, shelf.fields)
            if None in rows:
                return None
            found.append(rows)
            count += len(rows)
        _count_rows(count, KEPT)
        return found  # type: ignore[return-value]  # None is in none of them

    def keeps(self, view: FeatureView, entity: Sequence[str]) -> bool:
        return len(self.kept) > 0 and entity_key(view.join_keys, entity) in self.kept

    async def close(self) -> None:
        await self._caller.close()

    async def _fetch(self, shelves: Sequence[_Shelf]) -> None:
        """All of their rows. Behind the commands a tag is asked for: when the last reply is another one, none of the
        replies is used."""
        count = sum([len(shelf.keys) for shelf in shelves])
        if not count:
            return
        self._reads += 1
        tag = b"%x" % self._reads
        commands = [commands_of(shelf.keys, shelf.fields, len(shelf.asked.features) + 3) for shelf in shelves]
        echo = b"*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (len(tag), tag)
        replies = await self._caller.send(b"".join([*commands, echo]), count + 1)
        if replies[-1] != tag:
            await self._caller.close()
            logger.error("%s: a reply came to another question; the connection was ended", _WHAT)
            raise DependencyError(f"{_WHAT} cannot be read: a reply came to another question")
        at = 0
        for shelf in shelves:
            shelf.rows = list(rows_of(replies[at : at + len(shelf.keys)], len(shelf.asked.features)))
            at += len(shelf.keys)


class _Shelf:
    """What is asked of a view, with its keys, and the rows as far as they are known."""

    def __init__(self, asked: Asked, keys: list[bytes] | None = None) -> None:
        self.asked = asked
        self.fields = _packed_fields(asked.view, tuple(asked.features))
        self.keys = keys_of(asked.view.join_keys, asked.entities) if keys is None else keys
        self.rows: list[FeatureRow | None] = []

    def missing(self) -> _Shelf:
        """What is not known yet, each key once."""
        if not self.rows:
            return _Shelf(self.asked, list(dict.fromkeys(self.keys)))
        if None not in self.rows:
            return _Shelf(self.asked, [])
        missing = dict.fromkeys([key for key, row in zip(self.keys, self.rows, strict=True) if row is None])
        return _Shelf(self.asked, list(missing))

    def fill(self, late: _Shelf) -> None:
        if not late.keys:
            return
        if len(late.keys) == len(self.keys):  # nothing was known, nothing comes twice
            self.rows = late.rows
            return
        read = dict(zip(late.keys, late.rows, strict=True))
        known = self.rows or [None] * len(self.keys)
        self.rows = [read[key] if row is None else row for key, row in zip(self.keys, known, strict=True)]

    def whole(self) -> list[FeatureRow]:
        return self.rows  # type: ignore[return-value]  # None is in none of them


def _count_rows(count: int, where: str) -> None:
    if count:
        count_soon(FEATURE_ROWS, where, count)


class MemoryFeatureStore:
    """The twin: a dict that has the layout of Redis. It keeps nothing."""

    def __init__(self, hashes: Mapping[Any, Mapping[bytes, bytes]]) -> None:
        self._hashes = hashes

    async def read(
        self, view: FeatureView, features: Sequence[str], entities: Sequence[Sequence[str]]
    ) -> FeatureColumns:
        return (await self.read_all([Asked(view, features, entities)]))[0]

    async def read_all(self, asked: Sequence[Asked]) -> list[FeatureColumns]:
        found = await self.read_rows(asked)
        return [_columns(rows, len(one.features)) for rows, one in zip(found, asked, strict=True)]

    async def read_rows(self, asked: Sequence[Asked]) -> list[list[FeatureRow]]:
        found = []
        for view, features, entities in asked:
            fields = _fields_of(view, tuple(features))
            stored = [self._hashes.get(entity_key(view.join_keys, entity), {}) for entity in entities]
            replies: list[Reply] = [[row.get(field) for field in fields] for row in stored]
            found.append(rows_of(replies, len(features)))
        return found

    def kept_rows(self, asked: Sequence[Asked]) -> list[list[FeatureRow]] | None:  # noqa: ARG002
        return None

    def keeps(self, view: FeatureView, entity: Sequence[str]) -> bool:  # noqa: ARG002
        return False

    async def close(self) -> None:
        """Nothing to give back."""


def _columns(rows: Sequence[FeatureRow], features: int) -> FeatureColumns:
    if not rows:
        return FeatureColumns([[] for _ in range(features)], [])
    *columns, micros = map(list, zip(*rows, strict=True))
    return FeatureColumns(columns, micros)


@lru_cache(maxsize=64)
def _fields_of(view: FeatureView, features: tuple[str, ...]) -> list[bytes]:
    """The hash fields of these features, and behind them that of the view's time."""
    known = [feature.name for feature in view.features]
    for name in features:
        if name not in known:
            raise ContractError(f"{view.name} has no feature {name!r}{nearest(name, known)}")
    return [*(feature_field(view.name, name) for name in features), timestamp_field(view.name)]


@lru_cache(maxsize=64)
def _packed_fields(view: FeatureView, features: tuple[str, ...]) -> bytes:
    return b"".join(b"$%d\r\n%b\r\n" % (len(field), field) for field in _fields_of(view, features))
