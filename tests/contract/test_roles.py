"""A role is kept while its process works, however long a step takes, and free when the process hangs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from feature_repo.contracts.errors import DependencyError
from serving.speed.delta_archive import DeltaArchive
from serving.speed.metrics import ArchiverMetrics
from serving.speed.roles import LONGEST_SILENCE_SECONDS, Lease, run_role

TERM_SECONDS = 0.3


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with redis.Redis.from_url(redis_url) as found:
        yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def work(client: redis.Redis, resume: Callable[[], None], step: Callable[[], None]) -> None:
    """One step under the role, as a process makes it."""

    def one_step(stopping: threading.Event) -> None:
        step()
        stopping.set()

    lease = Lease(client, "role", seconds=TERM_SECONDS)
    assert run_role("worker", lease, resume=resume, step=one_step, metrics=ArchiverMetrics()) == 0


class TestAStepLongerThanATerm:
    @pytest.mark.parametrize("long", ["opening", "step"])
    def test_nobody_takes_the_role_meanwhile(self, client: redis.Redis, long: str) -> None:
        other = Lease(client, "role", seconds=TERM_SECONDS)
        taken: list[bool] = []

        def wait_for_four_terms() -> None:
            until = time.monotonic() + 4 * TERM_SECONDS
            while time.monotonic() < until:
                taken.append(other.hold())
                time.sleep(TERM_SECONDS / 20)

        pieces = {"opening": lambda: None, "step": lambda: None, long: wait_for_four_terms}
        work(client, pieces["opening"], pieces["step"])
        assert len(taken) > 20
        assert not any(taken)
        assert other.hold()  # it was given up at the end


class TestBeat:
    def test_who_hangs_is_replaced_at_last(self, client: redis.Redis) -> None:
        now = [0.0]
        lease = Lease(client, "role", seconds=3, timer=lambda: now[0])
        assert lease.hold()
        now[0] = LONGEST_SILENCE_SECONDS - 1
        client.pexpire("role", 500)
        lease.beat()
        assert client.pttl("role") > 2000
        now[0] = LONGEST_SILENCE_SECONDS + 1
        client.pexpire("role", 500)
        lease.beat()
        assert 0 < client.pttl("role") <= 500

    def test_it_renews_after_a_third_of_a_term(self, client: redis.Redis) -> None:
        now = [0.0]
        lease = Lease(client, "role", seconds=3, timer=lambda: now[0])
        lease.hold()
        client.pexpire("role", 500)
        now[0] = 0.9
        lease.beat()
        assert client.pttl("role") <= 500
        now[0] = 1.1
        lease.beat()
        assert client.pttl("role") > 2000

    def test_who_waits_for_the_role_takes_it_only_to_work(self, client: redis.Redis) -> None:
        now = [0.0]
        holder, waiter = (Lease(client, "role", seconds=3, timer=lambda: now[0]) for _ in range(2))
        assert (holder.hold(), waiter.hold()) == (True, False)
        holder.release()
        now[0] = 5.0
        waiter.beat()
        holder.beat()
        assert not client.exists("role")

    def test_a_role_that_is_somebody_elses_is_left_to_them(self, client: redis.Redis) -> None:
        now = [0.0]
        sleeper, other = (Lease(client, "role", seconds=3, timer=lambda: now[0]) for _ in range(2))
        sleeper.hold()
        client.delete("role")  # the term ended
        assert other.hold()
        client.pexpire("role", 500)
        now[0] = 5.0
        sleeper.beat()
        assert 0 < client.pttl("role") <= 500
        assert not sleeper.hold()


def test_what_a_stale_owner_appends_is_refused(tmp_path: Path) -> None:
    """It slept between asking for its role and its commit; meanwhile somebody else archived the same entries."""
    archives = [DeltaArchive(str(tmp_path), "bronze.quarantine", tenant="default") for _ in range(2)]
    for archive in archives:
        archive.open()
    successor, sleeper = archives
    successor.append([], {"archiver:a": 5, "archiver:b": 7})
    with pytest.raises(DependencyError, match="cannot be written"):
        sleeper.append([], {"archiver:b": 7})
    sleeper.open()
    assert (sleeper.position("archiver:a"), sleeper.position("archiver:b")) == (5, 7)
