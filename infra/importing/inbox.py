"""`nightjar import sync`: whatever is new in the inbox comes into the lakehouse, once.

    inbox/users/   inbox/items/   inbox/events/     files, also in subfolders; each may hold one mapping.toml or .json

Users come first (their consent decides), then items, then events. A file is imported when its bytes or its mapping
differ from what the ledger says was imported; the ledger lies with the lakehouse that it speaks of, and is written
after each file, so a killed sync goes on where it stopped. Of items and users, files that sort after a changed one are
imported again: the result is always that of one import of the whole folder. An events file with the bytes of another
one is not taken twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, InputError, nearest
from feature_repo.contracts.whole_files import write_whole
from infra.importing.catalogue import import_items, import_users
from infra.importing.events import import_events
from infra.importing.lease import INBOX, state_folder, writer_lease
from infra.importing.mapping import MAPPING_FILES, ColumnMap
from infra.importing.mending import mend_imported_tables
from infra.importing.report import ImportReport, Options, Progress

KINDS = ("users", "items", "events")
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart", ".swp")
DEFAULT_SETTLE_SECONDS = 10.0
_BAD_FILE = (InputError, OSError, pa.ArrowException, ValueError, ArithmeticError, RecursionError)
"""What a bad file may raise. DependencyError is none of these: a table that cannot be written stops the sync."""


class InboxFile(NamedTuple):
    """A file of the inbox that is whole; `source` is its name in the tables, `inbox/<kind>/<relative path>`."""

    path: Path
    source: str
    fingerprint: str


@dataclass
class SyncReport:
    """What became of every file of the inbox: it is in exactly one of the lists, by source."""

    inbox: str
    imported: list[ImportReport] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    duplicates: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON; totals by kind over the imported files."""
        totals: dict[str, dict[str, int]] = {}
        for report in self.imported:
            counts = totals.setdefault(report.kind, dict.fromkeys(_COUNTS, 0))
            said = report.to_mapping()
            for name in _COUNTS:
                counts[name] += said[name]
        return {
            "inbox": self.inbox,
            "imported": [report.to_mapping() for report in self.imported],
            "unchanged": self.unchanged,
            "duplicates": [{"source": s, "same_as": other} for s, other in self.duplicates.items()],
            "waiting": [{"source": s, "reason": reason} for s, reason in self.waiting.items()],
            "failed": [{"source": s, "error": error} for s, error in self.failed.items()],
            "totals": totals,
        }


_COUNTS = ("read", "accepted", "quarantined_total", "not_stored", "rows_written")


def sync_inbox(
    env: Environment,
    *,
    now: datetime,
    settle_seconds: float = DEFAULT_SETTLE_SECONDS,
    received_at: datetime | None = None,
    wait_seconds: float = 0.0,
    progress: Progress | None = None,
) -> SyncReport:
    """Import what is new. Bad files are reported, good ones are imported all the same; nothing is imported twice.

    A file modified less than `settle_seconds` before `now`, or named like an unfinished one (.part, .tmp ...), waits.
    No inbox at all is an empty one. Raises DependencyError when a table cannot be written or another sync runs.
    """
    mend_imported_tables(env)
    root = Path(env.inbox)
    report = SyncReport(inbox=str(root))
    if not root.is_dir():
        return report
    _refuse_strays(root, report)
    with writer_lease(env, INBOX, wait_seconds=wait_seconds):
        ledger = _Ledger(state_folder(env) / "inbox.json")
        for kind in KINDS:
            _sync_kind(kind, root, env, ledger, report, now, settle_seconds, received_at, wait_seconds, progress)
    return report


def _sync_kind(
    kind: str,
    root: Path,
    env: Environment,
    ledger: _Ledger,
    report: SyncReport,
    now: datetime,
    settle_seconds: float,
    received_at: datetime | None,
    wait_seconds: float,
    progress: Progress | None,
) -> None:
    folder = root / kind
    if not folder.is_dir():
        return
    candidates = _candidates(folder, kind, report, now, settle_seconds)
    try:
        mapping, mapping_print = _mapping_of(folder, kind)
    except DataError as error:
        report.failed |= {source: f"not imported, its mapping is bad: {error}" for source, _ in candidates}
        report.failed[f"inbox/{kind}"] = str(error)
        return
    files = []
    for source, path in candidates:
        try:
            files.append(InboxFile(path, source, f"{_fingerprint(path)}:{mapping_print}"))
        except OSError as error:
            report.failed[source] = f"cannot be read: {error}"
    due = _due(kind, files, ledger, report)
    for file in due:
        before = _state(file.path)
        # Of a full catalogue only the newest file is one: those before it are past states.
        used = replace(mapping, full_catalogue=mapping.full_catalogue and file is due[-1]) if mapping else None
        try:
            done = _import(kind, file, env, used, received_at, wait_seconds, progress)
        except _BAD_FILE as error:
            report.failed[file.source] = str(error).removeprefix(f"{file.source} ")
            continue
        report.imported.append(done)
        if _state(file.path) == before:  # else it grew meanwhile, and is due again
            ledger.record(file)


