"""Mappings as files, guessed mappings, values read by a mapping, and encodings."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from infra.importing.catalogue import import_items
from infra.importing.conversions import category_paths, numbers, times
from infra.importing.events import import_events
from infra.importing.guessing import guess_columns
from infra.importing.mapping import ColumnMap
from infra.importing.report import Options
from infra.importing.tables import find_table

RECEIVED = datetime(2024, 11, 8, 12, tzinfo=UTC)
ORDERS = {
    "kind": "events", "time_zone": "Europe/London", "time_format": "%d/%m/%Y %H:%M", "decimal": ",",
    "delimiter": ";", "ignore": ["note"],
    "columns": {"user_id": "who", "item_id": "sku", "timestamp": "when", "price": "paid", "event_type": "what"},
    "constants": {"currency": "GBP"},
    "values": {"event_type": {"Order": "purchase", "Look \"x\"": "view_item"}},
}  # fmt: skip
CSV = (
    "who;sku;when;paid;what;note\n"
    'ann;i1;31/03/2024 01:30;1.012,50;"Look ""x""";a\n'  # skipped by the change to summer time: counts as its end
    "ann;i2;27/10/2024 01:30;2,5;Order;b\n"  # comes twice: winter time is meant
    "ann;i3;31/06/2024 10:00;1;Order;c\n"
    "bob;i4;01/07/2024 00:30;1.2.3;Order;\n"
    "bob;i5;01/07/2024 00:30;;purchase;\n"
)


def rows(env: Environment, name: str = "bronze.events_import", by: str = "source_position") -> list[dict[str, Any]]:
    found = find_table(env, name)
    return [] if found is None else found.to_pyarrow_table().sort_by(by).to_pylist()


@pytest.mark.parametrize("name", ["m.toml", "m.json"])
def test_a_saved_mapping_reads_back_equal(tmp_path: Path, name: str) -> None:
    mapping = ColumnMap.from_mapping(ORDERS, "events")
    mapping.save(tmp_path / "new" / name)
    assert ColumnMap.load(tmp_path / "new" / name, "events") == mapping
    assert mapping.to_mapping() == ORDERS


def test_a_mapping_reads_times_numbers_and_words(tmp_path: Path, environment: Environment) -> None:
    (tmp_path / "orders.csv").write_text(CSV)
    mapping = ColumnMap.from_mapping(ORDERS, "events")
    report = import_events(tmp_path / "orders.csv", environment, mapping, received_at=RECEIVED)
    assert (report.read, report.accepted) == (5, 3)
    assert report.quarantined == {"invalid_timestamp": 1, "invalid_price": 1}
    kept = rows(environment)
    assert [(r["item_id"], r["event_type"], r["price"], r["event_timestamp"]) for r in kept] == [
        ("i1", "view_item", 1012.5, datetime(2024, 3, 31, 1, 0, tzinfo=UTC)),
        ("i2", "purchase", 2.5, datetime(2024, 10, 27, 1, 30, tzinfo=UTC)),
        ("i5", "purchase", None, datetime(2024, 6, 30, 23, 30, tzinfo=UTC)),
    ]
    assert {(r["currency"], r["properties"]) for r in kept} == {("GBP", None)}
    details = {r["source_position"]: r["detail"] for r in rows(environment, "bronze.quarantine_import")}
    assert "31/06/2024 10:00" in details[3]
    assert "1.2.3" in details[4]


def test_the_same_events_as_json_lines_become_the_same_rows(tmp_path: Path, environment: Environment) -> None:
    (tmp_path / "orders.csv").write_text(CSV)
    mapping = ColumnMap.from_mapping(ORDERS, "events")
    import_events(tmp_path / "orders.csv", environment, mapping, received_at=RECEIVED)
    first = rows(environment)
    (tmp_path / "orders.csv").unlink()
    (tmp_path / "orders.jsonl").write_text(
        '{"who": "ann", "sku": "i1", "when": "31/03/2024 01:30", "paid": "1.012,50", "what": "Look \\"x\\"", "note": 1}'
        "\n"
        '{"who": "ann", "sku": "i2", "when": "27/10/2024 01:30", "paid": 2.5, "what": "Order"}\n'
        '["no object"]\n\n'
        '{"who": "bob", "sku": "i5", "when": "01/07/2024 00:30", "paid": null, "what": "purchase"}\n'
    )
    import_events(tmp_path / "orders.jsonl", environment, mapping, received_at=RECEIVED)
    both = rows(environment)
    second = [r for r in both if r["source"] == "orders.jsonl"]
    for row in (*first, *second):
        del row["source"], row["source_position"]
    assert len(first) == 3
    assert second == first  # also the ids that were derived


