"""Reads of many requests over one connection to Redis: those of one turn of the event loop are one write.

A group of reads begins with a command that all of them share and ends with `ECHO <tag>`, a tag that no other group has.
Only when the last reply is that tag do the replies belong to the questions; else the connection is ended and nobody
gets any of them. A group that is late ends the connection too, so a late reply never meets another request.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import hiredis
from redis.exceptions import RedisError

from serving.adapters.redis_pipe import CONNECT_SECONDS, ONE_TURN_SECONDS, RedisPipe, Replies, open_pipe

logger = logging.getLogger("nightjar.serving")

Taken = Callable[[Any, Sequence[Any]], None]
"""Gets the shared command's reply and those of one's own commands."""
Failed = Callable[[Exception], None]
"""Gets TimeoutError when no answer came in time, ConnectionError when the connection ended."""


READ_ERRORS = (OSError, TimeoutError, RedisError, hiredis.HiredisError)
"""What `connect` raises and `failed` gets. A ConnectionError is an OSError; so is a TimeoutError."""


class _Question(NamedTuple):
    commands: bytes
    replies: int
    taken: Taken
    failed: Failed


_question_of = tuple.__new__  # what the constructor does, without the call


class _Group(NamedTuple):
    questions: list[_Question]
    tag: bytes
    deadline: float


class TaggedReads:
    """Belongs to the event loop that first uses it.

    shared           the packed command that every group begins with
    timeout_seconds  longest wait of a request for a connection, and of a group for its replies. A connection that takes
                     longer to open (TLS, a store far away) is opened all the same, for those who come later
    """

    def __init__(self, url: str, *, shared: bytes, timeout_seconds: float) -> None:
        self._url = url
        self._shared = shared
        self._timeout = timeout_seconds
        self._pipe: RedisPipe | None = None
        self._opening: asyncio.Task[RedisPipe] | None = None
        self._waiting: list[_Question] = []
        self._under_way: deque[_Group] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._groups = 0
        self._late: _Group | None = None
        """The group that was late when it was looked at; it is given one more turn of the loop."""

    def ask(self, commands: bytes, count: int, taken: Taken, failed: Failed) -> bool:
        """Send `count` packed commands that only read. One of `taken` and `failed` is called in a later turn of the
        loop; False when there is no connection, and then neither is."""
        if self._pipe is None or not self._pipe.is_open:
            return False
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send)
        self._waiting.append(_question_of(_Question, (commands, count, taken, failed)))
        return True

    async def connect(self) -> None:
        """Open a connection unless there is one; all who wait share the attempt. Raises OSError, TimeoutError,
        RedisError, HiredisError."""
        if self._pipe is not None and self._pipe.is_open:
            return
        if self._opening is None or self._opening.done():
            opening = asyncio.wait_for(open_pipe(self._url), max(self._timeout, CONNECT_SECONDS))
            self._opening = asyncio.create_task(opening)
            self._opening.add_done_callback(self._on_opened)
        await asyncio.wait({self._opening}, timeout=self._timeout)
        if not self._opening.done():
            raise TimeoutError(f"no connection within {self._timeout * 1000:.0f} ms")
        self._opening.result()

    async def close(self) -> None:
        """Give the connection back; what is under way fails."""
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
        if self._pipe is not None:
            self._pipe.close()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _on_opened(self, opening: asyncio.Task[RedisPipe]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._pipe = opening.result()

    def _send(self) -> None:
        questions, self._waiting = self._waiting, []
        pipe = self._pipe
        assert pipe is not None
        loop = asyncio.get_running_loop()
        self._groups += 1
        tag = b"%x" % self._groups
        group = _Group(questions, tag, loop.time() + self._timeout)
        echo = b"*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (len(tag), tag)
        payload = b"".join([self._shared, *[question[0] for question in questions], echo])
        self._under_way.append(group)
        done = pipe.send(payload, 2 + sum([question[1] for question in questions]))
        done.add_done_callback(partial(self._on_replies, pipe, group))
        if self._watch is None:
            self._watch = loop.call_later(self._timeout, self._look)

    def _on_replies(self, pipe: RedisPipe, group: _Group, done: asyncio.Future[Replies]) -> None:
        if self._under_way and self._under_way[0] is group:
            self._under_way.popleft()
        elif group in self._under_way:
            self._under_way.remove(group)
        error = done.exception()
        if error is not None:
            _fail(group, error if isinstance(error, Exception) else ConnectionError(repr(error)))
            return
        replies = done.result()
        if replies[-1] != group.tag:
            pipe.close("a reply came to another question")
            logger.error("online store: a reply came to another question; the connection was ended")
            _fail(group, ConnectionError("a reply came to another question"))
            return
        shared, at = replies[0], 1
        for _, count, taken, _ in group.questions:
            mine = replies[at : at + count]
            at += count
            try:
                taken(shared, mine)
            except Exception:
                logger.exception("a read was not taken")

    def _look(self) -> None:
        """End a connection whose oldest group is late."""
        loop = asyncio.get_running_loop()
        self._watch = None
        if not self._under_way:
            return
        left = self._under_way[0].deadline - loop.time()
        if left > 0:
            self._watch = loop.call_later(left, self._look)
            return
        if self._late is not self._under_way[0]:
            # Was it Redis that was late, or we? What came while this process had no processor is read now.
            self._late = self._under_way[0]
            self._watch = loop.call_later(ONE_TURN_SECONDS, self._look)
            return
        late, self._under_way = self._under_way, deque()
        if self._pipe is not None:
            self._pipe.close("no answer in time")
        for group in late:
            _fail(group, TimeoutError(f"no answer within {self._timeout * 1000:.0f} ms"))


def _fail(group: _Group, error: Exception) -> None:
    questions, group.questions[:] = list(group.questions), []  # once, whoever comes first
    for question in questions:
        try:
            question.failed(error)
        except Exception:
            logger.exception("a failed read was not taken")
