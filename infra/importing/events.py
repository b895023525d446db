"""`nightjar import events`: any number of files into bronze.events_import and bronze.quarantine_import."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.times import require_utc
from infra.importing.checking import EVENTS, QUARANTINE, EventChecker, Tally, quarantine_batches
from infra.importing.guessing import mapping_for
from infra.importing.lease import writer_lease
from infra.importing.mapping import ColumnMap
from infra.importing.reading import COLUMNAR, column_names, find_files, read_batches
from infra.importing.report import ImportReport, Options, Progress, written_rejects
from infra.importing.tables import replace_sources, users_who_refuse_storage

_REQUIRED = ("event_type", "timestamp", "user_id or anonymous_id")


def import_events(
    path: str | Path,
    env: Environment,
    column_map: ColumnMap | None = None,
    *,
    received_at: datetime | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Import a file, or every file of a folder, by the rules of `contracts.events`.

    Repeating an import replaces what the same sources (names, see `find_files`) brought before. Good rows are one
    Delta commit, quarantined rows another, in that order; after a crash in between, repeating the import completes it.
    Nothing is written when a file cannot be read or lacks a mapped or required column (DataError).

    Args:
        received_at: the instant of receipt, aware; events later than this + 24 h are quarantined. Default: now.
    """
    moment, asked, given = (
        require_utc(received_at or datetime.now(UTC), "received_at"),
        options or Options(),
        column_map,
    )
    files = find_files(
        path, prefix=asked.prefix, input_format=asked.input_format or (given.format if given else None),
        encoding=asked.encoding or (given.encoding if given else None),
        delimiter=asked.delimiter or (given.delimiter if given else None),
    )  # fmt: skip
    maps: dict[str, ColumnMap] = {}
    for file in files:
        names = column_names(file)
        mapped = maps[file.source] = mapping_for("events", file, names, given, asked)
        if not file.may_lack_columns:
            mapped.check(file.source, names)
        if file.form in COLUMNAR:
            mapped.require(file.source, names, _REQUIRED)
    asked.prepare(maps)
    tally = Tally()

    def checked(refusing: pa.Array) -> Iterator[pa.RecordBatch]:
        for file in files:
            checker = EventChecker(maps[file.source], refusing, moment)
            for batch in read_batches(file):
                yield checker.check(batch, tally)
                if progress is not None:
                    progress(tally.read, file.source)

    with writer_lease(env, wait_seconds=asked.wait_seconds):
        sources = [file.source for file in files]
        report = write_events(env, sources, tally, checked(users_who_refuse_storage(env)))
    return replace(report, rejects=written_rejects(asked, tally, sources), mapping=asked.mapping_words(maps))


def write_events(
    env: Environment, sources: Sequence[str], tally: Tally, good: Iterable[pa.RecordBatch]
) -> ImportReport:
    """Write checked rows as the whole content of `sources`, and account for every line of `tally`.

    `tally` may still be filled while `good` is consumed.
    """
    replace_sources(env, EVENTS, sources, (batch for batch in good if batch.num_rows))
    replace_sources(env, QUARANTINE, sources, quarantine_batches(tally))
    return ImportReport(
        kind="events",
        sources=tuple(sources),
        read=tally.read,
        accepted=tally.accepted,
        quarantined=dict(tally.quarantined),
        not_stored=tally.not_stored,
        rows_written=tally.rows_written,
        repeated=tally.repeated,
    )
