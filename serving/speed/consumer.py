"""`python -m serving.speed.consumer`: from the event streams to the session records, with effects exactly once.

For each partition: read the entries behind the applied position, leave out duplicates (an entry counts only if its
nonce is the one in its dedup mark), apply them to the session records, and write records, applied position and counters
in one MULTI. That MULTI watches the applied position: a crash before it changes nothing, a crash after it repeats
nothing, and of two consumers the slower one changes nothing.

An entry that cannot be applied goes to the dead-letter stream (before the MULTI, so after a crash perhaps twice) and is
counted. Latency from the 202 to the record: milliseconds, because reads block on the streams.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import redis
from redis.exceptions import WatchError

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError, NightjarError
from feature_repo.contracts.events import subject_key
from feature_repo.contracts.keys import (
    EVENT_PARTITIONS,
    applied_key,
    dead_letter_stream_key,
    dedup_key,
    lease_key,
    session_key,
    speed_counters_key,
    stream_key,
)
from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED, SessionState, pack_session, unpack_session
from feature_repo.contracts.times import to_micros
from serving.settings import ServingSettings
from serving.speed.bot_guard import BotGuard
from serving.speed.entries import read_event
from serving.speed.metrics import ConsumerMetrics, StreamPositions, metrics_port, show_metrics, timed
from serving.speed.positions import START, position_number
from serving.speed.roles import Lease, run_role
from serving.speed.session_state import apply_event

logger = logging.getLogger("nightjar.speed")

BLOCK_MS = 1000
MAX_DEAD_LETTERS = 10_000

APPLIED, DUPLICATE, DEAD, DAMAGED_SESSION = "applied", "duplicate", "dead_lettered", "damaged_session"
BOT = "bot"
"""Of the applied: entries of subjects that behave like bots."""


class Entry(NamedTuple):
    """One stream entry; `event` is None, and `problem` says why, when it cannot be applied."""

    stream_id: str
    raw: bytes
    nonce: bytes
    event: Mapping[str, Any] | None
    subject: str | None
    problem: str | None = None


class Consumer:
    """Owns all partitions of one tenant."""

    def __init__(
        self,
        log: redis.Redis,
        online: redis.Redis,
        *,
        tenant: str,
        batch: int,
        session_ttl_seconds: int,
        metrics: ConsumerMetrics | None = None,
    ) -> None:
        self._log = log
        self._online = online
        self._tenant = tenant
        self._batch = batch
        self._ttl = session_ttl_seconds
        self._metrics = metrics or ConsumerMetrics()
        self._applied: dict[int, str] = {}
        self._guard = BotGuard()

    def resume(self) -> None:
        """Take the applied positions from the store; a store that was emptied starts at the beginning."""
        keys = [applied_key(partition, self._tenant) for partition in range(EVENT_PARTITIONS)]
        stored: Sequence[bytes | None] = self._online.mget(keys)  # type: ignore[assignment]
        self._applied = {p: value.decode() if value else START for p, value in enumerate(stored)}

    def consume(self, *, block_ms: int | None) -> int:
        """Apply what is there, waiting up to `block_ms` (None: not at all) for the first entry; entries handled."""
        streams = {stream_key(partition, self._tenant): partition for partition in range(EVENT_PARTITIONS)}
        cursors: Any = {stream: self._applied[partition] for stream, partition in streams.items()}
        found: Any = self._log.xread(cursors, count=self._batch, block=block_ms)
        handled = 0
        for stream, rows in found or []:
            partition = streams[stream.decode()]
            entries = [_read_entry(stream_id.decode(), fields) for stream_id, fields in rows if fields is not None]
            if entries:
                with timed(self._metrics.apply_seconds.observe):
                    self._apply(partition, entries)
                self._metrics.batch_entries.observe(len(entries))
                handled += len(entries)
        return handled

    def _apply(self, partition: int, entries: Sequence[Entry]) -> None:
        counts: Counter[str] = Counter()
        live = self._without_duplicates(partition, entries, counts)
        subjects = sorted({entry.subject for entry in live if entry.subject is not None})
        position = applied_key(partition, self._tenant)
        with self._online.pipeline(transaction=True) as pipe:
            pipe.watch(position)
            stored: Any = pipe.mget([position, *(session_key(subject, self._tenant) for subject in subjects)])
            applied = stored[0].decode() if stored[0] else START
            if applied != self._applied[partition]:
                self._applied[partition] = applied
                return
            states = {
                subject: self._state(record, counts) for subject, record in zip(subjects, stored[1:], strict=True)
            }
            counts[APPLIED] += len(live)
            for entry in live:
                assert entry.event is not None
                assert entry.subject is not None
                state, micros = states[entry.subject], to_micros(entry.event["timestamp"])
                number = position_number(entry.stream_id)
                counts[BOT] += self._guard.judge(state, entry.event, entry.subject, micros=micros, position=number)
                states[entry.subject] = apply_event(state, entry.event)
            counts[DEAD] += self._bury(partition, [entry for entry in entries if entry.problem is not None])
            pipe.multi()
            for subject, state in states.items():
                pipe.set(session_key(subject, self._tenant), pack_session(state), ex=self._ttl)
            pipe.set(position, entries[-1].stream_id)
            for outcome, count in counts.items():
                if count:
                    pipe.hincrby(speed_counters_key(self._tenant), outcome, count)
            try:
                pipe.execute()
            except WatchError:
                logger.warning("partition %d: another consumer moved the applied position; reading anew", partition)
                self.resume()
                return
        self._applied[partition] = entries[-1].stream_id

    def _without_duplicates(self, partition: int, entries: Sequence[Entry], counts: Counter[str]) -> list[Entry]:
        """The readable entries whose nonce is the mark's. A mark that is gone (24 h) can refuse nobody."""
        readable = [entry for entry in entries if entry.event is not None]
        if not readable:
            return []
        keys = [dedup_key(partition, e.event["event_id"], self._tenant) for e in readable if e.event is not None]
        marks: Sequence[bytes | None] = self._log.mget(keys)  # type: ignore[assignment]
        live = [e for e, mark in zip(readable, marks, strict=True) if mark is None or mark == e.nonce]
        counts[DUPLICATE] += len(readable) - len(live)
        return live

    def _state(self, record: bytes | None, counts: Counter[str]) -> SessionState:
        """A record that cannot be read starts anew, without consent: what it said about that is unknown."""
        if record is None:
            return SessionState()
        try:
            return unpack_session(record)
        except ContractError:
            counts[DAMAGED_SESSION] += 1
            return SessionState(flags=FLAG_PERSONALIZE_DENIED)

    def _bury(self, partition: int, dead: Sequence[Entry]) -> int:
        for entry in dead:
            logger.warning("partition %d: entry %s cannot be applied: %s", partition, entry.stream_id, entry.problem)
            letter: Any = {
                "stream": stream_key(partition, self._tenant),
                "position": entry.stream_id,
                "event": entry.raw,
                "error": entry.problem or "",
            }
            self._log.xadd(dead_letter_stream_key(self._tenant), letter, maxlen=MAX_DEAD_LETTERS)
        return len(dead)


