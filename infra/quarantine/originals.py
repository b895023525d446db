"""The bytes of a refused event, read as the entrance read them: our own form, another dialect, a line of a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.events import Reason, Rejection
from infra.importing.guessing import guess_columns
from infra.importing.mapping import ColumnMap
from infra.importing.rejects import marked_format, reject_path, start_of
from infra.importing.values import event_of_row
from infra.quarantine.records import IMPORT_TABLE, QuarantinedRecord
from serving.api.clock import corrected_for_skew
from serving.api.dialects import cloudevents, ga4, pixel, segment
from serving.api.dialects.values import Translated

_SEGMENT_NAMES = frozenset({"messageId", "anonymousId", "userId", "originalTimestamp", "previousId"})
_DELIMITERS = ("\t", ";", "|", ",")
NATIVE = "native"


class Original(NamedTuple):
    """`event` as the rule table would see it, or why there is none; `form` is what the bytes are."""

    form: str
    event: Any
    problem: Rejection | None = None


@dataclass(frozen=True)
class LineReader:
    """How lines of imported files become events.

    column_map   the mapping of the import; None: columns are recognised by name, as the import does
    header       the header line of CSV files; None: that of the import's reject file, which has it
    """

    env: Environment
    column_map: ColumnMap | None = None
    header: str | None = None

    def read(self, record: QuarantinedRecord) -> Original:
        """The event of one line. Not readable without a header that nobody kept: then the problem says so."""
        text = record.raw.decode("utf-8", "replace")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, Mapping):
            return Original("json line", self._mapped(values).apply_to_object(values))
        header = self.header or self._header_of_rejects(record.source)
        if header is None:
            words = "the header of its file is needed: give it with --header, or import the file again"
            return Original("csv line", None, Rejection(Reason.UNREADABLE, None, words))
        delimiter = max(_DELIMITERS, key=lambda mark: (header.count(mark), -_DELIMITERS.index(mark)))
        names, cells = _cells(header, delimiter), _cells(text, delimiter)
        if len(names) != len(cells):
            words = f"the line has {len(cells)} cells, its header {len(names)}"
            return Original("csv line", None, Rejection(Reason.UNREADABLE, None, words))
        given = {name: cell for name, cell in zip(names, cells, strict=True) if cell != ""}
        mapped = self._mapped(dict.fromkeys(names)).apply_to_object(given)
        return Original("csv line", event_of_row(mapped, is_text=True))

    def _mapped(self, names: Mapping[str, Any]) -> ColumnMap:
        if self.column_map is not None:
            return self.column_map
        return ColumnMap(columns=guess_columns("events", list(names)), kind="events")

    def _header_of_rejects(self, source: str) -> str | None:
        folder = Path(self.env.home, "rejects", "events")
        for extension in (".csv", ".tsv"):
            start = start_of(reject_path(folder, source, extension))
            if marked_format(start) is not None:
                lines = [line for line in start.splitlines() if not line.startswith(b"#!")]
                return lines[0].decode("utf-8", "replace") if lines else None
        return None


def read_original(record: QuarantinedRecord, lines: LineReader) -> Original:
    """What the record's bytes say. A clock that `sent_at` proves wrong is corrected as it was at the receipt, and
    `sent_at` goes: the replay is received much later, and would be taken for another wrong clock."""
    found = lines.read(record) if record.table == IMPORT_TABLE else _read_delivery(record)
    if isinstance(found.event, Mapping) and "sent_at" in found.event:
        event = dict(corrected_for_skew(found.event, received_at=record.quarantined_at))
        event.pop("sent_at", None)
        return found._replace(event=event)
    return found


def _read_delivery(record: QuarantinedRecord) -> Original:
    try:
        document = json.loads(record.raw)
    except (ValueError, RecursionError) as error:
        return _read_query(record, str(error))
    received_at = record.quarantined_at
    if isinstance(document, dict) and "event_type" not in document:
        if "specversion" in document:
            return _translated("cloudevent", cloudevents.translate(document, received_at=received_at))
        if isinstance(document.get("events"), list) and document["events"]:
            (first, *_) = ga4.translate(document, received_at=received_at) or [Translated({}, document)]
            return _translated("ga4", first)
        if _SEGMENT_NAMES & document.keys():
            kind = _segment_kind(document)
            (first, *_) = segment.translate(document, kind=kind, received_at=received_at) or [Translated({}, document)]
            return _translated("segment", first)
    return Original(NATIVE, document)


def _read_query(record: QuarantinedRecord, problem: str) -> Original:
    """A pixel's query, or bytes that are nothing."""
    text = record.raw.decode("utf-8", "replace")
    pairs = parse_qsl(text, keep_blank_values=True)
    if pairs and "{" not in text and any(name in ("event_type", "user_id", "anonymous_id") for name, _ in pairs):
        return Original("pixel", pixel.translate(pairs, received_at=record.quarantined_at))
    return Original("bytes", None, Rejection(Reason.UNREADABLE, None, f"not JSON: {problem}"[:200]))


def _segment_kind(document: Mapping[str, Any]) -> str:
    """The kind was in the address when the body does not say it."""
    if isinstance(document.get("type"), str):
        return str(document["type"])
    for name, kind in (("event", "track"), ("previousId", "alias"), ("traits", "identify")):
        if name in document:
            return kind
    return "page"


def _translated(form: str, translated: Translated) -> Original:
    if isinstance(translated.event, Rejection):
        return Original(form, None, translated.event)
    return Original(form, dict(translated.event))


def _cells(line: str, delimiter: str) -> Sequence[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise DataError(f"no line of a CSV file: {line[:80]!r}: {error}") from error
