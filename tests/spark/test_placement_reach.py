"""What the filters of placements leave: worked out by hand, and seen in the report of a whole job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import PLACEMENTS_FILE
from spark_jobs.io.run_store import read_report
from spark_jobs.jobs import score_users as job
from spark_jobs.transforms.placement_reach import Filter, count_lists, passing_items
from tests.builders import make_frame, utc
from tests.spark.test_score_users import POPULARITY, build_shop

pytestmark = [pytest.mark.spark]

NOW = utc("2024-03-08")


def test_which_items_pass(spark: SparkSession) -> None:
    items = make_frame(
        spark,
        "bronze.items",
        [
            {"item_id": "dear", "category": "A > B", "price": 90.0, "created_at": utc("2024-03-07")},
            {"item_id": "old", "category": "A", "price": 3.0, "created_at": utc("2024-01-01")},
            {"item_id": "bare"},
        ],
    )
    texts = ['category == "A"', "price < 50", 'created_at > ago("7d")', "not in_cart(item)", 'bought_within("9d")']
    found = {row[0]: list(row[1:]) for row in passing_items(items, texts, now=NOW).collect()}
    assert found == {
        "dear": [True, False, True, True, False],
        "old": [True, True, False, True, False],
        "bare": [False, False, False, True, False],
    }


def test_what_is_left_of_lists(spark: SparkSession) -> None:
    rows = [[0, 1, 2], [3, 4], [], [4, 0], [2], None]
    lists = spark.createDataFrame([(row,) for row in rows], "item_numbers array<int>").repartition(2)
    reach = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    filters = [Filter("a", 2), Filter("b", 1)]
    counts: dict[int, list[int]] = {0: [0, 0, 0], 1: [0, 0, 0]}
    for row in count_lists(lists, filters, reach).collect():
        found = counts[row["filter_number"]]
        counts[row["filter_number"]] = [a + row[k] for a, k in zip(found, ("lists", "short_lists", "empty_lists"))]  # noqa: B905
    # left by the first filter: two of [0, 1, 2], none of [3, 4], one of [4, 0], none of [2]
    assert counts == {0: [4, 3, 2], 1: [4, 4, 4]}


@pytest.mark.redis
def test_the_night_reports_every_placement_with_a_filter(
    spark: SparkSession, environment: Environment, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "placements.toml"
    file.write_text(
        "[placements.gifts]\nnum_results = 2\nfilter = 'category == \"A > B\"'\n"
        "[placements.odd]\nnum_results = 1\nfilter = 'category == \"D\"'\n"
        "[placements.plain]\nnum_results = 5\n"
        "[placements.rare]\nnum_results = 3\nfilter = 'item_id == \"i2\"'\n"
    )
    shop = environment._replace(redis_online_url=redis_url, placements=str(file))
    run = build_shop(shop, POPULARITY)
    job.score_users(spark, shop, run)
    report = read_report(shop, run.run_key, PLACEMENTS_FILE)
    # eligible: i0, i1, i2, i3, i8; i0 and i2 lie in A > B, i8 in D, which is on no list: nobody touched it
    assert [(line["placement"], line["items"], line["items_left"]) for line in report["placements"]] == [
        ("cart", 5, 5), ("gifts", 5, 2), ("odd", 5, 1), ("rare", 5, 1),
    ]  # fmt: skip
    # popular and not seen: ann i2 i3, bob i0 i3, cid i0 i1, fay i1 i2 i3; dan's list is empty, eve said no
    cart, gifts, odd, rare = (
        {k: line[k] for k in ("lists", "short_lists", "empty_lists")} for line in report["placements"]
    )
    assert cart == {"lists": 0, "short_lists": 0, "empty_lists": 0}
    assert gifts == {"lists": 4, "short_lists": 4, "empty_lists": 0}
    assert odd == {"lists": 4, "short_lists": 4, "empty_lists": 4}
    assert rare == {"lists": 4, "short_lists": 4, "empty_lists": 2}
    assert report["warnings"] == [
        "placement 'odd': its filter leaves nothing of 4 of 4 personal lists; those people are shown what is popular",
        "placement 'rare': its filter leaves 1 of 5 items, a slate has 3",
    ]
    said = capsys.readouterr().out
    assert all(f"warning: {words}" in said for words in report["warnings"])


@pytest.mark.redis
def test_a_file_that_cannot_be_read_is_a_warning(
    spark: SparkSession, environment: Environment, redis_url: str, tmp_path: Path
) -> None:
    shop = environment._replace(redis_online_url=redis_url, placements=str(tmp_path / "away.toml"))
    run = build_shop(shop, POPULARITY)
    assert job.score_users(spark, shop, run)["published"]
    report = read_report(shop, run.run_key, PLACEMENTS_FILE)
    assert report["placements"] == []
    (words,) = report["warnings"]
    assert words.startswith("placements were not looked at: the placements ")
