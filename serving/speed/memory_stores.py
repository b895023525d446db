"""The consumer's two stores in memory: twins of `stores.RedisEventStreams` and `stores.RedisStateStore`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from feature_repo.contracts.keys import (
    applied_key,
    delivering_key,
    fence_key,
    owner_key,
)
from serving.speed.stores import (
    Changes,
    Claims,
    DeadLetter,
    FencedError,
    Fields,
    OvertakenError,
    Transaction,
    next_fence,
)


class MemoryEventStreams:
    """The twin of role `log`: `entries[partition]` is a list of (position, fields); never waits."""

    def __init__(self) -> None:
        self.entries: dict[int, list[tuple[str, Fields]]] = {}
        self.dedup: dict[tuple[int, str], bytes] = {}
        self.letters: list[DeadLetter] = []

    def read(
        self, after: Mapping[int, str], *, count: int, block_ms: int | None
    ) -> list[tuple[int, list[tuple[str, Fields]]]]:
        del block_ms
        found = []
        for partition, position in after.items():
            behind = [row for row in self.entries.get(partition, []) if _order(row[0]) > _order(position)][:count]
            if behind:
                found.append((partition, behind))
        return found

    def ask_marks(self, events: Sequence[tuple[int, str]]) -> Callable[[], list[bytes | None]]:
        return lambda: [self.dedup.get(event) for event in events]

    def bury(self, letters: Sequence[DeadLetter]) -> None:
        known = {letter[:3] for letter in self.letters}
        self.letters += [letter for letter in letters if letter[:3] not in known]


def _order(position: str) -> tuple[int, int]:
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds), int(sequence)


class MemoryStateStore:
    """The twin of role `online`, by the keys of Redis. `now_ms` is its clock; `until` says when a key's life ends."""

    def __init__(self, *, tenant: str, now_ms: Callable[[], int]) -> None:
        self._tenant = tenant
        self._now_ms = now_ms
        self.strings: dict[str, bytes] = {}
        self.until: dict[str, int] = {}
        self.fields: dict[str, dict[bytes, bytes]] = {}
        self.counters: dict[str, int] = {}
        self._members: dict[str, int] = {}

    def get(self, key: str) -> bytes | None:
        """The string at `key`, unless its life is over."""
        if self.until.get(key, self._now_ms() + 1) <= self._now_ms():
            self.strings.pop(key, None)
            self.until.pop(key, None)
        return self.strings.get(key)

    def put(self, key: str, value: bytes, *, until_ms: int | None = None) -> None:
        """SET, with or without an end."""
        self.strings[key] = value
        self.until.pop(key, None)
        if until_ms is not None:
            self.until[key] = until_ms

    def beat(self, member: str, *, term_ms: int) -> list[str]:
        now = self._now_ms()
        self._members[member] = now
        self._members = {name: at for name, at in self._members.items() if at >= now - term_ms}
        return sorted(self._members)

    def leave(self, member: str) -> None:
        self._members.pop(member, None)

    def claim(self, partition: int, member: str, *, term_ms: int, force: bool = False) -> tuple[str, str | None] | None:
        owner, fence, delivering = (key(partition, self._tenant) for key in (owner_key, fence_key, delivering_key))
        if self.get(owner) is not None and not force:
            return None
        left = self.get(delivering)
        ours = next_fence(self.get(fence), member)
        self.put(fence, ours.encode())
        self.put(owner, ours.encode(), until_ms=self._now_ms() + term_ms)
        if left is None:
            self.put(delivering, b"")
        return ours, None if left is None else left.decode()

    def renew(self, claims: Claims, *, term_ms: int) -> set[int]:
        kept = {p for p, ours in claims.items() if self.get(fence_key(p, self._tenant)) == ours.encode()}
        for partition in kept:
            value = claims[partition].encode()
            self.put(owner_key(partition, self._tenant), value, until_ms=self._now_ms() + term_ms)
        return kept

    def release(self, partition: int, fence: str) -> None:
        if self.get(fence_key(partition, self._tenant)) == fence.encode():
            self.strings.pop(owner_key(partition, self._tenant), None)
            self.strings.pop(delivering_key(partition, self._tenant), None)

    def note_delivery(self, partition: int, words: str) -> None:
        self.put(delivering_key(partition, self._tenant), words.encode())

    def hashes(self, keys: Sequence[str]) -> Sequence[Mapping[bytes, bytes]]:
        return [dict(self.fields.get(key, {})) for key in keys]

    @contextmanager
    def transaction(self, claims: Claims) -> Iterator[Transaction]:
        yield _MemoryTransaction(self, claims, self._tenant)


class _MemoryTransaction:
    def __init__(self, store: MemoryStateStore, claims: Claims, tenant: str) -> None:
        self._store = store
        self._claims = claims
        self._tenant = tenant
        self._seen: dict[str, bytes | None] | None = None

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        if self._seen is None:
            lost = [
                partition
                for partition, ours in self._claims.items()
                if self._store.get(fence_key(partition, self._tenant)) != ours.encode()
            ]
            if lost:
                raise FencedError(lost)
            watched = [key(p, self._tenant) for p in self._claims for key in (fence_key, applied_key)]
            self._seen = {key: self._store.get(key) for key in watched}
        return [self._store.get(key) for key in keys]

    def positions(self) -> dict[int, str | None]:
        self.read([])
        assert self._seen is not None
        found = {partition: self._seen[applied_key(partition, self._tenant)] for partition in self._claims}
        return {partition: None if at is None else at.decode() for partition, at in found.items()}

    def commit(self, changes: Changes) -> None:
        store, now = self._store, self._store._now_ms()  # its twin's other half
        assert self._seen is not None
        if any(store.get(key) != value for key, value in self._seen.items()):
            raise OvertakenError("a fence or an applied position changed while a batch was applied")
        for key, value, seconds, until in changes.writes:
            end = until * 1000 if until is not None else None if seconds is None else now + seconds * 1000
            store.put(key, value, until_ms=end)
        for write in changes.hashes:
            kept = store.fields.setdefault(write.key, {})
            for name in write.dropped:
                kept.pop(name, None)
            kept.update({name.encode(): value for name, value in write.fields.items()})
        for key in changes.deletes:
            store.strings.pop(key, None)
        for partition, position in changes.positions.items():
            store.put(applied_key(partition, self._tenant), position.encode())
        for outcome, number in changes.counters.items():
            if number:
                store.counters[outcome] = store.counters.get(outcome, 0) + number
