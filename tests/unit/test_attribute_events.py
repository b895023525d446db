"""The job: from silver tables to metrics, on real Delta tables, without Spark."""

from __future__ import annotations

from datetime import date, timedelta
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
import pytest
from scipy.stats import norm

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.run import METRICS_FILE, METRICS_PAGE, PLACEMENTS_FILE, Run
from feature_repo.contracts.tables import table
from spark_jobs.evaluation.metrics_page import render_metrics_page
from spark_jobs.evaluation.placement_metrics import proportion
from spark_jobs.io import light_delta, tracking
from spark_jobs.io.light_delta import arrow_schema, read_table
from spark_jobs.io.light_tables import replace_days
from spark_jobs.io.run_store import folder_of, read_report, write_report
from spark_jobs.io.table_hash import hash_table
from spark_jobs.jobs import attribute_events as job
from tests.builders import make_run, silver_event, utc, write_rows

VERSION = "2024-03-08-0a1b2c3d"


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What MLflow is told."""
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(tracking, "log_report", lambda _, run_id, **what: said.append({"run_id": run_id, **what}))
    monkeypatch.setattr(tracking, "end_night", lambda _, run_id, status: said.append({"end": (run_id, status)}))
    return said


def decision(name: str, subject: str | None, moment: str, items: list[str], **changed: Any) -> dict[str, Any]:
    decided_at = utc(moment)
    return {
        **dict.fromkeys(table("silver.decisions").columns),
        "recommendation_id": name, "decided_at": decided_at, "kind": "recommendations", "placement": "home",
        "subject_key": subject, "model_version": VERSION, "fallback_level": "personal", "item_ids": items,
        "experiment_ids": [], "arms": [], "decision_date": decided_at.date(), **changed,
    }  # fmt: skip


def event(n: int, user: str, kind: str, moment: str, item: str | None, **changed: Any) -> dict[str, Any]:
    return silver_event(n, (f"e{n}", user, kind, moment, item, changed))


DECISIONS = [
    decision("r1", "u:a", "2024-03-05T10:00:00", ["i1", "i2"]),
    decision("r2", "u:b", "2024-03-06T10:00:00", ["i2", "i1"], experiment_ids=["e1"], arms=["b"]),
    decision("r3", None, "2024-03-06T11:00:00", [], fallback_level="none"),
    decision("r4", "u:a", "2024-03-07T23:30:00", ["i1"], placement="cart"),
    decision("r5", "u:a", "2024-03-08T00:00:00", ["i1"]),  # as_of itself: not this night's
]
EVENTS = [
    event(1, "a", "impression", "2024-03-05T10:00:05", "i1", recommendation_id="r1"),
    event(2, "a", "impression", "2024-03-05T10:00:09", "i1", recommendation_id="r1"),
    event(3, "a", "impression", "2024-03-05T10:00:05", "i2", recommendation_id="r1"),
    event(4, "bot", "impression", "2024-03-06T10:00:05", "i2", recommendation_id="r2", is_bot=True),
    event(5, "a", "click", "2024-03-05T10:01:00", "i2", recommendation_id="r1"),
    event(6, "a", "purchase", "2024-03-06T09:00:00", "i2", price=10.0, quantity=3, currency="GBP"),
    event(7, "a", "purchase", "2024-03-06T11:00:00", "i1", price=99.0, currency="GBP"),  # 25 h
    event(8, "a", "refund", "2024-03-07T09:00:00", "i2", price=10.0, currency="GBP"),
    event(9, "b", "view_item", "2024-03-06T10:01:00", "i2", recommendation_id="r2"),  # no outcome
    event(10, "b", "click", "2024-03-06T10:02:00", "i1", recommendation_id="r2"),  # no impression
    event(11, "a", "impression", "2024-03-08T00:00:00", "i1", recommendation_id="r4"),  # as_of: out
]


@pytest.fixture
def shop(environment: Environment) -> Environment:
    write_rows(environment, "silver.decisions", DECISIONS)
    write_rows(environment, "silver.events", EVENTS)
    return environment


def night(environment: Environment, as_of: str, **changed: Any) -> Run:
    pins = {"silver.decisions": light_delta.version(environment, "silver.decisions")}
    return make_run(environment, as_of, pins=pins, run_key="night", **changed)


def metrics(environment: Environment) -> list[list[Any]]:
    """day, placement, level, arm, position: decisions, seen, clicked, converted, clicks, carts, purchases, refunds"""
    names = [
        "metric_date", "placement", "fallback_level", "arm", "position", "decisions", "impressions",
        "clicked_impressions", "converted_impressions", "clicks", "carts", "purchases", "refunds",
    ]  # fmt: skip
    rows = read_table(environment, "gold.metrics_daily").to_pandas()
    rows["metric_date"] = [day.day for day in rows["metric_date"]]
    return sorted(rows[names].to_numpy().tolist())


def test_a_night_from_silver_to_metrics(shop: Environment, told: list[dict[str, Any]]) -> None:
    report = job.main(shop, night(shop, "2024-03-08"))
    assert metrics(shop) == [
        [5, "home", "personal", "", 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [5, "home", "personal", "", 2, 1, 1, 1, 1, 1, 0, 1, 1],
        [6, "home", "none", "", 0, 1, 0, 0, 0, 0, 0, 0, 0],
        [6, "home", "personal", "e1=b", 1, 1, 0, 0, 0, 0, 0, 0, 0],
        [6, "home", "personal", "e1=b", 2, 1, 0, 0, 0, 1, 0, 0, 0],
        [7, "cart", "personal", "", 1, 1, 0, 0, 0, 0, 0, 0, 0],
    ]
    seen = read_table(shop, "silver.impressions").sort_by("item_id").to_pylist()
    assert seen == [
        {
            "recommendation_id": "r1", "item_id": item, "position": position, "placement": "home",
            "model_version": VERSION, "subject_key": "u:a", "first_seen_at": utc("2024-03-05T10:00:05"),
            "deliveries": deliveries, "decision_date": date(2024, 3, 5),
        }
        for item, position, deliveries in (("i1", 1, 2), ("i2", 2, 1))
    ]  # fmt: skip
    assert report["derived_days"] == ["2024-03-05", "2024-03-06", "2024-03-07"]
    assert report["events"] == {
        "clicks_by_id": 2, "clicks_without_impression": 1, "decisions": 4, "impressions": 2, "purchases_by_touch": 1,
        "refunds_by_purchase": 1,
    }  # fmt: skip
    total = report["total"]
    assert (total["decisions"], total["slots"], total["impressions"]) == (4, 5, 2)
    assert total["revenue"] == {"GBP": {"gross": 30.0, "refunded": 10.0, "net": 20.0}}
    assert total["ctr"]["value"] == 0.5
    assert report["levels"] == [
        {"fallback_level": "none", "decisions": 1, "share": 0.25},
        {"fallback_level": "personal", "decisions": 3, "share": 0.75},
    ]
    assert [(p["placement"], p["position"], p["decisions"], p["slots"]) for p in report["positions"]] == [
        ("cart", 1, 1, 1), ("home", 1, 2, 2), ("home", 2, 2, 2),
    ]  # fmt: skip
    assert read_report(shop, "night", METRICS_FILE) == report
    page = (folder_of(shop, "night") / METRICS_PAGE).read_text(encoding="utf-8")
    assert "50.0% of the items that were seen were clicked" in page
    said, ended = told
    assert ended == {"end": ("none", "FINISHED")}
    assert said["files"] == {"metrics/metrics.html": page}
    assert said["metrics"] == {"decisions_28d": 4.0, "impressions_28d": 2.0, "ctr_28d": 0.5}


def test_twice_is_once_and_late_events_arrive(shop: Environment) -> None:
    job.main(shop, night(shop, "2024-03-08"))
    before = [hash_table(shop, name) for name in ("silver.impressions", "gold.metrics_daily")]
    job.main(shop, night(shop, "2024-03-08"))
    assert [hash_table(shop, name) for name in ("silver.impressions", "gold.metrics_daily")] == before
    late = event(20, "b", "impression", "2024-03-06T10:00:05", "i1", recommendation_id="r2")
    write_rows(shop, "silver.events", [late])
    job.main(shop, night(shop, "2024-03-09", derive_days=("2024-03-06",)))
    found = {(row[0], row[4], row[6], row[7]) for row in metrics(shop) if row[3]}
    assert found == {(6, 1, 0, 0), (6, 2, 1, 1)}
    assert {row[0] for row in metrics(shop)} == {5, 6, 7, 8}


def test_an_older_night_leaves_what_a_newer_one_wrote(shop: Environment) -> None:
    job.main(shop, night(shop, "2024-03-09"))
    newest = hash_table(shop, "gold.metrics_daily")
    report = job.main(shop, night(shop, "2024-03-07"))
    assert report["derived_days"] == []
    assert hash_table(shop, "gold.metrics_daily") == newest


def test_which_days_are_due(environment: Environment) -> None:
    def day(n: int) -> date:
        return date(2024, 3, n)

    run = make_run(environment, "2024-03-30", pins={}, derive_days=("2024-03-12",))
    rows = {day(n): 5 for n in (1, 4, 5, 12, 13, 14, 20, 21, 22, 29)}
    written = {d: job.Written(5, day(15)) for d in rows}
    # an event of the 12th can belong to decisions of the 4th (seven days, and the day itself) to the 13th
    recent = [day(n) for n in (22, 29)]
    assert job.days_to_attribute(run, rows, written) == [day(n) for n in (4, 5, 12, 13)] + recent
    del written[day(1)]
    written[day(20)] = job.Written(4, day(15))
    written[day(29)] = job.Written(5, day(31))
    assert job.days_to_attribute(run, rows, written) == [day(n) for n in (1, 4, 5, 12, 13, 20, 22)]
    everything = make_run(environment, "2024-03-30", pins={}, derive_days=None)
    assert len(job.days_to_attribute(everything, rows, {d: job.Written(5, day(15)) for d in rows})) == len(rows)
    pieces = list(job._chunks([day(n) for n in (1, 7, 8, 14, 15, 29)]))
    assert pieces == [[day(1), day(7)], [day(8), day(14)], [day(15)], [day(29)]]


def test_days_are_whole_only_when_nothing_can_be_credited_any_more(shop: Environment) -> None:
    for as_of, expected in (("2024-03-12", {5: False}), ("2024-03-13", {5: True})):
        job.main(shop, night(shop, as_of))
        rows = read_table(shop, "gold.metrics_daily").to_pylist()
        assert {r["metric_date"].day: r["is_complete"] for r in rows if r["metric_date"].day == 5} == expected


def test_no_decision_yet(environment: Environment, told: list[dict[str, Any]]) -> None:
    report = job.main(environment, night(environment, "2024-03-08"))
    assert (report["derived_days"], report["total"]["decisions"], report["total"]["ctr"]) == ([], 0, None)
    assert "No answers were logged yet" in told[0]["files"]["metrics/metrics.html"]
    assert light_delta.version(environment, "gold.metrics_daily") == -1


def test_decisions_without_a_single_event(environment: Environment) -> None:
    write_rows(environment, "silver.decisions", DECISIONS[:2])
    report = job.main(environment, night(environment, "2024-03-08"))
    assert [row[4:] for row in metrics(environment)] == [
        [position, 1, 0, 0, 0, 0, 0, 0, 0] for position in (1, 2, 1, 2)
    ]
    assert report["events"] == {"clicks_without_impression": 0, "decisions": 2, "impressions": 0}
    assert read_table(environment, "silver.impressions").num_rows == 0


def test_only_its_own_tables_and_days_are_replaced(environment: Environment) -> None:
    empty = arrow_schema("gold.evaluations").empty_table()
    with pytest.raises(ContractError, match="written by train_models, with Spark"):
        replace_days(environment, "gold.evaluations", empty, [date(2024, 3, 8)])
    rows = pa.Table.from_pylist([{"decision_date": date(2024, 3, 7)}], schema=arrow_schema("silver.impressions"))
    with pytest.raises(ContractError, match="rows of"):
        replace_days(environment, "silver.impressions", rows, [date(2024, 3, 8)])
    replace_days(environment, "silver.impressions", rows.slice(1), [])
    assert light_delta.version(environment, "silver.impressions") == -1


@pytest.mark.parametrize(("part", "whole"), [(0, 7), (1, 3), (50, 1000), (3, 3)])
def test_the_interval_is_wilsons(part: int, whole: int) -> None:
    """By the formula: (p + z2/2n -+ z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n)."""
    z, p = norm.ppf(0.975), part / whole
    middle, spread = p + z * z / (2 * whole), z * (p * (1 - p) / whole + z * z / (4 * whole**2)) ** 0.5
    found = proportion(part, whole)
    assert found is not None
    assert found["value"] == p
    assert found["lower"] == pytest.approx((middle - spread) / (1 + z * z / whole), abs=1e-12)
    assert found["upper"] == pytest.approx((middle + spread) / (1 + z * z / whole), abs=1e-12)
    assert proportion(0, 0) is None


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.names.append(tag)


def test_names_from_outside_are_text_on_the_page(shop: Environment) -> None:
    bad = "<script>x</script>"
    days = [utc("2024-03-07") + timedelta(hours=n) for n in range(3)]
    rows = [decision(f"x{n}", None, day.isoformat()[:19], ["i1"], placement=bad) for n, day in enumerate(days)]
    write_rows(shop, "silver.decisions", rows)
    page = render_metrics_page(job.main(shop, night(shop, "2024-03-08")))
    parser = _Tags()
    parser.feed(page)
    assert "script" not in parser.names
    assert parser.names.count("svg") == 6  # placements, days, a figure by position each (3), levels
    assert "&lt;script&gt;" in page


def test_the_filters_of_placements_are_on_the_page(shop: Environment) -> None:
    run = night(shop, "2024-03-08")
    assert "Filters of placements" not in render_metrics_page(job.main(shop, run))
    line = {
        "placement": "gifts", "filter": "price < 5", "num_results": 12, "items": 5000, "items_left": 7, "lists": 1200,
        "short_lists": 800, "empty_lists": 30,
    }  # fmt: skip
    write_report(shop, run.run_key, PLACEMENTS_FILE, {"placements": [line], "warnings": ["<b>too few</b>"]})
    report = job.main(shop, run)
    assert report["filters"]["placements"] == [line]
    page = render_metrics_page(report)
    for words in ("price &lt; 5", "7 of 5,000", ">1,200<", ">800<", ">30<", "&lt;b&gt;too few&lt;/b&gt;"):
        assert words in page
