"""Interactions as arrow columns, and the preference matrix that models learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.times import to_micros
from spark_jobs.models.base import InteractionMatrix

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("subject_key", "item_number", "event_type", "micros")

MICROS_PER_DAY = 86_400_000_000

LEAST_PREFERENCE = 1e-6
"""A pair that happened never fades to nothing: it stays in the matrix, so that it counts as seen."""


def numbered_interactions(table: pa.Table) -> pa.Table:
    """Of what `io.interactions.read_interactions` gives the columns COLUMNS, sorted as `sort_interactions` does.

    Raises DataError when an item has no number yet: an interaction is never dropped.
    """
    unnumbered = table["item_number"].null_count
    if unnumbered:
        raise DataError(
            f"{unnumbered:,} of {table.num_rows:,} interactions are about items without a number in gold.item_ids; "
            "build_features numbers them: run it first",
            field="item_number",
        )
    return sort_interactions(table)


def sort_interactions(table: pa.Table | pd.DataFrame) -> pa.Table:
    """The four columns in their types, sorted. Equal inputs in any order give equal tables."""
    if not isinstance(table, pa.Table):
        table = pa.Table.from_pandas(table, preserve_index=False)
    missing = [c for c in COLUMNS if c not in table.column_names]
    if missing:
        raise ContractError(f"interactions need the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    nulls = {c: table[c].null_count for c in COLUMNS if table[c].null_count}
    if nulls:
        raise DataError(f"interactions must not have nulls, found {nulls}", field=next(iter(nulls)))
    subjects, subject_codes = _coded(table["subject_key"])
    types, type_codes = _coded(table["event_type"])
    items = np.asarray(table["item_number"].combine_chunks().cast(pa.int32()))
    micros = np.asarray(table["micros"].combine_chunks().cast(pa.int64()))
    keys = (subject_codes, items, micros, type_codes)
    order = slice(None) if _is_sorted(keys) else np.lexsort(keys[::-1])
    return pa.table(
        {
            "subject_key": pa.DictionaryArray.from_arrays(pa.array(subject_codes[order]), subjects),
            "item_number": pa.array(items[order]),
            "event_type": pa.DictionaryArray.from_arrays(pa.array(type_codes[order]), types),
            "micros": pa.array(micros[order]),
        }
    )


def _is_sorted(keys: Sequence[NDArray[np.integer]]) -> bool:
    """Whether rows are in the order of these columns, the first being the one that decides most. It is asked often, and
    of millions of rows told in a fraction of what sorting them again takes."""
    is_same = np.ones(max(0, len(keys[0]) - 1), bool)
    for key in keys:
        before, after = key[:-1], key[1:]
        if (is_same & (after < before)).any():
            return False
        is_same &= after == before
    return True


def _coded(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int32]]:
    """(the distinct values that occur, sorted; their index for each row)."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # pyarrow keeps an empty column chunked
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    words, codes = array.dictionary.cast(pa.string()), np.asarray(array.indices).astype(np.int64)
    used = np.flatnonzero(np.bincount(codes, minlength=len(words)))
    used_words = words.take(pa.array(used))
    order = np.asarray(pc.sort_indices(used_words))
    place = np.zeros(len(words) + 1, np.int32)
    place[used[order]] = np.arange(len(used), dtype=np.int32)
    return used_words.take(pa.array(order)), place[codes]


