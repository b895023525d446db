"""When two runs made the same tables: one hash per table, independent of file layout, row order and engine.

"Identical" means: the same rows without run ids and processing times, floating-point numbers rounded to 1e-5.
"""

from __future__ import annotations

import hashlib
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.tables import TABLES, TableSpec, table
from spark_jobs.io.light_delta import arrow_schema, open_table, stored_columns, with_missing

HASHED_LAYERS = ("silver.", "gold.")
_FLOAT_SCALE = 1e5
_BATCH_ROWS = 65_536
_NULL = pa.scalar(b"-", pa.large_binary())
_COLON = pa.scalar(b":", pa.large_binary())
_COMMA = pa.scalar(b",", pa.large_binary())
_NOTHING = pa.scalar(b"", pa.large_binary())
_DIGEST_BYTES = 16


def hash_tables(environment: Environment, as_of: date | None = None) -> dict[str, str]:
    """Table -> hash of every silver and gold table; see `hash_table`."""
    return {name: hash_table(environment, name, as_of) for name in sorted(TABLES) if name.startswith(HASHED_LAYERS)}


def hash_table(environment: Environment, name: str, as_of: date | None = None) -> str:
    """SHA-256 hex over a table's rows as a multiset.

    as_of None takes every row. A day takes what a run of that day makes: the partition `as_of` of a table that has
    one, event days (session days, first days of item numbers) before it otherwise.
    A column that the stored table does not have yet is null.
    Null, zero and the empty text differ; -0.0 is 0.0; NaN equals NaN. A missing table hashes like an empty one.
    """
    spec = table(name)
    columns = [column for column in spec.columns if column not in spec.volatile]
    digest = hashlib.sha256(repr([(column, spec.columns[column]) for column in columns]).encode())
    rows: list[bytes] = []
    found = open_table(environment, name)
    if found is not None:
        schema = pa.schema([arrow_schema(name).field(column) for column in columns])
        dataset = found.to_pyarrow_dataset()
        stored = stored_columns(found, columns)
        for batch in dataset.to_batches(columns=stored, filter=_of_run(spec, as_of), batch_size=_BATCH_ROWS):
            rows += _row_digests(with_missing(pa.table(batch), schema).combine_chunks())
    for row in sorted(rows):
        digest.update(row)
    return digest.hexdigest()


def _of_run(spec: TableSpec, as_of: date | None) -> pc.Expression | None:
    if as_of is None:
        return None
    if "as_of" in spec.columns:
        return pc.field("as_of") == as_of
    day_column = next(c for c in ("event_date", "session_date", "decision_date", "first_as_of") if c in spec.columns)
    return pc.field(day_column) <= as_of if day_column == "first_as_of" else pc.field(day_column) < as_of


def _row_digests(rows: pa.Table) -> list[bytes]:
    """One digest per row. A value is written as `<length>:<bytes>` and null as `-`, so no two rows look alike."""
    if rows.num_rows == 0:
        return []
    parts = [_length_prefixed(_as_bytes(_single_chunk(column))) for column in rows.columns]
    lines = pc.binary_join_element_wise(*parts, _NOTHING)
    return [hashlib.blake2b(line, digest_size=_DIGEST_BYTES).digest() for line in lines.to_pylist()]


def _single_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _as_bytes(values: pa.Array) -> pa.Array:
    """Each value as large_binary text; null stays null."""
    kind = values.type
    if pa.types.is_list(kind):
        elements = pc.fill_null(_as_bytes(values.flatten()), b"null")
        # flatten() skips what null lists cover, so offsets are built from the lengths
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int64())
        joined = pc.binary_join(pa.LargeListArray.from_arrays(offsets, elements), _COMMA)
        return pc.if_else(pc.is_null(values), pa.scalar(None, pa.large_binary()), joined)
    if pa.types.is_floating(kind):
        return rounded_texts(values)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return values.cast(pa.large_binary())
    if pa.types.is_timestamp(kind):
        values = values.cast(pa.int64())
    elif pa.types.is_date(kind):
        values = values.cast(pa.int32())
    return values.cast(pa.large_string()).cast(pa.large_binary())


def rounded_texts(values: pa.Array) -> pa.Array:
    """Numbers in steps of 1e-5 as integer text; what is too large for that, NaN and infinities as themselves."""
    numbers = np.asarray(pc.fill_null(values, 0.0).to_numpy(zero_copy_only=False), dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.rint(numbers * _FLOAT_SCALE)
    is_small = np.abs(steps) < 2.0**63  # not of NaN
    texts = pa.array(np.where(is_small, steps, 0).astype(np.int64)).cast(pa.large_string()).cast(pa.large_binary())
    if not is_small.all():
        odd = [repr(number).encode() for number in numbers[~is_small].tolist()]
        texts = pc.replace_with_mask(texts, pa.array(~is_small), pa.array(odd, pa.large_binary()))
    return pc.if_else(values.is_valid(), texts, pa.scalar(None, pa.large_binary()))


def _length_prefixed(values: pa.Array) -> pa.Array:
    lengths = pc.binary_length(values).cast(pa.large_string()).cast(pa.large_binary())
    return pc.fill_null(pc.binary_join_element_wise(lengths, values, _COLON), _NULL)
