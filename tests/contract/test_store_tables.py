"""The light engine on an S3-like store: what the importer, the archiver and light tasks write, everybody reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.tables import TABLES, table_path
from infra.doctor.checks import State, Subject
from infra.doctor.store import examine_store
from infra.exporter.lakehouse import Lakehouse
from infra.importing.tables import append_rows, find_table
from serving.adapters.decision_reader import find_in_table
from serving.speed.delta_archive import DeltaArchive
from spark_jobs.io import light_delta
from spark_jobs.io.day_files import day_files, write_days
from spark_jobs.io.light_delta import arrow_schema, open_table, read_table, version
from spark_jobs.io.light_tables import replace_days
from spark_jobs.io.store_check import check_store
from tests.conftest import ROOT
from tests.object_store import TestStore, test_store
from tests.waiting import wait_for

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED")
DAY = date(2025, 6, 30)


@pytest.fixture(scope="module")
def store() -> Iterator[TestStore]:
    with test_store() as made:
        yield made


@pytest.fixture
def env(store: TestStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An installation of its own prefix, whose engines find their keys as always: in the process's environment."""
    for name in KEYS:
        monkeypatch.setenv(name, store.variables[name])
    return Environment.from_mapping(variables_of(store, tmp_path))


def variables_of(store: TestStore, home: Path) -> dict[str, str]:
    return {
        **store.variables,
        "NIGHTJAR_HOME": str(home),
        "NIGHTJAR_LAKEHOUSE": f"s3a://{store.bucket}/{home.name}",
    }


def a_change(number: int) -> dict[str, object]:
    now = datetime(2025, 6, 30, 12, tzinfo=UTC)
    return {
        "item_id": f"i{number}", "operation": "set", "fields": "{}", "changed_at": now, "received_at": now,
        "source": "s", "source_position": number,
    }  # fmt: skip


def test_days_are_written_file_by_file_and_read_again(env: Environment, store: TestStore) -> None:
    name = "silver.interactions"
    path = table_path(env.lakehouse, name)
    DeltaTable.create(path, arrow_schema(name), partition_by=["event_date"], storage_options=env.storage_options)
    row = {**dict.fromkeys(arrow_schema(name).names), "event_id": "e1", "subject_key": "u:ü"}
    rows = pa.Table.from_pylist([row], schema=arrow_schema(name)).drop_columns("event_date")
    write_days(env, name, iter([(DAY, rows), (date(2025, 6, 29), rows)]))
    write_days(env, name, iter([(date(2025, 6, 29), rows)]), before=DAY)
    files = day_files(env, name, words=("subject_key",))
    assert [file.day for file in files] == [date(2025, 6, 29), DAY]
    assert [batch["event_id"].to_pylist() for file in files for batch in file.batches(["event_id"])] == [["e1"]] * 2
    assert sum("/silver/interactions/event_date=" in key for key in store.keys("")) == 3


def test_the_archiver_appends_and_finds_its_position(env: Environment, store: TestStore) -> None:
    def archive() -> DeltaArchive:
        made = DeltaArchive(env.lakehouse, "bronze.item_changes", tenant="default", storage_options=env.storage_options)
        made.open()
        return made

    first = archive()
    assert first.position("s") == -1
    first.append([a_change(1), a_change(2)], {"s": 2})
    again = archive()
    assert again.position("s") == 2
    again.append([a_change(3)], {"s": 3})
    rows = read_table(env, "bronze.item_changes", columns=["item_id"])
    assert sorted(rows["item_id"].to_pylist()) == ["i1", "i2", "i3"]
    prefix = f"{Path(env.home).name}/default/bronze/item_changes/"
    assert f"{prefix}_delta_log/00000000000000000002.json" in store.keys(prefix)
    assert not Path(env.home, "lakehouse").exists()
    assert not Path("s3a:").exists(), "no folder of the URL's name"


def test_a_commit_never_replaces_another(env: Environment) -> None:
    """Two writers that saw the same version: the one that comes second adds to the first, or fails."""
    name = "bronze.item_changes"
    path = table_path(env.lakehouse, name)
    DeltaArchive(env.lakehouse, name, tenant="default", storage_options=env.storage_options).open()
    handles = [open_table(env, name) for _ in range(3)]
    for number, handle in enumerate(handles):
        assert handle is not None
        assert handle.version() == 0
        rows = pa.Table.from_pylist([a_change(number)], arrow_schema(name))
        write_deltalake(handle, rows, mode="append")
    found = open_table(env, name)
    assert found is not None
    assert found.version() == 3, path
    assert found.to_pyarrow_table().num_rows == 3


