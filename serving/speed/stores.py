"""What the consumer needs of the two Redis roles; a twin of each is in `memory_stores`.

`EventStreams` is role `log`: streams, dedup marks, dead letters. `StateStore` is role `online`: who shares the work,
who owns which partition, and transactions that nobody can write whose fence is not the partition's. Errors of Redis
(RedisError, OSError) come through as they are: the caller tries again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import hiredis
import redis
from redis.exceptions import WatchError

from feature_repo.contracts.errors import NightjarError
from feature_repo.contracts.keys import (
    applied_key,
    dead_letter_stream_key,
    dedup_key,
    delivering_key,
    fence_key,
    members_key,
    owner_key,
    quoted,
    speed_counters_key,
    stream_key,
)
from serving.native import parts
from serving.speed.identity_edges import HashWrite, hash_commands, redis_hashes
from serving.speed.redis_line import Command, Packed, RedisLine, WatchingLine

ROLE = "consumer"
MAX_DEAD_LETTERS = 10_000
DEAD_LETTER_DAYS = 30
_LETTERS_LOOKED_AT = 1000

KEYS_AT_ONCE = 256
"""Keys of one MGET: Redis has one thread, and serves somebody else between two commands."""

Fields = Mapping[bytes, bytes]
Key = TypeVar("Key")
Claims = Mapping[int, str]
"""Partition -> the fence under which this process owns it."""


class FencedError(NightjarError):
    """Another process owns partitions of this transaction by now. Nothing was written."""

    def __init__(self, partitions: Collection[int]) -> None:
        super().__init__(f"partitions {', '.join(map(str, sorted(partitions)))} have another owner")
        self.partitions = frozenset(partitions)


class OvertakenError(NightjarError):
    """What was read in this transaction has changed since. Nothing was written."""


class DeadLetter(NamedTuple):
    """An event that was given up: where it was (`number` in the entry), its bytes, why, how often it was delivered."""

    partition: int
    position: str
    number: int
    event: bytes
    nonce: bytes
    error: str
    deliveries: int


class Write(NamedTuple):
    """A string to be written. `seconds`: how long it lives from now; `until`: or the Unix time at which it ends."""

    key: str
    value: bytes
    seconds: int | None = None
    until: int | None = None


@dataclass(slots=True)
class Changes:
    """What one transaction writes. `positions`: partition -> applied position; `counters`: outcome -> number."""

    writes: list[Write] = field(default_factory=list)
    hashes: list[HashWrite] = field(default_factory=list)
    deletes: list[str] = field(default_factory=list)
    positions: dict[int, str] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)


def set_commands(writes: Iterable[Write]) -> bytes:
    """Redis's commands for the writes, as they are sent."""
    return b"".join([hiredis.pack_command(tuple(_set_command(write))) for write in writes])  # type: ignore[arg-type]


def _set_command(write: Write) -> Command:
    key, value, seconds, until = write
    if until is not None:
        return "SET", key, value, "EXAT", until
    return ("SET", key, value) if seconds is None else ("SET", key, value, "EX", seconds)


def marks_command(events: Sequence[tuple[int, str]], places: Iterable[int], begin: str) -> bytes:
    """The MGET of the marks of those of `events` (partition, event id) that lie at `places`; their keys `begin` so."""
    return hiredis.pack_command(("MGET", *[begin + quoted(events[at][1]) for at in places]))  # type: ignore[arg-type]


if parts.batches is not None:
    packed_sets, packed_marks = parts.batches.packed_sets, parts.batches.packed_marks
else:
    packed_sets, packed_marks = set_commands, marks_command


class EventStreams(Protocol):
    """Role `log`."""

    def read(
        self, after: Mapping[int, str], *, count: int, block_ms: int | None
    ) -> list[tuple[int, list[tuple[str, Fields]]]]:
        """Entries behind a position, at most `count` of each partition; waits up to `block_ms` (None: not) for one."""

    def ask_marks(self, events: Sequence[tuple[int, str]]) -> Callable[[], list[bytes | None]]:
        """Ask for the dedup mark of each (partition, event id), None where there is none (any more).

        The answer is for whom calls what this returns, once, before anything else is asked of the streams.
        """

    def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Keep the letters, each (partition, position, number) once."""


class Transaction(Protocol):
    """Reads, then one write of everything or nothing."""

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Strings. The first call also sees whether the claims hold: raises FencedError."""

    def positions(self) -> dict[int, str | None]:
        """The applied position of each claimed partition."""

    def commit(self, changes: Changes) -> None:
        """Raises FencedError or OvertakenError when a fence or position changed after it was read."""


