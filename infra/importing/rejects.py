"""Reject files: the lines that an import refused, as they stood, each under a remark that says why.

    #! nightjar rejects of orders.csv; format=csv
    id,sku,price
    #! line 17: invalid_price in price: price is a number >= 0, got 'dear'
    7,A-1,dear

Mend the lines in place and import the file like the first one: remarks are no records. A file that was mended is never
written over (its second line carries the hash of what we wrote); the next import then writes NAME.2 and so on.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.whole_files import write_whole

MARK = b"#! nightjar rejects"
_FIRST = re.compile(rb"#! nightjar rejects of (.*); format=([a-z-]+)\r?$", re.MULTILINE)
_HASH = re.compile(rb"#! written as ([0-9a-f]{16}); .*\r?\n")


class RejectedLine(NamedTuple):
    """One refused line: where it starts in its file, why, and its bytes."""

    line_number: int
    reason: str
    field: str | None
    detail: str
    raw: bytes


class RejectedFile(NamedTuple):
    """The refused lines of one file, in order. `input_format` is how the reject file is to be read again."""

    source: str
    input_format: str
    extension: str
    header: bytes | None
    lines: list[RejectedLine]


def marked_format(content: bytes) -> str | None:
    """The input format that a reject file names, or None when this is no reject file."""
    if not content.startswith(MARK):
        return None
    found = _FIRST.match(content)
    return found[2].decode() if found else None


def reject_path(folder: Path, source: str, extension: str) -> Path:
    """Where the rejects of a source go by default: `<folder>/<source with - for />.rejects<extension>`."""
    stem = source.removeprefix("items:").removeprefix("users:")
    for ending in (".gz", ".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet", ".xml", ".json", ".jsonld"):
        stem = stem[: -len(ending)] if stem.lower().endswith(ending) else stem
    return folder / f"{stem.replace('/', '-')}.rejects{extension}"


def check_target(path: Path, *, is_folder: bool) -> None:
    """Raises DataError when `path` is a file that is not ours to replace, or not the folder or file it has to be."""
    if is_folder and path.exists() and not path.is_dir():
        raise DataError(f"{path} is a file; with several files to import, --rejects names a folder")
    if not is_folder and path.is_dir():
        raise DataError(f"{path} is a folder; with one file to import, --rejects names a file")
    if path.is_file() and path.stat().st_size and not start_of(path).startswith(MARK):
        raise DataError(f"{path} is there and is no reject file; name another with --rejects")


def write_rejects(path: Path, rejected: RejectedFile) -> Path | None:
    """Write the reject file, or remove an older one of ours when nothing was refused; the path, None when none.

    A mended older file stays; a numbered name is taken instead. Atomic: readers see the old file or the new one.
    """
    target, number = path, 1
    while target.exists() and (
        not _is_unmended(target) or (rejected.lines and _is_of_another(target, rejected.source))
    ):
        number += 1
        target = path.with_name(f"{path.stem}.{number}{path.suffix}")
    if not rejected.lines:
        if path.exists() and _is_unmended(path) and not _is_of_another(path, rejected.source):
            path.unlink()
        return None
    body = b"".join(part + b"\n" for part in _parts(rejected))
    first = f"#! nightjar rejects of {_one_line(rejected.source)}; format={rejected.input_format}\n".encode()
    digest = hashlib.sha256(body).hexdigest()[:16]
    note = f"#! written as {digest}; mend the lines below and import this file; remarks like this one are skipped\n"
    return write_whole(target, first + note.encode() + body)


def _parts(rejected: RejectedFile) -> list[bytes]:
    parts = [] if rejected.header is None else [rejected.header]
    for line in rejected.lines:
        where = f" in {line.field}" if line.field else ""
        remark = f"#! line {line.line_number}: {line.reason}{where}: {_one_line(line.detail)}"
        parts += [remark.encode("utf-8", "replace"), line.raw]
    return parts


def _one_line(text: str) -> str:
    return " ".join(text.split())


def start_of(path: Path) -> bytes:
    """The first bytes of a file; none when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _is_unmended(path: Path) -> bool:
    """Ours, and byte for byte as we wrote it."""
    content = path.read_bytes()
    if not content.startswith(MARK):
        return False
    _, _, rest = content.partition(b"\n")
    found = _HASH.match(rest)
    return found is not None and hashlib.sha256(rest[found.end() :]).hexdigest()[:16].encode() == found[1]


def _is_of_another(path: Path, source: str) -> bool:
    found = _FIRST.match(start_of(path))
    return found is None or found[1].decode("utf-8", "replace") != _one_line(source)
