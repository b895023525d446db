"""One person on several devices: events through the real API and consumer on a real Redis, seen by the next answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import redis

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.identity import NEVER, Edge, pack_edge, unpack_edge
from feature_repo.contracts.keys import candidates_key, edges_key, parse_edges_key, pointer_key
from feature_repo.contracts.packing import PackedCandidate, Source, pack_candidates
from feature_repo.contracts.times import to_micros
from serving.adapters.online import RedisOnlineStore
from serving.main import create_app
from serving.settings import ServingSettings
from serving.speed.consumer import Consumer
from serving.speed.identity_edges import IdentityEdges, hash_commands, redis_hashes
from tests.serving_builders import Shop

ITEMS = [f"i{number:02d}" for number in range(40)]
SHOP = Shop(
    {item: {"title": item, "category": "A", "price": 1.0} for item in ITEMS},
    neighbours={item: [(other, 0.5) for other in ITEMS[n + 1 : n + 4]] for n, item in enumerate(ITEMS)},
    popular=[(item, 40.0 - n) for n, item in enumerate(ITEMS)],
)
NOON = datetime(2024, 3, 8, 12, tzinfo=UTC)


class Installation:
    """API, event log and consumer over one Redis; `now` is the API's clock."""

    def __init__(self, environment: Environment, url: str) -> None:
        place = environment._replace(redis_online_url=url, redis_log_url=url)
        self.redis = redis.Redis.from_url(url)
        self.now = NOON
        self.sent = 0
        settings = ServingSettings(online_timeout_ms=2000)
        self.app = create_app(place, settings, wall_micros=lambda: to_micros(self.now))
        self.api = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://api")
        self.consumer = Consumer(self.redis, self.redis, tenant="default", batch=100, session_ttl_seconds=1000)
        self.consumer.resume()
        version = SHOP.write(place.publications)
        for user, first in (("ann", 10), ("bob", 20)):
            rows = [PackedCandidate(n, 40.0 - n, Source.ALS) for n in range(first, first + 10)]
            self.redis.set(candidates_key(version, user), pack_candidates(version, rows))
        self.redis.set(pointer_key(), version.encode())

    async def send(self, event_type: str, minute: int, item: str | None = None, **ids: Any) -> None:
        """An event through the front door, and through the consumer."""
        self.sent += 1
        event = {"event_id": f"e{self.sent}", "event_type": event_type, "item_id": item, **ids}
        event["timestamp"] = (NOON + timedelta(minutes=minute)).isoformat()
        answer = await self.api.post("/v1/events", json={k: v for k, v in event.items() if v is not None})
        assert answer.json()["results"][0]["status"] == "accepted", answer.text
        self.consumer.consume(block_ms=None)

    async def ask(self, **who: Any) -> dict[str, Any]:
        answer = await self.api.post("/v1/recommendations", json={"num_results": 5, "explain": True, **who})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def voters(self, **who: Any) -> set[str]:
        """The items of the session that the answer heard."""
        return {event["item_id"] for event in (await self.ask(**who))["trace"].get("session") or ()}

    def edge(self, subject: str, other: str) -> Edge | None:
        record = self.redis.hget(edges_key(subject), other)
        return None if record is None else unpack_edge(record)


@pytest.fixture
async def shop(environment: Environment, redis_url: str) -> AsyncIterator[Installation]:
    installation = Installation(environment, redis_url)
    yield installation
    await installation.api.aclose()
    installation.redis.close()


PHONE, LAPTOP = {"anonymous_id": "phone"}, {"anonymous_id": "laptop"}
ANN, BOB = {"user_id": "ann"}, {"user_id": "bob"}