class StateStore(Protocol):
    """Role `online`."""

    def beat(self, member: str, *, term_ms: int) -> list[str]:
        """Say that `member` lives; all members heard of within `term_ms`, sorted."""

    def leave(self, member: str) -> None:
        """`member` no longer shares the work."""

    def claim(self, partition: int, member: str, *, term_ms: int, force: bool = False) -> tuple[str, str | None] | None:
        """Take a partition that nobody owns (`force`: or somebody does): (fence, what the last owner left behind).

        The second is None when the last owner left in good order, else the text of `delivering_key`. None: it is owned.
        """

    def renew(self, claims: Claims, *, term_ms: int) -> set[int]:
        """The partitions of `claims` that are still ours, for another term."""

    def release(self, partition: int, fence: str) -> None:
        """Give up a partition in good order; nothing when it is no longer ours."""

    def note_delivery(self, partition: int, words: str) -> None:
        """What the next owner must know if this one dies now (`care`)."""

    def hashes(self, keys: Sequence[str]) -> Sequence[Mapping[bytes, bytes]]:
        """Whole hashes, in one round trip; an empty one where there is none."""

    def transaction(self, claims: Claims) -> AbstractContextManager[Transaction]:
        """A transaction on these partitions."""


class RedisEventStreams:
    """Redis role `log`."""

    def __init__(self, client: redis.Redis, *, tenant: str) -> None:
        self._redis = client
        self._line = RedisLine(client)
        self._tenant = tenant

    def read(
        self, after: Mapping[int, str], *, count: int, block_ms: int | None
    ) -> list[tuple[int, list[tuple[str, Fields]]]]:
        streams = {stream_key(partition, self._tenant).encode(): partition for partition in after}
        behind: Command = ("STREAMS", *streams, *after.values())
        commands: list[Command] = [("XREAD", "COUNT", count, *behind)]
        if block_ms is not None:  # who waits is woken by one stream: what came in others with it is read at once
            commands.insert(0, ("XREAD", "COUNT", count, "BLOCK", block_ms, *behind))
        found = self._line.call(commands)[-1]
        rows = found.items() if isinstance(found, dict) else found or ()  # a dict in the third protocol
        return [
            (streams[stream], [(position.decode(), _pairs(fields)) for position, fields in some])
            for stream, some in rows
        ]

    def ask_marks(self, events: Sequence[tuple[int, str]]) -> Callable[[], list[bytes | None]]:
        by_partition: dict[int, list[int]] = {}
        for at, (partition, _) in enumerate(events):
            by_partition.setdefault(partition, []).append(at)
        asked: list[list[int]] = []
        commands: list[Command | Packed] = []
        for partition, places in by_partition.items():  # those of a partition lie in one slot
            prefix = dedup_key(partition, "", self._tenant)
            for some in _pieces(places):
                asked.append(some)
                commands.append(Packed(packed_marks(events, some, prefix), 1))
        if commands:
            self._line.send(commands)

        def answer() -> list[bytes | None]:
            found: list[bytes | None] = [None] * len(events)
            for some, values in zip(asked, self._line.replies() if commands else (), strict=True):
                for at, value in zip(some, values, strict=True):
                    found[at] = value
            return found

        return answer

    def bury(self, letters: Sequence[DeadLetter]) -> None:
        if not letters:
            return
        key = dead_letter_stream_key(self._tenant)
        kept: Any = self._redis.xrevrange(key, count=_LETTERS_LOOKED_AT)
        known = {(fields.get(b"stream"), fields.get(b"position"), fields.get(b"number", b"0")) for _, fields in kept}
        for letter in letters:
            stream = stream_key(letter.partition, self._tenant)
            if (stream.encode(), letter.position.encode(), b"%d" % letter.number) in known:
                continue
            said: Any = {
                "stream": stream, "position": letter.position, "number": letter.number, "event": letter.event,
                "nonce": letter.nonce, "error": letter.error, "deliveries": letter.deliveries,
            }  # fmt: skip
            self._redis.xadd(key, said, maxlen=MAX_DEAD_LETTERS)
        seconds, _ = self._redis.time()  # type: ignore[misc]
        oldest = (int(seconds) - DEAD_LETTER_DAYS * 86_400) * 1000
        self._redis.xtrim(key, minid=f"{oldest}-0", approximate=True)


