"""Identity edges in the online store: what events say of devices and users, as hashes of packed edges.

An edge lies twice: with its device (`edges_key("a:<anonymous_id>")`, field `u:<user_id>`) and with its user
(`edges_key("u:<user_id>")`, field `a:<anonymous_id>`); an alias also with the former name as a user. All events about
a pair name its user, so one partition's owner writes all of its fields, each by itself: owners of other partitions
write other fields of the same device and never meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import redis

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.identity import MAX_DEVICE_USERS, NEVER, Edge, claim_of, merge_edges, pack_edge, unpack_edge
from feature_repo.contracts.keys import edges_key

LAST_SEEN_GRAIN_MICROS = 60_000_000
"""`last_micros` may lag by this much: an edge is not written for each click of somebody who is logged in."""
MAX_EDGES = 4 * MAX_DEVICE_USERS
"""Edges kept of one subject: those heard of last. A device with so many users is nobody's anyway."""


class _Pair(NamedTuple):
    anonymous_id: str
    user_id: str


class IdentityEdges:
    """Writes what events say about identity, within the transaction that applies them."""

    def __init__(self, online: redis.Redis, *, tenant: str, ttl_seconds: int) -> None:
        """`ttl_seconds`: how long edges live after the last event about them."""
        self._online = online
        self._tenant = tenant
        self._ttl = ttl_seconds

    def queue(self, pipe: redis.client.Pipeline, events: Iterable[Mapping[str, Any]]) -> int:
        """Queue the writes for these checked events on `pipe` (after its MULTI); the number of edges that change.

        Reads the edges that the events touch, in one round trip, and nothing when no event names two ids. Whoever calls
        holds the partition of these events: the transaction must fail when another owner took it meanwhile.
        """
        claims: dict[_Pair, Edge] = {}
        for event in events:
            claim = claim_of(event)
            if claim is not None:
                pair = _Pair(claim.anonymous_id, claim.user_id)
                claims[pair] = merge_edges(claims.get(pair, Edge()), claim.edge)
        if not claims:
            return 0
        stored = self._stored({kind + name for pair in claims for kind, name in zip(("a:", "u:"), pair, strict=True)})
        changed = 0
        for pair, said in claims.items():
            known = _unpacked(stored["a:" + pair.anonymous_id].get(_field("u:", pair.user_id)))
            edge = merge_edges(known, said)
            if not _is_news(known, edge):
                continue
            changed += 1
            self._put(pipe, "a:" + pair.anonymous_id, "u:" + pair.user_id, edge)
            self._put(pipe, "u:" + pair.user_id, "a:" + pair.anonymous_id, edge)
            if edge.is_alias and pair.anonymous_id != pair.user_id:
                self._put(pipe, "u:" + pair.anonymous_id, "u:" + pair.user_id, edge)
        self._thin_out(pipe, stored)
        return changed

    def _put(self, pipe: redis.client.Pipeline, subject: str, other: str, edge: Edge) -> None:
        key = edges_key(subject, self._tenant)
        pipe.hset(key, other, pack_edge(edge))  # type: ignore[arg-type]
        pipe.expire(key, self._ttl)

    def _stored(self, subjects: set[str]) -> dict[str, dict[bytes, bytes]]:
        names = sorted(subjects)
        with self._online.pipeline(transaction=False) as reader:
            for subject in names:
                reader.hgetall(edges_key(subject, self._tenant))
            return dict(zip(names, reader.execute(), strict=True))

    def _thin_out(self, pipe: redis.client.Pipeline, stored: Mapping[str, Mapping[bytes, bytes]]) -> None:
        """Drop the oldest edges of a subject that has too many: a broken client's constant, a new cookie every day."""
        for subject, fields in stored.items():
            surplus = len(fields) - MAX_EDGES
            if surplus > 0:
                oldest = sorted(fields, key=lambda field: (_heard(_unpacked(fields[field])), field))[:surplus]
                pipe.hdel(edges_key(subject, self._tenant), *oldest)  # type: ignore[arg-type]


def _field(kind: str, name: str) -> bytes:
    return (kind + name).encode()


def _unpacked(record: bytes | None) -> Edge:
    """The stored edge; one that is absent or damaged starts anew."""
    try:
        return Edge() if record is None else unpack_edge(record)
    except ContractError:
        return Edge()


def _heard(edge: Edge) -> int:
    return max(edge.last_micros, edge.undone_micros)


def _is_news(known: Edge, edge: Edge) -> bool:
    """Whether the difference is worth a write: anything but a last sighting that moved a little."""
    if known._replace(last_micros=edge.last_micros) != edge or known.is_live != edge.is_live:
        return True
    return known.last_micros == NEVER or edge.last_micros - known.last_micros >= LAST_SEEN_GRAIN_MICROS
