"""The night's tables after a power cut: whatever a job said is there, and what it had not said is undone.

The jobs' writers run in programs of their own under the disk shim (`infra.bench.events.power`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.tables import table_path
from infra.bench.events.power import Disk, compiler
from spark_jobs.io import commits
from spark_jobs.io.commits import commit, take_back_torn
from spark_jobs.io.light_delta import arrow_schema, read_table
from spark_jobs.io.light_tables import replace_days
from spark_jobs.io.writer_lock import commit_lock

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")
ROOT = Path(__file__).parents[2]
DAY, NEXT = date(2024, 3, 8), date(2024, 3, 9)

PROGRAM = """
import os
from datetime import date
from feature_repo.contracts.environment import Environment
from spark_jobs.io.day_files import write_days
from spark_jobs.io.light_tables import create_if_missing, replace_days, replace_rows
from tests.unit.test_commits_on_disk import impressions, neighbours

env = Environment.from_mapping(os.environ)
"""
WRITES = {
    "silver.impressions": "replace_days(env, 'silver.impressions', impressions(day, 'r'), [day])",
    "gold.item_neighbours": "replace_rows(env, 'gold.item_neighbours', neighbours(day), day)",
    "gold.session_index": "create_if_missing(env, 'gold.session_index'); "
    "write_days(env, 'gold.session_index', [(day, neighbours(day, 'gold.session_index'))], only=day)",
}


def impressions(day: date, *ids: str) -> pa.Table:
    rows = [{"recommendation_id": name, "item_id": "i1", "position": 1, "decision_date": day} for name in ids]
    return pa.Table.from_pylist(rows, schema=arrow_schema("silver.impressions"))


def neighbours(day: date, name: str = "gold.item_neighbours") -> pa.Table:
    return pa.Table.from_pylist([{"item_number": day.day, "as_of": day}], schema=arrow_schema(name))


def run(environment: Environment, disk: Disk, words: str) -> None:
    variables = {**os.environ, **disk.variables(), names.HOME: environment.home}
    subprocess.run([sys.executable, "-c", PROGRAM + words], cwd=ROOT, env=variables, check=True)


@needs_compiler
@pytest.mark.parametrize("name", WRITES)
def test_what_a_writer_has_returned_from_outlives_a_power_cut(
    environment: Environment, tmp_path: Path, name: str
) -> None:
    Path(environment.home).mkdir(parents=True, exist_ok=True)
    disk = Disk(Path(environment.home), tmp_path / "workshop")
    disk.settled()
    run(environment, disk, "\n".join(f"day = date(2024, 3, {number})\n{WRITES[name]}" for number in (8, 9)))
    disk.cut()
    rows = read_table(environment, name)
    (day_column,) = {"decision_date", "as_of"} & set(rows.column_names)
    assert sorted(rows[day_column].to_pylist()) == [DAY, NEXT]


def write(environment: Environment, *days: date) -> Path:
    """One commit for each day; the table's folder."""
    for day in days:
        replace_days(environment, "silver.impressions", impressions(day, "r"), [day])
    return folder(environment)


def folder(environment: Environment) -> Path:
    return Path(table_path(environment.lakehouse, "silver.impressions", tenant=environment.tenant))


def entry(root: Path, version: int) -> Path:
    return root / "_delta_log" / f"{version:020d}.json"


def lose_day(root: Path, day: date) -> None:
    (file,) = (root / f"decision_date={day}").glob("*.parquet")
    file.write_bytes(b"")


def days_of(environment: Environment) -> list[date]:
    return sorted(read_table(environment, "silver.impressions")["decision_date"].to_pylist())


