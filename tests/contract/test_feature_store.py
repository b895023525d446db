"""Features read in one round trip: one suite on Redis and on its twin, and the decoding of every type."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis
from feast.protos.feast.types.Value_pb2 import Null, Value

from feature_repo.contracts.errors import ContractError, DependencyError
from feature_repo.contracts.feature_table import FEATURE_VIEWS
from serving.adapters.feast_online import entity_key, feature_field, timestamp_field
from serving.adapters.feature_rows import read_value
from serving.adapters.feature_store import FeatureStore, MemoryFeatureStore, RedisFeatureStore
from serving.adapters.redis_pipe import open_pipe

USERS, BY_CATEGORY = FEATURE_VIEWS["user_features"], FEATURE_VIEWS["user_category_features"]
VIEWS_7D, CATEGORY = "user_view_count_7d", "user_top_category_90d"
SHARE = BY_CATEGORY.features[0].name

HASHES = {
    entity_key(["user_id"], ["ü 1"]): {
        feature_field("user_features", VIEWS_7D): Value(int64_val=-300).SerializeToString(),
        feature_field("user_features", CATEGORY): Value(string_val="Küche > C").SerializeToString(),
        timestamp_field("user_features"): b"\x08\x05",
    },
    entity_key(["user_id"], ["u2"]): {
        feature_field("user_features", CATEGORY): b"",
        timestamp_field("user_features"): b"\x08\x06",
        timestamp_field("other_view"): b"\x08\x07",
    },
    # another view's values for the same user: no row of this one
    entity_key(["user_id"], ["u3"]): {timestamp_field("other_view"): b"\x08\x07"},
    entity_key(["category", "user_id"], ["A > B", "u2"]): {
        feature_field("user_category_features", SHARE): Value(double_val=0.25).SerializeToString(),
        timestamp_field("user_category_features"): b"\x08\x09",
    },
}


@pytest.fixture(params=["redis", "memory"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[FeatureStore]:
    if request.param == "memory":
        yield MemoryFeatureStore(HASHES)
        return
    url = request.getfixturevalue("redis_url")
    with redis.Redis.from_url(url) as client:
        for key, fields in HASHES.items():
            client.hset(key, mapping=fields)  # type: ignore[arg-type]
    found = RedisFeatureStore(url, timeout_seconds=5)
    yield found
    await found.close()


async def test_columns_come_in_the_order_asked_for_with_their_time(store: FeatureStore) -> None:
    found = await store.read(USERS, [CATEGORY, VIEWS_7D], [("u2",), ("ü 1",), ("nobody",), ("u3",), ("u2",)])
    assert found.values == [[None, "Küche > C", None, None, None], [None, -300, None, None, None]]
    assert found.micros == [6_000_000, 5_000_000, None, None, 6_000_000]
    assert await store.read(USERS, [], [("u2",)]) == ([], [6_000_000])
    assert await store.read(USERS, [CATEGORY], []) == ([[]], [])


async def test_an_entity_of_two_keys_in_the_order_of_its_view(store: FeatureStore) -> None:
    assert BY_CATEGORY.join_keys == ("user_id", "category")
    found = await store.read(BY_CATEGORY, [SHARE], [("u2", "A > B"), ("A > B", "u2")])
    assert found == ([[0.25, None]], [9_000_000, None])


async def test_a_feature_that_a_view_does_not_have(store: FeatureStore) -> None:
    with pytest.raises(ContractError, match="user_features has no feature 'user_view_count_8d'; did you mean"):
        await store.read(USERS, ["user_view_count_8d"], [("u2",)])


async def test_a_store_that_does_not_answer_is_told_and_asked_again(redis_url: str) -> None:
    store = RedisFeatureStore("redis://127.0.0.1:1", timeout_seconds=0.5)
    with pytest.raises(DependencyError, match="the features cannot be read"):
        await store.read(USERS, [CATEGORY], [("u2",)])
    store = RedisFeatureStore(redis_url, timeout_seconds=0.2)
    pipe = await open_pipe(redis_url)
    await pipe.send(b"*3\r\n$6\r\nCLIENT\r\n$5\r\nPAUSE\r\n$3\r\n600\r\n", 1)
    with pytest.raises(DependencyError, match="TimeoutError"):
        await store.read(USERS, [CATEGORY], [("u2",)])
    await asyncio.sleep(0.7)
    assert await store.read(USERS, [CATEGORY], [("nobody",)]) == ([[None]], [None])
    pipe.close()
    await store.close()


DAMAGED = [Value(double_val=1.5).SerializeToString()[:-1], b"\x29", b"\x20", b"\x20\x80", b"\x12\x05a"]


@pytest.mark.parametrize("before", [Value(double_val=1.5), Value(int64_val=5), Value(string_val="a"), Value()])
async def test_a_column_is_its_values_one_by_one(before: Value) -> None:
    """A column is decoded at once by the type of its first value: values of other types in it are read as they are."""
    others = [Value(double_val=-2.5), Value(int64_val=300), Value(int64_val=7), Value(string_val="b"), Value(),
              Value(float_val=0.5), Value(bool_val=True)]  # fmt: skip
    messages = [before.SerializeToString(), None, *(other.SerializeToString() for other in others)]
    hashes = {
        entity_key(["user_id"], [f"u{n}"]): {timestamp_field("user_features"): b"\x08\x05"}
        | ({} if message is None else {feature_field("user_features", VIEWS_7D): message})
        for n, message in enumerate(messages)
    }
    names = [(f"u{n}",) for n in range(len(messages))]
    found = await MemoryFeatureStore(hashes).read(USERS, [VIEWS_7D], names)
    assert found.values == [[read_value(message) for message in messages]]
    alike = await MemoryFeatureStore(hashes).read(USERS, [VIEWS_7D], [("u0",), ("u1",), ("u0",)])
    assert alike.values == [[read_value(messages[0]), None, read_value(messages[0])]]
    assert len(DAMAGED) == 5
    for damaged in DAMAGED:
        broken = {**hashes, entity_key(["user_id"], ["u3"]): {
            timestamp_field("user_features"): b"\x08\x05", feature_field("user_features", VIEWS_7D): damaged,
        }}  # fmt: skip
        with pytest.raises(ContractError, match="damaged"):
            await MemoryFeatureStore(broken).read(USERS, [VIEWS_7D], names)


async def test_what_has_no_time_is_not_there() -> None:
    key = entity_key(["user_id"], ["u1"])
    half = {key: {feature_field("user_features", VIEWS_7D): b"\x20\x05"}}
    assert await MemoryFeatureStore(half).read(USERS, [VIEWS_7D], [("u1",)]) == ([[None]], [None])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Value(string_val="ä" * 200), "ä" * 200), (Value(string_val=""), ""), (Value(string_val="a"), "a"),
        (Value(int64_val=0), 0), (Value(int64_val=127), 127), (Value(int64_val=128), 128), (Value(int64_val=-1), -1),
        (Value(int64_val=2**63 - 1), 2**63 - 1), (Value(int64_val=-(2**63)), -(2**63)), (Value(int32_val=-5), -5),
        (Value(int32_val=300), 300), (Value(double_val=-0.1), -0.1), (Value(float_val=0.5), 0.5),
        (Value(bool_val=True), True), (Value(bool_val=False), False), (Value(), None),
        (Value(null_val=Null.NULL), None),
    ],
)  # fmt: skip
def test_values_of_every_type(value: Value, expected: object) -> None:
    message = value.SerializeToString()
    found = read_value(message)
    assert (found, type(found)) == (expected, type(expected))
    if expected is None:
        return
    for damaged in [message[:cut] for cut in range(1, len(message))] + [message + b"\x01"]:
        with pytest.raises(ContractError, match="cut short or damaged"):
            read_value(damaged)


def test_what_no_view_has_is_refused() -> None:
    assert read_value(None) is None
    listed = Value()
    listed.int64_list_val.val.extend([1, 2])
    for value in (listed, Value(bytes_val=b"x"), Value(unix_timestamp_val=5)):
        with pytest.raises(ContractError, match="of no type that a view has"):
            read_value(value.SerializeToString())
