"""A small published version, for benches that need answers but no night: made with the contracts alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import redis

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import DEFAULT_TENANT, candidates_key, pointer_key
from feature_repo.contracts.packing import PackedCandidate, Source, pack_candidates
from feature_repo.contracts.publication import (
    ITEMS_FILE,
    MANIFEST_FILE,
    NEIGHBOURS_FILE,
    POPULAR_FILE,
    Manifest,
    pack_neighbours,
)

ITEMS = 1_000
NEIGHBOURS = 20
CANDIDATES = 100
_AS_OF = "2024-03-08"


def favourite_of(person: int) -> int:
    """The item at the top of a person's list; its id is `i<number>`."""
    return person * 37 % ITEMS


def publish_small_version(environment: Environment, online: redis.Redis, *, people: int, prefix: str = "i") -> str:
    """Publish a version with a list of 100 candidates for each of `u0`, `u1` ...; its name. Item ids begin with
    `prefix`."""
    scores = [[number, float(ITEMS - number)] for number in range(ITEMS)]
    columns: dict[str, list[Any]] = {
        "item_number": list(range(ITEMS)),
        "item_id": [f"{prefix}{number}" for number in range(ITEMS)],
        "title": [f"Item {number}" for number in range(ITEMS)],
        "category": [f"C{number % 10}" for number in range(ITEMS)],
        "price": [float(number % 90 + 10) for number in range(ITEMS)],
        "currency": ["GBP"] * ITEMS,
        "availability": ["IN_STOCK"] * ITEMS,
        "available_quantity": [None] * ITEMS,
        "created_at": [None] * ITEMS,
        "url": [None] * ITEMS,
        "image_url": [None] * ITEMS,
        "is_hidden": [False] * ITEMS,
    }
    near = [
        [((number + step * 13) % ITEMS, 1.0 / step) for step in range(1, NEIGHBOURS + 1)] for number in range(ITEMS)
    ]
    files = {
        ITEMS_FILE: json.dumps(columns).encode(),
        NEIGHBOURS_FILE: pack_neighbours(near),
        POPULAR_FILE: json.dumps({"all": scores, "by_category": {}, "by_region": {}, "static": scores[:50]}).encode(),
    }
    manifest = Manifest(
        as_of=_AS_OF, model="bench", recipe={}, user_count=people, item_count=ITEMS, candidates_checksum="0" * 16,
        last_event_at=None, files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )  # fmt: skip
    version = manifest.version()
    folder = Path(environment.publications) / DEFAULT_TENANT / version
    folder.mkdir(parents=True)
    for name, data in {**files, MANIFEST_FILE: manifest.to_json().encode()}.items():
        (folder / name).write_bytes(data)
    with online.pipeline(transaction=False) as pipe:
        for person in range(people):
            rows = [
                PackedCandidate((favourite_of(person) + 7 * rank) % ITEMS, 1.0 - rank / CANDIDATES, Source.ALS)
                for rank in range(CANDIDATES)
            ]
            pipe.set(candidates_key(version, f"u{person}"), pack_candidates(version, rows))
        pipe.set(pointer_key(), version)
        pipe.execute()
    return version
