"""How long a write of the event log waits for others; times in milliseconds."""

from __future__ import annotations

import pytest

from serving.adapters.gathering import Gathering


class Log:
    """A log whose clock stands where the test puts it."""

    def __init__(self) -> None:
        self.ms = 1000.0
        self.waits = Gathering(seconds=lambda: self.ms / 1000)

    def left_ms(self, events: int = 1) -> float:
        return self.waits.left(events) * 1000

    def write(self, *, after_ms: float, others_ms: tuple[float, ...] = ()) -> bool:
        """A request comes so long after the last write, others so long after it; whether it had to wait for its write,
        which is made when it may be."""
        began = self.ms
        self.ms = began + after_ms
        self.waits.come(1)
        left = self.left_ms()
        if left > 0:
            self.waits.wait()
            for other in others_ms:
                self.ms = began + other
                self.waits.come(2)
            self.ms = began + after_ms + left
        self.waits.write()
        return left > 0


def test_a_write_leaves_at_once_when_the_last_one_was_long_ago() -> None:
    log = Log()
    assert log.left_ms() <= 0  # the first of all
    log.waits.write()
    log.ms += 0.5
    assert log.left_ms() == pytest.approx(1.5)
    log.ms += 1.5
    assert log.left_ms() <= 1e-9


def test_many_events_do_not_wait() -> None:
    log = Log()
    log.waits.write()
    assert log.left_ms(31) == pytest.approx(2.0)
    assert log.left_ms(32) == 0
    assert log.waits.come(31)
    assert not log.waits.come(32)


def test_where_requests_keep_coming_writes_are_two_milliseconds_apart() -> None:
    log = Log()
    log.waits.write()
    for _ in range(5):
        assert log.write(after_ms=0.5, others_ms=(1.0, 1.5))


def test_who_waits_in_vain_waits_ever_more_seldom() -> None:
    """A client that sends when it has its answer, half a millisecond after each write: it waits, then goes 1, 2, 4 ...
    and at most 64 times without."""
    log = Log()
    log.waits.write()
    waited = [log.write(after_ms=0.5) for _ in range(340)]
    gaps, since = [], 0
    for one in waited:
        if one:
            gaps.append(since)
        since = 0 if one else since + 1
    assert gaps == [0, 1, 2, 4, 8, 16, 32, 64, 64, 64, 64]


def test_a_handful_that_all_wait_need_not() -> None:
    """Seven more come right after the first, and then nobody can: the second half of the wait was in vain."""
    log = Log()
    log.waits.write()
    assert log.write(after_ms=0.3, others_ms=(0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9))
    assert not log.write(after_ms=0.3)


def test_one_who_comes_makes_up_for_waits_in_vain() -> None:
    log = Log()
    log.waits.write()
    assert [log.write(after_ms=0.5) for _ in range(4)] == [True, False, True, False]
    assert not log.write(after_ms=0.5)
    assert log.write(after_ms=0.5, others_ms=(1.8,))
    assert log.write(after_ms=0.5)  # in vain; the next one alone goes without
    assert [log.write(after_ms=0.5, others_ms=(1.8,)) for _ in range(3)] == [False, True, True]
