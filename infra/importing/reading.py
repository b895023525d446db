"""Files as batches: what a line says, where it stands, and its original bytes.

Formats by extension: .csv (header line, UTF-8), .jsonl and .ndjson (one object a line), .parquet; text also as .gz.
A position is the record's number in its file from 1; headers and blank CSV lines are not counted, every JSONL line is.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.contracts.errors import DataError, nearest

TEXT_FORMATS = (".csv", ".jsonl", ".ndjson")
FORMATS = (*TEXT_FORMATS, ".parquet")
COLUMNAR = (".csv", ".parquet")
BATCH_ROWS = 250_000


class ImportFile(NamedTuple):
    """One file to import. `source` is its stable name in the tables; `form` its extension without `.gz`."""

    path: Path
    source: str
    form: str


class Unreadable(NamedTuple):
    """Stands for a line that is no record, with the words why."""

    detail: str


@dataclass(frozen=True)
class Batch:
    """Some consecutive records of one file: either `columns`, or `objects` (parsed JSON, or Unreadable).

    is_text       every value of `columns` is text and an empty one is absent (CSV)
    positions     the records' positions
    unreadable    rows of `columns` (all null there) that are no record
    raw           the original bytes of a row; a Parquet row has none of its own and is rendered as JSON
    """

    file: ImportFile
    positions: NDArray[np.int64]
    raw: Callable[[int], bytes]
    columns: pa.Table | None = None
    objects: Sequence[Any] = ()
    is_text: bool = False
    unreadable: dict[int, Unreadable] | None = None


def find_files(path: str | Path, *, prefix: str = "") -> list[ImportFile]:
    """The file itself (source = its name), or every readable file below a folder (source = folder name/relative path).

    Sorted by source. Raises DataError when there is none, or when a file's extension is not known.
    """
    root = Path(path)
    if root.is_dir():
        found = [p for p in sorted(root.rglob("*")) if p.is_file() and _form(p) in FORMATS]
        if not found:
            raise DataError(f"{root} holds no file to import; expected one of {', '.join(FORMATS)} (text also as .gz)")
        name = prefix + root.resolve().name
        files = [ImportFile(p, f"{name}/{p.relative_to(root).as_posix()}", _form(p)) for p in found]
        return sorted(files, key=lambda file: file.source)
    if not root.exists():
        siblings = [p.name for p in root.parent.iterdir()] if root.parent.is_dir() else []
        raise DataError(f"there is no file {root}{nearest(root.name, siblings)}")
    if _form(root) not in FORMATS:
        hint = nearest(_form(root), FORMATS) if _form(root) else ""
        raise DataError(f"cannot import {root.name}: expected one of {', '.join(FORMATS)} (text also as .gz){hint}")
    return [ImportFile(root, prefix + root.name, _form(root))]


def _form(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    if suffixes and suffixes[-1] == ".gz":
        return suffixes[0] if len(suffixes) == 2 and suffixes[0] in TEXT_FORMATS else ".gz"
    return suffixes[-1] if suffixes else ""


def column_names(file: ImportFile) -> list[str]:
    """The columns a file has: its header, its schema, or the keys of its first 1,000 JSON lines. Reads little.

    Raises DataError when the file cannot be opened as what its extension says.
    """
    if file.form == ".parquet":
        return list(_parquet(file).schema_arrow.names)
    content = read_bytes(file)
    if file.form == ".csv":
        header = next(csv.reader(io.StringIO(_decoded(content.partition(b"\n")[0]))), None)
        if not header:
            raise DataError(f"{file.source} is empty; expected a header line with column names")
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataError(f"{file.source} has the column {twice[0]!r} twice", field=twice[0])
        return header
    names: dict[str, None] = {}
    for line in content.split(b"\n", 1_000)[:1_000]:
        parsed = _parsed(line)
        if isinstance(parsed, dict):
            names.update(dict.fromkeys(parsed))
    return list(names)


def read_bytes(file: ImportFile) -> bytes:
    """The content, decompressed. Raises DataError when it cannot be read."""
    try:
        content = file.path.read_bytes()
        return gzip.decompress(content) if file.path.suffix.lower() == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file.source} cannot be read: {error}") from error


def read_batches(file: ImportFile) -> Iterator[Batch]:
    """All records of a file, in order. Raises DataError when the file is damaged."""
    if file.form == ".parquet":
        return _parquet_batches(file)
    return _csv_batches(file) if file.form == ".csv" else _json_batches(file)


def _parquet(file: ImportFile) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file.path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file.source} cannot be read as Parquet: {error}") from error


def _parquet_batches(file: ImportFile) -> Iterator[Batch]:
    parquet = _parquet(file)
    first = 1
    try:
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
            columns = pa.Table.from_batches([batch])

            def raw(row: int, columns: pa.Table = columns) -> bytes:
                return json.dumps(columns.slice(row, 1).to_pylist()[0], default=str).encode()

            yield Batch(file, np.arange(first, first + batch.num_rows), raw, columns)
            first += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file.source} is damaged after row {first - 1}: {error}") from error


def _json_batches(file: ImportFile) -> Iterator[Batch]:
    lines = read_bytes(file).removesuffix(b"\n").split(b"\n")
    for first in range(0, len(lines), BATCH_ROWS):
        some = [
            (number, line) for number, line in enumerate(lines[first : first + BATCH_ROWS], first + 1) if line.strip()
        ]
        raws = [line for _, line in some]
        positions = np.array([number for number, _ in some], np.int64)
        yield Batch(file, positions, raws.__getitem__, objects=[_parsed(line) for line in raws])


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unreadable(f"the line is no UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Unreadable(f"the line is no JSON: {error}"[:200])


def _decoded(content: bytes) -> str:
    """Text; bytes that are no UTF-8 become lone surrogates, which mark their line as unreadable."""
    return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def _csv_batches(file: ImportFile) -> Iterator[Batch]:
    text = _decoded(read_bytes(file))
    is_clean = text.isascii() or _encodes(text)
    lines = text.split("\n")
    ended = [line + "\n" for line in lines[:-1]] + lines[-1:]
    reader = csv.reader(ended)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise DataError(f"{file.source} cannot be read as CSV: {error}") from error
    position = 0
    while True:
        rows, raws, unreadable = _csv_rows(reader, ended, len(header), is_clean)
        if not rows:
            return
        columns = pa.table(
            {name: pa.array(values, pa.string()) for name, values in zip(header, zip(*rows, strict=True), strict=True)}
        )
        yield Batch(
            file,
            np.arange(position + 1, position + len(rows) + 1),
            lambda row, raws=raws: raws[row].rstrip("\r\n").encode("utf-8", "surrogateescape"),  # type: ignore[misc]
            columns,
            is_text=True,
            unreadable=unreadable,
        )
        position += len(rows)


def _csv_rows(
    reader: Any, lines: Sequence[str], width: int, is_clean: bool
) -> tuple[list[list[str | None]], list[str], dict[int, Unreadable]]:
    """The next records: values ("" as None), the text they stood in, and those that do not fit the header."""
    rows: list[list[str | None]] = []
    raws: list[str] = []
    unreadable: dict[int, Unreadable] = {}
    while len(rows) < BATCH_ROWS:
        start = reader.line_num
        try:
            values = next(reader, None)
            problem = None
        except csv.Error as error:
            values, problem = ["?"], str(error)
        if values is None:
            break
        if not values:
            continue
        raw = lines[start] if reader.line_num == start + 1 else "".join(lines[start : reader.line_num])
        if problem is None and len(values) != width:
            problem = f"the line has {len(values)} values, the header has {width} columns"
        if problem is None and not is_clean and not _encodes(raw):
            problem = "the line is no UTF-8"
        if problem is not None:
            unreadable[len(rows)] = Unreadable(problem)
            rows.append([None] * width)
        else:
            rows.append([value or None for value in values])
        raws.append(raw)
    return rows, raws, unreadable


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
