"""The inbox: what is new comes in once, what is bad is said, what is unfinished waits."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from infra.cli import data_commands
from infra.importing import inbox as inbox_module
from infra.importing.catalogue import import_items
from infra.importing.inbox import SyncReport, sync_inbox
from infra.importing.tables import find_table

NOW = datetime(2026, 3, 8, 12, tzinfo=UTC)
EVENT = '{"event_id": "%s", "event_type": "view_item", "user_id": "%s", "item_id": "i1", "timestamp": "2026-03-07"}\n'


def put(env: Environment, name: str, text: str, *, age_seconds: float = 3600) -> Path:
    path = Path(env.inbox) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    moment = (NOW - timedelta(seconds=age_seconds)).timestamp()
    os.utime(path, (moment, moment))
    return path


def sync(env: Environment, **other: Any) -> SyncReport:
    return sync_inbox(env, now=NOW, received_at=NOW, **other)


def imported(report: SyncReport) -> list[str]:
    return [source for done in report.imported for source in done.sources]


def table_rows(env: Environment, name: str, by: str) -> list[dict[str, Any]]:
    found = find_table(env, name)
    return [] if found is None else found.to_pyarrow_table().sort_by(by).to_pylist()


def event_ids(env: Environment) -> list[str]:
    return [row["event_id"] for row in table_rows(env, "bronze.events_import", "event_id")]


def test_files_come_in_once_users_first_and_the_result_stays(environment: Environment) -> None:
    put(environment, "events/b.jsonl", EVENT % ("e1", "u1") + EVENT % ("e2", "no"))
    put(environment, "events/2026/a.csv", "who,what,at\nann,i1,2026-03-07T09:00:00Z\n")
    put(environment, "users/u.csv", "user_id,consent_store\nno,false\n")
    put(environment, "items/i.csv", "sku,name\ni1,Lamp\n")
    report = sync(environment)
    # No mapping: "sku" and "name" are recognised, "who" is not.
    assert imported(report) == ["users:inbox/users/u.csv", "items:inbox/items/i.csv", "inbox/events/b.jsonl"]
    assert report.imported[2].not_stored == 1
    assert list(report.failed) == ["inbox/events/2026/a.csv"]
    assert "no column for event_type" in report.failed["inbox/events/2026/a.csv"]

    columns = 'columns = {user_id = "who", item_id = "what", timestamp = "at"}\nconstants = {event_type = "click"}\n'
    put(environment, "events/mapping.toml", columns)
    put(environment, "events/b.jsonl", "")  # the mapping would not fit it
    Path(environment.inbox, "events/b.jsonl").unlink()
    report = sync(environment)
    assert (imported(report), report.failed) == (["inbox/events/2026/a.csv"], {})
    assert report.unchanged == ["inbox/users/u.csv", "inbox/items/i.csv"]
    versions = [find_table(environment, f"bronze.{t}").version() for t in ("events_import", "items", "users")]
    again = sync(environment)
    assert (imported(again), len(again.unchanged)) == ([], 3)
    assert versions == [find_table(environment, f"bronze.{t}").version() for t in ("events_import", "items", "users")]
    assert len(event_ids(environment)) == 2  # e1 stays though its file has left


def test_a_file_that_grew_is_taken_again_whole(environment: Environment) -> None:
    put(environment, "events/a.jsonl", EVENT % ("e1", "u1"))
    sync(environment)
    put(environment, "events/a.jsonl", EVENT % ("e1", "u1") + EVENT % ("e2", "u1"))
    report = sync(environment)
    assert report.to_mapping()["totals"] == {
        "events": {"read": 2, "accepted": 2, "quarantined_total": 0, "not_stored": 0, "rows_written": 2}
    }
    assert event_ids(environment) == ["e1", "e2"]


def test_a_doubled_events_file_is_taken_once_until_its_twin_changes(environment: Environment) -> None:
    put(environment, "events/a.jsonl", EVENT % ("e1", "u1"))
    put(environment, "events/b.jsonl", EVENT % ("e1", "u1"))
    report = sync(environment)
    assert report.duplicates == {"inbox/events/b.jsonl": "inbox/events/a.jsonl"}
    assert sync(environment).duplicates == report.duplicates
    put(environment, "events/a.jsonl", EVENT % ("e9", "u1"))
    assert imported(sync(environment)) == ["inbox/events/a.jsonl", "inbox/events/b.jsonl"]
    assert event_ids(environment) == ["e1", "e9"]


def test_items_are_those_of_one_import_of_the_whole_folder(environment: Environment) -> None:
    put(environment, "items/1.csv", "item_id,title\ni1,old\ni2,b\n")
    put(environment, "items/2.csv", "item_id,title\ni1,new\n")
    sync(environment)
    put(environment, "items/1.csv", "item_id,title\ni1,older\ni2,B\n")  # mended: 2.csv still has the last word
    assert imported(sync(environment)) == ["items:inbox/items/1.csv", "items:inbox/items/2.csv"]
    titles = {row["item_id"]: row["title"] for row in table_rows(environment, "bronze.items", "item_id")}
    assert titles == {"i1": "new", "i2": "B"}


def test_the_last_file_of_a_full_catalogue_says_what_is_there(environment: Environment) -> None:
    put(environment, "items/mapping.toml", "full_catalogue = true\n[columns]\nitem_id = 'sku'\n")
    put(environment, "items/monday.csv", "sku,title\ni1,a\ni2,b\ni3,c\n")
    put(environment, "items/tuesday.csv", "sku,title\ni1,a\ni3,c\ni4,d\n")
    sync(environment)
    hidden = {row["item_id"]: row["is_hidden"] for row in table_rows(environment, "bronze.items", "item_id")}
    assert hidden == {"i1": False, "i2": True, "i3": False, "i4": False}
    put(environment, "items/monday.csv", "sku,title\ni1,a\ni2,mended\ni3,c\n")
    sync(environment)
    hidden = {row["item_id"]: row["is_hidden"] for row in table_rows(environment, "bronze.items", "item_id")}
    assert hidden == {"i1": False, "i2": True, "i3": False, "i4": False}


def test_unfinished_files_wait(environment: Environment) -> None:
    put(environment, "events/young.jsonl", EVENT % ("e1", "u1"), age_seconds=9)
    put(environment, "events/future.jsonl", EVENT % ("e2", "u1"), age_seconds=-60)
    put(environment, "events/big.jsonl.part", "{")
    put(environment, "events/ripe.jsonl", EVENT % ("e3", "u1"), age_seconds=10)
    report = sync(environment)
    assert imported(report) == ["inbox/events/ripe.jsonl"]
    assert set(report.waiting) == {f"inbox/events/{n}" for n in ("young.jsonl", "future.jsonl", "big.jsonl.part")}
    assert "modified 9 s ago" in report.waiting["inbox/events/young.jsonl"]
    assert "60 s in the future" in report.waiting["inbox/events/future.jsonl"]
    assert "inbox/events/young.jsonl" in imported(sync(environment, settle_seconds=5))


def test_bad_files_are_said_and_good_ones_imported(environment: Environment) -> None:
    put(environment, "events/cut.csv.gz", "no gzip")
    put(environment, "events/good.jsonl", EVENT % ("e1", "u1"))
    put(environment, "events/notes.docx", "x")
    put(environment, "items/mapping.json", '{"columns": {"item": "sku"}}')
    put(environment, "items/i.csv", "sku\ni1\n")
    put(environment, "item/i.csv", "item_id\ni1\n")
    put(environment, ".hidden/x", "x")
    report = sync(environment)
    assert imported(report) == ["inbox/events/good.jsonl"]
    wanted = {
        "inbox/events/cut.csv.gz": "cannot be read", "inbox/events/notes.docx": "expected one of .csv",
        "inbox/items/i.csv": "its mapping is bad", "inbox/items": "did you mean 'item_id'", "inbox/item": "'items'",
    }  # fmt: skip
    assert set(report.failed) == set(wanted)
    for source, words in wanted.items():
        assert words in report.failed[source]
    assert sync(environment).failed == report.failed  # still bad, still said


def test_a_sync_that_was_killed_goes_on_where_it_stopped(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        put(environment, f"events/{name}.jsonl", EVENT % (name, "u1"))
    real, seen = inbox_module.import_events, []

    def dies_at_b(path: Path, *rest: Any, **named: Any) -> Any:
        seen.append(path.name)
        if seen == ["a.jsonl", "b.jsonl"]:
            raise KeyboardInterrupt
        return real(path, *rest, **named)

    monkeypatch.setattr(inbox_module, "import_events", dies_at_b)
    with pytest.raises(KeyboardInterrupt):
        sync(environment)
    assert imported(sync(environment)) == ["inbox/events/b.jsonl", "inbox/events/c.jsonl"]
    assert event_ids(environment) == ["a", "b", "c"]


def test_rejects_of_the_inbox_are_beside_the_lakehouse(environment: Environment) -> None:
    put(environment, "items/day/i.csv", "item_id,price\ni1,1\ni2,dear\n")
    report = sync(environment)
    assert report.imported[0].rejects == (f"{environment.home}/rejects/items/inbox-items-day-i.rejects.csv",)
    assert import_items(report.imported[0].rejects[0], environment).quarantined == {"invalid_price": 1}


def test_the_command_says_it_in_json_and_its_exit_code(environment: Environment) -> None:
    app = typer.Typer()
    data_commands.register(app)
    variables = {"NIGHTJAR_HOME": environment.home}
    empty = CliRunner().invoke(app, ["import", "sync", "--json"], env=variables)
    assert (empty.exit_code, json.loads(empty.stdout)["imported"]) == (0, [])
    put(environment, "events/a.jsonl", EVENT % ("e1", "u1"))
    put(environment, "events/b.csv", "")
    done = CliRunner().invoke(app, ["import", "sync", "--json"], env=variables)
    said = json.loads(done.stdout)
    assert [one["sources"] for one in said["imported"]] == [["inbox/events/a.jsonl"]]
    assert [one["source"] for one in said["failed"]] == ["inbox/events/b.csv"]
    assert isinstance(done.exception, DataError)  # which `nightjar` turns into exit code 2
    assert "1 file of the inbox could not be imported: inbox/events/b.csv: is empty" in str(done.exception)
    Path(environment.inbox, "events/b.csv").unlink()
    shown = CliRunner().invoke(app, ["import", "sync"], env=variables)
    assert shown.exit_code == 0
    assert "0 imported, 1 unchanged, 0 doubled, 0 waiting, 0 failed" in shown.stdout
