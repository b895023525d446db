"""Features by native code and by its twin: the same rows, keys and commands, of messages whole and damaged."""

from __future__ import annotations

import struct

import pytest
from feast.protos.feast.types.Value_pb2 import Null, Value
from hypothesis import example, given
from hypothesis import strategies as st

from feature_repo.contracts.errors import ContractError
from serving.adapters.feast_online import PROJECT, entity_key, key_head
from serving.adapters.feature_rows import FeatureRow, Reply, _rows_of, commands_of, keys_of, rows_of
from serving.adapters.redis_pipe import pack
from serving.native import described, parts

pytestmark = pytest.mark.skipif(parts.features is None, reason=f"serving answers from {described()}")

NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, 127, 128, 2**31, 2**63 - 1, -1, -(2**63)])
VALUES = st.one_of(
    NUMBERS.map(lambda n: Value(int64_val=n)),
    st.integers(-(2**31), 2**31 - 1).map(lambda n: Value(int32_val=n)),
    st.floats().map(lambda x: Value(double_val=x)),
    st.floats(width=32).map(lambda x: Value(float_val=x)),
    st.booleans().map(lambda b: Value(bool_val=b)),
    st.text(max_size=200).map(lambda t: Value(string_val=t)),
    st.sampled_from([Value(), Value(null_val=Null.NULL), Value(bytes_val=b"x")]),
).map(lambda value: value.SerializeToString())
DAMAGED = st.tuples(VALUES, st.integers(0, 12), st.binary(max_size=2)).map(lambda t: t[0][: t[1]] + t[2])
MESSAGES = st.none() | VALUES | VALUES | VALUES | DAMAGED | st.binary(max_size=12)
TIMES = st.sampled_from(
    [b"\x08\x05", b"\x08\x06", b"\x08\x80\xd7\xaa\xaf\x06", b"\x08\x80\xd7\xaa\xaf\x06\x10\x88\x27", b"\x10\x80\x10",
     b"", None, b"\x10\xff\x07\x08\x05", b"\x08" + b"\xff" * 9 + b"\x01", b"\x08\x80", b"\x08\x05\x08\x06",
     b"\x1a\x01x"]
)  # fmt: skip


def outcome(rows: list[FeatureRow]) -> list[tuple[tuple[type, object], ...]]:
    """With types and bits: NaN is itself, and 1 is not True."""
    return [
        tuple((type(value), struct.pack("<d", value) if isinstance(value, float) else value) for value in row)
        for row in rows
    ]


@given(st.lists(st.tuples(MESSAGES, MESSAGES, TIMES).map(list), max_size=6))
@example([[Value(int64_val=-300).SerializeToString(), None, b"\x08\x05"], [b"\x20\x80", b"", None]])
@example([[b"\x20" + b"\xff" * 9 + b"\x02", None, b"\x08\x05"]])  # more than 64 bits
@example([[b"\x12\x02\xff\xfe", None, b"\x08\x05"]])  # no UTF-8
def test_rows_are_those_of_the_twin(replies: list[Reply]) -> None:
    found = parts.features.rows_of(replies, 2)
    try:
        expected = _rows_of(replies)
    except ContractError:
        assert found is None
        with pytest.raises(ContractError):
            rows_of(replies, 2)
    else:
        if found is not None:
            assert outcome(found) == outcome(expected)
        assert outcome(rows_of(replies, 2)) == outcome(expected)


@given(st.lists(st.tuples(VALUES, VALUES, TIMES.filter(lambda t: t in (b"\x08\x05", b"\x08\x06", None))).map(list)))
def test_nothing_ordinary_is_left_to_the_twin(replies: list[Reply]) -> None:
    has_other = any(message[:1] == b"\x0a" for reply in replies for message in reply[:2] if message and reply[2])
    assert (parts.features.rows_of(replies, 2) is None) is has_other


def test_replies_that_are_no_rows_are_left_to_the_twin() -> None:
    for replies in ([[b"\x20\x05"]], [[b"\x20\x05", b"\x08\x05", None]], [None], [b"x"], [["a", "b"]]):
        assert parts.features.rows_of(replies, 1) is None
    assert parts.features.rows_of([], 1) == []
    assert parts.features.rows_of([[b"\x08\x05"]], 0) == [(5_000_000,)]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=4), st.integers(1, 2))
def test_keys_and_commands_are_those_of_the_twin(entities: list[tuple[str, str]], count: int) -> None:
    names = ("user_id", "category")[:count]
    keys = parts.features.keys_of(*key_head(names), PROJECT.encode(), [entity[:count] for entity in entities])
    assert keys == keys_of(names, entities) == [entity_key(names, entity[:count]) for entity in entities]
    packed = parts.features.commands_of(keys, b"$1\r\na\r\n$2\r\nbc\r\n", 4)
    assert packed == commands_of(keys, b"$1\r\na\r\n$2\r\nbc\r\n", 4)
    assert packed == b"".join(pack("HMGET", key, b"a", b"bc") for key in keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "features", None)
        assert keys_of(names, [entity[:count] for entity in entities]) == keys
        assert commands_of(keys, b"$1\r\na\r\n$2\r\nbc\r\n", 4) == packed
    with pytest.raises(UnicodeEncodeError):
        keys_of(names, [("\ud800", "x")])
