"""From stream entries to session records and trend tables, with effects exactly once.

A batch: read the entries behind the applied positions, leave out duplicates (an event counts only if its nonce is the
one in its dedup mark), fold what is left into the records of its subjects, and write records, identity edges, trend
tables, positions and counters in one transaction, which holds only while fences and positions are what they were. A
crash before it changes nothing, a crash after it repeats nothing, and an owner that was replaced writes nothing. A
person who comes often in a batch costs one record; but batches stay small while more waits than one takes, for people
are answered between two of them.

An event that cannot be applied is given up after three deliveries and becomes a dead letter; the events around it, also
those of its own subject, are applied in the same batch (their order does not matter, see `session_state`). When an
owner died at work, the next one is careful (`care`): an event that kills three processes is buried unread. Letters are
written before the transaction, each place once.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from feature_repo.contracts import session_record
from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.keys import session_key_before
from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED
from feature_repo.contracts.session_record import SessionState
from feature_repo.contracts.trend_record import MICROS
from serving.native import parts
from serving.speed import bot_guard, session_state, trends
from serving.speed import entries as of_log
from serving.speed.care import GROUP_EVENTS, Care, Watch
from serving.speed.entries import Entry, LoggedEvent, first_entries, place_of, read_logged, split_rows
from serving.speed.identity_edges import IdentityEdges
from serving.speed.metrics import ConsumerMetrics, timed
from serving.speed.ownership import Ownership
from serving.speed.positions import START, position_number, receipt_micros
from serving.speed.session_state import VOTING_TYPES
from serving.speed.stores import (
    Changes,
    DeadLetter,
    EventStreams,
    FencedError,
    OvertakenError,
    StateStore,
    Transaction,
    Write,
)
from serving.speed.trend_tables import TrendTables
from serving.speed.trends import Stand, VoteChange

logger = logging.getLogger("nightjar.speed")

if parts.subjects is not None:
    fold_event, pack_session = parts.subjects.fold_event, parts.subjects.pack_session
else:
    fold_event, pack_session = session_state.fold_event, session_record.pack_session
if parts.batches is not None:
    read_entries, by_session_key = parts.batches.read_entries, parts.batches.by_session_key
    stand_of, vote_changes = parts.batches.stand_of, parts.batches.vote_changes
    BotGuard = parts.batches.BotGuard
else:
    stand_of, vote_changes = trends.stand_of, trends.vote_changes
    read_entries, by_session_key, BotGuard = of_log.read_entries, of_log.by_session_key, bot_guard.BotGuard
fold_records = None if parts.folding is None else parts.folding.fold_records
unpack_session = session_record.unpack_session if parts.opening is None else parts.opening.unpack_session

MAX_DELIVERIES = 3
FEW_SUBJECTS = 64
"""Of so many, the old records of those who were not met before are read in the same round trip; of more, and of all
others, only where there is no new one."""
MET_KEYS = 65_536
"""Session keys of those who were met; when there are more, all are forgotten."""
KEPT_STATES = 4096
"""Session states that stay in memory, unpacked, about 10 kB each: people come in sessions. What the store holds decides
whether one is still true. Native code folds into packed records and keeps states of odd ones alone."""

APPLIED, DUPLICATE, DEAD = "applied", "duplicate", "dead_lettered"
BOT = "bot"
"""Of the applied: entries of subjects that behave like bots."""
DAMAGED_SESSION = "damaged_session"


@dataclass(slots=True)
class _Batch:
    """What one transaction is about to do."""

    partitions: dict[int, str]
    """Partition -> its position afterwards."""
    watch: Watch
    counts: Counter[str] = field(default_factory=Counter)
    letters: list[DeadLetter] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)


class _Stored(NamedTuple):
    """A subject's record, None: there is none; and the key that it leaves, if it lies at another than its own."""

    record: bytes | None
    replaced: str | None = None


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
        self._cares: dict[int, Care] = {}
        self._full: list[int] = []
        """Partitions in which more waited at their last read than a batch takes; the one whose turn it is first."""
        self.reached_micros = 0
        """When the log took the newest of what the last step applied (us since 1970); 0 when it applied nothing."""
        self._entry_events = 1.0
        """How many events the entries of the last read had in the mean."""
        self._tables = TrendTables(tenant)
        self._states: OrderedDict[str, tuple[bytes, SessionState]] = OrderedDict()
        """Session key -> (record, the same unpacked), heard of longest ago first."""
        self._met: set[str] = set()
        """Session keys for which a record was written."""
        self._guard = BotGuard()
        self._identity = IdentityEdges(store.hashes, tenant=tenant, ttl_seconds=session_ttl_seconds)

    def resume(self) -> None:
        """Own all partitions, whoever did, and begin at their applied positions; at the beginning in an empty store."""
        self.ownership.seize_all()
        self._take_up()

    @property
    def is_behind(self) -> bool:
        """Whether more waited at the last read than one batch takes."""
        return bool(self._full)

    def consume(self, *, block_ms: int | None) -> int:
        """Apply what is there, waiting up to `block_ms` (None: not at all) for the first entry; entries handled.

        Of the partitions in which more waits than a batch takes it reads one at a time, and does not wait.
        """
        self.reached_micros = 0
        try:
            self._take_up()
            if not self._positions:
                return 0
            limit = min(self._batch, GROUP_EVENTS) if self._cares else self._batch
            count = max(1, int(limit / self._entry_events))
            found = self._next(count, block_ms)
            if not found:
                self._compare_positions()
            handled = 0
            for group in self._groups(found, limit):
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

    def _next(self, count: int, block_ms: int | None) -> Sequence[tuple[int, Sequence[Entry]]]:
        """What is to be applied next, at most `count` entries of a partition; nothing only when nothing is there."""
        while True:
            behind = {p: at for p, at in self._positions.items() if p not in self._full[1:]}
            rows = self._streams.read(behind, count=count, block_ms=None if self._full else block_ms)
            found = [(partition, split_rows(some)) for partition, some in rows]
            for partition in set(self._cares) & set(behind) - {partition for partition, _ in found}:
                del self._cares[partition]  # nothing was under way there
            self._see_sizes(found, count)
            if found or not self._full:
                return found

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
                self._cares[partition] = Care.after(left, events=self._batch)
        self.ownership.left_behind.clear()

    def _compare_positions(self) -> None:
        """While nothing comes: see whether the store still is where we left it; else its streams are read anew."""
        with self._store.transaction({p: self.ownership.claims[p] for p in self._positions}) as transaction:
            self._is_where_we_are(transaction)

    def _forget(self, partition: int) -> None:
        self._positions.pop(partition, None)
        self._cares.pop(partition, None)
        self._full = [other for other in self._full if other != partition]
        self._forget_tables(partition)

    def _forget_tables(self, partition: int) -> None:
        self._identity.forget()
        self._tables.forget(partition)

    def _see_sizes(self, found: Sequence[tuple[int, Sequence[Entry]]], count: int) -> None:
        """Note which streams had as many entries as were asked for, and how large their entries are."""
        sizes = {partition: len(entries) for partition, entries in found}
        if sizes:
            self._entry_events = sum(len(entry.events) for _, some in found for entry in some) / sum(sizes.values())
        self._full = [*self._full[1:], *(partition for partition, size in sizes.items() if size >= count)]

    def _groups(self, found: Iterable[tuple[int, Sequence[Entry]]], limit: int) -> list[dict[int, Sequence[Entry]]]:
        """What goes into one transaction: of each partition at most `limit` events, or one entry, and about as many
        together. A partition that needs care goes alone. What is left over is read again."""
        groups: list[dict[int, Sequence[Entry]]] = []
        room = 0
        for partition, entries in found:
            care = self._cares.get(partition)
            some = first_entries(entries, limit) if care is None else care.first_of(entries)
            size = sum(len(entry.events) for entry in some)
            if size > room or care is not None:
                groups.append({})
                room = max(limit, size)
            groups[-1][partition] = some
            room = 0 if care is not None else room - size
        return groups

    def _apply(self, group: dict[int, Sequence[Entry]]) -> int:
        watch = Watch()
        for partition, entries in group.items():
            if partition in self._cares:
                note = partial(self._store.note_delivery, partition)
                watch = Watch(self._cares[partition], note, end=entries[-1].position)
        batch = _Batch({partition: entries[-1].position for partition, entries in group.items()}, watch)
        claims = {partition: self.ownership.claims[partition] for partition in group}
        with timed(self._metrics.apply_seconds.observe):
            logged = self._read(group, batch)
            readable = [one for one in logged if one.event is not None]
            marks = self._streams.ask_marks([(e.partition, e.event["event_id"]) for e in readable if e.event])
            try:
                with self._store.transaction(claims) as transaction:
                    by_key = by_session_key(readable, self._tenant)
                    records = self._records(transaction, list(by_key))
                    live = _without_duplicates(readable, marks(), batch.counts)
                    if not self._is_where_we_are(transaction):
                        return 0
                    if len(live) < len(readable):
                        by_key = by_session_key(live, self._tenant)
                    with watch.at_work():
                        votes = self._fold(by_key, records, batch)
                    batch.changes.writes += self._tables.count(transaction, votes, batch.counts)
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
        self.reached_micros = max(self.reached_micros, *map(receipt_micros, batch.partitions.values()))
        for partition, entries in group.items():
            if partition in self._cares and self._cares[partition].is_over(entries):
                del self._cares[partition]
        handled = sum(len(entry.events) for entries in group.values() for entry in entries)
        self._metrics.batch_entries.observe(handled)
        return handled

    def _read(self, group: Mapping[int, Sequence[Entry]], batch: _Batch) -> list[LoggedEvent]:
        """The events of these entries; letters of those that nobody can read or may read."""
        logged: list[LoggedEvent] = []
        watch = batch.watch
        with watch.at_work():
            for partition, entries in group.items():
                if not watch.is_close:
                    logged += read_entries(partition, entries, read_logged)
                    continue
                for position, events in entries:
                    for number, (raw, nonce) in enumerate(events):
                        place = place_of(position, number)
                        if watch.is_guilty(place):
                            words = f"its consumer died in each of {MAX_DELIVERIES} deliveries"
                            letter = DeadLetter(partition, position, number, raw, nonce, words, MAX_DELIVERIES)
                            batch.letters.append(letter)
                            continue
                        watch.before(place)
                        logged.append(read_logged(partition, position, number, raw, nonce))
        batch.letters += [_letter(one, one.problem, 1) for one in logged if one.problem is not None]
        return logged

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
        self, by_key: Mapping[str, Sequence[LoggedEvent]], records: Mapping[str, _Stored], batch: _Batch
    ) -> dict[int, list[VoteChange]]:
        """New records into `batch`; the vote changes of each partition, without those that no reader will look at."""
        votes: dict[int, list[VoteChange]] = {}

        def fold_one(key: str, logged: Sequence[LoggedEvent]) -> None:
            record, replaced = records[key]
            before, after, packed = self._fold_subject(key, record, logged, batch)
            if not packed:
                return
            batch.changes.writes.append(Write(key, packed, self._ttl))
            if replaced is not None:
                batch.changes.deletes.append(replaced)
            if before is not None:
                newest = receipt_micros(logged[-1].position) // MICROS
                changes = vote_changes(before, after, newest=newest)
                if changes:
                    votes.setdefault(logged[0].partition, []).extend(changes)

        if fold_records is not None and not batch.watch.is_close:
            done = fold_records(by_key, records, self._guard, self._ttl, batch.changes.writes, votes, fold_one)
            batch.counts[APPLIED] += done.applied
            batch.counts[BOT] += done.of_bots
        else:
            for key, logged in by_key.items():
                fold_one(key, logged)
        if len(self._met) > MET_KEYS:
            self._met.clear()
        self._met.update(by_key)
        return votes

    def _records(self, transaction: Transaction, keys: Sequence[str]) -> dict[str, _Stored]:
        """What is stored of each subject; of one without a record, that of format 1, which is to be replaced."""
        strangers = [key for key in keys if key not in self._met] if len(keys) <= FEW_SUBJECTS else []
        both = transaction.read([*keys, *map(session_key_before, strangers)])
        found = {key: _Stored(record) for key, record in zip(keys, both, strict=False)}
        old = dict(zip(strangers, both[len(keys) :], strict=True))
        missing = [key for key in keys if found[key].record is None]
        unasked = [key for key in missing if key not in old]
        if unasked:
            old.update(zip(unasked, transaction.read([*map(session_key_before, unasked)]), strict=True))
        for key in missing:
            if old[key] is not None:
                found[key] = _Stored(old[key], session_key_before(key))
        return found

    def _fold_subject(
        self, key: str, record: bytes | None, logged: Sequence[LoggedEvent], batch: _Batch
    ) -> tuple[Stand | None, Stand, bytes]:
        """(votes before, None: they are unchanged; votes after; the new record, empty when nothing could be applied).

        An event that fails is delivered again, to a fresh copy, until it has failed MAX_DELIVERIES times.
        """
        failures: dict[tuple[str, int], int] = {}
        good = list(logged)
        found = self._fold_at_once(key, record, good, batch)
        if not isinstance(found, int):
            return found
        if found >= 0:
            failures[good[found].position, good[found].number] = 1
        watch, judge = batch.watch, self._guard.judge  # the record says who is a bot before the event is folded in
        is_close = watch.is_close
        while good:
            state = self._state(key, record, batch.counts if not failures else Counter())
            before = None
            if not VOTING_TYPES.isdisjoint([one.event["event_type"] for one in good if one.event is not None]):
                before = stand_of(state)
            one, of_bots = good[0], 0
            try:
                for one in good:
                    assert one.event is not None
                    assert one.subject is not None
                    if is_close:
                        watch.before(one.place)
                    place = position_number(one.position) << 16 | one.number
                    of_bots += judge(state, one.event, one.subject, micros=one.micros, position=place)
                    fold_event(state, one.event)
                    if failures:
                        pack_session(state)  # who is to blame for a record that cannot be written
                packed = pack_session(state)
            except Exception as error:  # one event must never hold up the others
                where = (one.position, one.number)
                failures[where] = failures.get(where, 0) + 1
                if failures[where] >= MAX_DELIVERIES:
                    good.remove(one)
                    words = f"{type(error).__name__}: {error}"
                    batch.letters.append(_letter(one, words, failures[where]))
                continue
            batch.counts[APPLIED] += len(good)
            batch.counts[BOT] += of_bots
            self._states[key] = (packed, state)
            if len(self._states) > KEPT_STATES:
                self._states.popitem(last=False)
            return before, Stand(state.votes, state.regions), packed
        return None, Stand({}, {}), b""

    def _fold_at_once(
        self, key: str, record: bytes | None, logged: list[LoggedEvent], batch: _Batch
    ) -> tuple[Stand | None, Stand, bytes] | int:
        """The first try of `_fold_subject` in native code; or the number of the event that failed, -1: nothing was
        tried."""
        if parts.batches is None or batch.watch.is_close:
            return -1
        found = parts.batches.fold_subject(
            self._states, KEPT_STATES, self._guard, stand_of, fold_event, pack_session, key, record, logged
        )
        if isinstance(found, int):
            return found
        before, state, packed, of_bots = found
        batch.counts[APPLIED] += len(logged)
        batch.counts[BOT] += of_bots
        return before, Stand(state.votes, state.regions), packed

    def _state(self, key: str, record: bytes | None, counts: Counter[str]) -> SessionState:
        """What the record says, for the caller to change. A record that cannot be read starts anew, without consent:
        what it said about that is unknown."""
        kept = self._states.pop(key, None)  # whoever fails after changing it leaves nothing behind
        if record is None:
            return SessionState()
        if kept is not None and kept[0] == record:
            return kept[1]
        try:
            return unpack_session(record)
        except ContractError:
            counts[DAMAGED_SESSION] += 1
            return SessionState(flags=FLAG_PERSONALIZE_DENIED)

    def _bury(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            place = place_of(letter.position, letter.number)
            logger.warning("partition %d: event %s cannot be applied: %s", letter.partition, place, letter.error)
        self._streams.bury(letters)


def _without_duplicates(
    readable: Sequence[LoggedEvent], marks: Sequence[bytes | None], counts: Counter[str]
) -> list[LoggedEvent]:
    """The events whose nonce is the mark's. A mark that is gone (24 h) can refuse nobody."""
    live = [e for e, mark in zip(readable, marks, strict=True) if mark is None or mark == e.nonce]
    counts[DUPLICATE] += len(readable) - len(live)
    return live


def _applied_events(live: Iterable[LoggedEvent], letters: Iterable[DeadLetter]) -> list[Mapping[str, Any]]:
    """The events that count: a dead letter says nothing about identity either."""
    dead = {(letter.partition, letter.position, letter.number) for letter in letters}
    if not dead:
        return [one.event for one in live if one.event is not None]
    return [
        one.event for one in live if one.event is not None and (one.partition, one.position, one.number) not in dead
    ]


def _letter(one: LoggedEvent, error: str, deliveries: int) -> DeadLetter:
    return DeadLetter(one.partition, one.position, one.number, one.raw, one.nonce, error, deliveries)
