"""How the columns of somebody else's file become ours: a mapping, given on the command line or saved as a file.

On the command line `field=column`, or a constant as `field=:value`. As a file, TOML or JSON with the same entries:

    kind = "events"                      # items, users or events; checked when given
    format = "csv"                       # how the file is read: see `reading`; also encoding, delimiter
    encoding = "cp1252"
    delimiter = ";"
    time_zone = "Europe/London"          # of times without an offset; without it they are UTC
    time_format = "%d/%m/%Y %H:%M"       # strptime; without it RFC 3339 or seconds since 1970
    decimal = ","                        # "1.234,50"
    category_separator = "/"             # theirs; ours is " > "
    full_catalogue = true                # items: the files (in the inbox: the last one) are all there is
    ignore = ["Country"]                 # columns to leave out; other unknown columns are kept as properties/attributes
    [columns]                            # our field = their column
    user_id = "CustomerID"
    [constants]                          # our field = one value for every line
    currency = "GBP"
    [values.event_type]                  # their value = ours
    "Order" = "purchase"
"""

from __future__ import annotations

import json
import tomllib
from codecs import lookup
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pandas as pd
import pyarrow as pa

from feature_repo.contracts.catalogue import AVAILABILITIES, ITEM_FIELDS, USER_FIELDS
from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.events import CONSENT_PURPOSES, EVENT_FIELDS, EVENT_TYPES
from infra.importing.conversions import (
    Rule,
    as_number,
    category_paths,
    convert_column,
    convert_values,
    localized,
    numbers,
    times,
    translation,
)

CONSENT_COLUMNS = tuple(f"consent_{purpose}" for purpose in CONSENT_PURPOSES)
"""Flat columns for consent{}; a file may have either."""
EVENT_COLUMNS = (*EVENT_FIELDS, *CONSENT_COLUMNS)
FIELDS_BY_KIND: Mapping[str, Sequence[str]] = {"items": ITEM_FIELDS, "users": USER_FIELDS, "events": EVENT_COLUMNS}
TIMES = ("timestamp", "sent_at", "available_time", "expire_time", "created_at", "updated_at")
NUMBERS = ("price", "value")
CATEGORIES = ("category", "categories")
INPUT_FORMATS = ("csv", "jsonl", "parquet", "google-merchant", "schema-org")
MAPPING_FILES = ("mapping.toml", "mapping.json")
"""What a folder's own mapping is called; such a file is no data."""
_KNOWN_VALUES = {"event_type": sorted(EVENT_TYPES), "availability": AVAILABILITIES}
_TEXT_ENTRIES = (
    "kind", "format", "encoding", "delimiter", "time_zone", "time_format", "decimal", "category_separator",
)  # fmt: skip


