"""Features online are the features offline, on real Delta, Feast and Redis; our own reader sees what the SDK sees."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import redis
from deltalake import write_deltalake

from feature_repo.column_engine import ColumnComputeEngine
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from feature_repo.contracts.feature_table import FEATURE_VIEWS, FeatureView, feature_view
from feature_repo.contracts.keys import feature_times_key
from feature_repo.contracts.run import Run
from feature_repo.contracts.tables import table_path
from serving.adapters.feast_online import (
    entity_key,
    feature_field,
    read_string_value,
    read_timestamp_micros,
    timestamp_field,
)
from serving.adapters.feature_store import RedisFeatureStore
from spark_jobs.io.feature_store import open_store, training_frame
from spark_jobs.io.light_delta import arrow_schema, read_table
from spark_jobs.io.table_hash import hash_table
from spark_jobs.jobs import materialize_features
from tests.builders import utc, write_rows

AS_OF = date(2024, 3, 8)
ENTITIES = 1000
MARCH_8_MICROS = 1_709_856_000_000_000


def run(as_of: date = AS_OF, *, publishes: bool = True) -> Run:
    return Run("k", "default", as_of.isoformat(), {}, None, publishes, "a backfill publishes nothing", "m", "test")


def key_of(join_key: str, number: int) -> str:
    """Ids; number 0 is an awkward one. Users share seven categories."""
    if join_key == "category":
        return f"Küche > C{number % 7}"
    return f"ü 0/{{x}} {join_key}" if number == 0 else f"{join_key[0]}{number}"


def feature_row(view: FeatureView, number: int, as_of: date = AS_OF) -> dict[str, Any]:
    """Row `number` of a view. Its values differ by feature and row, hold zeros and negative numbers, and where a
    feature may be null, every third is."""
    row: dict[str, Any] = {key: key_of(key, number) for key in view.join_keys}
    row |= {"feature_timestamp": datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC), "as_of": as_of}
    for position, feature in enumerate(view.features):
        value = number * 31 + position
        if feature.null_means is not None and value % 3 == 0:
            row[feature.name] = None
        elif feature.type == "bigint":
            row[feature.name] = value % 997
        elif feature.type == "double":
            row[feature.name] = (value - 500) / 7
        else:
            row[feature.name] = f"Küche > C{value % 5}"
    return row


def user_row(number: int, as_of: date = AS_OF, **other: Any) -> dict[str, Any]:
    return {**feature_row(feature_view("user_features"), number, as_of), **other}


def write(env: Environment, view: str, rows: list[dict[str, Any]]) -> None:
    name = feature_view(view).table
    frame = pa.Table.from_pylist(rows, schema=arrow_schema(name))
    write_deltalake(table_path(env.lakehouse, name), frame, partition_by=["as_of"], mode="overwrite")


def write_all(env: Environment, count: int) -> None:
    for name, view in FEATURE_VIEWS.items():
        write(env, name, [feature_row(view, n) for n in range(count)])


@pytest.fixture
def shop(environment: Environment, redis_url: str) -> Environment:
    """Two nights of features: the day before has other values, and a user who is gone today."""
    env = environment._replace(redis_online_url=redis_url)
    write_all(env, 40)
    before = [user_row(n, date(2024, 3, 7), user_view_count_7d=999) for n in range(40)]
    before.append(user_row(77, date(2024, 3, 7), user_id="gone", user_view_count_7d=77))
    write(env, "user_features", before + [user_row(n) for n in range(40)])
    return env


@pytest.fixture(scope="module")
def large(
    tmp_path_factory: pytest.TempPathFactory, _redis_server: str
) -> tuple[Environment, dict[str, dict[str, list[Any]]]]:
    """1,000 rows of each view, materialized once, and what the SDK reads online of them: view -> feature -> values."""
    home = tmp_path_factory.mktemp("large")
    env = Environment.from_mapping({"NIGHTJAR_HOME": str(home), "NIGHTJAR_REDIS_ONLINE_URL": _redis_server})
    write_all(env, ENTITIES)
    materialize_features.main(env, run())
    store = open_store(env)
    found = {}
    for name, view in FEATURE_VIEWS.items():
        entities = [{key: key_of(key, n) for key in view.join_keys} for n in range(ENTITIES)]
        asked = [f"{name}:{feature.name}" for feature in view.features]
        found[name] = store.get_online_features(features=asked, entity_rows=entities).to_dict()
    return env, found


def online(env: Environment, service: str, entities: list[dict[str, str]]) -> dict[str, list[Any]]:
    store = open_store(env)
    return store.get_online_features(features=store.get_feature_service(service), entity_rows=entities).to_dict()


def historical(env: Environment, asked: list[tuple[str, str]]) -> list[int | None]:
    """user_view_count_7d of each (user, instant), in the order asked."""
    entities = pd.DataFrame(
        {"user_id": [user for user, _ in asked], "event_timestamp": pd.to_datetime([moment for _, moment in asked])}
    )
    frame = training_frame(env, entities, "user_ranking_v1")
    assert list(frame["user_id"]) == list(entities["user_id"])
    return [None if pd.isna(value) else int(value) for value in frame["user_view_count_7d"]]


ODD = [
    {"user_view_count_7d": -1, "user_days_since_last_event": float("nan")},
    {"user_view_count_7d": 2**63 - 1, "user_top_category_90d": ""},
    {"user_view_count_7d": -(2**63), "user_top_category_90d": "ä" * 200},
    {"user_view_count_7d": 0, "user_top_category_90d": None},
    {"user_view_count_7d": 127},
    {"user_view_count_7d": 128},
]


def everything_in(client: redis.Redis) -> dict[bytes, dict[bytes, bytes]]:
    return {key: client.hgetall(key) for key in client.scan_iter() if client.type(key) == b"hash"}


def test_redis_holds_what_feasts_own_engine_writes(
    shop: Environment, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte by byte, values of every kind among them, and more rows than go in one piece."""
    known = {feature.name for feature in feature_view("user_features").features}
    odd = [{name: value for name, value in row.items() if name in known} for row in ODD]
    assert sum(map(len, odd)) >= 9
    rows = [user_row(n) for n in range(40)] + [user_row(100 + n, **row) for n, row in enumerate(odd)]
    write(shop, "user_features", rows)
    found = []
    for size in (7, 1_000, None):
        monkeypatch.setattr("feature_repo.column_engine.ROWS_AT_ONCE", size or 1_000)
        if size is None:
            monkeypatch.setattr(ColumnComputeEngine, "_plain_rows", lambda *_: None)
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
            materialize_features.main(shop, run())
            found.append(everything_in(client))
    assert len(found[0]) == 46 + 40 + 40 + 1  # users, items, users by category, and the times of the views
    assert found[0] == found[1] == found[2]


