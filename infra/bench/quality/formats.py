"""The files of the quality bench: four forms, plain or gzip, UTF-8. Ids are opaque text.

    pairs      train and test: lines `user item item ...`, separated by blanks; a line of a user alone says nothing
    sessions   train: a line is a session, `item item ...` oldest first, the oldest session first;
               test: `item item ...<TAB>next item`
    sequences  one file of lines `user item item ...`, oldest first; the last item is the test, the one before it is for
               validation (of a user with two items the last is the test, one alone only teaches)
    events     csv with a header: user, item and, if there are, event, time (seconds, milli-, micro- or nanoseconds
               since 1970, or RFC 3339) and rating; other columns are ignored
    attributes lines `item attribute attribute ...`, or one JSON object {"item": [attribute, ...], ...}
    negatives  lines `user item item ...`; for sessions the n-th line has the items for the n-th line of the test file

Raises DataError naming file, line, what was seen and what was expected.
"""

from __future__ import annotations

import gzip
import json
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.contracts.errors import DataError, nearest

REQUIRED = ("user", "item")
OPTIONAL = ("event", "time", "rating")
_UNITS = ((1e11, 1e3), (1e14, 1e6), (1e17, 1e9))
"""From so large a number on a time is in so many parts of a second: milliseconds, microseconds, nanoseconds."""
_EARLIEST, _LATEST = -62_135_596_800, 253_402_300_800
"""The years 1 to 9999, seconds since 1970."""


class Lists(NamedTuple):
    """`user item item ...` lines: one entry a line. Several lines of one user are allowed."""

    users: list[str]
    items: list[list[str]]


class Prefixes(NamedTuple):
    """The test of sessions."""

    prefixes: list[list[str]]
    targets: list[str]


class Events(NamedTuple):
    """The columns of a csv; `event` and `micros` and `rating` are None where the file has no such column."""

    user: NDArray[np.object_]
    item: NDArray[np.object_]
    event: NDArray[np.object_] | None
    micros: NDArray[np.int64] | None
    rating: NDArray[np.float64] | None


def read_lists(path: Path, option: str) -> Lists:
    """Lines `user item item ...`."""
    users, items = [], []
    for _, line in _lines(path, option):
        tokens = line.split()
        users.append(tokens[0])
        items.append(tokens[1:])
    if not any(items):
        raise DataError(f"{option} {path}: no line `user item ...` with at least one item", field=option)
    return Lists(users, items)


def read_sessions(path: Path, option: str) -> list[list[str]]:
    """Lines `item item ...`."""
    sessions = []
    for number, line in _lines(path, option):
        if "\t" in line.strip():
            raise DataError(
                f"{option} {path}, line {number}: a tab in a line of training sessions; `prefix<TAB>next` is the form "
                "of the test file",
                field=option,
            )
        sessions.append(line.split())
    if not sessions:
        raise DataError(f"{option} {path}: no session in it", field=option)
    return sessions


def read_prefixes(path: Path, option: str) -> Prefixes:
    """Lines `item item ...<TAB>next item`."""
    prefixes, targets = [], []
    for number, line in _lines(path, option):
        parts = line.split("\t")
        prefix, target = parts[0].split(), parts[-1].split()
        if len(parts) != 2 or not prefix or len(target) != 1:
            raise DataError(
                f"{option} {path}, line {number}: {line.strip()[:60]!r}, expected `item item ...<TAB>next item`",
                field=option,
            )
        prefixes.append(prefix)
        targets.append(target[0])
    if not targets:
        raise DataError(f"{option} {path}: no line `prefix<TAB>next` in it", field=option)
    return Prefixes(prefixes, targets)


def read_negatives(path: Path, option: str, *, by_line: bool) -> Lists:
    """Negatives by user, or (`by_line`) by line of the test file; users are then the numbers of lines, from 0."""
    if not by_line:
        return read_lists(path, option)
    items = [line.split() for _, line in _lines(path, option)]
    return Lists([str(number) for number in range(len(items))], items)


def read_attributes(path: Path, option: str) -> dict[str, list[str]]:
    """What is said of each item: its attributes, as opaque text. An item that stands twice has all of them."""
    said: dict[str, list[str]] = {}
    lines = list(_lines(path, option))
    if lines and lines[0][1].lstrip().startswith("{"):
        return _json_attributes("\n".join(line for _, line in lines), path, option)
    for _, line in lines:
        item, *attributes = line.split()
        said.setdefault(item, []).extend(attributes)
    if not any(said.values()):
        raise DataError(f"{option} {path}: no line `item attribute ...` with at least one attribute", field=option)
    return said


def _json_attributes(text: str, path: Path, option: str) -> dict[str, list[str]]:
    expected = 'expected one object {"item": [attribute, ...], ...}'
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"{option} {path}: not JSON: {error}; {expected}", field=option) from error
    for item, attributes in found.items():
        if not isinstance(attributes, list) or any(isinstance(one, dict | list) for one in attributes):
            seen = json.dumps(attributes)[:60]
            raise DataError(f"{option} {path}: item {item!r} has {seen}; {expected}", field=option)
    if not any(found.values()):
        raise DataError(f"{option} {path}: no item with at least one attribute; {expected}", field=option)
    return {item: [str(one) for one in attributes if one is not None] for item, attributes in found.items()}


def read_events(path: Path, option: str) -> Events:
    """A csv with a header."""
    try:
        with _binary(path, option) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # a comma at the end of the rows
            frame = pd.read_csv(
                file, dtype=str, keep_default_na=False, encoding="utf-8", skipinitialspace=True, index_col=False
            )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{option} {path}: not a csv in UTF-8: {error}", field=option) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{option} {path}: cannot be read: {error}", field=option) from error
    frame.columns = [str(name).strip().lower() for name in frame.columns]
    twice = sorted(set(frame.columns[frame.columns.duplicated()]) & {*REQUIRED, *OPTIONAL})
    if twice:
        raise DataError(f"{option} {path} has two columns {twice[0]!r}", field=twice[0])
    for name in REQUIRED:
        if name not in frame:
            known = ", ".join(frame.columns)
            raise DataError(
                f"{option} {path} has no column {name!r}; it has {known}{nearest(name, frame.columns)}", field=name
            )
        empty = np.flatnonzero((frame[name].str.strip() == "").to_numpy())
        if len(empty):
            raise DataError(f"{option} {path}, line {empty[0] + 2}: no {name}", field=name)
    if len(frame) == 0:
        raise DataError(f"{option} {path}: a header and no row", field=option)
    return Events(
        user=frame["user"].str.strip().to_numpy(object),
        item=frame["item"].str.strip().to_numpy(object),
        event=frame["event"].str.strip().str.lower().to_numpy(object) if "event" in frame else None,
        micros=_micros(frame["time"], path, option) if "time" in frame else None,
        rating=_ratings(frame["rating"], path, option) if "rating" in frame else None,
    )


def _micros(column: pd.Series, path: Path, option: str) -> NDArray[np.int64]:
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    if np.isfinite(numbers).all():
        seconds = numbers
        for least, parts in _UNITS:
            seconds = np.where(np.abs(numbers) >= least, numbers / parts, seconds)
        wrong = np.flatnonzero((seconds < _EARLIEST) | (seconds >= _LATEST))
        if len(wrong):
            raise DataError(
                f"{option} {path}, line {wrong[0] + 2}: time {column.iloc[int(wrong[0])]!r} is outside the years 1 to "
                "9999",
                field="time",
            )
        return np.round(seconds * 1e6).astype(np.int64)
    moments = pd.to_datetime(column.where(~np.isfinite(numbers)), utc=True, errors="coerce", format="ISO8601")
    wrong = np.flatnonzero(moments.isna().to_numpy() & ~np.isfinite(numbers))
    if len(wrong) or np.isfinite(numbers).any():
        row = int(wrong[0]) if len(wrong) else int(np.flatnonzero(np.isfinite(numbers))[0])
        raise DataError(
            f"{option} {path}, line {row + 2}: time {column.iloc[row]!r}, expected seconds (or parts of them) since "
            "1970, or RFC 3339 such as 2024-03-01T09:30:00Z, one of them in the whole column",
            field="time",
        )
    return moments.dt.as_unit("us").astype("int64").to_numpy()


def _ratings(column: pd.Series, path: Path, option: str) -> NDArray[np.float64]:
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        raise DataError(
            f"{option} {path}, line {wrong[0] + 2}: rating {column.iloc[int(wrong[0])]!r}, expected a number",
            field="rating",
        )
    return numbers


def _binary(path: Path, option: str):  # type: ignore[no-untyped-def]  # a binary file, however it is packed
    if not path.is_file():
        raise DataError(f"{option} {path}: there is no such file", field=option)
    with path.open("rb") as start:
        packed = start.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")


def _lines(path: Path, option: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line that is not blank."""
    number = 0
    try:
        with _binary(path, option) as file:
            for number, raw in enumerate(file, 1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise DataError(f"{option} {path}, line {number}: not UTF-8", field=option) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{option} {path}: cannot be read: {error}", field=option) from error


def flatten(lists: Lists) -> tuple[NDArray[np.object_], NDArray[np.object_], NDArray[np.int64]]:
    """(user, item, place within the user's items from 0) of every item of every line."""
    lengths = np.array([len(found) for found in lists.items], np.int64)
    users = np.repeat(np.array(lists.users, dtype=object), lengths)
    items = np.array([item for found in lists.items for item in found], dtype=object)
    places = np.arange(len(items)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return users, items, places


def numbered(names: Sequence[str] | NDArray[np.object_], known: NDArray[np.object_]) -> NDArray[np.int64]:
    """The place of each name in `known` (sorted), -1 for one that is not there."""
    return pd.Index(known).get_indexer(pd.Index(np.asarray(names, dtype=object))).astype(np.int64)
