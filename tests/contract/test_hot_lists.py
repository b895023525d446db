"""The raw routes of /v1/rank, /v1/similar and /v1/pages/{page} and the application behind them agree, to the byte."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from feature_repo.contracts.api_keys import READ, WRITE, ApiKey, make_key
from feature_repo.contracts.decisions import read_decision
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.identity import Edge, pack_edge
from feature_repo.contracts.keys import edges_key
from serving.api import pages
from serving.api.hot_lists import are_ids
from serving.api.hot_slates import is_id
from serving.native import parts
from serving.observability import render_metrics
from tests.contract.test_hot_slates import FIELDS, ITEM, NOW, PEOPLE, Shopfront, both, odd
from tests.http_world import shelf_of

ASKING = (
    "user_id", "anonymous_id", "session_id", "context", "recent_events", "session_items", "exclude_item_ids", "consent",
    "explain",
)  # fmt: skip
GIVEN = [f"i{number:02}" for number in range(5, 60, 3)]
RANKED: dict[str, st.SearchStrategy[Any]] = {
    **{name: FIELDS[name] for name in (*ASKING, "placement", "unknown")},
    "num_results": odd(st.sampled_from([1, 2, 5, 500, 501])),
}
RANKS = st.one_of(
    st.fixed_dictionaries({"item_ids": odd(st.lists(odd(ITEM), max_size=6))}, optional=RANKED),
    *[
        st.fixed_dictionaries(
            {
                "user_id": st.sampled_from(PEOPLE),
                "item_ids": st.lists(st.one_of(ITEM, st.sampled_from(GIVEN)), min_size=1),
            },
            optional={name: RANKED[name] for name in ("session_id", "num_results", "exclude_item_ids", "consent")},
        )
        for _ in range(2)
    ],
)  # fmt: skip
LIKE: dict[str, st.SearchStrategy[Any]] = {
    **{name: FIELDS[name] for name in (*ASKING, "unknown")},
    "placement": odd(st.sampled_from(["similar", "home", "cart", "email", "mine", "hoem", 'a"b'])),
    "num_results": odd(st.sampled_from([1, 3, 12, 100, 101])),
    "filter": st.sampled_from(["price < 5", "prise < 5"]),
}
SIMILAR = st.one_of(
    st.fixed_dictionaries({}, optional={**LIKE, "item_id": odd(ITEM)}),
    *[
        st.fixed_dictionaries(
            {"item_id": st.one_of(ITEM, st.sampled_from(GIVEN)), "user_id": st.sampled_from(PEOPLE)},
            optional={name: LIKE[name] for name in ("placement", "session_id", "exclude_item_ids", "consent")},
        )
        for _ in range(2)
    ],
)  # fmt: skip
KINDS = ["recommendations", "similar", "bought_together", "trending", "new", "continue", "buy_again"]
PLACES = st.fixed_dictionaries(
    {},
    optional={
        "kind": odd(st.sampled_from(KINDS)),
        "placement": odd(st.sampled_from(["home", "cart", "email", "mine", "hoem", 'a"b'])),
        "num_results": odd(st.sampled_from([1, 3, 12, 100])),
        "item_id": odd(ITEM),
        "window": odd(st.sampled_from(["5m", "1h", "1d"])),
        "max_age_days": odd(st.sampled_from([30, 0.5, 3650, 3651, 0])),
        "more": st.just(1),
    },
)
PAGED: dict[str, st.SearchStrategy[Any]] = {name: FIELDS[name] for name in (*ASKING, "unknown")}
PAGES = st.one_of(
    st.fixed_dictionaries(
        {"placements": odd(st.lists(odd(PLACES), max_size=4))}, optional={**PAGED, "item_id": odd(ITEM)}
    ),
    *[
        st.fixed_dictionaries(
            {
                "user_id": st.sampled_from(PEOPLE),
                "item_id": ITEM,
                "placements": st.lists(
                    st.fixed_dictionaries(
                        {"kind": st.sampled_from(KINDS)},
                        optional={
                            "num_results": st.integers(1, 30),
                            "placement": st.sampled_from(["home", "email", "cart", "search", "raw"]),
                        },
                    ),
                    max_size=10,
                ),
            },
            optional={name: PAGED[name] for name in ("session_id", "exclude_item_ids", "consent")},
        )
        for _ in range(2)
    ],
)  # fmt: skip
FIVE = [{"kind": kind, "num_results": 4} for kind in ("continue", "recommendations", "similar", "trending", "new")]


async def rank(front: Shopfront, **question: Any) -> bytes:
    return await front.post(orjson.dumps(question), path="/v1/rank")


async def similar(front: Shopfront, **question: Any) -> bytes:
    return await front.post(orjson.dumps(question), path="/v1/similar")


async def page(front: Shopfront, name: str = "home", **question: Any) -> bytes:
    return await front.post(orjson.dumps(question), path=f"/v1/pages/{name}")


class TestBothAgree:
    @settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(SIMILAR, min_size=15, max_size=20))
    async def test_on_what_is_like_any_item(self, environment: Environment, documents: list[dict[str, Any]]) -> None:
        async with both(environment) as (hot, plain):
            for document in documents:
                body = json.dumps(document).encode()
                said = await hot.post(body, path="/v1/similar")
                assert said == await plain.post(body, path="/v1/similar"), document
            assert hot.decisions.payloads == plain.decisions.payloads

    async def test_what_is_like_an_item_leaves_the_framework(self, environment: Environment) -> None:
        async with both(environment) as (hot, plain):
            for placement in ("similar", "home"):
                for user in ("u1", "u2", None):
                    said = await similar(hot, user_id=user, item_id="i05", placement=placement, num_results=3)
                    assert said == await similar(plain, user_id=user, item_id="i05", placement=placement, num_results=3)
                    assert said.count(b'"rank":') == 3
            for odd_one in ({"item_id": "nowhere"}, {"item_id": ""}, {}, {"item_id": "i05", "num_results": 101}):
                said = await similar(hot, **odd_one)
                assert said == await similar(plain, **odd_one)
                assert said.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 422 "))
            heads = hot.server.config.loaded_app.lists.heads.values()
            assert {known.route.path for known in heads} == {"/v1/similar"}
            assert hot.decisions.payloads == plain.decisions.payloads

    @settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(RANKS, min_size=15, max_size=20))
    async def test_on_any_list(self, environment: Environment, documents: list[dict[str, Any]]) -> None:
        async with both(environment) as (hot, plain):
            for document in documents:
                body = json.dumps(document).encode()
                assert await hot.post(body, path="/v1/rank") == await plain.post(body, path="/v1/rank"), document
            assert hot.decisions.payloads == plain.decisions.payloads

    @settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(
            st.tuples(st.sampled_from(["home", "product", "mine", "email", "%68ome"]), PAGES), min_size=15, max_size=20
        )
    )
    async def test_on_any_page(self, environment: Environment, asked: list[tuple[str, dict[str, Any]]]) -> None:
        async with both(environment) as (hot, plain):
            for name, document in asked:
                body, path = json.dumps(document).encode(), f"/v1/pages/{name}"
                assert await hot.post(body, path=path) == await plain.post(body, path=path), document
            assert hot.decisions.payloads == plain.decisions.payloads

    @pytest.mark.parametrize("user", PEOPLE[:7])
    async def test_about_everybody(self, environment: Environment, user: str) -> None:
        async with both(environment) as (hot, plain):
            for more in ({}, {"session_id": "s1"}, {"session_id": "s2", "consent": {"store": False}}):
                question = {"user_id": user, "item_ids": GIVEN, **more}
                assert await rank(hot, **question) == await rank(plain, **question)
                question = {"user_id": user, "item_id": "i12", "placements": FIVE, **more}
                said = await page(hot, **question)
                assert said == await page(plain, **question)
                shown = [item["item_id"] for one in body_of(said)["placements"] for item in one["items"]]
                assert len(shown) == len(set(shown)) > 12
            assert hot.decisions.payloads == plain.decisions.payloads
            assert len(hot.decisions.payloads) == 3 * 6

    async def test_about_a_device_whose_person_is_known(self, environment: Environment) -> None:
        async with both(environment) as (hot, plain):
            for _ in range(3):  # unknown, then remembered
                said = await rank(hot, anonymous_id="phone", item_ids=GIVEN)
                assert said == await rank(plain, anonymous_id="phone", item_ids=GIVEN)
                assert b'"fallback_level":"personal"' in said
                assert await page(hot, anonymous_id="phone") == await page(plain, anonymous_id="phone")
            for front in (hot, plain):
                front.store.hashes[edges_key("a:phone")] = {b"u:u1": pack_edge(Edge(1, 2, 3))}
            said = await rank(hot, anonymous_id="phone", item_ids=GIVEN)
            assert said == await rank(plain, anonymous_id="phone", item_ids=GIVEN)
            assert b'"fallback_level":"session"' in said

    async def test_where_placements_have_rules(self, environment: Environment, tmp_path: Path) -> None:
        rules = tmp_path / "placements.toml"
        rules.write_text(
            """
            [placements.default]
            filter = 'not category == "Toys"'
            [placements.shelf]
            max_per_category = 2
            [placements.all]
            """
        )
        places = [
            {"kind": "continue", "num_results": 6}, {"kind": "new", "num_results": 9, "placement": "shelf"},
            {"kind": "recommendations", "num_results": 4}, {"kind": "similar", "num_results": 4},
            {"kind": "trending", "num_results": 9, "placement": "all"},
        ]  # fmt: skip
        async with both(environment, placements=str(rules)) as (hot, plain):
            for user in ("u1", "u2", "denied", "broken"):
                for more, left in (({}, 12), ({"placement": "shelf"}, 6), ({"placement": "all"}, 19)):
                    question = {"user_id": user, "item_ids": GIVEN, **more}
                    said = await rank(hot, **question)
                    assert said == await rank(plain, **question)
                    assert len(body_of(said)["items"]) == left
                question = {"user_id": user, "item_id": "i12", "placements": places}
                said = await page(hot, **question)
                assert said == await page(plain, **question)
                shown = [[item["item_id"] for item in one["items"]] for one in body_of(said)["placements"]]
                assert all(item < "i40" for one in (shown[0], shown[2], shown[3]) for item in one)
                assert set(Counter(map(shelf_of, shown[1])).values()) == {2}
                assert any(item >= "i40" for item in shown[4])
                filtered = {"user_id": user, "filter": 'category == "Garden"'}
                said = await rank(hot, **filtered, item_ids=GIVEN)
                assert said == await rank(plain, **filtered, item_ids=GIVEN)
                assert {item["item_id"][1] for item in body_of(said)["items"]} == {"2", "3"}
                said = await page(hot, **filtered)
                assert said == await page(plain, **filtered)
                shown = [[item["item_id"] for item in one["items"]] for one in body_of(said)["placements"]]
                assert {shelf_of(item) for one in shown for item in one} == {"Garden"}
            assert hot.decisions.payloads == plain.decisions.payloads

    async def test_when_the_store_is_down_and_when_nothing_was_published(self, environment: Environment) -> None:
        async with both(environment) as (hot, plain):
            hot.store.is_down = plain.store.is_down = True
            for _ in range(2):
                said = await rank(hot, user_id="u1", item_ids=GIVEN)
                assert said == await rank(plain, user_id="u1", item_ids=GIVEN)
                assert b'"degraded":true' in said
                assert await page(hot, user_id="u1") == await page(plain, user_id="u1")
        async with both(environment, published=False) as (hot, plain):
            said = await rank(hot, user_id="u1", item_ids=GIVEN)
            assert said == await rank(plain, user_id="u1", item_ids=GIVEN)
            assert said.startswith(b"HTTP/1.1 503 ")
            assert await page(hot, user_id="u1") == await page(plain, user_id="u1")
            for front in (hot, plain):
                front.put("i05", "i11", "i40")
            said = await rank(hot, user_id="u1", item_ids=GIVEN)
            assert said == await rank(plain, user_id="u1", item_ids=GIVEN)
            assert b'"degraded_reasons":["no_published_version"]' in said
            said = await page(hot, user_id="u1")
            assert said == await page(plain, user_id="u1")
            assert b'"source":"new"' in said

    async def test_on_a_page_with_a_misspelt_placement(self, environment: Environment) -> None:
        async with both(environment) as (hot, plain):
            places = [{"placement": "hoem"}, {"placement": "home"}, {}, {"kind": "new", "placement": "hoem"}]
            for user in ("u1", "u2"):  # step by step, and at once
                said = await page(hot, user_id=user, placements=places)
                assert said == await page(plain, user_id=user, placements=places)
                assert said.count(b'"warnings":') == 2
            assert hot.decisions.payloads == plain.decisions.payloads

    async def test_given_items_at_a_misspelt_placement(self, environment: Environment) -> None:
        async with both(environment) as (hot, plain):
            for asked in ({"item_ids": GIVEN}, {"item_ids": [*GIVEN, "unknown"], "num_results": 99}):
                for user in ("u1", "u2"):
                    said = await rank(hot, user_id=user, placement="hoem", **asked)
                    assert said == await rank(plain, user_id=user, placement="hoem", **asked)
                    assert b"did you mean 'home'?" in said

    @pytest.mark.parametrize(
        "headers",
        [{"x-request-id": "mine-1"}, {"origin": "https://shop.example"}, {"content-encoding": "gzip"}],
        ids=str,
    )
    async def test_on_headers(self, environment: Environment, headers: dict[str, str]) -> None:
        async with both(environment) as (hot, plain):
            for _ in range(2):
                body = orjson.dumps({"user_id": "u1", "item_ids": ["i05"]})
                for path in ("/v1/rank", "/v1/rank?key=x", "/v1/pages/home", "/v1/pages/home/", "/v1/pages/"):
                    said = await hot.post(body, path=path, **headers)
                    assert said == await plain.post(body, path=path, **headers), path

    async def test_with_keys(self, environment: Environment) -> None:
        kept = [make_key(number.to_bytes(38, "little")) for number in (1, 2)]
        keys = [
            ApiKey(key_id, "test", digest, (scope,), NOW, "me")
            for scope, (_, key_id, digest) in zip((READ, WRITE), kept, strict=True)
        ]
        fronts = [Shopfront(environment, is_hot=is_hot, keys=keys, api_keys="on") for is_hot in (True, False)]
        async with fronts[0] as hot, fronts[1] as plain:
            for text, status in ((kept[0][0], b"503"), (kept[1][0], b"403"), ("nj_wrong", b"401")):
                for _ in range(2):
                    body = orjson.dumps({"user_id": "u1", "item_ids": ["i05"]})
                    headers = {"authorization": f"Bearer {text}", "x-request-id": "mine"}
                    said = await hot.post(body, path="/v1/rank", **headers)
                    assert said == await plain.post(body, path="/v1/rank", **headers)
                    assert said.startswith(b"HTTP/1.1 " + status)


class TestWithoutTheFramework:
    async def test_common_questions_make_no_cycle_of_uvicorn(
        self, environment: Environment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Any] = []
        async with both(environment) as (hot, _):
            await page(hot, user_id="u1")  # trends are read
            monkeypatch.setattr(HttpToolsProtocol, "_start_asgi_task", lambda *arguments: made.append(arguments))
            for _ in range(2):
                for user in ("u1", "u2", "nobody"):
                    assert b'"items":[{' in await rank(hot, user_id=user, item_ids=GIVEN, num_results=3)
                    assert b'"placements":[{' in await page(hot, user_id=user)
            assert made == []
            assert (
                len(hot.server.config.loaded_app.lists.heads) == 4
            )  # two routes, bodies of two lengths... of "nobody"

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
                    await rank(front, user_id="u1", item_ids=["i12"])
                    await page(front, user_id="u1")
                after = counted()
                grown.append({name: value - before.get(name, 0) for name, value in after.items()})
        assert {k: v for k, v in grown[0].items() if v} == {k: v for k, v in grown[1].items() if v}
        assert grown[0]['nightjar_api_requests_total{route="/v1/pages/{page}",status="200"}'] == 3

    async def test_a_page_whose_trends_were_not_read_yet_is_answered_once(self, environment: Environment) -> None:
        async with both(environment) as (hot, _):
            said = body_of(await page(hot, user_id="u1", placements=FIVE, item_id="i12"))
            kept = [read_decision(payload) for payload in hot.decisions.payloads]
            assert [one["kind"] for one in kept] == [place["kind"] for place in FIVE]
            assert [one["items"] for one in kept] == [
                [item["item_id"] for item in one["items"]] for one in said["placements"]
            ]

    @pytest.mark.parametrize("native", [True, False])
    async def test_a_page_that_fails_on_its_way_logs_each_decision_once(
        self, environment: Environment, monkeypatch: pytest.MonkeyPatch, native: bool
    ) -> None:
        async with both(environment) as (hot, _):
            await page(hot, user_id="nobody")  # trends are read
            hot.decisions.payloads.clear()
            calls = 0
            write = pages.PlaceMaker.write

            def fails_once(*given: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == 3:
                    raise RuntimeError("a bug")
                return write(*given)

            monkeypatch.setattr(pages.PlaceMaker, "write", fails_once)
            if not native:
                monkeypatch.setattr(parts, "pages", None)
            places = [{"kind": kind, "num_results": 100} for kind in ("new", "recommendations", "similar", "trending")]
            said = body_of(await page(hot, user_id="nobody", placements=places, item_id="i12"))
            kept = [read_decision(payload)["items"] for payload in hot.decisions.payloads]
            assert calls > 3
            assert kept == [[item["item_id"] for item in one["items"]] for one in said["placements"]]


class TestParts:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(odd(ITEM), max_size=4))
    def test_ids_at_once_are_ids_one_by_one(self, values: list[Any]) -> None:
        try:
            values = orjson.loads(json.dumps(values))
        except orjson.JSONDecodeError:
            return
        assert are_ids(values) == all(map(is_id, values))

    def test_every_preset_has_places(self) -> None:
        assert list(pages.PRESETS) == ["home", "product", "cart", "search", "email"]
        assert all(pages.PRESETS.values())


def body_of(said: bytes) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(said.partition(b"\r\n\r\n")[2])
    return found