class RedisStateStore:
    """Redis role `online`."""

    def __init__(self, client: redis.Redis, *, tenant: str) -> None:
        self._redis = client
        self._lines: list[WatchingLine] = []
        """Those that no transaction uses."""
        self._tenant = tenant

    def beat(self, member: str, *, term_ms: int) -> list[str]:
        key = members_key(ROLE, self._tenant)
        seconds, micros = self._redis.time()  # type: ignore[misc]
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        pipe = self._redis.pipeline(transaction=True)
        pipe.zadd(key, {member: now_ms})
        pipe.zremrangebyscore(key, "-inf", f"({now_ms - term_ms}")
        pipe.pexpire(key, 2 * term_ms)
        pipe.zrange(key, 0, -1)
        return sorted(name.decode() for name in pipe.execute()[-1])

    def leave(self, member: str) -> None:
        self._redis.zrem(members_key(ROLE, self._tenant), member)

    def claim(self, partition: int, member: str, *, term_ms: int, force: bool = False) -> tuple[str, str | None] | None:
        owner, fence, delivering = self._keys_of(partition)
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.watch(owner, fence)
            now: Any = pipe.mget([owner, fence, delivering])
            if now[0] is not None and not force:
                return None
            ours = next_fence(now[1], member)
            pipe.multi()
            pipe.set(fence, ours)
            pipe.set(owner, ours, px=term_ms)
            if now[2] is None:
                pipe.set(delivering, b"")
            try:
                pipe.execute()
            except WatchError:
                return None
        return ours, None if now[2] is None else now[2].decode()

    def renew(self, claims: Claims, *, term_ms: int) -> set[int]:
        kept = set()
        for partition, ours in claims.items():
            owner, fence, _ = self._keys_of(partition)
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.watch(owner, fence)
                if pipe.get(fence) != ours.encode():
                    continue
                pipe.multi()
                pipe.set(owner, ours, px=term_ms)
                try:
                    pipe.execute()
                except WatchError:
                    continue
            kept.add(partition)
        return kept

    def release(self, partition: int, fence: str) -> None:
        owner, fence_at, delivering = self._keys_of(partition)
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.watch(fence_at)
            if pipe.get(fence_at) != fence.encode():
                return
            pipe.multi()
            pipe.delete(owner, delivering)
            try:
                pipe.execute()
            except WatchError:
                return

    def note_delivery(self, partition: int, words: str) -> None:
        self._redis.set(delivering_key(partition, self._tenant), words)

    def hashes(self, keys: Sequence[str]) -> Sequence[Mapping[bytes, bytes]]:
        return redis_hashes(self._redis)(keys)

    def _keys_of(self, partition: int) -> tuple[str, str, str]:
        keys = (owner_key, fence_key, delivering_key)
        owner, fence, delivering = (key(partition, self._tenant) for key in keys)
        return owner, fence, delivering

    @contextmanager
    def transaction(self, claims: Claims) -> Iterator[Transaction]:
        line = self._lines.pop() if self._lines else WatchingLine(self._redis)
        try:
            yield _RedisTransaction(line, claims, self._tenant)
        finally:
            self._lines.append(line)


class _RedisTransaction:
    def __init__(self, line: WatchingLine, claims: Claims, tenant: str) -> None:
        self._line = line
        self._claims = claims
        self._tenant = tenant
        self._positions: dict[int, str | None] | None = None

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        if self._positions is not None:
            return self._strings(keys)
        fences = [fence_key(partition, self._tenant) for partition in self._claims]
        positions = [applied_key(partition, self._tenant) for partition in self._claims]
        found = self._line.watch([*fences, *positions], keys[:KEYS_AT_ONCE])
        count = len(self._claims)
        lost = [p for (p, ours), now in zip(self._claims.items(), found, strict=False) if now != ours.encode()]
        if lost:
            raise FencedError(lost)
        applied = found[count : 2 * count]
        self._positions = {p: at.decode() if at else None for p, at in zip(self._claims, applied, strict=True)}
        return [*found[2 * count :], *self._strings(keys[KEYS_AT_ONCE:])]

    def _strings(self, keys: Sequence[str]) -> list[bytes | None]:
        return [value for some in _pieces(keys) for value in self._line.strings(some)]

    def positions(self) -> dict[int, str | None]:
        if self._positions is None:
            self.read([])
        assert self._positions is not None
        return self._positions

    def commit(self, changes: Changes) -> None:
        if not self._line.execute(self._commands(changes)):
            raise OvertakenError("a fence or an applied position changed while a batch was applied")

    def _commands(self, changes: Changes) -> Iterator[Command | Packed]:
        yield Packed(packed_sets(changes.writes), len(changes.writes))
        yield from hash_commands(changes.hashes)
        if changes.deletes:
            yield "DEL", *changes.deletes
        for partition, position in changes.positions.items():
            yield "SET", applied_key(partition, self._tenant), position
        for outcome, number in changes.counters.items():
            if number:
                yield "HINCRBY", speed_counters_key(self._tenant), outcome, number


def _pairs(fields: Any) -> Fields:
    """The fields of an entry, which come as name, value, name, value ..."""
    return dict(zip(fields[::2], fields[1::2], strict=True)) if fields else {}


def _pieces(keys: Sequence[Key]) -> Iterator[list[Key]]:
    """Not all at once."""
    for start in range(0, len(keys), KEYS_AT_ONCE):
        yield list(keys[start : start + KEYS_AT_ONCE])


def next_fence(newest: bytes | None, member: str) -> str:
    epoch = int(newest.partition(b":")[0]) + 1 if newest else 1
    return f"{epoch}:{member}"
