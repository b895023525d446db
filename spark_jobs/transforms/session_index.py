"""The session index of a version: the sessions it is made of, and its bytes. Format: `contracts.session_index`."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.packing import session_hash
from feature_repo.contracts.session_index import pack_session_index
from feature_repo.contracts.times import to_micros
from spark_jobs.models.factory import build_sequence_model
from spark_jobs.models.sequences import Sequences
from spark_jobs.models.session_transitions import ItemLists, SessionTransitions

COLUMNS = ("session", "item_number", "micros")


def sessions_of(interactions: pa.Table) -> pa.Table:
    """What was done in sessions, in no order. Nobody is named.

    interactions  as `io.interactions.read_interactions` gives them: of whom allows training only, and of no bot

    Returns session int64 (64 bits that stand for the session key, the same in every night), item_number int32, micros
    int64 (us since 1970 UTC): 20 bytes an event.
    """
    is_known = pc.and_(pc.is_valid(interactions["session_key"]), pc.is_valid(interactions["item_number"]))
    rows = interactions.filter(is_known)
    keys = rows["session_key"].combine_chunks()
    if isinstance(keys, pa.ChunkedArray):  # pyarrow keeps an empty column chunked
        return pa.table({name: pa.array([], pa.int32() if name == "item_number" else pa.int64()) for name in COLUMNS})
    bits = np.array([session_hash(key) for key in keys.dictionary.to_pylist()], dtype=np.uint64).astype(np.int64)
    columns = (pa.array(bits[np.asarray(keys.indices)]), rows["item_number"], rows["micros"])
    return pa.table(dict(zip(COLUMNS, columns, strict=True)))


def session_sequences(table: pa.Table, *, item_count: int, cut_off: datetime) -> Sequences:
    """One sequence a session, the session that began first in front; ties of sessions by their number. Weights are all
    1: in a session places count, not what was done there.

    What happened at one moment, as the lines of an order do, has no order: it gets one that says nothing, the same in
    every night. In order of item numbers a model would learn that numbers rise.
    """
    sessions, items, micros = (np.asarray(table[name].combine_chunks()) for name in COLUMNS)
    order = np.lexsort((items, scattered(sessions, items), micros, sessions))
    sessions, items, micros = sessions[order], items[order], micros[order]
    first = np.flatnonzero(np.r_[True, sessions[1:] != sessions[:-1]]) if len(order) else np.empty(0, np.int64)
    lengths = np.diff(np.r_[first, len(order)])
    by_begin = np.lexsort((sessions[first], micros[first]))
    starts = np.r_[0, np.cumsum(lengths[by_begin])].astype(np.int64)
    place = np.arange(len(order)) - np.repeat(starts[:-1] - first[by_begin], lengths[by_begin])
    return Sequences(
        starts,
        items[place].astype(np.int32),
        np.ones(len(order), np.float32),
        micros[place].astype(np.int64),
        item_count,
        to_micros(cut_off),
    )


def scattered(sessions: NDArray[np.int64], items: NDArray[np.int32]) -> NDArray[np.uint64]:
    """64 bits that depend on session and item, and on nothing else: an order of what has none."""
    mixed = sessions.astype(np.uint64) ^ (items.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(27))


def fit_session_index(recipe: Mapping[str, Any], sequences: Sequences, eligible: NDArray[np.bool_]) -> ItemLists:
    """What each item leads to, by the recipe of `session_transitions`; eligible items alone, from every item."""
    model = build_sequence_model(recipe["model"], recipe["params"])
    assert isinstance(model, SessionTransitions)
    model.fit(sequences)
    return model.lists.among(eligible)


def session_index_bytes(recipe: Mapping[str, Any], lists: ItemLists, *, session_count: int) -> bytes:
    """session_index.bin."""
    said = {"model": recipe["model"], "params": dict(recipe["params"]), "sessions": session_count}
    return pack_session_index(
        said,
        array("I", lists.offsets.astype(np.uint32).tobytes()),
        array("I", lists.numbers.astype(np.uint32).tobytes()),
        array("f", lists.weights.astype(np.float32).tobytes()),
    )


def session_index_table(lists: ItemLists, as_of_day: Any) -> pa.Table:
    """Rows of gold.session_index: one for every item that leads to anything."""
    known = np.flatnonzero(np.diff(lists.offsets))
    offsets = pa.array(np.r_[0, lists.offsets[known + 1]].astype(np.int32))
    return pa.table(
        {
            "item_number": pa.array(known.astype(np.int32)),
            "next_numbers": pa.ListArray.from_arrays(offsets, pa.array(lists.numbers)),
            "weights": pa.ListArray.from_arrays(offsets, pa.array(lists.weights)),
            "as_of": pa.array([as_of_day] * len(known), pa.date32()),
        }
    )