def _read_entry(stream_id: str, fields: Mapping[bytes, bytes]) -> Entry:
    raw, nonce = fields.get(b"event", b""), fields.get(b"nonce", b"")
    try:
        event = read_event(stream_id, raw)
    except DataError as error:
        return Entry(stream_id, raw, nonce, None, None, str(error))
    return Entry(stream_id, raw, nonce, event, subject_key(event.get("user_id"), event.get("anonymous_id")))


def main() -> int:
    """Entry point; the exit code."""
    host, port = metrics_port()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    try:
        environment = Environment.from_mapping(os.environ)
        settings = ServingSettings.from_mapping(os.environ)
        metrics = ConsumerMetrics()
        metrics.registry.register(StreamPositions.from_environment("consumer", environment))
        show_metrics(metrics.registry, host, port)
    except NightjarError as error:
        print(f"error {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    tenant = environment.tenant
    log = redis.Redis.from_url(environment.redis_log_url, socket_timeout=BLOCK_MS / 1000 + 5)
    online = redis.Redis.from_url(environment.redis_online_url, socket_timeout=5)
    consumer = Consumer(
        log,
        online,
        tenant=tenant,
        batch=settings.consumer_batch,
        session_ttl_seconds=settings.session_ttl_seconds,
        metrics=metrics,
    )
    lease = Lease(online, lease_key("consumer", tenant), seconds=settings.lease_seconds)

    def step(_: threading.Event) -> None:
        consumer.consume(block_ms=BLOCK_MS)

    return run_role("consumer", lease, resume=consumer.resume, step=step, metrics=metrics)


if __name__ == "__main__":
    sys.exit(main())
