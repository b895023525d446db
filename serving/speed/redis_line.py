"""A connection of one's own to a Redis: commands that leave in one write, replies in their order.

The pool of the client library looks at a connection each time it is borrowed, its transactions send what they watch and
what they read one after the other, and each reply takes it longer than the parser. The consumer asks so often that this
was a third of its work.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import hiredis
import redis
from redis.exceptions import ConnectionError as GoneError
from redis.exceptions import InvalidResponse, ResponseError
from redis.exceptions import TimeoutError as LateError

Argument = str | bytes | int | float | memoryview
Command = Sequence[Argument]


class Packed(NamedTuple):
    """Commands as they are sent; `replies`: how many they are."""

    commands: bytes
    replies: int


_READ_BYTES = 262_144
_NOT_YET = object()


class RedisLine:
    """For one thread at a time. Errors of Redis come through as they are; the next use begins with a new connection,
    so a reply never meets another question."""

    def __init__(self, client: redis.Redis) -> None:
        """A connection like those of `client`; nothing is opened yet."""
        self._connection: Any = client.connection_pool.make_connection()
        self._socket: Any = None
        self._reader = _reader()
        self._due = 0
        """Replies that nobody has fetched."""

    def send(self, commands: Iterable[Command | Packed]) -> None:
        """Send the commands; `replies` gives what they brought. What was sent before and not fetched is given up."""
        if self._due:
            self.close()
        packed: list[bytes] = []
        for command in commands:
            if isinstance(command, Packed):
                packed.append(command.commands)
                self._due += command.replies
            else:
                packed.append(hiredis.pack_command(tuple(command)))  # type: ignore[arg-type]
                self._due += 1
        try:
            if self._socket is None:
                self._open()
            self._socket.sendall(b"".join(packed))
        except OSError as error:
            self.close()
            raise _as_redis_says(error, "written to") from error
        except BaseException:
            self.close()
            raise

    def replies(self) -> list[Any]:
        """One of each command that was sent last. Raises the first error among them, once all have come."""
        found: list[Any] = []
        gets = self._reader.gets
        try:
            while self._due:
                reply = gets()
                if reply is _NOT_YET:
                    self._receive()
                elif type(reply) is not hiredis.PushNotification:  # nobody asked for those
                    found.append(reply)
                    self._due -= 1
        except OSError as error:
            self.close()
            raise _as_redis_says(error, "read from") from error
        except BaseException:
            self.close()
            raise
        for reply in found:
            if isinstance(reply, ResponseError):
                raise reply
        return found

    def call(self, commands: Iterable[Command | Packed]) -> list[Any]:
        """`send` and `replies`."""
        self.send(commands)
        return self.replies()

    def close(self) -> None:
        """End the connection; the next use opens another."""
        self._due = 0
        self._socket = None
        self._connection.disconnect()

    def _open(self) -> None:
        """The client library connects, logs in and says what it has to; from then on its socket is ours alone."""
        self._connection.connect()
        self._socket = self._connection._sock
        self._reader = _reader()
        _wait_in_the_kernel(self._socket)

    def _receive(self) -> None:
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise GoneError("the connection was closed by Redis")
        self._reader.feed(data)


def _reader() -> hiredis.Reader:
    return hiredis.Reader(protocolError=InvalidResponse, replyError=ResponseError, notEnoughData=_NOT_YET)


def _wait_in_the_kernel(connected: Any) -> None:
    """Python asks whether it may read or write before it does, where there is a time-out: two calls each time. The
    kernel's own time-out needs one. Not with TLS, which reads when it writes."""
    seconds = connected.gettimeout()
    if seconds and type(connected) is socket.socket and sys.platform == "linux":
        whole, part = divmod(max(1, int(seconds * 1e6)), 1_000_000)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connected.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, part))
        connected.settimeout(None)


def _as_redis_says(error: OSError, what: str) -> Exception:
    """The client library's error for one of the socket's."""
    kind = LateError if isinstance(error, (TimeoutError, BlockingIOError)) else GoneError
    return kind(f"Redis could not be {what}: {error}")


class WatchingLine:
    """Transactions of a line: see what others must not change, then write everything or nothing. One at a time."""

    def __init__(self, client: redis.Redis) -> None:
        self._line = RedisLine(client)
        self._is_watching = False

    def watch(self, watched: Sequence[str], more: Sequence[str]) -> list[bytes | None]:
        """Begin a transaction, giving up one that was not executed: the strings at `watched` and at `more`."""
        commands: list[Command] = [("UNWATCH",)] if self._is_watching else []
        commands += [("WATCH", *watched), ("MGET", *watched, *more)]
        self._is_watching = True
        found: list[bytes | None] = self._line.call(commands)[-1]
        return found

    def strings(self, keys: Sequence[str]) -> list[bytes | None]:
        """The strings at `keys`."""
        found: list[bytes | None] = self._line.call([("MGET", *keys)])[0]
        return found

    def execute(self, commands: Iterable[Command | Packed]) -> bool:
        """All of it, or nothing, when something watched has changed since. Raises the first error of a command."""
        replies = self._line.call([("MULTI",), *commands, ("EXEC",)])
        self._is_watching = False
        if replies[-1] is None:
            return False
        for reply in replies[-1]:
            if isinstance(reply, ResponseError):
                raise reply
        return True
