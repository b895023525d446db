"""What an entry of an event stream holds: one event, or several that were written together.

    event   the checked event as JSON                    nonce   what its dedup mark says if it is the first of its id
    events  several of them, a line each                 nonces  theirs, a line each

Every event of an entry is judged by its own mark. Its place is the entry's position and its number in the entry, from
0. Where a place must be named by a source and a position (`bronze.events`), the number is part of the source. An event
with `items` has an entry to itself: each line of it is a row of that place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EVENT, NONCE = b"event", b"nonce"
EVENTS, NONCES = b"events", b"nonces"

MAX_ENTRY_EVENTS = 64
"""Events of one entry. It bounds what one entry costs its reader; more would save next to nothing."""


def join_lines(lines: Sequence[bytes]) -> bytes | None:
    """One value of several; None when one of them has a line break, so that they cannot share an entry."""
    joined = b"\n".join(lines)
    return joined if joined.count(b"\n") == len(lines) - 1 else None


def split_entry(fields: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """(event, nonce) of each event of an entry, at least one. What is not there is empty; an entry whose events and
    nonces do not match is one event, which nobody will be able to read."""
    together = fields.get(EVENTS)
    if together is None:
        return [(fields.get(EVENT, b""), fields.get(NONCE, b""))]
    events, nonces = together.split(b"\n"), fields.get(NONCES, b"").split(b"\n")
    if len(events) != len(nonces):
        return [(b"\n".join((together, *nonces)), b"")]
    return list(zip(events, nonces, strict=True))


def source_of(stream: str, number: int) -> str:
    """The source of an event: with the entry's position it names one delivery. Never parsed back."""
    return f"{beyond_first(stream)}{number:02d}" if number else stream


def beyond_first(stream: str) -> str:
    """What the sources of all but the first events of entries begin with. No stream's key goes on like that."""
    return stream + "#"
