"""The first task of a night: as_of, pins, days to derive, whether to publish. Real Delta logs and a real Redis."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import redis
from deltalake import CommitProperties, write_deltalake

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from feature_repo.contracts.keys import pointer_key
from feature_repo.contracts.run import Run
from feature_repo.contracts.tables import table_path
from spark_jobs.io.light_delta import arrow_schema
from spark_jobs.io.refine_state import read_state, state_after
from spark_jobs.io.run_store import read_run
from spark_jobs.jobs import pin_run as job
from tests.builders import make_run, write_bronze_events, write_rows


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Parent runs that would have been opened in MLflow (its client is tested on a real server elsewhere)."""
    calls: list[dict[str, Any]] = []

    def start_night(environment: Environment, **named: Any) -> str:
        calls.append(named)
        return f"mlflow-{len(calls)}"

    monkeypatch.setattr(job, "start_night", start_night)
    monkeypatch.setattr(job, "close_abandoned_nights", lambda *_, **__: [])
    return calls


def arguments(*given: str) -> Any:
    return job.arguments_parser().parse_args(["--run-key", "night", "--dag-run-id", "manual__1", *given])


def pin(environment: Environment, *given: str) -> Run:
    return job.main(environment, arguments(*given))


def finish(environment: Environment, run: Run) -> None:
    """What refine_events leaves behind when it ends."""
    metadata = state_after(read_state(environment), run)
    write_deltalake(
        table_path(environment.lakehouse, "silver.events"),
        arrow_schema("silver.events").empty_table(),
        mode="append",
        commit_properties=CommitProperties(custom_metadata={"userMetadata": json.dumps(metadata)}),
    )


def bring(environment: Environment, *moments: str, name: str = "bronze.events") -> None:
    write_bronze_events(environment, [(f"e{moment}", "u1", "view_item", moment) for moment in moments], name=name)


@pytest.fixture
def shop(environment: Environment, redis_url: str) -> Environment:
    """Events of 1 and 5 March (imported) and 3 March; nothing is served."""
    shop = environment._replace(redis_online_url=redis_url)
    bring(shop, "2024-03-01T10:00:00", "2024-03-05T23:59:59", name="bronze.events_import")
    bring(shop, "2024-03-03T10:00:00")
    return shop


# --- as_of -----------------------------------------------------------------------------------------------------


