"""Loads the bundle of one version from disk into a `Catalogue`; every file must match the SHA-256 of the manifest."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from feature_repo.contracts.errors import ContractError, DataError, DependencyError
from feature_repo.contracts.keys import check_tenant
from feature_repo.contracts.publication import (
    ITEMS_FILE,
    MANIFEST_FILE,
    NEIGHBOURS_FILE,
    POPULAR_FILE,
    RANKER_FILE,
    SESSION_INDEX_FILE,
    TOGETHER_FILE,
    Manifest,
    bundle_names,
    pack_neighbours,
    parse_version,
    unpack_neighbours,
)
from feature_repo.contracts.times import parse_timestamp, start_of_day, to_micros
from serving.adapters.item_facts import read_item_facts
from serving.adapters.json_columns import read_columns
from serving.adapters.pace import HURRIED, Pace
from serving.pipeline.catalogue import Catalogue, PopularList, RankedList, Refusals, Stock
from serving.pipeline.ranker import read_ranker
from serving.pipeline.session_index import read_session_index

_CHUNK = 1 << 20


def newest_bundle(publications: str, *, tenant: str) -> str | None:
    """The version whose bundle came last, which is there before its lists are and long before it is served; None: there
    is none, or the folder cannot be read. Blocking."""
    found = []
    try:
        with os.scandir(Path(publications) / check_tenant(tenant)) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    parse_version(entry.name)
                    found.append((entry.stat().st_mtime_ns, entry.name))
    except (OSError, ContractError):
        return None
    return max(found)[1] if found else None


def load_catalogue(publications: str, version: str, pace: Pace = HURRIED, *, tenant: str) -> Catalogue:
    """The catalogue of `<publications>/<tenant>/<version>/`.

    Raises DependencyError when the folder cannot be read, ContractError when a file is damaged or the manifest belongs
    to another version. Blocking and slow (reads and hashes every byte): call it off the event loop,
    and at leisure when nobody waits for it yet.
    """
    as_of, _ = parse_version(version)
    folder = Path(publications) / check_tenant(tenant) / version
    try:
        manifest = Manifest.from_json((folder / MANIFEST_FILE).read_bytes())
        if manifest.version() != version:
            raise ContractError(f"the manifest in {folder} describes {manifest.version()}")
        for name in bundle_names(manifest):
            _check_hash(folder / name, manifest.files.get(name), pace)
        columns = read_columns((folder / ITEMS_FILE).read_bytes(), pace)
        popular = read_columns((folder / POPULAR_FILE).read_bytes(), pace)
        memory = _memory_map(folder / NEIGHBOURS_FILE)
        has_index = SESSION_INDEX_FILE in manifest.files
        session_index = read_session_index(_memory_map(folder / SESSION_INDEX_FILE)) if has_index else None
        has_ranker = RANKER_FILE in manifest.files
        ranker = read_ranker(_memory_map(folder / RANKER_FILE), manifest.files[RANKER_FILE][:8]) if has_ranker else None
        has_together = TOGETHER_FILE in manifest.files
        together = _memory_map(folder / TOGETHER_FILE) if has_together else memoryview(pack_neighbours([]))
    except OSError as error:
        raise DependencyError(f"cannot read the bundle of version {version}: {error}") from error
    except json.JSONDecodeError as error:
        raise ContractError(f"a file of the bundle {folder} is not JSON: {error}") from error
    offsets, numbers, similarities = unpack_neighbours(memory)
    together_offsets, together_numbers, together_scores = unpack_neighbours(together)
    try:
        items = _item_columns(columns, pace)
        return Catalogue(
            version=version,
            manifest=manifest,
            **items,
            neighbour_offsets=offsets,
            neighbour_numbers=numbers,
            similarities=similarities,
            session_index=session_index,
            ranker=ranker,
            popular=_popular(popular["all"]),
            popular_by_category={name: _popular(rows) for name, rows in popular["by_category"].items()},
            popular_by_region={name: _popular(rows) for name, rows in popular["by_region"].items()},
            static=_popular(popular["static"]),
            as_of_micros=to_micros(start_of_day(as_of)),
            published_micros=_micros(manifest.volatile.get("published_at")),
            last_event_micros=_micros(manifest.last_event_at),
            changes_position=int(manifest.volatile.get("item_changes_position", -1)),
            facts=read_item_facts(columns, len(items["item_ids"]), pace),
            popularity=_popularity(popular, pace),
            newest=_newest(columns, pace),
            together_offsets=together_offsets,
            together_numbers=together_numbers,
            together_scores=together_scores,
            memory=(memory, together),
        )
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise ContractError(f"the bundle {folder} does not follow its format: {error!r}") from error


def _check_hash(path: Path, expected: str | None, pace: Pace) -> None:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            pace.breathe()
    if digest.hexdigest() != expected:
        raise ContractError(f"{path} has SHA-256 {digest.hexdigest()[:12]}, its manifest says {str(expected)[:12]}")


def _memory_map(path: Path) -> memoryview:
    with open(path, "rb") as stream:
        if path.stat().st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _item_columns(columns: Mapping[str, Sequence[Any]], pace: Pace) -> dict[str, Any]:
    """Columns of items.json as lists indexed by item number."""
    size = max(columns["item_number"], default=-1) + 1
    item_ids: list[str | None] = [None] * size
    attributes: list[dict[str, Any] | None] = [None] * size
    refusals: list[str | None] = ["not_in_bundle"] * size
    stocks: list[Stock | None] = [None] * size
    one_of_each: dict[Stock, Stock] = {}
    expire_micros: dict[int, int] = {}
    names = ("item_number", "item_id", "title", "category", "price", "availability", "available_quantity", "is_hidden")
    expire_times = columns.get("expire_time") or [None] * len(columns["item_number"])
    for row in pace.over(zip(*(columns[name] for name in names), expire_times, strict=True)):
        number, item_id, title, category, price, availability, quantity, is_hidden, expire_time = row
        item_ids[number] = item_id
        attributes[number] = {"title": title, "category": category, "price": price}
        stock = Stock(availability, quantity, bool(is_hidden))
        stocks[number] = one_of_each.setdefault(stock, stock)
        refusals[number] = stock.refusal()
        if expire_time is not None:
            expire_micros[number] = to_micros(parse_timestamp(expire_time))
    return {
        "item_ids": item_ids,
        "numbers": {item_id: number for number, item_id in enumerate(pace.over(item_ids)) if item_id is not None},
        "attributes": attributes,
        "refusals": Refusals(pace.over(refusals)),
        "stocks": stocks,
        "expire_micros": expire_micros,
    }


def _popular(rows: Sequence[Sequence[Any]]) -> PopularList:
    return RankedList((int(number), float(score)) for number, score in rows)


def _popularity(lists: Mapping[str, Any], pace: Pace) -> dict[int, float]:
    """Item number -> score, of all lists that are scored alike (those of regions are not); of what has a score."""
    rows = chain(lists["static"], *lists["by_category"].values(), lists["all"])
    return {int(number): float(score) for number, score in pace.over(rows) if score > 0}


def _newest(columns: Mapping[str, Sequence[Any]], pace: Pace) -> list[tuple[int, int]]:
    created = columns.get("created_at") or []
    known = [
        (number, to_micros(parse_timestamp(text)))
        for number, text in pace.over(zip(columns["item_number"], created, strict=False))
        if text is not None
    ]
    return sorted(known, key=lambda row: (-row[1], row[0]))


def _micros(text: str | None) -> int | None:
    return None if text is None else to_micros(parse_timestamp(text))
