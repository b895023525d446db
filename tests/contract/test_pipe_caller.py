"""Questions on a connection of one's own: no reply ever meets another question, whatever goes wrong before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import hiredis
import pytest

from feature_repo.contracts.errors import DependencyError
from serving.adapters import redis_pipe
from serving.adapters.redis_pipe import PipeCaller, RedisPipe, open_pipe, pack
from serving.adapters.tracked_pipe import TrackedPipe, open_tracked

TIMEOUT = 0.3


class Says:
    """A server that echoes. `pauses`: seconds before each question is answered; `harm`: what is sent instead of the
    next replies. `questions`: what came, over all connections."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.harm: list[bytes] = []
        self.questions: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        parser = hiredis.Reader()
        try:
            while data := await reader.read(1 << 20):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    word = command[-1]
                    self.questions.append(word)
                    if self.pauses:
                        await asyncio.sleep(self.pauses.pop(0))
                    writer.write(self.harm.pop(0) if self.harm else b"$%d\r\n%b\r\n" % (len(word), word))
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def saying() -> AsyncIterator[tuple[Says, PipeCaller]]:
    says = Says()
    server = await asyncio.start_server(says.serve, "127.0.0.1", 0)
    caller = PipeCaller(url_of(server), timeout_seconds=TIMEOUT, what="the words")
    try:
        yield says, caller
    finally:
        await caller.close()
        server.close()


def url_of(server: asyncio.Server) -> str:
    return f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


async def word(caller: PipeCaller, said: str, blocks_seconds: float = 0.0) -> bytes:
    (reply,) = await caller.ask(("ECHO", said), blocks_seconds=blocks_seconds)
    assert isinstance(reply, bytes)
    return reply


async def test_each_gets_its_own_of_many_on_one_connection() -> None:
    async with saying() as (says, caller):
        found = await asyncio.gather(*(word(caller, f"w{number}") for number in range(40)))
        assert found == [f"w{number}".encode() for number in range(40)]
        assert await caller.ask(("ECHO", "a"), ("ECHO", "b")) == [b"a", b"b"]
        assert says.connections == 1


async def test_the_reply_of_a_late_question_meets_nobody() -> None:
    """Who asks next gets a connection on which the late reply cannot come."""
    async with saying() as (says, caller):
        assert await word(caller, "first") == b"first"
        says.pauses = [2 * TIMEOUT]
        with pytest.raises(DependencyError, match=r"the words cannot be read: .*TimeoutError"):
            await word(caller, "late")
        assert await word(caller, "next") == b"next"
        await asyncio.sleep(1.5 * TIMEOUT)  # the late reply is there now
        assert await word(caller, "last") == b"last"
        assert (says.connections, says.questions) == (2, [b"first", b"late", b"next", b"last"])


async def test_who_is_not_late_yet_ends_with_the_connection() -> None:
    async with saying() as (says, caller):
        await word(caller, "first")
        says.pauses = [3 * TIMEOUT]
        late = asyncio.create_task(word(caller, "late"))
        await asyncio.sleep(TIMEOUT / 2)
        waits = asyncio.create_task(word(caller, "waits", blocks_seconds=10.0))
        found = await asyncio.wait_for(asyncio.gather(late, waits, return_exceptions=True), 5)
        assert [type(one) for one in found] == [DependencyError, DependencyError]
        assert await word(caller, "next") == b"next"
        assert says.questions.count(b"waits") <= 1  # nothing is sent twice


async def test_a_question_may_take_longer_on_purpose() -> None:
    async with saying() as (says, caller):
        says.pauses = [1.5 * TIMEOUT]
        assert await word(caller, "blocks", blocks_seconds=10.0) == b"blocks"
        assert says.connections == 1


async def test_the_reply_of_who_was_cancelled_meets_nobody() -> None:
    async with saying() as (says, caller):
        await word(caller, "first")
        says.pauses = [TIMEOUT / 3]
        gone = asyncio.create_task(word(caller, "gone"))
        await asyncio.sleep(TIMEOUT / 6)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert await word(caller, "next") == b"next"
        assert says.connections == 2