def test_rules_by_hand() -> None:
    assert numbers(",")(["1.234,5", "1 234", "12,5", "1,234.5", "-3", "1.23", "x"]) == [
        "1234.5", "1234", "12.5", "1,234.5", "-3", "1.23", "x",
    ]  # fmt: skip
    assert numbers(".")(["1,234.5", "1'234", "12,5", "12.5"]) == ["1234.5", "1234", "12,5", "12.5"]
    assert category_paths("/")(["A/B / C", "A", "/"]) == ["A > B > C", "A", ""]
    assert times("Europe/Berlin", None)(
        ["2024-07-01", "2024-07-01 10:00:00.25", "2024-07-01T10:00:00Z", "2024-07-01T10:00+05:00", "1719820800", "x"]
    ) == [
        "2024-06-30T22:00:00Z", "2024-07-01T08:00:00.250000Z", "2024-07-01T10:00:00Z", "2024-07-01T10:00+05:00",
        "1719820800", "x",
    ]  # fmt: skip
    assert times("Europe/Berlin", "%d.%m.%Y %z")(["01.07.2024 +0500"]) == ["2024-06-30T19:00:00Z"]


def test_a_parquet_clock_without_a_zone_has_the_zone_of_the_mapping(tmp_path: Path, environment: Environment) -> None:
    clock = pa.array([datetime(2024, 7, 1, 10), None], pa.timestamp("ms"))  # noqa: DTZ001 - a wall clock
    table = pa.table({"sku": [7, 8], "when": clock, "cat": ["A/B", None]})
    pq.write_table(table, tmp_path / "a.parquet")
    mapping = ColumnMap.from_mapping(
        {"columns": {"item_id": "sku", "created_at": "when", "category": "cat"}, "time_zone": "Europe/Berlin",
         "category_separator": "/"}, "items",
    )  # fmt: skip
    import_items(tmp_path / "a.parquet", environment, mapping)
    first, second = rows(environment, "bronze.items", "item_id")
    assert (first["item_id"], first["category"]) == ("7", "A > B")
    assert first["created_at"] == datetime(2024, 7, 1, 8, tzinfo=UTC)
    assert (second["created_at"], second["category"]) == (None, None)


BAD_MAPPINGS: list[tuple[dict[str, Any], str]] = [
    ({"colums": {}}, "no entry 'colums'; did you mean 'columns'"),
    ({"kind": "items"}, "this mapping is for items, not for events"),
    ({"columns": {"usr_id": "x"}}, "unknown field 'usr_id'; did you mean 'user_id'"),
    ({"columns": {"user_id": 3}}, "columns of a mapping is a table of texts"),
    ({"columns": ["user_id"]}, "columns of a mapping is a table of texts"),
    ({"columns": {"user_id": "x"}, "constants": {"user_id": "y"}}, "'user_id' is mapped twice"),
    ({"values": {"event_type": {"Order": "purchse"}}}, "'purchse' is no event_type; did you mean 'purchase'"),
    ({"time_zone": "Europe/Lndon"}, "no time zone 'Europe/Lndon'; did you mean 'Europe/London'"),
    ({"encoding": "latn-1"}, "no encoding 'latn-1'; did you mean 'latin-1'"),
    ({"format": "cvs"}, "format is one of csv, .*got 'cvs'; did you mean 'csv'"),
    ({"decimal": ";"}, "decimal is "),
    ({"delimiter": "||"}, "delimiter is one character"),
    ({"time_zone": 1}, "time_zone of a mapping is a text, got 1"),
    ({"full_catalogue": True}, "full_catalogue of a mapping of items is true or false, got True"),
    ({"ignore": "note"}, "ignore of a mapping is a list of columns"),
]


