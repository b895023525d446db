"""How long events take into the archive, of a table whose log was written by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contracts.tables import table_path
from infra.bench.events.archive_lag import lags_ms, measure_archive_lag

BEGAN = datetime(2024, 3, 8, 12, tzinfo=UTC)
BEGAN_MS = 1_709_899_200_000


def commit(root: Path, version: int, after_ms: int, rows: dict[str, int], *, arrives: bool = True) -> None:
    """`rows`: event id -> ms from BEGAN to its receipt."""
    name = f"event_date=2024-03-08/part {version}.parquet"
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    received = pa.array([BEGAN + timedelta(milliseconds=ms) for ms in rows.values()], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"event_id": list(rows), "received_at": received}), root / name)
    actions = [
        {"add": {"path": name.replace(" ", "%20"), "dataChange": arrives}},
        {"commitInfo": {"timestamp": BEGAN_MS + after_ms}},
    ]
    (root / "_delta_log").mkdir(exist_ok=True)
    text = "\n".join(json.dumps(action) for action in actions)
    (root / "_delta_log" / f"{version:020d}.json").write_text(text)


def test_from_receipt_to_commit_without_what_compaction_wrote_again(tmp_path: Path) -> None:
    root = Path(table_path(str(tmp_path), "bronze.events"))
    commit(root, 0, 1_000, {"a-1": 0, "a-2": 900, "b-1": 400})
    commit(root, 1, 9_000, {"a-1": 0, "a-2": 900, "b-1": 400}, arrives=False)
    commit(root, 2, 2_500, {"a-3": 2_250, "ab-4": 0})
    assert sorted(lags_ms(root, "a-")) == [100.0, 250.0, 1_000.0]
    assert lags_ms(root, "b-").tolist() == [600.0]
    found = measure_archive_lag(str(tmp_path), "a-", 3)
    assert (found.events, found.p50_ms) == (3, 250.0)
    assert found.p99_ms == pytest.approx(985.0)  # between 250 and 1,000, at .98 of the way
    nothing = measure_archive_lag(str(tmp_path), "zz", 1, patience_seconds=0.0)
    assert nothing.events == 0
    assert nothing.p99_ms != nothing.p99_ms
