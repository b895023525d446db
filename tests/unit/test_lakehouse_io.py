"""The run folder, the job entry, light Delta reads and the table hash: no JVM."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError, DependencyError, GateRefusedError
from feature_repo.contracts.tables import table, table_path
from spark_jobs.io import light_delta
from spark_jobs.io.delta import side_by_side
from spark_jobs.io.light_tables import replace_day, replace_days, replace_rows
from spark_jobs.io.run_store import folder_of, has_run, read_report, read_run, write_report, write_run
from spark_jobs.io.table_hash import hash_table, hash_tables, rounded_texts
from spark_jobs.jobs import attribute_events
from spark_jobs.jobs.entry import run_command, run_job
from spark_jobs.transforms.candidates import denied_candidates
from tests.builders import make_run, utc, write_bronze_events, write_rows

D1, D2 = date(2024, 3, 1), date(2024, 3, 2)


# --- run folder ------------------------------------------------------------------------------------------------


def test_a_run_and_its_reports_come_back(environment: Environment) -> None:
    run = make_run(environment, "2024-03-08", run_key="night-1", pins={"bronze.events": 3}, derive_days=("2024-03-07",))
    assert not has_run(environment, "night-1")
    write_run(environment, run)
    write_report(environment, "night-1", "refine.json", {"b": 1, "a": {"é": [1.5, None]}})
    assert has_run(environment, "night-1")
    assert read_run(environment, "night-1") == run
    assert read_report(environment, "night-1", "refine.json") == {"b": 1, "a": {"é": [1.5, None]}}
    names = sorted(path.name for path in folder_of(environment, "night-1").iterdir())
    assert names == ["refine.json", "run.json"]  # nothing half-written is left beside them


def test_a_missing_run_names_the_nearest(environment: Environment) -> None:
    write_run(environment, make_run(environment, "2024-03-08", run_key="manual__2024-03-08"))
    with pytest.raises(DataError, match=r"no run 'manual__2024-03-80'.*did you mean 'manual__2024-03-08'"):
        read_run(environment, "manual__2024-03-80")
    with pytest.raises(DataError, match=r"run 'manual__2024-03-08' has no gate\.json yet"):
        read_report(environment, "manual__2024-03-08", "gate.json")


def test_a_report_that_cannot_be_written_leaves_the_old_one(environment: Environment) -> None:
    write_report(environment, "k", "gate.json", {"verdict": "old"})
    with pytest.raises(ValueError, match="JSON"):
        write_report(environment, "k", "gate.json", {"verdict": float("nan")})
    assert read_report(environment, "k", "gate.json") == {"verdict": "old"}


def test_a_write_that_fails_leaves_nothing_behind(environment: Environment) -> None:
    in_the_way = folder_of(environment, "k") / "gate.json"
    in_the_way.mkdir(parents=True)
    with pytest.raises(OSError, match=r"gate\.json"):
        write_report(environment, "k", "gate.json", {"verdict": "new"})
    assert [path.name for path in in_the_way.parent.iterdir()] == ["gate.json"]


def test_runs_in_an_object_store_are_refused(environment: Environment) -> None:
    with pytest.raises(DataError, match=r"NIGHTJAR_RUNS must be a folder.*'s3://runs'"):
        folder_of(environment._replace(runs="s3://runs"), "k")


# --- job entry -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("bad rows"), 2),
        (GateRefusedError("not good enough"), 2),
        (DependencyError("redis is down"), 1),
        (ContractError("torn bytes"), 1),
        (None, 0),
    ],
)
def test_exit_codes_say_whether_a_retry_is_worth_it(error: Exception | None, code: int, capsys: Any) -> None:
    def main(environment: Environment, arguments: argparse.Namespace) -> None:
        assert environment.lakehouse
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as stopped:
        run_command(main, argparse.ArgumentParser(), [])
    assert stopped.value.code == code
    assert capsys.readouterr().err == (f"error {type(error).__name__}: {error}\n" if error else "")


def test_a_job_gets_the_run_of_its_key(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTJAR_HOME", environment.home)
    run = make_run(environment, "2024-03-08", run_key="night-1")
    write_run(environment, run)
    seen: list[Any] = []
    with pytest.raises(SystemExit) as stopped:
        run_job(lambda _, run: seen.append(run), ["--run-key", "night-1"])
    assert (stopped.value.code, seen) == (0, [run])


def test_what_a_power_cut_tore_of_its_tables_is_taken_back_before_a_job(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTJAR_HOME", environment.home)
    write_run(environment, make_run(environment, "2024-03-08", run_key="night-1"))
    name = "silver.impressions"
    for day in (D1, D2):
        rows = [{"recommendation_id": "r", "item_id": "i", "decision_date": day}]
        replace_days(environment, name, pa.Table.from_pylist(rows, schema=light_delta.arrow_schema(name)), [day])
    (torn,) = Path(table_path(environment.lakehouse, name)).glob(f"decision_date={D2}/*.parquet")
    torn.unlink()
    seen: list[Any] = []

    def main(environment: Environment, _: Any) -> None:
        seen.append(light_delta.read_table(environment, name)["decision_date"].to_pylist())

    main.__module__ = attribute_events.__name__  # what a job writes is known by its name
    with pytest.raises(SystemExit) as stopped:
        run_job(main, ["--run-key", "night-1"])
    assert (stopped.value.code, seen) == (0, [[D1]])


def test_an_unknown_run_is_one_line_and_no_traceback(environment: Environment) -> None:
    command = [sys.executable, "-m", "spark_jobs.jobs.materialize_features", "--run-key", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, env={"NIGHTJAR_HOME": environment.home}, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error DataError: no run 'nothing' in ")
    assert done.stderr.count("\n") == 1


# --- light Delta -----------------------------------------------------------------------------------------------


def test_a_table_that_does_not_exist_is_empty(environment: Environment) -> None:
    assert light_delta.version(environment, "bronze.items") == -1
    rows = light_delta.read_table(environment, "bronze.items", columns=["price", "item_id"])
    assert (rows.num_rows, rows.schema.names, rows.schema.field("price").type) == (
        0,
        ["price", "item_id"],
        pa.float64(),
    )


def test_reads_at_a_version_with_columns_and_filters(environment: Environment) -> None:
    write_rows(environment, "bronze.items", [{"item_id": "i1", "price": 1.0}])
    write_rows(environment, "bronze.items", [{"item_id": "i2", "price": 2.0}])
    assert light_delta.version(environment, "bronze.items") == 1
    read = light_delta.read_table
    assert read(environment, "bronze.items", 0)["item_id"].to_pylist() == ["i1"]
    assert read(environment, "bronze.items", -1).num_rows == 0
    assert read(environment, "bronze.items", filters=[("price", ">", 1.5)])["item_id"].to_pylist() == ["i2"]
    with pytest.raises(DataError, match=r"bronze\.items has no version 7 any more"):
        read(environment, "bronze.items", 7)


def test_days_come_from_the_log(environment: Environment) -> None:
    write_bronze_events(environment, [("e1", "u", "click", "2024-03-01T10:00:00"), ("e2", "u", "click", None)])
    write_bronze_events(environment, [("e3", "u", "click", "2024-03-02T10:00:00")] * 2)
    name = "bronze.events"
    assert light_delta.days_by_row_count(environment, name) == {D1: 1, light_delta.NO_DAY: 1, D2: 2}
    assert light_delta.days_by_row_count(environment, name, 0) == {D1: 1, light_delta.NO_DAY: 1}
    assert light_delta.days_changed_between(environment, name, -1, 0) == {D1, light_delta.NO_DAY}
    assert light_delta.days_changed_between(environment, name, 0, 1) == {D2}
    assert light_delta.days_changed_between(environment, name, 1, 1) == set()
    opened = light_delta.open_table(environment, name)
    assert opened is not None
    opened.delete("event_id = 'e1'")
    assert light_delta.days_changed_between(environment, name, 1, 2) == {D1}  # a day that lost rows changed too


# --- table hash ------------------------------------------------------------------------------------------------


def candidates(scores: list[float | None] | None, *, user: str = "u1", as_of: date = D1) -> dict[str, Any]:
    return {"user_id": user, "item_numbers": [1, 2], "scores": scores, "allows_personalize": True, "as_of": as_of}


def test_layout_order_and_noise_do_not_change_a_hash(environment: Environment, tmp_path: Any) -> None:
    first, second = candidates([0.5, 0.25]), candidates([-0.0, 1.0], user="u2")
    noisy = candidates([0.0, 1.0000001], user="u2")
    layouts = [[[first, second]], [[second, first]], [[first], [noisy]], [[noisy], [first]]]
    hashes = set()
    for number, commits in enumerate(layouts):
        place = environment._replace(lakehouse=str(tmp_path / str(number)))
        for rows in commits:
            write_rows(place, "gold.candidates", rows)
        hashes.add(hash_table(place, "gold.candidates"))
    assert len(hashes) == 1


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()])
def test_numbers_are_hashed_as_texts_that_no_version_changes(kind: pa.DataType) -> None:
    said = [
        (0.0, b"0"), (-0.0, b"0"), (1.0, b"100000"), (-2.5, b"-250000"), (4e-6, b"0"),
        (2.0**46, b"7036874417766400000"), (-(2.0**47), b"-140737488355328.0"), (2.0**100, b"1.2676506002282294e+30"),
        (float("nan"), b"nan"), (float("-inf"), b"-inf"), (None, None),
    ]  # fmt: skip
    found = rounded_texts(pa.array([number for number, _ in said], kind))
    assert found.to_pylist() == [text for _, text in said]
    assert rounded_texts(pa.array([], kind)).to_pylist() == []


@pytest.mark.parametrize(
    "changed",
    [
        [candidates([0.5, 0.2501])],
        [candidates([0.25, 0.5])],
        [candidates([0.5, None])],
        [candidates([0.5, float("nan")])],
        [candidates([])],
        [candidates(None)],
        [candidates([0.5, 0.25]), candidates([0.5, 0.25])],
        [candidates([0.5, 0.25], user="")],
        [],
    ],
)
def test_every_real_difference_changes_the_hash(environment: Environment, tmp_path: Any, changed: list) -> None:
    other = environment._replace(lakehouse=str(tmp_path / "other"))
    write_rows(environment, "gold.candidates", [candidates([0.5, 0.25])])
    write_rows(other, "gold.candidates", changed)
    assert hash_table(environment, "gold.candidates") != hash_table(other, "gold.candidates")


def test_neighbouring_texts_cannot_trade_places(environment: Environment, tmp_path: Any) -> None:
    def event(event_id: str, event_type: str, received_at: str) -> dict[str, Any]:
        return {"event_id": event_id, "event_type": event_type, "received_at": utc(received_at), "event_date": D1}

    hashes = []
    for number, row in enumerate(
        [
            event("ab", "c", "2024-03-01"),
            event("a", "bc", "2024-03-01"),
            event("ab", "c", "2024-03-09"),  # received_at is volatile
        ]
    ):
        place = environment._replace(lakehouse=str(tmp_path / str(number)))
        write_rows(place, "silver.events", [row])
        hashes.append(hash_table(place, "silver.events"))
    assert hashes[0] != hashes[1]
    assert hashes[0] == hashes[2]


def test_a_day_hashes_what_its_run_makes(environment: Environment) -> None:
    before = hash_tables(environment, D1)
    assert len(before) == 18
    write_rows(environment, "gold.candidates", [candidates([1.0], as_of=D2)])
    write_rows(environment, "silver.interactions", [{"event_id": "e", "event_date": D1}])  # at the cut-off: outside
    write_rows(environment, "gold.item_ids", [{"item_id": "i", "item_number": 0, "first_as_of": D2}])
    assert hash_tables(environment, D1) == before
    changed = hash_tables(environment, D2)
    assert sorted(name for name in before if changed[name] != before[name]) == [
        "gold.candidates", "gold.item_ids", "silver.interactions"
    ]  # fmt: skip


def test_the_last_commit_that_carries_a_key_is_found(environment: Environment) -> None:
    from deltalake import CommitProperties

    path = table_path(environment.lakehouse, "silver.events")
    rows = pa.table({"a": [1]})
    for text in (json.dumps({"refined": 1}), json.dumps({"refined": 2}), "not json", json.dumps({"other": 3})):
        write_deltalake(
            path, rows, mode="append", commit_properties=CommitProperties(custom_metadata={"userMetadata": text})
        )
    assert light_delta.last_user_metadata(environment, "silver.events", "refined") == {"refined": 2}
    assert light_delta.last_user_metadata(environment, "silver.events", "nothing") is None


def lists(users: str, day: date) -> pa.RecordBatch:
    """One list for each letter."""
    return denied_candidates(list(users), day).to_batches()[0]


def test_the_rows_of_a_day_are_replaced_as_they_come_or_not_at_all(environment: Environment) -> None:
    path = table_path(environment.lakehouse, "gold.candidates")
    older = pa.table({"user_id": ["a", "b", "c"], "as_of": [D1, D1, D2]})  # made before most columns joined it
    write_deltalake(path, older, partition_by=["as_of"])

    def users(day: date) -> list[str]:
        found = light_delta.read_table(environment, "gold.candidates", filters=[("as_of", "=", day)])
        assert found.schema.names == light_delta.arrow_schema("gold.candidates").names
        return sorted(found["user_id"].to_pylist())

    def made() -> Any:
        yield lists("xy", D2)
        assert users(D2) == ["c"]  # another table may be read meanwhile, as kept lists are
        yield lists("z", D2)

    replace_day(environment, "gold.candidates", made(), D2)
    assert (users(D1), users(D2)) == (["a", "b"], ["x", "y", "z"])

    def dies() -> Any:
        yield lists("p", D2)
        raise DataError("the model is gone")

    with pytest.raises(DataError, match="the model is gone"):
        replace_day(environment, "gold.candidates", dies(), D2)
    with pytest.raises(ContractError, match="2024-03-01"):
        replace_day(environment, "gold.candidates", iter([lists("p", D2), lists("q", D1)]), D2)
    assert (users(D1), users(D2)) == (["a", "b"], ["x", "y", "z"])
    replace_day(environment, "gold.candidates", iter(()), D2)
    assert (users(D1), users(D2)) == (["a", "b"], [])


def test_a_table_that_is_missing_is_made_with_the_properties_of_its_contract(environment: Environment) -> None:
    name = "gold.session_index"
    rows = pa.table({"item_number": pa.array([7], pa.int32()), "as_of": pa.array([D1], pa.date32())})
    replace_rows(environment, name, rows, D1)
    replace_rows(environment, name, rows.slice(0, 0), D2)  # a day with nothing
    found = light_delta.read_table(environment, name)
    assert found.to_pylist() == [{"item_number": 7, "next_numbers": None, "weights": None, "as_of": D1}]
    made = DeltaTable(table_path(environment.lakehouse, name)).metadata()
    assert made.partition_columns == ["as_of"]
    expected = {k: v for k, v in table(name).properties.items() if k != "delta.enableRowTracking"}
    assert made.configuration == expected
    assert expected["delta.deletedFileRetentionDuration"] == "interval 30 days"


def test_writes_side_by_side_all_end_before_the_first_failure_is_raised() -> None:
    together = threading.Barrier(3, timeout=20)
    ended: list[str] = []

    def write(name: str, error: Exception | None = None) -> None:
        together.wait()  # passes only when all three run at once
        if error is not None:
            raise error
        time.sleep(0.05)
        ended.append(name)

    with pytest.raises(DataError, match="disk full"):
        side_by_side(partial(write, "a", DataError("disk full")), partial(write, "b"), partial(write, "c"))
    assert sorted(ended) == ["b", "c"]
