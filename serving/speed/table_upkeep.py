"""Keeping a table of the light engine quick: small files of a partition become one, what no kept version needs goes.

Rows never change. For tables that are written with deltalake, by whoever holds the right to write them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from feature_repo.contracts.errors import DataError, DependencyError

SMALL_FILES = 8
"""A partition with at least so many files is compacted. Lower: fewer files, more rewriting of days that still grow."""

COMPACTED_FILE_BYTES = 100_000_000
"""Files of this size stay as they are, so that a day which grows is not written anew each time."""

MIN_RETENTION_DAYS = 7
MAX_RETENTION_DAYS = 30


CROWDED_FILES = 100
"""... and one with so many is compacted while it grows, not only when somebody asks."""


def check_retention(days: int) -> int:
    """`days`. Raises DataError outside of 7 to 30: what a night reads must live, and people's history must not."""
    if not MIN_RETENTION_DAYS <= days <= MAX_RETENTION_DAYS:
        raise DataError(
            f"retention_days is from {MIN_RETENTION_DAYS} to {MAX_RETENTION_DAYS}, got {days}", field="retention_days"
        )
    return days


def keep_up(
    delta: DeltaTable,
    *,
    dry_run: bool,
    retention_days: int,
    only_crowded: bool = False,
    may_write: Callable[[], bool] = lambda: True,
    committed: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Compact and vacuum; `may_write` is asked before each commit, `committed` called after it.

    `only_crowded`: compact what has CROWDED_FILES or more, and vacuum nothing: quick enough between two appends.

    Returns files_before, files_after, compacted (partition values as text, null as "null"), deleted_files. A dry run
    changes nothing and says what would be done. Twice in a row, the second does nothing.

    Raises DependencyError when the right to write is lost, or the table cannot be written.
    """
    check_retention(retention_days)
    columns = delta.metadata().partition_columns
    files = _files_by_partition(delta, columns)
    least = CROWDED_FILES if only_crowded else SMALL_FILES
    crowded = sorted((values for values, count in files.items() if count >= least), key=str)
    before = sum(files.values())
    try:
        for values in [] if dry_run else crowded:
            if not may_write():
                raise DependencyError("the right to write was lost before a commit")
            # the engine writes a null partition as the empty text
            filters = [(c, "=", "" if v is None else v) for c, v in zip(columns, values, strict=True)]
            delta.optimize.compact(partition_filters=filters or None, target_size=COMPACTED_FILE_BYTES)
            committed()
        hours = retention_days * 24
        # full: also files that no commit ever named, which a killed writer left
        obsolete = (
            [] if only_crowded else delta.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True)
        )
        if obsolete and not dry_run:
            if not may_write():
                raise DependencyError("the right to write was lost before a commit")
            delta.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True)
            committed()
    except (DeltaError, OSError) as error:
        raise DependencyError(f"{delta.table_uri} cannot be maintained: {error}") from error
    return {
        "files_before": before,
        "files_after": before if dry_run else sum(_files_by_partition(delta, columns).values()),
        "compacted": ["/".join("null" if v is None else str(v) for v in values) for values in crowded],
        "deleted_files": len(obsolete),
    }


def _files_by_partition(delta: DeltaTable, columns: list[str]) -> dict[tuple[str | None, ...], int]:
    """Files per partition, its values as text."""
    actions = pa.table(delta.get_add_actions(flatten=True))
    found: dict[tuple[str | None, ...], int] = defaultdict(int)
    values = [actions[f"partition.{column}"].to_pylist() for column in columns]
    for row in zip(*values, strict=True) if columns else [()] * actions.num_rows:
        found[tuple(None if value is None else str(value) for value in row)] += 1
    return dict(found)
