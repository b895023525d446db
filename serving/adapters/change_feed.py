"""The change stream of Redis `log` as a serving process reads it, and the task that keeps its overlay up to date.

The archiver compacts the stream into one record per item (and per user who refused something) before it trims it, in
one MULTI with the position up to which it did so. Who starts late, or was away for too long, reads those records and
goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple, Protocol

from feature_repo.contracts.changes import ITEMS, USERS, Change, RecordState
from feature_repo.contracts.errors import ContractError, DependencyError
from feature_repo.contracts.keys import archived_key, change_stream_key, changed_records_key
from serving.adapters.memory_event_log import MemoryEventLog
from serving.adapters.redis_pipe import PipeCaller
from serving.pipeline.overlay import CatalogueOverlay
from serving.speed.positions import START, position_number, stream_id_of

logger = logging.getLogger("nightjar.serving")

BLOCK_MS = 500
READ_COUNT = 500
SCAN_COUNT = 1000
_TAKEN_AT_ONCE = 100
"""Changes after which other tasks get their turn: a new item takes up to a fifth of a millisecond."""
PAUSE_SECONDS = (0.05, 1.0)
"""Shortest and longest pause before another connection is tried."""


class Page(NamedTuple):
    """Changes behind a position, in order, as (position, bytes), and how far the stream is compacted (-1: not)."""

    entries: list[tuple[int, bytes]]
    compacted: int


class Compacted(NamedTuple):
    """One compacted record as stored."""

    kind: str
    record_id: str
    state: bytes


class ChangeFeed(Protocol):
    """Raises DependencyError when the log does not answer; the next call tries a new connection."""

    async def compacted(self) -> int:
        """How far the stream is compacted; -1: not at all."""

    def records(self) -> AsyncIterator[list[Compacted]]:
        """All compacted records, in parts. Some may be newer than `compacted` said before: that does no harm."""

    async def read(self, position: int, *, waits: bool) -> Page:
        """What lies behind `position`; `waits`: up to BLOCK_MS for the first of it. `compacted` is as of after that."""

    async def close(self) -> None:
        """Give the connection back."""


class RedisChangeFeed:
    """On a connection of its own: its reads block."""

    def __init__(self, url: str, *, tenant: str, timeout_seconds: float) -> None:
        """`timeout_seconds`: longest wait for a connection or an answer, beyond what a read blocks."""
        self._caller = PipeCaller(url, timeout_seconds=timeout_seconds, what="the change stream")
        self._tenant = tenant
        self._stream = change_stream_key(tenant)

    async def compacted(self) -> int:
        (stored,) = await self._caller.ask(("GET", archived_key(self._stream)))
        return _position(stored)

    async def records(self) -> AsyncIterator[list[Compacted]]:
        for kind in (ITEMS, USERS):
            cursor: Any = b"0"
            while True:
                scan = ("HSCAN", changed_records_key(kind, self._tenant), cursor, "COUNT", SCAN_COUNT)
                ((cursor, found),) = await self._caller.ask(scan)
                pairs = zip(found[::2], found[1::2], strict=True)
                yield [Compacted(kind, record_id.decode("utf-8"), state) for record_id, state in pairs]
                if cursor == b"0":
                    break

    async def read(self, position: int, *, waits: bool) -> Page:
        behind = START if position < 0 else stream_id_of(position)
        blocks = ("BLOCK", BLOCK_MS) if waits else ()
        read = ("XREAD", "COUNT", READ_COUNT, *blocks, "STREAMS", self._stream, behind)
        found, stored = await self._caller.ask(
            read, ("GET", archived_key(self._stream)), blocks_seconds=BLOCK_MS / 1000
        )
        entries: list[tuple[int, bytes]] = []
        for stream_id, fields in found[0][1] if found else ():
            named = dict(zip(fields[::2], fields[1::2], strict=True))
            entries.append((position_number(stream_id.decode()), named.get(b"change", b"")))
        return Page(entries, _position(stored))

    async def close(self) -> None:
        await self._caller.close()


def _position(stored: bytes | None) -> int:
    return -1 if stored is None else position_number(stored.decode())


class MemoryChangeFeed:
    """The twin: the changes of a `MemoryEventLog`. `compact` and `trim` do what the archiver does."""

    def __init__(self, log: MemoryEventLog) -> None:
        self._log = log
        self._compacted = -1
        self._records: dict[tuple[str, str], bytes] = {}

    def compact(self, records: Iterable[Compacted], position: int) -> None:
        """Forget the stream up to `position`; its contents are in `records`."""
        self._records.update({(record.kind, record.record_id): record.state for record in records})
        self._compacted = position
        self._log.changes = [entry for entry in self._log.changes if position_number(entry[0]) > position]

    async def compacted(self) -> int:
        self._check()
        return self._compacted

    async def records(self) -> AsyncIterator[list[Compacted]]:
        self._check()
        yield [Compacted(kind, record_id, state) for (kind, record_id), state in self._records.items()]

    async def read(self, position: int, *, waits: bool) -> Page:
        self._check()
        found = [(position_number(at), change) for at, change in self._log.changes]
        entries = [(at, change) for at, change in found if at > position][:READ_COUNT]
        if waits and not entries:
            await asyncio.sleep(0.002)
        return Page(entries, self._compacted)

    async def close(self) -> None:
        """Nothing to give back."""

    def _check(self) -> None:
        if self._log.is_down:
            raise DependencyError("the change stream does not answer: it is set to be down")


class CatalogueTail:
    """Keeps an overlay up to date: one task for as long as the process serves."""

    def __init__(self, feed: ChangeFeed, overlay: CatalogueOverlay, *, wall_micros: Callable[[], int]) -> None:
        self._feed = feed
        self._overlay = overlay
        self._wall_micros = wall_micros
        self._is_behind = True
        self._is_following = False
        self._moved: asyncio.Future[None] | None = None

    async def follow(self) -> None:
        """Until it is cancelled. While the log does not answer the overlay stays as it is."""
        pause = PAUSE_SECONDS[0]
        try:
            while True:
                try:
                    await self.step()
                    pause = PAUSE_SECONDS[0]
                except Exception as error:
                    # whatever it is: a tail that ends for good would leave the catalogue behind without a word
                    if not isinstance(error, DependencyError):
                        logger.exception("the change stream cannot be followed")
                    elif self._is_following:
                        logger.warning("%s; the catalogue stays as it is", error)
                    self._is_following = False
                    self._wake()
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, PAUSE_SECONDS[1])
        finally:
            self._is_following = False
            await self._feed.close()

    async def start(self) -> None:
        """Take in all that there is now. Raises DependencyError."""
        while await self.step(waits=False) == READ_COUNT or self._is_behind:
            await asyncio.sleep(0)

    async def step(self, *, waits: bool = True) -> int:
        """Read what has come (`waits`: or comes soon) and take it in; how many entries. Raises DependencyError."""
        overlay = self._overlay
        if self._is_behind or overlay.wants_records:
            await self._catch_up()
        before = overlay.position
        page = await self._feed.read(before, waits=waits)
        for count, (position, raw) in enumerate(page.entries, start=1):
            if count % _TAKEN_AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                overlay.take(Change.from_json(raw), position)
            except ContractError as error:
                logger.warning("entry %s of the change stream is left out: %s", stream_id_of(position), error)
                overlay.position = max(overlay.position, position)
        # Compacted and perhaps trimmed beyond where we stood: what was trimmed is in the records.
        self._is_behind = page.compacted > before
        self._is_following = True
        if not self._is_behind:
            overlay.heard_micros = self._wall_micros()
        self._wake()
        return len(page.entries)

    async def _catch_up(self) -> None:
        """Read all records, also when what came meanwhile has taken us beyond the position they stand for."""
        self._overlay.wants_records = False
        position = await self._feed.compacted()
        async for records in self._feed.records():
            for kind, record_id, stored in records:
                try:
                    self._overlay.merge(kind, record_id, RecordState.from_json(stored))
                except ContractError as error:
                    logger.warning("a record of %s is left out: %s", kind, error)
            await asyncio.sleep(0)
        self._overlay.position = max(self._overlay.position, position)

    async def reach(self, position: int, *, seconds: float) -> bool:
        """Wait until the overlay has what lies at `position`; False when it does not come in time, at once when the log
        is not being followed."""
        try:
            async with asyncio.timeout(seconds):
                while self._is_following and self._overlay.position < position:
                    if self._moved is None or self._moved.done():
                        self._moved = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._moved)
        except TimeoutError:
            return False
        return self._overlay.position >= position

    def _wake(self) -> None:
        if self._moved is not None and not self._moved.done():
            self._moved.set_result(None)
