"""`nightjar import items` and `import users`: canonical columns into bronze.items and bronze.users, upserted by id.

Items: item_id, title, category "A > B" (or categories, a list: the first is kept), brand, price, currency,
availability, available_quantity, created_at, expire_time, is_hidden, url, image_url, attributes{}.
Users: user_id, region, consent_store|train|personalize|share (or consent{}), attributes{}, created_at.
Other columns join `attributes` (JSON text, sorted keys). In one import the last line of an id wins; its line replaces
the whole older row: what it leaves out becomes null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.events import CONSENT_PURPOSES, MAX_ID_BYTES, Reason, Rejection
from feature_repo.contracts.times import parse_timestamp, require_utc
from infra.importing.checking import QUARANTINE, Tally, quarantine_batches
from infra.importing.mapping import ColumnMap
from infra.importing.reading import COLUMNAR, Unreadable, column_names, find_files, read_batches
from infra.importing.report import ImportReport
from infra.importing.tables import bronze_schema, replace_sources, upsert
from infra.importing.values import event_of_row, plain_types

AVAILABILITIES = ("IN_STOCK", "OUT_OF_STOCK", "PREORDER", "BACKORDER")

ITEM_FIELDS = (
    "item_id", "title", "category", "categories", "brand", "price", "currency", "availability", "available_quantity",
    "created_at", "expire_time", "is_hidden", "url", "image_url", "attributes",
)  # fmt: skip
USER_FIELDS = (
    "user_id", "region", "attributes", "created_at", "consent", *(f"consent_{p}" for p in CONSENT_PURPOSES),
)  # fmt: skip


class _RefusedError(Exception):
    """Leaves a row's checks with a Rejection."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


@dataclass(frozen=True)
class _Kind:
    name: str
    table: str
    key: str
    fields: tuple[str, ...]
    build: Callable[[Mapping[str, Any]], dict[str, Any]]


def import_items(
    path: str | Path, env: Environment, column_map: ColumnMap | None = None, *, received_at: datetime | None = None
) -> ImportReport:
    """Import items from a file or folder. Raises DataError as `import_events` does; nothing is written then."""
    return _import(_ITEMS, path, env, column_map, received_at)


def import_users(
    path: str | Path, env: Environment, column_map: ColumnMap | None = None, *, received_at: datetime | None = None
) -> ImportReport:
    """Import users from a file or folder. Events that are already stored stay when a consent is withdrawn here."""
    return _import(_USERS, path, env, column_map, received_at)


def _import(
    kind: _Kind, path: str | Path, env: Environment, column_map: ColumnMap | None, received_at: datetime | None
) -> ImportReport:
    moment = require_utc(received_at or datetime.now(UTC), "received_at")
    mapped = column_map or ColumnMap()
    files = find_files(path)
    for file in files:
        names = column_names(file)
        mapped.check(file.source, names)
        if file.form in COLUMNAR:
            mapped.require(file.source, names, [kind.key])
    # Prefixed, so that an events file of the same name keeps its quarantined lines.
    files = [file._replace(source=f"{kind.name}:{file.source}") for file in files]

    tally = Tally()
    by_id: dict[str, dict[str, Any]] = {}
    for file in files:
        for batch in read_batches(file):
            if batch.columns is None:
                records: list[Any] = [mapped.apply_to_object(r) if isinstance(r, Mapping) else r for r in batch.objects]
            else:
                rows = plain_types(mapped.apply_to_table(batch.columns)).to_pylist()
                records = [
                    (batch.unreadable or {}).get(n) or _plain_row(row, is_text=batch.is_text)
                    for n, row in enumerate(rows)
                ]
            for number, record in enumerate(records):
                tally.read += 1
                try:
                    row = {**kind.build(_fields(record)), "source": file.source}
                except _RefusedError as refused:
                    tally.quarantine(batch, number, refused.rejection, moment)
                    continue
                tally.accepted += 1
                by_id.pop(row[kind.key], None)
                by_id[row[kind.key]] = row
    if by_id:
        upsert(env, kind.table, kind.key, pa.Table.from_pylist(list(by_id.values()), bronze_schema(kind.table)))
    sources = [file.source for file in files]
    replace_sources(env, QUARANTINE, sources, quarantine_batches(tally))
    return ImportReport(
        kind=kind.name,
        sources=tuple(sources),
        read=tally.read,
        accepted=tally.accepted,
        quarantined=dict(tally.quarantined),
        rows_written=len(by_id),
        repeated=tally.accepted - len(by_id),
    )


def _plain_row(row: Mapping[str, Any], *, is_text: bool) -> dict[str, Any]:
    values = event_of_row(row, is_text=is_text)
    for name in ("attributes", "categories"):
        if is_text and isinstance(values.get(name), str) and values[name][:1] in "{[":
            values[name] = _json(values[name])
    if is_text and isinstance(values.get("available_quantity"), str):
        values["available_quantity"] = _json(values["available_quantity"])
    return values


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _fields(record: Any) -> Mapping[str, Any]:
    if isinstance(record, Unreadable):
        raise _RefusedError(Rejection(Reason.UNREADABLE, None, record.detail))
    if not isinstance(record, Mapping):
        detail = f"a record is a JSON object, got {type(record).__name__}"
        raise _RefusedError(Rejection(Reason.UNREADABLE, None, detail))
    return {name: value for name, value in record.items() if value is not None}


