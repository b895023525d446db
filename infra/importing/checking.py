"""A batch of lines becomes good rows, quarantined rows and a count of what was not stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.bronze import bronze_row
from feature_repo.contracts.events import Reason, Rejection, check_event, expand_items
from infra.importing.fast_path import plainly_good
from infra.importing.mapping import ColumnMap
from infra.importing.reading import Batch, Unreadable, rejected_form
from infra.importing.rejects import RejectedFile, RejectedLine
from infra.importing.tables import bronze_schema
from infra.importing.values import event_of_row, plain_types

EVENTS = "bronze.events_import"
QUARANTINE = "bronze.quarantine_import"

ShopRule = Callable[[pa.Table], Mapping[int, Rejection]]
"""Rules of one shop's files on top of the common ones: row of the batch -> why it is refused."""


@dataclass
class Tally:
    """What was seen so far, over all batches of an import. `id_hashes` finds repeated ids without keeping the ids."""

    read: int = 0
    accepted: int = 0
    not_stored: int = 0
    rows_written: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    quarantine_rows: list[dict[str, Any]] = field(default_factory=list)
    id_hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    rejected: dict[str, RejectedFile] = field(default_factory=dict)

    @property
    def repeated(self) -> int:
        """Accepted lines whose event_id came before."""
        if not self.id_hashes:
            return 0
        hashes = np.concatenate(self.id_hashes)
        return len(hashes) - len(np.unique(hashes))

    def quarantine(self, batch: Batch, row: int, rejection: Rejection, moment: datetime) -> None:
        """Keep the original bytes of a line with the reason."""
        raw = batch.raw(row)
        line = RejectedLine(batch.line_number(row), str(rejection.reason), rejection.field, rejection.detail, raw)
        self.rejects_of(batch).append(line)
        self.quarantined[str(rejection.reason)] += 1
        self.quarantine_rows.append(
            {
                "raw": raw,
                "reason": str(rejection.reason),
                "field": rejection.field,
                "detail": rejection.detail,
                "source": batch.file.source,
                "source_position": int(batch.positions[row]),
                "quarantined_at": moment,
            }
        )

    def rejects_of(self, batch: Batch) -> list[RejectedLine]:
        """The list of the refused lines of a batch's file, to be added to."""
        source = batch.file.source
        if source not in self.rejected:
            extension, input_format = rejected_form(batch)
            self.rejected[source] = RejectedFile(source, input_format, extension, batch.header, [])
        return self.rejected[source].lines


