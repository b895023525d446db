"""A published version: its name, its manifest and the files that serving holds in memory.

Version name: `<as_of>-<first 8 hex of the manifest's SHA-256>`, e.g. `2024-03-08-1a2b3c4d`. The hash covers
everything the manifest says (counts, checksums, file hashes, recipe, as_of) except run ids, so two runs that made
the same lists have the same version.

Bundle, in `<publications>/<tenant>/<version>/`:
    manifest.json    `Manifest.to_json()`
    items.json       columns of equal length: item_number, item_id, title, category, price, currency, availability,
                     available_quantity, created_at, url, image_url, is_hidden. Numbers are ascending; gaps are allowed.
                     Columns that may follow, each null where an item has none: expire_time (RFC 3339; serving leaves
                     expired items out), brand, group_id, language, tags (lists of texts), attributes (JSON texts of
                     objects). A bundle without them is as good; filters then find no such thing on any item.
    neighbours.bin   magic NJN1, u32 n, u32 m; u32 offsets[n+1]; u32 neighbour numbers[m]; f32 similarities[m]
                     (row = item number; each row best first, ties by number)
    popular.json     {"all": L, "by_category": {category: L}, "by_region": {region: L}, "static": L} where L is
                     [[item_number, score], ...], best first; `by_category` has every prefix of "A > B" paths
May be there, and is when the manifest names it:
    session_index.bin  what comes next in sessions (`contracts.session_index`); without it sessions are served from
                     the neighbours
    together.bin     what is bought together, as neighbours.bin: with each item those of the same baskets
    ranker.bin       trees that order the best of an answer when it is asked for (`contracts.ranker_file`)
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from typing import Any

from feature_repo.contracts.errors import ContractError

WARM_VERSIONS = 3
"""How many versions, the served one included, stay in Redis and on disk for an instant rollback."""

MANIFEST_FILE = "manifest.json"
ITEMS_FILE = "items.json"
NEIGHBOURS_FILE = "neighbours.bin"
POPULAR_FILE = "popular.json"
SESSION_INDEX_FILE = "session_index.bin"
BUNDLE_FILES = (ITEMS_FILE, NEIGHBOURS_FILE, POPULAR_FILE)
"""What every bundle has."""
TOGETHER_FILE = "together.bin"
RANKER_FILE = "ranker.bin"
LATER_FILES = (SESSION_INDEX_FILE, TOGETHER_FILE, RANKER_FILE)
"""What a bundle has if its manifest names it."""
PURCHASES_PART = "purchases"

_EPOCH = date(1970, 1, 1)
_VERSION = re.compile(r"(\d{4}-\d{2}-\d{2})-([0-9a-f]{8})")


def build_version(as_of: date, manifest_hash: str) -> str:
    """`<as_of>-<8 hex>`. Inverse: `parse_version`."""
    version = f"{as_of.isoformat()}-{manifest_hash[:8]}"
    parse_version(version)
    return version


def parse_version(version: str) -> tuple[date, str]:
    """(as_of, 8 hex). Raises ContractError when it is not a version name."""
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ContractError(f"a version looks like 2024-03-08-1a2b3c4d, got {version!r}")
    try:
        return date.fromisoformat(match[1]), match[2]
    except ValueError as error:
        raise ContractError(f"a version starts with a day, got {version!r}") from error


def pack_version(version: str) -> tuple[int, int]:
    """(days since 1970-01-01, hash as a number): the eight bytes that every packed record carries."""
    as_of, manifest_hash = parse_version(version)
    return (as_of - _EPOCH).days, int(manifest_hash, 16)


def unpack_version(days: int, manifest_hash: int) -> str:
    """Inverse of `pack_version`."""
    return build_version(_EPOCH + timedelta(days=days), f"{manifest_hash:08x}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a version is made of. Times are RFC 3339 UTC texts; `as_of` is a day.

    `files` maps bundle file name to SHA-256 hex. `candidates_checksum` is `candidates_checksum(...)` over all users.
    `volatile` (run ids, and `published_at`, RFC 3339) is not part of the hash.
    `parts` says what else is published for each user, by name, with counts, checksum and parameters; a manifest without
    any has the hash and the text that it had before there were parts.
    """

    as_of: str
    model: str
    recipe: Mapping[str, Any]
    user_count: int
    item_count: int
    candidates_checksum: str
    last_event_at: str | None
    files: Mapping[str, str] = field(default_factory=dict)
    volatile: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def hash(self) -> str:
        """SHA-256 hex over the canonical JSON of everything but `volatile`."""
        body = self._document()
        del body["volatile"]
        return hashlib.sha256(canonical_json(body)).hexdigest()

    def version(self) -> str:
        """The name this manifest publishes under."""
        return build_version(date.fromisoformat(self.as_of), self.hash())

    def to_json(self) -> str:
        """Text of manifest.json. Inverse: `from_json`."""
        return json.dumps(self._document(), indent=1, sort_keys=True, ensure_ascii=False)

    def _document(self) -> dict[str, Any]:
        document = asdict(self)
        if not self.parts:
            del document["parts"]
        return document

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Raises ContractError on text that is no manifest."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ContractError(f"not a manifest: {error}") from error


