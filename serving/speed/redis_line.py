"""A connection of one's own to a Redis: commands that leave in one write, replies in their order.

The pool of the client library looks at a connection each time it is borrowed, and its transactions send what they watch
and what they read one after the other. The consumer asks so often that this was a third of its work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import redis
from redis.exceptions import ResponseError

Argument = str | bytes | int | float
Command = Sequence[Argument]


class RedisLine:
    """For one thread at a time. Errors of Redis come through as they are; the next use begins with a new connection,
    so a reply never meets another question."""

    def __init__(self, client: redis.Redis) -> None:
        """A connection like those of `client`; nothing is opened yet."""
        self._connection = client.connection_pool.make_connection()
        self._due = 0
        """Replies that nobody has fetched."""

    def send(self, commands: Iterable[Command]) -> None:
        """Send the commands; `replies` gives what they brought. What was sent before and not fetched is given up."""
        if self._due:
            self.close()
        some = list(commands)
        self._due = len(some)
        try:
            self._connection.send_packed_command([b"".join(self._connection.pack_commands(some))], check_health=False)
        except BaseException:
            self.close()
            raise

    def replies(self) -> list[Any]:
        """One of each command that was sent last. Raises the first error among them, once all have come."""
        found, error = [], None
        read = self._connection.read_response
        while self._due:
            try:
                found.append(read())
            except ResponseError as refused:
                error = error or refused
            except BaseException:
                self.close()
                raise
            self._due -= 1
        if error is not None:
            raise error
        return found

    def call(self, commands: Iterable[Command]) -> list[Any]:
        """`send` and `replies`."""
        self.send(commands)
        return self.replies()

    def close(self) -> None:
        """End the connection; the next use opens another."""
        self._due = 0
        self._connection.disconnect()


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

    def execute(self, commands: Iterable[Command]) -> bool:
        """All of it, or nothing, when something watched has changed since. Raises the first error of a command."""
        replies = self._line.call([("MULTI",), *commands, ("EXEC",)])
        self._is_watching = False
        if replies[-1] is None:
            return False
        for reply in replies[-1]:
            if isinstance(reply, ResponseError):
                raise reply
        return True
