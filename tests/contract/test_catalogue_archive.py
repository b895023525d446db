"""Changes on their way from the stream to Delta, on a real Redis and real tables: exactly once, then compacted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from deltalake import DeltaTable

from feature_repo.contracts.changes import DELETE, ITEMS, PATCH, PUT, USERS, Change, check_change
from feature_repo.contracts.keys import archived_key, change_stream_key, changed_records_key
from feature_repo.contracts.tables import table, table_path
from serving.adapters.redis_event_log import RedisEventLog
from serving.speed import archiver as archiver_module
from serving.speed.archiver import QUARANTINE_TABLE, Archiver
from serving.speed.delta_archive import DeltaArchive
from serving.speed.positions import position_number

TENANT = "default"
STREAM = change_stream_key(TENANT)
RECEIVED = datetime(2024, 3, 8, 12, tzinfo=UTC)


def change(kind: str, operation: str, record: Any) -> Change:
    found, rejection = check_change(kind, operation, record, received_at=RECEIVED)
    assert found is not None, rejection
    return found


class Archive(NamedTuple):
    client: redis.Redis
    url: str
    lakehouse: str

    def new_archiver(self) -> Archiver:
        archiver = Archiver(
            self.client, self.client, lakehouse=self.lakehouse, tenant=TENANT, max_entries=500, may_write=lambda: True
        )
        archiver.resume()
        return archiver

    async def send(self, *changes: Change) -> list[str]:
        log = RedisEventLog(self.url, tenant=TENANT, timeout_seconds=2)
        try:
            return await log.append_changes([said.to_json() for said in changes])
        finally:
            await log.close()

    def rows(self, name: str) -> list[dict[str, Any]]:
        found = DeltaTable(table_path(self.lakehouse, name)).to_pyarrow_table()
        assert found.schema.names == list(table(name).columns)
        return sorted(found.to_pylist(), key=lambda row: row["source_position"])


@pytest.fixture
def archive(redis_url: str, tmp_path: Path) -> Iterator[Archive]:
    with redis.Redis.from_url(redis_url) as client:
        yield Archive(client, redis_url, str(tmp_path / "lakehouse"))


class CrashError(Exception):
    """The process dies here."""


def crash(*_: Any, **__: Any) -> None:
    raise CrashError


async def test_every_column_of_a_change_arrives_in_the_table_of_its_kind(archive: Archive) -> None:
    said = [
        change(ITEMS, PATCH, {"item_id": "i", "price": 3, "colour": "ü", "updated_at": "2024-03-07T23:30:00Z"}),
        change(USERS, DELETE, "u"),
        change(ITEMS, DELETE, "i"),
    ]
    positions = [position_number(at) for at in await archive.send(*said)]
    archive.client.xadd(STREAM, {"change": "no change"})
    assert archive.new_archiver().archive() == 4
    first, second = archive.rows("bronze.item_changes")
    assert first == {
        "item_id": "i", "operation": "patch", "fields": '{"attributes.colour": "\\u00fc", "price": 3.0}',
        "changed_at": datetime(2024, 3, 7, 23, 30, tzinfo=UTC), "received_at": RECEIVED,
        "source": STREAM, "source_position": positions[0],
    }  # fmt: skip
    assert (second["operation"], second["changed_at"], second["source_position"]) == ("delete", RECEIVED, positions[2])
    (user,) = archive.rows("bronze.user_changes")
    assert (user["user_id"], json.loads(user["fields"])) == (
        "u", {"region": None, "created_at": None, "attributes": None},
    )  # fmt: skip
    (bad,) = archive.rows(QUARANTINE_TABLE)
    assert (bad["raw"], bad["reason"], bad["source"]) == (b"no change", "unreadable", STREAM)
    # the night finds in the table up to where it is whole
    delta = DeltaTable(table_path(archive.lakehouse, "bronze.item_changes"))
    assert delta.transaction_version(f"archiver:{STREAM}") == positions[2]
    assert archive.client.xlen(STREAM) == 0


@pytest.mark.parametrize("dies_at", ["fsync", "compaction", "trim"])
async def test_a_crash_after_the_commit_repeats_nothing_and_forgets_nothing(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    await archive.send(change(ITEMS, PUT, {"item_id": "i", "price": 1}), change(USERS, PATCH, {"user_id": "u"}))
    archiver = archive.new_archiver()
    target, method = {
        "fsync": (DeltaArchive, "_sync_commits"),
        "compaction": (archiver_module, "compact_changes"),
        "trim": (redis.Redis, "xtrim"),
    }[dies_at]
    with monkeypatch.context() as patch:
        patch.setattr(target, method, crash)
        with pytest.raises(CrashError):
            archiver.archive()
    assert archive.client.xlen(STREAM) == 2
    # the records and the position up to which they stand for the stream move together
    assert archive.client.hlen(changed_records_key(ITEMS, TENANT)) == archive.client.exists(archived_key(STREAM))
    await archive.send(change(ITEMS, PATCH, {"item_id": "i", "price": 2}))
    archive.new_archiver().archive()
    assert [row["operation"] for row in archive.rows("bronze.item_changes")] == ["put", "patch"]
    assert len(archive.rows("bronze.user_changes")) == 1
    assert archive.client.xlen(STREAM) == 0
    record: Any = archive.client.hget(changed_records_key(ITEMS, TENANT), "i")
    assert json.loads(record)[1]["price"][0] == 2.0
