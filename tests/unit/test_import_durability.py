"""What an import said is on disk, and a power cut in the middle of one leaves a table that the next one mends."""

from __future__ import annotations

import fcntl
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.tables import table_path
from infra.importing.catalogue import import_items
from infra.importing.events import import_events
from infra.importing.inbox import sync_inbox
from infra.importing.lease import IMPORTER, lease_path
from infra.importing.mending import mend_imported_tables
from infra.importing.tables import find_table

EVENTS = "".join(
    json.dumps({"event_id": name, "event_type": kind, "user_id": "u1", "item_id": "i1", "timestamp": moment}) + "\n"
    for name, kind, moment in (
        ("e1", "view_item", "2024-03-01T10:00:00Z"),
        ("e2", "purchase", "2024-03-02T10:00:00Z"),
    )
)


def ids(environment: Environment) -> list[str]:
    found = find_table(environment, "bronze.events_import")
    return [] if found is None else sorted(found.to_pyarrow_table(columns=["event_id"])["event_id"].to_pylist())


def test_everything_that_a_commit_names_is_fsynced_before_what_names_it(
    tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("feature_repo.contracts.torn_commits.sync", lambda path: synced.append(path.resolve()))
    (tmp_path / "items.csv").write_text("item_id,title,price,availability,updated_at\ni1,a,1,,\n")
    import_items(tmp_path / "items.csv", environment)
    root = Path(table_path(environment.lakehouse, "bronze.items", tenant=environment.tenant)).resolve()
    entries = sorted((root / "_delta_log").glob("*.json"))
    assert len(entries) == 2, "the creation and the rows"
    added = [
        root / json.loads(line)["add"]["path"] for line in entries[1].read_text().splitlines() if '"add"' in line[:7]
    ]
    assert len(added) == 1
    expected = [added[0], root, root, *entries, root / "_delta_log", *root.parents[:4]]
    began = synced.index(added[0])
    assert synced[began : began + len(expected)] == expected
    assert root.parents[3] == Path(environment.home).resolve(), "the home has the name of the lakehouse"


def test_an_import_that_a_power_cut_tore_is_taken_back_by_the_next(tmp_path: Path, environment: Environment) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text(EVENTS)
    second.write_text(EVENTS.replace('"e1"', '"e3"').replace('"e2"', '"e4"'))
    import_events(first, environment)
    import_events(second, environment)
    root = Path(table_path(environment.lakehouse, "bronze.events_import", tenant=environment.tenant))
    newest = max((root / "_delta_log").glob("*.json"))
    torn = [json.loads(line)["add"] for line in newest.read_text().splitlines() if '"add"' in line[:7]]
    assert len(torn) >= 1
    (root / torn[0]["path"]).write_bytes(b"PAR1")  # its name reached the disk, its contents did not
    import_events(second, environment)
    assert ids(environment) == ["e1", "e2", "e3", "e4"]


def test_what_nobody_imports_again_is_taken_back_by_the_next_sync(tmp_path: Path, environment: Environment) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text(EVENTS)
    second.write_text(EVENTS.replace('"e1"', '"e3"').replace('"e2"', '"e4"'))
    import_events(first, environment)
    import_events(second, environment)
    root = Path(table_path(environment.lakehouse, "bronze.events_import", tenant=environment.tenant))
    newest = max((root / "_delta_log").glob("*.json"))
    newest.write_bytes(newest.read_bytes()[:-20])
    with lease_path(environment, IMPORTER).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # somebody imports just now
        assert mend_imported_tables(environment) == {}
    sync_inbox(environment, now=datetime(2024, 3, 8, tzinfo=UTC))
    assert ids(environment) == ["e1", "e2"]
