"""Google Merchant feeds and schema.org products: the golden files of tests/golden/imports, item by item."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from infra.importing.catalogue import import_items
from infra.importing.mapping import ColumnMap
from infra.importing.merchant_feed import amount_of
from infra.importing.report import Options
from infra.importing.tables import find_table

GOLDEN = Path(__file__).parents[1] / "golden" / "imports"


def items(env: Environment) -> dict[str, dict[str, Any]]:
    """item_id -> the values that are given, attributes parsed, without the source."""
    found = find_table(env, "bronze.items")
    rows = [] if found is None else found.to_pyarrow_table().to_pylist()
    by_id = {}
    for row in rows:
        row["attributes"] = json.loads(row["attributes"]) if row["attributes"] else None
        by_id[row["item_id"]] = {k: v for k, v in row.items() if v is not None and k not in ("item_id", "source")}
    assert len(by_id) == len(rows)
    return by_id


def refused(env: Environment) -> list[tuple[int, str, str | None]]:
    found = find_table(env, "bronze.quarantine_import")
    rows = found.to_pyarrow_table().sort_by("source_position").to_pylist()
    return [(row["source_position"], row["reason"], row["field"]) for row in rows]


def test_an_rss_feed(tmp_path: Path, environment: Environment) -> None:
    report = import_items(GOLDEN / "feed.xml", environment, options=Options(rejects_folder=tmp_path))
    assert (report.read, report.accepted, report.rows_written, report.repeated) == (5, 2, 1, 1)
    assert items(environment) == {
        "A1": {
            "title": "Lamp again", "price": 8.0, "currency": "GBP", "availability": "PREORDER", "is_hidden": False,
            "category": "Home > Lamps", "attributes": {"available_time": "2027-01-05T17:00:00Z"},
        }
    }  # fmt: skip
    assert refused(environment) == [
        (2, "invalid_price", "price"), (3, "invalid_field", "availability"), (4, "missing_item_id", "item_id"),
    ]  # fmt: skip
    (rejects,) = report.rejects
    remarks = [line for line in Path(rejects).read_text().splitlines() if line.startswith("#! line")]
    assert len(remarks) == 3
    assert remarks[0].startswith("#! line 15: invalid_price in price: price is a number >= 0, got '12,50'")
    assert "did you mean 'in_stock'" in remarks[1]


def test_a_feed_keeps_what_has_no_column_and_another_attribute_may_be_the_id(environment: Environment) -> None:
    mapping = ColumnMap.from_mapping({"columns": {"item_id": "link"}, "decimal": ","}, "items")
    import_items(GOLDEN / "feed.xml", environment, mapping)
    first = items(environment)["https://shop.example/a1"]
    assert first["attributes"].pop("shipping") == [
        {"country": "GB", "price": "3.00 GBP"}, {"country": "IE", "price": "9.00 GBP"},
    ]  # fmt: skip
    assert first == {
        "title": "Lamp & caf\u00e9 shade", "category": "Home > Lighting", "brand": "Brightly", "price": 1012.5,
        "currency": "GBP", "availability": "IN_STOCK", "url": "https://shop.example/a1", "is_hidden": False,
        "image_url": "https://shop.example/a1.jpg", "expire_time": datetime(2026, 12, 31, 22, 59, tzinfo=UTC),
        "attributes": {"google_product_category": "594", "group_id": "G1", "sale_price": 900.0},
    }  # fmt: skip
    assert items(environment)["A2"]["price"] == 12.5


def test_a_tab_separated_feed_and_an_atom_feed(environment: Environment) -> None:
    report = import_items(GOLDEN / "feed.txt", environment)
    assert (report.read, report.accepted, report.quarantined) == (3, 1, {"invalid_price": 1, "unreadable": 1})
    report = import_items(GOLDEN / "feed.atom.xml", environment)
    assert (report.read, report.accepted) == (1, 1)
    assert items(environment) == {
        "B1": {
            "title": 'Mug "large"', "url": "https://shop.example/b1", "price": 4.5, "currency": "GBP",
            "availability": "OUT_OF_STOCK", "category": "Kitchen > Mugs", "is_hidden": False,
        },
        "C1": {
            "title": "Vase", "url": "https://shop.example/c1", "price": 20.0, "currency": "EUR",
            "availability": "BACKORDER", "is_hidden": False, "attributes": {"summary": "Tall"},
        },
    }  # fmt: skip


def test_schema_org_as_a_document(environment: Environment) -> None:
    report = import_items(GOLDEN / "products.json", environment)
    assert (report.read, report.accepted, report.quarantined) == (4, 3, {"invalid_price": 1})
    assert items(environment) == {
        "D1": {
            "title": "Clock", "category": "Home > Clocks", "brand": "Tick", "price": 19.99, "currency": "EUR",
            "availability": "PREORDER", "available_quantity": 4, "is_hidden": False, "url": "https://shop.example/d1",
            "image_url": "https://shop.example/d1.jpg",
            "attributes": {"available_time": "2027-01-05T00:00:00Z", "color": "red", "hands": 3,
                           "tags": ["wall", "round"]},
        },
        "E-S": {
            "title": "Shirt", "brand": "Tick", "price": 10.0, "currency": "EUR", "availability": "IN_STOCK",
            "is_hidden": False, "attributes": {"group_id": "E", "size": "S"},
        },
        "E-M": {
            "title": "Shirt M", "brand": "Tick", "price": 9.5, "currency": "EUR", "availability": "OUT_OF_STOCK",
            "is_hidden": False, "attributes": {"group_id": "E"},
        },
    }  # fmt: skip


def test_schema_org_one_product_a_line_is_told_from_plain_items(tmp_path: Path, environment: Environment) -> None:
    report = import_items(GOLDEN / "products.jsonl", environment, options=Options(rejects_folder=tmp_path))
    assert (report.read, report.accepted, report.quarantined) == (3, 1, {"unreadable": 2})
    assert items(environment)["F1"]["price"] == 1.5
    text = Path(report.rejects[0]).read_text()
    assert "#! line 2: unreadable: the line has no schema.org Product" in text
    assert "#! line 4: unreadable: no JSON" in text


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("12.00 GBP", (12.0, "GBP")), ("GBP 12", (12.0, "GBP")), ("1,234,567.5 usd", (1234567.5, "usd")),
        ("0", (0.0, None)), ("12,50 EUR", ("12,50", "EUR")), ("1.2.3 EUR", ("1.2.3", "EUR")),
        ("12 pounds", ("12 pounds", None)), (None, (None, None)), (7, (7, None)),
    ],
)  # fmt: skip
def test_amounts(text: Any, amount: tuple[Any, str | None]) -> None:
    assert amount_of(text) == amount


BROKEN: dict[str, tuple[str, str, str]] = {
    "cut xml": ("a.xml", "<rss><channel><item><id>1</id>", r"a\.xml cannot be read as XML"),
    "other xml": ("a.xml", "<sitemap/>", r"root is <sitemap>, expected <rss> or <feed>"),
    "entities": (
        "a.xml",
        '<!DOCTYPE rss [<!ENTITY a "aa">]><rss><item><id>&a;</id></item></rss>',
        "declares the entity",
    ),
    "cut json": ("a.json", '[{"@type": "Product",\n "sku": ', r"a\.json cannot be read as JSON"),
    "no product": ("a.json", '[{"@type": "Person"}]', r"a\.json has no schema\.org Product"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_feed_is_refused_whole(case: str, tmp_path: Path, environment: Environment) -> None:
    name, text, message = BROKEN[case]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        import_items(tmp_path / name, environment)
    assert items(environment) == {}
