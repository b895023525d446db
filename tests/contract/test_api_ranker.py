"""A placement whose best items a ranker orders: by hand, over HTTP, with everything that can be missing."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo.contracts.decisions import read_decision
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError, DependencyError
from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED
from feature_repo.contracts.publication import RANKER_FILE
from feature_repo.contracts.ranker_file import pack_ranker
from serving.adapters.bundle import load_catalogue
from serving.adapters.feast_online import entity_key, feature_field, timestamp_field
from serving.adapters.feature_store import Asked, MemoryFeatureStore, RedisFeatureStore
from serving.api.answering import Question, SlateAnswers
from serving.main import with_hot_routes
from serving.pipeline.placements import read_placements
from serving.pipeline.policy import SlatePolicy, SlateRules
from serving.pipeline.ranker import PersonFeatures
from serving.pipeline.values import SlateRequest
from tests.hand_trees import NAMES, SHARE, TASTE, tree_text
from tests.http_world import ITEMS, SHELVES, Installation, ids, metric, shelf_of, shop
from tests.serving_builders import TENANT, Shop

MARCH_8 = 1_709_856_000
DAY = 86_400
USERS, PAIRS = "user_features", "user_category_features"
PLACEMENTS = """
[placements.front]
ranker = "published"
num_results = 8
[placements.capped]
ranker = "published"
max_per_category = 2
num_results = 4
[placements.shelf]
ranker = "published"
filter = 'category == "Garden"'
num_results = 3
[placements.similar]
ranker = "published"
"""


def with_ranker(*, depth: int = 6) -> Shop:
    """The shop of the other tests with a ranker; items of odd numbers convert, i12 is not known to."""
    found = shop()
    converts = array("f", [float("nan") if item == "i12" else int(item[1:]) % 2 for item in ITEMS])
    data = pack_ranker(
        tree_text(NAMES, [TASTE, SHARE]), depth=depth, learned={"people": 60}, items=len(ITEMS), values=converts
    )
    return found.with_files({RANKER_FILE: data})


def stamp(seconds: int) -> bytes:
    return b"\x08" + bytes([(seconds >> shift & 0x7F) | 0x80 for shift in (0, 7, 14, 21)] + [seconds >> 28])


def remember(
    api: Installation,
    *,
    night: float | None = 0.0,
    shares: Mapping[str, float] | None = None,
    age: int = 0,
    share_age: int | None = None,
    user_id: str = "u1",
) -> None:
    """What Feast holds online of a person."""
    row = {timestamp_field(USERS): stamp(MARCH_8 - age)}
    if night is not None:
        row[feature_field(USERS, "user_night_share_30d")] = Value(double_val=night).SerializeToString()
    api.store.hashes[entity_key(["user_id"], [user_id])] = row
    for category, share in (shares or {}).items():
        api.store.hashes[entity_key(["user_id", "category"], [user_id, category])] = {
            timestamp_field(PAIRS): stamp(MARCH_8 - (age if share_age is None else share_age)),
            feature_field(PAIRS, "user_category_event_share_90d"): Value(double_val=share).SerializeToString(),
        }


@pytest.fixture
async def api(environment: Environment, tmp_path: Path) -> AsyncIterator[Installation]:
    (tmp_path / "placements.toml").write_text(PLACEMENTS)
    installation = Installation(environment, placements=str(tmp_path / "placements.toml"))
    installation.publish(with_ranker())
    yield installation
    await installation.client.aclose()


FIRST_STAGE = [f"i{n}" for n in range(10, 18)]
"""The list of u1, as the night left it; the ranker looks at the first six."""
CONVERTING = ["i11", "i13", "i15", "i10", "i12", "i14", "i16", "i17"]


async def test_the_best_are_in_the_order_of_the_trees_and_the_rest_behind_them(api: Installation) -> None:
    remember(api)
    assert ids(await api.ask(user_id="u1", num_results=8)) == FIRST_STAGE
    answer = await api.ask(user_id="u1", placement="front")
    assert ids(answer) == CONVERTING
    scores = [item["score"] for item in answer["items"]]
    assert scores == pytest.approx([1 - n / 30 for n in range(8)], abs=1e-6)  # of the places, not of the items
    name = api.app.state.services.recommender._shelf.current.manifest.files[RANKER_FILE][:8]
    assert answer["ranker"] == {"applied": True, "reason": None, "ranker": name}
    assert answer["degraded"] is False
    remember(api, night=0.9)
    by_night = await api.ask(user_id="u1", placement="front")
    assert ids(by_night) == ["i10", "i12", "i14", "i11", "i13", "i15", "i16", "i17"]
    remember(api, night=None)  # a null goes to the left, as by day
    assert ids(await api.ask(user_id="u1", placement="front")) == CONVERTING


async def test_what_is_liked_by_category_comes_from_the_persons_own_rows(api: Installation) -> None:
    rows = {SHELVES[1]: 0.8, SHELVES[0]: 0.2}  # i20-i39 are in the garden
    api.publish(with_ranker(depth=14))
    remember(api, shares=rows)
    answer = await api.ask(user_id="u1", placement="front", num_results=14)
    kitchen = [f"i{n}" for n in range(10, 20)]
    odd = [i for i in kitchen if int(i[1:]) % 2]
    even = [i for i in kitchen if i not in odd]
    assert ids(answer) == ["i21", "i23", "i20", "i22", *odd, *even]
    assert {shelf_of(f"i{n}") for n in range(20, 24)} == {SHELVES[1]}
    remember(api, shares=rows, share_age=DAY)  # left by the night before: missing, as when the trees were grown
    assert ids(await api.ask(user_id="u1", placement="front", num_results=14))[:2] == ["i11", "i13"]


async def test_a_session_and_the_rules_of_the_placement_hold_as_well(api: Installation) -> None:
    remember(api)
    capped = await api.ask(user_id="u1", placement="capped")
    assert ids(capped) == ["i11", "i13", "i20", "i21"]  # the garden is behind the best six
    assert ids(await api.ask(user_id="u1", placement="shelf")) == ["i21", "i23", "i25"]
    only = await api.ask(user_id="u1", placement="front", item_ids=["i10", "i11"])
    assert (ids(only), only["ranker"]["reason"]) == (["i10", "i11"], "asked_items")
    api.remember("i11")
    plain = ids(await api.ask(user_id="u1", session_id="s1", num_results=6))
    assert "i11" not in plain
    ranked = await api.ask(user_id="u1", session_id="s1", placement="front", num_results=6)
    odd = [i for i in plain if int(i[1:]) % 2]
    assert ids(ranked) == [*odd, *(i for i in plain if i not in odd)]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("nothing", "ranker_features_missing"),
        ("old", "ranker_features_stale"),
        ("garbage", "ranker_features_damaged"),
        ("down", "ranker_features_unavailable"),
    ],
)
async def test_without_features_the_answer_keeps_its_order_and_says_why(
    api: Installation, monkeypatch: pytest.MonkeyPatch, how: str, reason: str
) -> None:
    if how == "old":
        remember(api, age=3 * DAY + 1)
    elif how == "garbage":
        remember(api)
        api.store.hashes[entity_key(["user_id"], ["u1"])] |= {feature_field(USERS, "user_night_share_30d"): b"\x29\x00"}
    elif how == "down":

        async def fail(*_: Any) -> Any:
            raise DependencyError("the features cannot be read")

        monkeypatch.setattr("serving.adapters.feature_store.MemoryFeatureStore.read_rows", fail)
    before = await metric(api, f'nightjar_api_rankings_total{{outcome="{reason}"}}')
    answer = await api.ask(user_id="u1", placement="front")
    assert ids(answer) == FIRST_STAGE
    assert answer["ranker"] == {"applied": False, "reason": reason, "ranker": answer["ranker"]["ranker"]}
    assert (answer["degraded"], answer["degraded_reasons"]) == (True, [reason])
    assert answer["fallback_level"] == "personal"
    said = read_decision(api.decisions.payloads[-1])
    assert (said["degraded"], said["inputs"]["ranker"]["reason"]) == ([reason], reason)
    assert await metric(api, f'nightjar_api_rankings_total{{outcome="{reason}"}}') == before + 1
    replayed = (await api.client.get(f"/v1/decisions/{answer['recommendation_id']}")).json()["replay"]
    assert (replayed["why_not"], replayed["differences"]) == ([], [])
    if how == "old":
        remember(api, age=3 * DAY)  # as old as may be
        assert (await api.ask(user_id="u1", placement="front"))["ranker"]["applied"]


async def test_where_there_is_nothing_to_rank_it_says_so_and_is_not_degraded(api: Installation) -> None:
    remember(api)
    for question, reason in (
        ({"anonymous_id": "a1"}, "no_user"),
        ({"user_id": "u2"}, "no_list"),
        ({"user_id": "u1", "consent": {"personalize": False}}, "no_consent"),
    ):
        answer = await api.ask(placement="front", **question)
        assert (answer["ranker"]["applied"], answer["ranker"]["reason"]) == (False, reason)
        assert answer["degraded"] is False
    api.publish(with_ranker(depth=7), flags=FLAG_PERSONALIZE_DENIED)
    assert (await api.ask(user_id="u1", placement="front"))["ranker"]["reason"] == "no_consent"
    api.publish(shop())
    answer = await api.ask(user_id="u1", placement="front")
    assert answer["ranker"] == {"applied": False, "reason": "not_published", "ranker": None}
    assert (answer["degraded"], ids(answer)) == (False, FIRST_STAGE)
    assert "ranker" not in await api.ask(user_id="u1", placement="home")


async def test_features_that_fail_again_and_again_are_not_asked_for(
    api: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    works, read_rows = False, MemoryFeatureStore.read_rows

    async def fail(store: MemoryFeatureStore, those: Sequence[Asked]) -> Any:
        if those[0].entities != [("",)]:  # no probe
            asked.append(1)
        if not works:
            raise DependencyError("late")
        return await read_rows(store, those)

    monkeypatch.setattr(MemoryFeatureStore, "read_rows", fail)
    features = api.app.state.services.recommender._features
    features._breaker._probe_seconds = 0.01
    moments = iter(range(10_000))
    features._breaker.failures._seconds = lambda: float(next(moments))
    for _ in range(12):
        assert (await api.ask(user_id="u1", placement="front"))["degraded_reasons"] == ["ranker_features_unavailable"]
    assert len(asked) == 7  # the eighth finds the circuit open
    await asyncio.sleep(0.05)
    assert features._breaker.probing is not None
    works = True
    async with asyncio.timeout(5):
        while features._breaker.probing is not None:
            await asyncio.sleep(0.01)
    remember(api)
    assert (await api.ask(user_id="u1", placement="front"))["ranker"]["applied"]


async def test_explain_says_what_it_did(api: Installation) -> None:
    remember(api)
    await api.ask(user_id="u1")  # the version is loaded
    answer = await api.ask(user_id="u1", placement="front", explain=True)
    assert ids(answer) == CONVERTING
    told = answer["trace"]["ranker"]
    assert told["features_at"] == "2024-03-08T00:00:00Z"
    assert told["items"] == {
        "i11": {"rank_before": 2, "score": 1.0}, "i13": {"rank_before": 4, "score": 1.0},
        "i15": {"rank_before": 6, "score": 1.0}, "i10": {"rank_before": 1, "score": 0.0},
        "i12": {"rank_before": 3, "score": 0.0}, "i14": {"rank_before": 5, "score": 0.0},
    }  # fmt: skip
    assert {"features", "ranker"} <= answer["trace"]["stages_ms"].keys()
    assert answer["trace"]["online_reads"] == 2
    # the trees say nothing of why an item is there: sources are of relevance before them
    assert {item["item_id"]: item["sources"] for item in answer["items"]} == {
        item: [{"name": "list", "share": 1.0}] for item in CONVERTING
    }


async def test_a_decision_has_the_ranker_and_is_made_again_from_the_same_features(api: Installation) -> None:
    remember(api, shares={SHELVES[0]: 0.9})
    answer = await api.ask(user_id="u1", placement="front")
    said = read_decision(api.decisions.payloads[-1])
    ranker = said["inputs"]["ranker"]
    assert (ranker["ranker"], ranker["reason"]) == (answer["ranker"]["ranker"], None)
    assert ranker["features_at"] == MARCH_8 * 1_000_000
    assert said["inputs"]["policy"] == {"placement": "front", "rules": {"ranker": "published"}}
    path = f"/v1/decisions/{answer['recommendation_id']}"
    replay = (await api.client.get(path)).json()["replay"]
    assert (replay["why_not"], replay["differences"]) == ([], [])
    assert replay["item_ids"] == ids(answer)
    remember(api, night=0.3, shares={SHELVES[0]: 0.9})  # the order would be the same: the features are not
    assert (await api.client.get(path)).json()["replay"]["why_not"] == ["features_changed"]
    unnamed = await api.ask(user_id="u1", placement="front", consent={"store": False})
    assert unnamed["ranker"]["applied"]
    said = read_decision(api.decisions.payloads[-1])
    assert said["inputs"]["ranker"].keys() == {"ranker", "reason"}
    assert "u1" not in json.dumps({**said, "items": []})


async def test_on_a_page_it_orders_recommendations_and_nothing_else(api: Installation) -> None:
    remember(api)
    question = {
        "user_id": "u1", "item_id": "i40",
        "placements": [{"kind": "recommendations", "placement": "front", "num_results": 6}, {"kind": "similar"}],
    }  # fmt: skip
    response = await api.client.post("/v1/pages/mine", json=question)
    front, similar = response.json()["placements"]
    assert ids(front) == CONVERTING[:6]
    assert front["ranker"]["applied"]
    assert "ranker" not in similar
    assert [item["item_id"] for item in similar["items"]][:2] == ["i41", "i42"]
    given = await api.client.post("/v1/rank", json={"user_id": "u1", "item_ids": ["i10", "i11"], "placement": "front"})
    assert "ranker" not in given.json()


async def test_the_short_way_leaves_such_a_question_to_the_other(api: Installation) -> None:
    remember(api)
    await api.ask(user_id="u1")
    answers: SlateAnswers = with_hot_routes(api.app).slates.answers
    told: list[bytes | None] = []
    rules = SlatePolicy(SlateRules(ranker="published"), "front")
    question = Question(SlateRequest(3, user_id="u1", policy=rules), "id", "front", True, api.now)
    assert answers.submit(question, 0, told.append)
    assert told == []
    await asyncio.sleep(0)
    assert told == [None]
    body = json.loads(await answers.answer(question, 0))
    assert ids(body) == ["i11", "i13", "i15"]


@pytest.fixture
async def keeping(api: Installation, redis_url: str) -> AsyncIterator[tuple[Installation, redis.Redis]]:
    """The installation with features on a real Redis, of which a worker keeps what it read."""
    features = api.app.state.services.recommender._features
    features._store = RedisFeatureStore(redis_url, timeout_seconds=5, keep_bytes=1 << 20)
    with redis.Redis.from_url(redis_url) as client:
        yield api, client
    await features.close()


def bring_online(api: Installation, client: redis.Redis, **row: Any) -> None:
    remember(api, **row)
    for key, fields in api.store.hashes.items():
        client.hset(key, mapping=fields)  # type: ignore[arg-type]


async def test_who_was_just_here_is_ranked_without_a_second_read(keeping: tuple[Installation, redis.Redis]) -> None:
    api, client = keeping
    bring_online(api, client, shares={SHELVES[0]: 0.9})
    await api.ask(user_id="u1")
    answers = [await api.ask(user_id="u1", placement="front", explain=True) for _ in range(3)]
    assert [answer["trace"]["online_reads"] for answer in answers] == [2, 1, 1]
    assert [ids(answer) for answer in answers] == [CONVERTING] * 3
    bring_online(api, client, night=0.9, shares={SHELVES[0]: 0.9})
    await asyncio.sleep(0.05)
    changed = [await api.ask(user_id="u1", placement="front", explain=True) for _ in range(2)]
    assert [answer["trace"]["online_reads"] for answer in changed] == [2, 1]
    assert [ids(answer)[:3] for answer in changed] == [["i10", "i12", "i14"]] * 2
    client.delete(entity_key(["user_id"], ["u1"]))  # erased
    await asyncio.sleep(0.05)
    for _ in range(2):
        erased = await api.ask(user_id="u1", placement="front")
        assert (erased["ranker"]["reason"], ids(erased)) == ("ranker_features_missing", FIRST_STAGE)


async def test_how_old_a_kept_row_is_counts_each_time(keeping: tuple[Installation, redis.Redis]) -> None:
    api, client = keeping
    bring_online(api, client)
    await api.ask(user_id="u1", placement="front")
    recommender = api.app.state.services.recommender
    ranker, features = recommender._shelf.current.ranker, recommender._features
    oldest = (MARCH_8 + 3 * DAY) * 1_000_000
    assert isinstance(features.kept(ranker.wants("u1", [shelf_of("i10")], oldest)), PersonFeatures)
    assert features.kept(ranker.wants("u1", [shelf_of("i10")], oldest + 1)) == "ranker_features_stale"


async def test_the_short_way_answers_who_was_just_here(keeping: tuple[Installation, redis.Redis]) -> None:
    api, client = keeping
    bring_online(api, client)
    answers: SlateAnswers = with_hot_routes(api.app).slates.answers
    rules = SlatePolicy(SlateRules(ranker="published"), "front")
    question = Question(SlateRequest(6, user_id="u1", policy=rules), "id", "front", True, api.now)
    expected = json.loads(await answers.answer(question, 0))
    assert ids(expected) == CONVERTING[:6]
    logged, before = len(api.decisions.payloads), api.store.reads
    ranked = await metric(api, 'nightjar_api_rankings_total{outcome="ranked"}')
    told: list[bytes | None] = []
    assert answers.submit(question, 0, told.append)
    while not told:
        await asyncio.sleep(0)
    assert told[0] is not None
    assert {**json.loads(told[0]), "took_ms": 0} == {**expected, "took_ms": 0}
    assert api.store.reads == before + 1
    assert len(api.decisions.payloads) == logged + 1
    assert read_decision(api.decisions.payloads[-1])["inputs"] == read_decision(api.decisions.payloads[-2])["inputs"]
    assert await metric(api, 'nightjar_api_rankings_total{outcome="ranked"}') == ranked + 1
    client.delete(entity_key(["user_id", "category"], ["u1", SHELVES[0]]))  # it was not there: nothing changed
    client.hset(entity_key(["user_id", "category"], ["u1", SHELVES[0]]), "x", "y")
    await asyncio.sleep(0.05)
    told.clear()
    assert answers.submit(question, 0, told.append)
    while not told:
        await asyncio.sleep(0)
    assert told == [None]  # one row has to be read


def test_a_placement_that_misspells_it_is_told() -> None:
    for said, words in (
        ('ranker = "publish"', "placements.home.ranker is off or published, got 'publish'; did you mean 'published'"),
        ("ranker = true", "placements.home.ranker is a text, got 'True'"),
        ('rankr = "off"', "no key 'rankr'; did you mean 'ranker'"),
    ):
        with pytest.raises(DataError, match=words):
            read_placements(f"[placements.home]\n{said}", is_json=False)
    assert not read_placements("", is_json=False).ask_ranker
    assert read_placements('[placements.home]\nranker = "published"', is_json=False).ask_ranker


def changed(folder: Path, change: Sequence[bytes]) -> None:
    path = folder / RANKER_FILE
    path.write_bytes(path.read_bytes().replace(*change))


def test_a_file_that_was_tampered_with_is_not_served(tmp_path: Path) -> None:
    version = with_ranker().write(tmp_path)
    assert load_catalogue(str(tmp_path), version, tenant=TENANT).ranker is not None
    changed(tmp_path / TENANT / version, (b"leaf_value=0.0 1.0", b"leaf_value=1.0 0.0"))
    with pytest.raises(ContractError, match=f"{RANKER_FILE} has SHA-256"):
        load_catalogue(str(tmp_path), version, tenant=TENANT)
    broken = shop().with_files({RANKER_FILE: b"NJR1" + bytes(40)})
    with pytest.raises(ContractError, match=f"not a whole {RANKER_FILE}"):
        load_catalogue(str(tmp_path), broken.write(tmp_path), tenant=TENANT)


async def test_who_does_not_ask_for_it_pays_nothing(api: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> Any:
        raise AssertionError("read for nothing")

    monkeypatch.setattr("serving.adapters.ranker_features.RankerFeatures.read", fail)
    assert ids(await api.ask(user_id="u1", num_results=8)) == FIRST_STAGE
    assert len((await api.ask(user_id="u1", placement="home"))["items"]) == 24