@dataclass(frozen=True)
class ColumnMap:
    """`columns`: our field -> their column. `constants`: our field -> one value for every line. Others: see the module.

    A mapped column loses its old name, and may give several fields; a mapped field hides a column that already had that
    name. Order of the rules of
    a field: `values`, then decimal, time or category.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    kind: str | None = None
    format: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    time_zone: str | None = None
    time_format: str | None = None
    decimal: str | None = None
    category_separator: str | None = None
    full_catalogue: bool = False

    @classmethod
    def parse(cls, pairs: Sequence[str], known: Sequence[str] = EVENT_COLUMNS) -> ColumnMap:
        """From `field=column` and `field=:value` texts. Raises DataError naming the pair and the nearest field."""
        columns: dict[str, str] = {}
        constants: dict[str, str] = {}
        for pair in pairs:
            name, equals, target = pair.partition("=")
            if not equals or not target or target == ":":
                raise DataError(f"a mapping is field=column or field=:value, got {pair!r}", field=pair)
            _check_field(name, known)
            if name in columns or name in constants:
                raise DataError(f"the field {name!r} is mapped twice", field=name)
            if target.startswith(":"):
                constants[name] = target[1:]
            else:
                columns[name] = target
        return cls(columns, constants)

    @classmethod
    def from_mapping(cls, entries: Mapping[str, Any], kind: str) -> ColumnMap:
        """From the entries of a mapping file. Raises DataError naming the entry, its value and the nearest right."""
        for name in entries:
            if name not in _ENTRIES:
                raise DataError(f"a mapping has no entry {name!r}{nearest(str(name), _ENTRIES)}", field=str(name))
        for name in _TEXT_ENTRIES:
            if name in entries and not (isinstance(entries[name], str) and entries[name]):
                raise DataError(f"{name} of a mapping is a text, got {entries[name]!r}", field=name)
        if entries.get("kind", kind) != kind:
            raise DataError(f"this mapping is for {entries['kind']}, not for {kind}", field="kind")
        for name in ("columns", "constants"):
            _check_texts(entries.get(name, {}), name)
            for ours in entries.get(name, {}):
                _check_field(ours, FIELDS_BY_KIND[kind])
        both = sorted(set(entries.get("columns", {})) & set(entries.get("constants", {})))
        if both:
            raise DataError(f"the field {both[0]!r} is mapped twice", field=both[0])
        if not isinstance(entries.get("values", {}), Mapping):
            raise DataError(f"values of a mapping is a table per field, got {entries['values']!r}", field="values")
        for ours, words in entries.get("values", {}).items():
            _check_field(ours, FIELDS_BY_KIND[kind])
            _check_texts(words, f"values.{ours}")
            for word in words.values():
                known = _KNOWN_VALUES.get(ours, (word,))
                if word not in known:
                    raise DataError(f"{word!r} is no {ours}{nearest(word, known)}", field=f"values.{ours}")
        full = entries.get("full_catalogue", False)
        if not isinstance(full, bool) or (full and kind != "items"):
            raise DataError(
                f"full_catalogue of a mapping of items is true or false, got {full!r}", field="full_catalogue"
            )
        ignore = entries.get("ignore", ())
        if isinstance(ignore, str) or not all(isinstance(name, str) for name in ignore):
            raise DataError(f"ignore of a mapping is a list of columns, got {ignore!r}", field="ignore")
        mapped = cls(**{**entries, "ignore": tuple(ignore), "kind": kind})
        mapped._check_reading()
        return mapped

    @classmethod
    def load(cls, path: str | Path, kind: str) -> ColumnMap:
        """A mapping file (.toml or .json). Raises DataError as `from_mapping`, naming the file."""
        file = Path(path)
        try:
            text = file.read_text("utf-8")
        except FileNotFoundError as error:
            near = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
            raise DataError(f"there is no mapping {file}{nearest(file.name, near)}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the mapping {file} cannot be read: {error}") from error
        try:
            entries = json.loads(text) if file.suffix.lower() == ".json" else tomllib.loads(text)
        except ValueError as error:
            form = "JSON" if file.suffix.lower() == ".json" else "TOML"
            raise DataError(f"the mapping {file} is no {form}: {error}") from error
        if not isinstance(entries, Mapping):
            raise DataError(f"the mapping {file} is an object, got {type(entries).__name__}")
        try:
            return cls.from_mapping(entries, kind)
        except DataError as error:
            raise DataError(f"{file}: {error}", field=error.field) from error

    def save(self, path: str | Path) -> None:
        """Write the mapping (.json, else TOML); `load` reads back an equal one."""
        file = Path(path)
        entries = self.to_mapping()
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() == ".json":
            file.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", "utf-8")
        else:
            file.write_text(_toml(entries), "utf-8")

    def to_mapping(self) -> dict[str, Any]:
        """The entries that are set, plain values, in the order of the module's example."""
        entries: dict[str, Any] = {name: getattr(self, name) for name in _TEXT_ENTRIES if getattr(self, name)}
        if self.full_catalogue:
            entries["full_catalogue"] = True
        if self.ignore:
            entries["ignore"] = list(self.ignore)
        tables = {"columns": dict(self.columns), "constants": dict(self.constants)}
        tables["values"] = {name: dict(words) for name, words in self.values.items()}  # type: ignore[misc]
        return {**entries, **{name: table for name, table in tables.items() if table}}

    def check(self, source: str, names: Sequence[str]) -> None:
        """Raises DataError when a mapped column is not among the `names` of the columns of `source`."""
        for name, column in self.columns.items():
            if column not in names:
                raise DataError(
                    f"{source} has no column {column!r} (mapped to {name}); it has {_listed(names)}"
                    f"{nearest(column, names)}",
                    field=name,
                )

    def require(self, source: str, names: Sequence[str], required: Sequence[str]) -> None:
        """Raises DataError when neither a column nor the mapping can give a `required` field ("a or b": either)."""
        given = (set(names) - set(self.columns.values())) | set(self.columns) | set(self.constants)
        for choice in required:
            if not given & set(choice.split(" or ")):
                hint = nearest(choice.split(" or ")[0], names)
                raise DataError(
                    f"{source} has no column for {choice}; it has {_listed(names)}{hint}; "
                    f"name it with --map {choice.split(' or ')[0]}=COLUMN",
                    field=choice.split(" or ")[0],
                )

    def apply_to_table(self, table: pa.Table) -> pa.Table:
        """The table with our names and values. Constants are text columns."""
        if not self._changes_something:
            return table
        taken = {*self.columns.values(), *self.columns, *self.constants, *self.ignore}
        arrays = {name: table[column] for name, column in self.columns.items() if column in table.column_names}
        arrays |= {name: table[name] for name in table.column_names if name not in taken}
        for name in list(arrays):
            if self.time_zone and name in TIMES and pa.types.is_timestamp(arrays[name].type):
                arrays[name] = _in_zone(arrays[name], self.time_zone)
            elif rules := self._rules(name):
                arrays[name] = convert_column(arrays[name], rules)
        arrays |= {name: pa.array([value] * table.num_rows, pa.string()) for name, value in self.constants.items()}
        return pa.table(arrays)

    def apply_to_objects(self, records: Sequence[Any]) -> list[Any]:
        """JSON objects with our names and values; a mapped column that an object lacks stays absent. What is no object
        stays as it is."""
        if not self._changes_something:
            return list(records)
        taken = {*self.columns.values(), *self.columns, *self.constants, *self.ignore}
        named: list[Any] = []
        for record in records:
            if not isinstance(record, Mapping):
                named.append(record)
                continue
            renamed = {name: record[column] for name, column in self.columns.items() if column in record}
            named.append({**{k: v for k, v in record.items() if k not in taken}, **renamed})
        for name in {name for record in named if isinstance(record, dict) for name in record}:
            if rules := self._rules(name):
                having = [record for record in named if isinstance(record, dict) and name in record]
                converted = convert_values([record[name] for record in having], rules)
                is_number = self.decimal is not None and name in NUMBERS
                for record, value in zip(having, converted, strict=True):
                    record[name] = as_number(value) if is_number else value
        for record in named:
            if isinstance(record, dict):
                record.update(self.constants)
        return named

    def apply_to_object(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """One JSON object, as `apply_to_objects`."""
        return dict(self.apply_to_objects([record])[0])

    def with_columns_of(self, other: ColumnMap) -> ColumnMap:
        """This mapping with the columns and constants of `other` on top."""
        columns = {k: v for k, v in self.columns.items() if k not in other.constants} | dict(other.columns)
        constants = {k: v for k, v in self.constants.items() if k not in other.columns} | dict(other.constants)
        return replace(self, columns=columns, constants=constants)

    def without_columns(self) -> ColumnMap:
        """The same constants and rules, for records that have our names already."""
        return replace(self, columns={}, ignore=())

    @property
    def _changes_something(self) -> bool:
        rules = (self.values, self.time_zone, self.time_format, self.decimal, self.category_separator)
        return bool(self.columns or self.constants or self.ignore or any(rules))

    def _rules(self, name: str) -> list[Rule]:
        rules: list[Rule] = []
        if name in self.values:
            rules.append(translation(self.values[name]))
        if self.decimal and name in NUMBERS:
            rules.append(numbers(self.decimal))
        if (self.time_zone or self.time_format) and name in TIMES:
            rules.append(times(self.time_zone or "UTC", self.time_format))
        if self.category_separator and name in CATEGORIES:
            rules.append(category_paths(self.category_separator))
        return rules

    def _check_reading(self) -> None:
        if self.format is not None and self.format not in INPUT_FORMATS:
            hint = nearest(self.format, INPUT_FORMATS)
            raise DataError(f"format is one of {', '.join(INPUT_FORMATS)}, got {self.format!r}{hint}", field="format")
        if self.encoding is not None:
            check_encoding(self.encoding)
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise DataError(f"delimiter is one character, got {self.delimiter!r}", field="delimiter")
        if self.decimal not in (None, ",", "."):
            raise DataError(f'decimal is "," or ".", got {self.decimal!r}', field="decimal")
        if self.time_zone is not None:
            try:
                ZoneInfo(self.time_zone)
            except (KeyError, ValueError, OSError) as error:
                hint = nearest(self.time_zone, available_timezones())
                raise DataError(f"there is no time zone {self.time_zone!r}{hint}", field="time_zone") from error


_ENTRIES = tuple(f.name for f in fields(ColumnMap))


def check_encoding(name: str) -> str:
    """The name as Python knows it. Raises DataError for an encoding that does not exist."""
    try:
        return lookup(name).name
    except LookupError as error:
        near = nearest(name.lower(), ("utf-8", "utf-16", "latin-1", "cp1252", "iso-8859-15"))
        raise DataError(f"there is no encoding {name!r}{near}", field="encoding") from error


def _check_field(name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise DataError(f"cannot map to an unknown field {name!r}{nearest(name, known)}", field=name)


def _check_texts(entries: Any, name: str) -> None:
    if not isinstance(entries, Mapping) or not all(isinstance(value, str) and value for value in entries.values()):
        raise DataError(f"{name} of a mapping is a table of texts, got {entries!r}"[:300], field=name)


def _in_zone(column: pa.ChunkedArray, zone: str) -> pa.ChunkedArray:
    if column.type.tz is not None:
        return column
    clock = pd.Series(column.cast(pa.timestamp("us"), safe=False).to_pandas())
    return pa.chunked_array([pa.array(localized(clock, zone), pa.timestamp("us", "UTC"), from_pandas=True)])


def _toml(entries: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    lines = [f"{name} = {text(value)}" for name, value in entries.items() if not isinstance(value, Mapping)]
    tables: list[tuple[str, Iterable[tuple[str, str]]]] = [
        (name, entries[name].items()) for name in ("columns", "constants") if name in entries
    ]
    tables += [(f"values.{text(name)}", words.items()) for name, words in entries.get("values", {}).items()]
    for name, items in tables:
        lines += ["", f"[{name}]", *(f"{text(key)} = {text(value)}" for key, value in items)]
    return "\n".join(lines) + "\n"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown
