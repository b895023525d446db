"""Small published versions for the serving tests, built with the contracts alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from feature_repo.contracts.publication import (
    ITEMS_FILE,
    MANIFEST_FILE,
    NEIGHBOURS_FILE,
    POPULAR_FILE,
    SESSION_INDEX_FILE,
    TOGETHER_FILE,
    Manifest,
    pack_neighbours,
)
from feature_repo.contracts.session_index import pack_session_index
from serving.adapters.bundle import load_catalogue
from serving.pipeline.catalogue import Catalogue

TENANT = "default"


class Shop:
    """A version to write: items by id, their neighbours and the popular lists, all by item id.

    Numbers are given in order of `items`, from `first_number`, so a test can have a gap at the beginning.
    """

    def __init__(
        self,
        items: Mapping[str, Mapping[str, Any]],
        *,
        neighbours: Mapping[str, Sequence[tuple[str, float]]] | None = None,
        popular: Sequence[tuple[str, float]] = (),
        by_category: Mapping[str, Sequence[tuple[str, float]]] | None = None,
        by_region: Mapping[str, Sequence[tuple[str, float]]] | None = None,
        static: Sequence[tuple[str, float]] = (),
        as_of: str = "2024-03-08",
        last_event_at: str | None = "2024-03-07T22:00:00Z",
        published_at: str | None = "2024-03-08T03:00:00Z",
        model: str = "als",
        first_number: int = 0,
        leads_to: Mapping[str, Sequence[tuple[str, float]]] | None = None,
        session_params: Mapping[str, Any] | None = None,
        together: Mapping[str, Sequence[tuple[str, float]]] | None = None,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """`leads_to`: what comes next in sessions; None: a version without a session index."""
        self.items = items
        self.numbers = {item_id: number for number, item_id in enumerate(items, start=first_number)}
        self._lists = {
            "all": self._numbered(popular),
            "by_category": {name: self._numbered(rows) for name, rows in (by_category or {}).items()},
            "by_region": {name: self._numbered(rows) for name, rows in (by_region or {}).items()},
            "static": self._numbered(static),
        }
        self.files = {
            ITEMS_FILE: json.dumps(self._columns()).encode(),
            NEIGHBOURS_FILE: pack_neighbours(self._rows(neighbours or {})),
            POPULAR_FILE: json.dumps(self._lists).encode(),
        }
        if leads_to is not None:
            recipe = {
                "model": "session_transitions",
                "params": session_params or {"reads": [9] * 5, "place_decay": 2.0},
            }
            rows = self._rows(leads_to)
            self.files[SESSION_INDEX_FILE] = pack_session_index(
                recipe,
                [0, *accumulate(map(len, rows))],
                [number for row in rows for number, _ in row],
                [weight for row in rows for _, weight in row],
            )
        if together is not None:
            self.files[TOGETHER_FILE] = pack_neighbours(self._rows(together))
        self.manifest = Manifest(
            as_of=as_of,
            model=model,
            recipe={},
            user_count=0,
            item_count=len(items),
            candidates_checksum="0" * 16,
            last_event_at=last_event_at,
            files={name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()},
            volatile={"published_at": published_at} if published_at else {},
            parts=parts or {},
        )
        self.version = self.manifest.version()

    def with_files(self, files: Mapping[str, bytes]) -> Shop:
        """This version with further files: another version."""
        self.files |= files
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        self.manifest = replace(self.manifest, files=hashes)
        self.version = self.manifest.version()
        return self

    def write(self, publications: Path | str) -> str:
        """Write the bundle under `<publications>/default/`; returns the version."""
        folder = Path(publications) / TENANT / self.version
        folder.mkdir(parents=True)
        for name, data in {**self.files, MANIFEST_FILE: self.manifest.to_json().encode()}.items():
            (folder / name).write_bytes(data)
        return self.version

    def catalogue(self, publications: Path | str) -> Catalogue:
        """Written and loaded."""
        return load_catalogue(str(publications), self.write(publications), tenant=TENANT)

    def _numbered(self, rows: Sequence[tuple[str, float]]) -> list[list[float]]:
        return [[self.numbers[item_id], score] for item_id, score in rows]

    def _rows(self, lists: Mapping[str, Sequence[tuple[str, float]]]) -> list[list[tuple[int, float]]]:
        rows: list[list[tuple[int, float]]] = [[] for _ in range(max(self.numbers.values(), default=-1) + 1)]
        for item_id, near in lists.items():
            rows[self.numbers[item_id]] = [(self.numbers[other], similarity) for other, similarity in near]
        return rows

    def _columns(self) -> dict[str, list[Any]]:
        defaults: dict[str, Any] = {
            "title": None, "category": None, "price": None, "currency": "GBP", "availability": "IN_STOCK",
            "available_quantity": None, "created_at": None, "url": None, "image_url": None, "is_hidden": False,
            "expire_time": None, "brand": None, "group_id": None, "language": None, "tags": None, "attributes": None,
        }  # fmt: skip
        columns: dict[str, list[Any]] = {"item_number": list(self.numbers.values()), "item_id": list(self.items)}
        for name, default in defaults.items():
            columns[name] = [facts.get(name, default) for facts in self.items.values()]
        return columns
