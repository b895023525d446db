"""Features online are the features offline, on real Delta, Feast and Redis; our own reader sees what the SDK sees."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import redis
from deltalake import write_deltalake

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.run import Run
from feature_repo.contracts.tables import table, table_path
from serving.adapters.feast_online import (
    entity_key,
    feature_field,
    read_string_value,
    read_timestamp_micros,
    timestamp_field,
)
from spark_jobs.io.light_delta import arrow_schema
from spark_jobs.jobs import materialize_features

AS_OF = date(2024, 3, 8)
USER_COUNT = 40
MARCH_8_MICROS = 1_709_856_000_000_000


def run(as_of: date = AS_OF, *, publishes: bool = True) -> Run:
    return Run("k", "default", as_of.isoformat(), {}, None, publishes, "a backfill publishes nothing", "m", "test")


def user_row(number: int, as_of: date) -> dict[str, Any]:
    """Odd users have no top category, every third no session: nulls; user 0 has a zero and an awkward id."""
    return {
        "user_id": "ü 0/{x}" if number == 0 else f"u{number}",
        "feature_timestamp": datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC),
        "user_view_count_7d": number,
        "user_view_count_30d": number * 2,
        "user_cart_count_30d": 0,
        "user_purchase_count_90d": number % 4,
        "user_purchase_value_90d": number * 1.25,
        "user_days_since_last_event": number / 7,
        "user_session_count_30d": number % 3,
        "user_session_length_mean_30d": None if number % 3 == 0 else number * 60.5,
        "user_distinct_item_count_30d": number + 1,
        "user_top_category_90d": None if number % 2 else f"Küche > C{number % 5}",
        "as_of": as_of,
    }


def item_row(number: int, as_of: date) -> dict[str, Any]:
    return {
        "item_id": f"i{number}",
        "feature_timestamp": datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC),
        "item_view_count_7d": number,
        "item_view_count_30d": number + 3,
        "item_purchase_count_30d": number // 2,
        "item_subject_count_30d": number,
        "item_conversion_30d": None if number == 0 else 0.5 / number,
        "item_price_mean_90d": 9.99,
        "item_days_since_created": None if number % 2 else 12.0,
        "item_popularity_decayed": number * 0.75,
        "as_of": as_of,
    }


def write(env: Environment, name: str, rows: list[dict[str, Any]]) -> None:
    frame = pa.Table.from_pylist(rows, schema=arrow_schema(name))
    write_deltalake(table_path(env.lakehouse, name), frame, partition_by=["as_of"], mode="overwrite")


@pytest.fixture
def shop(environment: Environment, redis_url: str) -> Environment:
    """Two nights of features: the day before has other values, and a user who is gone today."""
    env = environment._replace(redis_online_url=redis_url)
    before = [{**user_row(n, date(2024, 3, 7)), "user_view_count_7d": 999} for n in range(USER_COUNT)]
    before.append({**user_row(77, date(2024, 3, 7)), "user_id": "gone"})
    write(env, "gold.user_features", before + [user_row(n, AS_OF) for n in range(USER_COUNT)])
    write(env, "gold.item_features", [item_row(n, AS_OF) for n in range(5)])
    return env


def online(env: Environment, service: str, entities: list[dict[str, str]]) -> dict[str, list[Any]]:
    store = materialize_features.open_store(env)
    return store.get_online_features(features=store.get_feature_service(service), entity_rows=entities).to_dict()


def historical(env: Environment, asked: list[tuple[str, str]]) -> list[int | None]:
    """user_view_count_7d of each (user, instant), in the order asked."""
    entities = pd.DataFrame(
        {"user_id": [user for user, _ in asked], "event_timestamp": pd.to_datetime([moment for _, moment in asked])}
    )
    store = materialize_features.open_store(env)
    frame = store.get_historical_features(entities, ["user_features:user_view_count_7d"]).to_df()
    assert list(frame["user_id"]) == list(entities["user_id"])
    return [None if pd.isna(value) else int(value) for value in frame["user_view_count_7d"]]


def test_online_equals_offline_for_every_user_nulls_included(shop: Environment) -> None:
    materialize_features.main(shop, run())
    rows = [user_row(n, AS_OF) for n in range(USER_COUNT)]
    values = online(shop, "user_ranking_v1", [{"user_id": r["user_id"]} for r in rows])
    features = [c for c in table("gold.user_features").columns if c.startswith("user_") and c != "user_id"]
    assert len(features) == 10
    for feature in features:
        assert values[feature] == [r[feature] for r in rows], feature


def test_online_equals_offline_for_items(shop: Environment) -> None:
    materialize_features.main(shop, run())
    rows = [item_row(n, AS_OF) for n in range(5)]
    values = online(shop, "item_ranking_v1", [{"item_id": r["item_id"]} for r in rows])
    features = [c for c in table("gold.item_features").columns if c.startswith("item_") and c != "item_id"]
    assert len(features) == 8
    for feature in features:
        assert values[feature] == [r[feature] for r in rows], feature


def test_a_user_of_another_day_is_not_brought_online(shop: Environment) -> None:
    materialize_features.main(shop, run())
    assert online(shop, "user_segment_v1", [{"user_id": "gone"}])["user_top_category_90d"] == [None]


def test_our_reader_sees_what_the_sdk_sees(shop: Environment) -> None:
    materialize_features.main(shop, run())
    users = [user_row(n, AS_OF)["user_id"] for n in range(USER_COUNT)]
    expected = online(shop, "user_segment_v1", [{"user_id": u} for u in users])["user_top_category_90d"]
    assert None in expected
    assert "Küche > C0" in expected
    with redis.Redis.from_url(shop.redis_online_url) as client:
        for user_id, category in zip(users, expected, strict=True):
            value, moment = client.hmget(
                entity_key("user_id", user_id),
                [feature_field("user_features", "user_top_category_90d"), timestamp_field("user_features")],
            )
            assert read_string_value(value) == category
            assert read_timestamp_micros(moment) == MARCH_8_MICROS


def test_a_night_that_runs_again_replaces_its_values(shop: Environment) -> None:
    """Feast drops a write of an equal event time unless told otherwise, and its own store reads replaced files too:
    which of several old values it took was chance, so one rerun would prove nothing."""
    for value in (5, 4, 9, 1, 7):
        write(shop, "gold.user_features", [{**user_row(1, AS_OF), "user_view_count_7d": value}])
        materialize_features.main(shop, run())
        assert online(shop, "user_ranking_v1", [{"user_id": "u1"}])["user_view_count_7d"] == [value]


def test_a_row_that_left_the_table_is_not_read_from_its_old_file(shop: Environment) -> None:
    write(shop, "gold.user_features", [user_row(2, AS_OF)])
    assert historical(shop, [("u1", "2024-03-08T00:00:00Z"), ("u2", "2024-03-08T00:00:00Z")]) == [None, 2]


def test_a_backfill_leaves_the_online_features_alone(shop: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    materialize_features.main(shop, run(publishes=False))
    assert "a backfill publishes nothing" in capsys.readouterr().out
    with redis.Redis.from_url(shop.redis_online_url) as client:
        assert client.dbsize() == 0


def test_training_frames_see_each_users_value_of_that_day(shop: Environment) -> None:
    asked = [
        ("u1", "2024-03-08T00:00:00Z", 1),
        ("u1", "2024-03-07T12:00:00Z", 999),  # the value of the morning of the 7th, not what came later
        ("gone", "2024-03-08T00:00:00Z", 77),  # a day old: within the ttl
        ("gone", "2024-03-10T00:00:01Z", None),  # a second older than the ttl of three days
        ("u2", "2024-03-06T23:00:00Z", None),  # nothing was known yet
        ("stranger", "2024-03-08T00:00:00Z", None),
    ]
    assert historical(shop, [(user, moment) for user, moment, _ in asked]) == [value for _, _, value in asked]


def test_without_redis_the_message_names_it(environment: Environment) -> None:
    write(environment, "gold.user_features", [user_row(1, AS_OF)])
    write(environment, "gold.item_features", [item_row(1, AS_OF)])
    with pytest.raises(DependencyError, match=r"Redis `online` at 127\.0\.0\.1:1/0 does not answer.*nightjar up"):
        materialize_features.main(environment, run())
