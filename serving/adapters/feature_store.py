"""Features of many entities in one round trip, out of Feast's own layout in Redis and without Feast.

One HMGET an entity, its fields hashed once, its values decoded by their first byte: a value is a feast.types.Value, a
protobuf message of one field. What comes back is what the SDK gives for every view (a parity test).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from feature_repo.contracts.errors import ContractError, nearest
from feature_repo.contracts.feature_table import FeatureView
from serving.adapters.feast_online import entity_key, feature_field, read_timestamp_micros, timestamp_field, varint
from serving.adapters.redis_pipe import PipeCaller

Value = str | int | float | bool | None


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

    async def close(self) -> None:
        """Give the connection back."""


class RedisFeatureStore:
    """Redis role `online`, on a connection of its own."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._caller = PipeCaller(url, timeout_seconds=timeout_seconds, what="the features")

    async def read(
        self, view: FeatureView, features: Sequence[str], entities: Sequence[Sequence[str]]
    ) -> FeatureColumns:
        return (await self.read_all([Asked(view, features, entities)]))[0]

    async def read_all(self, asked: Sequence[Asked]) -> list[FeatureColumns]:
        commands: list[bytes] = []
        for view, features, entities in asked:
            fields, arguments = _packed_fields(view, tuple(features)), len(features) + 3
            for entity in entities:
                key = entity_key(view.join_keys, entity)
                commands.append(b"*%d\r\n$5\r\nHMGET\r\n$%d\r\n%b\r\n%b" % (arguments, len(key), key, fields))
        replies = await self._caller.send(b"".join(commands), len(commands)) if commands else []
        found, at = [], 0
        for _, features, entities in asked:
            found.append(_columns(replies[at : at + len(entities)], len(features)))
            at += len(entities)
        return found

    async def close(self) -> None:
        await self._caller.close()


class MemoryFeatureStore:
    """The twin: a dict that has the layout of Redis."""

    def __init__(self, hashes: Mapping[Any, Mapping[bytes, bytes]]) -> None:
        self._hashes = hashes

    async def read(
        self, view: FeatureView, features: Sequence[str], entities: Sequence[Sequence[str]]
    ) -> FeatureColumns:
        fields = _fields_of(view, tuple(features))
        rows = [self._hashes.get(entity_key(view.join_keys, entity), {}) for entity in entities]
        return _columns([[row.get(field) for field in fields] for row in rows], len(features))

    async def read_all(self, asked: Sequence[Asked]) -> list[FeatureColumns]:
        return [await self.read(*one) for one in asked]

    async def close(self) -> None:
        """Nothing to give back."""


def _columns(stored: Sequence[Sequence[bytes | None]], features: int) -> FeatureColumns:
    """From a row for each entity, its time last. A whole column of one type is decoded at once."""
    if not stored:
        return FeatureColumns([[] for _ in range(features)], [])
    *columns, moments = zip(*stored, strict=True)
    micros = [None if moment is None else read_timestamp_micros(moment) for moment in moments]
    if None in micros:  # what is there without a time is a write that has not ended
        columns = [
            tuple(None if at is None else value for at, value in zip(micros, column, strict=True)) for column in columns
        ]
    return FeatureColumns([_read_column(column) for column in columns], micros)


def _read_column(messages: tuple[bytes | None, ...]) -> list[Value]:
    first = next(filter(None, messages), None)
    if first is None:
        return [None] * len(messages)
    if first[0] == _DOUBLE_TAG:
        given = [message for message in messages if message]
        joined = b"".join(given)
        if len(joined) == _DOUBLES.size * len(given) and joined[:: _DOUBLES.size] == _DOUBLE_BYTE * len(given):
            values = _DOUBLES.iter_unpack(joined)
            return [next(values)[0] if message else None for message in messages]
    elif first[0] == _INT64_TAG:
        return [
            message[1] if message and len(message) == 2 and message[0] == _INT64_TAG and message[1] < 0x80
            else read_value(message)
            for message in messages
        ]  # fmt: skip
    elif first[0] == _STRING_TAG:
        return [_read_often(message) for message in messages]
    return [read_value(message) for message in messages]


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


_DOUBLE, _FLOAT = struct.Struct("<d"), struct.Struct("<f")
_DOUBLES = struct.Struct("<xd")
_STRING_TAG, _INT64_TAG, _DOUBLE_TAG = 2 << 3 | 2, 4 << 3 | 0, 5 << 3 | 1
_DOUBLE_BYTE = bytes([_DOUBLE_TAG])


def read_value(message: bytes | None) -> Value:
    """A feast.types.Value as Python has it; None where it is null, empty or not there.

    Raises ContractError on bytes that are no such message, and on lists, maps and times, which no view has.
    """
    if not message:
        return None
    reader = _READERS.get(message[0])
    if reader is None:
        raise ContractError(f"a feature value begins with byte {message[0]:#04x}, which is of no type that a view has")
    try:
        return reader(message)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ContractError(f"a feature value of {len(message)} bytes is cut short or damaged") from error


_read_often = lru_cache(maxsize=4096)(read_value)  # people share their categories


def _string(message: bytes) -> str:
    size, at = (message[1], 2) if message[1] < 0x80 else varint(message, 1)
    _require(len(message), at + size)
    return message[at:].decode("utf-8")


def _integer(message: bytes) -> int:
    if message[1] < 0x80:
        _require(len(message), 2)
        return message[1]
    value, at = varint(message, 1)
    _require(len(message), at)
    return value - (1 << 64) if value >= 1 << 63 else value


def _double(message: bytes) -> float:
    _require(len(message), 9)
    value: float = _DOUBLE.unpack_from(message, 1)[0]
    return value


def _float(message: bytes) -> float:
    _require(len(message), 5)
    value: float = _FLOAT.unpack_from(message, 1)[0]
    return value


def _truth(message: bytes) -> bool:
    _require(len(message), 2)
    return message[1] != 0


def _null(_: bytes) -> None:
    return None


def _require(found: int, expected: int) -> None:
    if found != expected:
        raise IndexError(found)


_READERS: Mapping[int, Callable[[bytes], Any]] = {
    _STRING_TAG: _string,
    3 << 3 | 0: _integer,  # int32
    _INT64_TAG: _integer,
    _DOUBLE_TAG: _double,
    6 << 3 | 5: _float,
    7 << 3 | 0: _truth,
    0x98: _null,  # field 19, null_val, a tag of two bytes
}
"""By the tag of the message's one field: its number in feast.types.Value, and its wire type."""
