"""Files as batches: what a line says, where it stands, and its original bytes.

Formats by extension: .csv and .tsv (header line), .jsonl and .ndjson (one object a line), .parquet; items also .xml and
.txt (Google Merchant feeds), .json and .jsonld (schema.org products). Text also as .gz, in UTF-8 unless said otherwise.
A position is the record's number in its file from 1; headers and blank CSV lines are not counted, every JSONL line is.
A reject file (`rejects`) is read like the file it came from; its remarks are no records.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.contracts.errors import DataError, nearest
from infra.importing.mapping import MAPPING_FILES
from infra.importing.merchant_feed import looks_like_feed, read_feed_xml
from infra.importing.rejects import MARK, marked_format, start_of
from infra.importing.schema_org import is_schema_org, products_in
from infra.importing.text_encoding import to_utf8

TEXT_FORMATS = (".csv", ".jsonl", ".ndjson", ".tsv")
FORMATS = (*TEXT_FORMATS, ".parquet")
ITEM_TEXT_FORMATS = (*TEXT_FORMATS, ".txt", ".xml", ".json", ".jsonld")
MERCHANT_FEED, SCHEMA_ORG = "google-merchant", "schema-org"
COLUMNAR = (".csv", ".parquet")
BATCH_ROWS = 250_000
_FORMS = {"csv": ".csv", "jsonl": ".jsonl", "parquet": ".parquet"}
_DELIMITERS = (",", "\t", ";", "|")
_GIVE_ENCODING = "; another encoding is given with --encoding, such as cp1252"


class ImportFile(NamedTuple):
    """One file to import.

    source     its stable name in the tables
    form       how it is read: .csv, .jsonl, .ndjson, .parquet, MERCHANT_FEED or SCHEMA_ORG
    encoding   of the text; None: a byte order mark decides, else UTF-8
    delimiter  of a CSV file; None: the one its header shows
    is_rejects it holds lines that an import refused
    """

    path: Path
    source: str
    form: str
    encoding: str | None = None
    delimiter: str | None = None
    is_rejects: bool = False

    @property
    def may_lack_columns(self) -> bool:
        """A few JSON lines out of many need not have every key."""
        return self.is_rejects and self.form not in COLUMNAR


class Unreadable(NamedTuple):
    """Stands for a line that is no record, with the words why."""

    detail: str


@dataclass(frozen=True)
class Batch:
    """Some consecutive records of one file: either `columns`, or `objects` (parsed JSON, or Unreadable).

    is_text       every value of `columns` is text and an empty one is absent (CSV)
    positions     the records' positions
    unreadable    rows of `columns` (all null there) that are no record
    raw           the original bytes of a row (in UTF-8); a row of a Parquet or XML file is rendered as JSON
    line_numbers  where the records start in the file, from 1; None: at their positions
    header        the header line of a CSV file
    """

    file: ImportFile
    positions: NDArray[np.int64]
    raw: Callable[[int], bytes]
    columns: pa.Table | None = None
    objects: Sequence[Any] = ()
    is_text: bool = False
    unreadable: dict[int, Unreadable] | None = None
    line_numbers: NDArray[np.int64] | None = None
    header: bytes | None = None

    def line_number(self, row: int) -> int:
        """Where the record of a row starts in its file, from 1."""
        return int((self.positions if self.line_numbers is None else self.line_numbers)[row])


def find_files(
    path: str | Path,
    *,
    prefix: str = "",
    kind: str = "events",
    input_format: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> list[ImportFile]:
    """The file itself (source = its name), or every readable file below a folder (source = folder name/relative path).

    Sorted by source. `input_format` (`mapping.INPUT_FORMATS`) overrules extension and content. Raises DataError when
    there is none, or when a file's extension is not known.
    """
    root = Path(path)
    extensions = (*ITEM_TEXT_FORMATS, ".parquet") if kind == "items" else FORMATS

    def file(found: Path, source: str) -> ImportFile:
        plain = ImportFile(found, source, _extension(found), encoding, delimiter)
        if (marked := marked_format(start_of(found))) is not None:  # written by us, whatever the mapping says
            return plain._replace(form=_FORMS.get(marked, marked), encoding="utf-8", is_rejects=True)
        if input_format is not None:
            return plain._replace(form=_FORMS.get(input_format, input_format))
        return plain._replace(form=_form(plain, kind))

    if root.is_dir():
        files = [p for p in sorted(root.rglob("*")) if p.is_file() and p.name not in MAPPING_FILES]
        found = [p for p in files if _extension(p) in extensions]
        if not found:
            raise DataError(
                f"{root} holds no file to import; expected one of {', '.join(extensions)} (text also as .gz)"
            )
        name = prefix + root.resolve().name
        return sorted((file(p, f"{name}/{p.relative_to(root).as_posix()}") for p in found), key=lambda f: f.source)
    if not root.exists():
        siblings = [p.name for p in root.parent.iterdir()] if root.parent.is_dir() else []
        raise DataError(f"there is no file {root}{nearest(root.name, siblings)}")
    if _extension(root) not in extensions and input_format is None:
        hint = nearest(_extension(root), extensions) if _extension(root) else ""
        raise DataError(f"cannot import {root.name}: expected one of {', '.join(extensions)} (text also as .gz){hint}")
    return [file(root, prefix + root.name)]


def _extension(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    if suffixes and suffixes[-1] == ".gz":
        return suffixes[0] if len(suffixes) == 2 and suffixes[0] in ITEM_TEXT_FORMATS else ".gz"
    return suffixes[-1] if suffixes else ""


def _form(file: ImportFile, kind: str) -> str:
    """How a file of this extension is read; of items, the first bytes decide between feed, schema.org and plain."""
    extension = file.form
    if extension == ".tsv":
        extension = ".csv"
    if kind != "items" or extension == ".parquet":
        return extension
    if extension == ".xml":
        return MERCHANT_FEED
    if extension in (".json", ".jsonld"):
        return SCHEMA_ORG
    content = read_text(file)
    if extension in (".csv", ".txt"):
        header, _ = _header(file, content)
        return MERCHANT_FEED if content.lstrip()[:1] == b"<" or looks_like_feed(header) else ".csv"
    first = next((line for line in content.split(b"\n", 20) if line.strip()), b"")
    return SCHEMA_ORG if is_schema_org(_parsed(first)) else extension


def column_names(file: ImportFile) -> list[str]:
    """The columns a file has: its header, its schema, or the keys of its first 1,000 records. Reads little.

    Raises DataError when the file cannot be opened as what its extension says.
    """
    if file.form == ".parquet":
        return list(_parquet(file).schema_arrow.names)
    if _is_csv(file):
        header, _ = _header(file, read_text(file))
        if not header:
            raise DataError(f"{file.source} is empty; expected a header line with column names")
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DataError(f"{file.source} has the column {twice[0]!r} twice", field=twice[0])
        return header
    names: dict[str, None] = {}
    if file.form in (MERCHANT_FEED, SCHEMA_ORG):
        for batch in read_batches(file):
            for record in batch.objects[:1_000]:
                names.update(dict.fromkeys(record if isinstance(record, Mapping) else ()))
            break
        return list(names)
    for line in read_text(file).split(b"\n", 1_000)[:1_000]:
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


def read_text(file: ImportFile) -> bytes:
    """The content of a text file as UTF-8, as `text_encoding.to_utf8`; the remarks of a reject file are blank lines."""
    content = to_utf8(read_bytes(file), file.source, file.encoding)
    if content.startswith(MARK):
        content = b"\n".join(b"" if line.startswith(b"#! ") else line for line in content.split(b"\n"))
    return content


def read_batches(file: ImportFile) -> Iterator[Batch]:
    """All records of a file, in order. Raises DataError when the file is damaged."""
    if file.form == ".parquet":
        return _parquet_batches(file)
    if _is_csv(file):
        return _csv_batches(file)
    if file.form == SCHEMA_ORG:
        return _schema_org_batches(file)
    if file.form == MERCHANT_FEED and _first_byte(file) == b"<":
        return _feed_batches(file)
    return _json_batches(file)


def rejected_form(batch: Batch) -> tuple[str, str]:
    """(extension, input format) of a reject file that holds `raw` lines of this batch."""
    if batch.header is not None:
        is_tabbed = _extension(batch.file.path) in (".tsv", ".txt")
        return (".tsv" if is_tabbed else ".csv"), ("csv" if batch.file.form == ".csv" else batch.file.form)
    return ".jsonl", batch.file.form if batch.file.form in (MERCHANT_FEED, SCHEMA_ORG) else "jsonl"


def _first_byte(file: ImportFile) -> bytes:
    """What the text starts with, whatever its encoding: < is XML, { is JSON."""
    start = read_bytes(file)[:200].replace(b"\x00", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")
    if start.startswith(MARK):
        return read_text(file).lstrip()[:1]
    return start[:1]


def _is_csv(file: ImportFile) -> bool:
    return file.form == ".csv" or (file.form == MERCHANT_FEED and _first_byte(file) not in (b"<", b"{"))


def _header(file: ImportFile, content: bytes) -> tuple[list[str], str]:
    """(column names, delimiter). The delimiter of a header that shows none is a comma."""
    line = content.lstrip(b"\r\n").partition(b"\n")[0]
    text = _decoded(line)
    delimiter = file.delimiter or max(_DELIMITERS, key=text.count)
    return next(csv.reader(io.StringIO(text), delimiter=delimiter), []), delimiter


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
    lines = read_text(file).removesuffix(b"\n").split(b"\n")
    for first in range(0, len(lines), BATCH_ROWS):
        some = [
            (number, line) for number, line in enumerate(lines[first : first + BATCH_ROWS], first + 1) if line.strip()
        ]
        raws = [line for _, line in some]
        positions = np.array([number for number, _ in some], np.int64)
        yield Batch(file, positions, raws.__getitem__, objects=[_parsed(line) for line in raws])


def _feed_batches(file: ImportFile) -> Iterator[Batch]:
    records = ((r.line, r.values) for r in read_feed_xml(read_bytes(file), file.source, file.encoding))
    return _record_batches(file, records)


def _schema_org_batches(file: ImportFile) -> Iterator[Batch]:
    return _record_batches(file, _products(file))


def _products(file: ImportFile) -> Iterator[tuple[int, Any]]:
    """(line, product or Unreadable). A file is one document, or one document a line; a line without a product is
    unreadable, a document without one is no catalogue (DataError)."""
    content = read_text(file)
    lines = content.removesuffix(b"\n").split(b"\n")
    first = next((line for line in lines if line.strip()), b"")
    if _extension(file.path) in (".jsonl", ".ndjson") or isinstance(_parsed(first), dict):
        for number, line in enumerate(lines, 1):
            document = _parsed(line) if line.strip() else []
            found = list(products_in(document))
            yield from ((number, product) for product in found)
            if line.strip() and not found:
                detail = "the line has no schema.org Product"
                yield number, document if isinstance(document, Unreadable) else Unreadable(detail)
        return
    document = _parsed(content)
    if isinstance(document, Unreadable):
        raise DataError(f"{file.source} cannot be read as JSON: {document.detail}")
    found = list(products_in(document))
    if not found:
        raise DataError(f"{file.source} has no schema.org Product (JSON-LD with an @type Product, or a list of them)")
    yield from ((number, product) for number, product in enumerate(found, 1))


def _record_batches(file: ImportFile, records: Iterator[tuple[int, Any]]) -> Iterator[Batch]:
    """Records with the lines they start on; a whole document's records are numbered instead."""
    position = 0
    while some := list(islice(records, BATCH_ROWS)):
        objects = [record for _, record in some]

        def raw(row: int, objects: list[Any] = objects) -> bytes:
            return json.dumps(objects[row], ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")

        yield Batch(
            file,
            np.arange(position + 1, position + len(some) + 1),
            raw,
            objects=objects,
            line_numbers=np.array([line for line, _ in some], np.int64),
        )
        position += len(some)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unreadable(f"the line is no UTF-8: {error.reason} at byte {error.start}{_GIVE_ENCODING}")
    except (ValueError, RecursionError) as error:
        return Unreadable(f"no JSON: {error}"[:200])


def _decoded(content: bytes) -> str:
    """Text; bytes that are no UTF-8 become lone surrogates, which mark their line as unreadable."""
    return content.decode("utf-8", "surrogateescape")


def _csv_batches(file: ImportFile) -> Iterator[Batch]:
    content = read_text(file)
    text = _decoded(content)
    is_clean = text.isascii() or _encodes(text)
    lines = text.split("\n")
    ended = [line + "\n" for line in lines[:-1]] + lines[-1:]
    reader = csv.reader(ended, delimiter=_header(file, content)[1])
    try:
        header = next((values for values in reader if values), [])
    except csv.Error as error:
        raise DataError(f"{file.source} cannot be read as CSV: {error}") from error
    header_line = _bytes("".join(ended[: reader.line_num]).lstrip("\r\n"))
    position = 0
    while True:
        rows, raws, starts, unreadable = _csv_rows(reader, ended, len(header), is_clean)
        if not rows:
            return
        columns = pa.table(
            {name: pa.array(values, pa.string()) for name, values in zip(header, zip(*rows, strict=True), strict=True)}
        )
        yield Batch(
            file,
            np.arange(position + 1, position + len(rows) + 1),
            lambda row, raws=raws: _bytes(raws[row]),  # type: ignore[misc]
            columns,
            is_text=True,
            unreadable=unreadable,
            line_numbers=np.array(starts, np.int64) + 1,
            header=header_line,
        )
        position += len(rows)


def _bytes(line: str) -> bytes:
    return line.rstrip("\r\n").encode("utf-8", "surrogateescape")


def _csv_rows(
    reader: Any, lines: Sequence[str], width: int, is_clean: bool
) -> tuple[list[list[str | None]], list[str], list[int], dict[int, Unreadable]]:
    """The next records: values ("" as None), their text, the line before it, and those that do not fit the header."""
    rows: list[list[str | None]] = []
    raws: list[str] = []
    starts: list[int] = []
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
            problem = f"the line is no UTF-8{_GIVE_ENCODING}"
        if problem is not None:
            unreadable[len(rows)] = Unreadable(problem)
            rows.append([None] * width)
        else:
            rows.append([value or None for value in values])
        raws.append(raw)
        starts.append(start)
    return rows, raws, starts, unreadable


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
