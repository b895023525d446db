"""Tables of the light engine, kept up: the same rows in fewer files, by their own writer; on real Delta and Redis."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from deltalake import DeltaTable

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from feature_repo.contracts.keys import archived_key, lease_key, maintenance_key, stream_key
from feature_repo.contracts.tables import table_path
from infra.importing import maintenance as import_maintenance
from infra.importing.maintenance import maintain_imports
from serving.speed.archiver import Archiver
from serving.speed.maintenance import maintain_archive
from serving.speed.maintenance_requests import answer_request, ask, read_answer
from serving.speed.table_upkeep import SMALL_FILES, keep_up
from spark_jobs.io.light_delta import days_by_row_count, read_table
from tests.builders import write_bronze_events, write_rows

DAYS = ("2024-03-01", "2024-03-02")


def fill(environment: Environment, name: str) -> None:
    """As many small files as are too many for the first day and for rows without one; one file less for the second."""
    for n in range(SMALL_FILES):
        rows: list[Any] = [(f"a{n}", "ann", "view_item", f"{DAYS[0]}T10:00:00"), (f"n{n}", "ann", "view_item", None)]
        if n:
            rows.append((f"b{n}", "bob", "view_item", f"{DAYS[1]}T10:00:00"))
        write_bronze_events(environment, rows, name=name, first_position=10 * n)


def rows_of(environment: Environment, name: str) -> list[dict[str, Any]]:
    return sorted(read_table(environment, name).to_pylist(), key=lambda row: row["event_id"])


def delta_of(environment: Environment, name: str) -> DeltaTable:
    return DeltaTable(table_path(environment.lakehouse, name, tenant=environment.tenant))


def age_by(table: DeltaTable, days: float) -> None:
    """Make every data file look `days` older than it is: a vacuum goes by the time of the file and of its removal."""
    past = time.time() - days * 86_400
    for path in Path(table.table_uri.removeprefix("file://")).rglob("*.parquet"):
        os.utime(path, (past, past))


def test_crowded_days_become_one_file_and_the_second_time_nothing_happens(environment: Environment) -> None:
    name = "bronze.events_import"
    fill(environment, name)
    rows, counts = rows_of(environment, name), days_by_row_count(environment, name)
    assert len(rows) == 3 * SMALL_FILES - 1

    planned = maintain_imports(environment, dry_run=True, retention_days=30)[name]
    assert delta_of(environment, name).version() == SMALL_FILES - 1
    done = maintain_imports(environment, dry_run=False, retention_days=30)
    assert set(done) == {name}
    assert done[name]["compacted"] == planned["compacted"] == ["2024-03-01", "null"]
    assert (done[name]["files_before"], done[name]["files_after"]) == (3 * SMALL_FILES - 1, SMALL_FILES + 1)
    version = delta_of(environment, name).version()
    assert (rows_of(environment, name), days_by_row_count(environment, name)) == (rows, counts)

    again = maintain_imports(environment, dry_run=False, retention_days=30)[name]
    assert (again["compacted"], again["deleted_files"], delta_of(environment, name).version()) == ([], 0, version)


def test_what_maintenance_of_imports_wrote_is_on_disk_when_it_is_done(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "bronze.events_import"
    fill(environment, name)
    before = set(delta_of(environment, name).file_uris())
    synced: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    maintain_imports(environment, dry_run=False, retention_days=30)
    table = delta_of(environment, name)
    log = Path(table.table_uri.removeprefix("file://")) / "_delta_log"
    compacted = [path.removeprefix("file://") for path in set(table.file_uris()) - before]
    entries = [str(log / f"{version:020d}.json") for version in (SMALL_FILES, SMALL_FILES + 1)]  # a day, and the nulls
    assert len(compacted) == 2
    assert {*compacted, *entries, str(log)} <= set(synced)
    assert min(map(synced.index, compacted)) < synced.index(entries[0]) < synced.index(entries[1])


def test_a_compaction_of_imports_that_a_power_cut_tore_is_taken_back(environment: Environment) -> None:
    name = "bronze.events_import"
    fill(environment, name)
    rows, before = rows_of(environment, name), set(delta_of(environment, name).file_uris())
    maintain_imports(environment, dry_run=False, retention_days=30)
    for path in set(delta_of(environment, name).file_uris()) - before:
        Path(path.removeprefix("file://")).write_bytes(b"")
    done = maintain_imports(environment, dry_run=False, retention_days=30)[name]
    assert done["compacted"] == ["2024-03-01", "null"]
    assert rows_of(environment, name) == rows


def test_a_version_of_last_week_can_be_read_after_a_vacuum(environment: Environment) -> None:
    """What a night has pinned stays: nothing goes whose removal is younger than the retention."""
    name = "bronze.items"
    for n in range(SMALL_FILES):
        write_rows(environment, name, [{"item_id": f"i{n}", "title": "Lamp"}])
    pinned = delta_of(environment, name).version()
    age_by(delta_of(environment, name), 40)  # written long ago, removed only now
    done = maintain_imports(environment, dry_run=False, retention_days=7)[name]
    assert (done["files_after"], done["deleted_files"]) == (1, 0)
    assert read_table(environment, name, pinned).num_rows == SMALL_FILES


def test_files_of_no_version_are_deleted_after_the_retention(environment: Environment) -> None:
    name = "bronze.items"
    write_rows(environment, name, [{"item_id": "i1", "title": "Lamp"}])
    table = delta_of(environment, name)
    folder = Path(table.table_uri.removeprefix("file://"))
    orphan = folder / "part-00000-of-a-killed-writer.parquet"
    orphan.write_bytes(next(folder.glob("part-*.parquet")).read_bytes())
    assert maintain_imports(environment, dry_run=False, retention_days=30)[name]["deleted_files"] == 0
    age_by(table, 31)
    assert maintain_imports(environment, dry_run=True, retention_days=30)[name]["deleted_files"] == 1
    assert orphan.exists()
    assert maintain_imports(environment, dry_run=False, retention_days=30)[name]["deleted_files"] == 1
    assert not orphan.exists()
    assert read_table(environment, name).num_rows == 1
    assert maintain_imports(environment, dry_run=False, retention_days=30)[name]["deleted_files"] == 0


@pytest.mark.parametrize("days", [6, 31])
def test_the_retention_has_a_floor_and_a_ceiling(environment: Environment, days: int) -> None:
    write_rows(environment, "bronze.items", [{"item_id": "i1"}])
    with pytest.raises(DataError, match=f"from 7 to 30, got {days}"):
        maintain_imports(environment, dry_run=False, retention_days=days)


def test_the_right_to_write_is_asked_for_before_each_commit(environment: Environment) -> None:
    fill(environment, "bronze.events")
    asked: list[bool] = []

    def may_write() -> bool:
        asked.append(not asked)
        return asked[-1]

    with pytest.raises(DependencyError, match="right to write"):
        keep_up(delta_of(environment, "bronze.events"), dry_run=False, retention_days=30, may_write=may_write)
    assert asked == [True, False]
    assert delta_of(environment, "bronze.events").version() == SMALL_FILES  # one commit more


def test_the_program_of_the_importer_speaks_json_and_exit_codes(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_HOME", environment.home)
    for name in ("NIGHTJAR_LAKEHOUSE", "NIGHTJAR_TENANT"):
        monkeypatch.delenv(name, raising=False)
    assert import_maintenance.main(["--run-key", "r1", "--dry-run=False", "--retention-days=30"]) == 0
    assert json.loads(capsys.readouterr().out) == {}
    write_rows(environment, "bronze.items", [{"item_id": "i1"}])
    assert import_maintenance.main(["--run-key", "r1", "--retention-days=3"]) == 2
    assert "error DataError: retention_days" in capsys.readouterr().err


def test_between_appends_only_crowded_days_are_compacted(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(environment, "bronze.events")
    rows, delta = rows_of(environment, "bronze.events"), delta_of(environment, "bronze.events")
    old = Path(delta.table_uri.removeprefix("file://")) / "left.parquet"
    old.touch()
    age_by(delta, 100)
    assert keep_up(delta, dry_run=False, retention_days=30, only_crowded=True)["compacted"] == []
    monkeypatch.setattr("serving.speed.table_upkeep.CROWDED_FILES", SMALL_FILES)
    done = keep_up(delta, dry_run=False, retention_days=30, only_crowded=True)
    assert (done["compacted"], done["deleted_files"]) == (["2024-03-01", "null"], 0)
    assert old.exists()  # that would take the listing of every folder
    assert rows_of(environment, "bronze.events") == rows


@pytest.fixture
def log(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.mark.redis
def test_the_archiver_maintains_its_tables_when_asked(
    environment: Environment, redis_url: str, log: redis.Redis
) -> None:
    shop = environment._replace(redis_log_url=redis_url)
    fill(shop, "bronze.events")
    rows = rows_of(shop, "bronze.events")
    archiver = Archiver(log, log, lakehouse=shop.lakehouse, tenant="default", max_entries=100, may_write=lambda: True)
    archiver.resume()
    log.set(lease_key("archiver"), "somebody")
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.wait(0.05):
            answer_request(log, "default", archiver.maintain)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for compacted in (["2024-03-01", "null"], []):  # twice is once
            report = maintain_archive(shop, "run/1", dry_run=False, retention_days=30)
            assert set(report) == {
                "bronze.events", "bronze.quarantine", "bronze.item_changes", "bronze.user_changes",
            }  # fmt: skip
            assert report["bronze.events"]["compacted"] == compacted
            assert rows_of(shop, "bronze.events") == rows
    finally:
        stopping.set()
        thread.join()
    assert log.get(maintenance_key()) is None


@pytest.mark.redis
def test_a_day_that_grows_is_compacted_by_the_way_and_no_delivery_is_repeated(
    environment: Environment, log: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.speed.table_upkeep.CROWDED_FILES", 5)
    monkeypatch.setattr("serving.speed.archiver.COMPACTION_ROUNDS", 6)
    archiver = Archiver(
        log, log, lakehouse=environment.lakehouse, tenant="default", max_entries=100, may_write=lambda: True
    )
    archiver.resume()
    for n in range(6):
        event = {"event_id": f"e{n}", "event_type": "search", "user_id": "u1", "timestamp": "2024-03-01T10:00:00Z"}
        log.xadd(stream_key(n % 2), {"event": json.dumps(event), "nonce": "n"})
        archiver.archive()
        for partition in range(2):  # as after a crash between the commit and the move of the position
            log.delete(archived_key(stream_key(partition)))
    assert len(delta_of(environment, "bronze.events").file_uris()) == 1
    archiver.archive()
    assert [row["event_id"] for row in rows_of(environment, "bronze.events")] == [f"e{n}" for n in range(6)]
    assert len(delta_of(environment, "bronze.events").file_uris()) == 1


@pytest.mark.redis
def test_a_request_that_an_archiver_died_over_is_left_anew(
    environment: Environment, redis_url: str, log: redis.Redis
) -> None:
    log.set(lease_key("archiver"), "somebody")
    deaths = 0

    def serve() -> None:
        nonlocal deaths
        while not stopping.wait(0.05):
            if deaths == 0:
                deaths = log.delete(maintenance_key())
            else:
                answer_request(log, "default", lambda **_: {"bronze.events": "done"})

    stopping = threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        report = maintain_archive(
            environment._replace(redis_log_url=redis_url), "r1", dry_run=False, retention_days=30, repeat_seconds=0.3
        )
    finally:
        stopping.set()
        thread.join()
    assert (report, deaths) == ({"bronze.events": "done"}, 1)


@pytest.mark.redis
def test_without_an_archiver_the_request_fails_in_words(environment: Environment, redis_url: str) -> None:
    shop = environment._replace(redis_log_url=redis_url)
    with pytest.raises(DependencyError, match="no archiver is running"):
        maintain_archive(shop, "r1", dry_run=False, retention_days=30, absence_seconds=0.3)


@pytest.mark.redis
def test_what_goes_wrong_is_the_answer(log: redis.Redis) -> None:
    def fails(**_: Any) -> dict[str, Any]:
        raise DependencyError("disk full")

    ask(log, "default", "r1", dry_run=False, retention_days=30)
    with pytest.raises(DependencyError, match="disk full"):
        answer_request(log, "default", fails)
    assert read_answer(log, "default", "r1") == {"error": "DependencyError: disk full"}
    log.set(maintenance_key(), "no JSON")
    assert answer_request(log, "default", fails) is False
    assert log.get(maintenance_key()) is None