def test_a_manual_run_takes_the_day_after_the_last_event(shop: Environment, started: list) -> None:
    run = pin(shop, "--params", '{"test_days": 7}')
    assert run.last_day_is_over
    assert run == read_run(shop, "night")
    assert (run.as_of, run.derive_days, run.publishes, run.mlflow_run_id) == ("2024-03-06", None, True, "mlflow-1")
    assert run.pins == {
        "bronze.events": 0, "bronze.events_import": 0, "bronze.items": -1, "bronze.users": -1,
        "bronze.quarantine": -1, "bronze.quarantine_import": -1, "bronze.item_changes": -1, "bronze.user_changes": -1,
        "silver.decisions": -1,
        "bronze.events_kafka": -1, "bronze.quarantine_kafka": -1,
        "gold.user_features": -1, "gold.item_features": -1, "gold.user_category_features": -1,
        "gold.candidates": -1, "gold.item_neighbours": -1, "gold.item_factors": -1,
    }  # fmt: skip
    assert (run.params, run.event_count) == ({"test_days": 7}, 3)
    [call] = started
    assert (call["run_key"], call["as_of"]) == ("night", "2024-03-06")
    assert call["tags"]["nightjar.delta.bronze.items"] == "-1"
    assert call["tags"]["nightjar.dag_run_id"] == "manual__1"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--as-of", "2024-03-02"], "2024-03-02"),
        (["--run-type", "scheduled", "--data-interval-end", "2024-03-04T02:00:00+00:00"], "2024-03-04"),
        (["--run-type", "backfill", "--data-interval-end", "2024-03-03T23:30:00-02:00"], "2024-03-04"),  # UTC
        (["--today", "2024-03-03"], "2024-03-04"),  # a clock that runs ahead does not move the night
        (["--today", "2024-04-01"], "2024-03-06"),
    ],
)
def test_as_of_by_kind_of_run(shop: Environment, started: list, given: list[str], expected: str) -> None:
    assert pin(shop, *given).as_of == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--as-of", "2024-03-08", "--today", "2024-03-06"],
            r"as_of 2024-03-08 lies in the future: today is 2024-03-06",
        ),
        (
            ["--as-of", "2024-03-01"],
            r"no event lies before as_of 2024-03-01: the first is of 2024-03-01.*2024-03-02 on",
        ),
        (["--as-of", "soon"], r"as_of must be a day such as 2024-03-08, got 'soon'"),
        (["--run-type", "scheduled"], r"a scheduled run needs --data-interval-end"),
        (["--params", "[1]"], r"--params is a JSON object, got '\[1\]'"),
        (["--params", "{"], r"--params is a JSON object, got '\{'"),
    ],
)
def test_a_run_that_cannot_be_is_refused(shop: Environment, started: list, given: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        pin(shop, *given)
    assert started == []
    with pytest.raises(DataError):
        read_run(shop, "night")


def test_without_any_event_the_message_says_how_to_get_some(environment: Environment, started: list) -> None:
    with pytest.raises(DataError, match=r"there are no events yet.*nightjar simulate.*nightjar import events"):
        pin(environment)


def test_tomorrow_is_the_latest_as_of(shop: Environment, started: list) -> None:
    run = pin(shop, "--as-of", "2024-03-07", "--today", "2024-03-06")
    assert (run.as_of, run.last_day_is_over) == ("2024-03-07", False)


# --- retries, days to derive -----------------------------------------------------------------------------------


def test_a_retry_keeps_what_was_pinned(shop: Environment, started: list) -> None:
    first = pin(shop)
    bring(shop, "2024-03-09T10:00:00")
    assert pin(shop) == first
    assert len(started) == 1


def test_days_that_changed_since_the_last_finished_night(shop: Environment, started: list) -> None:
    first = pin(shop, "--as-of", "2024-03-04")
    bring(shop, "2024-03-06T10:00:00", "2024-03-01T11:00:00")
    assert pin(shop, "--run-key", "unfinished", "--as-of", "2024-03-07").derive_days is None
    finish(shop, first)
    second = pin(shop, "--run-key", "second", "--as-of", "2024-03-07")
    # 5 March did not change, but the first night did not reach it; 3 March stands
    assert second.derive_days == ("2024-03-01", "2024-03-05", "2024-03-06")
    assert (first.event_count, second.event_count) == (2, 5)  # 5 March is not before 4 March

    finish(shop, second)
    bring(shop, "2024-03-02T10:00:00", "2024-03-06T11:00:00")
    backfill = pin(shop, "--run-key", "backfill", "--as-of", "2024-03-03")
    assert backfill.derive_days == ("2024-03-02",)
    finish(shop, backfill)  # derived days before 3 March only, so the next night may not rely on more
    assert pin(shop, "--run-key", "third", "--as-of", "2024-03-07").derive_days == ("2024-03-02", "2024-03-06")


def test_what_a_power_cut_tore_of_silver_is_derived_again(shop: Environment, started: list) -> None:
    finish(shop, pin(shop, "--as-of", "2024-03-04"))
    finish(shop, pin(shop, "--run-key", "second", "--as-of", "2024-03-06"))
    (second,) = Path(table_path(shop.lakehouse, "silver.events"), "_delta_log").glob("*1.json")
    second.write_bytes(second.read_bytes()[:-20])
    assert pin(shop, "--run-key", "third", "--as-of", "2024-03-06").derive_days == ("2024-03-05",)


def test_what_cannot_be_compared_is_derived_whole(shop: Environment, started: list) -> None:
    run = make_run(shop, "2024-03-04", pins={"bronze.events": 9, "bronze.events_import": 0, "bronze.users": -1})
    finish(shop, run)  # bronze.events was made anew: its version went back
    assert pin(shop).derive_days is None


# --- publication -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("served", "given", "publishes", "why"),
    [
        (None, [], True, "nothing is served yet"),
        ("2024-03-06-0a1b2c3d", [], True, "not older than what is served"),
        ("2024-03-07-0a1b2c3d", [], False, "as_of 2024-03-06 is older than what is served (2024-03-07-0a1b2c3d)"),
        ("2024-03-07-0a1b2c3d", ["--publish", "always"], True, "as asked"),
        (None, ["--publish", "never"], False, "as asked"),
        (None, ["--run-type", "backfill", "--as-of", "2024-03-06"], False, "a backfill rebuilds its tables"),
        (None, ["--run-type", "backfill", "--as-of", "2024-03-06", "--publish", "always"], True, "as asked"),
    ],
)
def test_who_publishes(
    shop: Environment, started: list, served: str | None, given: list[str], publishes: bool, why: str
) -> None:
    if served:
        with redis.Redis.from_url(shop.redis_online_url) as client:
            client.set(pointer_key(), served)
    run = pin(shop, *given)
    assert run.publishes is publishes
    assert why in run.why


def test_without_redis_nothing_is_pinned(shop: Environment, started: list) -> None:
    with pytest.raises(DependencyError):
        pin(shop._replace(redis_online_url="redis://127.0.0.1:1/0"))
    assert started == []


def test_the_last_day_of_a_tenant_is_its_own(shop: Environment, started: list) -> None:
    other = shop._replace(tenant="other")
    write_rows(shop, "bronze.items", [{"item_id": "i1"}])
    with pytest.raises(DataError, match="there are no events yet"):
        pin(other)
    assert date.fromisoformat(pin(shop).as_of) == date(2024, 3, 6)
