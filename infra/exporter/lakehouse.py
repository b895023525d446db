"""The Delta tables, from their logs: version, last commit, files, bytes, rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client.core import GaugeMetricFamily, Metric

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.tables import TABLES
from spark_jobs.io.light_delta import open_table


class TableState(NamedTuple):
    """One table at one version. `rows` is None when a file was written without statistics."""

    version: int
    committed_at: float
    files: int
    size_bytes: int
    rows: int | None


class Lakehouse:
    """Reads a table's files again only when its version moved."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._known: dict[str, TableState] = {}

    def metrics(self) -> Iterator[Metric]:
        """Of every table that exists."""
        states = {name: state for name in TABLES if (state := self._state(name)) is not None}
        for field, name, words in (
            ("version", "nightjar_lakehouse_table_version", "Newest Delta version"),
            ("committed_at", "nightjar_lakehouse_table_commit_timestamp_seconds", "Newest commit, Unix time"),
            ("files", "nightjar_lakehouse_table_files", "Data files of the newest version"),
            ("size_bytes", "nightjar_lakehouse_table_size_bytes", "Bytes of the newest version's data files"),
            ("rows", "nightjar_lakehouse_table_rows", "Rows of the newest version, by its statistics"),
        ):
            family = GaugeMetricFamily(name, words, labels=["table"])
            for table, state in states.items():
                value = getattr(state, field)
                if value is not None:
                    family.add_metric([table], value)
            yield family

    def _state(self, name: str) -> TableState | None:
        opened = open_table(self._environment, name)
        if opened is None:
            return None
        known = self._known.get(name)
        version = opened.version()
        if known is None or known.version != version:
            files = pa.table(opened.get_add_actions(flatten=True))
            counts = files["num_records"] if "num_records" in files.column_names else None
            known = TableState(
                version=version,
                committed_at=opened.history(1)[0]["timestamp"] / 1000,
                files=files.num_rows,
                size_bytes=pc.sum(files["size_bytes"]).as_py() or 0,
                rows=None if counts is None or counts.null_count else pc.sum(counts).as_py() or 0,
            )
            self._known[name] = known
        return known
