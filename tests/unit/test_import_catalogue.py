"""Items and users from files, and a whole simulated shop: upserted by id, every line accounted for."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.tables import table
from infra.importing.catalogue import USER_FIELDS, import_items, import_users
from infra.importing.events import import_events
from infra.importing.mapping import ColumnMap
from infra.importing.shop import import_shop
from infra.importing.tables import find_table
from infra.simulator.config import ShopConfig
from infra.simulator.shop import simulate_shop

SHOP = ShopConfig(seed=5, user_count=400, item_count=60, event_count=5_000, days=6)


def rows(env: Environment, name: str) -> list[dict[str, Any]]:
    found = find_table(env, name)
    return [] if found is None else found.to_pyarrow_table().sort_by(next(iter(table(name).columns))).to_pylist()


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def test_an_item_has_every_column_and_its_defaults(tmp_path: Path, environment: Environment) -> None:
    full = {
        "item_id": "i1", "title": "Lamp", "categories": ["Home > Light", "Sale"], "brand": "B", "price": 12,
        "currency": "EUR", "availability": "PREORDER", "available_quantity": 3, "is_hidden": True,
        "created_at": "2024-03-01T01:00:00+01:00", "expire_time": 1709895600, "url": "u", "image_url": "m",
        "attributes": {"colour": "red", "watts": 5}, "watts": 7, "language": "en",
    }  # fmt: skip
    report = import_items(write_lines(tmp_path / "items.jsonl", full, {"item_id": "i2"}), environment)
    assert (report.kind, report.read, report.accepted, report.rows_written) == ("items", 2, 2, 2)
    first, second = rows(environment, "bronze.items")
    assert list(first) == list(table("bronze.items").columns)
    assert json.loads(first.pop("attributes")) == {"colour": "red", "watts": 5, "language": "en"}
    assert first == {
        "item_id": "i1", "title": "Lamp", "category": "Home > Light", "brand": "B", "price": 12.0, "currency": "EUR",
        "availability": "PREORDER", "available_quantity": 3, "created_at": datetime(2024, 3, 1, tzinfo=UTC),
        "expire_time": datetime(2024, 3, 8, 11, tzinfo=UTC), "is_hidden": True, "url": "u", "image_url": "m",
        "source": "items:items.jsonl",
    }  # fmt: skip
    defaults = {"item_id": "i2", "availability": "IN_STOCK", "is_hidden": False, "source": "items:items.jsonl"}
    assert {name: value for name, value in second.items() if value is not None} == defaults


def test_a_known_item_is_replaced_whole_and_the_last_line_of_an_id_wins(
    tmp_path: Path, environment: Environment
) -> None:
    import_items(
        write_lines(tmp_path / "a.jsonl", {"item_id": "i1", "title": "old", "brand": "B"}, {"item_id": "i2"}),
        environment,
    )
    header = "sku,title,price,available_quantity,is_hidden,attributes"
    report = import_items(
        write_lines(tmp_path / "b.csv", header, 'i1,new,2.5,4,FALSE,"{""a"": 1}"', "i3,x,1,,,", "i3,y,1,,1,"),
        environment,
        ColumnMap.parse(["item_id=sku"], ("item_id",)),
    )
    assert (report.read, report.accepted, report.rows_written, report.repeated) == (3, 3, 2, 1)
    kept = [
        (r["item_id"], r["title"], r["brand"], r["price"], r["available_quantity"], r["is_hidden"], r["attributes"])
        for r in rows(environment, "bronze.items")
    ]
    assert kept == [
        ("i1", "new", None, 2.5, 4, False, '{"a": 1}'),
        ("i2", None, None, None, None, False, None),
        ("i3", "y", None, 1.0, None, True, None),
    ]


BROKEN_ITEMS = [
    ({"title": "x"}, "missing_item_id", "item_id"),
    ({"item_id": ""}, "invalid_item_id", "item_id"),
    ({"item_id": "\u00fc" * 129}, "invalid_item_id", "item_id"),
    ({"item_id": "i1", "price": -0.01}, "invalid_price", "price"),
    ({"item_id": "i1", "price": True}, "invalid_price", "price"),
    ({"item_id": "i1", "price": float("nan")}, "invalid_price", "price"),
    ({"item_id": "i1", "price": "dear"}, "invalid_price", "price"),
    ({"item_id": "i1", "available_quantity": -1}, "invalid_quantity", "available_quantity"),
    ({"item_id": "i1", "available_quantity": 1.5}, "invalid_quantity", "available_quantity"),
    ({"item_id": "i1", "availability": "INSTOCK"}, "invalid_field", "availability"),
    ({"item_id": "i1", "created_at": "soon"}, "invalid_timestamp", "created_at"),
    ({"item_id": "i1", "is_hidden": "maybe"}, "invalid_field", "is_hidden"),
    ({"item_id": "i1", "attributes": [1]}, "invalid_field", "attributes"),
    ({"item_id": "i1", "title": 5}, "invalid_field", "title"),
    ({"item_id": "i1", "title": "\ud800"}, "invalid_field", "title"),
    (["i1"], "unreadable", None),
    ("{", "unreadable", None),
]


def test_every_broken_item_is_quarantined_with_its_reason(tmp_path: Path, environment: Environment) -> None:
    path = write_lines(tmp_path / "items.jsonl", {"item_id": "good"}, *(broken for broken, _, _ in BROKEN_ITEMS))
    report = import_items(path, environment)
    assert (report.read, report.accepted) == (len(BROKEN_ITEMS) + 1, 1)
    kept = sorted(rows(environment, "bronze.quarantine_import"), key=lambda row: row["source_position"])
    assert [(r["reason"], r["field"]) for r in kept] == [(reason, field) for _, reason, field in BROKEN_ITEMS]
    assert [r["raw"] for r in kept] == path.read_bytes().splitlines()[1:]
    assert "did you mean 'IN_STOCK'" in kept[9]["detail"]
    assert [r["item_id"] for r in rows(environment, "bronze.items")] == ["good"]


def test_users_have_consent_flat_or_nested_and_null_means_not_asked(tmp_path: Path, environment: Environment) -> None:
    path = write_lines(
        tmp_path / "users.jsonl",
        {"user_id": "a", "consent": {"train": False, "share": True}, "region": "DE", "age": 7},
        {"user_id": "b", "consent_personalize": False, "created_at": "2024-03-01"},
        {"user_id": "c", "consent": {"trian": False}},
        {"user_id": "d", "consent": {"train": "perhaps"}},
        {"region": "DE"},
    )
    report = import_users(path, environment)
    assert report.quarantined == {"invalid_field": 2, "missing_subject": 1}
    first, second = rows(environment, "bronze.users")
    consents = ("consent_store", "consent_train", "consent_personalize", "consent_share")
    assert [first[c] for c in consents] == [None, False, None, True]
    assert [second[c] for c in consents] == [None, None, False, None]
    assert (first["region"], first["attributes"]) == ("DE", '{"age": 7}')
    assert second["created_at"] == datetime(2024, 3, 1, tzinfo=UTC)
    kept = sorted(rows(environment, "bronze.quarantine_import"), key=lambda row: row["source_position"])
    assert [(r["source_position"], r["field"]) for r in kept] == [(3, "consent"), (4, "consent_train"), (5, "user_id")]
    assert "did you mean 'train'" in kept[0]["detail"]


def test_an_items_file_and_an_events_file_of_one_name_do_not_replace_each_other(
    tmp_path: Path, environment: Environment
) -> None:
    import_items(write_lines(tmp_path / "data.jsonl", {"title": "x"}), environment)
    import_events(write_lines(tmp_path / "data.jsonl", "{"), environment)
    kept = rows(environment, "bronze.quarantine_import")
    assert sorted(r["source"] for r in kept) == ["data.jsonl", "items:data.jsonl"]
    import_items(write_lines(tmp_path / "data.jsonl", {"item_id": "i1"}), environment)
    assert [r["source"] for r in rows(environment, "bronze.quarantine_import")] == ["data.jsonl"]


def test_a_file_without_the_id_column_is_refused(tmp_path: Path, environment: Environment) -> None:
    path = write_lines(tmp_path / "users.csv", "userid,region", "a,DE")
    with pytest.raises(DataError, match="no column for user_id; it has userid, region; did you mean 'userid'"):
        import_users(path, environment)
    report = import_users(path, environment, ColumnMap.parse(["user_id=userid"], USER_FIELDS))
    assert report.accepted == 1


def test_parquet_of_other_types_is_understood(tmp_path: Path, environment: Environment) -> None:
    columns = {
        "item_id": pa.array([1, 2], pa.int32()),
        "price": pa.array(["1.50", None]).cast(pa.decimal128(9, 2)),
        "available_quantity": pa.array([2.0, None]),
        "created_at": pa.array([19_790, None], pa.date32()),
        "categories": pa.array([["A > B"], []]),
        "attributes": pa.array([{"a": 1, "b": None}, None]),
    }
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    assert import_items(tmp_path / "items.parquet", environment).accepted == 2
    first, second = rows(environment, "bronze.items")
    assert (first["item_id"], first["price"], first["available_quantity"]) == ("1", 1.5, 2)
    assert (first["category"], first["attributes"]) == ("A > B", '{"a": 1}')
    assert first["created_at"] == datetime(2024, 3, 8, tzinfo=UTC)  # 19,790 days after 1970-01-01
    assert (second["item_id"], second["price"], second["category"]) == ("2", None, None)


def test_importing_a_simulated_shop_arrives_at_the_counts_it_knows(tmp_path: Path, environment: Environment) -> None:
    folder = tmp_path / "shop"
    summary = simulate_shop(SHOP, folder)
    assert summary.not_stored > 0
    assert summary.repeated_accepted > 0
    reports = import_shop(folder, environment)
    assert import_shop(folder, environment) == reports  # twice changes nothing
    users, items, events = reports
    assert (users.accepted, users.rows_written) == (summary.users, summary.users)
    assert (items.accepted, items.rows_written) == (summary.items, summary.items)
    assert events.read == summary.lines
    assert events.accepted == events.rows_written == summary.accepted
    assert events.not_stored == summary.not_stored
    assert events.repeated == summary.repeated_accepted
    assert dict(sorted(events.quarantined.items())) == summary.malformed

    kept = find_table(environment, "bronze.events_import").to_pyarrow_table()
    assert kept.num_rows == summary.accepted
    refusing = {r["user_id"] for r in rows(environment, "bronze.users") if r["consent_store"] is False}
    assert refusing
    assert not refusing & set(kept["user_id"].to_pylist())
    assert len(set(kept["event_id"].to_pylist())) == summary.accepted - summary.repeated_accepted


def test_two_shops_live_side_by_side(tmp_path: Path, environment: Environment) -> None:
    one = simulate_shop(SHOP, tmp_path / "one")
    two = simulate_shop(dataclasses.replace(SHOP, seed=6, event_count=2_000), tmp_path / "two")
    import_shop(tmp_path / "one", environment)
    import_shop(tmp_path / "two", environment)
    kept = find_table(environment, "bronze.events_import").to_pyarrow_table()
    by_shop = dict.fromkeys(("one", "two"), 0)
    for source in kept["source"].to_pylist():
        by_shop[source.partition("/")[0]] += 1
    assert by_shop["one"] == one.accepted
    assert 0 < by_shop["two"] <= two.accepted  # users of the first shop who refuse storage refuse it here too


def test_a_shop_with_many_bytes_that_are_no_utf_8_is_still_a_shop(environment: Environment, tmp_path: Path) -> None:
    """14,000 lines bring 42 malformed ones, every eleventh no UTF-8: more than one, and all that are not ASCII."""
    config = ShopConfig(user_count=20, item_count=20, event_count=14_000, days=3)
    summary = simulate_shop(config, tmp_path / "shop")
    _, _, events = import_shop(tmp_path / "shop", environment)
    assert events.quarantined == summary.malformed
    assert events.quarantined["unreadable"] > 4


def test_a_folder_that_is_no_shop_is_refused(tmp_path: Path, environment: Environment) -> None:
    with pytest.raises(DataError, match=r"no shop folder: it has no users\.parquet"):
        import_shop(tmp_path, environment)
    assert rows(environment, "bronze.users") == []
