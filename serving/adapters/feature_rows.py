"""Feast's rows in Redis: the keys and commands that ask for them, and what their replies say.

A row is one HMGET, its values decoded by their first byte: a value is a feast.types.Value, a protobuf message of one
field. Native code does all of it in one pass (`native.features`); what it does not read, and where there is none, is
read here, and gives the same.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from feature_repo.contracts.errors import ContractError
from serving.adapters.feast_online import PROJECT, entity_key, key_head, read_timestamp_micros, varint
from serving.native import parts

Value = str | int | float | bool | None
FeatureRow = tuple[Any, ...]
"""The values of the features asked for, in their order, and behind them the instant that they are stamped with (us
since 1970 UTC). All of them are None where there is no row, a value where it is null."""
Reply = Sequence[bytes | None]
"""What Redis has of the fields of one row; the last is that of its time."""


def keys_of(join_keys: Sequence[str], entities: Sequence[Sequence[str]]) -> list[bytes]:
    """The Redis keys of entities, each the values of `join_keys` in their order."""
    if parts.features is None:
        return [entity_key(join_keys, entity) for entity in entities]
    return parts.features.keys_of(*key_head(tuple(join_keys)), PROJECT.encode(), entities)


def commands_of(keys: Sequence[bytes], fields: bytes, arguments: int) -> bytes:
    """An HMGET of each key, packed. `fields`: those asked for, packed; `arguments`: of one command, its name too."""
    if parts.features is not None:
        return parts.features.commands_of(keys, fields, arguments)
    head = b"*%d\r\n$5\r\nHMGET\r\n" % arguments
    return b"".join([b"%b$%d\r\n%b\r\n%b" % (head, len(key), key, fields) for key in keys])


def rows_of(replies: Sequence[Reply], features: int) -> list[FeatureRow]:
    """The rows of replies to `commands_of`. Raises ContractError on a value that cannot be read."""
    found: list[FeatureRow] | None = None
    if parts.features is not None:
        found = parts.features.rows_of(replies, features)
    return _rows_of(replies) if found is None else found


def _rows_of(replies: Sequence[Reply]) -> list[FeatureRow]:
    """The twin. A whole column of one type is decoded at once."""
    if not replies:
        return []
    *columns, moments = zip(*replies, strict=True)
    micros = [None if moment is None else read_timestamp_micros(moment) for moment in moments]
    if None in micros:  # what is there without a time is a write that has not ended
        columns = [
            tuple(None if at is None else value for at, value in zip(micros, column, strict=True)) for column in columns
        ]
    return list(zip(*map(_read_column, columns), micros, strict=True))


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
