"""Rows that are kept until Redis says that they changed: on a real Redis, and on servers that do harm."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest
import redis
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo.contracts.errors import ContractError, DependencyError
from feature_repo.contracts.feature_table import FEATURE_VIEWS
from serving.adapters.feast_online import entity_key, feature_field, timestamp_field
from serving.adapters.feature_rows import FeatureRow
from serving.adapters.feature_store import Asked, RedisFeatureStore
from serving.adapters.kept_rows import KeptRows

USERS = FEATURE_VIEWS["user_features"]
VIEWS, CATEGORY = "user_view_count_7d", "user_top_category_90d"
TIME = timestamp_field("user_features")
STAMP = b"\x08\x05"
MIB = 1 << 20


def key(user: str) -> bytes:
    return entity_key(["user_id"], [user])


def views(number: int) -> bytes:
    return Value(int64_val=number).SerializeToString()


def write(client: redis.Redis, user: str, number: int) -> None:
    client.hset(key(user), mapping={feature_field("user_features", VIEWS): views(number), TIME: STAMP})


class Clock:
    """Seconds that pass when somebody says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def client(redis_url: str) -> Any:
    with redis.Redis.from_url(redis_url) as found:
        yield found


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisFeatureStore]:
    found = RedisFeatureStore(redis_url, timeout_seconds=5, keep_bytes=MIB)
    yield found
    await found.close()


async def read(store: RedisFeatureStore, *users: str) -> list[Any]:
    found = await store.read(USERS, [VIEWS], [(user,) for user in users])
    assert [micros is None for micros in found.micros] == [value is None for value in found.values[0]]
    return found.values[0]


def kept(store: RedisFeatureStore, *users: str) -> list[list[FeatureRow]] | None:
    return store.kept_rows([Asked(USERS, [VIEWS], [(user,) for user in users])])


def asked_of(client: redis.Redis) -> int:
    """How many rows Redis was asked for."""
    return int(client.info("commandstats").get("cmdstat_hmget", {}).get("calls", 0))


async def turns() -> None:
    """What Redis has pushed is read."""
    await asyncio.sleep(0.05)


async def test_what_was_read_is_not_asked_for_again(store: RedisFeatureStore, client: redis.Redis) -> None:
    write(client, "u1", 7)
    assert kept(store, "u1") is None
    before = asked_of(client)
    assert await read(store, "u1", "nobody", "u1") == [7, None, 7]
    assert asked_of(client) == before + 2  # each once
    assert await read(store, "nobody", "u1") == [None, 7]
    assert kept(store, "u1", "u1", "nobody") == [[(7, 5_000_000), (7, 5_000_000), (None, None)]]
    assert asked_of(client) == before + 2
    assert await read(store, "u2", "u1", "u2") == [None, 7, None]
    assert asked_of(client) == before + 3
    assert kept(store, "u1", "u9") is None  # all of it, or a read
    both = await store.read_all([Asked(USERS, [VIEWS], [("u1",)]), Asked(USERS, [CATEGORY, VIEWS], [("u1",)])])
    assert [one.values for one in both] == [[[7]], [[None], [7]]]  # other features of the same row
    assert await read(store, "u1") == [7]


@pytest.mark.parametrize("how", ["written", "deleted", "value lost", "added", "expired", "emptied", "all emptied"])
async def test_a_change_is_seen_by_the_next_read(store: RedisFeatureStore, client: redis.Redis, how: str) -> None:
    write(client, "u1", 7)
    write(client, "other", 8)
    assert await read(store, "u1", "other", "new") == [7, 8, None]
    {
        "written": lambda: write(client, "u1", 9),
        "deleted": lambda: client.delete(key("u1")),
        "value lost": lambda: client.hdel(key("u1"), feature_field("user_features", VIEWS), TIME),
        "added": lambda: write(client, "new", 3),
        "expired": lambda: client.pexpire(key("u1"), 1),
        "emptied": client.flushdb,
        "all emptied": client.flushall,
    }[how]()
    await asyncio.sleep(0.4 if how == "expired" else 0.05)
    before = asked_of(client)
    expected = {"written": [9, 8, None], "added": [7, 8, 3], "emptied": [None] * 3, "all emptied": [None] * 3}
    assert await read(store, "u1", "other", "new") == expected.get(how, [None, 8, None])
    assert asked_of(client) == before + (3 if "emptied" in how else 1)  # the others are kept


