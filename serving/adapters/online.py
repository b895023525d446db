"""The online store: what a request needs to know of a person, in one round trip."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.events import subject_key
from feature_repo.contracts.keys import candidates_key, edges_key, pointer_key, session_key, session_key_v1
from serving.adapters.feast_online import (
    PROJECT,
    SEGMENT_FEATURE,
    USER_JOIN_KEY,
    USER_VIEW,
    entity_key,
    feature_field,
    timestamp_field,
)
from serving.adapters.redis_pipe import pack
from serving.adapters.tagged_reads import READ_ERRORS, TaggedReads
from serving.native import parts

SEGMENT_FIELD = feature_field(USER_VIEW, SEGMENT_FEATURE)
SEGMENT_TIME_FIELD = timestamp_field(USER_VIEW)


Hashes = Mapping[str, Mapping[bytes, bytes]]
Strings = Mapping[str, bytes]
NO_HASHES: Hashes = MappingProxyType({})
NO_STRINGS: Strings = MappingProxyType({})


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
    edges: Hashes = NO_HASHES
    joined: Strings = NO_STRINGS


_records_of = tuple.__new__  # what the constructor does, without the call

Answered = Callable[[OnlineRecords | DependencyError], None]
"""Gets what `read` would return or raise."""


class OnlineStore(Protocol):
    """Raises DependencyError when the store does not answer in time."""

    async def read(
        self, *, version: str | None, user_id: str | None, anonymous_id: str | None, joined: Sequence[str] = ()
    ) -> OnlineRecords:
        """Pointer, the user's candidates in `version`, the subject's session record and the user's segment feature.

        Without a user there are no candidates and no segment; without anybody only the pointer is read. Edges are those
        of the subject and of the subjects in `joined`, whose session records come too. One round trip.
        """

    def submit(
        self,
        answered: Answered,
        *,
        version: str | None,
        user_id: str | None,
        anonymous_id: str | None,
        joined: Sequence[str] = (),
    ) -> None:
        """`read` for those who do not wait: `answered` is called in a later turn of the loop."""

    async def close(self) -> None:
        """Give the connections back."""


class RedisOnlineStore:
    """Redis role `online`, over one connection that all requests share (`tagged_reads`).

    What concerns one subject is one MGET and one HGETALL of one slot; the pointer is read once for all requests of a
    turn of the loop.
    """

    def __init__(self, url: str, *, tenant: str, timeout_seconds: float) -> None:
        self.commands = ReadCommands(tenant)
        self.reads = TaggedReads(url, shared=pack("GET", pointer_key(tenant)), timeout_seconds=timeout_seconds)
        self._pointer: tuple[bytes, str] = (b"", "")
        self._late: set[asyncio.Task[None]] = set()

    async def read(
        self, *, version: str | None, user_id: str | None, anonymous_id: str | None, joined: Sequence[str] = ()
    ) -> OnlineRecords:
        commands = self.commands.of(version, user_id, anonymous_id, joined)
        loop = asyncio.get_running_loop()
        for is_last in (False, True):
            found: asyncio.Future[OnlineRecords] = loop.create_future()

            def answered(records: OnlineRecords | DependencyError, found: Any = found) -> None:
                if found.done():
                    return  # whoever asked has gone
                if isinstance(records, DependencyError):
                    found.set_exception(records)
                else:
                    found.set_result(records)

            def failed(error: Exception, found: Any = found) -> None:
                if not found.done():
                    found.set_exception(error)

            try:
                await self.reads.connect()
                if self.reads.ask(*commands, partial(self.take, user_id, anonymous_id, joined, answered), failed):
                    return await found
            except READ_ERRORS as error:
                # Nothing was changed by a read: when the connection has ended, one more try on a new one.
                if is_last or isinstance(error, TimeoutError):
                    raise _no_answer(error) from error
        raise DependencyError("the online store does not answer: no connection")

    def submit(
        self,
        answered: Answered,
        *,
        version: str | None,
        user_id: str | None,
        anonymous_id: str | None,
        joined: Sequence[str] = (),
    ) -> None:
        commands, count = self.commands.of(version, user_id, anonymous_id, joined)
        if not self.reads.ask(
            commands,
            count,
            partial(self.take, user_id, anonymous_id, joined, answered),
            partial(self.on_failure, answered, version, user_id, anonymous_id, joined),
        ):
            self._start(self._read_late(answered, version, user_id, anonymous_id, joined))

    async def close(self) -> None:
        await self.reads.close()

    def on_failure(
        self,
        answered: Answered,
        version: str | None,
        user_id: str | None,
        anonymous_id: str | None,
        joined: Sequence[str],
        error: Exception,
    ) -> None:
        if isinstance(error, TimeoutError):
            answered(_no_answer(error))
        else:
            self._start(self._read_late(answered, version, user_id, anonymous_id, joined))

    def _start(self, reading: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(reading)
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _read_late(
        self,
        answered: Answered,
        version: str | None,
        user_id: str | None,
        anonymous_id: str | None,
        joined: Sequence[str],
    ) -> None:
        try:
            found: OnlineRecords | DependencyError = await self.read(
                version=version, user_id=user_id, anonymous_id=anonymous_id, joined=joined
            )
        except DependencyError as error:
            found = error
        answered(found)

    def take(
        self,
        user_id: str | None,
        anonymous_id: str | None,
        joined: Sequence[str],
        answered: Answered,
        pointer: Any,
        replies: Sequence[Any],
    ) -> None:
        """The replies as records. Redis refuses a command with an error in the reply's place: then there are none."""
        if type(pointer) is bytes:
            if pointer != self._pointer[0]:
                self._pointer = (pointer, pointer.decode())
            version = self._pointer[1]
        elif pointer is None:
            version = None
        else:
            answered(_no_answer(pointer))
            return
        if not replies:
            answered(OnlineRecords(version))
            return
        for reply in replies:
            if type(reply) is not list:
                answered(_no_answer(reply))
                return
        first, fields = replies[0], replies[1]
        session = first[0] if first[0] is not None else first[1]
        edges: Hashes = NO_HASHES
        if fields:
            edges = {subject_key(user_id, anonymous_id): _pairs(fields)}
        if user_id is None:
            candidates = segment = segment_time = None
            at = 2
        else:
            candidates = first[2] if len(first) > 2 else None
            segment, segment_time = replies[2]
            at = 3
        if not joined:
            answered(
                _records_of(OnlineRecords, (version, candidates, session, segment, segment_time, edges, NO_STRINGS))
            )
            return
        edges = dict(edges)
        others: dict[str, bytes] = {}
        for subject in joined:
            record, fields = _newest(replies[at]), replies[at + 1]
            at += 2
            if fields:
                edges[subject] = _pairs(fields)
            if record is not None:
                others[subject] = record
        answered(OnlineRecords(version, candidates, session, segment, segment_time, edges, others))