async def test_two_devices_become_one_person_and_two_again(shop: Installation) -> None:
    await shop.send("view_item", 0, "i30", **PHONE)
    await shop.send("purchase", 1, "i10", **PHONE)
    await shop.send("view_item", 2, "i33", **LAPTOP)
    shop.now = NOON + timedelta(minutes=10)
    before = [await shop.ask(**who) for who in (ANN, PHONE, LAPTOP)]
    assert [answer["fallback_level"] for answer in before] == ["personal", "popular", "popular"]
    assert await shop.voters(**ANN) == set()
    assert await shop.voters(**PHONE) == {"i30", "i10"}

    await shop.send("identify", 3, **ANN, **PHONE)
    assert await shop.voters(**ANN) == {"i30", "i10"}
    await shop.send("view_item", 4, "i35", **ANN, **LAPTOP)  # no identify: whoever names both has logged in
    for who in (ANN, PHONE, LAPTOP, {**ANN, **PHONE}):
        answer = await shop.ask(**who)
        assert answer["fallback_level"] == "personal", who
        assert {event["item_id"] for event in answer["trace"]["session"]} == {"i30", "i10", "i33", "i35"}, who
        assert "i10" not in {item["item_id"] for item in answer["items"]}  # bought on the phone

    # The edge of the phone is a mistake. The laptop stays.
    await shop.send("unmerge", 5, **ANN, **PHONE)
    assert await shop.voters(**ANN) == {"i33", "i35"}
    assert await shop.voters(**LAPTOP) == {"i33", "i35"}
    assert await shop.voters(**PHONE) == {"i30", "i10"}
    await shop.send("unmerge", 5, **ANN, **LAPTOP)
    assert await shop.voters(**ANN) == {"i35"}  # her own deed, as a user
    after = [await shop.ask(**who) for who in (PHONE, LAPTOP)]
    volatile = ("recommendation_id", "took_ms", "freshness", "trace")
    for then, now in zip(before[1:], after, strict=True):
        assert {k: v for k, v in now.items() if k not in volatile} == {
            k: v for k, v in then.items() if k not in volatile
        }
    # A later login makes the edge anew, from the undo on: what lay before it stays the stranger's.
    await shop.send("view_item", 6, "i38", **PHONE)
    await shop.send("identify", 7, **ANN, **PHONE)
    assert await shop.voters(**ANN) == {"i35", "i38"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/events", {"event_type": "login", "user_id": "ann", "anonymous_id": "phone"}),
        ("/v1/events", {"event_type": "sign_up", "user_id": "ann", "anonymous_id": "phone"}),
        ("/v1/track", {"event": "Signed In", "userId": "ann", "anonymousId": "phone"}),
        ("/v1/track", {"event": "Signed Up", "userId": "ann", "anonymousId": "phone"}),
        ("/mp/collect", {"client_id": "phone", "user_id": "ann", "events": [{"name": "login"}]}),
    ],
)
async def test_a_login_writes_an_edge_through_every_door(shop: Installation, path: str, body: dict[str, Any]) -> None:
    await shop.send("view_item", 0, "i30", **PHONE)
    when = (NOON + timedelta(minutes=1)).isoformat()
    stamp = {} if path == "/mp/collect" else {"timestamp": when}  # GA4's without a time: at its receipt
    answer = await shop.api.post(path, json={**body, **stamp})
    assert [result["status"] for result in answer.json()["results"]] == ["accepted"]
    assert shop.edge("u:ann", "a:phone") is None
    shop.consumer.consume(block_ms=None)
    seen = to_micros(NOON if path == "/mp/collect" else NOON + timedelta(minutes=1))
    assert shop.edge("u:ann", "a:phone") == shop.edge("a:phone", "u:ann") == Edge(seen, seen)
    assert await shop.voters(**ANN) == {"i30"}


async def test_two_people_on_a_tablet_stay_two(shop: Installation) -> None:
    tablet = {"anonymous_id": "tablet"}
    await shop.send("view_item", 0, "i01", **tablet)
    await shop.send("identify", 1, **ANN, **tablet)
    await shop.send("view_item", 2, "i02", **tablet)
    shop.now = NOON + timedelta(minutes=10)
    assert await shop.voters(**ANN) == {"i01", "i02"}
    await shop.send("identify", 3, **BOB, **tablet)
    await shop.send("view_item", 4, "i03", **tablet)
    assert await shop.voters(**ANN) == {"i01"}  # i02 lies between two people: nobody's
    assert await shop.voters(**BOB) == {"i03"}
    assert await shop.voters(**tablet) == {"i03"}  # and is Bob's tablet now
    assert {item["item_id"] for item in (await shop.ask(**tablet))["items"]} <= set(ITEMS[4:7] + ITEMS[20:30])


