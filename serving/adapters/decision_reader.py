"""Finds one decision: in the files of the workers, where it lies for seconds, or in silver.decisions.

The table is read with deltalake in a process of its own, started at the first question and kept: a worker does not
carry it, whoever asks. Blocking: call it off the event loop.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from feature_repo.contracts.decisions import FRAME_MARK, LOG_SUFFIX, MAX_PAYLOAD_BYTES, read_decision, read_frames
from feature_repo.contracts.errors import ContractError, DependencyError
from feature_repo.contracts.object_store import is_on_store
from feature_repo.contracts.packing import Source
from feature_repo.contracts.tables import table_path
from feature_repo.contracts.times import to_micros
from serving.adapters.json_bytes import encode_json

DECISIONS_TABLE = "silver.decisions"
_TABLE_SECONDS = 30.0
TIME_DIGITS = 12
"""Of a recommendation_id: the milliseconds of its answer, in hex."""
_SOURCES = {source.name.lower(): source.value for source in Source}


class DecisionReader(Protocol):
    """Raises DependencyError when what is kept cannot be read."""

    def find(self, recommendation_id: str) -> Mapping[str, Any] | None:
        """The document of a decision (`contracts.decisions`, payload v1); None when none of that id is kept."""


class LoggedDecisions:
    """The decisions of one tenant, on disk."""

    def __init__(
        self, folder: str, *, lakehouse: str, tenant: str, storage_options: dict[str, str] | None = None
    ) -> None:
        self._folder = Path(folder)
        self._table = table_path(lakehouse, DECISIONS_TABLE, tenant=tenant)
        self._reader = TableReader(self._table, storage_options)

    def find(self, recommendation_id: str) -> Mapping[str, Any] | None:
        days = _days_of(recommendation_id)
        if not days:
            return None  # none of ours
        return self._in_files(recommendation_id) or self._in_table(recommendation_id, days)

    def _in_files(self, recommendation_id: str) -> Mapping[str, Any] | None:
        wanted = b'"id":' + encode_json(recommendation_id)
        for path in sorted(self._folder.glob(f"*{LOG_SUFFIX}")):
            try:
                with open(path, "rb") as stream:
                    if path.stat().st_size == 0:
                        continue
                    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                        found = _in_file(data, wanted, recommendation_id)
            except FileNotFoundError:
                continue  # the archiver has it
            except OSError as error:
                raise DependencyError(f"cannot read {path}: {error}") from error
            if found is not None:
                return found
        return None

    def _in_table(self, recommendation_id: str, days: Sequence[str]) -> Mapping[str, Any] | None:
        if not is_on_store(self._table) and not any(Path(self._table, f"decision_date={day}").is_dir() for day in days):
            return None  # nothing of these days, or no table yet
        return self._reader.find(recommendation_id, days)


class TableReader:
    """Questions to the process that reads the table, one at a time. It ends with the one who started it."""

    def __init__(self, table: str, storage_options: dict[str, str] | None = None) -> None:
        self._table = table
        self._storage_options = storage_options
        self._one_at_a_time = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def find(self, recommendation_id: str, days: Sequence[str]) -> Mapping[str, Any] | None:
        """As `find_in_table`. Raises DependencyError when the table cannot be read, or not in time."""
        question = json.dumps([recommendation_id, *days]).encode() + b"\n"
        with self._one_at_a_time:
            try:
                answer = json.loads(self._ask(question))
            except (OSError, ValueError) as error:
                self.close()
                raise DependencyError(f"cannot read {DECISIONS_TABLE}: {type(error).__name__}") from error
        if "error" in answer:
            raise DependencyError(f"cannot read {DECISIONS_TABLE}: {answer['error']}")
        found: Mapping[str, Any] | None = answer["found"]
        return found

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, question: bytes) -> bytes:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = self._start()
        inlet, outlet = self._process.stdin, self._process.stdout
        assert inlet is not None
        assert outlet is not None
        inlet.write(question)
        inlet.flush()
        if not select.select([outlet], [], [], _TABLE_SECONDS)[0]:
            raise TimeoutError
        return outlet.readline()

    def _start(self) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        return subprocess.Popen(
            [sys.executable, "-m", __name__, self._table, json.dumps(self._storage_options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip


class MemoryDecisions:
    """The twin: the payloads that a `MemoryDecisionLog` holds."""

    def __init__(self, payloads: list[bytes]) -> None:
        self._payloads = payloads

    def find(self, recommendation_id: str) -> Mapping[str, Any] | None:
        for payload in self._payloads:
            document = read_decision(payload)
            if document["id"] == recommendation_id:
                return document
        return None


def _in_file(data: mmap.mmap, wanted: bytes, recommendation_id: str) -> Mapping[str, Any] | None:
    at = data.find(wanted)
    while at >= 0:
        start = data.rfind(FRAME_MARK, max(0, at - MAX_PAYLOAD_BYTES), at)
        while start >= 0:
            piece = data[start : start + MAX_PAYLOAD_BYTES + 64]
            for _, payload in read_frames(piece, 0).payloads[:1]:
                try:
                    document = read_decision(payload)
                except ContractError:
                    continue
                if document["id"] == recommendation_id:
                    return document
            start = data.rfind(FRAME_MARK, max(0, at - MAX_PAYLOAD_BYTES), start)
        at = data.find(wanted, at + 1)
    return None


def find_in_table(
    table: str, recommendation_id: str, days: Sequence[str], storage_options: dict[str, str] | None = None
) -> dict[str, Any] | None:
    """The decision in these partitions of the table at a path or URL; None when it, or the table, is not there."""
    import pyarrow.dataset as ds
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    try:
        found = DeltaTable(table, storage_options=storage_options)
        dataset = found.to_pyarrow_dataset(partitions=[("decision_date", "in", list(days))])
    except TableNotFoundError:
        return None
    rows = dataset.to_table(filter=ds.field("recommendation_id") == recommendation_id).to_pylist()
    return _document(rows[0]) if rows else None


def _days_of(recommendation_id: str) -> list[str]:
    """The days whose partitions can hold it: that of its time, and its neighbours (a clock may have been set). None for
    an id that says no time."""
    digits = recommendation_id[:TIME_DIGITS]
    try:
        moment = datetime.fromtimestamp(int(digits, 16) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return []
    return [(moment + timedelta(days=days)).date().isoformat() for days in (-1, 0, 1)]


def _document(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table as the payload it was made of (`contracts.decisions.decision_row`, backwards)."""
    return {
        "id": row["recommendation_id"],
        "at": to_micros(row["decided_at"].replace(tzinfo=UTC)),
        "kind": row["kind"],
        "placement": row["placement"],
        "subject": row["subject_key"],
        "session": row["session_hash"],
        "version": row["model_version"],
        "level": row["fallback_level"],
        "reason": row["fallback_reason"],
        "degraded": list(row["degraded_reasons"]),
        "items": list(row["item_ids"]),
        "numbers": list(row["item_numbers"]),
        "scores": list(row["scores"]),
        "sources": [_SOURCES.get(name, 0) for name in row["sources"]],
        "rules": [list(ids) for ids in row["rule_ids"]],
        "propensities": list(row["propensities"]),
        "experiments": list(zip(row["experiment_ids"], row["arms"], strict=True)),
        "inputs": json.loads(row["inputs"]),
    }


def main() -> None:
    """Answer one question a line until stdin ends: [id, day, ...] -> {"found": document or null} or {"error": text}.

    Arguments: the table's path, and its storage options as JSON.
    """
    table, options = sys.argv[1], json.loads(sys.argv[2])
    for line in sys.stdin:
        recommendation_id, *days = json.loads(line)
        try:
            answer: dict[str, Any] = {"found": find_in_table(table, recommendation_id, days, options)}
        except Exception as error:  # whatever it is, the next question is answered
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