class ReadCommands:
    """The commands of one read, packed: as `pack` of the contracts' keys would write them, from parts made once."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._sessions = {kind: _opened(session_key(f"{kind}:", tenant)) for kind in "ua"}
        self._older = {kind: _opened(session_key_v1(f"{kind}:", tenant)) for kind in "ua"}
        self._edges = {kind: _opened(edges_key(f"{kind}:", tenant)) for kind in "ua"}
        whole = entity_key([USER_JOIN_KEY], [""])
        self._entity = whole[: -len(PROJECT) - 4], whole[-len(PROJECT) :]
        fields = b"".join(b"$%d\r\n%b\r\n" % (len(name), name) for name in (SEGMENT_FIELD, SEGMENT_TIME_FIELD))
        self._fields = fields
        self._candidates: tuple[str, bytes] = ("", b"")
        self.writer: Any = None
        """Native code; None: there is none."""
        if parts.reads is not None:
            of_kinds = [(self._sessions[kind], self._older[kind], self._edges[kind]) for kind in "ua"]
            self.writer = parts.reads.CommandWriter(*of_kinds, *self._entity, fields)

    def of(
        self, version: str | None, user_id: str | None, anonymous_id: str | None, joined: Sequence[str]
    ) -> tuple[bytes, int]:
        """(packed commands, how many)."""
        written: bytes | None = None
        if user_id is not None:
            if self.writer is not None and version is not None:
                written = self.writer.of_user(user_id, self.own_list(version))
            commands, count = written or self._of_user(user_id, version), 3
        elif anonymous_id is not None:
            if self.writer is not None:
                written = self.writer.of_device(anonymous_id)
            commands, count = written or self._of_subject("a", anonymous_id), 2
        else:
            return b"", 0
        for subject in joined:
            commands += self._of_subject(subject[0], subject[2:])
        return commands, count + 2 * len(joined)

    def own_list(self, version: str) -> bytes:
        """The key of a list of that version, up to the id."""
        if version != self._candidates[0]:
            self._candidates = (version, _opened(candidates_key(version, "", self._tenant)))
        return self._candidates[1]

    def _of_user(self, user_id: str, version: str | None) -> bytes:
        name = _quoted(user_id).encode("ascii")
        size = len(name)
        raw = name if size == len(user_id) else user_id.encode("utf-8")
        head, project = self._entity
        entity = b"%b%b%b%b" % (head, _LENGTH.pack(len(raw)), raw, project)
        newer, older, edges = self._sessions["u"], self._older["u"], self._edges["u"]
        if version is None:
            mget = _MGET % (3, len(newer) + size + 1, newer, name, len(older) + size + 1, older, name)
        else:
            own = self.own_list(version)
            mget = _MGET_3 % (
                len(newer) + size + 1, newer, name, len(older) + size + 1, older, name, len(own) + size + 1, own, name,
            )  # fmt: skip
        return b"%b*2\r\n$7\r\nHGETALL\r\n$%d\r\n%b%b}\r\n*4\r\n$5\r\nHMGET\r\n$%d\r\n%b\r\n%b" % (
            mget, len(edges) + size + 1, edges, name, len(entity), entity, self._fields,
        )  # fmt: skip

    def _of_subject(self, kind: str, subject_id: str) -> bytes:
        name = _quoted(subject_id).encode("ascii")
        size = len(name)
        newer, older, edges = self._sessions[kind], self._older[kind], self._edges[kind]
        return b"%b*2\r\n$7\r\nHGETALL\r\n$%d\r\n%b%b}\r\n" % (
            _MGET % (3, len(newer) + size + 1, newer, name, len(older) + size + 1, older, name),
            len(edges) + size + 1, edges, name,
        )  # fmt: skip


_LENGTH = struct.Struct("<I")
_MGET = b"*%d\r\n$4\r\nMGET\r\n$%d\r\n%b%b}\r\n$%d\r\n%b%b}\r\n"
_MGET_3 = b"*4\r\n$4\r\nMGET\r\n$%d\r\n%b%b}\r\n$%d\r\n%b%b}\r\n$%d\r\n%b%b}\r\n"
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]*").fullmatch


def _quoted(name: str) -> str:
    """`quote` of an id, without its cost for what needs none."""
    return name if _PLAIN(name) else quote(name, safe="")


def _opened(key: str) -> bytes:
    """A key of the empty id up to where the id goes; behind it comes the brace that ends the hash tag."""
    assert key.endswith("}")
    return key[:-1].encode("ascii")


def _pairs(fields: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(fields[::2], fields[1::2], strict=True))


def _no_answer(error: Any) -> DependencyError:
    return DependencyError(f"the online store does not answer: {type(error).__name__}")


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
        self._tasks: set[asyncio.Task[None]] = set()

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
            features = self.hashes.get(entity_key([USER_JOIN_KEY], [user_id]), {})
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

    def submit(
        self,
        answered: Answered,
        *,
        version: str | None,
        user_id: str | None,
        anonymous_id: str | None,
        joined: Sequence[str] = (),
    ) -> None:
        async def read() -> None:
            try:
                answered(
                    await self.read(version=version, user_id=user_id, anonymous_id=anonymous_id, joined=joined)
                )  # fmt: skip
            except DependencyError as error:
                answered(error)

        task = asyncio.get_running_loop().create_task(read())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Nothing to give back."""

    def _check(self) -> None:
        if self.is_down:
            raise DependencyError("the online store does not answer: it is set to be down")


def _newest(records: Sequence[bytes | None]) -> bytes | None:
    """The record of the current format if there is one, else that of the one before."""
    return next((record for record in records if record is not None), None)