def bundle_names(manifest: Manifest) -> tuple[str, ...]:
    """The files of this manifest's bundle."""
    return (*BUNDLE_FILES, *(name for name in LATER_FILES if name in manifest.files))


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8: the one form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def candidates_checksum(record_digests: Sequence[int]) -> str:
    """One checksum over all users' records, in any order: 16 hex of the sum (mod 2^64) of `record_digest`."""
    return f"{sum(record_digests) % 2**64:016x}"


def record_digest(user_id: str, payload: bytes) -> int:
    """64 bits of a user's record *without* its header (the header holds the version, which depends on this)."""
    raw = user_id.encode("utf-8")
    return int.from_bytes(
        hashlib.blake2b(len(raw).to_bytes(4, "little") + raw + payload, digest_size=8).digest(), "little"
    )


_NEIGHBOURS_HEADER = struct.Struct("<4sII")
_MAGIC = b"NJN1"


def pack_neighbours(rows: Sequence[Sequence[tuple[int, float]]]) -> bytes:
    """neighbours.bin from rows indexed by item number: each a list of (neighbour number, similarity), best first."""
    offsets, numbers, similarities = array("I", [0]), array("I"), array("f")
    for row in rows:
        for number, similarity in row:
            numbers.append(number)
            similarities.append(similarity)
        offsets.append(len(numbers))
    header = _NEIGHBOURS_HEADER.pack(_MAGIC, len(rows), len(numbers))
    return header + little_endian(offsets) + little_endian(numbers) + little_endian(similarities)


def unpack_neighbours(data: bytes | memoryview) -> tuple[memoryview[int], memoryview[int], memoryview[float]]:
    """(offsets u32[n+1], numbers u32[m], similarities f32[m]) as views into `data`, which may be a memory map."""
    view = memoryview(data)
    if len(view) < _NEIGHBOURS_HEADER.size:
        raise ContractError(f"neighbours.bin has at least {_NEIGHBOURS_HEADER.size} bytes, got {len(view)}")
    magic, n, m = _NEIGHBOURS_HEADER.unpack_from(view)
    expected = _NEIGHBOURS_HEADER.size + 4 * (n + 1) + 8 * m
    if magic != _MAGIC or len(view) != expected:
        raise ContractError(f"not a whole neighbours.bin: magic {magic!r}, {len(view)} bytes, expected {expected}")
    at = _NEIGHBOURS_HEADER.size
    offsets = view[at : at + 4 * (n + 1)].cast("I")
    at += 4 * (n + 1)
    return offsets, view[at : at + 4 * m].cast("I"), view[at + 4 * m :].cast("f")


def little_endian(values: array[Any]) -> bytes:
    """The bytes of a column, whatever machine this is."""
    if sys.byteorder == "big":
        values = array(values.typecode, values)
        values.byteswap()
    return values.tobytes()
