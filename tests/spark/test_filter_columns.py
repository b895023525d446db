"""The same filter says the same in a request and in Spark: generated filters over generated items."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from feature_repo.contracts.filter_language import parse_filter
from feature_repo.contracts.times import from_micros
from spark_jobs.transforms.filter_columns import filter_column
from tests.filter_cases import EXPRESSIONS, ITEMS, NOW, holds

SCHEMA = (
    "number int, brand string, category string, price double, available_quantity int, created_at timestamp, "
    "attributes string, bought_at timestamp, in_cart boolean"
)
FILTERS, ROWS = 16, 40
TRICKY_FILTERS = [
    ('category == "A > B"', ("one_of", "category", ["A > B"])),
    ("attributes.x == 3", ("one_of", "attributes.x", [3.0])),
    ('attributes.x == "3"', ("one_of", "attributes.x", ["3"])),
    ("attributes.x in [true]", ("one_of", "attributes.x", [True])),
    ("attributes.x <= 3", ("order", "attributes.x", "<=", 3.0)),
    ("not attributes.x > 0", ("not", ("order", "attributes.x", ">", 0.0))),
    ("attributes.x is null", ("missing", "attributes.x")),
    ('not brand == "å"', ("not", ("one_of", "brand", ["å"]))),
    ("tag is null", ("missing", "tag")),
]
TRICKY_ATTRIBUTES = ["3", 3, 3.0, 3.5, True, "true", ["3"], [3, None], [True], [], "", None, {"x": 3}, 10**30, "3 "]
NOTHING = dict.fromkeys(("brand", "language", "category", "price", "available_quantity", "created_at", "attributes",
                         "bought_at", "in_cart"))  # fmt: skip
TRICKY_ITEMS = [
    *({**NOTHING, "tag": (), "attributes": {"x": value}} for value in TRICKY_ATTRIBUTES),
    *({**NOTHING, "tag": (), "category": path} for path in ("A > BB", "A > B > C", "A", "A > B ", "a > B")),
    *({**NOTHING, "tag": (), "brand": brand} for brand in ("å", "a\u030a", "Å", "")),
]


def row(number: int, item: dict[str, Any]) -> tuple[Any, ...]:
    """An item as bronze.items keeps it."""
    attributes = dict(item["attributes"] or {})
    attributes |= {"tags": list(item["tag"])} if item["tag"] else {}
    attributes |= {"language": item["language"]} if item["language"] else {}
    moments = {name: None if item[name] is None else from_micros(item[name]) for name in ("created_at", "bought_at")}
    return (
        number, item["brand"], item["category"], item["price"], item["available_quantity"], moments["created_at"],
        json.dumps(attributes, sort_keys=True) if attributes else None, moments["bought_at"], item["in_cart"] or None,
    )  # fmt: skip


def generated(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    found: list[Any] = []

    @seed(20240308)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(one: Any) -> None:
        found.append(one)

    collect()
    return found


def test_filters_say_the_same_in_spark(spark: SparkSession) -> None:
    items, filters = generated(ITEMS, ROWS), generated(EXPRESSIONS, FILTERS)
    assert len(items) >= ROWS / 2
    assert len(filters) >= FILTERS / 2
    items, filters = items + TRICKY_ITEMS, filters + TRICKY_FILTERS
    frame = spark.createDataFrame([row(number, item) for number, item in enumerate(items)], SCHEMA)
    now = from_micros(NOW)
    said = frame.select(
        "number", *(filter_column(parse_filter(text), now=now).alias(f"f{n}") for n, (text, _) in enumerate(filters))
    )
    answers = [
        [bool(value) if value is not None else None for value in r[1:]] for r in said.orderBy("number").collect()
    ]
    wrong = [
        (text, items[number], got[n])
        for number, got in enumerate(answers)
        for n, (text, tree) in enumerate(filters)
        if got[n] is not holds(tree, items[number])
    ]
    assert wrong == []
    share = sum(value for got in answers for value in got if value) / (len(answers) * len(filters))
    assert 0.1 < share < 0.9  # neither all nor none
