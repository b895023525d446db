"""When the Python client tries again: any course of events, without a network."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.client import RefusedError, RetryPolicy, UnavailableError, make_event, new_event_id
from infra.client.clients import event_requests
from infra.client.retries import LATER, Answer, Failure, Outcome, Request, Wait, exchange, seconds_asked

NOW = datetime(2024, 3, 8, 13, tzinfo=UTC)
REQUEST = Request("/v1/events", b'{"events":[{"event_id":"e1"}]}')
TRUTH = {"results": []}


class Course(NamedTuple):
    """What an exchange did: requests sent, waits between them, and its end."""

    sent: list[Request]
    waits: list[float]
    end: Any


def run(outcomes: list[Outcome], policy: RetryPolicy, *, luck: float = 1.0, attempt_seconds: float = 0.1) -> Course:
    """`outcomes` one after another, then answers. Each attempt takes `attempt_seconds`; `luck` is the random number."""
    clock = 100.0
    steps = exchange(REQUEST, policy, clock=lambda: clock, rand=lambda: luck, wall=lambda: NOW)
    sent: list[Request] = []
    waits: list[float] = []
    coming = iter(outcomes)
    outcome: Outcome = None
    try:
        while True:
            step = steps.send(outcome)
            outcome = None
            if isinstance(step, Wait):
                waits.append(step.seconds)
                clock += step.seconds
            else:
                sent.append(step)
                clock += attempt_seconds
                outcome = next(coming, Answer(202, TRUTH))
    except StopIteration as done:
        return Course(sent, waits, done.value)
    except (RefusedError, UnavailableError) as error:
        return Course(sent, waits, error)


later = st.builds(
    Answer, st.sampled_from(sorted(LATER)), st.none(), st.sampled_from([None, "0", "1", "3", "soon", "999999999999"])
)
ended = st.one_of(later, st.builds(Failure, st.just("ReadTimeout")), st.just(Answer(200, None)))
policies = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 6),
    deadline_seconds=st.floats(0, 60),
    first_wait_seconds=st.floats(0, 1),
    longest_wait_seconds=st.floats(0, 20),
)


@given(st.lists(ended, max_size=8), policies, st.floats(0, 1))
@settings(deadline=None)
def test_whatever_happens(outcomes: list[Outcome], policy: RetryPolicy, luck: float) -> None:
    sent, waits, end = run(outcomes, policy, luck=luck)
    assert len(sent) == len(waits) + 1 <= policy.attempts
    assert set(sent) == {REQUEST}  # the same bytes, so the same ids
    for number, wait in enumerate(waits):
        outcome = outcomes[number]
        asked = float(outcome.retry_after) if isinstance(outcome, Answer) and outcome.retry_after in ("1", "3") else 0.0
        assert asked <= wait <= asked + min(policy.first_wait_seconds * 2**number, policy.longest_wait_seconds) + 1e-9
    if waits:
        assert 0.1 * len(waits) + sum(waits) <= policy.deadline_seconds + 1e-6
    if len(outcomes) < len(sent):
        assert end == TRUTH
    else:
        assert isinstance(end, UnavailableError)
        assert end.attempts == len(sent)


def test_waits_by_hand() -> None:
    policy = RetryPolicy(attempts=6, deadline_seconds=60, first_wait_seconds=0.5, longest_wait_seconds=3)
    outcomes: list[Outcome] = [Failure("x"), Answer(503, None, "2"), Failure("x"), Answer(429), Failure("x")]
    assert run(outcomes, policy).waits == [0.5, 2 + 1, 2, 3, 3]
    assert run(outcomes, policy, luck=0.0).waits == [0, 2, 0, 0, 0]
    # 0.1 + 0.5 + 0.1 seconds are over; two more seconds and a jitter of one would end after three.
    short = run(outcomes, RetryPolicy(attempts=6, deadline_seconds=3, first_wait_seconds=0.5))
    assert (short.waits, short.end.retry_after) == ([0.5], 2)
    assert str(short.end) == "tried 2 times, last: HTTP 503: no words; it asks to come back in 2 s"


@pytest.mark.parametrize("status", [301, 400, 401, 404, 413, 415, 422])
def test_a_no_is_final(status: int) -> None:
    problem = {"title": "T", "detail": "D", "request_id": "r", "errors": [{"field": "num_results"}]}
    sent, waits, end = run([Answer(status, problem, "1")], RetryPolicy())
    assert (len(sent), waits, end.status, end.field) == (1, [], status, "num_results")
    assert str(end) == f"HTTP {status}: D (request r)"
    (_, _, end) = run([Answer(status, "not ours")], RetryPolicy())
    assert (str(end), end.field) == (f"HTTP {status}: no reason given", None)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0), ("", 0), ("0", 0), ("7", 7), (" 7 ", 7), ("-1", 0), ("1.5", 0), ("soon", 0), ("٣", 0),
        ("Fri, 08 Mar 2024 13:00:30 GMT", 30), ("Fri, 08 Mar 2024 12:00:00 GMT", 0),
    ],
)  # fmt: skip
def test_retry_after_in_all_its_forms(header: str | None, seconds: float) -> None:
    assert seconds_asked(header, lambda: NOW) == seconds


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    for wrong in ({"attempts": 0}, {"deadline_seconds": -1}, {"first_wait_seconds": -0.1}):
        with pytest.raises(ValueError, match="1 or more attempts"):
            RetryPolicy(**wrong)


def test_ids_are_made_once_and_in_order_of_time() -> None:
    ids = [new_event_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {(uuid.UUID(one).version, uuid.UUID(one).variant) for one in ids} == {(7, uuid.RFC_4122)}
    assert [one[:13] for one in ids] == sorted(one[:13] for one in ids)
    age = datetime.now(UTC).timestamp() - int(ids[0].replace("-", "")[:12], 16) / 1000
    assert 0 <= age < 60

    event = make_event("click", user_id="u1", item_id="i1", placement=None, timestamp=NOW + timedelta(microseconds=5))
    assert make_event("click", anonymous_id="a", event_id="mine")["event_id"] == "mine"
    assert {k: v for k, v in event.items() if k != "event_id"} == {
        "event_type": "click", "user_id": "u1", "item_id": "i1", "timestamp": "2024-03-08T13:00:00.000005Z",
    }  # fmt: skip
    with pytest.raises(ValueError, match="user_id or an anonymous_id"):
        make_event("click")
    with pytest.raises(ValueError, match="without a time zone"):
        make_event("click", user_id="u1", timestamp=datetime(2024, 3, 8))  # noqa: DTZ001

    (first, second) = event_requests([event, {"event_type": "search"}, {"event_id": "mine"}], 2)
    sent = [one for request in (first, second) for one in json.loads(request.content)["events"]]
    assert [one["event_id"] for one in sent] == [event["event_id"], sent[1]["event_id"], "mine"]
    assert uuid.UUID(sent[1]["event_id"]).version == 7
