"""How the event log writes: one group for all who wait, a bounded queue, and no reply that meets the wrong request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
import redis

from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import more_events_key, partition_of, quarantine_stream_key, stream_key
from feature_repo.contracts.stream_entry import split_entry
from serving.adapters import gathering, log_writes, redis_event_log
from serving.adapters.event_log import LogEntry, OverloadedError, QuarantinedEvent
from serving.adapters.redis_event_log import RedisEventLog

TENANT = "shop"
BAD = QuarantinedEvent(b"{", "unreadable", "", "words")


def entry(name: str, subject: str = "u:1", event: bytes = b"{}") -> LogEntry:
    return LogEntry(subject, name, f"n-{name}", event)


async def gathered(*calls: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


@pytest.fixture
async def log(redis_url: str) -> AsyncIterator[RedisEventLog]:
    log = RedisEventLog(redis_url, tenant=TENANT, timeout_seconds=2)
    yield log
    await log.close()


def calls(client: redis.Redis) -> dict[str, int]:
    return {name.removeprefix("cmdstat_"): s["calls"] for name, s in client.info("commandstats").items()}


class TestGroups:
    async def test_requests_of_one_turn_share_a_multi_per_partition(self, log: RedisEventLog, redis_url: str) -> None:
        subjects = [f"u:{number}" for number in range(40)]
        assert len({partition_of(subject) for subject in subjects}) == 4
        with redis.Redis.from_url(redis_url) as client:
            await log.append([entry("first")])
            client.config_resetstat()
            answers = await gathered(
                *(log.append([entry(f"e{s}", s)]) for s in subjects), log.append([], [BAD]), log.append([], [BAD])
            )
            done = calls(client)
        assert answers == [[True]] * 40 + [[], []]
        # 40 + 2 requests: one MULTI for each of the four partitions, and one for the quarantine
        assert (done["multi"], done["exec"], done["set"], done["xadd"]) == (5, 5, 40, 42)

    async def test_events_that_may_share_an_entry_do(
        self, log: RedisEventLog, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neighbours of one partition, from several requests; an order, and a line break, stand alone."""
        monkeypatch.setattr(log_writes, "MAX_ENTRY_EVENTS", 3)
        names = "abcdefghij"
        all_entries = {
            name: entry(name, event=b'"%b"' % name.encode())._replace(may_share=name != "c") for name in names
        }
        all_entries["i"] = all_entries["i"]._replace(event=b"1\n2")
        requests = [[all_entries[name] for name in some] for some in ("ab", "c", "defg", "hij")]
        with redis.Redis.from_url(redis_url) as client:
            await log.append([entry("first")])
            answers = await gathered(*(log.append(some) for some in requests), log.append([all_entries["d"]]))
            stream = stream_key(partition_of("u:1"), TENANT)
            found = [split_entry(fields) for _, fields in client.xrange(stream)][1:]
            assert int(client.get(more_events_key(stream))) == sum(len(one) - 1 for one in found)  # type: ignore[arg-type]
        assert answers == [*([True] * len(some) for some in requests), [False]]
        assert [[nonce.decode().removeprefix("n-") for _, nonce in one] for one in found] == [
            ["a", "b"], ["c"], ["d", "e", "f"], ["g"], ["h"], ["i"], ["j", "d"],
        ]  # fmt: skip
        assert [event for one in found for event, _ in one] == [all_entries[name].event for name in [*names, "d"]]

    async def test_events_beyond_the_entries_are_counted(self, log: RedisEventLog, redis_url: str) -> None:
        for count in (1, 13, 101):  # of 64 and of 37 the last
            await log.append([entry(f"{count}-{number}")._replace(may_share=True) for number in range(count)])
        with redis.Redis.from_url(redis_url) as client:
            stream = stream_key(partition_of("u:1"), TENANT)
            assert (client.xlen(stream), client.get(more_events_key(stream))) == (4, b"111")

    async def test_of_two_requests_with_one_id_the_first_wins(self, log: RedisEventLog) -> None:
        both = [log.append([entry("same")]), log.append([entry("other"), entry("same")])]
        assert await gathered(*both) == [[True], [True, False]]

    async def test_a_multi_and_a_group_have_a_bound(
        self, log: RedisEventLog, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(log_writes, "MAX_MULTI_EVENTS", 3)
        monkeypatch.setattr(redis_event_log, "MAX_GROUP_EVENTS", 4)
        with redis.Redis.from_url(redis_url) as client:
            assert await log.append([]) == []
            await log.append([entry("first")])
            client.config_resetstat()
            seven = [entry(f"e{number}") for number in range(7)]
            answers = await gathered(log.append(seven), log.append([seven[6], entry("x")]), log.append([entry("y")]))
            stream = [f[b"nonce"].decode() for _, f in client.xrange(stream_key(partition_of("u:1"), TENANT))][1:]
            done = calls(client)
        assert answers == [[True] * 7, [False, True], [True]]
        assert stream == [*(f"n-e{n}" for n in range(7)), "n-e6", "n-x", "n-y"]  # in the order of arrival
        assert done["multi"] == 4  # 3 + 3 + 1 of the first group, 3 of the second

    async def test_who_comes_soon_after_a_write_waits_for_others(
        self, log: RedisEventLog, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gathering, "PAUSE_SECONDS", 0.2)
        with redis.Redis.from_url(redis_url) as client:
            await log.append([entry(f"first{number}") for number in range(40)])
            client.config_resetstat()
            waiting = []
            for number in range(5):  # all within one pause
                waiting.append(asyncio.create_task(log.append([entry(f"e{number}")])))
                await asyncio.sleep(0.01)
            assert calls(client).get("multi", 0) == 0
            assert await gathered(*waiting) == [[True]] * 5
            assert calls(client)["multi"] == 1

    async def test_enough_events_end_the_wait(self, log: RedisEventLog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gathering, "PAUSE_SECONDS", 10.0)
        await log.append([entry("first")])
        waiting = [asyncio.create_task(log.append([entry("a")]))]
        await asyncio.sleep(0.02)
        assert not waiting[0].done()
        waiting.append(asyncio.create_task(log.append([entry(f"e{number}") for number in range(31)])))
        began = time.perf_counter()
        assert await gathered(*waiting) == [[True], [True] * 31]
        assert time.perf_counter() - began < 5

    async def test_what_waits_is_written_before_the_log_is_closed(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gathering, "PAUSE_SECONDS", 0.1)
        log = RedisEventLog(redis_url, tenant=TENANT, timeout_seconds=2)
        await log.append([entry("first")])
        waiting = asyncio.create_task(log.append([entry("a")]))
        await asyncio.sleep(0)
        await log.close()
        assert await asyncio.wait_for(waiting, 0.02) == [True]

    async def test_a_client_that_has_gone_leaves_the_others_alone(self, log: RedisEventLog) -> None:
        gone, stays = asyncio.create_task(log.append([entry("a")])), asyncio.create_task(log.append([entry("b")]))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == [True]
        assert await log.append([entry("a")]) == [False]  # it was written all the same

    async def test_what_one_partition_refuses_is_told_to_its_requests_only(
        self, log: RedisEventLog, redis_url: str
    ) -> None:
        here, there = "u:1", next(f"u:{n}" for n in range(99) if partition_of(f"u:{n}") != partition_of("u:1"))
        with redis.Redis.from_url(redis_url) as client:
            client.set(stream_key(partition_of(here), TENANT), "no stream")
        answers = await gathered(log.append([entry("a", here)]), log.append([entry("b", there)]))
        assert isinstance(answers[0], DependencyError)
        assert "cannot take more: WRONGTYPE" in str(answers[0])
        assert answers[1] == [True]
        mixed = await gathered(log.append([entry("c", there), entry("d", here)]))
        assert isinstance(mixed[0], DependencyError)

    async def test_a_password_and_a_database_of_the_url_are_used(self, redis_url: str) -> None:
        with redis.Redis.from_url(redis_url) as client:
            client.acl_setuser("writer", enabled=True, passwords=["+p:w"], keys=["*"], commands=["+@all"])
            address = redis_url.removeprefix("redis://").rpartition("/")[0]
            try:
                for user, problem in (("writer:p%3Aw", None), ("writer:wrong", "WRONGPASS")):
                    log = RedisEventLog(f"redis://{user}@{address}/3", tenant=TENANT, timeout_seconds=2)
                    (answer,) = await gathered(log.append([entry("e")]))
                    await log.close()
                    assert answer == [True] if problem is None else problem in str(answer)
                with redis.Redis.from_url(f"redis://{address}/3") as third:
                    assert third.xlen(stream_key(partition_of("u:1"), TENANT)) == 1
                    third.flushdb()
            finally:
                client.acl_deluser("writer")

    async def test_words_that_have_no_utf8_hold_nobody_up(self, log: RedisEventLog, redis_url: str) -> None:
        assert await gathered(log.append([], [BAD._replace(detail="\ud800")]), log.append([entry("a")])) == [[], [True]]
        with redis.Redis.from_url(redis_url) as client:
            assert client.xrange(quarantine_stream_key(TENANT))[0][1][b"detail"] == b"?"


Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Impostor:
    """Something that listens and behaves as told. Counts connections and keeps what it was sent."""

    def __init__(self, behave: Answering) -> None:
        self._behave = behave
        self.connections = 0

    async def __aenter__(self) -> Impostor:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._behave(reader, writer)
        finally:
            writer.close()

    async def __aexit__(self, *_: object) -> None:
        self._server.close()


async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


async def hang_up(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read(65536)


async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(65536)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await reader.read(65536)


async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(65536)
    writer.write(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n$3\r\n1-1\r\n" + b"+MORE\r\n")
    await reader.read(65536)


class TestIllness:
    async def test_a_log_that_hangs_is_given_up_in_time_by_all_who_wait(self) -> None:
        async with Impostor(hang) as hung:
            log = RedisEventLog(hung.url, tenant=TENANT, timeout_seconds=0.1)
            first = asyncio.create_task(log.append([entry("a")]))
            second = asyncio.create_task(log.append([], [BAD]))
            await asyncio.sleep(0.02)
            third = asyncio.create_task(log.append([entry("c")]))
            await asyncio.sleep(0.02)
            fourth = asyncio.create_task(log.append([entry("d")]))  # two writes are under way: it waits its turn
            await gathered(first, second)
            await asyncio.sleep(0)
            assert fourth.done()  # it does not wait for a time-out of its own
            answers = await gathered(first, second, third, fourth)
            assert [type(answer) for answer in answers] == [DependencyError] * 4
            assert "no confirmation within 100 ms" in str(answers[0])
            log.require_room()
            assert (log._queued_events, log._queued_bytes) == (0, 0)
            await log.close()

    @pytest.mark.parametrize("behave", [hang_up, babble])
    async def test_a_connection_that_breaks_is_not_trusted_again(self, behave: Answering) -> None:
        async with Impostor(behave) as broken:
            log = RedisEventLog(broken.url, tenant=TENANT, timeout_seconds=1)
            for _ in range(2):
                with pytest.raises(DependencyError, match="does not answer: ConnectionError"):
                    await log.append([entry("a")])
            assert broken.connections == 2
            await log.close()

    async def test_a_reply_that_nobody_asked_for_ends_the_connection(self) -> None:
        async with Impostor(chatter) as server:
            log = RedisEventLog(server.url, tenant=TENANT, timeout_seconds=1)
            assert [await log.append([entry("a")]) for _ in range(2)] == [[True], [True]]
            assert server.connections == 2
            await log.close()

    async def test_a_late_reply_never_meets_another_request(self) -> None:
        """The first write gets its answer (a duplicate) only after its time-out; the second must not see it."""

        async def late_then_prompt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(65536)
            is_first, said["connections"] = not said["connections"], said["connections"] + 1
            if is_first:
                await asyncio.sleep(0.15)
            mark = b"$-1\r\n" if is_first else b"+OK\r\n"
            writer.write(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n" + mark + b"$3\r\n1-1\r\n")
            await reader.read(65536)

        said = {"connections": 0}
        async with Impostor(late_then_prompt) as server:
            log = RedisEventLog(server.url, tenant=TENANT, timeout_seconds=0.1)
            with pytest.raises(DependencyError):
                await log.append([entry("a")])
            second = asyncio.create_task(log.append([entry("b")]))
            await asyncio.sleep(0.1)
            assert await second == [True]
            await log.close()

    async def test_an_idle_connection_that_was_closed_costs_nobody_an_event(
        self, log: RedisEventLog, redis_url: str
    ) -> None:
        await log.append([entry("a")])
        with redis.Redis.from_url(redis_url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.05)
        assert await log.append([entry("b")]) == [True]


class TestRoom:
    async def test_a_full_queue_refuses_at_once_and_takes_again_when_it_is_empty(self, redis_url: str) -> None:
        async with Impostor(hang) as hung:
            log = RedisEventLog(
                hung.url, tenant=TENANT, timeout_seconds=0.3, max_queued_events=3, max_queued_bytes=1000
            )
            waiting = asyncio.create_task(log.append([entry("a"), entry("b")], [BAD]))
            await asyncio.sleep(0)
            started = time.perf_counter()
            with pytest.raises(OverloadedError, match="no room for 1 events of 2 bytes: 3 events"):
                await log.append([entry("c")])
            with pytest.raises(OverloadedError, match="at most 3 events and 1000 bytes may"):
                log.require_room()
            assert time.perf_counter() - started < 0.1  # a millisecond, on a machine that has nothing else to do
            with pytest.raises(DependencyError, match="no confirmation"):
                await waiting
            log._url = redis_url
            assert await log.append([entry("c")]) == [True]
            await log.close()

    async def test_bytes_count_too_but_one_request_always_fits(self, redis_url: str) -> None:
        log = RedisEventLog(redis_url, tenant=TENANT, timeout_seconds=2, max_queued_events=100, max_queued_bytes=50)
        large = log.append([entry("large", event=b"x" * 60)])
        answers = await gathered(large, log.append([entry("small")]))
        assert answers[0] == [True]
        assert isinstance(answers[1], OverloadedError)
        some = await gathered(*(log.append([entry(f"e{n}", event=b"x" * 10)]) for n in range(6)))
        assert [type(answer) for answer in some] == [list] * 5 + [OverloadedError]
        await log.close()

    async def test_a_refused_request_wrote_nothing(self, redis_url: str) -> None:
        log = RedisEventLog(redis_url, tenant=TENANT, timeout_seconds=2, max_queued_events=1)
        answers = await gathered(log.append([entry("a")]), log.append([entry("b")]))
        assert isinstance(answers[1], OverloadedError)
        assert await log.append([entry("b")]) == [True]
        await log.close()
