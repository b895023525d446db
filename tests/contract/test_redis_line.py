"""The consumer's own connection: replies reach their own question, and a transaction that was given up is forgotten."""

from __future__ import annotations

import threading
import time

import hiredis
import pytest
import redis
from redis.exceptions import ConnectionError as GoneError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as LateError

from feature_repo.contracts.keys import stream_key
from serving.speed.redis_line import Packed, RedisLine, WatchingLine
from serving.speed.stores import RedisEventStreams

pytestmark = pytest.mark.redis


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def end_others(client: redis.Redis) -> None:
    client.client_kill_filter(_type="normal", skipme=True)


class TestLine:
    def test_replies_come_in_the_order_of_the_commands(self, client: redis.Redis) -> None:
        line = RedisLine(client)
        assert line.call([("SET", "a", b"\xff"), ("APPEND", "a", "0123456789" * 1000), ("GETRANGE", "a", 0, 2)]) == [
            b"OK", 10_001, b"\xff01",
        ]  # fmt: skip
        assert line.call([]) == []

    def test_replies_that_nobody_fetched_are_given_up(self, client: redis.Redis) -> None:
        line = RedisLine(client)
        line.send([("ECHO", "first"), ("ECHO", "second")])
        assert line.call([("ECHO", "third")]) == [b"third"]
        assert line.replies() == []

    def test_an_error_is_raised_once_all_replies_have_come(self, client: redis.Redis) -> None:
        line = RedisLine(client)
        same = line.call([("CLIENT", "ID")])
        with pytest.raises(ResponseError, match="not an integer"):
            line.call([("SET", "a", "x"), ("INCR", "a"), ("NO-SUCH-COMMAND",), ("SET", "b", "y")])
        assert client.get("b") == b"y"
        assert line.call([("GET", "a"), ("CLIENT", "ID")]) == [b"x", *same]

    def test_a_connection_that_ended_is_an_error_once(self, client: redis.Redis) -> None:
        line = RedisLine(client)
        line.call([("PING",)])
        end_others(client)
        with pytest.raises(GoneError):
            line.call([("PING",)])
        assert line.call([("PING",)]) == [b"PONG"]

    def test_who_answers_too_late_answers_nobody(self, redis_url: str) -> None:
        line = RedisLine(redis.Redis.from_url(redis_url, socket_timeout=0.1))
        with pytest.raises(LateError):
            line.call([("BLPOP", "nothing", 1)])
        assert line.call([("ECHO", "x" * 600_000)]) == [b"x" * 600_000]

    def test_what_the_server_says_unasked_is_no_reply(self, redis_url: str, client: redis.Redis) -> None:
        line = RedisLine(redis.Redis.from_url(redis_url, protocol=3))
        assert line.call([("CLIENT", "TRACKING", "ON"), ("GET", "a")]) == [b"OK", None]
        client.set("a", "1")  # the line is told
        assert line.call([("GET", "a"), ("GET", "b")]) == [b"1", None]


class TestWatchingLine:
    def test_what_was_watched_and_not_executed_troubles_nobody_behind_it(self, client: redis.Redis) -> None:
        line = WatchingLine(client)
        assert line.watch(["a"], ["b"]) == [None, None]
        client.set("a", "1")
        assert line.watch(["b"], []) == [None]
        assert line.strings(["a", "b"]) == [b"1", None]
        assert line.execute([("SET", "b", "2")])
        assert line.watch(["a", "b"], ["a"]) == [b"1", b"2", b"1"]

    def test_a_change_of_what_is_watched_leaves_everything_unwritten(self, client: redis.Redis) -> None:
        line = WatchingLine(client)
        line.watch(["a"], ["b"])
        client.set("a", "1")
        assert not line.execute([("SET", "b", "2"), ("SET", "c", "3")])
        assert client.exists("b", "c") == 0
        line.watch(["a"], ["b"])
        client.set("b", "theirs")  # read, not watched
        assert line.execute([("SET", "c", "3")])

    def test_a_command_that_fails_is_raised(self, client: redis.Redis) -> None:
        client.set("a", "x")
        line = WatchingLine(client)
        line.watch(["b"], [])
        with pytest.raises(ResponseError, match="not an integer"):
            line.execute([("INCR", "a"), ("SET", "b", "y")])
        line.watch(["b"], [])
        assert line.execute([("SET", "b", "z")])


@pytest.mark.parametrize("protocol", [2, 3])
def test_streams_are_read_in_both_protocols(redis_url: str, protocol: int) -> None:
    client = redis.Redis.from_url(redis_url, protocol=protocol)
    client.xadd(stream_key(3), {"event": b"{}", "nonce": b"n"}, id="5-1")
    client.xadd(stream_key(3), {"event": b"[]", "nonce": b"m"}, id="5-2")
    streams = RedisEventStreams(client, tenant="default")
    assert streams.read({1: "0", 3: "5-1"}, count=10, block_ms=None) == [
        (3, [("5-2", {b"event": b"[]", b"nonce": b"m"})])
    ]
    assert streams.read({1: "0", 3: "5-2"}, count=10, block_ms=5) == []


def test_who_waits_for_one_stream_reads_what_came_in_all_of_them(redis_url: str) -> None:
    """A group of the API is one write, and one transaction for each partition."""
    client = redis.Redis.from_url(redis_url)
    streams = RedisEventStreams(client, tenant="default")
    assert streams.read({1: "0", 3: "0"}, count=10, block_ms=1) == []

    def write() -> None:
        while not any(one["flags"] == "b" for one in client.client_list()):
            time.sleep(0.01)
        line = RedisLine(client)
        for partition in (3, 1):
            several = [("XADD", stream_key(partition), f"5-{number}", "event", "{}") for number in (1, 2)]
            group = [("MULTI",), *several, ("EXEC",)]
            packed = b"".join([hiredis.pack_command(command) for command in group])
            written.append(Packed(packed, len(group)))
        line.call(written)

    written: list[Packed] = []
    writer = threading.Thread(target=write)
    writer.start()
    found = streams.read({1: "0", 3: "0"}, count=10, block_ms=5_000)
    writer.join()
    assert [(partition, [position for position, _ in rows]) for partition, rows in found] == [
        (1, ["5-1", "5-2"]), (3, ["5-1", "5-2"]),
    ]  # fmt: skip
