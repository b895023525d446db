"""How long an event that was received takes into `bronze.events`, read from the table itself.

Each commit of the log tells when it was made, each row when its event was received. What compaction writes again
(`dataChange` false) is no arrival.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contracts.tables import table_path


class ArchiveLag(NamedTuple):
    """`p99_ms`: of the events that arrived, from receipt to commit; NaN where none did."""

    events: int
    p50_ms: float
    p99_ms: float


def measure_archive_lag(lakehouse: str, prefix: str, expected: int, *, patience_seconds: float = 30.0) -> ArchiveLag:
    """Of the events whose ids begin with `prefix`, once `expected` of them are there or patience ends."""
    root = Path(table_path(lakehouse, "bronze.events"))
    deadline = time.monotonic() + patience_seconds
    while True:
        lags = lags_ms(root, prefix)
        if len(lags) >= expected or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if not len(lags):
        return ArchiveLag(0, float("nan"), float("nan"))
    p50, p99 = np.percentile(lags, (50, 99))
    return ArchiveLag(len(lags), float(p50), float(p99))


def lags_ms(root: Path, prefix: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Milliseconds from receipt to commit of each event whose id begins with `prefix`, in no order."""
    found = [np.empty(0)]
    for entry in sorted((root / "_delta_log").glob("*.json")):
        actions = [json.loads(line) for line in entry.read_bytes().split(b"\n") if line]
        moments = [action["commitInfo"]["timestamp"] for action in actions if "commitInfo" in action]
        for rows in _arrived(root, actions):
            received = rows["received_at"].filter(pc.starts_with(rows["event_id"].cast(pa.string()), prefix))
            micros = received.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
            found.append(moments[0] - micros / 1000.0)
    return np.concatenate(found)


def _arrived(root: Path, actions: list[dict[str, Any]]) -> Iterator[pa.Table]:
    for action in actions:
        added = action.get("add")
        path = root / unquote(added["path"]) if added and added["dataChange"] else None
        if path is not None and path.exists():
            yield pq.read_table(path, columns=["event_id", "received_at"], partitioning=None)
