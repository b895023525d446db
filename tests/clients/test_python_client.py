"""The Python client against a real API, through a proxy that loses what can be lost."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from infra.client import (
    AsyncEventQueue,
    AsyncNightjarClient,
    EventQueue,
    EventResult,
    NightjarClient,
    QueueStatistics,
    RefusedError,
    RetryPolicy,
    UnavailableError,
    make_event,
)
from tests.clients.served import ServedApi, wait_for

pytestmark = pytest.mark.redis

QUICK = RetryPolicy(attempts=8, first_wait_seconds=0.01, longest_wait_seconds=0.02)


def clicks(count: int, user_id: str = "u1") -> list[dict[str, Any]]:
    return [make_event("click", user_id=user_id, item_id=f"i{number}") for number in range(count)]


def connect(api: ServedApi, **settings: Any) -> NightjarClient:
    return NightjarClient(api.proxy.url + "/", **{"event_policy": QUICK, "read_policy": QUICK, **settings})


def ids(events: Sequence[Any]) -> list[str]:
    return [event["event_id"] for event in events]


class TestSlates:
    def test_a_slate_and_items_like_one(self, api: ServedApi) -> None:
        with connect(api) as client:
            slate = client.recommend("u1", num_results=3, placement="start", session_id=None)
            assert (slate.item_ids, slate.placement) == (["i0", "i1", "i2"], "start")
            assert (slate.fallback_level, slate.degraded) == ("personal", False)
            first = slate.items[0]
            assert (first.rank, first.score, first.source, first.attributes["title"]) == (1, 1.0, "als", "I0")
            assert slate.raw["recommendation_id"] == slate.recommendation_id
            assert client.recommend(consent={"personalize": False}).fallback_reason == "consent"
            similar = client.similar("i3", num_results=2)
            assert (len(similar.items), similar.fallback_level, similar.placement) == (2, "similar", "similar")
            assert all(reason.text for reason in similar.items[0].reasons)

    def test_given_items_in_order_and_a_page(self, api: ServedApi) -> None:
        with connect(api) as client:
            ranked = client.rank(["nowhere", "i2", "i0"], "u1", num_results=3)
            assert (ranked.item_ids, ranked.items[2].attributes["title"]) == (["i0", "i2", "nowhere"], None)
            places = [{"num_results": 2}, {"kind": "similar", "item_id": "i3", "num_results": 2}]
            page = client.page("landing", "u1", placements=places)
            assert (page.page, page.degraded) == ("landing", False)
            assert [one.placement for one in page.placements] == ["recommendations", "similar"]
            assert page.placements[0].item_ids == ["i0", "i1"]
            assert not set(page.placements[0].item_ids) & set(page.placements[1].item_ids)
            with pytest.raises(RefusedError, match="did you mean 'home'"):
                client.page("hme")

    def test_what_is_wrong_is_said_at_once(self, api: ServedApi) -> None:
        with connect(api) as client:
            with pytest.raises(RefusedError, match="num_results") as refused:
                client.recommend("u1", num_results=0)
            assert (refused.value.status, refused.value.field) == (422, "num_results")
            with pytest.raises(RefusedError, match="no item 'i99'") as unknown:
                client.similar("i99")
            assert (unknown.value.status, unknown.value.field) == (404, "item_id")
            with pytest.raises(RefusedError, match="no such field"):
                client.recommend("u1", num_result=3)
        with NightjarClient(api.pages.url, read_policy=QUICK) as elsewhere, pytest.raises(RefusedError, match="501"):
            elsewhere.recommend("u1")
        nobody = RetryPolicy(attempts=3, first_wait_seconds=0.0)
        with (
            NightjarClient("http://127.0.0.1:1", read_policy=nobody) as alone,
            pytest.raises(UnavailableError, match="tried 3 times, last: ConnectError at http://127"),
        ):
            alone.recommend("u1")


class TestSending:
    def test_a_retry_bears_the_same_ids_and_counts_once(self, api: ServedApi) -> None:
        api.proxy.plan += ["refuse", (503, {"Retry-After": "0"}), "lose answer", "hang", (429, {}), "pass"]
        events = [{"event_type": "search", "anonymous_id": "a1", "timestamp": "2024-03-08T13:00:00Z"}, *clicks(2)]
        with connect(api, timeout_seconds=0.5) as client:
            results = client.send(events)
        assert [result.status for result in results] == ["duplicate"] * 3  # by then they had been accepted
        assert all(result.is_taken and result.is_stored for result in results)
        assert [result.event_id for result in results[1:]] == ids(events[1:])
        assert len(api.proxy.arrived) == 6
        assert {tuple(ids(arrived.events)) for arrived in api.proxy.arrived} == {tuple(r.event_id for r in results)}
        assert Counter(ids(api.events())) == Counter(ids(api.proxy.arrived[0].events))

    def test_each_event_has_its_status(self, api: ServedApi) -> None:
        good, again = clicks(2)
        events = [
            good,
            make_event("clik", user_id="u1", event_id="odd"),
            make_event("search", user_id="u1", consent={"store": False}),
            again,
            again,
        ]
        with connect(api) as client:
            results = client.send(events)
            assert client.send([]) == []
        assert [(r.status, r.is_taken, r.is_stored) for r in results] == [
            ("accepted", True, True), ("quarantined", False, True), ("accepted", True, False), ("accepted", True, True),
            ("duplicate", True, True),
        ]  # fmt: skip
        assert (results[1].event_id, results[1].reason, results[1].field) == ("odd", "unknown_event_type", "event_type")
        assert "did you mean 'click'" in str(results[1].detail)
        assert sorted(ids(api.events())) == sorted(ids([good, again]))

    def test_many_events_are_several_requests_and_an_error_tells_how_far_it_came(self, api: ServedApi) -> None:
        api.proxy.plan += ["pass", (400, {})]
        events = clicks(5)
        with connect(api, max_events=2) as client:
            with pytest.raises(RefusedError, match="HTTP 400") as refused:
                client.send(events)
            assert [result.event_id for result in refused.value.results] == ids(events[:2])
            assert Counter(r.status for r in client.send(events)) == {"accepted": 3, "duplicate": 2}
        assert [len(arrived.events) for arrived in api.proxy.arrived] == [2, 2, 2, 2, 1]

    def test_it_waits_as_long_as_it_is_asked_and_not_when_that_is_too_long(self, api: ServedApi) -> None:
        api.proxy.plan += [(503, {"Retry-After": "1"}), "pass", (503, {"Retry-After": "60"})]
        with connect(api) as client:
            client.send(clicks(1))
            first, second = api.proxy.arrived
            assert second.at - first.at >= 1.0
            started = time.monotonic()
            with pytest.raises(UnavailableError, match="60 s") as unavailable:
                client.send(clicks(1))
        assert (unavailable.value.retry_after, unavailable.value.attempts) == (60, 1)
        assert time.monotonic() - started < 30

    async def test_the_same_with_asyncio(self, api: ServedApi) -> None:
        api.proxy.plan += ["refuse", "lose answer", (503, {}), "hang", "pass", (400, {})]
        events = clicks(3)
        policies = {"event_policy": QUICK, "read_policy": QUICK, "timeout_seconds": 0.5}
        async with AsyncNightjarClient(api.proxy.url, **policies) as client:
            assert [result.status for result in await client.send(events)] == ["duplicate"] * 3
            assert {tuple(ids(a.events)) for a in api.proxy.arrived} == {tuple(ids(events))}
            with pytest.raises(RefusedError):
                await client.send(events)
            assert (await client.recommend("u1", num_results=2)).item_ids == ["i0", "i1"]
            assert (await client.similar("i3")).fallback_level == "similar"
            assert (await client.rank(["i2", "i0"], "u1")).item_ids == ["i0", "i2"]
            assert len((await client.page("home", "u1")).placements) == 4
            with pytest.raises(RefusedError, match="num_results"):
                await client.recommend("u1", num_results=0)
        assert Counter(ids(api.events())) == Counter(ids(events))


class Book:
    """What a queue reports."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        self.reasons: list[str] = []
        self.results: list[EventResult] = []

    def on_dropped(self, events: Sequence[Any], why: str) -> None:
        self.dropped += ids(events)
        self.reasons.append(why)

    def on_results(self, results: Sequence[EventResult]) -> None:
        self.results += results

    @property
    def callbacks(self) -> dict[str, Any]:
        return {"on_dropped": self.on_dropped, "on_results": self.on_results}