def _due(kind: str, files: list[InboxFile], ledger: _Ledger, report: SyncReport) -> list[InboxFile]:
    """The files to import, in order; others are entered into the report."""
    changed = [file for file in files if ledger.fingerprint(file.source) != file.fingerprint]
    if kind != "events":
        first = files.index(changed[0]) if changed else len(files)
        report.unchanged += [file.source for file in files[:first]]
        return files[first:]
    current = {file.source: file.fingerprint for file in files}
    # Rows of a file that has left the inbox are still in the table.
    taken = {p: s for s, p in ledger.entries().items() if current.get(s, p) == p}
    due = []
    for file in files:
        if file not in changed:
            report.unchanged.append(file.source)
        elif file.fingerprint in taken:
            report.duplicates[file.source] = taken[file.fingerprint]
        else:
            taken[file.fingerprint] = file.source
            due.append(file)
    return due


def _import(
    kind: str,
    file: InboxFile,
    env: Environment,
    mapping: ColumnMap | None,
    received_at: datetime | None,
    wait_seconds: float,
    progress: Progress | None,
) -> ImportReport:
    options = Options(
        prefix=file.source.removesuffix(file.path.name),
        guess=mapping is None,
        rejects_folder=Path(env.home, "rejects", kind),
        wait_seconds=wait_seconds,
    )
    if kind == "events":
        return import_events(file.path, env, mapping, received_at=received_at, options=options, progress=progress)
    take = import_items if kind == "items" else import_users
    return take(file.path, env, mapping, received_at=received_at, options=options, progress=progress)


def _refuse_strays(root: Path, report: SyncReport) -> None:
    """What lies beside the three folders is nobody's, and is said."""
    for path in sorted(root.iterdir()):
        if path.name in KINDS or path.name.startswith((".", "README")):
            continue
        hint = nearest(path.name.lower(), KINDS)
        report.failed[f"inbox/{path.name}"] = f"is in none of the folders {', '.join(KINDS)}{hint}"


def _candidates(
    folder: Path, kind: str, report: SyncReport, now: datetime, settle_seconds: float
) -> list[tuple[str, Path]]:
    """(source, path) of whole files, sorted by source."""
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in relative.parts)
        if is_hidden or not path.is_file() or relative.as_posix() in MAPPING_FILES:
            continue
        source = f"inbox/{kind}/{relative.as_posix()}"
        if path.suffix.lower() in UNFINISHED:
            report.waiting[source] = f"its name ends with {path.suffix}: still being written"
            continue
        age = now.timestamp() - path.stat().st_mtime
        if age < settle_seconds:
            report.waiting[source] = f"modified {max(0.0, age):.0f} s ago; taken when older than {settle_seconds:g} s"
            if age < 0:
                report.waiting[source] = f"its modification time is {-age:.0f} s in the future"
            continue
        found.append((source, path))
    return sorted(found)


def _mapping_of(folder: Path, kind: str) -> tuple[ColumnMap | None, str]:
    """(mapping or None to guess, its fingerprint)."""
    there = [folder / name for name in MAPPING_FILES if (folder / name).is_file()]
    if len(there) > 1:
        raise DataError(f"{folder} has both {' and '.join(MAPPING_FILES)}; keep one")
    if not there:
        return None, "guessed"
    return ColumnMap.load(there[0], kind), _fingerprint(there[0])


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class _Ledger:
    """Source -> fingerprint of what was imported last. A ledger that cannot be read counts as empty: files are then
    imported again, which changes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            entries = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            entries = {}
        self._entries: dict[str, str] = _texts(entries.items()) if isinstance(entries, Mapping) else {}

    def entries(self) -> dict[str, str]:
        return dict(self._entries)

    def fingerprint(self, source: str) -> str | None:
        return self._entries.get(source)

    def record(self, file: InboxFile) -> None:
        """Enter a file, durably: the new ledger replaces the old one whole."""
        self._entries[file.source] = file.fingerprint
        write_whole(self._path, json.dumps(self._entries, indent=0, sort_keys=True).encode("utf-8"))


def _texts(entries: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    return {key: value for key, value in entries if isinstance(key, str) and isinstance(value, str)}
