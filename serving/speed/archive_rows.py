"""Stream entries as rows of bronze.events, bronze.quarantine, bronze.item_changes and bronze.user_changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from feature_repo.contracts.bronze import bronze_row
from feature_repo.contracts.changes import CHANGE_TABLE_OF, ID_FIELDS, Change
from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.events import Reason, expand_items
from feature_repo.contracts.stream_entry import source_of, split_entry
from feature_repo.contracts.times import from_micros
from serving.speed.entries import read_event
from serving.speed.positions import position_number, receipt_micros

Row = dict[str, Any]


def event_rows(stream_id: str, fields: Mapping[bytes, bytes], *, source: str) -> tuple[list[Row], list[Row]]:
    """(rows of bronze.events, rows of bronze.quarantine) of one entry of an event stream.

    Its events have sources of their own (`stream_entry.source_of`) and share its position. One row per line of `items`
    (ids `<event_id>:<line>`); lines share the source too. `received_at` is when the log took the entry. An event that
    is none is quarantined as unreadable.
    """
    good: list[Row] = []
    bad: list[Row] = []
    position, received_at = position_number(stream_id), from_micros(receipt_micros(stream_id))
    for number, (raw, _) in enumerate(split_entry(fields)):
        origin = source_of(source, number)
        try:
            event = read_event(stream_id, raw)
        except DataError as error:
            bad.append(_quarantine_row(raw, Reason.UNREADABLE.value, error.field, str(error), stream_id, origin))
            continue
        good += [
            bronze_row(line, received_at=received_at, source=origin, source_position=position)
            for line in expand_items(event)
        ]
    return good, bad


def quarantine_rows(stream_id: str, fields: Mapping[bytes, bytes], *, source: str) -> list[Row]:
    """The row of bronze.quarantine of one entry of the quarantine stream."""
    reason, field, detail = (
        fields.get(name, b"").decode("utf-8", "replace") for name in (b"reason", b"field", b"detail")
    )
    return [_quarantine_row(fields.get(b"raw", b""), reason, field or None, detail, stream_id, source)]


def change_rows(stream_id: str, fields: Mapping[bytes, bytes], *, source: str) -> dict[str, list[Row]]:
    """Table -> rows of one entry of the change stream. An entry that is no change is quarantined as unreadable.

    `changed_at` is what orders changes (the shop's word, else the API's receipt), `received_at` the API's receipt.
    """
    raw = fields.get(b"change", b"")
    try:
        change = Change.from_json(raw)
    except ContractError as error:
        row = _quarantine_row(raw, Reason.UNREADABLE.value, None, str(error), stream_id, source)
        return {"bronze.quarantine": [row]}
    row = {
        ID_FIELDS[change.kind]: change.record_id,
        "operation": change.operation,
        "fields": json.dumps(change.fields, sort_keys=True),
        "changed_at": from_micros(change.at_micros),
        "received_at": from_micros(change.received_micros),
        "source": source,
        "source_position": position_number(stream_id),
    }
    return {CHANGE_TABLE_OF[change.kind]: [row]}


def _quarantine_row(raw: bytes, reason: str, field: str | None, detail: str, stream_id: str, source: str) -> Row:
    return {
        "raw": raw,
        "reason": reason,
        "field": field,
        "detail": detail,
        "source": source,
        "source_position": position_number(stream_id),
        "quarantined_at": from_micros(receipt_micros(stream_id)),
    }
