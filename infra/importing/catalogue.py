"""`nightjar import items` and `import users`: any file into bronze.items and bronze.users, upserted by id.

The rules are `contracts.catalogue`'s. The last line of an id wins, in file order; a row that says when it was updated
(`updated_at`) never gives way to one that says an earlier time, also not to one of a later import. A winning line
replaces the whole older row: what it leaves out becomes null.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.catalogue import ITEM_FIELDS, USER_FIELDS, check_item, check_user, updated_at
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.events import Reason, Rejection
from feature_repo.contracts.times import require_utc
from infra.importing import merchant_feed, schema_org
from infra.importing.checking import QUARANTINE, Tally, quarantine_batches
from infra.importing.guessing import mapping_for
from infra.importing.lease import writer_lease
from infra.importing.mapping import ColumnMap
from infra.importing.reading import (
    COLUMNAR,
    MERCHANT_FEED,
    SCHEMA_ORG,
    Batch,
    Unreadable,
    column_names,
    find_files,
    read_batches,
)
from infra.importing.report import ImportReport, Options, Progress, written_rejects
from infra.importing.tables import bronze_schema, find_table, replace_sources, upsert
from infra.importing.values import event_of_row, plain_types

__all__ = ["ITEM_FIELDS", "USER_FIELDS", "import_items", "import_users"]

DEFAULT_MISSING_LIMIT = 0.5
_ITEM_OF = {MERCHANT_FEED: merchant_feed.item_of, SCHEMA_ORG: schema_org.item_of}
_GONE = {"availability": "OUT_OF_STOCK", "is_hidden": True}


@dataclass(frozen=True)
class _Kind:
    name: str
    table: str
    key: str
    check: Callable[[object], tuple[dict[str, Any], None] | tuple[None, Rejection]]


def import_items(
    path: str | Path,
    env: Environment,
    column_map: ColumnMap | None = None,
    *,
    received_at: datetime | None = None,
    options: Options | None = None,
    full_catalogue: bool = False,
    missing_limit: float = DEFAULT_MISSING_LIMIT,
    progress: Progress | None = None,
) -> ImportReport:
    """Import items from a file or folder. Raises DataError as `import_events` does; nothing is written then.

    Args:
        full_catalogue: (or the mapping's) these files are all there is: items of the table that they do not name, not
            even in a refused line, become OUT_OF_STOCK and hidden. They are never removed, and a later line brings
            them back.
        missing_limit: the share of visible items that may go missing this way; above it, or when a line has no
            readable item_id, DataError.
    """
    is_full = full_catalogue or (column_map is not None and column_map.full_catalogue)
    limit = missing_limit if is_full else None
    return _import(_ITEMS, path, env, column_map, received_at, options or Options(), limit, progress)


def import_users(
    path: str | Path,
    env: Environment,
    column_map: ColumnMap | None = None,
    *,
    received_at: datetime | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Import users from a file or folder. Events that are already stored stay when a consent is withdrawn here."""
    return _import(_USERS, path, env, column_map, received_at, options or Options(), None, progress)


def _import(
    kind: _Kind,
    path: str | Path,
    env: Environment,
    column_map: ColumnMap | None,
    received_at: datetime | None,
    options: Options,
    missing_limit: float | None,
    progress: Progress | None,
) -> ImportReport:
    moment = require_utc(received_at or datetime.now(UTC), "received_at")
    given = column_map or ColumnMap()
    files = find_files(
        path, prefix=options.prefix, kind=kind.name, input_format=options.input_format or given.format,
        encoding=options.encoding or given.encoding, delimiter=options.delimiter or given.delimiter,
    )  # fmt: skip
    maps: dict[str, ColumnMap] = {}
    for file in files:
        names = column_names(file)
        mapped = maps[file.source] = mapping_for(kind.name, file, names, column_map, options)
        if not file.may_lack_columns:
            mapped.check(file.source, names)
        if file.form in COLUMNAR:
            mapped.require(file.source, names, [kind.key])
    options.prepare(maps)

    tally = Tally()
    by_id: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    nameless = 0
    with writer_lease(env, wait_seconds=options.wait_seconds):
        for file in files:
            mapped = maps[file.source]
            # Prefixed, so that an events file of the same name keeps its quarantined lines.
            named = file._replace(source=f"{kind.name}:{file.source}")
            for batch in read_batches(named):
                for number, record in enumerate(_canonical(batch, mapped)):
                    tally.read += 1
                    row, rejection = _checked(kind, record)
                    known_id = _id_of(record, kind.key)
                    if known_id is None:
                        nameless += 1
                    else:
                        seen.add(known_id)
                    if row is None:
                        assert rejection is not None
                        tally.quarantine(batch, number, rejection, moment)
                        continue
                    tally.accepted += 1
                    _keep(by_id, kind.key, {**row, "source": named.source})
                if progress is not None:
                    progress(tally.read, file.source)
        older = _newer_in_table(env, kind, by_id)
        for known_id in older:
            del by_id[known_id]
        gone = _missing(env, seen, nameless, missing_limit) if missing_limit is not None else []
        rows = [*by_id.values(), *gone]
        if rows:
            upsert(env, kind.table, kind.key, pa.Table.from_pylist(rows, bronze_schema(kind.table)))
        sources = [f"{kind.name}:{file.source}" for file in files]
        replace_sources(env, QUARANTINE, sources, quarantine_batches(tally))
    notes = {}
    if older:
        notes["not taken: the table has a newer updated_at"] = len(older)
    if missing_limit is not None:
        notes["missing from the full catalogue: out of stock and hidden"] = len(gone)
    return ImportReport(
        kind=kind.name,
        sources=tuple(sources),
        read=tally.read,
        accepted=tally.accepted,
        quarantined=dict(tally.quarantined),
        rows_written=len(by_id),
        repeated=tally.accepted - len(by_id) - len(older),
        notes=notes,
        rejects=written_rejects(options, tally, sources),
        mapping=options.mapping_words(maps),
    )


def _canonical(batch: Batch, mapped: ColumnMap) -> list[Any]:
    """The records of a batch with our fields; Unreadable where a line is no record."""
    item_of = _ITEM_OF.get(batch.file.form)
    if batch.columns is None:
        return mapped.apply_to_objects(batch.objects) if item_of is None else _fed(batch.objects, mapped, item_of)
    unreadable = batch.unreadable or {}
    if item_of is not None:
        fed = _fed([_given(row) for row in batch.columns.to_pylist()], mapped, item_of)
        fed = [_plain_row(record, is_text=True) for record in fed]
        return [unreadable.get(n) or record for n, record in enumerate(fed)]
    rows = plain_types(mapped.apply_to_table(batch.columns)).to_pylist()
    return [unreadable.get(n) or _plain_row(row, is_text=batch.is_text) for n, row in enumerate(rows)]


def _fed(
    objects: list[Any] | Any, mapped: ColumnMap, item_of: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> list[Any]:
    """A feed's records with our fields; a mapped column is taken from the feed's own names and wins."""
    records = []
    for given in objects:
        if not isinstance(given, Mapping):
            records.append(given)
            continue
        own = {ours: given[theirs] for ours, theirs in mapped.columns.items() if given.get(theirs) is not None}
        records.append({**item_of({k: v for k, v in given.items() if k not in mapped.ignore}), **own})
    return mapped.without_columns().apply_to_objects(records)


def _given(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _checked(kind: _Kind, record: Any) -> tuple[dict[str, Any] | None, Rejection | None]:
    if isinstance(record, Unreadable):
        return None, Rejection(Reason.UNREADABLE, None, record.detail)
    return kind.check(record)


def _id_of(record: Any, key: str) -> str | None:
    value = record.get(key) if isinstance(record, Mapping) else None
    return value if isinstance(value, str) and value else None


def _keep(by_id: dict[str, dict[str, Any]], key: str, row: dict[str, Any]) -> None:
    """The later row of an id, unless both say when they were updated and the later one says earlier."""
    before = by_id.get(row[key])
    if before is not None and _is_newer(before, row):
        return
    by_id.pop(row[key], None)
    by_id[row[key]] = row


def _is_newer(kept: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    said, told = updated_at(kept), updated_at(row)
    return said is not None and told is not None and said > told


def _newer_in_table(env: Environment, kind: _Kind, by_id: Mapping[str, dict[str, Any]]) -> list[str]:
    """Ids whose row in the table says a later `updated_at` than the new one."""
    dated = [known_id for known_id, row in by_id.items() if updated_at(row) is not None]
    delta = find_table(env, kind.table) if dated else None
    if delta is None:
        return []
    is_dated = pc.match_substring(pc.field("attributes"), '"updated_at"')
    stored = delta.to_pyarrow_dataset().to_table(columns=[kind.key, "attributes"], filter=is_dated).to_pylist()
    return [row[kind.key] for row in stored if row[kind.key] in by_id and _is_newer(row, by_id[row[kind.key]])]


def _missing(env: Environment, seen: set[str], nameless: int, limit: float) -> list[dict[str, Any]]:
    """Rows of bronze.items that a full catalogue does not name, as they are to be now; only those that change."""
    if nameless:
        raise DataError(
            f"{nameless:,} lines have no readable item_id, so it cannot be told which items are missing; mend them, or "
            "import without --full-catalogue"
        )
    delta = find_table(env, "bronze.items")
    if delta is None:
        return []
    visible = delta.to_pyarrow_dataset().to_table(filter=~pc.field("is_hidden")).to_pylist()
    gone = [row for row in visible if row["item_id"] not in seen]
    if gone and len(gone) > limit * len(visible):
        raise DataError(
            f"{len(gone):,} of {len(visible):,} visible items are not in this catalogue, more than the limit of "
            f"{limit:.0%}: is it the whole one? Allow it with --missing-limit {min(1.0, len(gone) / len(visible)):.2f}"
        )
    return [{**row, **_GONE} for row in gone]


def _plain_row(row: Mapping[str, Any], *, is_text: bool) -> dict[str, Any]:
    values = event_of_row(row, is_text=is_text)
    for name in ("attributes", "categories", "tags"):
        if is_text and isinstance(values.get(name), str) and values[name][:1] in ("{", "["):
            values[name] = _json(values[name])
    if is_text:
        for name in ("available_quantity", "created_at", "updated_at", "expire_time", "available_time"):
            if isinstance(values.get(name), str) and values[name].lstrip("-").replace(".", "", 1).isdigit():
                values[name] = _json(values[name])
    return values


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


_ITEMS = _Kind("items", "bronze.items", "item_id", check_item)
_USERS = _Kind("users", "bronze.users", "user_id", check_user)