def test_a_redis_that_refuses_a_row_stops_it_and_its_other_answers_are_nobodys(
    shop: Environment, redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        materialize_features.main(shop, run())
        (key,) = [key for key in client.scan_iter() if b"u7" in key and b"category" not in key]
        client.set(key, "no hash")
        with pytest.raises(DependencyError, match="ResponseError"):
            materialize_features.main(shop, run())
        store = open_store(shop)
        with pytest.raises(redis.ResponseError):
            store.materialize(utc("2024-03-07T23:59:59"), utc("2024-03-08"))
        asked = ["user_features:user_view_count_7d"]
        found = store.get_online_features(features=asked, entity_rows=[{"user_id": "u8"}]).to_dict()
        assert found["user_view_count_7d"] == [user_row(8)["user_view_count_7d"]]
        client.delete(key)


@pytest.mark.parametrize("name", ["user_features", "item_features", "user_category_features"])
def test_online_equals_offline_for_a_thousand_entities(large: Any, name: str) -> None:
    assert len(FEATURE_VIEWS) == 3
    view = FEATURE_VIEWS[name]
    rows = [feature_row(view, n) for n in range(ENTITIES)]
    assert len(view.features) == {"user_features": 27, "item_features": 24, "user_category_features": 8}[name]
    for feature in view.features:
        expected = [row[feature.name] for row in rows]
        assert len(set(expected)) > 1
        assert (None in expected) == (feature.null_means is not None)
        assert large[1][name][feature.name] == expected, feature.name


def test_a_training_frame_equals_what_is_online(large: Any) -> None:
    """The same 1,000 users and items, asked for at the instant that was materialized: one frame of three views."""
    env, found = large
    rows = pd.DataFrame({"user_id": [key_of("user_id", n) for n in range(ENTITIES)]})
    rows["item_id"] = [key_of("item_id", n) for n in range(ENTITIES)]
    rows["category"] = [key_of("category", n) for n in range(ENTITIES)]
    rows["event_timestamp"] = pd.Timestamp("2024-03-08", tz="UTC")
    frame = training_frame(env, rows, "ranking_v1")
    compared = 0
    for name, view in FEATURE_VIEWS.items():
        for feature in view.features:
            offline = [None if pd.isna(value) else value for value in frame[feature.name]]
            assert offline == found[name][feature.name], feature.name
            compared += 1
    assert compared == 59


def test_features_that_do_not_arrive_stop_the_night(shop: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log whose ranges no value is in: delta-rs finds no row of the newer file, and nobody complains."""
    log = Path(table_path(shop.lakehouse, feature_view("item_features").table)) / "_delta_log"
    [commit] = log.glob("*.json")
    lines = [json.loads(line) for line in commit.read_text().splitlines()]
    for line in lines:
        if "add" in line:
            line["add"]["stats"] = json.dumps({"numRecords": 40, "minValues": {}, "maxValues": {}, "nullCount": {}})
    commit.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=r"item_features has 40 rows of 2024-03-08, and after materialization") as told:
        materialize_features.main(shop, run())
    assert told.value.field == "item_features"
    with redis.Redis.from_url(shop.redis_online_url) as client:
        assert not client.exists(feature_times_key(shop.tenant))


def test_a_user_of_another_day_is_not_brought_online(shop: Environment) -> None:
    materialize_features.main(shop, run())
    assert online(shop, "user_segment_v1", [{"user_id": "gone"}])["user_top_category_90d"] == [None]
    with redis.Redis.from_url(shop.redis_online_url) as client:
        times = client.hgetall(feature_times_key())
    assert times == {name.encode(): str(MARCH_8_MICROS).encode() for name in FEATURE_VIEWS}


def test_our_reader_sees_what_the_sdk_sees(large: Any) -> None:
    env, found = large
    expected = found["user_features"]["user_top_category_90d"]
    assert len(expected) == ENTITIES
    assert {None, "Küche > C0"} < set(expected)
    with redis.Redis.from_url(env.redis_online_url) as client:
        materialize_features.main(env, run())  # another test may have emptied the server in between
        for number, category in enumerate(expected):
            value, moment = client.hmget(
                entity_key(["user_id"], [key_of("user_id", number)]),
                [feature_field("user_features", "user_top_category_90d"), timestamp_field("user_features")],
            )
            assert read_string_value(value) == category
            assert read_timestamp_micros(moment) == MARCH_8_MICROS


async def test_our_store_reads_every_feature_of_every_view_as_the_sdk_does(large: Any) -> None:
    env, found = large
    materialize_features.main(env, run())
    store, compared = RedisFeatureStore(env.redis_online_url, timeout_seconds=30), 0
    for name, view in FEATURE_VIEWS.items():
        features = [feature.name for feature in view.features][::-1]
        entities = [tuple(key_of(key, n) for key in view.join_keys) for n in range(ENTITIES)]
        read = await store.read(view, features, [*entities, tuple("nobody" for _ in view.join_keys)])
        assert set(read.micros[:-1]) == {MARCH_8_MICROS}
        assert read.micros[-1] is None
        for at, feature in enumerate(features):
            *values, of_nobody = read.values[at]
            assert of_nobody is None
            assert values == found[name][feature], feature
            assert [type(value) for value in values] == [type(value) for value in found[name][feature]], feature
            compared += 1
    await store.close()
    assert compared == 59


async def test_rows_that_are_kept_are_those_of_the_sdk_after_another_night(shop: Environment) -> None:
    """Of the next morning: most users with other values, one with nulls, one new; some have no new row and keep the old
    one; one is erased."""
    materialize_features.main(shop, run())
    store = RedisFeatureStore(shop.redis_online_url, timeout_seconds=30, keep_bytes=4 << 20)
    with redis.Redis.from_url(shop.redis_online_url) as client:

        async def compared() -> int:
            """How many rows Redis was asked for, by us."""
            before = client.info("commandstats")["cmdstat_hmget"]["calls"]
            read = {}
            for name, view in FEATURE_VIEWS.items():
                entities = [tuple(key_of(key, n) for key in view.join_keys) for n in range(45)]
                read[name] = await store.read(view, [feature.name for feature in view.features], entities)
            asked = client.info("commandstats")["cmdstat_hmget"]["calls"] - before
            sdk = open_store(shop)
            for name, view in FEATURE_VIEWS.items():
                rows = [{key: key_of(key, n) for key in view.join_keys} for n in range(45)]
                features = [f"{name}:{feature.name}" for feature in view.features]
                said = sdk.get_online_features(features=features, entity_rows=rows).to_dict()
                for at, feature in enumerate(view.features):
                    assert read[name].values[at] == said[feature.name], feature
                    assert list(map(type, read[name].values[at])) == list(map(type, said[feature.name])), feature
            return int(asked)

        assert await compared() == 3 * 45
        assert await compared() == 0
        rows = [user_row(n, date(2024, 3, 9), user_view_count_7d=1000 + n) for n in range(20) if n != 5]
        nothing = {feature.name: None for feature in feature_view("user_features").features if feature.null_means}
        rows += [user_row(5, date(2024, 3, 9), **nothing), user_row(41, date(2024, 3, 9))]
        write(shop, "user_features", rows)
        for name in ("item_features", "user_category_features"):
            write(shop, name, [feature_row(feature_view(name), 3, date(2024, 3, 9))])
        materialize_features.main(shop, run(date(2024, 3, 9)))
        assert client.delete(entity_key(["user_id"], [key_of("user_id", 7)])) == 1
        await asyncio.sleep(0.1)
        assert await compared() == 21 + 1 + 1
        (views,), micros = await store.read(
            feature_view("user_features"), ["user_view_count_7d"], [(key_of("user_id", n),) for n in (5, 6, 7, 30, 41)]
        )
        assert views[1:4] == [1006, None, 30 * 31]
        assert micros == [MARCH_8_MICROS + 86_400_000_000] * 2 + [None, MARCH_8_MICROS, MARCH_8_MICROS + 86_400_000_000]
        assert await compared() == 5  # read with another feature meanwhile: only one of the two is kept
    await store.close()


def test_a_night_that_runs_again_replaces_its_values(shop: Environment) -> None:
    """Feast drops a write of an equal event time unless told otherwise, and its own store reads replaced files too:
    which of several old values it took was chance, so one rerun would prove nothing."""
    for value in (5, 4, 9, 1, 7):
        write(shop, "user_features", [user_row(1, user_view_count_7d=value)])
        materialize_features.main(shop, run())
        assert online(shop, "user_ranking_v1", [{"user_id": "u1"}])["user_view_count_7d"] == [value]


def test_a_row_that_left_the_table_is_not_read_from_its_old_file(shop: Environment) -> None:
    write(shop, "user_features", [user_row(2)])
    assert historical(shop, [("u1", "2024-03-08T00:00:00Z"), ("u2", "2024-03-08T00:00:00Z")]) == [None, 62]


def test_a_backfill_leaves_the_online_features_alone(shop: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    materialize_features.main(shop, run(publishes=False))
    assert "a backfill publishes nothing" in capsys.readouterr().out
    with redis.Redis.from_url(shop.redis_online_url) as client:
        assert client.dbsize() == 0


def test_training_frames_see_each_users_value_of_that_day(shop: Environment) -> None:
    asked = [
        ("u1", "2024-03-08T00:00:00Z", 31),  # stamped at that very instant
        ("u1", "2024-03-07T23:59:59Z", 999),  # the value of the morning of the 7th, not what came a second later
        ("gone", "2024-03-08T00:00:00Z", 77),  # a day old: within the ttl
        ("gone", "2024-03-10T00:00:00Z", 77),  # exactly as old as the ttl of three days
        ("gone", "2024-03-10T00:00:01Z", None),  # a second older
        ("u2", "2024-03-06T23:00:00Z", None),  # nothing was known yet
        ("stranger", "2024-03-08T00:00:00Z", None),
        ("u1", "2024-03-08T00:00:00Z", 31),  # asked for twice: answered twice
    ]
    assert historical(shop, [(user, moment) for user, moment, _ in asked]) == [value for _, _, value in asked]


def test_a_training_frame_joins_users_items_and_the_items_category(shop: Environment) -> None:
    write_rows(shop, "bronze.items", [{"item_id": "i3", "category": "Küche > C3"}, {"item_id": "i4"}])
    rows = pd.DataFrame(
        [
            ("u3", "i3", utc("2024-03-09"), 1),  # the user has a history in the item's category
            ("u2", "i3", utc("2024-03-09"), 0),  # no history there
            ("u2", "i4", utc("2024-03-09"), 0),  # an item without a category
            ("u3", "i3", utc("2024-03-09"), 1),
        ],
        columns=["user_id", "item_id", "event_timestamp", "label"],
        index=[9, 9, 2, 0],
    )
    frame = training_frame(shop, rows, "ranking_v1")
    assert list(frame["label"]) == [1, 0, 0, 1]
    assert [None if pd.isna(c) else c for c in frame["category"]] == ["Küche > C3", "Küche > C3", None, "Küche > C3"]
    assert list(frame["user_view_count_7d"]) == [93, 62, 62, 93]
    assert list(frame["item_view_count_7d"]) == [93, 93, 124, 93]
    in_category = [None if pd.isna(v) else v for v in frame["user_category_view_count_30d"]]
    assert in_category == [93, None, None, 93]
    filled = training_frame(shop, rows, "ranking_v1", fill_defaults=True)
    assert list(filled["user_category_view_count_30d"]) == [93, 0, 0, 93]
    assert list(filled["user_category_days_since_last_event_90d"].isna()) == [False, True, True, False]  # no default


def test_the_example_in_the_docs_works_as_written(shop: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    write(shop, "user_features", [user_row(5, date(2025, 7, 1), user_id="u0001")])
    for name, value in {
        "NIGHTJAR_HOME": shop.home,
        "NIGHTJAR_LAKEHOUSE": shop.lakehouse,
        "NIGHTJAR_REDIS_ONLINE_URL": shop.redis_online_url,
    }.items():
        monkeypatch.setenv(name, value)
    page = (Path(__file__).parents[2] / "infra/docs/features.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    frame = names["frame"]
    assert list(frame["label"]) == [1, 0]
    assert list(frame["user_view_count_7d"]) == [155, 155]
    assert len(frame.columns) == 5 + 59  # ids, instant, label, the items' category


def test_a_feature_defined_since_the_last_night_is_null(shop: Environment) -> None:
    name = "gold.user_features"
    old = pa.Table.from_pylist([user_row(1)], schema=arrow_schema(name)).drop_columns(["user_cart_count_30d"])
    write_deltalake(table_path(shop.lakehouse, name), old, mode="overwrite", schema_mode="overwrite")
    rows = pd.DataFrame({"user_id": ["u1"], "event_timestamp": [utc("2024-03-08")]})
    frame = training_frame(shop, rows, "user_ranking_v1")
    assert (frame["user_view_count_7d"][0], pd.isna(frame["user_cart_count_30d"][0])) == (31, True)
    assert read_table(shop, name).to_pylist()[0] == {**user_row(1), "user_cart_count_30d": None}
    before = hash_table(shop, name)
    grown = pa.Table.from_pylist([{**user_row(1), "user_cart_count_30d": None}], schema=arrow_schema(name))
    write_deltalake(table_path(shop.lakehouse, name), grown, mode="overwrite", schema_mode="overwrite")
    assert hash_table(shop, name) == before


def test_a_training_frame_says_what_it_lacks(shop: Environment) -> None:
    rows = pd.DataFrame({"user_id": ["u1"], "event_timestamp": [utc("2024-03-08")]})
    with pytest.raises(DataError, match="no feature service 'ranking_v2'; did you mean 'ranking_v1'"):
        training_frame(shop, rows, "ranking_v2")
    with pytest.raises(DataError, match="the rows have no item_id, category"):
        training_frame(shop, rows, "ranking_v1")


def test_without_redis_the_message_names_it(environment: Environment) -> None:
    write_all(environment, 1)
    with pytest.raises(DependencyError, match=r"Redis `online` at 127\.0\.0\.1:1/0 does not answer.*nightjar up"):
        materialize_features.main(environment, run())