def _refuse(reason: Reason, field: str, expected: str, value: object) -> _RefusedError:
    return _RefusedError(Rejection(reason, field, f"{field} is {expected}, got {str(value)[:80]!r}"))


def _id(values: Mapping[str, Any], name: str, missing: Reason, invalid: Reason) -> str:
    value = values.get(name)
    if value is None:
        raise _RefusedError(Rejection(missing, name, f"{name} is required"))
    if not isinstance(value, str) or not value or "\x00" in value or not _fits(value):
        raise _refuse(invalid, name, f"a text of 1 to {MAX_ID_BYTES} bytes of UTF-8", value)
    return value


def _fits(text: str) -> bool:
    try:
        return len(text.encode("utf-8")) <= MAX_ID_BYTES
    except UnicodeEncodeError:
        return False


def _text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise _refuse(Reason.INVALID_FIELD, name, "a text", value)
    return value


def _moment(values: Mapping[str, Any], name: str) -> datetime | None:
    value = values.get(name)
    if value is None:
        return None
    try:
        return value.astimezone(UTC) if isinstance(value, datetime) else parse_timestamp(value)
    except DataError as error:
        raise _RefusedError(Rejection(Reason.INVALID_TIMESTAMP, name, str(error))) from error


def _flag(values: Mapping[str, Any], name: str) -> bool | None:
    value = values.get(name)
    if isinstance(value, str):
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.lower(), value)
    if value is None or isinstance(value, bool):
        return value
    raise _refuse(Reason.INVALID_FIELD, name, "true or false", value)


def _attributes(values: Mapping[str, Any], known: tuple[str, ...]) -> str | None:
    given = values.get("attributes", {})
    if not isinstance(given, Mapping):
        raise _refuse(Reason.INVALID_FIELD, "attributes", "an object", given)
    rest = {name: value for name, value in values.items() if name not in known}
    both = {**rest, **given}
    return json.dumps(both, sort_keys=True, default=str) if both else None


def _item(values: Mapping[str, Any]) -> dict[str, Any]:
    item_id = _id(values, "item_id", Reason.MISSING_ITEM_ID, Reason.INVALID_ITEM_ID)
    price = values.get("price")
    if price is not None:
        is_number = isinstance(price, int | float) and not isinstance(price, bool)
        if not is_number or not 0 <= price <= 1e15 or not math.isfinite(price):
            raise _refuse(Reason.INVALID_PRICE, "price", "a number >= 0", price)
        price = float(price)
    quantity = values.get("available_quantity")
    if isinstance(quantity, float) and quantity.is_integer():
        quantity = int(quantity)
    if quantity is not None and not (type(quantity) is int and 0 <= quantity < 2**31):
        raise _refuse(Reason.INVALID_QUANTITY, "available_quantity", "a whole number >= 0", quantity)
    availability = values.get("availability", "IN_STOCK")
    if availability not in AVAILABILITIES:
        hint = nearest(str(availability), AVAILABILITIES)
        raise _refuse(Reason.INVALID_FIELD, "availability", f"one of {', '.join(AVAILABILITIES)}{hint}", availability)
    paths = values.get("categories")
    if isinstance(paths, list) and paths and "category" not in values:
        values = {**values, "category": paths[0]}
    elif isinstance(paths, str) and "category" not in values:
        values = {**values, "category": paths}
    created_at, expire_time = _moment(values, "created_at"), _moment(values, "expire_time")
    return {
        "item_id": item_id,
        **{name: _text(values, name) for name in ("title", "category", "brand", "currency", "url", "image_url")},
        "price": price,
        "availability": availability,
        "available_quantity": quantity,
        "created_at": created_at,
        "expire_time": expire_time,
        "is_hidden": _flag(values, "is_hidden") or False,
        "attributes": _attributes(values, ITEM_FIELDS),
    }


def _user(values: Mapping[str, Any]) -> dict[str, Any]:
    consent = values.get("consent", {})
    if not isinstance(consent, Mapping):
        raise _refuse(Reason.INVALID_FIELD, "consent", "an object", consent)
    unknown = next((purpose for purpose in consent if purpose not in CONSENT_PURPOSES), None)
    if unknown is not None:
        hint = nearest(str(unknown), CONSENT_PURPOSES)
        raise _RefusedError(Rejection(Reason.INVALID_FIELD, "consent", f"unknown consent purpose {unknown!r}{hint}"))
    flat = {p: values[f"consent_{p}"] for p in CONSENT_PURPOSES if f"consent_{p}" in values}
    said = {f"consent_{purpose}": answer for purpose, answer in {**consent, **flat}.items()}
    return {
        "user_id": _id(values, "user_id", Reason.MISSING_SUBJECT, Reason.INVALID_SUBJECT),
        "region": _text(values, "region"),
        **{f"consent_{purpose}": _flag(said, f"consent_{purpose}") for purpose in CONSENT_PURPOSES},
        "attributes": _attributes(values, USER_FIELDS),
        "created_at": _moment(values, "created_at"),
    }


_ITEMS = _Kind("items", "bronze.items", "item_id", ITEM_FIELDS, _item)
_USERS = _Kind("users", "bronze.users", "user_id", USER_FIELDS, _user)