async def test_an_old_failure_does_not_end_the_connection_that_was_opened_since() -> None:
    async with saying() as (says, caller):
        await word(caller, "first")
        old = caller._pipe
        says.pauses = [10 * TIMEOUT]
        blocked = asyncio.create_task(word(caller, "blocked", blocks_seconds=60.0))
        await asyncio.sleep(0.01)
        assert old is not None
        caller._pipe = None  # as if another question had ended it
        assert await word(caller, "next") == b"next"
        new = caller._pipe
        blocked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await blocked
        assert (caller._pipe, old.is_open) == (new, False)
        assert await word(caller, "last") == b"last"
        assert says.connections == 2


@pytest.mark.parametrize("harm", [b"$4\r\nmore\r\n$4\r\nsaid\r\n", b"-ERR no\r\n", b"nonsense\r\n"])
async def test_what_nobody_asked_for_ends_the_connection(harm: bytes) -> None:
    async with saying() as (says, caller):
        await word(caller, "first")
        says.harm = [harm]
        await asyncio.gather(word(caller, "odd"), return_exceptions=True)
        await asyncio.sleep(0.05)
        assert await word(caller, "next") == b"next"
        assert says.connections == 2


async def test_a_connection_that_opens_slowly_is_opened_for_those_who_come_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = 0

    async def slowly(url: str) -> RedisPipe:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(2 * TIMEOUT)
        return await open_pipe(url)

    async with saying() as (says, caller):
        monkeypatch.setattr(redis_pipe, "open_pipe", slowly)
        found = await asyncio.gather(*(word(caller, "early") for _ in range(5)), return_exceptions=True)
        assert all(isinstance(one, DependencyError) and "no connection within 300 ms" in str(one) for one in found)
        await asyncio.sleep(1.5 * TIMEOUT)
        assert await word(caller, "late") == b"late"
        assert (attempts, says.connections, says.questions) == (1, 1, [b"late"])


@pytest.mark.parametrize("keeps", [False, True], ids=["plain", "tracked"])
async def test_a_reply_of_which_nobody_has_asked_ends_either_pipe(keeps: bool) -> None:
    says = Says()
    server = await asyncio.start_server(says.serve, "127.0.0.1", 0)
    changed: list[object] = []
    lost: list[str] = []
    made = partial(TrackedPipe, changed.append, lambda: lost.append("once")) if keeps else RedisPipe
    pipe = await open_pipe(url_of(server), made)
    assert await pipe.send(pack("ECHO", "a"), 1) == [b"a"]
    says.harm = [b"$1\r\nb\r\n$1\r\nc\r\n"]
    assert await pipe.send(pack("ECHO", "b"), 1) == [b"b"]
    await asyncio.sleep(0.05)
    assert not pipe.is_open
    with pytest.raises(ConnectionError):
        await pipe.send(pack("ECHO", "d"), 1)
    assert (changed, lost) == ([], ["once"] if keeps else [])
    server.close()


async def test_a_trial_whose_last_reply_is_not_its_own_gives_no_connection() -> None:
    """The tag check of `open_tracked`: the replies of the trial are those of somebody else."""
    says = Says()
    server = await asyncio.start_server(says.serve, "127.0.0.1", 0)
    lost: list[str] = []
    says.harm = [b"%0\r\n", b"+OK\r\n", b"$-1\r\n", b"+OK\r\n", b"$5\r\nother\r\n"]
    with pytest.raises(ConnectionError, match="a reply came to another question"):
        await open_tracked(url_of(server), lambda _: None, lambda: lost.append("once"))
    assert lost == ["once"]
    pipe = await open_tracked(url_of(server), lambda _: None, lambda: None)
    assert pipe.why_untracked == "no push comes when a key is changed"
    pipe.close()
    server.close()
