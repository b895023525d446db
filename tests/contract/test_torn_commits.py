"""A bronze table after a power cut: whole again when the archiver opens it, and nothing that was synced is touched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from feature_repo.contracts.tables import table_path
from feature_repo.contracts.torn_commits import take_back_torn_commits
from serving.speed.delta_archive import DeltaArchive

NAME = "bronze.quarantine"
NOON = datetime(2024, 3, 8, 12, tzinfo=UTC)


def row(number: int) -> dict[str, Any]:
    return {
        "raw": b"{", "reason": "unreadable", "field": None, "detail": "words", "source": "s",
        "source_position": number, "quarantined_at": NOON, "quarantined_date": date(2024, 3, 8),
    }  # fmt: skip


class Table:
    """A table with commits 1, 2 and 3, of one row each."""

    def __init__(self, lakehouse: Path) -> None:
        self.lakehouse = str(lakehouse)
        self.root = Path(table_path(self.lakehouse, NAME))
        self.archive = DeltaArchive(self.lakehouse, NAME, tenant="default")
        self.archive.open()
        for number in (1, 2, 3):
            self.archive.append([row(number)], {"archiver:s": number})

    def entry(self, version: int) -> Path:
        return self.root / "_delta_log" / f"{version:020d}.json"

    def data_file(self, version: int) -> Path:
        (name,) = set(DeltaTable(self.root, version=version).file_uris()) - set(
            DeltaTable(self.root, version=version - 1).file_uris()
        )
        return Path(name)

    def rows(self) -> list[int]:
        return sorted(DeltaTable(self.root).to_pyarrow_table()["source_position"].to_pylist())

    def opened(self) -> DeltaArchive:
        archive = DeltaArchive(self.lakehouse, NAME, tenant="default")
        archive.open()
        return archive


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path / "lakehouse")


TEARS: dict[str, Callable[[Table], None]] = {
    "an empty entry": lambda t: t.entry(3).write_bytes(b""),
    "half an entry": lambda t: t.entry(3).write_bytes(t.entry(3).read_bytes()[:-20]),
    "no data file": lambda t: t.data_file(3).unlink(),
    "an empty data file": lambda t: t.data_file(3).write_bytes(b""),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_commit_is_taken_back_and_appended_again(table: Table, tear: str) -> None:
    TEARS[tear](table)
    archive = table.opened()
    assert (table.rows(), archive.position("archiver:s")) == ([1, 2], 2)
    archive.append([row(3)], {"archiver:s": 3})
    assert (table.rows(), DeltaTable(table.root).version()) == ([1, 2, 3], 3)


def test_what_follows_a_torn_commit_goes_too(table: Table) -> None:
    table.data_file(2).unlink()
    assert take_back_torn_commits(table.root) == [3, 2]
    assert table.opened().position("archiver:s") == 1


def test_a_table_that_is_whole_stays_as_it_is(table: Table) -> None:
    table.archive._opened().create_checkpoint()
    before = {path: path.read_bytes() for path in table.root.rglob("*") if path.is_file()}
    assert len(before) > 7
    assert take_back_torn_commits(table.root) == []
    assert {path: path.read_bytes() for path in table.root.rglob("*") if path.is_file()} == before


def test_a_file_that_a_later_commit_removed_may_be_gone(table: Table) -> None:
    old = table.data_file(2)
    table.archive._opened().optimize.compact()
    old.unlink()  # as a vacuum does in the end
    assert take_back_torn_commits(table.root) == []
    assert table.rows() == [1, 2, 3]


@pytest.mark.parametrize("what", ["checkpoint", "pointer", "both"])
def test_a_torn_checkpoint_is_removed_and_the_log_read_instead(table: Table, what: str) -> None:
    table.archive._opened().create_checkpoint()
    log = table.root / "_delta_log"
    if what != "pointer":
        (log / f"{3:020d}.checkpoint.parquet").write_bytes(b"")
    if what != "checkpoint":
        (log / "_last_checkpoint").write_bytes(b"")
    assert table.opened().position("archiver:s") == 3
    assert table.rows() == [1, 2, 3]
    assert not (log / "_last_checkpoint").exists()


def test_a_checkpoint_of_a_torn_commit_goes_with_it(table: Table) -> None:
    table.archive._opened().create_checkpoint()
    table.data_file(3).unlink()
    archive = table.opened()
    assert (table.rows(), archive.position("archiver:s")) == ([1, 2], 2)


def test_a_table_whose_creation_was_torn_is_created_anew(table: Table) -> None:
    for version in (3, 2, 1):
        table.entry(version).unlink()
    table.entry(0).write_bytes(b"")
    assert table.opened().position("archiver:s") == -1
    assert table.rows() == []


def test_no_table_is_no_trouble(tmp_path: Path, table: Table) -> None:
    assert take_back_torn_commits(tmp_path / "nothing") == []
    shutil.rmtree(table.root)
    assert table.opened().position("archiver:s") == -1


def test_texts_with_line_ends_of_their_own_are_no_tear(table: Table) -> None:
    """The log's statistics hold the smallest and largest text; its own lines end with LF alone."""
    odd = {**row(4), "detail": "a\u2028b\x85c\u2029d"}
    table.archive.append([odd], {"archiver:s": 4})
    assert "\u2028" in table.entry(4).read_text(encoding="utf-8")
    assert take_back_torn_commits(table.root) == []
    table.opened().append([row(5)], {"archiver:s": 5})
    assert table.rows() == [1, 2, 3, 4, 5]