def build_matrix(
    table: pa.Table | pd.DataFrame,
    *,
    item_count: int,
    weights: Mapping[str, float],
    half_life_days: float | None,
    cut_off: datetime,
) -> InteractionMatrix:
    """Preference of every (subject, item): the sum over its events of weight * 2^(-age / half-life).

    Grain: one row of `table` is one event (columns `COLUMNS`, any order). Age is counted from `cut_off`; an event at or
    after it is left out. An event type without a positive weight is left out. `half_life_days` None means no decay.
    A subject left without events has no row. A preference is never below LEAST_PREFERENCE.

    Raises DataError when an item number is outside [0, item_count), or when a weight or the half-life makes no sense.
    """
    if half_life_days is not None and not half_life_days > 0:
        raise DataError(f"half_life_days must be positive or null, got {half_life_days}", field="half_life_days")
    if not all(np.isfinite(w) and w >= 0 for w in weights.values()):
        raise DataError(f"event weights must be finite and >= 0, got {dict(weights)}", field="weights")
    table = sort_interactions(table)
    items = np.asarray(table["item_number"].combine_chunks())
    outside = int(((items < 0) | (items >= item_count)).sum())
    if outside:
        raise DataError(
            f"{outside:,} of {len(items):,} interactions have an item number outside 0..{item_count - 1} "
            f"(seen {items.min()}..{items.max()})",
            field="item_number",
        )
    micros = np.asarray(table["micros"].combine_chunks())
    subjects, subject_codes = _coded(table["subject_key"])
    types, type_codes = _coded(table["event_type"])
    type_weights = np.array([float(weights.get(t, 0.0)) for t in types.to_pylist()] or [0.0])
    age_days = (to_micros(cut_off) - micros) / MICROS_PER_DAY
    decay = 1.0 if half_life_days is None else np.exp2(-age_days / half_life_days)
    values = type_weights[type_codes] * decay

    keep = (type_weights[type_codes] > 0) & (age_days > 0)
    rows, items, micros, values = subject_codes[keep].astype(np.int64), items[keep], micros[keep], values[keep]
    is_new = np.diff(rows, prepend=-1) > 0  # sorted, so whoever is left comes in one stretch
    known, rows = rows[is_new], np.cumsum(is_new) - 1
    pair = rows * item_count + items  # the table is sorted, so this is too
    first = np.flatnonzero(np.r_[True, pair[1:] != pair[:-1]]) if len(pair) else np.empty(0, np.int64)
    if len(first) == 0:
        data, last = np.empty(0), np.empty(0, np.int64)
    else:
        data, last = np.add.reduceat(values, first), np.maximum.reduceat(micros, first)
    indptr = np.searchsorted(rows[first], np.arange(len(known) + 1))
    preference = sparse.csr_matrix(
        (np.maximum(data, LEAST_PREFERENCE).astype(np.float32), items[first].astype(np.int32), indptr.astype(np.int32)),
        shape=(len(known), item_count),
    )
    names = np.array(subjects.take(pa.array(known)).to_pylist(), dtype=np.str_)
    return InteractionMatrix(subjects=names, preference=preference, last_micros=last)


def distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each value once, ascending, as np.unique has it, which takes many times as long for millions of numbers."""
    ordered = np.sort(values)
    return ordered[np.r_[True, ordered[1:] != ordered[:-1]]] if len(ordered) else ordered


def matrix_rows(matrix: InteractionMatrix, subjects: NDArray[np.str_]) -> NDArray[np.int64]:
    """The row of each subject in the matrix, -1 for one that it does not have."""
    if len(matrix.subjects) == 0:
        return np.full(len(subjects), -1, np.int64)
    place = np.minimum(np.searchsorted(matrix.subjects, subjects), len(matrix.subjects) - 1)
    return np.where(matrix.subjects[place] == subjects, place, -1).astype(np.int64)


def histories_of(matrix: InteractionMatrix, rows: NDArray[np.int64]) -> sparse.csr_matrix:
    """The histories of matrix rows; an empty one for -1."""
    return pick_rows(matrix.preference, rows)


def dense_part(
    found: sparse.csr_matrix, rows: NDArray[np.integer], columns: NDArray[np.integer]
) -> NDArray[np.float64]:
    """`found[rows][:, columns].toarray()` in a tenth of the time, for the few of one person; either may repeat."""
    starts, ends = found.indptr[rows], found.indptr[np.asarray(rows) + 1]
    lengths = ends - starts
    place = np.arange(int(lengths.sum())) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    wanted, own = np.unique(columns, return_inverse=True)
    part = np.zeros((len(starts), len(wanted)))
    if len(wanted) and len(place):
        listed = found.indices[place]
        at = np.minimum(np.searchsorted(wanted, listed), len(wanted) - 1)
        hit = wanted[at] == listed
        part[np.repeat(np.arange(len(starts)), lengths)[hit], at[hit]] = found.data[place[hit]]
    return part[:, own]


def link_values(
    found: sparse.csr_matrix, rows: NDArray[np.integer], columns: NDArray[np.integer]
) -> NDArray[np.float64]:
    """found[rows[n], columns[n]] for each n; 0 where nothing is stored."""
    return np.asarray(found[rows, columns], dtype=np.float64).ravel()


def pick_rows(preference: sparse.csr_matrix, rows: NDArray[np.int64]) -> sparse.csr_matrix:
    """These rows, in their order; an empty one for -1."""
    known = rows >= 0
    if known.all():
        return preference[rows]
    picked = sparse.csr_matrix(
        (np.ones(int(known.sum()), np.float32), (np.flatnonzero(known), rows[known])),
        shape=(len(rows), preference.shape[0]),
    )
    return (picked @ preference).tocsr()
