"""The request-time ranker of a version: trees that order the best of an answer, as one file of a bundle.

`ranker.bin`, little-endian, every part at a multiple of four bytes:
    magic NJR1, u32 n items, u32 c columns, u32 bytes of what follows it
    JSON text {"depth", "learned", "trees"}, filled up with blanks. `trees` is LightGBM's text (`tree_text`), whose
    names of inputs say what a row is made of; `learned` says from how many people and rows
    f32 values[n * c]: row = item number, columns `item_columns` of the trees; NaN where a value is missing
Features of items are in it as Feast has them for the version's as_of, so no answer has to read a hundred of them. Those
of the person and of the person by category are read when they ask.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from feature_repo.contracts.errors import ContractError, nearest
from feature_repo.contracts.feature_table import FeatureView, feature_view
from feature_repo.contracts.publication import RANKER_FILE, canonical_json, little_endian
from feature_repo.contracts.tree_text import Trees, read_trees

MOST_DEPTH = 200
"""So many items an answer may put into another order."""

ANSWER_SCORE, ANSWER_RANK, LIST_SCORE, SESSION_VOTE, SESSION_WEIGHT = ANSWER_INPUTS = (
    "answer_score", "answer_rank", "list_score", "session_vote", "session_weight",
)  # fmt: skip
"""What a candidate has beside features: its score and place (from 0) in the answer without the trees, its score in the
list (missing when only the session brought it), the session's vote (0: none), and how loud the session is."""
USER_VIEW, ITEM_VIEW, CATEGORY_VIEW = (
    feature_view(name) for name in ("user_features", "item_features", "user_category_features")
)

_HEADER = struct.Struct("<4sIII")
_MAGIC = b"NJR1"


class RankerFile(NamedTuple):
    """What is in the file. `values` is a view into it, a row of `item_columns` for each item number."""

    depth: int
    learned: Mapping[str, Any]
    trees: Trees
    item_columns: Sequence[str]
    values: Sequence[float]


def number_features(view: FeatureView) -> list[str]:
    """The features of a view that are numbers: those that trees read."""
    return [feature.name for feature in view.features if feature.type in ("bigint", "double")]


def features_used(trees: Trees, view: FeatureView) -> list[str]:
    """Those of a view that a tree looks at, in the order of the trees' inputs."""
    known = set(number_features(view))
    return [name for name in trees.used if name in known]


def pack_ranker(text: str, *, depth: int, learned: Mapping[str, Any], items: int, values: array[float]) -> bytes:
    """The bytes of the file. `values`: of each item number the features that the trees look at (`features_used`).

    Raises ContractError when a part does not fit the others.
    """
    trees = read_trees(text)
    columns = features_used(trees, ITEM_VIEW)
    _check(trees, depth)
    if len(values) != items * len(columns):
        raise ContractError(f"{items:,} items with {len(columns)} features are not {len(values):,} values")
    said = canonical_json({"depth": depth, "learned": learned, "trees": text})
    said += b" " * (-len(said) % 4)
    return _HEADER.pack(_MAGIC, items, len(columns), len(said)) + said + little_endian(values)


def unpack_ranker(data: bytes | memoryview) -> RankerFile:
    """Inverse of `pack_ranker`; `data` may be a memory map. Raises ContractError when it is not a whole one, or asks
    for what no answer knows."""
    view = memoryview(data)
    if len(view) < _HEADER.size:
        raise ContractError(f"{RANKER_FILE} has at least {_HEADER.size} bytes, got {len(view)}")
    magic, items, columns, text_bytes = _HEADER.unpack_from(view)
    expected = _HEADER.size + text_bytes + 4 * items * columns
    if magic != _MAGIC or len(view) != expected or text_bytes % 4:
        raise ContractError(f"not a whole {RANKER_FILE}: magic {magic!r}, {len(view)} bytes, expected {expected}")
    at = _HEADER.size + text_bytes
    try:
        said = json.loads(bytes(view[_HEADER.size : at]))
        depth, learned, trees = said["depth"], said["learned"], read_trees(said["trees"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"{RANKER_FILE} does not say what it holds: {error!r}") from error
    except ContractError as error:
        raise ContractError(f"{RANKER_FILE}: {error}") from error
    _check(trees, depth)
    item_columns = features_used(trees, ITEM_VIEW)
    if len(item_columns) != columns:
        raise ContractError(f"{RANKER_FILE} has {columns} features of items, its trees look at {len(item_columns)}")
    if not items * columns:  # nothing cannot be cast
        return RankerFile(depth, learned, trees, item_columns, memoryview(array("f")))
    return RankerFile(depth, learned, trees, item_columns, view[at:].cast("f"))


def _check(trees: Trees, depth: Any) -> None:
    if type(depth) is not int or not 1 <= depth <= MOST_DEPTH:
        raise ContractError(f"{RANKER_FILE}: depth is a whole number from 1 to {MOST_DEPTH}, got {depth!r}")
    known = [
        *ANSWER_INPUTS,
        *(name for view in (USER_VIEW, ITEM_VIEW, CATEGORY_VIEW) for name in number_features(view)),
    ]
    for name in trees.used:
        if name not in known:
            raise ContractError(f"{RANKER_FILE}: no answer has an input {name!r}{nearest(name, known)}")
