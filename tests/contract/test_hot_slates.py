"""The raw route of POST /v1/recommendations and the application behind it are one: same bytes, same decisions."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from feature_repo.contracts.api_keys import READ, WRITE, ApiKey, make_key
from feature_repo.contracts.changes import ITEMS as ITEM_CHANGES
from feature_repo.contracts.changes import PATCH, PUT, USERS, check_change
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.identity import Edge, pack_edge
from feature_repo.contracts.keys import candidates_key, edges_key, pointer_key, session_key
from feature_repo.contracts.packing import (
    FLAG_BOT,
    FLAG_PERSONALIZE_DENIED,
    ItemMark,
    PackedCandidate,
    SessionEvent,
    SessionState,
    Source,
    pack_candidates,
    pack_session,
    session_hash,
)
from feature_repo.contracts.times import from_micros
from serving.adapters.decision_log import MemoryDecisionLog
from serving.adapters.feast_online import entity_key
from serving.adapters.memory_event_log import MemoryEventLog
from serving.adapters.online import SEGMENT_FIELD, SEGMENT_TIME_FIELD, MemoryOnlineStore
from serving.api import hot_slates, rendering
from serving.api.answering import SlateAnswers
from serving.api.hot_slates import plain_placements, read_question
from serving.api.list_protocol import ListProtocol
from serving.api.rendering import item_list, render_items
from serving.api.routes import slate_request
from serving.api.schemas import RecommendationRequest
from serving.api.slate_protocol import SlateProtocol
from serving.main import create_app, with_hot_routes
from serving.native import parts
from serving.observability import render_metrics
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.placements import Placements
from serving.pipeline.values import Reason, SlateItem
from serving.settings import ServingSettings
from tests.http_world import ITEMS, NOW, SECOND, shop
from tests.serving_builders import TENANT

PLACEMENTS = Placements()
PLAIN = plain_placements(PLACEMENTS)
PEOPLE = ("u1", "u2", "denied", "bot", "broken", "mixed", "refusing", "nobody", "ü ser/1", "x" * 256)


class Shopfront:
    """A server on a port of its own, with people of many kinds. `is_hot`: as a worker runs it."""

    def __init__(
        self, environment: Environment, *, is_hot: bool, keys: Sequence[ApiKey] = (), **settings: Any
    ) -> None:  # fmt: skip
        self.store = MemoryOnlineStore(tenant=TENANT)
        self.decisions = MemoryDecisionLog()
        self.app = create_app(
            environment, ServingSettings(max_body_bytes=6000, **settings), store=self.store,
            log=MemoryEventLog(tenant=TENANT), decisions=self.decisions, wall_micros=lambda: NOW, timer=lambda: 0,
            new_id=lambda: "id1",
        )  # fmt: skip
        self.app.state.services.ring.take(keys)
        config = uvicorn.Config(
            with_hot_routes(self.app) if is_hot else self.app, http=ListProtocol if is_hot else HttpToolsProtocol,
            loop="asyncio", lifespan="off", access_log=False, log_level="critical", server_header=False,
            proxy_headers=False,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))

    def publish(self, version: str) -> None:
        strings, numbers = self.store.strings, {item: number for number, item in enumerate(ITEMS)}
        rows = [PackedCandidate(numbers[i], 3.0 - n / 10, Source.ALS, 5, 7 + n) for n, i in enumerate(ITEMS[10:40])]
        for user in ("u1", "bot", "broken", "refusing", "ü ser/1", "x" * 256):
            strings[candidates_key(version, user)] = pack_candidates(version, rows)
        strings[candidates_key(version, "denied")] = pack_candidates(version, [], flags=FLAG_PERSONALIZE_DENIED)
        strings[candidates_key(version, "mixed")] = pack_candidates("2024-03-08-00000001", rows)
        seen = [(("i40", "view_item"), ("i45", "add_to_cart"), ("i12", "view_item"), ("i40", "like"))]
        seen += [(("i11", "view_item"), ("i59", "purchase"))]
        for subject, flags in (("u:u1", 0), ("a:phone", 0), ("u:bot", FLAG_BOT), ("u:x" + "x" * 255, 0)):
            events = [
                SessionEvent(NOW - (99 - at) * SECOND, kind, session_hash(f"s{n + 1}"), item)
                for n, clicks in enumerate(seen)
                for at, (item, kind) in enumerate(clicks)
            ]
            state = SessionState(
                events=events, bought=[ItemMark(1, "i59")], dismissed=[ItemMark(1, "i13")], flags=flags
            )  # fmt: skip
            strings[session_key(subject)] = pack_session(state)
        strings[session_key("u:broken")] = b"\x02short"
        self.store.hashes[entity_key(["user_id"], ["u2"])] = {
            SEGMENT_FIELD: b"\x12\x04Toys", SEGMENT_TIME_FIELD: b"\x08\x80\xa4\xa8\xaf\x06",
        }  # fmt: skip
        edge = pack_edge(Edge(NOW - 9 * SECOND, NOW))
        self.store.hashes[edges_key("a:phone")] = {b"u:u1": edge}
        self.store.hashes[edges_key("u:u1")] = {b"a:phone": edge}
        strings[pointer_key()] = version.encode()
        overlay = self.app.state.services.overlay
        body = {"user_id": "refusing", "consent": {"personalize": False}}
        refusal, _ = check_change(USERS, PATCH, body, received_at=from_micros(NOW))
        assert refusal is not None
        overlay.take(refusal, overlay.position + 1)

    def put(self, *items: str) -> None:
        """The items API was told of these, one after another."""
        overlay = self.app.state.services.overlay
        for item in items:
            change, _ = check_change(ITEM_CHANGES, PUT, {"item_id": item, "title": item}, received_at=from_micros(NOW))
            overlay.take(change, overlay.position + 1)

    async def __aenter__(self) -> Shopfront:
        self._task = asyncio.create_task(self.server.serve(sockets=[self._listener]))
        while not self.server.started:
            await asyncio.sleep(0.01)
        self._reader, self._writer = await asyncio.open_connection(*self._listener.getsockname())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        self.server.should_exit = True
        await self._task

    async def post(self, body: bytes, *, path: str = "/v1/recommendations", **headers: str) -> bytes:
        """All of the answer but the date."""
        fields = {"host": "api", "content-type": "application/json", **headers, "content-length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        async with asyncio.timeout(20):
            said = await self._reader.readuntil(b"\r\n\r\n")
            size = re.search(rb"content-length: (\d+)", said)
            assert size is not None, said
            return re.sub(rb"date: [^\r]+", b"date: now", said) + await self._reader.readexactly(int(size[1]))

    async def ask(self, **question: Any) -> bytes:
        return await self.post(orjson.dumps(question))


@asynccontextmanager
async def both(
    environment: Environment, *, published: bool = True, **settings: Any
) -> AsyncIterator[tuple[Shopfront, Shopfront]]:
    fronts = [Shopfront(environment, is_hot=is_hot, **settings) for is_hot in (True, False)]
    async with fronts[0] as hot, fronts[1] as plain:
        if published:
            version = shop().version
            if not (environment_folder(environment) / version).exists():
                shop().write(environment.publications)
            for front in (hot, plain):
                front.publish(version)
                await front.ask()  # the version is loaded
                front.decisions.payloads.clear()
        yield hot, plain


def environment_folder(environment: Environment) -> Any:
    from pathlib import Path

    return Path(environment.publications) / TENANT


def odd(plain: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what belongs there, at times what does not."""
    other = st.sampled_from(
        [None, True, False, 0, -1, 101, 10.0, 2**63, 2**64, 10**400, "", "ä" * 128, "ä" * 129, "a\x00b", "x" * 257, [],
         ["i1", 7], {}, {"a": 1}, "\ud800"]
    )  # fmt: skip
    return st.one_of(plain, plain, plain, plain, other)


