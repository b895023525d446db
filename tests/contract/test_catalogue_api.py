"""PUT, PATCH and DELETE of items and users over HTTP: one suite on a real Redis and on the twins in memory."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import redis
from fastapi import FastAPI

from feature_repo.contracts.changes import ITEMS, USERS, Change, RecordState
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import candidates_key, change_stream_key, changed_records_key, pointer_key
from feature_repo.contracts.packing import PackedCandidate, Source, pack_candidates
from serving.adapters import change_feed
from serving.adapters.change_feed import Compacted, MemoryChangeFeed, RedisChangeFeed
from serving.adapters.memory_event_log import MemoryEventLog
from serving.adapters.online import MemoryOnlineStore
from serving.adapters.redis_event_log import RedisEventLog
from serving.main import create_app
from serving.pipeline.overlay import SERVED_FIELDS
from serving.settings import ServingSettings
from serving.speed.change_records import compact_changes
from serving.speed.positions import position_number
from tests.serving_builders import TENANT, Shop

SECOND = 1_000_000
NOW = 1_709_902_800 * SECOND  # 2024-03-08T13:00:00Z
ITEM_IDS = [f"i{number}" for number in range(4)]
SHOP = Shop(
    {item: {"title": item.upper(), "category": "A", "price": 2.0} for item in ITEM_IDS},
    popular=[(item, 9.0 - n) for n, item in enumerate(ITEM_IDS)],
)


class Floor:
    """Workers (applications) of one installation, and the log between them."""

    def __init__(self, environment: Environment, url: str | None) -> None:
        self.environment = environment
        self.url = url
        self.store = MemoryOnlineStore(tenant=TENANT)
        self.memory_log = MemoryEventLog(tenant=TENANT)
        self.memory_feed = MemoryChangeFeed(self.memory_log)
        self.now = NOW
        self.running = contextlib.AsyncExitStack()
        version = SHOP.write(environment.publications)
        self.store.strings[pointer_key()] = version.encode()
        rows = [PackedCandidate(n, 1.0 - n / 10, Source.ALS) for n in range(len(ITEM_IDS))]
        self.store.strings[candidates_key(version, "u1")] = pack_candidates(version, rows)

    async def worker(self, **settings: Any) -> httpx.AsyncClient:
        """One more worker, started as a server starts it."""
        numbers = itertools.count(1)
        log: Any = self.memory_log
        feed: Any = self.memory_feed
        if self.url is not None:
            log = RedisEventLog(self.url, tenant=TENANT, timeout_seconds=2)
            feed = RedisChangeFeed(self.url, tenant=TENANT, timeout_seconds=2)
        app: FastAPI = create_app(
            self.environment,
            ServingSettings(**settings),
            store=self.store,
            log=log,
            feed=feed,
            wall_micros=lambda: self.now,
            new_id=lambda: f"id{next(numbers)}",
        )
        await self.running.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return await self.running.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://api"))

    def stream(self) -> list[tuple[int, bytes]]:
        """(position, change) of all that lies in the change stream."""
        if self.url is None:
            return [(position_number(at), change) for at, change in self.memory_log.changes]
        with redis.Redis.from_url(self.url) as client:
            found: Any = client.xrange(change_stream_key(TENANT))
        return [(position_number(at.decode()), fields.get(b"change", b"")) for at, fields in found]

    def compact(self) -> None:
        """What the archiver does: one record per item, and a stream that is forgotten up to there."""
        entries = self.stream()
        if self.url is not None:
            with redis.Redis.from_url(self.url) as client:
                found: Any = client.xrange(change_stream_key(TENANT))
                compact_changes(client, [(at.decode(), fields) for at, fields in found], tenant=TENANT)
                client.delete(change_stream_key(TENANT))
            return
        states: dict[tuple[str, str], RecordState] = {}
        for position, raw in entries:
            said = Change.from_json(raw)
            state = states.setdefault((said.kind, said.record_id), RecordState())
            state.take(said, position, keeps=SERVED_FIELDS[said.kind])
        records = [Compacted(kind, record_id, state.to_json()) for (kind, record_id), state in states.items()]
        self.memory_feed.compact(records, entries[-1][0])


@pytest.fixture(params=["memory", "redis"])
async def floor(request: pytest.FixtureRequest, environment: Environment) -> AsyncIterator[Floor]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    floor = Floor(environment, url)
    async with floor.running:
        yield floor


async def send(
    client: httpx.AsyncClient, method: str, path: str, body: Any = None, **more: Any
) -> list[dict[str, Any]]:
    response = await client.request(method, path, json=body, **more)
    assert response.status_code == 202, response.text
    return list(response.json()["results"])


async def shown(client: httpx.AsyncClient, **question: Any) -> list[str]:
    answer = (await client.post("/v1/recommendations", json={"user_id": "u1", **question})).json()
    return [item["item_id"] for item in answer["items"]]


async def until(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)
    assert found


async def until_shown(client: httpx.AsyncClient, expected: list[str], seconds: float = 10.0) -> float:
    """Seconds until a worker answers with these items."""
    started = time.monotonic()
    while (seen := await shown(client)) != expected:
        assert time.monotonic() - started < seconds, seen
        await asyncio.sleep(0.002)
    return time.monotonic() - started


class TestChanges:
    async def test_a_change_is_in_the_next_answer_of_its_worker_and_soon_of_the_others(self, floor: Floor) -> None:
        one, other = await floor.worker(), await floor.worker()
        assert await shown(one) == ITEM_IDS
        assert await send(one, "PATCH", "/v1/items/i0", {"available_quantity": 0}) == [
            {"index": 0, "item_id": "i0", "status": "accepted"}
        ]
        assert await shown(one) == ITEM_IDS[1:]
        assert await until_shown(other, ITEM_IDS[1:]) < 1.0
        assert await send(other, "DELETE", "/v1/items/i1") == [{"index": 0, "item_id": "i1", "status": "accepted"}]
        assert await shown(other) == ITEM_IDS[2:]
        await until_shown(one, ITEM_IDS[2:])
        # PATCH leaves it hidden, PUT brings it back
        await send(one, "PATCH", "/v1/items/i1", {"price": 7})
        assert await shown(one) == ITEM_IDS[2:]
        await send(one, "PUT", "/v1/items/i1", {"title": "Again", "price": 7})
        assert await shown(one) == ITEM_IDS[1:]
        answer = (await one.post("/v1/recommendations", json={"user_id": "u1"})).json()
        assert answer["items"][0]["attributes"] == {"title": "Again", "category": "A", "price": 7.0}
        assert answer["freshness"]["catalogue"] == 0.0
        assert len(floor.stream()) == 4

    async def test_similar_items_know_it_too(self, floor: Floor) -> None:
        client = await floor.worker()
        await send(client, "DELETE", "/v1/items/i1")
        answer = (await client.post("/v1/similar", json={"item_id": "i0"})).json()
        assert [item["item_id"] for item in answer["items"]] == ["i2", "i3"]
        assert answer["filtered"] == {"hidden": 1}
        assert answer["freshness"]["catalogue"] == 0.0

    async def test_a_batch_has_a_status_for_each_and_the_good_ones_go_through(self, floor: Floor) -> None:
        client = await floor.worker()
        body = [
            {"item_id": "i0", "is_hidden": True},
            {"item_id": "i1", "price": "9,99"},
            {"price": 1},
            "i2",
            {"item_id": "i3", "available_quantity": 0},
        ]
        results = await send(client, "PATCH", "/v1/items", {"items": body})
        assert [(r["index"], r["item_id"], r["status"], r.get("reason"), r.get("field")) for r in results] == [
            (0, "i0", "accepted", None, None),
            (1, "i1", "rejected", "invalid_price", "price"),
            (2, None, "rejected", "missing_item_id", "item_id"),
            (3, "i2", "rejected", "unreadable", None),
            (4, "i3", "accepted", None, None),
        ]
        assert await shown(client) == ["i1", "i2"]
        assert len(floor.stream()) == 2

    async def test_a_late_change_is_told_so_and_loses(self, floor: Floor) -> None:
        client = await floor.worker()
        stale, ten, eleven = [], "2024-03-08T10:00:00Z", "2024-03-08T11:00:00Z"
        await send(client, "PATCH", "/v1/items/i0", {"is_hidden": True, "updated_at": eleven})
        stale += await send(client, "PATCH", "/v1/items/i0", {"is_hidden": False, "updated_at": ten})
        stale += await send(client, "PUT", "/v1/items/i0", {"title": "Old", "updated_at": ten})
        stale += await send(client, "DELETE", "/v1/items/i0?updated_at=" + ten)
        stale += await send(client, "PATCH", "/v1/items/i0", {"is_hidden": False, "updated_at": eleven})  # a tie
        assert [(r["status"], r.get("stale_fields")) for r in stale] == [
            ("stale", None), ("accepted", ["is_hidden"]), ("stale", None), ("accepted", None),
        ]  # fmt: skip
        assert await shown(client) == ITEM_IDS
        assert len(floor.stream()) == 5  # stale ones are as durable

    async def test_of_one_item_twice_in_a_batch_the_later_counts(self, floor: Floor) -> None:
        client = await floor.worker()
        twice = [{"item_id": "i0", "is_hidden": is_hidden} for is_hidden in (True, False)]
        results = await send(client, "PATCH", "/v1/items", twice)
        assert [r["status"] for r in results] == ["accepted", "accepted"]
        assert await shown(client) == ITEM_IDS

    async def test_lines_and_gzip_are_read_and_deletes_take_ids(self, floor: Floor) -> None:
        client = await floor.worker()
        lines = gzip.compress(b'{"item_id": "i0", "is_hidden": true}\n\n{"item_id": \n"i1"\n')
        headers = {"content-type": "application/x-ndjson", "content-encoding": "gzip"}
        results = await send(client, "DELETE", "/v1/items", content=lines, headers=headers)
        assert [(r["item_id"], r["status"]) for r in results] == [
            ("i0", "accepted"), (None, "rejected"), ("i1", "accepted"),
        ]  # fmt: skip
        assert await shown(client) == ["i2", "i3"]
        awkward = "a/b c%ä"
        path = "/v1/items/" + "a%2Fb%20c%25%C3%A4"
        assert (await send(client, "PUT", path, {"title": "T"}))[0]["item_id"] == awkward

    async def test_no_to_personalization_reaches_the_next_answer(self, floor: Floor) -> None:
        one, other = await floor.worker(), await floor.worker()

        async def level(client: httpx.AsyncClient, **more: Any) -> tuple[str, str | None]:
            answer = (await client.post("/v1/recommendations", json={"user_id": "u1", **more})).json()
            return answer["fallback_level"], answer["fallback_reason"]

        assert await level(one) == ("personal", None)
        for consent in ({"personalize": False}, {"store": False}):
            await send(one, "PATCH", "/v1/users/u1", {"consent": consent})
            assert await level(one) == ("popular", "consent")
            assert await level(one, consent={"personalize": True}) == ("popular", "consent")
            for _ in range(200):
                if await level(other) == ("popular", "consent"):
                    break
                await asyncio.sleep(0.005)
            assert await level(other) == ("popular", "consent")
            await send(one, "DELETE", "/v1/users/u1")
            assert await level(one) == ("popular", "consent")  # a consent is not forgotten by silence
            await send(one, "PATCH", "/v1/users/u1", {"consent": dict.fromkeys(consent, True)})
            assert await level(one) == ("personal", None)

    async def test_no_to_storing_holds_for_events_that_say_nothing(self, floor: Floor) -> None:
        client = await floor.worker()
        await send(client, "PATCH", "/v1/users", [{"user_id": "u1", "consent": {"store": False}}])
        events = [
            {"event_id": f"e{user}", "event_type": "view_item", "user_id": user, "item_id": "i0",
             "timestamp": "2024-03-08T12:00:00Z"} for user in ("u1", "u2")
        ]  # fmt: skip
        results = (await client.post("/v1/events", json=events)).json()["results"]
        assert [(r["status"], r.get("stored")) for r in results] == [("accepted", False), ("accepted", None)]


class TestErrors:
    @pytest.mark.parametrize(
        ("method", "path", "content", "status", "said"),
        [
            ("PATCH", "/v1/items/i0", b'{"price": -1}', 422, {"errors": [
                {"field": "price", "seen": "-1", "expected": "price is a number >= 0"}]}),
            ("PUT", "/v1/items/i0", b'{"item_id": "other"}', 422, {"errors": [
                {"field": "item_id", "seen": "other", "expected": "the id of the address"}]}),
            ("PUT", "/v1/items/i0", b"[]", 400, {"detail": "expected one object"}),
            ("PATCH", "/v1/items", b'{"items": []}', 400, {}),
            ("PATCH", "/v1/items", b"{", 400, {}),
            ("DELETE", "/v1/items", b"", 400, {}),
            ("DELETE", "/v1/users/u1?updated_at=soon", b"", 422, {}),
            ("PATCH", "/v1/items", b"[{},{},{},{}]", 413, {"limit": "max_events", "seen": 4, "allowed": 3}),
            ("PATCH", "/v1/items/i0", b'{"title":"' + b"x" * 5000 + b'"}', 413,
             {"limit": "max_body_bytes", "seen": 5012, "allowed": 5000}),
            ("PUT", "/v1/items", b'[{"item_id":"i0"},{"item_id":"i1"},{"item_id":"i2"}]', 413,
             {"limit": "max_written_bytes", "allowed": 900}),
            ("POST", "/v1/items", b"{}", 405, {}),
        ],
    )  # fmt: skip
    async def test_problems_name_what_is_wrong(
        self, environment: Environment, method: str, path: str, content: bytes, status: int, said: dict[str, Any]
    ) -> None:
        floor = Floor(environment, None)
        async with floor.running:
            client = await floor.worker(max_events=3, max_body_bytes=5000, max_written_bytes=900)
            response = await client.request(method, path, content=content)
        assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
        problem = response.json()
        assert problem["request_id"] == response.headers["x-request-id"]
        assert {name: problem[name] for name in said} == said
        assert floor.stream() == []

    async def test_nothing_is_promised_while_the_log_is_down_and_answers_go_on(self, environment: Environment) -> None:
        floor = Floor(environment, None)
        async with floor.running:
            client = await floor.worker()
            await send(client, "DELETE", "/v1/items/i0")
            floor.memory_log.is_down = True
            response = await client.patch("/v1/items/i1", json={"is_hidden": True})
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            await asyncio.sleep(0.02)
            floor.now += 90 * SECOND
            answer = (await client.post("/v1/recommendations", json={"user_id": "u1"})).json()
            assert [item["item_id"] for item in answer["items"]] == ITEM_IDS[1:]
            assert (answer["degraded"], answer["freshness"]["catalogue"]) == (False, 90.0)
            floor.memory_log.is_down, floor.memory_log.is_full = False, True
            assert (await client.patch("/v1/items/i1", json={})).json()["type"].endswith("overloaded")

    async def test_a_worker_that_starts_without_the_log_serves_and_says_so(self, environment: Environment) -> None:
        floor = Floor(environment, None)
        floor.memory_log.is_down = True
        async with floor.running:
            client = await floor.worker()
            answer = (await client.post("/v1/recommendations", json={"user_id": "u1"})).json()
            assert answer["freshness"]["catalogue"] is None
            assert len(answer["items"]) == 4
            floor.memory_log.is_down = False
            await send(client, "DELETE", "/v1/items/i0")
            await until_shown(client, ITEM_IDS[1:])


class TestTail:
    async def test_a_worker_that_starts_later_knows_what_was_compacted_and_what_was_not(self, floor: Floor) -> None:
        first = await floor.worker()
        await send(first, "PATCH", "/v1/items/i0", {"available_quantity": 0})
        await send(first, "PATCH", "/v1/users/u1", {"consent": {"personalize": False}})
        floor.compact()
        assert floor.stream() == []
        await send(first, "PATCH", "/v1/items/i1", {"is_hidden": True})
        late = await floor.worker()
        assert await shown(late, user_id="u2") == ["i2", "i3"]
        answer = (await late.post("/v1/recommendations", json={"user_id": "u1"})).json()
        assert answer["fallback_reason"] == "consent"
        # and it goes on from there
        await send(first, "PATCH", "/v1/items/i0", {"available_quantity": 1})
        await until_shown(late, ["i0", "i2", "i3"])

    async def test_what_was_trimmed_while_a_worker_was_away_is_made_up_for(self, floor: Floor) -> None:
        awake = await floor.worker()
        overlay, feed = change_feed.CatalogueOverlay(), floor.memory_feed
        reader: Any = RedisChangeFeed(floor.url, tenant=TENANT, timeout_seconds=2) if floor.url else feed
        tail = change_feed.CatalogueTail(reader, overlay, wall_micros=lambda: floor.now)
        await send(awake, "PATCH", "/v1/items/i0", {"price": 1})
        await tail.step()
        await send(awake, "PATCH", "/v1/items/i1", {"price": 2})
        floor.compact()
        await send(awake, "PATCH", "/v1/items/i2", {"price": 3})
        await tail.step()
        assert "i1" not in overlay._unknown  # it was trimmed: the step noticed, and asks for the records
        await tail.step()
        words = {item_id: state.word("price") for item_id, state in overlay._unknown.items()}
        assert {item_id: word and word[0] for item_id, word in words.items()} == {"i0": 1.0, "i1": 2.0, "i2": 3.0}
        await reader.close()

    async def test_a_tail_connection_that_is_killed_is_replaced(self, environment: Environment, redis_url: str) -> None:
        floor = Floor(environment, redis_url)
        async with floor.running:
            one, other = await floor.worker(), await floor.worker()
            with redis.Redis.from_url(redis_url) as client:
                for item in ("i0", "i1"):
                    await until(lambda: client.info("clients")["blocked_clients"] == 2, "both workers wait")
                    assert client.client_kill_filter(_type="normal", skipme=True) >= 2
                    await asyncio.sleep(0.02)  # the event log has to notice it too, or it answers 503
                    await send(one, "PATCH", f"/v1/items/{item}", {"is_hidden": True})
                    rest = ITEM_IDS[ITEM_IDS.index(item) + 1 :]
                    assert await until_shown(other, rest) < 1.0
                    await until_shown(one, rest)

    async def test_a_log_that_hangs_is_given_up_and_asked_anew(self) -> None:
        connections = 0

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            if connections > 1:
                await reader.read(65536)
                writer.write(b"$3\r\n7-0\r\n")
            await reader.read(65536)

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            feed = RedisChangeFeed(url, tenant=TENANT, timeout_seconds=0.1)
            with pytest.raises(DependencyError, match="does not answer: TimeoutError"):
                await feed.compacted()
            assert await feed.compacted() == position_number("7-0")
            await feed.close()
        assert connections == 2

    async def test_what_is_no_change_is_left_out(self, environment: Environment, redis_url: str) -> None:
        floor = Floor(environment, redis_url)
        async with floor.running:
            client = await floor.worker()
            with redis.Redis.from_url(redis_url) as server:
                server.xadd(change_stream_key(TENANT), {"change": "{"})
                server.xadd(change_stream_key(TENANT), {"other": "field"})
                server.hset(changed_records_key(ITEMS, TENANT), mapping={"i3": "damaged"})
            await send(client, "DELETE", "/v1/items/i0")
            assert await shown(client) == ITEM_IDS[1:]
            floor.compact()
            late = await floor.worker()
            assert await shown(late) == ITEM_IDS[1:]

    async def test_compaction_keeps_one_record_per_item_and_only_users_who_refused(self, redis_url: str) -> None:
        def entry(position: int, kind: str, record_id: str, **fields: Any) -> tuple[str, dict[bytes, bytes]]:
            return f"{position}-0", {b"change": Change(kind, record_id, "patch", position, 0, fields).to_json()}

        with redis.Redis.from_url(redis_url) as client:
            entries = [
                entry(1, ITEMS, "i0", price=1.0),
                entry(2, ITEMS, "i0", price=2.0, brand="B"),
                entry(3, USERS, "yes", consent_store=True),
                entry(4, USERS, "no", consent_store=False),
                ("5-0", {b"change": b"{"}),
            ]
            for _ in range(2):
                compact_changes(client, entries, tenant=TENANT)
            compact_changes(client, [entry(6, USERS, "no", consent_store=True)], tenant=TENANT)
            items = client.hgetall(changed_records_key(ITEMS, TENANT))
            users = client.hgetall(changed_records_key(USERS, TENANT))
        assert list(items) == [b"i0"]
        state = RecordState.from_json(items[b"i0"])
        two = position_number("2-0")
        assert (state.word("price"), state.word("brand")) == ((2.0, (2, two)), (None, (2, two)))
        assert list(users) == [b"no"]
        assert json.loads(users[b"no"])[1]["consent_store"][0] is True


async def test_all_examples_work(floor: Floor) -> None:
    """The reference at /docs shows what can be pasted."""
    client = await floor.worker()
    document = (await client.get("/openapi.json")).json()
    tried = []
    for path, methods in document["paths"].items():
        if not path.startswith(("/v1/items", "/v1/users")):
            continue
        for method, operation in methods.items():
            if method == "get":
                continue  # what is only read changes nothing
            nothing = {"content": {"none": {"examples": {"none": {"value": ""}}}}}
            address = path.replace("{item_id}", "i3").replace("{user_id}", "u1")
            for kind, form in operation.get("requestBody", nothing)["content"].items():
                for example in form["examples"].values():
                    value = example["value"]
                    content = value if isinstance(value, str) else json.dumps(value)
                    headers = {"content-type": kind}
                    response = await client.request(method.upper(), address, content=content, headers=headers)
                    assert response.status_code == 202, response.text
                    assert "rejected" not in {r["status"] for r in response.json()["results"]}, (path, kind)
                    tried.append((path, method, kind))
            assert set(operation["responses"]) >= {"202", "400", "413", "415", "503"}
    assert len(tried) == len(set(tried)) == 2 * 3 * (2 + 1)
