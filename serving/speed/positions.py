"""Stream positions: `<milliseconds>-<sequence>` as Redis writes them, and one 63-bit number as Delta needs them."""

from __future__ import annotations

from functools import lru_cache

from feature_repo.contracts.errors import ContractError

START = "0-0"
"""Before the first entry."""

_SEQUENCE_BITS = 20


@lru_cache(maxsize=4096)  # many events share an entry
def _parts(stream_id: str) -> tuple[int, int]:
    milliseconds, dash, sequence = stream_id.partition("-")
    if not (dash and milliseconds.isdigit() and sequence.isdigit()):
        raise ContractError(f"a stream position looks like 1709890200000-0, got {stream_id!r}")
    return int(milliseconds), int(sequence)


def position_number(stream_id: str) -> int:
    """milliseconds x 2^20 + sequence: grows as positions grow. Inverse: `stream_id_of`.

    Raises ContractError for more than a million entries in one millisecond, which no server reaches.
    """
    milliseconds, sequence = _parts(stream_id)
    if sequence >> _SEQUENCE_BITS or milliseconds >> 43:
        raise ContractError(f"stream position {stream_id!r} does not fit 63 bits")
    return milliseconds << _SEQUENCE_BITS | sequence


def stream_id_of(number: int) -> str:
    """Inverse of `position_number`."""
    return f"{number >> _SEQUENCE_BITS}-{number & (1 << _SEQUENCE_BITS) - 1}"


def after(stream_id: str) -> str:
    """The smallest position behind `stream_id`."""
    milliseconds, sequence = _parts(stream_id)
    return f"{milliseconds}-{sequence + 1}"


def receipt_micros(stream_id: str) -> int:
    """When the log took the entry: microseconds since 1970, by the log's clock, in whole milliseconds."""
    return _parts(stream_id)[0] * 1000