@dataclass(frozen=True)
class EventChecker:
    """Applies `check_event` to batches. People in `refusing` said no to storage: their lines are counted, not kept.

    `is_fast` off sends every row through `check_event`; the outcome is the same, which a test holds it to.
    """

    column_map: ColumnMap
    refusing: pa.Array
    received_at: datetime
    shop_rule: ShopRule | None = None
    is_fast: bool = True

    def check(self, batch: Batch, tally: Tally) -> pa.RecordBatch:
        """The good rows of a batch, with the columns of bronze.events_import, in file order; `tally` is added to."""
        tally.read += len(batch.positions)
        if batch.columns is None:
            objects = self.column_map.apply_to_objects(batch.objects)
            rows = self._one_by_one(batch, tally, enumerate(objects))
            table = pa.Table.from_pylist(rows, bronze_schema(EVENTS))
        else:
            table = self._columns(batch, batch.columns, tally)
        tally.rows_written += table.num_rows
        return table.combine_chunks().to_batches()[0] if table.num_rows else _no_rows()

    def _columns(self, batch: Batch, columns: pa.Table, tally: Tally) -> pa.Table:
        named = plain_types(self.column_map.apply_to_table(columns))
        left = np.ones(named.num_rows, bool)
        for row, problem in (batch.unreadable or {}).items():
            tally.quarantine(batch, row, Rejection(Reason.UNREADABLE, None, problem.detail), self.received_at)
            left[row] = False
        refused = self._refused_rows(named) & left
        tally.not_stored += int(refused.sum())
        left &= ~refused
        for row, rejection in (self.shop_rule(named) if self.shop_rule else {}).items():
            if left[row]:
                tally.quarantine(batch, row, rejection, self.received_at)
                left[row] = False
        fast = _no_rows()
        if self.is_fast:
            good, plain = plainly_good(named, is_text=batch.is_text, received_at=self.received_at)
            good &= left
            left &= ~good
            fast = self._fast_rows(batch, plain, good, tally)
        slow_rows = np.flatnonzero(left)
        some = named.take(pa.array(slow_rows)).to_pylist() if len(slow_rows) else []
        records = (
            (int(row), event_of_row(values, is_text=batch.is_text)) for row, values in zip(slow_rows, some, strict=True)
        )
        slow = pa.Table.from_pylist(self._one_by_one(batch, tally, records), bronze_schema(EVENTS))
        both = pa.concat_tables([pa.Table.from_batches([fast]), slow])
        return both if not (fast.num_rows and slow.num_rows) else both.sort_by("source_position")

    def _fast_rows(
        self, batch: Batch, plain: dict[str, pa.Array], good: NDArray[np.bool_], tally: Tally
    ) -> pa.RecordBatch:
        rows = pa.array(np.flatnonzero(good))
        count = len(rows)
        arrays = {name: array.take(rows) for name, array in plain.items()}
        arrays["received_at"] = pa.array([self.received_at], pa.timestamp("us", "UTC")).take(
            pa.array(np.zeros(count, np.int64))
        )
        arrays["source"] = pa.array([batch.file.source]).take(pa.array(np.zeros(count, np.int64)))
        arrays["source_position"] = pa.array(batch.positions[good], pa.int64())
        tally.accepted += count
        tally.id_hashes.append(_hashes(arrays["event_id"].to_pandas()))
        schema = bronze_schema(EVENTS)
        return pa.RecordBatch.from_arrays([arrays.get(f.name, pa.nulls(count, f.type)) for f in schema], schema=schema)

    def _refused_rows(self, columns: pa.Table) -> NDArray[np.bool_]:
        """Rows whose user, or whose own consent column, refuses storage."""
        refused = np.zeros(columns.num_rows, bool)
        if "user_id" in columns.column_names and pa.types.is_string(columns["user_id"].type) and len(self.refusing):
            refused |= pc.is_in(columns["user_id"], self.refusing).to_numpy()
        for name in {"consent_store", "consent"} & set(columns.column_names):
            column = columns[name]
            if pa.types.is_boolean(column.type):
                refused |= pc.fill_null(pc.invert(column), False).to_numpy()
                continue
            for row in np.flatnonzero(pc.is_valid(column).to_numpy() & ~refused):
                refused[row] = _refuses(event_of_row({name: column[int(row)].as_py()}, is_text=True))
        return refused

    def _one_by_one(self, batch: Batch, tally: Tally, records: Iterable[tuple[int, Any]]) -> list[dict[str, Any]]:
        good_rows: list[dict[str, Any]] = []
        accepted_ids: list[str] = []
        refusing = frozenset(self.refusing.to_pylist())
        for row, event in records:
            if isinstance(event, Mapping) and (_refuses(event) or _is_in(event.get("user_id"), refusing)):
                tally.not_stored += 1
                continue
            good, rejection = _checked(event, self.received_at)
            if rejection is not None:
                tally.quarantine(batch, row, rejection, self.received_at)
                continue
            assert good is not None
            tally.accepted += 1
            accepted_ids.append(good["event_id"])
            good_rows += [
                bronze_row(
                    one,
                    received_at=self.received_at,
                    source=batch.file.source,
                    source_position=int(batch.positions[row]),
                )
                for one in expand_items(good)
            ]
        if accepted_ids:
            tally.id_hashes.append(_hashes(pd.Series(accepted_ids)))
        return good_rows


def _checked(event: Any, received_at: datetime) -> tuple[dict[str, Any] | None, Rejection | None]:
    if isinstance(event, Unreadable):
        return None, Rejection(Reason.UNREADABLE, None, event.detail)
    return check_event(event, received_at=received_at)


def _refuses(event: Mapping[str, Any]) -> bool:
    consent = event.get("consent")
    return isinstance(consent, Mapping) and consent.get("store") is False


def _is_in(value: object, known: frozenset[str]) -> bool:
    return isinstance(value, str) and value in known


def _hashes(ids: pd.Series) -> NDArray[np.uint64]:
    return pd.util.hash_array(ids.to_numpy(object), categorize=False)


def _no_rows() -> pa.RecordBatch:
    schema = bronze_schema(EVENTS)
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)


def quarantine_batches(tally: Tally) -> list[pa.RecordBatch]:
    """The quarantined lines as rows of bronze.quarantine_import."""
    return pa.Table.from_pylist(tally.quarantine_rows, bronze_schema(QUARANTINE)).to_batches()
