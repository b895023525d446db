"""From stream entries to session records and trend tables, with effects exactly once.

A batch: read the entries behind the applied positions, leave out duplicates (an entry counts only if its nonce is the
one in its dedup mark), fold what is left into the records of its subjects, and write records, identity edges, trend
tables, positions and counters in one transaction, which holds only while fences and positions are what they were. A
crash before it changes nothing, a crash after it repeats nothing, and an owner that was replaced writes nothing.

An entry that cannot be applied is given up after three deliveries and becomes a dead letter; the entries around it,
also those of its own subject, are applied in the same batch (their order does not matter, see `session_state`). When an
owner died at work, the next one delivers one entry at a time, and notes each before it does: an entry that kills three
processes is buried unread. Letters are written before the transaction, each position once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.keys import session_key, session_key_before, trend_key
from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED
from feature_repo.contracts.session_record import SessionState, Votes, pack_session, unpack_session
from feature_repo.contracts.times import to_micros
from feature_repo.contracts.trend_record import MICROS, WINDOWS, TrendTable, pack_trend, unpack_trend
from serving.speed.bot_guard import BotGuard
from serving.speed.entries import Entry, read_entry
from serving.speed.identity_edges import IdentityEdges
from serving.speed.metrics import ConsumerMetrics, timed
from serving.speed.ownership import Ownership
from serving.speed.positions import START, position_number, receipt_micros
from serving.speed.session_state import fold_event
from serving.speed.stores import (
    Changes,
    DeadLetter,
    EventStreams,
    FencedError,
    Fields,
    OvertakenError,
    StateStore,
    Transaction,
    Write,
)
from serving.speed.trends import VoteChange, buckets_of, vote_changes

logger = logging.getLogger("nightjar.speed")

MAX_DELIVERIES = 3
KEPT_TABLES = 256
"""Trend tables of all owned partitions that stay in memory between two batches."""

APPLIED, DUPLICATE, DEAD = "applied", "duplicate", "dead_lettered"
BOT = "bot"
"""Of the applied: entries of subjects that behave like bots."""
DAMAGED_SESSION, DAMAGED_TREND = "damaged_session", "damaged_trend"

Rows = Sequence[tuple[str, Fields]]
_WINDOW = {window.number: window for window in WINDOWS}


@dataclass(slots=True)
class _Care:
    """An owner died at work: so many entries are delivered alone; `position` was delivered `deliveries` times."""

    entries_left: int
    position: str | None = None
    deliveries: int = 0


@dataclass(slots=True)
class _Batch:
    """What one transaction is about to do."""

    partitions: dict[int, str]
    """Partition -> its position afterwards."""
    alone: list[tuple[int, str, int]] = field(default_factory=list)
    """Entries delivered alone: partition, position, and how often each was delivered before."""
    counts: Counter[str] = field(default_factory=Counter)
    letters: list[DeadLetter] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)


class Applier:
    """Applies what the partitions that `ownership` holds have to say. Not thread-safe."""

    def __init__(
        self,
        streams: EventStreams,
        store: StateStore,
        ownership: Ownership,
        *,
        tenant: str,
        batch: int,
        session_ttl_seconds: int,
        metrics: ConsumerMetrics | None = None,
    ) -> None:
        self.ownership = ownership
        self._streams = streams
        self._store = store
        self._tenant = tenant
        self._batch = batch
        self._ttl = session_ttl_seconds
        self._metrics = metrics or ConsumerMetrics()
        self._positions: dict[int, str] = {}
        self._cares: dict[int, _Care] = {}
        self._tables: dict[tuple[int, int, int], TrendTable] = {}
        self._guard = BotGuard()
        self._identity = IdentityEdges(store.hashes, tenant=tenant, ttl_seconds=session_ttl_seconds)

    def resume(self) -> None:
        """Own all partitions, whoever did, and begin at their applied positions; at the beginning in an empty store."""
        self.ownership.seize_all()
        self._take_up()

    def consume(self, *, block_ms: int | None) -> int:
        """Apply what is there, waiting up to `block_ms` (None: not at all) for the first entry; entries handled."""
        try:
            self._take_up()
            if not self._positions:
                return 0
            count = 1 if self._cares else self._batch
            found = self._streams.read(self._positions, count=count, block_ms=block_ms)
            for partition in set(self._cares) - {partition for partition, _ in found}:
                del self._cares[partition]  # nothing was under way there
            if not found:
                self._compare_positions()
            handled = 0
            for group in self._groups(found):
                handled += self._apply(group)
            return handled
        except FencedError as error:
            logger.warning("%s; what was read of them is theirs", error)
            self._metrics.fenced.inc()
            for partition in error.partitions:
                self.ownership.lose(partition)
                self._forget(partition)
        except OvertakenError as error:
            logger.warning("%s; reading anew", error)
            self._metrics.fenced.inc()
            for partition in list(self._positions):
                self._forget(partition)
        return 0

    def _take_up(self) -> None:
        """Forget partitions that were lost; find out where those that were gained are to be continued."""
        for partition in set(self._positions) - set(self.ownership.claims):
            self._forget(partition)
        new = {p: fence for p, fence in self.ownership.claims.items() if p not in self._positions}
        if new:
            with self._store.transaction(new) as transaction:
                positions = transaction.positions()
            self._positions |= {partition: at or START for partition, at in positions.items()}
        for partition, left in self.ownership.left_behind.items():
            self._forget_tables(partition)
            if left is not None:
                position, _, deliveries = left.partition(" ")
                self._cares[partition] = _Care(self._batch, position, int(deliveries or 1))
        self.ownership.left_behind.clear()

    def _compare_positions(self) -> None:
        """While nothing comes: see whether the store still is where we left it; else its streams are read anew."""
        with self._store.transaction({p: self.ownership.claims[p] for p in self._positions}) as transaction:
            self._is_where_we_are(transaction)

    def _forget(self, partition: int) -> None:
        self._positions.pop(partition, None)
        self._cares.pop(partition, None)
        self._forget_tables(partition)

    def _forget_tables(self, partition: int) -> None:
        self._identity.forget()
        for key in [key for key in self._tables if key[0] == partition]:
            del self._tables[key]

    def _groups(self, found: Iterable[tuple[int, Rows]]) -> list[dict[int, Rows]]:
        """Partitions that go into one transaction: about a batch together; one that needs care goes alone."""
        groups: list[dict[int, Rows]] = []
        room = 0
        for partition, rows in found:
            if not groups or room < len(rows) or self._cares:
                groups.append({})
                room = max(self._batch, len(rows))
            groups[-1][partition] = rows
            room -= len(rows)
        return groups

    def _apply(self, group: dict[int, Rows]) -> int:
        batch = _Batch({partition: rows[-1][0] for partition, rows in group.items()})
        claims = {partition: self.ownership.claims[partition] for partition in group}
        with timed(self._metrics.apply_seconds.observe):
            deliverable = {
                partition: rows
                for partition, rows in group.items()
                if partition not in self._cares or self._may_deliver(partition, rows, batch)
            }
            with self._noting(batch):
                entries = [
                    read_entry(partition, position, fields)
                    for partition, rows in deliverable.items()
                    for position, fields in rows
                ]
            batch.letters += [_letter(e, e.problem or "", 1) for e in entries if e.problem is not None]
            live = self._without_duplicates(entries, batch.counts)
            by_key = self._by_session_key(live)
            try:
                with self._store.transaction(claims) as transaction:
                    records = self._records(transaction, list(by_key), batch)
                    if not self._is_where_we_are(transaction):
                        return 0
                    with self._noting(batch):
                        votes = self._fold(by_key, records, batch)
                    self._count_votes(transaction, votes, batch)
                    batch.changes.hashes += self._identity.news(_applied_events(live, batch.letters))
                    batch.counts[DEAD] += len(batch.letters)
                    self._bury(batch.letters)
                    batch.changes.positions = batch.partitions
                    batch.changes.counters = batch.counts
                    transaction.commit(batch.changes)
            except BaseException:
                for partition in group:
                    self._forget_tables(partition)  # they may hold votes that were not written
                raise
        self._positions |= batch.partitions
        handled = sum(len(rows) for rows in group.values())
        self._metrics.batch_entries.observe(handled)
        return handled

    def _may_deliver(self, partition: int, rows: Rows, batch: _Batch) -> bool:
        """Whether an entry is to be delivered alone; it is buried when that has ended badly often enough."""
        care = self._cares[partition]
        position, fields = rows[0]
        so_far = care.deliveries if position == care.position else 1
        care.entries_left -= 1
        if care.entries_left <= 0:
            del self._cares[partition]
        if so_far >= MAX_DELIVERIES:
            entry = Entry(partition, position, fields.get(b"event", b""), fields.get(b"nonce", b""), None, None)
            batch.letters.append(_letter(entry, f"its consumer died in each of {so_far} deliveries", so_far))
            return False
        batch.alone.append((partition, position, so_far))
        return True

    @contextmanager
    def _noting(self, batch: _Batch) -> Iterator[None]:
        """While this runs, a death of the process is laid at the door of the entry that is delivered alone; while
        Redis is waited for it is not."""
        for partition, position, so_far in batch.alone:
            self._store.note_delivery(partition, position, so_far + 1)
        yield
        for partition, position, so_far in batch.alone:
            self._store.note_delivery(partition, position, so_far)

    def _without_duplicates(self, entries: Sequence[Entry], counts: Counter[str]) -> list[Entry]:
        """The readable entries whose nonce is the mark's. A mark that is gone (24 h) can refuse nobody."""
        readable = [entry for entry in entries if entry.event is not None]
        marks = self._streams.marks([(e.partition, e.event["event_id"]) for e in readable if e.event is not None])
        live = [e for e, mark in zip(readable, marks, strict=True) if mark is None or mark == e.nonce]
        counts[DUPLICATE] += len(readable) - len(live)
        return live

    def _is_where_we_are(self, transaction: Transaction) -> bool:
        """Whether the store's positions are those that the batch was read behind (they are not after a restore)."""
        stored = {partition: at or START for partition, at in transaction.positions().items()}
        moved = {partition: at for partition, at in stored.items() if at != self._positions[partition]}
        for partition, at in moved.items():
            logger.warning("partition %d is at %s, not at %s; reading anew", partition, at, self._positions[partition])
            self._forget(partition)
            self._positions[partition] = at
        return not moved

    def _fold(
        self, by_key: Mapping[str, Sequence[Entry]], records: Sequence[bytes | None], batch: _Batch
    ) -> dict[int, list[VoteChange]]:
        """New records into `batch`; the vote changes of each partition, without those that no reader will look at."""
        votes: dict[int, list[VoteChange]] = {}
        for (key, entries), record in zip(by_key.items(), records, strict=True):
            before, after, packed = self._fold_subject(record, entries, batch)
            if not packed:
                continue
            batch.changes.writes.append(Write(key, packed, self._ttl))
            changes = vote_changes(before, after)
            if changes:
                newest = receipt_micros(entries[-1].position) // MICROS
                votes.setdefault(entries[0].partition, []).extend(
                    change for change in changes if _WINDOW[change.window].expires_at(change.bucket) > newest
                )
        return votes

    def _by_session_key(self, live: Iterable[Entry]) -> dict[str, list[Entry]]:
        """Session keys in the order of their first entry, each with its entries in theirs."""
        found: dict[str, list[Entry]] = {}
        for entry in live:
            assert entry.subject is not None
            found.setdefault(entry.subject, []).append(entry)
        return {session_key(subject, self._tenant): entries for subject, entries in found.items()}

    def _records(self, transaction: Transaction, keys: Sequence[str], batch: _Batch) -> list[bytes | None]:
        """The stored record of each subject; of a subject without one, that of format 1, which is replaced."""
        found = transaction.read(keys)
        missing = [at for at, record in enumerate(found) if record is None]
        if not missing:
            return found
        old_keys = [session_key_before(keys[at]) for at in missing]
        for at, key, record in zip(missing, old_keys, transaction.read(old_keys), strict=True):
            if record is not None:
                found[at] = record
                batch.changes.deletes.append(key)
        return found

    def _fold_subject(
        self, record: bytes | None, entries: Sequence[Entry], batch: _Batch
    ) -> tuple[Votes, Votes, bytes]:
        """(votes before, votes after, the new record); the record is empty when nothing could be applied.

        An entry that fails is delivered again, to a fresh copy, until it has failed MAX_DELIVERIES times.
        """
        failures: dict[str, int] = {}
        good = list(entries)
        while good:
            state = self._state(record, batch.counts if not failures else Counter())
            before = {period: dict(votes) for period, votes in state.votes.items()}
            entry, of_bots = good[0], 0
            try:
                for entry in good:
                    assert entry.event is not None
                    of_bots += self._is_bot(state, entry.event, entry)
                    fold_event(state, entry.event)
                    if failures:
                        pack_session(state)  # who is to blame for a record that cannot be written
                packed = pack_session(state)
            except Exception as error:  # one entry must never hold up the others
                failures[entry.position] = failures.get(entry.position, 0) + 1
                if failures[entry.position] >= MAX_DELIVERIES:
                    good.remove(entry)
                    words = f"{type(error).__name__}: {error}"
                    batch.letters.append(_letter(entry, words, failures[entry.position]))
                continue
            batch.counts[APPLIED] += len(good)
            batch.counts[BOT] += of_bots
            return before, state.votes, packed
        return {}, {}, b""

    def _is_bot(self, state: SessionState, event: Mapping[str, Any], entry: Entry) -> bool:
        """Whether the entry's subject behaves like a bot; its record says so before the event is folded in."""
        assert entry.subject is not None
        micros, position = to_micros(event["timestamp"]), position_number(entry.position)
        return self._guard.judge(state, event, entry.subject, micros=micros, position=position)

    def _state(self, record: bytes | None, counts: Counter[str]) -> SessionState:
        """A record that cannot be read starts anew, without consent: what it said about that is unknown."""
        if record is None:
            return SessionState()
        try:
            return unpack_session(record)
        except ContractError:
            counts[DAMAGED_SESSION] += 1
            return SessionState(flags=FLAG_PERSONALIZE_DENIED)

    def _count_votes(self, transaction: Transaction, votes: Mapping[int, Sequence[VoteChange]], batch: _Batch) -> None:
        touched = [(p, *bucket) for p, changes in votes.items() for bucket in buckets_of(changes)]
        self._load_tables(transaction, touched, batch.counts)
        for partition, changes in votes.items():
            for change in changes:
                table = self._tables[partition, change.window, change.bucket]
                if change.is_withdrawn:
                    table.withdraw(change.item_id)
                else:
                    table.add(change.item_id)
        for partition, window, bucket in touched:
            key = trend_key(window, bucket, partition, self._tenant)
            packed = pack_trend(self._tables[partition, window, bucket])
            batch.changes.writes.append(Write(key, packed, until=_WINDOW[window].expires_at(bucket)))

    def _load_tables(
        self, transaction: Transaction, touched: Sequence[tuple[int, int, int]], counts: Counter[str]
    ) -> None:
        if len(self._tables) > KEPT_TABLES:
            self._tables.clear()
        missing = [key for key in touched if key not in self._tables]
        if not missing:
            return
        stored = transaction.read([trend_key(window, bucket, p, self._tenant) for p, window, bucket in missing])
        for (partition, window, bucket), record in zip(missing, stored, strict=True):
            table = TrendTable(window, bucket)
            if record is not None:
                try:
                    table = unpack_trend(record)
                except ContractError:
                    counts[DAMAGED_TREND] += 1
            self._tables[partition, window, bucket] = table

    def _bury(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            logger.warning(
                "partition %d: entry %s cannot be applied: %s", letter.partition, letter.position, letter.error
            )
        self._streams.bury(letters)


def _applied_events(live: Iterable[Entry], letters: Iterable[DeadLetter]) -> list[Mapping[str, Any]]:
    """The events that count: a dead letter says nothing about identity either."""
    dead = {(letter.partition, letter.position) for letter in letters}
    return [e.event for e in live if e.event is not None and (e.partition, e.position) not in dead]


def _letter(entry: Entry, error: str, deliveries: int) -> DeadLetter:
    return DeadLetter(entry.partition, entry.position, entry.raw, entry.nonce, error, deliveries)
