"""Identity edges in the online store: what events say of devices and users, as hashes of packed edges.

An edge lies twice: with its device (`edges_key("a:<anonymous_id>")`, field `u:<user_id>`) and with its user
(`edges_key("u:<user_id>")`, field `a:<anonymous_id>`); an alias also with the former name as a user. All events about
a pair name its user, so one partition's owner writes all of its fields, each by itself: owners of other partitions
write other fields of the same device and never meet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import redis

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.identity import MAX_DEVICE_USERS, Edge, claim_of, merge_edges, pack_edge, unpack_edge
from feature_repo.contracts.keys import edges_key

LAST_SEEN_GRAIN_MICROS = 300_000_000
"""`last_micros` of a device's only user may lag by this much: an edge is not written for each of their clicks."""
MAX_EDGES = 4 * MAX_DEVICE_USERS
"""Edges kept of one subject: those heard of last. A device with so many users is nobody's anyway."""
REMEMBERED_PAIRS = 50_000


class _Pair(NamedTuple):
    anonymous_id: str
    user_id: str


class _Written(NamedTuple):
    """A pair as this process last saw it in the store."""

    edge: Edge
    is_only_user: bool


class IdentityEdges:
    """Writes what events say about identity, within the transaction that applies them."""

    def __init__(self, online: redis.Redis, *, tenant: str, ttl_seconds: int) -> None:
        """`ttl_seconds`: how long edges live after the last event about them."""
        self._online = online
        self._tenant = tenant
        self._ttl = ttl_seconds
        self._written: OrderedDict[_Pair, _Written] = OrderedDict()

    def forget(self) -> None:
        """To be called when a partition was taken, or the store was found in another state than it was left in."""
        self._written.clear()

    def queue(self, pipe: redis.client.Pipeline, events: Iterable[Mapping[str, Any]]) -> int:
        """Queue the writes for these checked events on `pipe` (after its MULTI); the number of edges that change.

        Reads the edges that might change, in one round trip; none when no event brings news of a pair. Whoever calls
        holds the partition of these events: the transaction must fail when another owner took it meanwhile.
        """
        claims: dict[_Pair, Edge] = {}
        for event in events:
            claim = claim_of(event)
            if claim is not None:
                pair = _Pair(claim.anonymous_id, claim.user_id)
                claims[pair] = merge_edges(claims.get(pair, Edge()), claim.edge)
        claims = {pair: said for pair, said in claims.items() if self._may_be_news(pair, said)}
        if not claims:
            return 0
        stored = self._stored({kind + name for pair in claims for kind, name in zip(("a:", "u:"), pair, strict=True)})
        changed = 0
        for pair, said in claims.items():
            of_device = stored["a:" + pair.anonymous_id]
            own_field = b"u:" + pair.user_id.encode()
            is_only_user = of_device.keys() <= {own_field}
            known = _unpacked(of_device.get(own_field))
            edge = merge_edges(known, said)
            if _is_news(known, edge, is_only_user=is_only_user):
                changed += 1
                self._put(pipe, "a:" + pair.anonymous_id, "u:" + pair.user_id, edge)
                self._put(pipe, "u:" + pair.user_id, "a:" + pair.anonymous_id, edge)
                if edge.is_alias and pair.anonymous_id != pair.user_id:
                    self._put(pipe, "u:" + pair.anonymous_id, "u:" + pair.user_id, edge)
                known = edge
            self._remember(pair, _Written(known, is_only_user))
        self._thin_out(pipe, stored)
        return changed

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


def _unpacked(record: bytes | None) -> Edge:
    """The stored edge; one that is absent or damaged starts anew."""
    try:
        return Edge() if record is None else unpack_edge(record)
    except ContractError:
        return Edge()


def _heard(edge: Edge) -> int:
    return max(edge.last_micros, edge.undone_micros)


def _is_news(known: Edge, edge: Edge, *, is_only_user: bool) -> bool:
    """Whether the difference is worth a write: anything but a last sighting that moved a little."""
    if known._replace(last_micros=edge.last_micros) != edge or known.is_live != edge.is_live:
        return True
    grain = LAST_SEEN_GRAIN_MICROS if is_only_user else 1
    return edge.last_micros - known.last_micros >= grain
