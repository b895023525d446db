"""Versions, manifests and bundle files: golden bytes, inverses, and what the manifest's hash covers."""

from __future__ import annotations

import struct
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.publication import (
    Manifest,
    build_version,
    candidates_checksum,
    pack_neighbours,
    pack_version,
    parse_version,
    record_digest,
    unpack_neighbours,
    unpack_version,
)

GOLDEN = Path(__file__).parents[1] / "golden"
MANIFEST = Manifest(
    as_of="2024-03-08",
    model="als",
    recipe={"factors": 64, "half_life_days": 30},
    user_count=3,
    item_count=5,
    candidates_checksum="00000000000000ff",
    last_event_at="2024-03-07T23:59:59Z",
    files={"items.json": "ab"},
    volatile={"run_key": "r1"},
)


def test_a_version_has_an_inverse() -> None:
    version = build_version(date(2024, 3, 8), "1a2b3c4d5e6f")
    assert version == "2024-03-08-1a2b3c4d"
    assert parse_version(version) == (date(2024, 3, 8), "1a2b3c4d")
    assert unpack_version(*pack_version(version)) == version
    assert unpack_version(*pack_version("1969-12-31-0000000f")) == "1969-12-31-0000000f"


@pytest.mark.parametrize(
    "text", ["", "2024-03-08", "2024-03-08-1A2B3C4D", "2024-13-08-1a2b3c4d", "2024-03-08-1a2b3c4d5"]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ContractError, match="version"):
        parse_version(text)


def test_run_ids_do_not_change_the_version_but_contents_do() -> None:
    version = MANIFEST.version()
    assert replace(MANIFEST, volatile={"run_key": "r2"}).version() == version
    changed = [
        replace(MANIFEST, model="item_knn"),
        replace(MANIFEST, user_count=4),
        replace(MANIFEST, candidates_checksum="00000000000000fe"),
        replace(MANIFEST, files={"items.json": "ac"}),
        replace(MANIFEST, recipe={"factors": 64, "half_life_days": 31}),
    ]
    assert len({m.version() for m in changed} | {version}) == 6
    assert all(m.version().startswith("2024-03-08-") for m in changed)


def test_manifest_json_has_an_inverse_and_an_old_one_is_read() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    old = Manifest.from_json((GOLDEN / "manifest_v1.json").read_bytes())
    assert old == MANIFEST
    assert old.version() == "2024-03-08-" + (GOLDEN / "manifest_v1.sha256").read_text()[:8]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"as_of": "2024-03-08", "colour": 1}'])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ContractError, match="not a manifest"):
        Manifest.from_json(text)


def test_the_checksum_ignores_order_and_sees_every_byte() -> None:
    one, two = record_digest("u1", b"ab"), record_digest("u2", b"cd")
    assert candidates_checksum([one, two]) == candidates_checksum([two, one])
    assert candidates_checksum([2**64 - 1, 1, 2**63]) == "8000000000000000"
    assert len({one, record_digest("u1", b"ac"), record_digest("u1a", b"b"), record_digest("u", b"1ab")}) == 4


def test_neighbours_by_hand() -> None:
    data = pack_neighbours([[(2, 0.5), (1, 0.25)], [], [(0, 0.5)]])
    assert data == b"NJN1" + struct.pack("<II4I3I3f", 3, 3, 0, 2, 2, 3, 2, 1, 0, 0.5, 0.25, 0.5)
    offsets, numbers, similarities = unpack_neighbours(data)
    assert (list(offsets), list(numbers), list(similarities)) == ([0, 2, 2, 3], [2, 1, 0], [0.5, 0.25, 0.5])


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"NJN2" + d[4:], lambda d: d[:3], lambda d: d + b"\0"])
def test_damaged_neighbours_are_refused(damage: object) -> None:
    with pytest.raises(ContractError, match=r"neighbours\.bin"):
        unpack_neighbours(damage(pack_neighbours([[(0, 1.0)]])))
