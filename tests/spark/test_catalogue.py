"""Items and users of a night: the importer's tables, overlaid by what came through the API before as_of."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pyspark.sql import SparkSession

from feature_repo.contracts.changes import DELETE, ID_FIELDS, ITEMS, PATCH, PUT, USERS, check_change
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.times import format_timestamp, from_micros
from spark_jobs.io.catalogue import all_records, categories_of_items, in_run, read_items, read_users, records_by_id
from tests.builders import utc, write_rows

pytestmark = pytest.mark.spark

AS_OF = datetime(2024, 3, 8, tzinfo=UTC)


def row(position: int, kind: str, operation: str, record: dict[str, Any], at: str) -> dict[str, Any]:
    """A row of a change table; `at` is the receipt."""
    change, rejection = check_change(kind, operation, record, received_at=utc(at))
    assert change is not None, rejection
    return {
        "item_id": change.record_id, "user_id": change.record_id, "operation": operation,
        "fields": json.dumps(change.fields), "changed_at": from_micros(change.at_micros), "received_at": utc(at),
        "source": "test", "source_position": position,
    }  # fmt: skip


IMPORTED_ITEMS = [
    {"item_id": "plain", "price": 1.0, "title": "Plain", "category": "Tools", "is_hidden": False, "source": "f"},
    {"item_id": "changed", "price": 2.0, "title": "Changed", "category": "Toys", "is_hidden": False, "source": "f",
     "attributes": '{"colour": "red", "size": "L"}', "created_at": utc("2024-01-01")},
    {"item_id": "deleted", "price": 3.0, "is_hidden": False, "source": "f"},
    {"item_id": "newer", "price": 4.0, "is_hidden": False, "source": "f",
     "attributes": '{"updated_at": "2024-03-05T00:00:00Z"}'},
]  # fmt: skip
ITEM_CHANGES = [
    row(9, ITEMS, PATCH, {"item_id": "changed", "price": 9, "category": "Toys > Cars", "colour": None},
        "2024-03-07T23:59:59.999999"),
    row(1, ITEMS, PATCH, {"item_id": "changed", "price": 8, "title": None}, "2024-03-07T10:00:00"),  # of price: older
    row(2, ITEMS, PATCH, {"item_id": "changed", "price": 7, "category": "Late"}, "2024-03-08T00:00:00"),  # not before
    row(3, ITEMS, DELETE, {"item_id": "deleted"}, "2024-03-07T10:00:00"),
    row(4, ITEMS, PATCH, {"item_id": "newer", "price": 5}, "2024-03-04T10:00:00"),  # the import is newer
    row(5, ITEMS, PUT, {"item_id": "made", "price": 6, "category": "Tools", "expire_time": "2024-05-01T00:00:00Z"},
        "2024-03-07T10:00:00"),
    row(6, ITEMS, PATCH, {"item_id": "nobody", "price": 5}, "2024-03-07T10:00:00"),  # a PATCH alone makes no item
]  # fmt: skip
IMPORTED_USERS = [{"user_id": "ann", "region": "GB", "source": "f"}, {"user_id": "bob", "region": "FR", "source": "f"}]
USER_CHANGES = [
    row(1, USERS, PATCH, {"user_id": "ann", "consent": {"train": False}}, "2024-03-07T10:00:00"),
    row(2, USERS, DELETE, {"user_id": "bob"}, "2024-03-07T10:00:00"),
    row(3, USERS, PATCH, {"user_id": "new", "consent": {"store": False}}, "2024-03-09T10:00:00"),  # after as_of
]


@pytest.fixture
def shop(environment: Environment) -> Environment:
    write_rows(environment, "bronze.items", IMPORTED_ITEMS)
    write_rows(environment, "bronze.users", IMPORTED_USERS)
    write_rows(environment, "bronze.item_changes", ITEM_CHANGES[:3])
    write_rows(environment, "bronze.item_changes", ITEM_CHANGES[3:])
    write_rows(environment, "bronze.user_changes", USER_CHANGES)
    return environment


def test_a_night_reads_what_the_shop_said_before_as_of(spark: SparkSession, shop: Environment) -> None:
    pins = {"bronze.items": 0, "bronze.users": 0, "bronze.item_changes": 1, "bronze.user_changes": 0}
    items = {item["item_id"]: item.asDict() for item in read_items(spark, shop, pins, cut_off=AS_OF).collect()}
    columns = ("price", "title", "is_hidden", "attributes", "source")
    assert {item_id: tuple(item[column] for column in columns) for item_id, item in items.items()} == {
        "plain": (1.0, "Plain", False, None, "f"),
        "changed": (9.0, None, False, '{"size": "L"}', "f"),
        "deleted": (3.0, None, True, None, "f"),
        "newer": (4.0, None, False, '{"updated_at": "2024-03-05T00:00:00Z"}', "f"),
        "made": (6.0, None, False, None, "api"),
    }
    zoned = items["made"]["expire_time"].replace(tzinfo=UTC)  # collect() gives naive times, of the process: UTC
    assert format_timestamp(zoned) == "2024-05-01T00:00:00Z"
    assert items["changed"]["created_at"].replace(tzinfo=UTC) == utc("2024-01-01")

    users = read_users(spark, shop, pins).collect()
    assert {user["user_id"]: (user["region"], user["consent_train"], user["consent_store"]) for user in users} == {
        "ann": ("GB", False, None), "bob": (None, None, None), "new": (None, None, False),
    }  # fmt: skip

    # the same without Spark, and by pins that are older
    light = records_by_id(shop, ITEMS, [*items, "nobody"], pins, cut_off=AS_OF)
    assert {item_id: (item["price"], item["attributes"]) for item_id, item in light.items()} == {
        item_id: (item["price"], item["attributes"]) for item_id, item in items.items()
    }
    assert categories_of_items(shop, pins, cut_off=AS_OF) == {
        "plain": "Tools", "changed": "Toys > Cars", "deleted": None, "newer": None, "made": "Tools",
    }  # fmt: skip
    for kind, whole, cut_off in (
        (ITEMS, read_items(spark, shop, pins, cut_off=AS_OF), AS_OF),
        (USERS, read_users(spark, shop, pins), None),
    ):
        found = all_records(shop, kind, pins, cut_off=cut_off)
        id_field = ID_FIELDS[kind]
        assert found.schema.names == whole.columns
        assert found.sort_by(id_field).to_pylist() == whole.toArrow().cast(found.schema).sort_by(id_field).to_pylist()
    before = read_items(spark, shop, {**pins, "bronze.item_changes": 0}, cut_off=AS_OF).filter("item_id = 'deleted'")
    assert before.collect()[0]["is_hidden"] is False
    old_run = read_items(spark, shop, in_run({"bronze.items": 0}), cut_off=AS_OF)
    assert sorted(item["item_id"] for item in old_run.collect()) == ["changed", "deleted", "newer", "plain"]