class TestQueue:
    def test_batches_by_number_and_by_age(self, api: ServedApi) -> None:
        book = Book()
        with (
            connect(api) as client,
            EventQueue(client, max_batch=10, max_delay_seconds=0.3, **book.callbacks) as queue,
        ):
            started = time.monotonic()
            put = [queue.put(event) for event in clicks(23)]
            wait_for(lambda: len(book.results) == 23, "all are sent without a flush")
            assert [len(arrived.events) for arrived in api.proxy.arrived] == [10, 10, 3]
            assert api.proxy.arrived[2].at - started >= 0.3  # full ones at once, the rest when it is old enough
            assert put == [result.event_id for result in book.results]
            assert (queue.flush(0), queue.statistics()) == (True, QueueStatistics(put=23, sent=23))

    def test_the_end_sends_what_waits(self, api: ServedApi) -> None:
        with connect(api) as client:
            with EventQueue(client, max_delay_seconds=60) as queue:
                queue.put(make_event("search", user_id="u1"))
            assert (len(api.events()), queue.statistics().sent) == (1, 1)
            book = Book()
            late = EventQueue(client, **book.callbacks)
            late.close()
            assert late.put(make_event("search", user_id="u1")) == book.dropped[0]
            assert late.statistics() == QueueStatistics(put=1, dropped=1)
        program = (
            "from infra.client import *\n"
            f"queue = EventQueue(NightjarClient({api.proxy.url!r}), max_delay_seconds=60)\n"
            "queue.put(make_event('share', user_id='u1', item_id='i1'))\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
        assert api.types() == ["search", "share"]

    def test_it_is_bounded_and_says_what_it_drops(self, api: ServedApi, caplog: pytest.LogCaptureFixture) -> None:
        api.proxy.always = "refuse"
        book = Book()
        with connect(api) as client:
            queue = EventQueue(client, max_batch=2, max_waiting=4, policy=QUICK, **book.callbacks)
            put = [queue.put(event) for event in clicks(6)]
            assert (book.dropped, book.reasons) == (put[4:], ["the queue is full or closed"] * 2)
            assert queue.flush(0.1) is False
            assert queue.statistics() == QueueStatistics(put=6, dropped=2, waiting=4)
            assert queue.close(0.1) == QueueStatistics(put=6, dropped=6)
        assert sorted(book.dropped) == sorted(put)
        assert book.reasons[-1] == "not sent before the queue was closed"
        assert [record.getMessage() for record in caplog.records if record.name == "nightjar.client"][-1] == (
            "dropped 4 event(s): not sent before the queue was closed"
        )

    def test_what_is_refused_does_not_hold_up_the_rest(self, api: ServedApi) -> None:
        api.proxy.plan += [(413, {}), "pass", "pass", (400, {}), "pass"]
        book = Book()
        with (
            connect(api) as client,
            EventQueue(client, max_batch=4, max_delay_seconds=60, **book.callbacks) as queue,
        ):
            first = [queue.put(event) for event in clicks(4)]  # too large: in halves
            assert queue.flush(30)
            refused = queue.put(make_event("search", user_id="u1"))
            assert queue.flush(30)
            odd = queue.put(make_event("clik", user_id="u1"))
            for no_json, words in ((float("nan"), "not JSON compliant"), ({1}, "not JSON serializable")):
                with pytest.raises((ValueError, TypeError), match=words):
                    queue.put(make_event("search", user_id="u1", value=no_json))
            assert queue.flush(30)
        assert [len(arrived.events) for arrived in api.proxy.arrived] == [4, 2, 2, 1, 1]
        assert sorted(ids(api.events())) == sorted(first)
        assert (book.dropped, book.reasons) == ([refused], ["HTTP 400: no reason given"])
        assert [result.event_id for result in book.results if not result.is_taken] == [odd]
        assert queue.statistics() == QueueStatistics(put=6, sent=4, quarantined=1, dropped=1)

    def test_a_wrong_address_is_said_and_can_be_mended(self, api: ServedApi, caplog: pytest.LogCaptureFixture) -> None:
        api.proxy.plan += [(404, {}), (401, {}), "pass"]
        with connect(api) as client, EventQueue(client, max_batch=1, policy=QUICK) as queue:
            queue.put(make_event("search", user_id="u1"))
            assert queue.flush(30)
        assert (len(api.events()), queue.statistics().sent) == (1, 1)
        assert [record.getMessage() for record in caplog.records if record.name == "nightjar.client"] == [
            "cannot send now, 1 event(s) wait: HTTP 404: no reason given"
        ]

    @pytest.mark.parametrize("seed", [1, 2])
    def test_whatever_the_network_does_each_event_counts_once(self, api: ServedApi, seed: int) -> None:
        chance = random.Random(seed)
        ways = ["pass", "lose answer", "refuse", (503, {}), (500, {}), (429, {"Retry-After": "0"})]
        api.proxy.plan += [chance.choice(ways) for _ in range(40)]
        book = Book()
        put: list[str] = []
        with (
            connect(api) as client,
            EventQueue(client, max_batch=7, max_delay_seconds=0.01, policy=QUICK, **book.callbacks) as queue,
        ):

            def shop(person: int) -> None:
                for event in clicks(50, f"u{person}"):
                    put.append(queue.put(event))

            threads = [threading.Thread(target=shop, args=(person,)) for person in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert queue.flush(60)
        assert len(put) == 150
        assert Counter(ids(api.events())) == Counter(put)
        assert Counter(str(result.event_id) for result in book.results) == Counter(put)
        assert queue.statistics() == QueueStatistics(put=150, sent=150)

    async def test_the_same_with_asyncio(self, api: ServedApi) -> None:
        chance = random.Random(3)
        api.proxy.plan += [chance.choice(["pass", "lose answer", "refuse", (503, {})]) for _ in range(12)]
        book = Book()
        async with AsyncNightjarClient(api.proxy.url) as client:
            async with AsyncEventQueue(
                client, max_batch=7, max_delay_seconds=0.01, policy=QUICK, **book.callbacks
            ) as queue:
                put = [queue.put(event) for event in clicks(50)]
                assert await queue.flush(60)
                put.append(queue.put(make_event("search", user_id="u1")))
            assert Counter(ids(api.events())) == Counter(put)
            assert Counter(str(result.event_id) for result in book.results) == Counter(put)
            assert queue.statistics() == QueueStatistics(put=51, sent=51)

            api.proxy.always = "refuse"
            full = AsyncEventQueue(client, max_batch=2, max_waiting=2, policy=QUICK, **book.callbacks)
            last = [full.put(event) for event in clicks(3)]
            assert await full.flush(0.1) is False
            assert await full.aclose(0.1) == QueueStatistics(put=3, dropped=3)
            assert book.dropped == [last[2], *last[:2]]