def hadoop_sums(path: Path) -> bytes:
    """Eight bytes of header, the size of a chunk among them, and four for each chunk."""
    return b"crc\0" + (512).to_bytes(4, "big") + b"\1\2\3\4" * -(-path.stat().st_size // 512)


TEARS: dict[str, Callable[[Path], None]] = {
    "its entry is empty": lambda root: entry(root, 2).write_bytes(b""),
    "its data is not there": lambda root: lose_day(root, NEXT),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_commit_is_taken_back_before_a_job_and_written_again(environment: Environment, tear: str) -> None:
    root = write(environment, DAY, NEXT)
    TEARS[tear](root)
    assert take_back_torn(environment, {"attribute_events"}) == {"silver.impressions": [2]}
    assert days_of(environment) == [DAY]
    write(environment, NEXT)
    assert days_of(environment) == [DAY, NEXT]
    assert take_back_torn(environment, {"attribute_events"}) == {}


def test_only_tables_of_the_writers_are_looked_at_and_none_that_somebody_writes(environment: Environment) -> None:
    root = write(environment, DAY, NEXT)
    lose_day(root, NEXT)
    assert take_back_torn(environment, {"refine_events", "score_users"}) == {}
    with commit_lock(environment, "silver.impressions"):
        assert take_back_torn(environment) == {}
    assert take_back_torn(environment) == {"silver.impressions": [2]}


def test_what_spark_keeps_beside_a_commit_goes_with_it(environment: Environment) -> None:
    """The light engine may write the next commit of that number, without checksums: Spark would use its own."""
    root = write(environment, DAY, NEXT)
    log = root / "_delta_log"
    beside = [log / f".{2:020d}.json.crc", log / f"{2:020d}.crc", log / f".{2:020d}.crc.crc"]
    beside[1].write_text("{}")
    for path, sums in ((entry(root, 2), beside[0]), (beside[1], beside[2])):
        sums.write_bytes(hadoop_sums(path))
    (log / f"{1:020d}.crc").write_text("{}")
    lose_day(root, NEXT)
    take_back_torn(environment)
    assert [path for path in beside if path.exists()] == []
    assert (log / f"{1:020d}.crc").exists()


@pytest.mark.parametrize(("end", "is_kept"), [(None, True), (-4, False), (0, False)])
def test_checksums_stay_when_they_are_whole(environment: Environment, end: int | None, is_kept: bool) -> None:
    root = write(environment, DAY)
    (data,) = root.glob("decision_date=*/*.parquet")
    for path in (data, entry(root, 1)):
        path.with_name(f".{path.name}.crc").write_bytes(hadoop_sums(path)[:end])
    assert take_back_torn(environment) == {}
    assert [path.with_name(f".{path.name}.crc").exists() for path in (data, entry(root, 1))] == [is_kept] * 2


def test_what_a_dead_process_left_is_synced_before_anything_is_built_on_it(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "sync_newest", lambda *_: -1)  # dies between its commit and the disk
    root = write(environment, DAY, NEXT)
    monkeypatch.undo()
    commits._synced.clear()  # another process
    synced: list[Path] = []
    monkeypatch.setattr("feature_repo.contracts.torn_commits.sync", synced.append)
    take_back_torn(environment)
    entries = [entry(root, version) for version in (0, 1, 2)]
    assert [path for path in synced if path in entries] == entries
    synced.clear()
    with commit(environment, "silver.impressions"):
        pass
    assert synced == []  # that is on disk
    write(environment, DAY)
    assert [path for path in synced if path.suffix == ".json"] == [entry(root, 3)]


def test_data_folders_entry_and_log_are_synced_in_this_order(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(environment, DAY)
    synced: list[Path] = []
    monkeypatch.setattr("feature_repo.contracts.torn_commits.sync", synced.append)
    root = write(environment, NEXT)
    (data,) = root.glob(f"decision_date={NEXT}/*.parquet")
    assert synced == [data, data.parent, root, entry(root, 2), root / "_delta_log"]


def test_a_commit_that_fails_is_not_waited_for(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    write(environment, DAY)
    synced: list[Path] = []
    monkeypatch.setattr("feature_repo.contracts.torn_commits.sync", synced.append)

    def fails() -> None:
        with commit(environment, "silver.impressions"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert synced == []
