"""API keys: their records, what each may do, how much of it, and how soon a worker knows that one is no more."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import itertools
import json
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pytest
import redis
import typer
from typer.testing import CliRunner

from feature_repo.contracts import environment as names
from feature_repo.contracts.api_keys import (
    ADMIN,
    ERASE,
    READ,
    SCOPES,
    WRITE,
    ApiKey,
    check_name,
    check_scopes,
    key_id_of,
    make_key,
)
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError, DependencyError
from feature_repo.contracts.keys import api_keys_key
from infra.api_keys import ApiKeys
from infra.audit import audit_path
from infra.cli.key_commands import register
from serving.__main__ import worker_variables
from serving.adapters.key_store import KeyTail, MemoryKeyStore, RedisKeyStore
from serving.api import event_examples as examples
from serving.api import key_ring
from serving.api.access import PUBLIC, SCOPE_OF, scope_of
from serving.api.key_ring import OPEN, Grant, KeyRing, Refusal, key_in
from serving.main import with_hot_routes
from serving.settings import ServingSettings
from tests.contract.test_hot_events import COMMON
from tests.contract.test_hot_protocol import Served, both, one, read_answer, request
from tests.front_door import RECEIVED_MICROS, FrontDoor

HOUR = 3_600_000_000
_numbers = itertools.count(1)


def new_key(*scopes: str, **fields: Any) -> tuple[str, ApiKey]:
    """A key and its record."""
    key, key_id, digest = make_key(next(_numbers).to_bytes(38, "big")[::-1])
    return key, ApiKey(key_id, "test", digest, scopes, RECEIVED_MICROS, "me", **fields)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


class TestRecords:
    def test_a_key_is_256_bits_behind_an_id_and_only_its_hash_is_kept(self) -> None:
        key, record = new_key(READ)
        prefix, key_id, secret = key.split("_", 2)
        assert (prefix, key_id) == ("nj", record.key_id)
        assert len(base64.urlsafe_b64decode(secret + "=")) == 32
        assert record.digest == hashlib.sha256(key.encode()).hexdigest()
        assert secret not in record.to_json().decode()
        assert key_id_of(key) == key_id
        with pytest.raises(ContractError):
            key_id_of(key + "x")

    def test_a_record_comes_back_as_it_went(self) -> None:
        _, record = new_key(WRITE, ERASE, requests_per_second=2.5, burst=7, expires_at=9, revoked_at=8, replaces="x")
        assert ApiKey.from_json(record.to_json()) == record

    @pytest.mark.parametrize(
        "change",
        [{"digest": "00"}, {"scopes": ["all"]}, {"requests_per_second": 0}, {"requests_per_second": 1, "burst": None},
         {"more": 1}, {"key_id": 7}],
    )  # fmt: skip
    def test_what_is_no_record(self, change: dict[str, Any]) -> None:
        _, record = new_key(READ)
        with pytest.raises(ContractError, match="API key"):
            ApiKey.from_json(json.dumps({**record._asdict(), **change}))

    def test_words_of_people_are_checked(self) -> None:
        assert check_scopes([WRITE, READ, WRITE]) == (READ, WRITE)
        with pytest.raises(DataError, match="did you mean 'read'"):
            check_scopes(["reed"])
        with pytest.raises(DataError, match="at least one scope"):
            check_scopes([])
        for name in ("", " a", "a\n", "x" * 81):
            with pytest.raises(DataError):
                check_name(name)


class Clock:
    """Both clocks of a ring."""

    def __init__(self) -> None:
        self.micros, self.ns = RECEIVED_MICROS, 5_000_000_000

    def ring(self, *keys: ApiKey, workers: int = 1) -> KeyRing:
        ring = KeyRing(is_on=True, workers=workers, wall_micros=lambda: self.micros, timer=lambda: self.ns)
        ring.take(keys)
        return ring


def status(found: Grant | Refusal) -> int:
    return found.status if isinstance(found, Refusal) else 200


class TestRing:
    def test_only_the_right_key_opens_only_what_it_may(self) -> None:
        clock = Clock()
        key, record = new_key(READ, WRITE)
        ring = clock.ring(record, new_key(ADMIN)[1])
        wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
        for given, needs, expected in (
            (f"Bearer {key}", READ, 200), (f"bearer  {key}", WRITE, 200), (key, READ, 200),
            (f"Bearer {key}", ADMIN, 403),
            (f"Bearer {key}", ERASE, 403), (f"Bearer {wrong}", READ, 401), (wrong, READ, 401), ("", READ, 401),
            (f"Token {key}", READ, 401), (f"Bearer {record.digest}", READ, 401), ("Bearer \xe9", READ, 401),
        ):  # fmt: skip
            found = ring.check(given.encode("latin-1"), SCOPES[needs])
            assert status(found) == expected, (given, needs)
        assert status(ring.check(None, SCOPES[READ])) == 401
        assert ring.check(key.encode(), SCOPES[READ]).key_id == record.key_id

    def test_the_user_or_the_password_of_basic_authorization_is_a_key_too(self) -> None:
        def basic(text: str) -> bytes:
            return b"Basic " + base64.b64encode(text.encode())

        assert [key_in(basic(text)) for text in ("k:", "k", ":k", "k:other", ":")] == [b"k", b"k", b"k", b"k", b""]
        assert [key_in(text) for text in (b"Basic ", b"Basic !!", b"Digest x", b"")] == [b"Basic", b"", b"", b""]

    def test_keys_end_and_are_revoked(self) -> None:
        clock = Clock()
        ending, ending_record = new_key(READ, expires_at=RECEIVED_MICROS + 10)
        gone, gone_record = new_key(READ, revoked_at=RECEIVED_MICROS - 1)
        ring = clock.ring(ending_record, gone_record)
        assert [status(ring.check(key.encode(), 1)) for key in (ending, gone)] == [200, 401]
        clock.micros += 9
        assert status(ring.check(ending.encode(), 1)) == 200
        clock.micros += 1
        assert status(ring.check(ending.encode(), 1)) == 401

    def test_before_the_keys_were_read_it_is_nobody_s_fault(self) -> None:
        ring = KeyRing(is_on=True, workers=1, wall_micros=lambda: 0, timer=lambda: 0)
        assert status(ring.check(b"nj_000000000000_x", 1)) == 503
        assert status(ring.check(None, 1)) == 401

    def test_where_no_keys_are_needed_nothing_is_looked_at(self) -> None:
        ring = KeyRing(is_on=False, workers=1, wall_micros=lambda: 0, timer=lambda: 0)
        assert ring.check(b"Bearer x", SCOPES[ADMIN]) is OPEN
        assert OPEN.header_lines() == b""


class TestLimits:
    def used(self, ring: KeyRing, key: str, count: int) -> list[int]:
        return [status(ring.check(key.encode(), 1)) for _ in range(count)]

    def test_a_burst_then_the_rate(self) -> None:
        clock = Clock()
        key, record = new_key(READ, requests_per_second=10, burst=3)
        ring = clock.ring(record)
        assert self.used(ring, key, 5) == [200, 200, 200, 429, 429]
        clock.ns += 99_999_999
        assert self.used(ring, key, 1) == [429]
        clock.ns += 1  # a tenth of a second: one more, for what was refused took nothing
        assert self.used(ring, key, 2) == [200, 429]
        clock.ns += 60_000_000_000  # however long the pause, no more than the burst
        assert self.used(ring, key, 4) == [200, 200, 200, 429]

    def test_a_worker_has_its_share(self) -> None:
        clock = Clock()
        key, record = new_key(READ, requests_per_second=10, burst=8)
        ring = clock.ring(record, workers=4)
        assert self.used(ring, key, 3) == [200, 200, 429]
        clock.ns += 400_000_000  # 4 / 10 s
        assert self.used(ring, key, 2) == [200, 429]

    def test_what_was_used_stays_used_when_keys_are_read_again(self) -> None:
        clock = Clock()
        key, record = new_key(READ, requests_per_second=1, burst=2)
        ring = clock.ring(record)
        assert self.used(ring, key, 3) == [200, 200, 429]
        ring.take([record, new_key(READ)[1]])
        assert self.used(ring, key, 1) == [429]

    def test_the_headers_tell_the_worker_s_share(self) -> None:
        clock = Clock()
        key, record = new_key(READ, requests_per_second=2, burst=10)
        ring = clock.ring(record, workers=2)
        found = ring.check(key.encode(), 1)
        assert isinstance(found, Grant)
        assert dict(found.headers()) == {
            b"ratelimit-policy": b"2;w=1;burst=10;workers=2", b"ratelimit-limit": b"5", b"ratelimit-remaining": b"4",
            b"ratelimit-reset": b"1",
        }  # fmt: skip
        self.used(ring, key, 4)
        refused = ring.check(key.encode(), 1)
        assert isinstance(refused, Refusal)
        assert dict(refused.headers)["Retry-After"] == "1"
        assert dict(refused.headers)["ratelimit-remaining"] == "0"
        assert dict(refused.headers)["ratelimit-reset"] == "5"


class TestRoutes:
    def test_every_route_names_its_scope(self, environment: Environment) -> None:
        door = FrontDoor(environment)
        routes = {
            (method, route.path)
            for route in door.app.routes
            for method in getattr(route, "methods", None) or ()
            if method != "HEAD"
        }
        assert len(routes) >= 28
        assert routes - set(SCOPE_OF) == set(), "routes without a line in serving/api/access.py"
        assert {SCOPE_OF[route] for route in routes} == {*SCOPES, PUBLIC}
        assert scope_of("HEAD", "/openapi.json") == PUBLIC
        assert scope_of("GET", "/v1/forgotten") == ADMIN

    @pytest.mark.parametrize(
        ("method", "path", "scope"),
        [
            ("GET", "/v1/recommendations", READ), ("POST", "/v1/similar", READ), ("POST", "/v1/events", WRITE),
            ("GET", "/v1/pixel.gif", WRITE), ("POST", "/v1/track", WRITE), ("PATCH", "/v1/items/a/b", ADMIN),
            ("PUT", "/v1/users", ADMIN), ("DELETE", "/v1/users/u1", ERASE), ("GET", "/metrics", ADMIN),
        ],
    )  # fmt: skip
    async def test_a_route_opens_to_its_scope_alone(
        self, environment: Environment, method: str, path: str, scope: str
    ) -> None:
        made = {word: new_key(word) for word in SCOPES}
        door = FrontDoor(environment, api_keys="on", keys=[record for _, record in made.values()])
        for word, (key, _) in made.items():
            answer = await door.client.request(method, path, headers=bearer(key))
            assert (answer.status_code == 403) == (word != scope), (word, answer.text)
        answer = await door.client.request(method, path)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["request_id"] == answer.headers["x-request-id"]

    async def test_what_is_public_and_what_is_not_there(self, environment: Environment) -> None:
        key, record = new_key(READ)
        door = FrontDoor(environment, api_keys="on", keys=[record])
        for path in ("/health/live", "/docs", "/openapi.json", "/v1/nightjar.js"):
            assert (await door.client.get(path)).status_code == 200
        assert (await door.client.get("/v1/nothing")).status_code == 401
        assert (await door.client.get("/v1/nothing", headers=bearer(key))).status_code == 404

    async def test_the_document_says_what_a_route_needs(self, environment: Environment) -> None:
        paths = FrontDoor(environment, api_keys="on").app.openapi()["paths"]
        assert "security" not in paths["/health/live"]["get"]
        said = paths["/v1/users/{user_id}"]["delete"]
        assert said["security"] == [{"bearer": []}, {"header": []}, {"basic": []}]
        assert said["responses"]["403"]["description"] == "The key has not the scope erase"
        assert "security" not in FrontDoor(environment).app.openapi()["paths"]["/v1/events"]["post"]

    async def test_segment_s_write_key_is_an_api_key(self, environment: Environment) -> None:
        key, record = new_key(WRITE)
        door = FrontDoor(environment, api_keys="on", keys=[record])
        message = examples.SEGMENT_EXAMPLES["track"]
        assert (await door.client.post("/v1/track", json=message, auth=(key, ""))).status_code == 200
        assert (await door.client.post("/v1/track", json=message, auth=("other", ""))).status_code == 401
        assert key not in json.dumps(door.written())

    async def test_a_key_in_a_query_writes_and_is_not_kept(self, environment: Environment) -> None:
        key, record = new_key(WRITE, READ)
        door = FrontDoor(environment, api_keys="on", keys=[record])
        pixel = {"event_type": "view_item", "user_id": "u1", "item_id": "i1", "key": key}
        assert (await door.client.get("/v1/pixel.gif", params=pixel)).headers["x-nightjar-status"] == "accepted"
        bad = {**pixel, "event_type": "no_such_type"}
        assert (await door.client.get("/v1/pixel.gif", params=bad)).headers["x-nightjar-status"] == "quarantined"
        ga4 = await door.client.post("/mp/collect", params={"api_secret": key}, json=examples.GA4_EXAMPLE)
        assert ga4.status_code == 202
        assert (await door.client.post("/v1/events", params={"key": key}, json=COMMON)).status_code == 202
        assert (await door.client.get("/v1/recommendations", params={"key": key})).status_code == 503  # no version yet
        assert (await door.client.get("/v1/recommendations", params={"key": key[:-1]})).status_code == 401
        assert (await door.client.get("/metrics", params={"key": key})).status_code == 401
        assert len(door.written()) == 3
        assert len(door.log.quarantined) == 1
        assert key not in json.dumps(door.written()) + str(door.log.quarantined)

    async def test_a_page_s_preflight_needs_no_key(self, environment: Environment) -> None:
        door = FrontDoor(environment, api_keys="on", cors_origins="https://shop.example")
        headers = {
            "origin": "https://shop.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "x-api-key, traceparent, tracestate",
        }
        assert (await door.client.options("/v1/recommendations", headers=headers)).status_code == 200

    async def test_limits_show_in_answers(self, environment: Environment) -> None:
        key, record = new_key(WRITE, requests_per_second=0.001, burst=2)
        door = FrontDoor(environment, api_keys="on", keys=[record])
        answers = [await door.client.post("/v1/events", json=COMMON, headers=bearer(key)) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["1", "0", "0"]
        assert answers[2].json()["type"] == "urn:nightjar:problem:too-many-requests"
        assert int(answers[2].headers["retry-after"]) >= 1
        assert len(door.written()) == 2


class TestRawRoute:
    async def test_it_answers_as_the_application_does(self, environment: Environment) -> None:
        key, record = new_key(WRITE)
        reader, reader_record = new_key(READ)
        limited, limited_record = new_key(WRITE, requests_per_second=0.001, burst=3)
        keys = [record, reader_record, limited_record]
        basic = base64.b64encode(f"{key}:".encode()).decode()
        async with both(environment, api_keys="on", keys=keys) as (hot, plain):
            for name, headers in {
                "good": bearer(key), "own header": {"x-api-key": key}, "basic": {"authorization": f"Basic {basic}"},
                "none": {}, "scope": bearer(reader), "wrong": bearer(key[:-3] + "xyz"),
                "own id": {"x-request-id": "r-1"},
                "limited 1": bearer(limited), "limited 2": bearer(limited), "limited 3": bearer(limited),
                "limited 4": bearer(limited),
            }.items():  # fmt: skip
                assert await hot.exchange(one(name, **headers)) == await plain.exchange(one(name, **headers)), name
            assert [json.loads(e)["event_id"] for s in hot.door.log.streams.values() for e, _ in s] == [
                "good", "own header", "basic", "limited 1", "limited 2", "limited 3",
            ]  # fmt: skip

    async def test_what_is_handed_over_is_taken_out_of_the_limit_once(self, environment: Environment) -> None:
        key, record = new_key(WRITE, requests_per_second=0.001, burst=4)
        odd = request(b"{", {"content-type": "application/json", **bearer(key)})
        async with both(environment, api_keys="on", keys=[record]) as (hot, plain):
            for _ in range(5):
                assert await hot.exchange(odd) == await plain.exchange(odd)
        door = FrontDoor(environment, api_keys="on", keys=[record])
        transport = httpx.ASGITransport(with_hot_routes(door.app), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            headers = {"content-type": "application/json", **bearer(key)}
            found = [(await client.post("/v1/events", content=b"{", headers=headers)).status_code for _ in range(5)]
        assert found == [400, 400, 400, 400, 429]

    async def test_a_head_that_came_before_is_no_key(self, environment: Environment) -> None:
        """However often a connection has sent the same bytes: the key in them is looked at each time."""
        key, record = new_key(WRITE)
        limited, limited_record = new_key(WRITE, requests_per_second=0.001, burst=4)
        async with Served(environment, is_hot=True, api_keys="on", keys=[record, limited_record]) as hot:
            ring = hot.door.app.state.services.ring
            for shown, change, expected in (
                (key, lambda: None, [b"202"] * 4),
                (key, lambda: ring.take([record._replace(revoked_at=1)]), [b"401"] * 2),
                (key, lambda: ring.take([record._replace(scopes=(READ,))]), [b"403"] * 2),
                (key, lambda: ring.take([record, limited_record]), [b"202"] * 2),
                (limited, lambda: None, [b"202"] * 4 + [b"429"] * 2),
            ):
                change()
                reader, writer = await asyncio.open_connection("127.0.0.1", hot.port)
                found = []
                for number in range(len(expected)):
                    writer.write(one(f"e{number}", **bearer(shown)))
                    answer = await read_answer(reader)
                    found.append(answer.split()[1])
                    if shown == limited:
                        assert b"\r\nratelimit-remaining: %d\r\n" % max(0, 3 - number) in answer
                assert found == expected
                writer.close()

    async def test_the_body_of_a_refused_request_is_not_read_into_the_next_one(self, environment: Environment) -> None:
        key, record = new_key(WRITE)
        big = request(b" " * 200_000 + orjson.dumps(COMMON), {"content-type": "application/json"})
        async with both(environment, api_keys="on", keys=[record]) as (hot, _):
            answers = await hot.exchange(big + one("a", **bearer(key)), answers=2)
        assert [answer.split()[1] for answer in answers] == [b"401", b"202"]


class TestTail:
    async def test_a_worker_takes_changes_and_keeps_what_it_knows(self) -> None:
        clock, store = Clock(), MemoryKeyStore()
        key, record = new_key(READ)
        ring = clock.ring()
        tail = KeyTail(store, ring.take)
        assert await tail.step()
        assert not await tail.step()
        store.put(record)
        assert await tail.step()
        assert status(ring.check(key.encode(), 1)) == 200
        store.is_down = True
        with pytest.raises(DependencyError):
            await tail.step()
        assert status(ring.check(key.encode(), 1)) == 200
        store.is_down = False
        store.put(record._replace(revoked_at=1))
        await tail.step()
        assert status(ring.check(key.encode(), 1)) == 401

    @pytest.mark.redis
    async def test_from_redis_and_one_record_that_cannot_be_read(self, redis_url: str) -> None:
        clock = Clock()
        ring = clock.ring()
        tail = KeyTail(RedisKeyStore(redis_url, tenant="default", timeout_seconds=5), ring.take)
        await tail.step()
        with redis.Redis.from_url(redis_url) as log:
            keys = ApiKeys(log, tenant="default", random=lambda size: bytes(range(size)))
            key, record = keys.create("shop", [READ], by="me", at_micros=1)
            log.hset(api_keys_key(), "odd", b"{}")
            assert await tail.step()
            assert status(ring.check(key.encode(), 1)) == 200
            log.hdel(api_keys_key(), "odd")
            keys.revoke(record.key_id, at_micros=2)
        assert await tail.step()
        assert status(ring.check(key.encode(), 1)) == 401


@pytest.mark.redis
class TestCommands:
    @pytest.fixture(autouse=True)
    def _installation(self, environment: Environment, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.environment = environment
        self.log = redis.Redis.from_url(redis_url)
        monkeypatch.setenv(names.HOME, environment.home)
        monkeypatch.setenv(names.REDIS_LOG_URL, redis_url)
        self.app = typer.Typer()
        register(self.app)

    def run(self, *words: str) -> Any:
        found = CliRunner().invoke(self.app, ["keys", *words, "--json"])
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        assert found.exit_code == 0, found.output
        return json.loads(found.stdout)

    def test_a_life_of_a_key(self) -> None:
        made = self.run("create", "Shop", "--scope", "write", "--scope", "read", "--rate", "50")
        assert (made["scopes"], made["requests_per_second"], made["burst"], made["state"]) == (
            ["read", "write"], 50, 100, "valid",
        )  # fmt: skip
        turned = self.run("rotate", made["key_id"], "--overlap-hours", "1")
        assert turned["replaces"] == made["key_id"]
        assert turned["key"] != made["key"]
        found = {key["key_id"]: key for key in self.run("list")["keys"]}
        assert [found[shown["key_id"]]["state"] for shown in (made, turned)] == ["ends", "valid"]
        assert found[turned["key_id"]]["burst"] == 100
        assert self.run("revoke", turned["key_id"])["changed"] is True
        assert self.run("revoke", turned["key_id"])["changed"] is False
        assert {key["state"] for key in self.run("list")["keys"]} == {"ends", "revoked"}
        kept = json.dumps([value.decode() for value in self.log.hvals(api_keys_key())])
        audit = audit_path(self.environment).read_text()
        assert [json.loads(line)["action"] for line in audit.splitlines()] == ["create-key", "rotate-key", "revoke-key"]
        for shown in (made, turned):
            assert shown["key"].rpartition("_")[2] not in kept + audit

    def test_a_rotation_never_makes_a_key_live_longer(self) -> None:
        keys = ApiKeys(self.log, tenant="default", random=lambda size: next(_numbers).to_bytes(size, "little"))
        _, record = keys.create("a", [READ], by="me", at_micros=0)
        keys.rotate(record.key_id, overlap_micros=HOUR, by="me", at_micros=0)
        _, _, old = keys.rotate(record.key_id, overlap_micros=HOUR, by="me", at_micros=HOUR // 2)
        assert old.expires_at == HOUR
        with pytest.raises(DataError, match="no longer valid"):
            keys.rotate(record.key_id, overlap_micros=HOUR, by="me", at_micros=HOUR)

    def test_errors_name_the_thing(self) -> None:
        made = self.run("create", "Shop")
        near = made["key_id"][:-1] + ("0" if made["key_id"][-1] != "0" else "1")
        for words, said in (
            (("revoke", near), f"did you mean '{made['key_id']}'"),
            (("create", "x", "--scope", "writ"), "did you mean 'write'"),
            (("create", "x", "--burst", "3"), "needs a rate"),
            (("create", "x", "--rate", "-1"), "positive number"),
        ):
            with pytest.raises(DataError, match=said):
                self.run(*words)

    def test_a_person_gets_the_key_alone_on_stdout(self) -> None:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            self.app(["keys", "create", "Shop"], standalone_mode=False)
        assert key_id_of(out.getvalue().strip())


class TestSettings:
    def test_beyond_loopback_keys_are_needed_unless_somebody_says_otherwise(self) -> None:
        found = [
            worker_variables(host, 2, {"NIGHTJAR_SERVING_API_KEYS": said} if said else {})["NIGHTJAR_SERVING_API_KEYS"]
            for host, said in (
                ("127.0.0.1", ""), ("::1", ""), ("localhost", ""), ("0.0.0.0", ""), ("shop.example", ""),
                ("0.0.0.0", "off"), ("127.0.0.1", "on"),
            )
        ]  # fmt: skip
        assert found == ["off", "off", "off", "on", "on", "off", "on"]

    def test_words_that_cannot_be(self) -> None:
        with pytest.raises(DataError, match="auto, on, off, got 'yes'"):
            ServingSettings.from_mapping({"NIGHTJAR_SERVING_API_KEYS": "yes"})
        with pytest.raises(DataError, match="nightjar keys create"):
            ServingSettings.from_mapping({"NIGHTJAR_SERVING_API_KEYS": "on", "NIGHTJAR_SERVING_WRITE_KEYS": "a"})


def test_a_check_looks_at_one_key_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    key, record = new_key(WRITE)
    ring = Clock().ring(*(new_key(READ)[1] for _ in range(500)), record, *(new_key(READ)[1] for _ in range(500)))
    looked_at: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        looked_at.append(other)
        return one == other

    monkeypatch.setattr(key_ring, "hmac", SimpleNamespace(compare_digest=compare))
    assert not ring.check(f"Bearer {key}".encode(), SCOPES[WRITE]).is_refusal
    assert looked_at == [hashlib.sha256(key.encode()).digest()]