@pytest.mark.redis
def test_the_archivers_process_makes_its_tables_there(
    env: Environment, store: TestStore, redis_url: str, tmp_path: Path
) -> None:
    variables = {**os.environ, **variables_of(store, tmp_path), "PYTHONPATH": str(ROOT)}
    variables |= {"NIGHTJAR_REDIS_LOG_URL": redis_url, "NIGHTJAR_REDIS_ONLINE_URL": redis_url}
    process = subprocess.Popen([sys.executable, "-m", "serving.speed.archiver"], env=variables, cwd=ROOT)
    made = {name for name, spec in TABLES.items() if spec.writer == "archiver"}
    assert len(made) == 5
    try:
        wait_for(lambda: {name for name in made if version(env, name) == 0} == made, "tables of the archiver", 60)
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert not (tmp_path / "lakehouse").exists()


def test_imports_and_light_tasks_write_there_too(env: Environment) -> None:
    append_rows(env, "bronze.items", [{"item_id": "a", "title": "A", "source": "f"}])
    found = find_table(env, "bronze.items")
    assert found is not None
    assert found.to_pyarrow_table(columns=["item_id"])["item_id"].to_pylist() == ["a"]
    assert find_table(env, "bronze.users") is None
    seen = {"recommendation_id": "r", "item_id": "a", "position": 1, "decision_date": DAY}
    for position in (1, 2):  # twice is once
        rows = pa.Table.from_pylist([{**seen, "position": position}], arrow_schema("silver.impressions"))
        replace_days(env, "silver.impressions", rows, [DAY])
    assert read_table(env, "silver.impressions", columns=["position"])["position"].to_pylist() == [2]
    assert light_delta.days_by_row_count(env, "silver.impressions") == {DAY: 1}
    measured = {metric.name: metric for metric in Lakehouse(env).metrics()}["nightjar_lakehouse_table_rows"]
    assert {s.labels["table"]: s.value for s in measured.samples} == {"bronze.items": 1, "silver.impressions": 1}


def test_the_reader_of_decisions_is_a_process_that_is_told_the_store(env: Environment) -> None:
    path = table_path(env.lakehouse, "silver.decisions")
    assert find_in_table(path, "r", [DAY.isoformat()], env.storage_options) is None
    DeltaArchive(env.lakehouse, "silver.decisions", tenant="default", storage_options=env.storage_options).open()
    done = subprocess.run(
        [sys.executable, "-m", "serving.adapters.decision_reader", path, json.dumps(env.storage_options)],
        input=json.dumps(["r", DAY.isoformat()]) + "\n", capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert json.loads(done.stdout) == {"found": None}


# --- what is wrong, in words -------------------------------------------------------------------------------------


def test_a_store_that_is_well(env: Environment, store: TestStore) -> None:
    check_store(env)
    found = examine_store(Subject({}, env, {}))
    assert (found.state, found.remedy) == (State.OK, "")
    assert found.seen == f"{env.lakehouse} at {store.endpoint}: written to, conditional writes hold"
    assert store.keys(Path(env.home).name) == [], "the doctor leaves nothing behind"


def test_a_bucket_that_is_not_there(env: Environment, store: TestStore) -> None:
    lost = Environment.from_mapping(
        {**store.variables, "NIGHTJAR_HOME": env.home, "NIGHTJAR_LAKEHOUSE": "s3a://lost/x"}
    )
    words = f"the bucket lost does not exist at {store.endpoint}"
    with pytest.raises(DependencyError, match=f"^the lakehouse s3a://lost/x: {words}: create it"):
        check_store(lost)
    with pytest.raises(DependencyError, match=words):
        open_table(lost, "silver.events")
    with pytest.raises(DependencyError, match=words):
        find_table(lost, "bronze.items")
    with pytest.raises(DependencyError, match=words):
        append_rows(lost, "bronze.items", [{"item_id": "a", "source": "f"}])
    with pytest.raises(DependencyError, match=words):
        DeltaArchive(lost.lakehouse, "bronze.events", tenant="default", storage_options=lost.storage_options).open()
    found = examine_store(Subject({}, lost, {}))
    assert (found.state, found.seen) == (State.FAIL, f"s3a://lost/x: {words}")
    assert found.remedy.startswith("create it, or correct NIGHTJAR_LAKEHOUSE")


def test_no_keys(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(DependencyError, match=r"no credentials for the bucket .*: set AWS_ACCESS_KEY_ID"):
        check_store(env)


def test_a_store_that_is_down_stops_a_job_before_it_begins(env: Environment, store: TestStore) -> None:
    variables = {**os.environ, **variables_of(store, Path(env.home)), "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    job = ["spark_jobs.jobs.pin_run", "--run-key", "k", "--dag-run-id", "k", "--as-of", "2025-07-01"]
    done = subprocess.run(
        [sys.executable, "-m", *job],
        env={**variables, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"error DependencyError: the lakehouse {env.lakehouse}: http://127.0.0.1:1 does not answer: "
        "start the store, or correct AWS_ENDPOINT_URL"
    )
