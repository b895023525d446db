"""Reads one feature out of Feast's Redis layout (entity key serialization v3), without importing Feast.

    key     u32 n_keys, {u32 2, u32 length, join key}*, {u32 type, u32 length, value}*, project     (little-endian)
    field   murmur3_32("<view>:<feature>"), 4 bytes little-endian  ->  feast.types.Value (protobuf)
    field   "_ts:<view>"                                           ->  google.protobuf.Timestamp

Feast does not apply a view's ttl when it reads online: whoever reads compares the timestamp. A parity test holds these
functions to the SDK.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from feature_repo.contracts.errors import ContractError

PROJECT = "nightjar"
USER_JOIN_KEY = "user_id"
USER_VIEW = "user_features"
SEGMENT_FEATURE = "user_top_category_90d"

_TEXT = struct.Struct("<II")
_STRING_TYPE = 2  # feast.types.ValueType.STRING
_STRING_FIELD = 2  # feast.types.Value.string_val
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # protobuf wire types


def entity_key(join_keys: Sequence[str], values: Sequence[str], *, project: str = PROJECT) -> bytes:
    """The Redis key of one entity, whose join keys are all texts. Never parsed back: Feast owns these keys."""
    head, order = key_head(tuple(join_keys))
    raw = [values[at].encode("utf-8") for at in order]
    parts = [part for value in raw for part in (_TEXT.pack(_STRING_TYPE, len(value)), value)]
    return b"".join([head, *parts, project.encode("utf-8")])


@lru_cache(maxsize=64)
def key_head(join_keys: tuple[str, ...]) -> tuple[bytes, tuple[int, ...]]:
    """(the beginning of the keys of these entities, the places of the join keys in Feast's order: by name)."""
    order = sorted(range(len(join_keys)), key=lambda at: join_keys[at])
    names = [join_keys[at].encode("utf-8") for at in order]
    parts = [part for name in names for part in (_TEXT.pack(_STRING_TYPE, len(name)), name)]
    return b"".join([struct.pack("<I", len(names)), *parts]), tuple(order)


def feature_field(view: str, feature: str) -> bytes:
    """The hash field of one feature."""
    return struct.pack("<I", murmur3_32(f"{view}:{feature}".encode()))


def timestamp_field(view: str) -> bytes:
    """The hash field of a view's event time."""
    return f"_ts:{view}".encode()


def murmur3_32(data: bytes, seed: int = 0) -> int:
    """MurmurHash3 x86 32-bit, unsigned."""
    h, mask = seed, 0xFFFFFFFF
    whole = len(data) // 4 * 4
    for (k,) in struct.iter_unpack("<I", data[:whole]):
        k = (k * 0xCC9E2D51) & mask
        k = ((k << 15) | (k >> 17)) & mask
        h ^= (k * 0x1B873593) & mask
        h = ((h << 13) | (h >> 19)) & mask
        h = (h * 5 + 0xE6546B64) & mask
    if tail := data[whole:]:
        k = (int.from_bytes(tail, "little") * 0xCC9E2D51) & mask
        k = ((k << 15) | (k >> 17)) & mask
        h ^= (k * 0x1B873593) & mask
    h ^= len(data)
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & mask
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & mask
    return h ^ (h >> 16)


@lru_cache(maxsize=4096)  # people share their categories, and a night's features their time
def read_string_value(message: bytes) -> str | None:
    """The text in a feast.types.Value, or None when it holds no text (a null feature). Raises ContractError on bytes
    that are no protobuf message."""
    value = _fields(message).get(_STRING_FIELD)
    if not isinstance(value, bytes):
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ContractError("a feature value is not UTF-8") from error


@lru_cache(maxsize=4096)
def read_timestamp_micros(message: bytes) -> int:
    """A google.protobuf.Timestamp as microseconds since 1970. Raises ContractError on bytes that are none."""
    fields = _fields(message)
    seconds, nanos = fields.get(1, 0), fields.get(2, 0)
    if not isinstance(seconds, int) or not isinstance(nanos, int):
        raise ContractError("not a timestamp message")
    if seconds >= 1 << 63:
        seconds -= 1 << 64  # before 1970: two's complement
    return seconds * 1_000_000 + nanos // 1000


def _fields(message: bytes) -> dict[int, int | bytes]:
    """Field number -> its last value, of a protobuf message; nested messages stay bytes."""
    fields: dict[int, int | bytes] = {}
    at = 0
    try:
        while at < len(message):
            tag, at = varint(message, at)
            wire = tag & 7
            if wire == _VARINT:
                fields[tag >> 3], at = varint(message, at)
                continue
            if wire == _LENGTH:
                size, at = varint(message, at)
            elif wire in (_FIXED64, _FIXED32):
                size = 8 if wire == _FIXED64 else 4
            else:
                raise ContractError(f"protobuf wire type {wire} is not used by features")
            fields[tag >> 3] = message[at : at + size]
            at += size
    except IndexError as error:
        raise ContractError(f"a feature value of {len(message)} bytes is cut short") from error
    if at != len(message):
        raise ContractError(f"a feature value of {len(message)} bytes is cut short")
    return fields


def varint(data: bytes, at: int) -> tuple[int, int]:
    """(the protobuf varint at this place, the place behind it). Raises IndexError when it is cut short."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
