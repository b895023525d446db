"""Identity edges in the online store: what events say of devices and users, as hashes of packed edges.

An edge lies twice: with its device (`edges_key("a:<anonymous_id>")`, field `u:<user_id>`) and with its user
(`edges_key("u:<user_id>")`, field `a:<anonymous_id>`); an alias also with the former name as a user. All events about
a pair name its user, so one partition's owner writes all of its fields, each by itself: owners of other partitions
write other fields of the same device and never meet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import redis

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.identity import MAX_DEVICE_USERS, Edge, claim_of, merge_edges, pack_edge, unpack_edge
from feature_repo.contracts.keys import edges_key
from serving.speed.redis_line import Command

LAST_SEEN_GRAIN_MICROS = 300_000_000
"""`last_micros` of a device's only user may lag by this much: an edge is not written for each of their clicks."""
MAX_EDGES = 4 * MAX_DEVICE_USERS
"""Edges kept of one subject: those heard of last. A device with so many users is nobody's anyway."""
REMEMBERED_PAIRS = 50_000

ReadHashes = Callable[[Sequence[str]], Sequence[Mapping[bytes, bytes]]]
"""Whole hashes by their keys, in one round trip; an empty one where there is none."""


@dataclass(slots=True)
class HashWrite:
    """Fields to put into one hash and fields to take out of it; after that it lives `seconds`."""

    key: str
    seconds: int
    fields: dict[str, bytes] = field(default_factory=dict)
    dropped: list[bytes] = field(default_factory=list)


class _Pair(NamedTuple):
    anonymous_id: str
    user_id: str


class _Written(NamedTuple):
    """A pair as this process last saw it in the store."""

    edge: Edge
    is_only_user: bool


class IdentityEdges:
    """What events say about identity, as writes for the transaction that applies these events."""

    def __init__(self, read_hashes: ReadHashes, *, tenant: str, ttl_seconds: int) -> None:
        """`ttl_seconds`: how long the edges of a subject live after the last news of one."""
        self._read_hashes = read_hashes
        self._tenant = tenant
        self._ttl = ttl_seconds
        self._written: OrderedDict[_Pair, _Written] = OrderedDict()

    def forget(self) -> None:
        """To be called when a partition was taken, or the store was found in another state than it was left in."""
        self._written.clear()

    def news(self, events: Iterable[Mapping[str, Any]]) -> list[HashWrite]:
        """The writes for these checked events, each key once.

        Reads the edges that might change, in one round trip; nothing when no event brings news of a pair. Whoever calls
        holds the partitions of these events: the transaction must fail when another owner took one meanwhile, and after
        a transaction that failed `forget` is due.
        """
        claims: dict[_Pair, Edge] = {}
        for event in events:
            claim = claim_of(event)
            if claim is not None:
                pair = _Pair(claim.anonymous_id, claim.user_id)
                claims[pair] = merge_edges(claims.get(pair, Edge()), claim.edge)
        claims = {pair: said for pair, said in claims.items() if self._may_be_news(pair, said)}
        if not claims:
            return []
        stored = self._stored({kind + name for pair in claims for kind, name in zip(("a:", "u:"), pair, strict=True)})
        writes: dict[str, HashWrite] = {}
        for pair, said in claims.items():
            of_device = stored["a:" + pair.anonymous_id]
            own_field = b"u:" + pair.user_id.encode()
            is_only_user = of_device.keys() <= {own_field}
            known = _unpacked(of_device.get(own_field))
            edge = merge_edges(known, said)
            if _is_news(known, edge, is_only_user=is_only_user):
                device, user, former = "a:" + pair.anonymous_id, "u:" + pair.user_id, "u:" + pair.anonymous_id
                self._write(writes, device).fields[user] = pack_edge(edge)
                self._write(writes, user).fields[device] = pack_edge(edge)
                if edge.is_alias and former != user:
                    self._write(writes, former).fields[user] = pack_edge(edge)
                known = edge
            self._remember(pair, _Written(known, is_only_user))
        for subject, fields in stored.items():
            if len(fields) > MAX_EDGES:
                self._write(writes, subject).dropped += _oldest(fields, len(fields) - MAX_EDGES)
        return list(writes.values())

    def _may_be_news(self, pair: _Pair, said: Edge) -> bool:
        """What this process wrote only saves it a look: whatever may be news is judged by the store."""
        written = self._written.get(pair)
        if written is None:
            return True
        return _is_news(written.edge, merge_edges(written.edge, said), is_only_user=written.is_only_user)

    def _remember(self, pair: _Pair, written: _Written) -> None:
        self._written.pop(pair, None)
        self._written[pair] = written
        if len(self._written) > REMEMBERED_PAIRS:
            self._written.popitem(last=False)

    def _write(self, writes: dict[str, HashWrite], subject: str) -> HashWrite:
        key = edges_key(subject, self._tenant)
        return writes.setdefault(key, HashWrite(key, self._ttl))

    def _stored(self, subjects: set[str]) -> dict[str, Mapping[bytes, bytes]]:
        names = sorted(subjects)
        hashes = self._read_hashes([edges_key(subject, self._tenant) for subject in names])
        return dict(zip(names, hashes, strict=True))


def redis_hashes(client: redis.Redis) -> ReadHashes:
    """From Redis `online`."""

    def read(keys: Sequence[str]) -> list[Mapping[bytes, bytes]]:
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(key)
            return pipe.execute()

    return read


def hash_commands(writes: Iterable[HashWrite]) -> Iterator[Command]:
    """Redis's commands for the writes. Dropping comes first: what has news just now is no longer the oldest."""
    for write in writes:
        if write.dropped:
            yield "HDEL", write.key, *write.dropped
        if write.fields:
            yield "HSET", write.key, *[part for field in write.fields.items() for part in field]
        yield "EXPIRE", write.key, write.seconds


def _oldest(fields: Mapping[bytes, bytes], count: int) -> list[bytes]:
    """The fields of the edges heard of longest ago: a broken client's constant, a new cookie every day."""

    def heard(name: bytes) -> tuple[int, bytes]:
        edge = _unpacked(fields[name])
        return max(edge.last_micros, edge.undone_micros), name

    return sorted(fields, key=heard)[:count]


def _unpacked(record: bytes | None) -> Edge:
    """The stored edge; one that is absent or damaged starts anew."""
    try:
        return Edge() if record is None else unpack_edge(record)
    except ContractError:
        return Edge()


def _is_news(known: Edge, edge: Edge, *, is_only_user: bool) -> bool:
    """Whether the difference is worth a write: anything but a last sighting that moved a little."""
    if known._replace(last_micros=edge.last_micros) != edge or known.is_live != edge.is_live:
        return True
    grain = LAST_SEEN_GRAIN_MICROS if is_only_user else 1
    return edge.last_micros - known.last_micros >= grain
