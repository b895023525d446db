"""The online store: what a request needs to know of a person, in one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.events import subject_key
from feature_repo.contracts.keys import candidates_key, edges_key, pointer_key, session_key, session_key_v1
from serving.adapters.feast_online import (
    SEGMENT_FEATURE,
    USER_JOIN_KEY,
    USER_VIEW,
    entity_key,
    feature_field,
    timestamp_field,
)

SEGMENT_FIELD = feature_field(USER_VIEW, SEGMENT_FEATURE)
SEGMENT_TIME_FIELD = timestamp_field(USER_VIEW)


Hashes = Mapping[str, Mapping[bytes, bytes]]
Strings = Mapping[str, bytes]


class OnlineRecords(NamedTuple):
    """One read. Everything as stored; None for what does not exist or was not asked for.

    `pointer` is the version now published; `candidates` belongs to the version that was asked for. `edges` (subject ->
    field -> packed edge) and `joined` (subject -> session record) have the subjects that have any.
    """

    pointer: str | None
    candidates: bytes | None = None
    session: bytes | None = None
    segment: bytes | None = None
    segment_time: bytes | None = None
    edges: Hashes = MappingProxyType({})
    joined: Strings = MappingProxyType({})


class OnlineStore(Protocol):
    """Raises DependencyError when the store does not answer in time."""

    async def read(
        self, *, version: str | None, user_id: str | None, anonymous_id: str | None, joined: Sequence[str] = ()
    ) -> OnlineRecords:
        """Pointer, the user's candidates in `version`, the subject's session record and the user's segment feature.

        Without a user there are no candidates and no segment; without anybody only the pointer is read. Edges are those
        of the subject and of the subjects in `joined`, whose session records come too. One round trip.
        """

    async def close(self) -> None:
        """Give the connections back."""


class RedisOnlineStore:
    """Redis role `online`."""

    def __init__(self, url: str, *, tenant: str, timeout_seconds: float, max_connections: int) -> None:
        self._tenant = tenant
        self._timeout = timeout_seconds
        self._pointer_key = pointer_key(tenant)
        self._redis = redis.asyncio.Redis(
            connection_pool=redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=max_connections,
                timeout=timeout_seconds,
                socket_timeout=timeout_seconds,
                socket_connect_timeout=timeout_seconds,
                # An idle connection may have been closed by a restart of the server: one more try, on a new one.
                retry=Retry(NoBackoff(), 1),
            )
        )

    async def read(
        self, *, version: str | None, user_id: str | None, anonymous_id: str | None, joined: Sequence[str] = ()
    ) -> OnlineRecords:
        pipe = self._redis.pipeline(transaction=False)
        pipe.get(self._pointer_key)
        has_session = user_id is not None or anonymous_id is not None
        subjects = [subject_key(user_id, anonymous_id), *joined] if has_session else []
        for subject in subjects:
            pipe.mget(session_key(subject, self._tenant), session_key_v1(subject, self._tenant))
            pipe.hgetall(edges_key(subject, self._tenant))
        if user_id is not None:
            pipe.execute_command("HMGET", entity_key(USER_JOIN_KEY, user_id), SEGMENT_FIELD, SEGMENT_TIME_FIELD)
            if version is not None:
                pipe.get(candidates_key(version, user_id, self._tenant))
        try:
            async with asyncio.timeout(2 * self._timeout):
                values = iter(await pipe.execute())
        except (RedisError, OSError, TimeoutError) as error:
            raise DependencyError(f"the online store does not answer: {type(error).__name__}") from error
        pointer = next(values)
        found = [(subject, _newest(next(values)), next(values)) for subject in subjects]
        segment, segment_time = next(values) if user_id is not None else (None, None)
        candidates = next(values, None)
        return OnlineRecords(
            pointer.decode() if pointer else None,
            candidates,
            found[0][1] if found else None,
            segment,
            segment_time,
            {subject: edges for subject, _, edges in found if edges},
            {subject: session for subject, session, _ in found[1:] if session is not None},
        )

    async def close(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()


class MemoryOnlineStore:
    """The twin for tests and for trying things out: two dicts that have the layout of Redis.

    `is_down` makes every call raise; `reads` counts round trips.
    """

    def __init__(self, *, tenant: str) -> None:
        self._tenant = tenant
        self.strings: dict[str, bytes] = {}
        self.hashes: dict[bytes | str, dict[bytes, bytes]] = {}
        self.is_down = False
        self.reads = 0

    async def read(
        self, *, version: str | None, user_id: str | None, anonymous_id: str | None, joined: Sequence[str] = ()
    ) -> OnlineRecords:
        self._check()
        self.reads += 1
        pointer = self.strings.get(pointer_key(self._tenant))
        candidates = session = None
        features: Mapping[bytes, bytes] = {}
        if version is not None and user_id is not None:
            candidates = self.strings.get(candidates_key(version, user_id, self._tenant))
        subjects = [subject_key(user_id, anonymous_id), *joined] if user_id or anonymous_id else []
        sessions = {subject: self._session(subject) for subject in subjects}
        edges = {subject: self.hashes.get(edges_key(subject, self._tenant)) for subject in subjects}
        if subjects:
            session = sessions[subjects[0]]
        if user_id is not None:
            features = self.hashes.get(entity_key(USER_JOIN_KEY, user_id), {})
        return OnlineRecords(
            pointer.decode() if pointer else None,
            candidates,
            session,
            features.get(SEGMENT_FIELD),
            features.get(SEGMENT_TIME_FIELD),
            {subject: fields for subject, fields in edges.items() if fields},
            {subject: sessions[subject] or b"" for subject in subjects[1:] if sessions[subject] is not None},
        )

    def _session(self, subject: str) -> bytes | None:
        keys = (session_key(subject, self._tenant), session_key_v1(subject, self._tenant))
        return _newest([self.strings.get(key) for key in keys])

    async def close(self) -> None:
        """Nothing to give back."""

    def _check(self) -> None:
        if self.is_down:
            raise DependencyError("the online store does not answer: it is set to be down")


def _newest(records: Sequence[bytes | None]) -> bytes | None:
    """The record of the current format if there is one, else that of the one before."""
    return next((record for record in records if record is not None), None)