async def test_a_no_to_personalization_is_not_joined(shop: Installation) -> None:
    await shop.send("view_item", 0, "i30", **PHONE)
    await shop.send("view_item", 0, "i33", **LAPTOP, consent={"personalize": False})
    await shop.send("identify", 1, **ANN, **PHONE)
    await shop.send("identify", 1, **ANN, **LAPTOP)
    shop.now = NOON + timedelta(minutes=10)
    assert await shop.voters(**ANN) == {"i30"}  # the laptop said no: it gives nothing
    assert (await shop.ask(**LAPTOP))["fallback_reason"] == "consent"  # and gets nothing
    await shop.send("identify", 2, **ANN, **PHONE, consent={"personalize": False})
    for who in (ANN, PHONE, LAPTOP):
        answer = await shop.ask(**who)
        assert (answer["fallback_reason"], answer["trace"].get("session") or []) == ("consent", []), who


async def test_a_device_that_behaves_like_a_bot_is_not_joined(shop: Installation) -> None:
    crawler = {"context": {"user_agent": "Mozilla/5.0 (compatible; Somebot/2.1; +http://some.example/bot)"}}
    await shop.send("view_item", 0, "i30", **PHONE)
    await shop.send("view_item", 0, "i33", **LAPTOP, **crawler)
    await shop.send("identify", 1, **ANN, **PHONE)
    await shop.send("identify", 1, **ANN, **LAPTOP)
    shop.now = NOON + timedelta(minutes=10)
    assert await shop.voters(**ANN) == {"i30"}
    for who, reason in ((LAPTOP, "bot"), (PHONE, None), (ANN, None)):
        answer = await shop.ask(**who)
        assert (answer["fallback_level"] == "personal", answer["fallback_reason"]) == (reason is None, reason), who


async def test_a_no_through_the_users_api_holds_on_every_device_and_under_every_name(shop: Installation) -> None:
    await shop.send("view_item", 0, "i30", **PHONE)
    await shop.send("identify", 1, user_id="old", **PHONE)
    await shop.send("alias", 2, **ANN, anonymous_id="old")
    shop.now = NOON + timedelta(minutes=10)
    people = (ANN, {"user_id": "old"}, PHONE)
    assert len(people) == 3
    async with shop.app.router.lifespan_context(shop.app):
        for name in ("ann", "old"):
            for who in people:
                assert (await shop.ask(**who))["fallback_level"] == "personal", (name, who)
            said = {"consent": {"personalize": False}}
            assert (await shop.api.patch(f"/v1/users/{name}", json=said)).status_code == 202
            for who in people:
                answer = await shop.ask(**who)
                assert (answer["fallback_reason"], answer["trace"].get("session") or []) == ("consent", []), (name, who)
            said = {"consent": {"personalize": True}}
            assert (await shop.api.patch(f"/v1/users/{name}", json=said)).status_code == 202


async def test_a_user_whom_the_night_does_not_know_yet_is_no_stranger(shop: Installation) -> None:
    shop.now = NOON + timedelta(minutes=10)
    assert (await shop.ask(**PHONE))["fallback_reason"] == "no_user"
    await shop.send("identify", 1, user_id="new", **PHONE)
    assert (await shop.ask(**PHONE))["fallback_reason"] == "unknown_user"


async def test_whoever_forbids_storing_makes_no_edge(shop: Installation) -> None:
    await shop.send("view_item", 0, "i30", **PHONE)
    await shop.send("identify", 1, **ANN, **PHONE, consent={"store": False})
    shop.now = NOON + timedelta(minutes=10)
    assert shop.redis.keys("nj:*:edges:*") == []
    assert await shop.voters(**ANN) == set()


async def test_an_alias_joins_a_former_name_and_a_circle_joins_nobody(shop: Installation) -> None:
    await shop.send("view_item", 0, "i30", user_id="old")
    await shop.send("view_item", 0, "i31", **PHONE)
    await shop.send("identify", 1, user_id="old", **PHONE)
    await shop.send("alias", 2, **ANN, anonymous_id="old")
    shop.now = NOON + timedelta(minutes=10)
    for who in (ANN, {"user_id": "old"}, PHONE):
        assert await shop.voters(**who) == {"i30", "i31"}, who
        assert (await shop.ask(**who))["fallback_level"] == "personal"
    await shop.send("alias", 3, user_id="old", anonymous_id="ann")
    assert await shop.voters(**ANN) == set()
    assert await shop.voters(user_id="old") == {"i30", "i31"}


