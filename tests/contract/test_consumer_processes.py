"""Real consumer processes on real Redis servers: they share, stop, die, come back; nothing is lost or counted twice."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from feature_repo.contracts import environment as names
from feature_repo.contracts.events import check_event
from feature_repo.contracts.keys import (
    EVENT_PARTITIONS,
    applied_key,
    dead_letter_stream_key,
    dedup_key,
    members_key,
    owner_key,
    partition_of,
    session_key,
    speed_counters_key,
    stream_key,
)
from feature_repo.contracts.session_record import pack_session, unpack_session
from infra.local.redis_server import RunningServer
from tests.session_oracle import oracle
from tests.waiting import wait_for

pytestmark = pytest.mark.redis

USERS = [f"u{number}" for number in range(16)]

TRAPPED = """
import os, signal, sys
from serving.speed import applier, consumer

fold_event, traps = applier.fold_event, [{signal}]

def fold(state, event):
    if event["event_id"] == "trap" and traps:
        os.kill(os.getpid(), traps.pop())
    fold_event(state, event)

applier.fold_event = fold
sys.exit(consumer.main())
"""
"""A consumer that gets a signal while it applies the event `trap`, between its read and its write."""


class Shop:
    """Both Redis roles, what was sent, and the consumers that run."""

    def __init__(self, folder: Path, log: RunningServer, online: RunningServer) -> None:
        self.folder = folder
        self.log = redis.Redis.from_url(log.url)
        self.online = redis.Redis.from_url(online.url)
        self.variables = {
            **os.environ,
            names.HOME: str(folder / "home"),
            names.REDIS_LOG_URL: log.url,
            names.REDIS_ONLINE_URL: online.url,
            "NIGHTJAR_SERVING_LEASE_SECONDS": "1",
            "NIGHTJAR_SERVING_CONSUMER_BATCH": "20",
            "PYTHONUNBUFFERED": "1",
        }
        self.sent: list[dict[str, Any]] = []
        self.numbers = itertools.count()
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *, trap: signal.Signals | None = None) -> subprocess.Popen[bytes]:
        program = ["-m", "serving.speed.consumer"] if trap is None else ["-c", TRAPPED.format(signal=int(trap))]
        with self.output_of(len(self.processes)).open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *program],
                env=self.variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def output_of(self, number: int) -> Path:
        return self.folder / f"consumer-{number}.log"

    def send(self, *users: str, event_id: str | None = None, raw: bytes | None = None) -> None:
        """An item into the cart of each user, accepted as the API accepts it. Whoever views so fast is a bot."""
        for user in users:
            number = next(self.numbers)
            name = event_id or f"e{number}"
            event = {
                "event_id": name, "event_type": "add_to_cart", "user_id": user, "item_id": f"i{number % 7}",
                "timestamp": datetime.now(UTC).isoformat(),
            }  # fmt: skip
            partition = partition_of(f"u:{user}")
            pipe = self.log.pipeline(transaction=True)
            pipe.set(dedup_key(partition, name), f"n{number}", nx=True)
            pipe.xadd(stream_key(partition), {"event": raw or json.dumps(event), "nonce": f"n{number}"})
            pipe.execute()
            if raw is None:
                self.sent.append(event)

    def owners(self) -> list[str | None]:
        """The member that owns each partition now."""
        found: Any = self.online.mget([owner_key(partition) for partition in range(EVENT_PARTITIONS)])
        return [None if one is None else one.decode().partition(":")[2] for one in found]

    def shares(self) -> list[int]:
        owners = self.owners()
        return sorted(owners.count(member) for member in set(owners) - {None})

    def counters(self) -> dict[str, int]:
        return {k.decode(): int(v) for k, v in self.online.hgetall(speed_counters_key()).items()}

    def is_drained(self) -> bool:
        for partition in range(EVENT_PARTITIONS):
            last: Any = self.log.xrevrange(stream_key(partition), count=1)
            if last and self.online.get(applied_key(partition)) != last[0][0]:
                return False
        return True

    def assert_everything_counted_once(self, *, dead: int = 0) -> None:
        wait_for(self.is_drained, "the streams are drained")
        expected = {"applied": len(self.sent)} | ({"dead_lettered": dead} if dead else {})
        assert self.counters() == expected
        for user in {event["user_id"] for event in self.sent}:
            mine = [event for event in self.sent if event["user_id"] == user]
            checked = [check_event(event, received_at=datetime.now(UTC))[0] for event in mine]
            record = self.online.get(session_key(f"u:{user}"))
            assert record == pack_session(oracle([event for event in checked if event is not None])), user


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with RunningServer("log", tmp_path / "log") as log, RunningServer("online", tmp_path / "online") as online:
        made = Shop(tmp_path, log, online)
        yield made
        for process in made.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        made.log.close()
        made.online.close()


def test_processes_share_the_partitions_and_hand_them_over(shop: Shop) -> None:
    first = shop.start()
    shop.send(*USERS)
    wait_for(lambda: shop.shares() == [4], "the first owns everything")
    second = shop.start()
    wait_for(lambda: shop.send(*USERS) or shop.shares() == [2, 2], "each owns two")
    shop.start()
    wait_for(lambda: shop.send(*USERS) or shop.shares() == [1, 1, 2], "three share")
    shop.assert_everything_counted_once()

    # One says good-bye: the others have its share long before its term is over.
    second.terminate()
    assert second.wait(10) == 0
    wait_for(lambda: shop.send(*USERS) or shop.shares() == [2, 2], "two share")
    # One dies: its term ends, and nothing of what it had begun is lost or counted twice.
    shop.send(*USERS)
    first.kill()
    first.wait()
    wait_for(lambda: shop.send(*USERS) or shop.shares() == [4], "the last one owns everything")
    shop.assert_everything_counted_once()
    assert shop.online.ttl(members_key("consumer")) <= 2


def test_an_owner_that_was_stopped_in_the_middle_of_a_batch_writes_nothing_when_it_wakes(shop: Shop) -> None:
    sleeper = shop.start(trap=signal.SIGSTOP)
    shop.send(*USERS)
    wait_for(lambda: shop.shares() == [4] and shop.is_drained(), "the first works")
    asleep = shop.owners()[0]
    shop.send("u1", event_id="trap")
    os.waitpid(sleeper.pid, os.WUNTRACED)
    shop.send(*USERS)
    shop.start()
    wait_for(lambda: shop.shares() == [4] and asleep not in shop.owners(), "the second took over")
    shop.assert_everything_counted_once()
    sleeper.send_signal(signal.SIGCONT)
    wait_for(lambda: "has another owner" in shop.output_of(0).read_text() or "reading anew" in
             shop.output_of(0).read_text(), "the sleeper finds out")  # fmt: skip
    shop.assert_everything_counted_once()
    wait_for(lambda: shop.send(*USERS) or shop.shares() == [2, 2], "the sleeper is one of two again")
    shop.assert_everything_counted_once()


def test_an_entry_that_kills_its_consumer_is_buried_after_three_and_the_others_are_applied(shop: Shop) -> None:
    shop.send(*USERS)
    shop.send("u1", event_id="trap")
    shop.sent.pop()
    shop.send(*USERS)
    deaths = 0
    for _ in range(5):
        process = shop.start(trap=signal.SIGKILL)
        wait_for(lambda process=process: process.poll() is not None or shop.is_drained(), "it died or is done")
        if process.poll() is None:
            break
        assert process.wait() == -signal.SIGKILL
        deaths += 1
    assert deaths == 3
    shop.assert_everything_counted_once(dead=1)
    ((_, letter),) = shop.log.xrange(dead_letter_stream_key())
    assert json.loads(letter[b"event"])["event_id"] == "trap"
    assert letter[b"error"] == b"its consumer died in each of 3 deliveries"


def test_good_entries_behind_poison_wait_less_than_100_ms(shop: Shop) -> None:
    shop.start()
    shop.send(*USERS)
    wait_for(lambda: shop.shares() == [4] and shop.is_drained(), "the consumer works")
    waits = []
    for number in range(6):
        shop.send("u1", event_id=f"poison{number}", raw=b"{")
        began = time.monotonic()
        shop.send("u1")
        wanted = len([event for event in shop.sent if event["user_id"] == "u1"])
        key = session_key("u:u1")
        while len(unpack_session(shop.online.get(key)).events) < wanted:  # type: ignore[arg-type]
            time.sleep(0.0005)
        waits.append(time.monotonic() - began)
    assert min(waits) < 0.1, waits
    shop.assert_everything_counted_once(dead=6)