async def test_nothing_is_kept_over_the_end_of_a_connection(store: RedisFeatureStore, client: redis.Redis) -> None:
    write(client, "u1", 7)
    assert await read(store, "u1") == [7]
    client.client_kill_filter(_type="normal", skipme=True)
    await turns()
    assert (kept(store, "u1"), len(store.kept), store.kept.bytes) == (None, 0, 0)
    client.delete(key("u1"))  # nobody tells of it: the new connection never asked
    assert await read(store, "u1") == [None]
    assert kept(store, "u1") == [[(None, None)]]  # and is tracked again


async def test_a_user_of_redis_who_may_not_be_told_reads_without_keeping(
    redis_url: str, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    write(client, "u1", 7)
    port = client.connection_pool.connection_kwargs["port"]
    for rights, why in (
        (["+@all", "-client|tracking"], "CLIENT is refused"),
        (["+@read", "+@connection"], "SET is refused"),
    ):
        client.execute_command("ACL", "SETUSER", "reader", "reset", "on", ">secret", "~*", *rights)
        store = RedisFeatureStore(f"redis://reader:secret@127.0.0.1:{port}/0", timeout_seconds=5, keep_bytes=MIB)
        caplog.clear()
        for value in (7, 8):
            write(client, "u1", value)
            assert await read(store, "u1") == [value]
            assert (kept(store, "u1"), len(store.kept)) == (None, 0)
        assert [why in record.getMessage() for record in caplog.records] == [True]
        await store.close()
    client.execute_command("ACL", "DELUSER", "reader")


async def test_a_silent_connection_is_not_believed(redis_url: str, client: redis.Redis) -> None:
    """What is kept may be used for 0.1 s and the time-out after the last word of the server was asked for."""
    write(client, "u1", 7)
    clock = Clock()
    store = RedisFeatureStore(redis_url, timeout_seconds=0.2, keep_bytes=MIB, seconds=clock)
    assert await read(store, "u1") == [7]
    clock.now += 0.3
    assert kept(store, "u1") is not None
    clock.now += 0.001
    assert kept(store, "u1") is None
    await asyncio.sleep(0.2)  # somebody asked: a word is asked for meanwhile
    assert kept(store, "u1") == [[(7, 5_000_000)]]
    clock.now += 0.3
    client.execute_command("CLIENT", "PAUSE", 1000)
    assert kept(store, "u1") is not None
    await asyncio.sleep(0.2)
    clock.now += 0.001
    assert kept(store, "u1") is None  # a word was asked for, and none came
    with pytest.raises(DependencyError):
        await read(store, "u1")
    assert len(store.kept) == 0
    await asyncio.sleep(1)
    await store.close()


async def test_words_are_asked_for_only_while_somebody_asks(redis_url: str, client: redis.Redis) -> None:
    def pings() -> int:
        return int(client.info("commandstats").get("cmdstat_ping", {}).get("calls", 0))

    clock = Clock()
    store = RedisFeatureStore(redis_url, timeout_seconds=5, keep_bytes=MIB, seconds=clock)
    await read(store, "u1")
    before = pings()
    kept(store, "u1")
    await asyncio.sleep(0.3)
    assert 2 <= pings() - before <= 7
    clock.now += 1.5
    await asyncio.sleep(0.1)
    before = pings()
    await asyncio.sleep(0.2)
    assert pings() == before
    await store.close()


# --- servers that do harm -----------------------------------------------------------------------------------------

Harm = Callable[[list[list[bytes]], list[bytes]], list[bytes]]
"""Gets the commands that came and the replies to them; gives what is sent."""


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def push(*changed: bytes) -> bytes:
    return b">2\r\n" + bulk(b"invalidate") + b"*%d\r\n" % len(changed) + b"".join(map(bulk, changed))


def reply_to(command: list[bytes]) -> bytes:
    """A Redis that tells of changes, and in which everybody has as many views as their name has bytes."""
    if command[0] == b"ECHO":
        return bulk(command[1])
    if command[0] == b"SET":
        return b"+OK\r\n" + push(command[1])
    if command[0] == b"HMGET":
        return b"*2\r\n" + bulk(views(len(command[1]) - len(key("")))) + bulk(STAMP)
    return {b"HELLO": b"%0\r\n", b"GET": b"_\r\n", b"PING": b"+PONG\r\n"}.get(command[0], b"+OK\r\n")


@asynccontextmanager
async def fake(harm: Harm) -> AsyncIterator[tuple[RedisFeatureStore, list[int]]]:
    """A store on such a server, and how many commands came on each of its connections."""
    came: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser, place = hiredis.Reader(), len(came)
        came.append(0)
        while data := await reader.read(1 << 20):
            parser.feed(data)
            commands = []
            while (command := parser.gets()) is not False:
                commands.append(command)
            came[place] += len(commands)
            writer.write(b"".join(harm(commands, [reply_to(command) for command in commands])))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = RedisFeatureStore(f"redis://127.0.0.1:{port}/0", timeout_seconds=0.3, keep_bytes=MIB)
    try:
        yield store, came
    finally:
        await store.close()
        server.close()


def of_reads(harm: Harm) -> Harm:
    return lambda commands, replies: harm(commands, replies) if commands[0][0] == b"HMGET" else replies


async def test_words_of_changes_between_replies_are_nobodys_reply() -> None:
    def between(_: list[list[bytes]], replies: list[bytes]) -> list[bytes]:
        told = push(key("another"), key("bbb"))
        return [told, replies[0], told, *replies[1:-1], told, told, replies[-1], told]

    async with fake(of_reads(between)) as (store, came):
        for _ in range(3):
            assert await read(store, "a", "bbb", "cc") == [1, 3, 2]
            assert kept(store, "a", "cc") is not None
            assert kept(store, "bbb") is None  # of whom it was said that they changed
        assert len(came) == 1


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_what_changed_before_it_was_kept_is_not_kept(place: int) -> None:
    """The reply and the word of its change come in one piece: whoever asked runs after both."""
    harm = of_reads(lambda _, replies: [*replies[:place], push(key("a")), *replies[place:]])
    async with fake(harm) as (store, _):
        assert await read(store, "a") == [1]
        assert kept(store, "a") is None


async def test_what_a_flush_took_before_it_was_kept_is_not_kept() -> None:
    flush = b">2\r\n" + bulk(b"invalidate") + b"_\r\n"
    async with fake(of_reads(lambda _, replies: [*replies, flush])) as (store, _):
        assert await read(store, "a") == [1]
        assert (kept(store, "a"), len(store.kept)) == (None, 0)


@pytest.mark.parametrize(
    "harm",
    [
        lambda _, replies: [b"$1\r\nx\r\n", *replies],
        lambda _, replies: [replies[0], *replies],
        lambda _, replies: [*replies[:-2], replies[-1], replies[-2]],
        lambda _, replies: [b">2\r\n$7\r\nmessage\r\n*0\r\n", *replies],
    ],
    ids=["one more before", "one twice", "the tag too early", "a push of another kind"],
)
async def test_replies_out_of_place_are_not_kept_for_anybody(harm: Harm) -> None:
    async with fake(of_reads(harm)) as (store, came):
        for _ in range(2):
            with pytest.raises(DependencyError):
                await read(store, "a", "bbb")
            assert (kept(store, "a"), kept(store, "bbb"), len(store.kept)) == (None, None, 0)
        assert len(came) == 2  # the damaged connection was given up


@pytest.mark.parametrize(
    ("name", "reply", "why"),
    [
        (b"SET", b"+OK\r\n", "no push comes when a key is changed"),
        (b"HELLO", b"-ERR unknown command 'HELLO'\r\n", "HELLO is refused"),
        (b"CLIENT", b"-ERR unknown subcommand\r\n", "CLIENT is refused"),
    ],
    ids=["a proxy that says it tells", "an old server", "a proxy that says no"],
)
async def test_a_server_that_does_not_tell_of_changes_is_read_each_time(
    name: bytes, reply: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    def silent(commands: list[list[bytes]], replies: list[bytes]) -> list[bytes]:
        return [reply if command[0] == name else own for command, own in zip(commands, replies, strict=True)]

    async with fake(silent) as (store, came):
        for _ in range(2):
            assert await read(store, "a") == [1]
            assert kept(store, "a") is None
        assert (len(came), len(store.kept)) == (1, 0)
    assert why in caplog.text
    assert caplog.text.count("no row is kept") == 1


async def test_a_server_that_could_not_be_tried_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """A full Redis refuses the key of the trial; ten seconds later it does not."""
    is_full = True

    def full(commands: list[list[bytes]], replies: list[bytes]) -> list[bytes]:
        refused = b"-OOM command not allowed\r\n"
        return [refused if c[0] == b"SET" and is_full else own for c, own in zip(commands, replies, strict=True)]

    async with fake(full) as (store, came):
        clock = store._tracked._seconds = Clock()  # type: ignore[union-attr]
        assert [await read(store, "a"), kept(store, "a")] == [[1], None]
        is_full = False
        clock.now += 9.9
        assert [await read(store, "a"), kept(store, "a")] == [[1], None]
        clock.now += 0.1
        await read(store, "a")
        await asyncio.sleep(0.05)
        await read(store, "a")
        assert kept(store, "a") == [[(1, 5_000_000)]]
        assert len(came) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "the features: no row is kept, all are read each time: SET is refused: OOM command not allowed",
        "the features: rows are kept",
    ]


# --- the bookkeeping ----------------------------------------------------------------------------------------------


def keep(rows: KeptRows, names: list[str], row: FeatureRow = (1, 5)) -> None:
    keys = [name.encode() for name in names]
    with rows.expecting(keys) as coming:
        rows.keep(keys, b"f", [row] * len(keys), coming)


def names_in(rows: KeptRows) -> list[str]:
    return [name.decode() for name in rows._rows]


def test_who_was_not_asked_for_the_longest_leaves_first() -> None:
    one = KeptRows(MIB)
    keep(one, ["a"])
    rows = KeptRows(3 * one.bytes)
    keep(rows, ["a", "b", "c"])
    assert rows.find([b"a", b"x"], b"f") == [(1, 5), None]
    keep(rows, ["d"])
    assert names_in(rows) == ["c", "a", "d"]
    assert rows.find([b"a"], b"other fields") == [None]
    keep(rows, ["e", "f"])
    assert (names_in(rows), rows.bytes) == (["d", "e", "f"], 3 * one.bytes)
    rows.changed([b"e", b"unknown"])
    assert (names_in(rows), rows.bytes) == (["d", "f"], 2 * one.bytes)
    keep(rows, ["f"], (None, None))
    assert one.bytes < rows.bytes < 2 * one.bytes
    rows.changed(None)
    assert (len(rows), rows.bytes) == (0, 0)
    keep(rows, ["g"], ("x" * MIB, 5))
    assert (len(rows), rows.bytes) == (0, 0)  # larger than all that may be


@pytest.mark.parametrize("width", [0, 1, 10, 27])
@pytest.mark.parametrize("kind", ["number", "text", "absent"])
def test_what_it_takes_is_no_more_than_it_says(width: int, kind: str) -> None:
    rows = KeptRows(MIB)

    def row(number: int) -> FeatureRow:
        values = [number * 7.5 + place if kind == "number" else f"Küche > {number} {place}" for place in range(width)]
        return (None,) * (width + 1) if kind == "absent" else (*values, 5_000_000)

    keep(rows, ["first"], row(0))
    tracemalloc.start()
    before, counted = tracemalloc.get_traced_memory()[0], rows.bytes
    for number in range(1, 3001):
        name = str(number)
        keep(rows, [f"u{name:>060}"], row(number))
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert rows.bytes <= MIB
    assert 0.4 * (rows.bytes - counted) < taken < 1.02 * (rows.bytes - counted)


async def test_a_value_that_cannot_be_read_is_not_kept(store: RedisFeatureStore, client: redis.Redis) -> None:
    write(client, "u1", 7)
    client.hset(key("bad"), mapping={feature_field("user_features", VIEWS): b"\x20", TIME: STAMP})
    for _ in range(2):
        with pytest.raises(ContractError):
            await read(store, "u1", "bad")
    assert await read(store, "u1") == [7]
