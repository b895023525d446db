"""One connection to Redis that any number of requests share: commands go out in order, replies come back in order.

redis-py spends more on a reply than Redis does on the command. Here a group of commands is one write, its replies are
counted off the parser, and nothing is ever sent twice. A connection that fails or is late is closed, so a late reply
never meets another request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.exceptions import RedisError

from feature_repo.contracts.errors import DependencyError

CONNECT_SECONDS = 1.0
"""Longest time in which a connection is opened; nobody who asks waits for it longer than for a reply."""
ONE_TURN_SECONDS = 0.001
"""What a reply that came in time is given to be read."""
Replies = list[Any]
"""One entry per command; a command that Redis refused has a `hiredis.ReplyError` in its place."""


def pack(*parts: str | int | bytes) -> bytes:
    """One command as bytes."""
    return hiredis.pack_command(parts)  # type: ignore[arg-type]  # its stub knows tuples of one only


class _Group(NamedTuple):
    replies: Replies
    expected: int
    done: asyncio.Future[Replies]


class RedisPipe(asyncio.Protocol):
    """An open connection; made by `open_pipe`."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._groups: deque[_Group] = deque()
        self._transport: asyncio.Transport | None = None
        self._why_closed: Exception | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and self._why_closed is None

    def send(self, commands: bytes, count: int) -> asyncio.Future[Replies]:
        """Write `count` packed commands (`pack`) at once. The future has as many replies.

        It raises ConnectionError when the connection ends first; then nobody knows which commands were carried out.
        """
        done: asyncio.Future[Replies] = asyncio.get_running_loop().create_future()
        if self._transport is None or self._why_closed is not None:
            done.set_exception(ConnectionError(f"the connection is closed: {self._why_closed}"))
            return done
        self._groups.append(_Group([], count, done))
        self._transport.write(commands)
        return done

    def close(self, why: str = "closed by us") -> None:
        """End at once; whatever waits for replies gets a ConnectionError that says why."""
        self._fail(ConnectionError(why))
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its base class

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            gets, groups = self._reader.gets, self._groups
            while groups:
                replies, expected, done = groups[0]
                append = replies.append
                for _ in range(expected - len(replies)):
                    if (reply := gets()) is False:
                        return
                    append(reply)
                groups.popleft()
                if not done.done():
                    done.set_result(replies)
            if gets() is not False:
                raise hiredis.ProtocolError("a reply that nobody asked for")
        except hiredis.ProtocolError as error:
            self.close(f"not the Redis protocol: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionError(f"the connection was lost: {exc or 'closed by Redis'}"))

    def _fail(self, why: Exception) -> None:
        self._why_closed = self._why_closed or why
        while self._groups:
            done = self._groups.popleft().done
            if not done.done():
                done.set_exception(self._why_closed)


class PipeCaller:
    """Asks on a connection of its own, opened when it is needed; whatever goes wrong ends it.

    `what` is asked for, in words: `the API keys`.
    """

    def __init__(self, url: str, *, timeout_seconds: float, what: str) -> None:
        self._url, self._timeout, self._what = url, timeout_seconds, what
        self._pipe: RedisPipe | None = None
        self._opening: asyncio.Task[RedisPipe] | None = None

    async def ask(self, *commands: Sequence[str | int | bytes], blocks_seconds: float = 0.0) -> Replies:
        """One reply a command. `blocks_seconds`: how long a command may wait on purpose, beyond the time-out.

        Raises DependencyError when Redis does not answer in time, or refuses one of the commands.
        """
        return await self.send(b"".join(pack(*command) for command in commands), len(commands), blocks_seconds)

    async def send(self, commands: bytes, count: int, blocks_seconds: float = 0.0) -> Replies:
        """`ask` with `count` commands that are packed already."""
        pipe = self._pipe
        try:
            if pipe is None or not pipe.is_open:
                pipe = await self._connect()
            replies = await _within(pipe.send(commands, count), self._timeout + blocks_seconds)
        except (OSError, TimeoutError, RedisError, hiredis.HiredisError) as error:
            self._end(pipe)
            why = f"Redis does not answer: {type(error).__name__}: {error}"
            raise DependencyError(f"{self._what} cannot be read: {why}") from error
        except asyncio.CancelledError:
            self._end(pipe)
            raise
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                self._end(pipe)
                raise DependencyError(f"{self._what} cannot be read: {reply}")
        return replies

    async def _connect(self) -> RedisPipe:
        """The one connection, however many ask for it at a time. One that takes longer than the time-out is opened all
        the same, for those who come later."""
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(_nobody_waits)
        await asyncio.wait({self._opening}, timeout=self._timeout)
        if not self._opening.done():
            raise TimeoutError(f"no connection within {self._timeout * 1000:.0f} ms")
        return self._opening.result()

    async def _open(self) -> RedisPipe:
        self._pipe = await asyncio.wait_for(self._opened(self._url), max(self._timeout, CONNECT_SECONDS))
        return self._pipe

    async def _opened(self, url: str) -> RedisPipe:
        return await open_pipe(url)

    def _end(self, pipe: RedisPipe | None) -> None:
        """End this connection; not another one, which was opened since."""
        if pipe is not None:
            pipe.close()
        if self._pipe is pipe:
            self._pipe = None

    async def close(self) -> None:
        """End the connection; the next question opens another."""
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
        self._end(self._pipe)


def _nobody_waits(opening: asyncio.Task[RedisPipe]) -> None:
    """Takes the error of an attempt whose askers have gone."""
    if not opening.cancelled():
        opening.exception()


async def _within(sent: asyncio.Future[Replies], seconds: float) -> Replies:
    """The replies. Raises TimeoutError where they did not come in time; what came while this process had no processor
    is read first."""
    loop = asyncio.get_running_loop()
    late = TimeoutError(f"no answer within {seconds * 1000:.0f} ms")
    timer = loop.call_later(seconds, loop.call_later, ONE_TURN_SECONDS, _give_up, sent, late)
    try:
        return await sent
    finally:
        timer.cancel()


def _give_up(sent: asyncio.Future[Replies], late: TimeoutError) -> None:
    if not sent.done():
        sent.set_exception(late)


async def open_pipe(url: str, made: Callable[[], RedisPipe] | None = None) -> RedisPipe:
    """Connect to a `redis://`, `rediss://` or `unix://` URL and log in; the caller sets the time-out. `made`: makes
    the connection's protocol, by default a `RedisPipe`.

    Raises OSError when nobody answers, hiredis.ReplyError when the login or the database is refused.
    """
    options: dict[str, Any] = dict(parse_url(url))
    loop = asyncio.get_running_loop()
    if "path" in options:
        _, pipe = await loop.create_unix_connection(made or RedisPipe, options["path"])
    else:
        is_secure = options.pop("connection_class", None) is SSLConnection or urlsplit(url).scheme == "rediss"
        tls = SSLConnection(**options).ssl_context.get() if is_secure else None
        host, port = options.get("host", "localhost"), options.get("port", 6379)
        _, pipe = await loop.create_connection(made or RedisPipe, host, port, ssl=tls)
    try:
        for command in _login(options):
            (reply,) = await pipe.send(pack(*command), 1)
            if isinstance(reply, hiredis.ReplyError):
                raise reply
    except BaseException:
        pipe.close("the login failed")
        raise
    return pipe


def _login(options: dict[str, Any]) -> list[tuple[str | int, ...]]:
    commands: list[tuple[str | int, ...]] = []
    if options.get("password"):
        commands.append(("AUTH", options.get("username") or "default", options["password"]))
    if options.get("db"):
        commands.append(("SELECT", options["db"]))
    return commands
