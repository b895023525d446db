"""Work that stands back: where it runs, at what priority, and that it does not starve."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from serving.speed.giving_way import FULL_STEPS, LowPriority

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
