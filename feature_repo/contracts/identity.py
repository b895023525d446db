"""Which person an event belongs to: edges (anonymous_id -> user_id), what they mean, and how one is undone.

An event that names both ids is a sighting: at this instant this user used this device. An edge is all that was seen
of one pair: first and last sighting, and the newest undo. Edges of a pair are merged by minimum and maximum, so neither
order nor repetition of events matters, and rows are never rewritten: whose an event is, is decided when it is read.

The rule (`stretches`; the Spark form in `spark_jobs.transforms.identity` is held to this one by a test)
- An undo cancels the sightings at or before its instant; up to then nothing belongs to that user. A later sighting
  makes the edge anew, from the undo on.
- The live sightings of a device, in order of time, are runs of one user each. A run's user owns it from its first to
  its last sighting. The first run also reaches back to the beginning, the last one goes on for ever: so sessions
  before a first login join, and so do sessions after the last one.
- Between runs of two users nothing is decided: such events stay anonymous. Two users at one instant: neither.
- A device with more than MAX_DEVICE_USERS live users is no device (a kiosk, a constant that a broken client sends):
  it is nobody's.
- `alias` also says that the user formerly named `anonymous_id` is `user_id`. A chain of such names is followed to its
  end, at most MAX_ALIAS_HOPS steps; a longer one, or one that runs in a circle, is not followed at all. A name that
  became two users is neither. An alias that was undone once is never followed again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.events import EventType
from feature_repo.contracts.times import to_micros

MAX_DEVICE_USERS = 8
MAX_ALIAS_HOPS = 4

NEVER = -(2**63)
"""Before all instants: `last_micros` of a pair that nobody saw, `undone_micros` of an edge that nobody undid."""
ALWAYS = 2**63 - 1
"""After all instants: `first_micros` of a pair that nobody saw."""


class Edge(NamedTuple):
    """What is known of one pair. Times are event times, microseconds since 1970 (UTC)."""

    first_micros: int = ALWAYS
    last_micros: int = NEVER
    undone_micros: int = NEVER
    is_alias: bool = False

    @property
    def is_live(self) -> bool:
        """Seen after it was last undone."""
        return self.last_micros > self.undone_micros

    @property
    def renames(self) -> bool:
        """A live alias. One that was undone once is not followed again, whatever is seen later."""
        return self.is_alias and self.is_live and self.undone_micros == NEVER


class Claim(NamedTuple):
    """One event's word about one pair."""

    anonymous_id: str
    user_id: str
    edge: Edge


class Stretch(NamedTuple):
    """From `from_micros` to `until_micros`, both included, a device is this user's."""

    from_micros: int
    until_micros: int
    user_id: str


def claim_of(event: Mapping[str, Any]) -> Claim | None:
    """What a checked event (`events.check_event`) says about identity; None unless it names both ids."""
    user_id, anonymous_id = event.get("user_id"), event.get("anonymous_id")
    if not user_id or not anonymous_id:
        return None
    micros, kind = to_micros(event["timestamp"]), event["event_type"]
    if kind == EventType.UNMERGE:
        return Claim(anonymous_id, user_id, Edge(undone_micros=micros))
    return Claim(anonymous_id, user_id, Edge(micros, micros, is_alias=kind == EventType.ALIAS))


def merge_edges(one: Edge, other: Edge) -> Edge:
    """Both together. Commutative, associative, idempotent."""
    return Edge(
        min(one.first_micros, other.first_micros),
        max(one.last_micros, other.last_micros),
        max(one.undone_micros, other.undone_micros),
        one.is_alias or other.is_alias,
    )


def stretches(edges: Mapping[str, Edge]) -> list[Stretch]:
    """When a device is whose, oldest first and disjoint. `edges` has the device's edges by user_id."""
    live = {user_id: edge for user_id, edge in edges.items() if edge.is_live}
    if not live or len(live) > MAX_DEVICE_USERS:
        return []
    seen: dict[int, set[str]] = {}
    for user_id, edge in live.items():
        for micros in (edge.first_micros, edge.last_micros):
            if micros > edge.undone_micros:
                seen.setdefault(micros, set()).add(user_id)
    runs: list[tuple[int, int, str | None]] = []
    for micros in sorted(seen):
        user = next(iter(seen[micros])) if len(seen[micros]) == 1 else None
        if runs and user is not None and runs[-1][2] == user:
            runs[-1] = (runs[-1][0], micros, user)
        else:
            runs.append((micros, micros, user))
    found = []
    for number, (first, last, user) in enumerate(runs):
        if user is None:
            continue
        start = NEVER if number == 0 else first
        end = ALWAYS if number == len(runs) - 1 else last
        undone = live[user].undone_micros
        found.append(Stretch(max(start, undone + 1) if undone != NEVER else start, end, user))
    return found


def owner_at(edges: Mapping[str, Edge], micros: int) -> str | None:
    """The user to whom a device's anonymous events at an instant belong, or None."""
    for start, end, user_id in stretches(edges):
        if start <= micros <= end:
            return user_id
    return None


def current_name(user_id: str, aliases_of: Callable[[str], Iterable[str]]) -> str:
    """The name at the end of the chain of aliases that starts at `user_id`; itself when the chain is refused.

    aliases_of  user_id -> the users that this name became (`Edge.renames`)
    """
    name = user_id
    for _ in range(MAX_ALIAS_HOPS + 1):
        became = set(aliases_of(name)) - {name}
        if len(became) != 1:
            return name
        (name,) = became
    return user_id


_EDGE = struct.Struct("<BBqqq")
_FORMAT_V1 = 1
_FLAG_ALIAS = 1


def pack_edge(edge: Edge) -> bytes:
    """Edge v1, little-endian: format=1, flags (1: alias), first, last, undone. 26 bytes; golden file edge_v1.bin."""
    flags = _FLAG_ALIAS if edge.is_alias else 0
    return _EDGE.pack(_FORMAT_V1, flags, edge.first_micros, edge.last_micros, edge.undone_micros)


def unpack_edge(record: bytes) -> Edge:
    """Inverse of `pack_edge`. Raises ContractError when the record is not a whole v1 edge."""
    if len(record) != _EDGE.size or record[0] != _FORMAT_V1:
        raise ContractError(f"a v1 edge has {_EDGE.size} bytes and begins with {_FORMAT_V1}, got {record[:1].hex()!r} "
                            f"and {len(record)} bytes")  # fmt: skip
    _, flags, first, last, undone = _EDGE.unpack(record)
    return Edge(first, last, undone, bool(flags & _FLAG_ALIAS))
