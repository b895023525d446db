"""When a request is sent again, and when not: without I/O, for the sync and the async client alike.

Every request of this client may be sent twice: questions change nothing, and events bear ids that the API knows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from infra.client.errors import RefusedError, UnavailableError

LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be another one next time."""


class Request(NamedTuple):
    """What is sent, each time the same bytes."""

    path: str
    content: bytes


class Answer(NamedTuple):
    """What came back. `document` is None when it is no JSON."""

    status: int
    document: Any = None
    retry_after: str | None = None


class Failure(NamedTuple):
    """No answer came back."""

    words: str


class Wait(NamedTuple):
    """Seconds until the next attempt."""

    seconds: float


Step = Request | Wait
Outcome = Answer | Failure | None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to try.

    attempts           how often a request is sent at most
    deadline_seconds   no attempt begins later than this after the first; a wait that would end later is not begun
    first_wait_seconds, longest_wait_seconds
                       before attempt n+1 a random time of at most first * 2**(n-1), and at most the longest (full
                       jitter), on top of what Retry-After asks for
    """

    attempts: int = 5
    deadline_seconds: float = 30.0
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.deadline_seconds, self.first_wait_seconds, self.longest_wait_seconds) < 0:
            raise ValueError(f"a policy has 1 or more attempts and no negative times, got {self}")

    def jitter(self, attempt: int, rand: Callable[[], float] = random.random) -> float:
        """The random part of the wait after the attempt of this number (from 1)."""
        # 2.0 ** 1024 is too large for a float
        return rand() * min(self.first_wait_seconds * 2.0 ** min(attempt - 1, 64), self.longest_wait_seconds)


def exchange(
    request: Request,
    policy: RetryPolicy,
    *,
    clock: Callable[[], float] = time.monotonic,
    rand: Callable[[], float] = random.random,
    wall: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Generator[Step, Outcome, Any]:
    """Yields what to do next, takes what came of it, returns the JSON of the answer.

    Raises RefusedError for an answer that says no, UnavailableError when the policy is used up. An answer of 2xx
    that is no JSON comes from somebody else on the way, and counts as no answer.
    """
    started = clock()
    attempt = 0
    while True:
        attempt += 1
        outcome = yield request
        asked = 0.0
        if isinstance(outcome, Answer):
            if 200 <= outcome.status < 300 and outcome.document is not None:
                return outcome.document
            problem = outcome.document if isinstance(outcome.document, Mapping) else {}
            if not (200 <= outcome.status < 300 or outcome.status in LATER):
                raise RefusedError(outcome.status, problem)
            asked = seconds_asked(outcome.retry_after, wall)
            words = f"HTTP {outcome.status}: {problem.get('detail') or problem.get('title') or 'no words'}"
        else:
            assert isinstance(outcome, Failure)
            words = outcome.words
        wait = asked + policy.jitter(attempt, rand)
        if attempt >= policy.attempts or clock() - started + wait > policy.deadline_seconds:
            raise UnavailableError(attempt, words, retry_after=asked or None)
        yield Wait(wait)


def seconds_asked(header: str | None, wall: Callable[[], datetime]) -> float:
    """What a Retry-After header asks for: whole seconds or a date; 0 without one, or for one that says nothing."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (moment.astimezone(UTC) - wall()).total_seconds())
