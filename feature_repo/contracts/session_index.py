"""The session index: for each item what comes next in sessions, as one file of a bundle that serving maps.

`session_index.bin`, little-endian, every part at a multiple of four bytes:
    magic NJS1, u32 n items, u32 m entries, u32 bytes of what follows it
    JSON text {"model", "params", "sessions"}, filled up with blanks: the recipe, and how many sessions were read
    u32 offsets[n+1]; u32 item numbers[m]; f32 weights[m]
Row = item number; each row best first, ties by number. There is no subject, no session and no time in it.

What an answer does with it (the model `session_transitions` says why): of the item that stands `step` places from the
end of the running session the first params.reads[step] entries are read, each times e^(-step / params.place_decay).
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.publication import SESSION_INDEX_FILE, canonical_json, little_endian

MOST_ENTRIES_READ = 1_000
"""Of all rows that one answer reads: a recipe that asks for more is refused, because answers would be slow."""

_HEADER = struct.Struct("<4sIII")
_MAGIC = b"NJS1"


class SessionIndexFile(NamedTuple):
    """What is in the file; the three columns are views into it."""

    recipe: Mapping[str, Any]
    offsets: memoryview[int]
    numbers: memoryview[int]
    weights: memoryview[float]


def pack_session_index(
    recipe: Mapping[str, Any], offsets: Sequence[int], numbers: Sequence[int], weights: Sequence[float]
) -> bytes:
    """The bytes of the file. Inverse: `unpack_session_index`. Raises ContractError when the columns do not fit."""
    _check_recipe(recipe)
    if len(numbers) != len(weights) or not len(offsets) or offsets[0] != 0 or offsets[-1] != len(numbers):
        raise ContractError(
            f"a session index has as many numbers as weights, and offsets from 0 to that; got {len(numbers)} numbers, "
            f"{len(weights)} weights, offsets {list(offsets[:1])} .. {list(offsets[-1:])}"
        )
    text = canonical_json(recipe)
    text += b" " * (-len(text) % 4)
    header = _HEADER.pack(_MAGIC, len(offsets) - 1, len(numbers), len(text))
    ends = [little_endian(array("I", offsets)), little_endian(array("I", numbers)), little_endian(array("f", weights))]
    return b"".join([header, text, *ends])


def unpack_session_index(data: bytes | memoryview) -> SessionIndexFile:
    """The columns as views into `data`, which may be a memory map. Raises ContractError when it is not a whole one."""
    view = memoryview(data)
    if len(view) < _HEADER.size:
        raise ContractError(f"{SESSION_INDEX_FILE} has at least {_HEADER.size} bytes, got {len(view)}")
    magic, n, m, text_bytes = _HEADER.unpack_from(view)
    expected = _HEADER.size + text_bytes + 4 * (n + 1) + 8 * m
    if magic != _MAGIC or len(view) != expected or text_bytes % 4:
        raise ContractError(
            f"not a whole {SESSION_INDEX_FILE}: magic {magic!r}, {len(view)} bytes, expected {expected}"
        )
    at = _HEADER.size + text_bytes
    try:
        recipe = json.loads(bytes(view[_HEADER.size : at]))
        _check_recipe(recipe)
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(f"{SESSION_INDEX_FILE} has no recipe: {error!r}") from error
    offsets = view[at : at + 4 * (n + 1)].cast("I")
    at += 4 * (n + 1)
    return SessionIndexFile(recipe, offsets, view[at : at + 4 * m].cast("I"), view[at + 4 * m :].cast("f"))


def _check_recipe(recipe: Mapping[str, Any]) -> None:
    params = recipe["params"]
    reads, decay = list(params["reads"]), float(params["place_decay"])
    is_good = reads and all(isinstance(count, int) and count > 0 for count in reads) and math.isfinite(decay)
    if not is_good or decay <= 0 or sum(reads) > MOST_ENTRIES_READ:
        raise ContractError(
            f"a session index is read with reads, positive numbers that sum to at most {MOST_ENTRIES_READ}, and a "
            f"positive place_decay; got {reads} and {decay}"
        )
