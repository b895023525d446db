"""Decisions on their way into silver.decisions: columns where native code can read them, else rows of the contract.

What API workers write has one form, and its columns can be filled as it is read. A row of Python values costs over ten
times as much, most of it on the way from rows to columns.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from feature_repo.contracts.decisions import decision_row, read_decision
from serving.adapters.json_bytes import decode_json, sorted_json
from serving.native import parts

_NUMBERS = {
    "decided_at": pa.timestamp("us", tz="UTC"), "source_position": pa.int64(), "decision_date": pa.date32(),
}  # fmt: skip
_NUMBERS_OF_ITEMS = {"item_numbers": pa.int32(), "scores": pa.float32(), "propensities": pa.float64()}
_TEXTS_OF_ITEMS = ("item_ids", "sources")


class DecisionTable:
    """The decisions of one commit. First those that native code has read, in their order, then the others."""

    def __init__(self, schema: pa.Schema) -> None:
        """`schema`: of silver.decisions."""
        self._schema = schema
        self._columns = None if parts.decided is None else parts.decided.DecisionColumns()
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._rows) + (0 if self._columns is None else len(self._columns))

    def add(self, payload: bytes, *, source: str, source_position: int) -> None:
        """One more decision. Raises ContractError when it is none."""
        if self._columns is None or not self._columns.add(payload, source.encode(), source_position):
            document = read_decision(payload, parse=decode_json)
            self._rows.append(decision_row(document, source=source, source_position=source_position, write=sorted_json))

    def table(self) -> pa.Table:
        """All that were added."""
        rows = pa.Table.from_pylist(self._rows, schema=self._schema)
        if self._columns is None or not len(self._columns):
            return rows
        columns = _arrays(self._columns.taken(), len(self._columns))
        found = pa.table([columns[name] for name in self._schema.names], schema=self._schema)
        return pa.concat_tables([found, rows]) if self._rows else found


def _arrays(taken: Any, rows: int) -> dict[str, pa.Array]:
    """What `decided` has taken, as Arrow arrays by column."""
    items = taken["item_ids"][0]
    at, none = _numbers(taken["item_offsets"], pa.int32(), rows + 1), pa.array([0] * (rows + 1), pa.int32())
    no_texts = pa.array([], pa.string())
    no_rules = pa.ListArray.from_arrays(pa.array([0] * (items + 1), pa.int32()), no_texts)
    degraded_at = _numbers(taken["degraded_offsets"], pa.int32(), rows + 1)
    found = {name: _texts(*value) for name, value in taken.items() if isinstance(value, tuple)}
    found |= {name: _numbers(taken[name], kind, rows) for name, kind in _NUMBERS.items()}
    for name, kind in _NUMBERS_OF_ITEMS.items():
        found[name] = pa.ListArray.from_arrays(at, _numbers(taken[name], kind, items))
    for name in _TEXTS_OF_ITEMS:
        found[name] = pa.ListArray.from_arrays(at, found[name])
    found["degraded_reasons"] = pa.ListArray.from_arrays(degraded_at, found["degraded_reasons"])
    found["rule_ids"] = pa.ListArray.from_arrays(at, no_rules)
    found["experiment_ids"] = found["arms"] = pa.ListArray.from_arrays(none, no_texts)
    return found


def _numbers(data: bytes, kind: pa.DataType, count: int) -> pa.Array:
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(data)])


def _texts(count: int, nulls: int, validity: bytes, offsets: bytes, data: bytes) -> pa.Array:
    buffers = [pa.py_buffer(validity) if nulls else None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), count, buffers, nulls)