@pytest.mark.parametrize(("entries", "message"), BAD_MAPPINGS)
def test_a_mapping_that_makes_no_sense_says_what_would(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ColumnMap.from_mapping(entries, "events")


def test_a_mapping_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("columns = [")
    (tmp_path / "b.json").write_text("[]")
    for name, message in (("a.toml", "a.toml is no TOML"), ("b.json", "is an object, got list"), ("a.tml", "'a.toml'")):
        with pytest.raises(DataError, match=message):
            ColumnMap.load(tmp_path / name, "events")


def test_columns_are_recognised_by_their_names() -> None:
    retail = "InvoiceNo StockCode Description Quantity InvoiceDate UnitPrice CustomerID Country".split()  # noqa: SIM905
    assert guess_columns("events", retail) == {
        "user_id": "CustomerID", "session_id": "InvoiceNo", "item_id": "StockCode", "timestamp": "InvoiceDate",
        "quantity": "Quantity", "price": "UnitPrice",
    }  # fmt: skip
    names = ["Product ID", "Product Name", "categoriess", "Manufacturer", "List-Price", "colour", "on_hand", "name"]
    assert guess_columns("items", names) == {
        "item_id": "Product ID", "title": "name", "categories": "categoriess", "brand": "Manufacturer",
        "price": "List-Price", "available_quantity": "on_hand",
    }  # fmt: skip
    # our own names are never taken for another field, and a column is taken once
    assert guess_columns("events", ["user_id", "customer", "id", "event_type", "time", "ts"]) == {
        "event_id": "id", "timestamp": "time",
    }  # fmt: skip


def test_a_guess_is_said_saved_and_used_unchanged(tmp_path: Path, environment: Environment) -> None:
    path = tmp_path / "shop.csv"
    path.write_text("sku,name,colour\ni1,Lamp,red\n")
    saved = tmp_path / "items.toml"
    report = import_items(path, environment, options=Options(guess=True, save_mapping=saved))
    assert report.mapping == {"item_id": "sku", "title": "name"}
    first = rows(environment, "bronze.items", "item_id")
    assert (first[0]["title"], first[0]["attributes"]) == ("Lamp", '{"colour": "red"}')
    assert import_items(path, environment, ColumnMap.load(saved, "items")).accepted == 1
    assert rows(environment, "bronze.items", "item_id") == first

    path.write_text("sku,nam,colour\ni1,Lamp,red\n")  # a renamed column
    message = r"shop\.csv has no column 'name' \(mapped to title\); it has sku, nam, colour; did you mean 'nam'"
    with pytest.raises(DataError, match=message):
        import_items(path, environment, ColumnMap.load(saved, "items"))


TEXT = "item_id,title\ni1,Caf\u00e9\ni2,\u00fcber\n"


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (TEXT.encode("utf-8"), None),
        (TEXT.encode("utf-8-sig"), None),
        (TEXT.encode("utf-16"), None),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), None),
        (TEXT.encode("utf-32"), None),
        (TEXT.encode("latin-1"), "latin-1"),
        (TEXT.encode("utf-16-le"), "utf-16-le"),
        (gzip.compress(TEXT.encode("utf-16")), None),
    ],
    ids=["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "utf-16-le", "utf-16.gz"],
)
def test_encodings_that_are_marked_or_given_are_read(
    content: bytes, encoding: str | None, tmp_path: Path, environment: Environment
) -> None:
    path = tmp_path / ("a.csv.gz" if content.startswith(b"\x1f\x8b") else "a.csv")
    path.write_bytes(content)
    import_items(path, environment, options=Options(encoding=encoding))
    assert [r["title"] for r in rows(environment, "bronze.items", "item_id")] == ["Caf\u00e9", "\u00fcber"]


def test_another_encoding_is_named_and_how_to_give_it(tmp_path: Path, environment: Environment) -> None:
    path = tmp_path / "a.csv"
    cases = (
        (TEXT.encode("cp1252"), None, r"2 of 2 lines .* cp1252 .* line 2 reads 'i1,Caf\u00e9'.*--encoding cp1252"),
        (TEXT.encode("utf-16-le"), None, "looks like utf-16-le; give it with --encoding utf-16-le"),
        (TEXT.encode("utf-16")[:-1], None, r"a\.csv is not valid utf-16: truncated data at byte"),
        (TEXT.encode("latin-1"), "ascii", "is not valid ascii"),
    )
    for content, encoding, message in cases:
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            import_items(path, environment, options=Options(encoding=encoding))
    path.write_bytes(TEXT.encode("latin-1"))
    report = import_items(path, environment, options=Options(encoding="utf-8"))
    assert report.quarantined == {"unreadable": 2}