async def test_one_read_for_a_person_who_is_known(shop: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered costs nothing and is never believed: an edge written by another process counts at once."""
    await shop.send("view_item", 0, "i30", **PHONE)
    await shop.send("identify", 1, **ANN, **PHONE)
    shop.now = NOON + timedelta(minutes=10)
    calls: list[dict[str, Any]] = []
    read = RedisOnlineStore.read

    async def counted(self: Any, **asked: Any) -> Any:
        calls.append(asked)
        return await read(self, **asked)

    monkeypatch.setattr(RedisOnlineStore, "read", counted)
    reads = []
    for who in (ANN, ANN, PHONE, PHONE, {"user_id": "nobody else"}):
        calls.clear()
        await shop.ask(**who)
        reads.append(len(calls))
    assert reads[1::2] == [1, 1]
    assert reads[4] == 1
    assert 1 < reads[0] <= 3
    assert 1 < reads[2] <= 3
    shop.redis.hset(edges_key("a:phone"), "u:ann", pack_edge(Edge(1, 2, 3)))
    shop.redis.hset(edges_key("u:ann"), "a:phone", pack_edge(Edge(1, 2, 3)))
    assert await shop.voters(**ANN) == set()
    assert (await shop.ask(**PHONE))["fallback_level"] == "popular"


async def test_a_damaged_edge_is_none(shop: Installation) -> None:
    await shop.send("view_item", 0, "i30", **PHONE)
    await shop.send("identify", 1, **ANN, **PHONE)
    shop.now = NOON + timedelta(minutes=10)
    shop.redis.hset(edges_key("u:ann"), "a:phone", b"\x01short")
    assert await shop.voters(**ANN) == set()


async def test_edges_are_written_for_news_only_and_live_as_long_as_sessions(shop: Installation) -> None:
    await shop.send("identify", 1, **ANN, **PHONE)
    minute = to_micros(NOON) + 60_000_000
    assert shop.edge("a:phone", "u:ann") == shop.edge("u:ann", "a:phone") == Edge(minute, minute)
    assert 990 < shop.redis.ttl(edges_key("a:phone")) <= 1000
    recorder = IdentityEdges(redis_hashes(shop.redis), tenant="default", ttl_seconds=1000)

    def hears(*events: dict[str, Any]) -> int:
        writes = recorder.news(events)
        with shop.redis.pipeline(transaction=True) as pipe:
            for command in hash_commands(writes):
                pipe.execute_command(*command)
            pipe.execute()
        return len(writes)

    def said(event_type: str, seconds: int, user: str = "ann") -> dict[str, Any]:
        moment = NOON + timedelta(seconds=seconds)
        return {"event_type": event_type, "timestamp": moment, "user_id": user, **PHONE}

    assert [hears(said("view_item", second)) for second in (359, 60, 360)] == [0, 0, 2]
    assert hears(said("view_item", 30)) == 2  # earlier than the first: news, however late
    assert shop.edge("a:phone", "u:ann") == Edge(minute - 30_000_000, minute + 300_000_000, NEVER)
    assert hears(said("unmerge", 361)) == 2
    assert hears(said("unmerge", 361)) == 0
    assert hears(said("view_item", 362)) == 2  # live again: news
    assert hears(*(said("identify", n, f"k{n}") for n in range(40))) == 41  # the phone once, and each of them
    recorder.forget()
    assert hears(said("view_item", 363)) == 2  # one of many users: each sighting counts
    assert hears(said("view_item", 364)) == 2
    assert shop.redis.hlen(edges_key("a:phone")) == 32
    assert shop.edge("a:phone", "u:k8") is None  # of 41 the nine heard of longest ago
    assert shop.edge("a:phone", "u:k9") is not None
    assert shop.edge("a:phone", "u:ann") is not None


async def test_a_store_that_was_emptied_gets_its_edges_back(shop: Installation) -> None:
    await shop.send("identify", 1, **ANN, **PHONE)
    edge = shop.edge("a:phone", "u:ann")
    assert edge is not None
    for key in shop.redis.keys("nj:*:edges:*") + shop.redis.keys("nj:*:applied:*"):
        shop.redis.delete(key)
    await shop.send("view_item", 2, "i30", **ANN)  # finds that the position is gone, and begins anew
    assert shop.consumer.consume(block_ms=None) == 2
    assert shop.edge("a:phone", "u:ann") == edge


@pytest.mark.parametrize("subject", ["u:ann", "a:x:y", "u:{ä}%"])
def test_an_edges_key_has_an_inverse(subject: str) -> None:
    assert parse_edges_key(edges_key(subject)) == subject
    assert edges_key("a:x:y") == "nj:default:edges:v1:{a:x%3Ay}"
