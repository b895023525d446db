"""Tables, times, runs and the environment: small contracts with sharp edges."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from feature_repo.contracts import tables, times
from feature_repo.contracts.environment import Environment, feast_connection
from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.run import Run, run_folder, run_key


def test_every_table_knows_its_partition_and_volatile_columns() -> None:
    assert len(tables.TABLES) == 29
    for spec in tables.TABLES.values():
        assert set(spec.partition_by) | set(spec.volatile) <= set(spec.columns), spec.name
        assert spec.name.split(".")[0] in {"bronze", "silver", "gold"}


def test_paths_keep_tenants_apart() -> None:
    assert tables.table_path("/lake/", "silver.events") == "/lake/default/silver/events"
    assert tables.table_path("s3://b/lake", "gold.item_ids", tenant="t2") == "s3://b/lake/t2/gold/item_ids"
    with pytest.raises(ContractError, match=r"did you mean 'silver\.events'"):
        tables.table_path("/lake", "silver.event")


def test_micros_are_exact() -> None:
    moment = datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=UTC)  # where float seconds lose microseconds
    assert times.from_micros(times.to_micros(moment)) == moment
    assert times.to_micros(datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)) == -1
    summer = timezone(timedelta(hours=1))
    assert times.to_micros(datetime(1970, 1, 1, 1, tzinfo=summer)) == 0


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(DataError, match="timestamp must be aware"):
        times.to_micros(datetime(2024, 1, 1))  # noqa: DTZ001


def test_time_texts() -> None:
    assert (
        times.format_timestamp(datetime(2024, 3, 8, 1, tzinfo=timezone(timedelta(hours=1)))) == "2024-03-08T00:00:00Z"
    )
    assert times.parse_timestamp("2024-03-08T00:00:00.5Z").microsecond == 500_000
    with pytest.raises(DataError, match="such as 2024-03-01T09:30:00Z"):
        times.parse_timestamp("08/03/2024")
    with pytest.raises(DataError, match="not a timestamp"):
        times.parse_timestamp(10**30)


def test_an_as_of_is_a_day() -> None:
    assert times.start_of_day(times.parse_as_of("2024-02-29")) == datetime(2024, 2, 29, tzinfo=UTC)
    with pytest.raises(DataError, match="a day such as 2024-03-08, got '2023-02-29'"):
        times.parse_as_of("2023-02-29")


def test_a_run_has_an_inverse() -> None:
    run = Run(
        "k", "default", "2024-03-08", {"bronze.events": -1}, ("2024-03-07",), True, "newest", "m1", "abc", {"k": 1}
    )
    assert Run.from_json(run.to_json()) == run
    assert run.as_of_day == date(2024, 3, 8)
    assert run.cut_off == datetime(2024, 3, 8, tzinfo=UTC)
    with pytest.raises(ContractError, match="not a run"):
        Run.from_json("[]")


def test_run_keys_are_folder_names() -> None:
    assert run_key("manual__2024-03-08T01:02:03.5+00:00") == "manual__2024-03-08T01-02-03.5-00-00"
    assert run_folder("/runs/", "default", "k") == "/runs/default/k"
    assert "/" not in run_key("../../etc")
    with pytest.raises(DataError, match="needs an id"):
        run_key("")


def test_everything_lies_under_home_unless_moved(tmp_path) -> None:
    env = Environment.from_mapping({"NIGHTJAR_HOME": str(tmp_path), "NIGHTJAR_LAKEHOUSE": "s3://lake"})
    assert (env.lakehouse, env.runs, env.tenant) == ("s3a://lake", f"{tmp_path}/runs", "default")
    assert env.inbox == f"{tmp_path}/inbox"
    assert Environment.from_mapping({"NIGHTJAR_INBOX": "/in"}).inbox == "/in"
    with pytest.raises(ContractError, match="lower-case name"):
        Environment.from_mapping({"NIGHTJAR_TENANT": "A B"})


def test_feast_gets_the_same_redis() -> None:
    assert feast_connection("redis://127.0.0.1:7001/2") == "127.0.0.1:7001,db=2"
    assert feast_connection("redis://localhost") == "localhost:6379,db=0"
    secured = "rediss://nightjar:p%40ss@redis.shop:6390"
    assert feast_connection(secured) == "redis.shop:6390,db=0,username=nightjar,password=p@ss,ssl=true"
