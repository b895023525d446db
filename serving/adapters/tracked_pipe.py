"""A connection on which Redis says what changed: RESP3 with `CLIENT TRACKING ON`.

Redis remembers which keys were read on it, and pushes their names when somebody changes them. Replies and pushes come
on one connection in the order in which Redis made them: a push behind a reply is about a later change, and a reply says
that whatever changed before its question came has been told.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import inf

import hiredis

from feature_repo.contracts.keys import DEFAULT_TENANT, tracking_key
from serving.adapters.circuit import PROBE_SECONDS
from serving.adapters.kept_rows import KeptRows
from serving.adapters.redis_pipe import CONNECT_SECONDS, PipeCaller, RedisPipe, Replies, open_pipe, pack
from serving.observability import TRACKING_LOSSES, count_soon

logger = logging.getLogger("nightjar.serving")

Changed = Callable[[Sequence[bytes] | None], None]
"""Gets keys that were changed; None: all of them, the store was flushed."""
INVALIDATE = b"invalidate"
TRIAL_MS = 1000
"""How long the key lives that a new connection is tried with."""
BEAT_SECONDS = 0.05
"""How often a connection with kept rows is asked for a word while people ask for them. Raising it, beyond half of
PROBE_SECONDS: rows are read again because the connection was silent."""
ASKED_LATELY_SECONDS = 1.0
"""How long it goes on after the last one asked."""
TRY_AGAIN_SECONDS = 10.0
"""How long a server that did not tell of changes is left alone: one that was full, or could not save, refuses the key
of the trial."""
CONNECTION, FLUSH, UNTOLD = "connection", "flush", "untold"


class TrackedPipe(RedisPipe):
    """Made by `open_tracked`. `lost` is called once, when the connection ends.

    why_untracked  why Redis does not tell of changes on it; None: it does
    """

    def __init__(self, changed: Changed, lost: Callable[[], None]) -> None:
        super().__init__()
        self._changed, self._lost = changed, lost
        self.why_untracked: str | None = "not asked yet"
        self.tried: bytes | None = None
        """The key of the trial, until Redis told that it was changed."""

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            gets, groups = self._reader.gets, self._groups
            while (reply := gets()) is not False:
                if type(reply) is hiredis.PushNotification:
                    self._take(reply)
                    continue
                if not groups:
                    raise hiredis.ProtocolError("a reply that nobody asked for")
                replies, expected, done = groups[0]
                replies.append(reply)
                if len(replies) == expected:
                    groups.popleft()
                    if not done.done():
                        done.set_result(replies)
        except hiredis.ProtocolError as error:
            self.close(f"not the Redis protocol: {error}")

    def _take(self, push: list[object]) -> None:
        """Raises ProtocolError on what is no word of changed keys: nothing else was asked for."""
        if len(push) != 2 or push[0] != INVALIDATE or not (push[1] is None or isinstance(push[1], list)):
            raise hiredis.ProtocolError("a push that nobody asked for")
        if self.tried is not None and push[1] == [self.tried]:
            self.tried = None
            return
        self._changed(push[1])

    def _fail(self, why: Exception) -> None:
        is_first = self._why_closed is None
        super()._fail(why)
        if is_first:
            self._lost()


async def open_tracked(
    url: str, changed: Changed, lost: Callable[[], None], *, tenant: str = DEFAULT_TENANT
) -> TrackedPipe:
    """`open_pipe`, with tracking where the server can: a key is read and written, and a push has to come before the
    reply to what was asked behind it. Where none comes the connection is good for reading alone, and says why."""
    pipe = await open_pipe(url, partial(TrackedPipe, changed, lost))
    assert isinstance(pipe, TrackedPipe)
    try:
        pipe.why_untracked = await _why_untracked(pipe, tenant)
    except BaseException:
        pipe.close("tracking could not be asked for")
        raise
    return pipe


async def _why_untracked(pipe: TrackedPipe, tenant: str) -> str | None:
    key = tracking_key(secrets.token_hex(8), tenant)
    pipe.tried = key.encode()
    commands = [
        ("HELLO", 3),
        ("CLIENT", "TRACKING", "ON"),
        ("GET", key),
        ("SET", key, 1, "PX", TRIAL_MS),
        ("ECHO", key),
    ]
    *replies, last = await pipe.send(b"".join(pack(*command) for command in commands), len(commands))
    for command, reply in zip(commands, replies, strict=False):
        if isinstance(reply, hiredis.ReplyError):
            return f"{command[0]} is refused: {reply}"
    if last != key.encode():
        raise ConnectionError("a reply came to another question")
    return None if pipe.tried is None else "no push comes when a key is changed"


class TrackedCaller(PipeCaller):
    """Asks on a tracked connection, and keeps `rows` right. Belongs to one event loop.

    seconds  a monotonic clock
    """

    def __init__(
        self,
        url: str,
        rows: KeptRows,
        *,
        timeout_seconds: float,
        what: str,
        tenant: str = DEFAULT_TENANT,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(url, timeout_seconds=timeout_seconds, what=what)
        self._rows, self._tenant, self._seconds = rows, tenant, seconds
        self._longest_silence = PROBE_SECONDS + timeout_seconds
        self._heard_of = -inf
        """Everything that changed before this instant has been told: the newest question that was answered was sent."""
        self._asked = -inf
        self._next_beat: asyncio.TimerHandle | None = None
        self._beat_under_way: asyncio.Future[Replies] | None = None
        self._said: str | None = None
        """Why the newest connection was not tracked, when it was tried last."""
        self._tried = -inf
        self._trying: asyncio.Task[None] | None = None

    @property
    def may_keep(self) -> bool:
        """Whether Redis will tell when something that is read now changes."""
        pipe = self._pipe
        return isinstance(pipe, TrackedPipe) and pipe.is_open and pipe.why_untracked is None

    def may_use(self) -> bool:
        """Whether kept rows may be used now: what changed until shortly has been told. Somebody asks, so the connection
        is asked for a word from now on."""
        now = self._seconds()
        self._asked = now
        if self._said is not None and now - self._tried >= TRY_AGAIN_SECONDS and not self.may_keep:
            self._tried = now
            self._trying = asyncio.get_running_loop().create_task(self._try_again())
        if self._next_beat is None and len(self._rows):
            self._next_beat = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)
        return now - self._heard_of <= self._longest_silence

    async def send(self, commands: bytes, count: int, blocks_seconds: float = 0.0) -> Replies:
        sent = self._seconds()
        replies = await super().send(commands, count, blocks_seconds)
        if self.may_keep:
            self._heard_of = max(self._heard_of, sent)
        return replies

    async def close(self) -> None:
        if self._next_beat is not None:
            self._next_beat.cancel()
        if self._trying is not None:
            self._trying.cancel()
        await super().close()

    async def _opened(self, url: str) -> RedisPipe:
        pipe = await open_tracked(url, self._on_change, self._on_loss, tenant=self._tenant)
        self._tried = self._seconds()
        self._say(pipe.why_untracked)
        return pipe

    async def _try_again(self) -> None:
        pipe = self._pipe
        if isinstance(pipe, TrackedPipe) and pipe.is_open:
            try:
                pipe.why_untracked = await asyncio.wait_for(_why_untracked(pipe, self._tenant), CONNECT_SECONDS)
            except (OSError, TimeoutError) as error:
                pipe.close(f"tracking could not be asked for: {error}")
            else:
                self._rows.lose()  # what is under way may have been read before it was tracked
                self._say(pipe.why_untracked)

    def _say(self, why: str | None) -> None:
        if why is not None:
            count_soon(TRACKING_LOSSES, UNTOLD)
            if why != self._said:
                logger.warning("%s: no row is kept, all are read each time: %s", self._what, why)
        elif self._said is not None:
            logger.warning("%s: rows are kept", self._what)
        self._said = why

    def _on_change(self, keys: Sequence[bytes] | None) -> None:
        if keys is None:
            count_soon(TRACKING_LOSSES, FLUSH)
        self._rows.changed(keys)

    def _on_loss(self) -> None:
        if self._said is None:
            count_soon(TRACKING_LOSSES, CONNECTION)
        self._heard_of = -inf
        self._rows.lose()

    def _beat(self) -> None:
        """Ask for a word. Nobody waits for it: while none comes, what is kept is not used."""
        self._next_beat = None
        pipe, now = self._pipe, self._seconds()
        if pipe is None or not pipe.is_open or not len(self._rows) or now - self._asked > ASKED_LATELY_SECONDS:
            return
        if self._beat_under_way is None or self._beat_under_way.done():
            self._beat_under_way = pipe.send(_PING, 1)
            self._beat_under_way.add_done_callback(partial(self._on_word, now))
        self._next_beat = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)

    def _on_word(self, sent: float, word: asyncio.Future[Replies]) -> None:
        if not word.cancelled() and word.exception() is None and word.result() == [b"PONG"]:
            self._heard_of = max(self._heard_of, sent)


_PING = pack("PING")