ITEM = st.sampled_from(["i05", "i11", "i12", "i40", "i41", "i59", "unknown", "ü"])
EVENTS = st.fixed_dictionaries(
    {"event_type": odd(st.sampled_from(["view_item", "add_to_cart", "detail-page-view", "purchase", "not_interested"])),
     "item_id": odd(ITEM)},
    optional={"timestamp": odd(st.sampled_from(["2024-03-08T12:58:00Z", 1709902700, 1709902700123, 1709902700.5, "x"])),
              "more": st.just(1)},
)  # fmt: skip
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "user_id": odd(st.sampled_from(PEOPLE)),
    "anonymous_id": odd(st.sampled_from(["phone", "stranger"])),
    "session_id": odd(st.sampled_from(["s1", "s2", "new"])),
    "placement": odd(st.sampled_from(["default", "home", "hoem", "raw", 'a"b\\c', "ü"])),
    "num_results": odd(st.sampled_from([1, 2, 5, 10, 50, 100])),
    "context": odd(
        st.fixed_dictionaries(
            {},
            optional={
                "category": odd(st.sampled_from(["Toys", "Home > Kitchen > Pots"])),
                "region": odd(ITEM),
                "page": st.just("x"),
            },
        )
    ),
    "recent_events": odd(st.lists(EVENTS, max_size=4)),
    "session_items": odd(st.lists(odd(ITEM), max_size=4)),
    "exclude_item_ids": odd(st.lists(odd(ITEM), max_size=4)),
    "consent": odd(
        st.fixed_dictionaries(
            {}, optional={name: odd(st.booleans()) for name in ("personalize", "store", "train", "share", "no")}
        )
    ),
    "explain": odd(st.just(False)),
    "filter": odd(st.sampled_from(["price < 3", 'category == "Toys"', "not in_session(item)", "prise < 3", ""])),
    "item_ids": odd(st.lists(odd(ITEM), max_size=4)),
    "diversity": odd(st.sampled_from([0, 1, 0.3, 1.01, -0.5, True])),
    "exploration": odd(st.sampled_from([0, 0.2, 0.21])),
    "min_relevance": odd(st.sampled_from([0.5, 2])),
    "unknown": ITEM,
}
KNOWN = [name for name in FIELDS if name != "unknown"]
DOCUMENTS = st.one_of(
    st.fixed_dictionaries({}, optional={name: FIELDS[name] for name in KNOWN}),
    st.fixed_dictionaries({"user_id": st.sampled_from(PEOPLE)}, optional={n: FIELDS[n] for n in KNOWN[2:6]}),
    st.fixed_dictionaries(
        {"user_id": st.sampled_from(PEOPLE)},
        optional={n: FIELDS[n] for n in ("placement", "filter", "item_ids", "diversity", "exploration")},
    ),
    st.fixed_dictionaries({}, optional=FIELDS),
)


