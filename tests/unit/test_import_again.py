"""Importing again: grown, mended and shrunken files, reject files, and one importer at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from infra.importing.catalogue import import_items, import_users
from infra.importing.events import import_events
from infra.importing.lease import lease_path, writer_lease
from infra.importing.mapping import ColumnMap
from infra.importing.report import Options
from infra.importing.tables import find_table

HEADER = "item_id,title,price,availability,updated_at\n"


def rows(env: Environment, name: str, by: str) -> list[dict[str, Any]]:
    found = find_table(env, name)
    return [] if found is None else found.to_pyarrow_table().sort_by(by).to_pylist()


def item_rows(env: Environment) -> list[dict[str, Any]]:
    return rows(env, "bronze.items", "item_id")


def titles(env: Environment) -> dict[str, str]:
    return {row["item_id"]: row["title"] for row in item_rows(env)}


def other(env: Environment, tmp_path: Path) -> Environment:
    """A second, empty installation to compare with."""
    home = str(tmp_path / "other")
    return env._replace(home=home, lakehouse=f"{home}/lakehouse")


def test_a_file_that_grew_or_was_mended_leaves_what_one_import_leaves(tmp_path: Path, environment: Environment) -> None:
    path = tmp_path / "items.csv"
    path.write_text(HEADER + "i1,a,1,,\ni2,b,dear,,\n")
    import_items(path, environment)
    path.write_text(HEADER + "i1,a,1,,\ni2,b,2,,\ni3,c,3,,\ni1,A,4,,\n")
    assert import_items(path, environment) == import_items(path, environment)
    assert rows(environment, "bronze.quarantine_import", "source") == []
    once = other(environment, tmp_path)
    import_items(path, once)
    assert item_rows(environment) == item_rows(once)
    assert titles(environment) == {"i1": "A", "i2": "b", "i3": "c"}


def test_the_later_line_wins_unless_it_was_updated_earlier(tmp_path: Path, environment: Environment) -> None:
    new, old = tmp_path / "new.csv", tmp_path / "old.csv"
    new.write_text(
        HEADER + "i1,newest,,,2024-03-02T00:00:00Z\ni1,older,,,2024-03-01T23:00:00Z\ni2,x,,,2024-03-02\ni2,no time,,,\n"
        "i3,first,,,2024-03-02\ni3,same instant,,,2024-03-02T01:00:00+01:00\n"
    )
    report = import_items(new, environment)
    assert (report.accepted, report.rows_written, report.repeated) == (6, 3, 3)
    assert titles(environment) == {"i1": "newest", "i2": "no time", "i3": "same instant"}
    old.write_text(HEADER + "i1,late delivery,,,1709287200000\ni2,dated,,,2020-01-01\n")
    report = import_items(old, environment)
    assert (report.rows_written, report.notes) == (1, {"not taken: the table has a newer updated_at": 1})
    assert titles(environment) == {"i1": "newest", "i2": "dated", "i3": "same instant"}


def test_a_full_catalogue_hides_what_it_does_not_name(tmp_path: Path, environment: Environment) -> None:
    path = tmp_path / "items.csv"
    path.write_text(HEADER + "i1,a,1,,\ni2,b,2,,\ni3,c,3,,\ni4,d,4,PREORDER,\n")
    import_items(path, environment)
    path.write_text(HEADER + "i1,a,1,,\ni2,b,broken,,\ni5,e,5,,\n")
    before = item_rows(environment)
    import_items(path, environment)
    assert [r for r in item_rows(environment) if r["item_id"] in ("i2", "i3", "i4")] == before[1:]  # not asked for

    with pytest.raises(DataError, match=r"2 of 5 visible items .* limit of 20%.*--missing-limit 0\.40"):
        import_items(path, environment, full_catalogue=True, missing_limit=0.2)
    report = import_items(path, environment, full_catalogue=True)
    assert report.notes == {"missing from the full catalogue: out of stock and hidden": 2}
    states = {r["item_id"]: (r["title"], r["availability"], r["is_hidden"]) for r in item_rows(environment)}
    assert states == {
        "i1": ("a", "IN_STOCK", False),
        "i2": ("b", "IN_STOCK", False),  # named, if only in a refused line
        "i3": ("c", "OUT_OF_STOCK", True),
        "i4": ("d", "OUT_OF_STOCK", True),
        "i5": ("e", "IN_STOCK", False),
    }
    assert sum(import_items(path, environment, full_catalogue=True).notes.values()) == 0
    path.write_text(HEADER + "i1,a,1,,\ni2,b,2,,\ni3,back,3,,\ni5,e,5,,\n")
    import_items(path, environment, full_catalogue=True)
    assert item_rows(environment)[2]["is_hidden"] is False

    path.write_text(HEADER + "i1,a,1,,\n,nameless,2,,\n")
    with pytest.raises(DataError, match="1 lines have no readable item_id"):
        import_items(path, environment, full_catalogue=True)


def test_rejects_can_be_mended_and_imported(tmp_path: Path, environment: Environment) -> None:
    path, folder = tmp_path / "items.csv", tmp_path / "rejects"
    path.write_text('item_id,title,price\ni1,"two\nlines",1\ni2,"a, b",dear\n\ni3,c\ni4,d,4\n')
    report = import_items(path, environment, options=Options(rejects_folder=folder))
    rejects = folder / "items.rejects.csv"
    assert report.rejects == (str(rejects),)
    lines = rejects.read_text().splitlines()
    assert lines[0] == "#! nightjar rejects of items:items.csv; format=csv"
    assert lines[2:] == [
        "item_id,title,price",
        "#! line 4: invalid_price in price: price is a number >= 0, got 'dear'",
        'i2,"a, b",dear',
        "#! line 6: unreadable: the line has 2 values, the header has 3 columns",
        "i3,c",
    ]
    written = rejects.read_bytes()
    assert import_items(path, environment, options=Options(rejects_folder=folder)) == report
    assert rejects.read_bytes() == written  # untouched: written over by the same

    rejects.write_text(rejects.read_text().replace("dear", "2").replace("i3,c", "i3,c,3"))
    mended = import_items(rejects, environment, options=Options(rejects_folder=folder))
    assert (mended.read, mended.accepted, mended.rejects) == (2, 2, ())
    assert titles(environment) == {"i1": "two\nlines", "i2": "a, b", "i3": "c", "i4": "d"}

    again = import_items(path, environment, options=Options(rejects_folder=folder))  # mended work is not written over
    assert again.rejects == (str(folder / "items.rejects.2.csv"),)
    assert "i3,c,3" in rejects.read_text()


def test_rejects_of_a_file_that_is_now_good_are_removed(tmp_path: Path, environment: Environment) -> None:
    path, target = tmp_path / "users.jsonl", tmp_path / "bad.jsonl"
    path.write_text('{"user_id": 1}\n{"user_id": "u2", "consent_train": "perhaps"}\n')
    import_users(path, environment, options=Options(rejects=target))
    remarks = [line for line in target.read_text().splitlines() if line.startswith("#! line")]
    assert [remark.partition(": ")[0] for remark in remarks] == ["#! line 1", "#! line 2"]
    path.write_text('{"user_id": "u1"}\n')
    assert import_users(path, environment, options=Options(rejects=target)).rejects == ()
    assert not target.exists()
    target.write_text("mine")
    with pytest.raises(DataError, match=r"bad\.jsonl is there and is no reject file"):
        import_users(path, environment, options=Options(rejects=target))
    assert target.read_text() == "mine"


def test_rejects_of_parquet_events_are_json_lines_that_import(tmp_path: Path, environment: Environment) -> None:
    columns = {"user_id": ["u1", None], "event_type": ["search", "search"], "timestamp": ["2024-03-08"] * 2}
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    report = import_events(tmp_path / "e.parquet", environment, options=Options(rejects_folder=tmp_path / "r"))
    rejects = Path(report.rejects[0])
    assert rejects.name == "e.rejects.jsonl"
    rejects.write_text(rejects.read_text().replace("null", '"u2"'))
    assert import_events(rejects, environment).accepted == 1
    assert [r["user_id"] for r in rows(environment, "bronze.events_import", "user_id")] == ["u1", "u2"]


def test_rejects_are_read_as_written_whatever_the_mapping_says(tmp_path: Path, environment: Environment) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes("sku;name;price\ni1;Caf\u00e9;1,5\ni2;\u00fcber;dear\n".encode("cp1252"))
    entries = {"columns": {"item_id": "sku", "title": "name"}, "encoding": "cp1252", "delimiter": ";", "decimal": ","}
    mapping = ColumnMap.from_mapping(entries, "items")
    report = import_items(path, environment, mapping, options=Options(rejects_folder=tmp_path / "r"))
    rejects = Path(report.rejects[0])
    rejects.write_text(rejects.read_text("utf-8").replace("dear", "2,5"), "utf-8")
    assert import_items(rejects, environment, mapping).accepted == 1
    assert [(r["title"], r["price"]) for r in item_rows(environment)] == [("Caf\u00e9", 1.5), ("\u00fcber", 2.5)]

    columns = {"sku": ["p1", "p2"], "price": [-1.0, 1.0], "made": pa.array([None, "Kyoto"])}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    entries = {"columns": {"item_id": "sku", "title": "made"}, "format": "parquet"}
    mapping = ColumnMap.from_mapping(entries, "items")
    report = import_items(
        tmp_path / "items.parquet", environment, mapping, options=Options(rejects_folder=tmp_path / "r")
    )
    rejects = Path(report.rejects[0])
    rejects.write_text(rejects.read_text().replace("-1.0", "1.0").replace(', "made": null', ""))
    assert import_items(rejects, environment, mapping).accepted == 1
    assert titles(environment)["p1"] is None


def test_one_importer_at_a_time_and_a_killed_one_blocks_nobody(tmp_path: Path, environment: Environment) -> None:
    path = tmp_path / "items.csv"
    path.write_text(HEADER + "i1,a,1,,\n")
    program = (
        "import sys, time\n"
        "from feature_repo.contracts.environment import Environment\n"
        "from infra.importing.lease import writer_lease\n"
        "env = Environment.from_mapping({'NIGHTJAR_HOME': sys.argv[1]})\n"
        "with writer_lease(env):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, environment.home]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}, cwd=root
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DependencyError, match=f"process {holder.pid} is importing since .*--wait SECONDS"):
            import_items(path, environment)
        assert find_table(environment, "bronze.items") is None
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert json.loads(lease_path(environment, "importer").read_text())["pid"] == holder.pid  # left behind, not held
    assert import_items(path, environment).accepted == 1
    with writer_lease(environment), writer_lease(environment):  # joined within one process
        assert import_items(path, environment).accepted == 1
