"""Reads that share a connection: one write for all of a turn, and nobody ever gets a reply that is another's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import candidates_key, edges_key, session_key, session_key_v1
from serving.adapters.feast_online import entity_key
from serving.adapters.online import SEGMENT_FIELD, SEGMENT_TIME_FIELD, OnlineRecords, ReadCommands, RedisOnlineStore
from serving.adapters.redis_pipe import pack
from serving.native import described, parts

VERSION = "2024-03-08-00000001"

Harm = Callable[[int, list[bytes]], list[bytes]]
"""Gets how many replies were given on this connection, and the replies to what came; gives what is sent."""


def reply_to(command: list[bytes]) -> bytes:
    """What a Redis that has everything would say: whose it is can be told from each reply."""
    name = command[0]
    if name == b"ECHO":
        return b"$%d\r\n%b\r\n" % (len(command[1]), command[1])
    if name == b"GET":
        return b"$%d\r\n%b\r\n" % (len(VERSION), VERSION.encode())
    if name == b"HGETALL":
        return b"*0\r\n"
    values = [b"of " + key for key in command[1:]] if name == b"MGET" else [b"", b""]
    return b"*%d\r\n" % len(values) + b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in values)


class FakeRedis:
    """A server that does harm. `writes`: the commands of each piece that came, over all connections."""

    def __init__(self, harm: Harm) -> None:
        self._harm = harm
        self.writes: list[list[list[bytes]]] = []
        self.connections = 0
        self.pauses: list[float] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        parser = hiredis.Reader()
        given = 0
        while data := await reader.read(1 << 20):
            parser.feed(data)
            commands = []
            while (command := parser.gets()) is not False:
                commands.append(command)
            self.writes.append(commands)
            if self.pauses:
                await asyncio.sleep(self.pauses.pop(0))
            replies = [reply_to(command) for command in commands]
            given += len(replies)
            for reply in self._harm(given, replies):
                writer.write(reply)
        writer.close()


@asynccontextmanager
async def fake(harm: Harm = lambda _, replies: replies) -> AsyncIterator[tuple[FakeRedis, RedisOnlineStore]]:
    redis = FakeRedis(harm)
    server = await asyncio.start_server(redis.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = RedisOnlineStore(f"redis://127.0.0.1:{port}/0", tenant="shop", timeout_seconds=0.3)
    try:
        yield redis, store
    finally:
        await store.close()
        server.close()


def own_session(user: str) -> bytes:
    return b"of " + session_key(f"u:{user}", "shop").encode()


async def read(store: RedisOnlineStore, user: str) -> OnlineRecords:
    return await store.read(version=VERSION, user_id=user, anonymous_id=None)


async def test_all_reads_of_a_turn_are_one_write() -> None:
    async with fake() as (redis, store):
        await read(store, "first")
        found = await asyncio.gather(*(read(store, f"u{number}") for number in range(40)))
        assert [one.session for one in found] == [own_session(f"u{number}") for number in range(40)]
        assert [one.candidates for one in found] == [
            b"of " + candidates_key(VERSION, f"u{number}", "shop").encode() for number in range(40)
        ]
        assert (len(redis.writes), redis.connections) == (2, 1)
        names = [command[0] for command in redis.writes[1]]
        assert (names[0], names[-1], names.count(b"GET"), names.count(b"MGET")) == (b"GET", b"ECHO", 1, 40)


@pytest.mark.parametrize(
    "harm",
    [
        lambda given, replies: [b"$7\r\nVERSION\r\n", *replies] if given > 5 else replies,
        lambda given, replies: replies[1:] if given > 5 else replies,
        lambda given, replies: [*replies[:1], *replies] if given > 5 else replies,
        lambda given, replies: [replies[0], *replies[2:], replies[1]] if given > 5 else replies,
    ],
    ids=["one more before", "one less", "one twice", "another order"],
)
async def test_a_reply_that_is_out_of_place_reaches_nobody(harm: Harm) -> None:
    """Without the tag, the reply of each request would be that of the one before it."""
    async with fake(harm) as (redis, store):
        assert (await read(store, "first")).session == own_session("first")
        for turn in range(3):
            users = [f"u{turn}{number}" for number in range(5)]
            async with asyncio.timeout(20):
                found = await asyncio.gather(*(read(store, user) for user in users), return_exceptions=True)
            for user, one in zip(users, found, strict=True):
                if isinstance(one, OnlineRecords):
                    assert one.session == own_session(user)
                else:
                    assert isinstance(one, DependencyError)
        assert redis.connections > 1  # the damaged connection was given up each time


async def test_a_late_reply_meets_nobody() -> None:
    async with fake() as (redis, store):
        await read(store, "first")
        redis.pauses = [0.6]
        with pytest.raises(DependencyError, match="TimeoutError"):
            await read(store, "late")
        for user in ("next", "another"):
            assert (await read(store, user)).session == own_session(user)
            await asyncio.sleep(0.2)  # the late one arrives meanwhile
        assert redis.connections == 2


async def test_who_was_busy_elsewhere_does_not_blame_redis() -> None:
    """The reply comes in time, and is read late."""
    redis, elsewhere = FakeRedis(lambda _, replies: replies), asyncio.new_event_loop()
    thread = threading.Thread(target=elsewhere.run_forever)
    thread.start()
    starting = asyncio.run_coroutine_threadsafe(asyncio.start_server(redis.serve, "127.0.0.1", 0), elsewhere)
    server = await asyncio.wrap_future(starting)
    port = server.sockets[0].getsockname()[1]
    store = RedisOnlineStore(f"redis://127.0.0.1:{port}/0", tenant="shop", timeout_seconds=0.3)
    try:
        await read(store, "first")
        redis.pauses = [0.1]
        asked = asyncio.create_task(read(store, "u1"))
        while len(redis.writes) < 2:
            await asyncio.sleep(0)
        time.sleep(0.6)  # no processor, or a pause of the collector
        assert (await asked).session == own_session("u1")
        assert redis.connections == 1
        redis.pauses = [0.9]
        with pytest.raises(DependencyError):
            await read(store, "u2")
    finally:
        await store.close()
        elsewhere.call_soon_threadsafe(server.close)
        elsewhere.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(elsewhere)])
        elsewhere.call_soon_threadsafe(lambda: elsewhere.call_soon(elsewhere.stop))
        thread.join()


async def test_a_connection_that_ends_is_replaced_once() -> None:
    async with fake(lambda given, replies: [*replies, b"no reply\r\n"] if given > 5 else replies) as (redis, store):
        await read(store, "first")
        assert (await read(store, "u1")).session == own_session("u1")  # its tag came before the damage
        assert (await read(store, "u2")).session == own_session("u2")
        assert redis.connections >= 2


async def test_those_who_do_not_wait_are_called_in_a_later_turn() -> None:
    said: list[OnlineRecords | DependencyError] = []
    async with fake() as (redis, store):
        for user in ("u1", "u2"):  # the first without a connection
            store.submit(said.append, version=VERSION, user_id=user, anonymous_id=None)
            assert len(said) == (0 if user == "u1" else 1)
            while len(said) < (1 if user == "u1" else 2):
                await asyncio.sleep(0.01)
        assert [one.session for one in said if isinstance(one, OnlineRecords)] == [own_session("u1"), own_session("u2")]
        redis.pauses = [0.6]
        store.submit(said.append, version=VERSION, user_id="u3", anonymous_id=None)
        while len(said) < 3:
            await asyncio.sleep(0.01)
        assert isinstance(said[2], DependencyError)


IDS = st.one_of(st.sampled_from(["u1", "a-b_c.d~e", "x/y z", "ü", "{u}", "%"]), st.text(min_size=1, max_size=20))


@given(
    user=st.none() | IDS.filter(lambda text: text.isprintable()), device=st.none() | IDS.filter(str.isprintable),
    joined=st.lists(st.sampled_from(["a:x y", "u:old", "a:ü"]), max_size=2), version=st.sampled_from([None, VERSION]),
)  # fmt: skip
def test_commands_are_what_the_contracts_keys_say(
    user: str | None, device: str | None, joined: list[str], version: str | None
) -> None:
    def of(subject: str, *more: str) -> list[bytes]:
        keys = (session_key(subject, "shop"), session_key_v1(subject, "shop"), *more)
        return [pack("MGET", *keys), pack("HGETALL", edges_key(subject, "shop"))]

    expected: list[Any] = []
    if user is not None:
        own = () if version is None else (candidates_key(version, user, "shop"),)
        expected += of(f"u:{user}", *own)
        expected.append(pack("HMGET", entity_key(["user_id"], [user]), SEGMENT_FIELD, SEGMENT_TIME_FIELD))
    elif device is not None:
        expected += of(f"a:{device}")
    if expected:
        for subject in joined:
            expected += of(subject)
    for reads in (parts.reads, None):  # by native code, and by its twin
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "reads", reads)
            assert ReadCommands("shop").of(version, user, device, joined) == (b"".join(expected), len(expected))


@pytest.mark.skipif(parts.reads is None, reason=f"serving answers from {described()}")
@pytest.mark.parametrize(
    ("name", "is_plain"), [("u1", True), ("A-b_c.d~9", True), ("ü", False), ("a/b", False), ("\ud800", False)]
)
def test_native_code_packs_for_an_id_that_needs_no_quoting(name: str, is_plain: bool) -> None:
    writer = parts.reads.CommandWriter(
        [b"n{u:", b"o{u:", b"e{u:"], [b"n{a:", b"o{a:", b"e{a:"], b"f", b"p", b"$1\r\nx\r\n"
    )
    assert (writer.of_user(name, b"c{u:") is not None) is is_plain
    assert (writer.of_device(name) is not None) is is_plain
