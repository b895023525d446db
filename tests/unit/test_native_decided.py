"""Decisions as columns, by native code and by its twin: the same table, or the twin alone."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from feature_repo.contracts.decisions import FILE_HEADER, decision_row, read_decision, read_frames
from feature_repo.contracts.errors import ContractError
from serving.adapters.json_bytes import decode_json, encode_json, sorted_json
from serving.native import parts
from serving.speed import decision_columns
from serving.speed.decision_columns import DecisionTable
from serving.speed.delta_archive import DeltaArchive
from tests.conftest import ROOT

needs_native = pytest.mark.skipif(parts.decided is None, reason="native code is not compiled here")
SCHEMA = DeltaArchive("unused", "silver.decisions", tenant="default").schema
NOW = 1_709_902_800_000_250


def document(name: str = "d1", **changed: Any) -> dict[str, Any]:
    return {
        "v": 1, "id": name, "at": NOW, "kind": "recommendations", "placement": "home", "subject": "u:u1",
        "session": "00000000000000ff", "version": "2024-03-08-0a1b2c3d", "level": "personal", "reason": None,
        "degraded": [], "items": ["i9", "i1", "i4"], "numbers": [9, -1, 2147483647],
        "scores": [0.8414709848078965, 0.5, 1.25e-7], "sources": [3, 4, 16], "rules": [],
        "propensities": [1.0, 0.1, 1.0], "experiments": [],
        "inputs": {"num_results": 3, "tuning": "0a1b2c3d", "personalized": True}, **changed,
    }  # fmt: skip


AS_WRITTEN = [
    document(),
    document(subject="u:Zoë", version="größer", items=["ä", "日本", "\U0001f600"]),
    document(subject=None, session=None, reason="unknown_user", placement=None),
    document(degraded=["feature_stale", "log_slow"], level="static"),
    document(items=[], numbers=[], scores=[], sources=[], propensities=[]),
    document(at=0, items=["i"], numbers=[0], scores=[-0.0], sources=[1], propensities=[1e-300]),
    document(at=253_402_300_799_999_999, scores=[1e308 * 3e-271, 3.4028234e38, 5e-324]),
    document(inputs={"z": 1, "a": {"ü": 1.5, "b": [None, {"d": 1, "c": '\\ " \n'}]}, "big": 2**70}),
    document(inputs={}),
]
"""What an API worker may write: all of it is for native code."""

OTHERWISE = [
    document(rules=[["pin-1"], [], []]),
    document(experiments=[["e1", "b"]]),
    document(items=['"quoted"', "line\nbreak", "back\\slash"]),
    document(sources=[250, 3, 0]),
    document(scores=[1, 0.5, 0.25]),
    dict(reversed(document().items())),
    {**document(), "more": 1},
]
"""Decisions all the same; the twin reads them."""


def by_twin(payloads: list[bytes]) -> pa.Table:
    rows = [
        decision_row(read_decision(one, parse=decode_json), source="w.log", source_position=at, write=sorted_json)
        for at, one in enumerate(payloads)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def table_of(payloads: list[bytes], *, positions: list[int] | None = None) -> pa.Table:
    found = DecisionTable(SCHEMA)
    for at, one in zip(positions or range(len(payloads)), payloads, strict=True):
        found.add(one, source="w.log", source_position=at)
    assert len(found) == len(payloads)
    return found.table()


def test_one_row_by_hand() -> None:
    (row,) = table_of([encode_json(document(degraded=["feature_stale"]))]).to_pylist()
    assert row.pop("decided_at").isoformat() == "2024-03-08T13:00:00.000250+00:00"
    assert row.pop("decision_date").isoformat() == "2024-03-08"
    assert [round(score, 7) for score in row.pop("scores")] == [0.841471, 0.5, 1e-7]
    assert row == {
        "recommendation_id": "d1", "kind": "recommendations", "placement": "home", "subject_key": "u:u1",
        "session_hash": "00000000000000ff", "model_version": "2024-03-08-0a1b2c3d", "fallback_level": "personal",
        "fallback_reason": None, "degraded_reasons": ["feature_stale"], "item_ids": ["i9", "i1", "i4"],
        "item_numbers": [9, -1, 2147483647], "sources": ["als", "session", "given"], "rule_ids": [[], [], []],
        "propensities": [1.0, 0.1, 1.0], "experiment_ids": [], "arms": [],
        "inputs": '{"num_results":3,"personalized":true,"tuning":"0a1b2c3d"}', "source": "w.log", "source_position": 0,
    }  # fmt: skip


@needs_native
def test_what_workers_write_is_read_natively_and_the_same() -> None:
    payloads = [encode_json(one) for one in AS_WRITTEN]
    columns = parts.decided.DecisionColumns()
    assert [columns.add(one, b"w.log", at) for at, one in enumerate(payloads)] == [True] * len(payloads)
    found = table_of(payloads)
    found.validate(full=True)
    assert found.equals(by_twin(payloads))


@pytest.mark.parametrize("said", OTHERWISE)
def test_whatever_else_is_a_decision_is_read_by_the_twin(said: dict[str, Any]) -> None:
    good, odd = encode_json(AS_WRITTEN[0]), encode_json(said)
    if parts.decided is not None:
        assert not parts.decided.DecisionColumns().add(odd, b"w.log", 0)
    found = table_of([odd, good, json.dumps(said).encode(), good], positions=[0, 1, 2, 3])
    found.validate(full=True)
    assert found.sort_by("source_position").equals(by_twin([odd, good, odd, good]))


@needs_native
@pytest.mark.parametrize("said", [AS_WRITTEN[1], AS_WRITTEN[3], AS_WRITTEN[5]])
def test_damage_is_declined_or_means_the_same_and_leaves_nothing_behind(said: dict[str, Any]) -> None:
    """Each byte in turn: gone, twice, or another."""
    payload, good = encode_json(said), encode_json(document("good"))
    alone, taken = by_twin([good]), 0
    for at in range(len(payload) + 1):
        before, here, behind = payload[:at], payload[at : at + 1], payload[at + 1 :]
        for other in (b"", here + here, b"0", b"-", b'"', b",", b"]", b"}", b"\\", b"\x00", b"\xc3", b".", b"e", b" "):
            damaged = before + other + behind
            columns = parts.decided.DecisionColumns()
            rows = [damaged] if columns.add(damaged, b"w.log", 0) else []
            taken += len(rows)
            assert columns.add(good, b"w.log", len(rows))
            found = DecisionTable(SCHEMA)
            found._columns = columns
            assert found.table().equals(by_twin([*rows, good]) if rows else alone), damaged
    assert taken > 100  # of those with another word or number, and those that are as before


@pytest.mark.parametrize("is_native", [True, False])
def test_what_is_no_decision_is_refused_and_the_others_stay(is_native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_native:
        monkeypatch.setattr(decision_columns.parts, "decided", None)
    found = DecisionTable(SCHEMA)
    good = encode_json(document())
    found.add(good, source="w.log", source_position=0)
    for damage in (b"", b"{}", good[:-1], good.replace(b'"v":1', b'"v":2'), good.replace(b"[9,-1,", b"[9,")):
        with pytest.raises(ContractError):
            found.add(damage, source="w.log", source_position=1)
    found.add(good, source="w.log", source_position=1)
    assert found.table().equals(by_twin([good, good]))


def test_nothing_added_is_a_table_without_rows() -> None:
    found = DecisionTable(SCHEMA)
    assert (len(found), found.table().num_rows, found.table().schema) == (0, 0, SCHEMA)


def test_the_golden_file_is_read_the_same() -> None:
    data = (ROOT / "tests" / "golden" / "decisions_v1.log").read_bytes()[len(FILE_HEADER) :]
    payloads = [one for _, one in read_frames(data, 0).payloads]
    assert [decode_json(one)["v"] for one in payloads] == [1, 1]
    assert table_of(payloads).sort_by("source_position").equals(by_twin(payloads))