class TestReading:
    @settings(max_examples=400, deadline=None)
    @given(DOCUMENTS)
    def test_it_reads_what_the_declared_schema_reads_or_nothing(self, document: dict[str, Any]) -> None:
        try:
            document = orjson.loads(json.dumps(document))
        except orjson.JSONDecodeError:
            return  # the route hands such a body on
        question = read_question(document, NOW, PLACEMENTS, PLAIN, lambda: "id1")
        if question is None:
            return
        wanted = RecommendationRequest.model_validate_json(orjson.dumps(document))
        expected = slate_request(wanted, NOW, Placements(), recommendation_id="id1")
        expected.recent_events = list(expected.recent_events)
        question.slate.recent_events = list(question.slate.recent_events)
        assert question.slate == expected
        assert (question.placement, question.may_store) == (wanted.placement, wanted.consent.store is not False)

    @pytest.mark.parametrize(
        "common",
        [
            {},
            {"user_id": "u1", "session_id": "s1", "num_results": 10, "placement": "default"},
            {"anonymous_id": "a1", "user_id": None, "context": {"category": "A > B", "region": None}, "explain": False},
            {"recent_events": [{"event_type": "view_item", "item_id": "i1", "timestamp": "2024-03-08T12:58:00Z"}]},
            {"session_items": ["i1"], "exclude_item_ids": ["i2"] * 1000, "consent": {"personalize": True}},
            {"placement": "home", "filter": "price < 3", "diversity": 1, "exploration": None, "item_ids": ["i1"]},
        ],
    )
    def test_it_knows_what_is_common(self, common: dict[str, Any]) -> None:
        assert read_question(common, NOW, PLACEMENTS, PLAIN, lambda: "id1") is not None


class TestBothAgree:
    @settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(DOCUMENTS, min_size=40, max_size=50))
    async def test_on_anything(self, environment: Environment, documents: list[dict[str, Any]]) -> None:
        async with both(environment) as (hot, plain):
            for document in documents:
                body = json.dumps(document).encode()
                assert await hot.post(body) == await plain.post(body), document
            assert hot.decisions.payloads == plain.decisions.payloads

    @pytest.mark.parametrize("user", PEOPLE)
    async def test_about_everybody(self, environment: Environment, user: str) -> None:
        async with both(environment) as (hot, plain):
            for more in ({}, {"session_id": "s1"}, {"session_id": "s2", "num_results": 100}, {"explain": True}):
                question = {"user_id": user, **more}
                assert await hot.ask(**question) == await plain.ask(**question)
            assert hot.decisions.payloads == plain.decisions.payloads
            assert len(hot.decisions.payloads) == 4

    async def test_about_a_device_whose_person_is_known(self, environment: Environment) -> None:
        async with both(environment) as (hot, plain):
            for _ in range(3):  # unknown, then remembered
                said = await hot.ask(anonymous_id="phone")
                assert said == await plain.ask(anonymous_id="phone")
                assert b'"fallback_level":"personal"' in said
            for front in (hot, plain):
                front.store.hashes[edges_key("a:phone")] = {b"u:u1": pack_edge(Edge(1, 2, 3))}
            said = await hot.ask(anonymous_id="phone")
            assert said == await plain.ask(anonymous_id="phone")
            assert b'"fallback_level":"popular"' in said

    async def test_when_the_store_is_down_and_when_nothing_was_published(self, environment: Environment) -> None:
        async with both(environment) as (hot, plain):
            hot.store.is_down = plain.store.is_down = True
            for question in ({"user_id": "u1"}, {"session_items": ["i40"], "consent": {"personalize": True}}):
                assert await hot.ask(**question) == await plain.ask(**question)
        async with both(environment, published=False) as (hot, plain):
            said = await hot.ask(user_id="u1")
            assert said == await plain.ask(user_id="u1")
            assert said.startswith(b"HTTP/1.1 503 ")
            for front in (hot, plain):
                front.put("i05", "i11", "i40")
            for question in ({"user_id": "u1"}, {"num_results": 2}, {"explain": True}, {"diversity": 0.5}):
                said = await hot.ask(**question)
                assert said == await plain.ask(**question)
                assert b'"fallback_level":"new","fallback_reason":"no_published_version"' in said

    async def test_on_a_misspelt_placement(self, environment: Environment) -> None:
        async with both(environment) as (hot, plain):
            for question in ({"user_id": "u1"}, {"user_id": "nobody"}, {"user_id": "u1", "explain": True}):
                said = await hot.ask(placement="hoem", **question)
                assert said == await plain.ask(placement="hoem", **question)
                assert said.count(b'"warnings":') == 1
                assert hot.decisions.payloads == plain.decisions.payloads

    async def test_when_the_store_was_emptied(self, environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
        """The last version serves on, after one read; records that came back before the pointer count."""
        async with both(environment) as (hot, plain):
            for front in (hot, plain):
                del front.store.strings[pointer_key()]
            twice = [await front.ask(user_id="u1") for front in (plain, hot)]  # whose device is read too
            people = ("bot", "denied", "nobody", "u2")
            expected = [await plain.ask(user_id=user) for user in people]
            monkeypatch.setattr(SlateAnswers, "answer", None)
            found = [await hot.ask(user_id=user) for user in people]
            assert found == expected
            assert all(b'"degraded_reasons":["published_version_not_loaded"]' in said for said in [*found, *twice])
            assert twice[0] == twice[1]
            assert [b'"fallback_level":"personal"' in said for said in (twice[0], found[1])] == [True, False]

    async def test_when_the_version_moves(self, environment: Environment) -> None:
        async with both(environment) as (hot, plain):
            before = await hot.ask(user_id="u1")
            moved = shop(model="knn")
            moved.write(environment.publications)
            for front in (hot, plain):
                front.publish(moved.version)
            said = await hot.ask(user_id="u1", session_id="s1")
            assert said == await plain.ask(user_id="u1", session_id="s1")
            assert moved.version.encode() in said
            assert moved.version.encode() not in before

    @pytest.mark.parametrize(
        "headers",
        [{"x-request-id": "mine-1"}, {"x-request-id": "not mine"}, {"origin": "https://shop.example"},
         {"content-type": "text/plain"}, {"content-encoding": "gzip"}, {"expect": "100-continue2"}],
        ids=str,
    )  # fmt: skip
    async def test_on_headers(self, environment: Environment, headers: dict[str, str]) -> None:
        async with both(environment) as (hot, plain):
            for _ in range(2):
                body = orjson.dumps({"user_id": "u1"})
                assert await hot.post(body, **headers) == await plain.post(body, **headers)

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b"7", b'{"user_id":"\\ud800"}', b" " * 7000, b'{"num_results":1,"num_results":2}']
    )
    async def test_on_bodies_that_are_no_question(self, environment: Environment, body: bytes) -> None:
        async with both(environment) as (hot, plain):
            for _ in range(2):
                assert await hot.post(body) == await plain.post(body)

    async def test_on_a_bug(self, environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("the secret")

        async with both(environment) as (hot, plain):
            monkeypatch.setattr(parts, "writing", None)
            monkeypatch.setattr(rendering, "_envelope", broken)
            said = await hot.ask(user_id="u1")
            assert said == await plain.ask(user_id="u1")
            assert said.startswith(b"HTTP/1.1 500 ")
            assert b"secret" not in said


class TestWithoutTheFramework:
    async def test_common_questions_make_no_cycle_of_uvicorn(
        self, environment: Environment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Any] = []
        parsed: list[Any] = []
        begin = SlateProtocol.on_message_begin
        monkeypatch.setattr(SlateProtocol, "on_message_begin", lambda self: (parsed.append(1), begin(self)))
        async with both(environment) as (hot, _):
            monkeypatch.setattr(HttpToolsProtocol, "_start_asgi_task", lambda *arguments: made.append(arguments))
            parsed.clear()
            for _ in range(3):
                for user in ("u1", "u2", "nobody"):
                    assert b'"items":[{' in await hot.ask(user_id=user)
            assert made == []
            assert len(parsed) == 2  # of heads that came before, the length of the body among them, none is parsed

    async def test_a_known_head_in_pieces_or_with_more_behind_it_is_parsed(self, environment: Environment) -> None:
        async with both(environment) as (hot, plain):
            body = orjson.dumps({"user_id": "u1"})
            head = b"POST /v1/recommendations HTTP/1.1\r\nhost: api\r\ncontent-length: %d\r\n\r\n"
            one = head % len(body) + body
            ways = [[one], [one], [one[:-5], one[-5:]], [one + one], [one[:20], one[20:]], [one]]
            assert len(ways) == 6
            for sent in ways:
                answers = []
                for front in (hot, plain):
                    for piece in sent:
                        front._writer.write(piece)
                        await asyncio.sleep(0.02)
                    count = sum(map(len, sent)) // len(one)
                    heads = [await front._reader.readuntil(b'"experiments":[]}') for _ in range(count)]
                    answers.append([re.sub(rb"date: [^\r]+", b"", said) for said in heads])
                assert answers[0] == answers[1]

    async def test_who_has_seen_an_answer_finds_it_in_the_metrics(self, environment: Environment) -> None:
        def counted() -> dict[str, float]:
            rows = [line.rpartition(" ") for line in render_metrics().decode().splitlines() if line[0] != "#"]
            names = ("nightjar_api_requests_total", "nightjar_api_slates_total", "nightjar_api_request_seconds_count")
            return {name: float(value) for name, _, value in rows if name.startswith(names)}

        grown = []
        async with both(environment) as fronts:
            for front in fronts:
                before = counted()
                for _ in range(3):
                    await front.ask(user_id="u1")
                after = counted()
                grown.append({name: value - before.get(name, 0) for name, value in after.items()})
        assert {k: v for k, v in grown[0].items() if v} == {k: v for k, v in grown[1].items() if v}
        assert grown[0]['nightjar_api_slates_total{fallback_level="personal"}'] == 3

    async def test_heads_are_forgotten_when_there_are_too_many(
        self, environment: Environment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hot_slates, "MAX_HEADS", 2)
        async with both(environment) as (hot, _):
            for size in range(6):
                assert b'"items":[{' in await hot.ask(user_id="u" * (size + 1))
            hot_routes = hot.server.config.loaded_app
            assert 1 <= len(hot_routes.slates.heads) <= 2


class TestParts:
    @settings(max_examples=300, deadline=None)
    @given(
        st.one_of(
            st.floats(0, 1), st.floats(1e-7, 0.01), st.sampled_from([0.0, 1.0, 0.001, 0.9999995, 0.0009999999, 5e-324])
        )
    )
    def test_a_score_is_written_as_the_encoder_writes_it(self, score: float) -> None:
        catalogue = bare_catalogue()
        items = [SlateItem(0, "i0", score, 0.0, 0.0, Source.ALS, (Reason("i1", 'T"1', "because"),))]
        assert orjson.dumps(item_list(items, catalogue)) == orjson.dumps(render_items(items, catalogue))

    def test_a_change_of_the_shop_is_written_at_once(self) -> None:
        catalogue = bare_catalogue()
        items = [SlateItem(n, f"i{n}", 0.5, 0.0, 0.0, Source.SESSION, ()) for n in (1, 0)]
        for title in ("ü", 'a "new" one', None):
            catalogue.attributes[1] = {"title": title, "category": None, "price": 1}
            assert orjson.dumps(item_list(items, catalogue)) == orjson.dumps(render_items(items, catalogue))


def bare_catalogue() -> Catalogue:
    facts = {"title": "T", "category": "A > B", "price": 2.5}
    return Catalogue(
        version="v", manifest=None, item_ids=["i0", "i1"], numbers={"i0": 0, "i1": 1},  # type: ignore[arg-type]
        attributes=[facts, None], refusals=[None, None], expire_micros={}, neighbour_offsets=[], neighbour_numbers=[],
        similarities=[], popular=[], popular_by_category={}, popular_by_region={}, static=[], as_of_micros=0,
    )  # fmt: skip


class TestKeys:
    """The same keys, limits, traces and refusals as the application's, however often a head comes."""

    def key(self, number: int, scope: str, **limit: Any) -> tuple[dict[str, str], ApiKey]:
        key, key_id, digest = make_key(number.to_bytes(38, "little"))
        return {"authorization": f"Bearer {key}"}, ApiKey(key_id, "test", digest, (scope,), NOW, "me", **limit)

    async def test_each_request_is_looked_at(self, environment: Environment) -> None:
        reader, read_key = self.key(1, READ)
        writer, write_key = self.key(2, WRITE)
        limited, limited_key = self.key(3, READ, requests_per_second=0.001, burst=3)
        all_keys = [read_key, write_key, limited_key]
        version = shop().write(environment.publications)
        async with (
            Shopfront(environment, is_hot=True, keys=all_keys, api_keys="on") as hot,
            Shopfront(environment, is_hot=False, keys=all_keys, api_keys="on") as plain,
        ):
            for front in (hot, plain):
                front.publish(version)
                await front.post(b"{}", **reader)  # the version is loaded
            body = orjson.dumps({"user_id": "u1"})
            revoked = [read_key._replace(revoked_at=1), write_key, limited_key]
            rounds: list[tuple[list[ApiKey], dict[str, str], list[int]]] = [
                (all_keys, reader, [200, 200, 200]),
                (all_keys, {}, [401, 401]),
                (all_keys, writer, [403, 403]),
                (all_keys, limited, [200, 200, 200, 429, 429]),
                (revoked, reader, [401, 401]),
                (all_keys, reader, [200, 200]),
                (all_keys, {**reader, "x-request-id": "r-1"}, [200]),
            ]
            assert len(rounds) == 7
            for keys, headers, expected in rounds:
                found = []
                for front in (hot, plain):
                    front.app.state.services.ring.take(keys)
                for _ in expected:
                    answer = await hot.post(body, **headers)
                    assert answer == await plain.post(body, **headers)
                    found.append(int(answer.split()[1]))
                    assert (b"ratelimit-remaining: " in answer) == (headers is limited)
                assert found == expected

    async def test_a_trace_goes_on_and_is_no_one_elses(self, environment: Environment) -> None:
        async with both(environment) as (hot, _):
            spans = set()
            for number in range(3):
                trace_id = f"{number + 1:032x}"
                answer = await hot.post(b"{}", traceparent=f"00-{trace_id}-00f067aa0ba902b7-00")
                match = re.search(rb"traceresponse: 00-(\w{32})-(\w{16})-00\r\n", answer)
                assert match is not None
                assert match[1].decode() == trace_id
                spans.add(match[2])
            assert len(spans) == 3
            assert b"traceresponse" not in await hot.post(b"{}")
