"""What a power cut can leave of a Delta table that one process writes on a local disk, and how it becomes whole again.

Spark and the light engine write data files, then the log entry that names them, and fsync neither; we do so
afterwards. A cut in between can keep the entry and lose what it names. Such a commit was never answered for: what it
held is still where it came from. So it is taken back, and whoever writes the table writes it again.

Spark reads a file by the checksums beside it (`.NAME.crc`) when there are any; those too are on disk, or go.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

logger = logging.getLogger("nightjar.tables")

MOST_UNSYNCED_COMMITS = 10
"""More commits than a process can leave behind unsynced: compaction makes one between two syncs, vacuum two."""

FOLDERS_ABOVE = 4
"""Where the first table of an installation may have made names: its layer, the tenant, the lakehouse and the home."""

_ENTRY = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint.*\.parquet")
_PARQUET = b"PAR1"
_SIDECAR_MARK, _SIDECAR_HEADER_BYTES, _SUM_BYTES = b"crc\0", 8, 4


def take_back_torn_commits(root: Path) -> list[int]:
    """Remove the newest commits from the first on that is torn, and checkpoints that are torn or include one of these.

    Torn: the entry is no JSON, or a file that it adds (and no later one removes) is missing or shorter than it says.
    Only the table's one writer may call it. Returns the versions that were removed, the newest first.
    """
    log = root / "_delta_log"
    if not log.is_dir():
        return []
    entries = {int(match[1]): path for path in log.iterdir() if (match := _ENTRY.fullmatch(path.name))}
    torn_from: int | None = None
    removed: set[str] = set()
    for path in log.iterdir():
        _drop_torn_sidecar(path)
    for version in sorted(entries, reverse=True)[:MOST_UNSYNCED_COMMITS]:
        actions = _read(entries[version])
        if actions is None or any(
            not _is_whole(root, add) for add in _all(actions, "add") if add["path"] not in removed
        ):
            torn_from = version
        else:
            removed |= {remove["path"] for remove in _all(actions, "remove")}
            for add in _all(actions, "add"):
                _drop_torn_sidecar(root / unquote(add["path"]))
    gone = [] if torn_from is None else sorted((v for v in entries if v >= torn_from), reverse=True)
    has_changed = _remove_checkpoints(log, torn_from)
    for version in gone:  # the newest first: what is left is a table at every moment
        logger.warning("%s: commit %d was cut off before it was on disk; it is taken back", root, version)
        entries[version].unlink()
        # The next commit of this number may come from the other engine, which writes no checksums.
        for beside in (entries[version], log / f"{version:020d}.crc"):
            beside.unlink(missing_ok=True)
            _sidecar(beside).unlink(missing_ok=True)
    if gone or has_changed:
        sync(log)
    return gone


def _remove_checkpoints(log: Path, torn_from: int | None) -> bool:
    """Remove checkpoints that are no Parquet or contain a torn commit, and the pointer to the newest; whether any."""
    has_changed = False
    for path in log.iterdir():
        match = _CHECKPOINT.fullmatch(path.name)
        if match and (not _is_parquet(path) or (torn_from is not None and int(match[1]) >= torn_from)):
            path.unlink()
            _sidecar(path).unlink(missing_ok=True)
            has_changed = True
    pointer = log / "_last_checkpoint"
    if pointer.exists() and (has_changed or _read(pointer) is None):
        pointer.unlink()  # the engines look for checkpoints by themselves then
        _sidecar(pointer).unlink(missing_ok=True)
        has_changed = True
    return has_changed


def newest_commit(root: Path) -> int:
    """The number of the newest commit; -1 when there is no table."""
    numbers = [int(match[1]) for path in (root / "_delta_log").glob("*.json") if (match := _ENTRY.fullmatch(path.name))]
    return max(numbers, default=-1)


def sync_newest(root: Path, synced: int = -1) -> int:
    """fsync the commits that may not be on disk: those after `synced`, or MOST_UNSYNCED_COMMITS if those are fewer.
    Returns the newest."""
    newest = newest_commit(root)
    if newest > synced:
        sync_commits(root, max(synced + 1, newest + 1 - MOST_UNSYNCED_COMMITS), newest)
    return newest


def sync_commits(root: Path, first: int, newest: int) -> None:
    """fsync the commits `first` to `newest`, and the checkpoints that the engine may have written with them.

    What is named comes before what names it: data files, their folders, log entries, the log's folder; with commit 0
    also the folders that the table lies in.
    """
    log = root / "_delta_log"
    entries = [log / f"{version:020d}.json" for version in range(first, newest + 1)]
    data_files = [path for entry in entries for path in _data_files(root, entry)]
    checkpoints = [found for entry in entries for found in log.glob(f"{entry.stem}.checkpoint*.parquet")]
    sums = [log / f"{entry.stem}.crc" for entry in entries]  # Spark's, of the state after a commit
    for path in (
        *_there(data_files),  # a later commit may have compacted it away
        *sorted({path.parent for path in data_files if path.parent.is_dir()}),
        root,
        *_there([*entries, *checkpoints, *sums, log / "_last_checkpoint"]),
        log,
        *(root.parents[:FOLDERS_ABOVE] if first == 0 else ()),  # a table that is new: its own name, and theirs
    ):
        sync(path)


def _data_files(root: Path, entry: Path) -> list[Path]:
    """What a log entry adds. Its lines end with LF alone: statistics hold texts that have other line ends in them."""
    lines = entry.read_bytes().split(b"\n") if entry.exists() else []
    added = [json.loads(line).get("add") for line in lines if line]
    return [root / unquote(add["path"]) for add in added if add]


def _there(paths: Iterable[Path]) -> Iterator[Path]:
    """Those of the files that exist, each followed by its sidecar."""
    return (found for path in paths for found in (path, _sidecar(path)) if found.exists())


def _sidecar(path: Path) -> Path:
    """Where Hadoop keeps the checksums of a file."""
    return path.with_name(f".{path.name}.crc")


def _drop_torn_sidecar(path: Path) -> None:
    """Remove the checksums of a file when they are not as many as it needs: without any it is read unchecked."""
    sidecar = _sidecar(path)
    if not sidecar.is_file() or not path.is_file():
        return
    found = sidecar.read_bytes()
    each = int.from_bytes(found[len(_SIDECAR_MARK) : _SIDECAR_HEADER_BYTES], "big")
    whole = _SIDECAR_HEADER_BYTES + _SUM_BYTES * -(-path.stat().st_size // each) if each else -1
    if not found.startswith(_SIDECAR_MARK) or len(found) != whole:
        sidecar.unlink()


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> list[dict[str, Any]] | None:
    """The lines of a log entry; None when it is empty or one of them is no JSON object.

    Lines end with LF alone: statistics hold texts that have other line ends in them."""
    try:
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    except ValueError:
        return None
    return lines if lines and all(isinstance(line, dict) for line in lines) else None


def _all(actions: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [action[kind] for action in actions if action.get(kind)]


def _is_whole(root: Path, add: Mapping[str, Any]) -> bool:
    path = root / unquote(add["path"])
    return path.is_file() and path.stat().st_size >= add["size"]


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < 2 * len(_PARQUET):
            return False
        file.seek(-len(_PARQUET), os.SEEK_END)
        return file.read() == _PARQUET
