"""Work that stands back: where it runs, at what priority, and that it does not starve."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from serving.speed.giving_way import FULL_STEPS, LowPriority, Rests, seconds_waited

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")


def where() -> tuple[int, int]:
    """Thread and niceness of the caller."""
    thread = threading.get_native_id()
    return thread, os.getpriority(os.PRIO_PROCESS, thread)


@on_linux
def test_only_the_thread_that_catches_up_stands_back() -> None:
    here, own = where()
    backlog = LowPriority(19, longest_seconds=60)
    first, second = backlog.call(where), backlog.call(where)
    backlog.close()
    assert first == second
    assert first[0] != here
    assert first[1] == 19
    assert where() == (here, own)


@on_linux
def test_who_is_nicer_already_stays_so() -> None:
    found: list[tuple[int, int]] = []

    def nice_one() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        backlog = LowPriority(5, longest_seconds=60)  # a thread has the priority of the one that starts it
        found.append(backlog.call(where))
        backlog.close()

    thread = threading.Thread(target=nice_one)
    thread.start()
    thread.join()
    assert [niceness for _, niceness in found] == [19]


@on_linux
def test_a_step_that_took_too_long_is_followed_by_some_at_full_priority() -> None:
    now = [0.0]
    backlog = LowPriority(19, longest_seconds=1.0, seconds=lambda: now[0])

    def step(seconds: float) -> bool:
        def work() -> bool:
            now[0] += seconds
            return where()[1] == 19

        return backlog.call(work)

    assert [step(1.0), step(1.1)] == [True, True]
    assert [step(5.0) for _ in range(FULL_STEPS)] == [False] * FULL_STEPS
    assert [step(0.1), step(0.1)] == [True, True]
    backlog.close()


@pytest.mark.parametrize("niceness", [0, 7])
def test_what_it_raises_comes_out(niceness: int) -> None:
    def fail() -> None:
        raise OSError("gone")

    backlog = LowPriority(niceness, longest_seconds=60)
    with pytest.raises(OSError, match="gone"):
        backlog.call(fail)
    backlog.close()


def test_without_niceness_it_works_where_it_is_called() -> None:
    backlog = LowPriority(0, longest_seconds=60)
    assert backlog.call(where) == where()
    backlog.close()


class Times:
    """The clocks that rests go by; a batch takes what it says, while others wait for so long."""

    def __init__(self, longest_seconds: float = 60.0) -> None:
        self.now, self.worked = 100.0, 3.0
        self.waited: float | None = 7.0
        self.rests = Rests(
            longest_seconds,
            seconds=lambda: self.now,
            wall_seconds=lambda: 5000.0,
            cpu_seconds=lambda: self.worked,
            waited=lambda: self.waited,
        )

    def batch(
        self, seconds: float, *, waited: float | None, reached: float = 0.0, worked: float | None = None
    ) -> float:
        """The rest behind it. `reached`: when the log took its end; `worked`: of the processor, by default as long."""
        self.rests.begin()
        self.now += seconds
        self.worked += seconds if worked is None else worked
        self.waited = waited if waited is None or self.waited is None else self.waited + waited
        return self.rests.due(int(reached * 1e6))


def test_rests_are_nine_times_the_work_of_a_batch_and_a_second_at_most() -> None:
    times = Times()
    assert times.batch(0.02, waited=0.01) == pytest.approx(0.18)
    assert times.batch(0.5, waited=0.5) == 1.0


def test_waiting_for_a_processor_is_no_work() -> None:
    assert Times().batch(0.4, waited=0.4, worked=0.02) == pytest.approx(0.18)


def test_nobody_rests_where_a_processor_was_free() -> None:
    times = Times()
    assert times.batch(0.1, waited=0.004) == 0.0
    assert times.batch(0.1, waited=0.006) == pytest.approx(0.9)
    assert times.batch(0.1, waited=None) == pytest.approx(0.9)  # nobody says: none was


@pytest.mark.parametrize(("reached", "rests"), [(4989.9, 0.9), (4990.1, 0.0), (5003.0, 0.0)])
def test_what_is_young_is_not_kept_waiting(reached: float, rests: float) -> None:
    assert Times().batch(0.1, waited=0.1, reached=reached) == pytest.approx(rests)


def test_a_backlog_has_an_end_to_its_rests() -> None:
    times = Times(longest_seconds=2.0)
    assert [times.batch(0.9, waited=1.0) > 0 for _ in range(4)] == [True, True, False, False]
    times.rests.over()
    assert times.batch(0.9, waited=1.0) > 0
    assert Times(longest_seconds=0.0).batch(0.1, waited=0.1) == 0.0


@on_linux
def test_the_kernel_says_how_long_others_waited() -> None:
    try:
        total = int(Path("/proc/pressure/cpu").read_text().split()[4].removeprefix("total="))
    except OSError:
        pytest.skip("this kernel does not say it")
    found = seconds_waited()
    assert found is not None
    assert 0 <= found - total / 1e6 < 60
