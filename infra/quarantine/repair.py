"""Repairs: small changes to a refused event, given on the command line or in a file.

    rename   old field -> new field
    values   field -> {old value: new value}; the old value as text
    set      field -> value, whatever was there
    drop     fields to leave out

in this order. A field is a path with dots (`context.region`); in a list it means every entry (`items.quantity`).
"""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.events import EVENT_FIELDS, Reason

_NUMBERS_AND_OBJECTS = frozenset({"value", "quantity", "price", "items", "context", "properties", "consent"})
_TEXT_FIELDS = frozenset(EVENT_FIELDS) - _NUMBERS_AND_OBJECTS
_ENTRIES = ("reason", "rename", "values", "set", "drop")


@dataclass(frozen=True)
class Repair:
    """One repair. `reason`: for events of that reason only; None: for all."""

    rename: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    set: Mapping[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    reason: str | None = None

    def apply(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The event mended; the argument stays as it is. What a repair names and the event lacks is passed over, except
        by `set`."""
        mended = copy.deepcopy(dict(event))
        for old, new in self.rename.items():
            _move(mended, old, new)
        for path, words in self.values.items():
            for holder, name in _places(mended, path):
                if name in holder and _text(holder[name]) in words:
                    holder[name] = words[_text(holder[name])]
        for path, value in self.set.items():
            for holder, name in _places(mended, path, create=True):
                holder[name] = copy.deepcopy(value)
        for path in self.drop:
            for holder, name in _places(mended, path):
                holder.pop(name, None)
        return mended

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, without what is empty."""
        given = {name: getattr(self, name) for name in _ENTRIES}
        return {name: list(value) if name == "drop" else value for name, value in given.items() if value}


@dataclass(frozen=True)
class RepairPlan:
    """`repairs` in order, and whole `edited` events by quarantine id; an edited one is not repaired further."""

    repairs: tuple[Repair, ...] = ()
    edited: Mapping[str, Any] = field(default_factory=dict)

    def mend(self, quarantine_id: str, reason: str, event: Any) -> tuple[Any, str | None]:
        """(the event as it will be sent, what was done to it as JSON; None: nothing)."""
        if quarantine_id in self.edited:
            return self.edited[quarantine_id], json.dumps({"edited": True})
        done = [repair for repair in self.repairs if repair.reason in (None, reason)]
        if not done or not isinstance(event, Mapping):
            return event, None
        for repair in done:
            event = repair.apply(event)
        return event, json.dumps([repair.to_mapping() for repair in done], sort_keys=True, ensure_ascii=False)


def parse_repair(
    *, set_: Sequence[str] = (), rename: Sequence[str] = (), values: Sequence[str] = (), drop: Sequence[str] = ()
) -> Repair:
    """From `field=value`, `old=new`, `field:old=new` and `field` texts. Raises DataError naming the text.

    A value is JSON when it is (1, true, {"a": 1}), else text; of ids, types and times it is always text.
    """
    changed: dict[str, dict[str, Any]] = {}
    for text in values:
        path, colon, pair = text.partition(":")
        old, equals, new = pair.partition("=")
        if not (path and colon and equals):
            raise DataError(f"--map is field:old=new, such as event_type:viewed=view_item, got {text!r}", field="map")
        changed.setdefault(path, {})[old] = _value(path, new)
    return Repair(
        rename=dict(_pair(text, "--rename", "old=new") for text in rename),
        values=changed,
        set={path: _value(path, value) for path, value in (_pair(t, "--set", "field=value") for t in set_)},
        drop=tuple(drop),
    )


def load_plan(path: Path) -> RepairPlan:
    """From a file: .jsonl with edited events ({"id": ..., "event": {...}}), or .toml or .json with `repair` entries.

    Raises DataError naming the file, the place and what is expected there.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", field="fix") from error
    if path.suffix in (".jsonl", ".ndjson"):
        return RepairPlan(edited=dict(_edited_lines(path, text)))
    try:
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is no {'JSON' if path.suffix == '.json' else 'TOML'}: {error}", field="fix") from error
    entries = document.get("repair") if isinstance(document, Mapping) else document
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} has no [[repair]] entry", field="fix")
    return RepairPlan(tuple(_repair_of(entry, f"{path}: repair {number}") for number, entry in enumerate(entries, 1)))


def _edited_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold what else ends a line of text, such as U+2028
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is no JSON: {error}", field="fix") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or "event" not in entry:
            raise DataError(f'{path}: line {number} is {{"id": ..., "event": {{...}}}}', field="fix")
        yield entry["id"], entry["event"]


def _repair_of(entry: Any, where: str) -> Repair:
    if not isinstance(entry, Mapping):
        raise DataError(f"{where} is a table, got {entry!r}"[:200], field="fix")
    for name, value in entry.items():
        if name not in _ENTRIES:
            raise DataError(f"{where} has no entry {name!r}{nearest(str(name), _ENTRIES)}", field="fix")
        wanted = str if name == "reason" else list if name == "drop" else Mapping
        if not isinstance(value, wanted):
            raise DataError(f"{where}: {name} is a {_WORDS[wanted]}, got {value!r}"[:200], field="fix")
    if "reason" in entry and entry["reason"] not in tuple(Reason):
        known = [str(r) for r in Reason]
        raise DataError(f"{where}: no reason {entry['reason']!r}{nearest(entry['reason'], known)}", field="fix")
    if not all(isinstance(words, Mapping) for words in entry.get("values", {}).values()):
        raise DataError(f"{where}: values is a table per field, such as values.event_type", field="fix")
    return Repair(**{**entry, "drop": tuple(entry.get("drop", ()))})


_WORDS = {str: "text", list: "list", Mapping: "table"}


def _move(event: dict[str, Any], old: str, new: str) -> None:
    """Within one object, or in every entry of one list; to another object the first value found goes."""
    (outer, _, _), (target, _, name) = old.rpartition("."), new.rpartition(".")
    found = [(holder, at) for holder, at in _places(event, old) if at in holder]
    if outer == target:
        for holder, at in found:
            holder[name] = holder.pop(at)
    elif found:
        value = found[0][0].pop(found[0][1])
        for holder, at in _places(event, new, create=True):
            holder[at] = value


def _places(event: dict[str, Any], path: str, *, create: bool = False) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects that hold the last name of a path, and that name."""
    *outer, name = path.split(".")
    holders: list[Any] = [event]
    for step in outer:
        found: list[Any] = []
        for holder in holders:
            if create and not isinstance(holder.get(step), (dict, list)):
                holder[step] = {}
            inner = holder.get(step)
            found += inner if isinstance(inner, list) else [inner]
        holders = [holder for holder in found if isinstance(holder, dict)]
    for holder in holders:
        yield holder, name


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise DataError(f"{option} is {form}, got {text!r}", field=option.lstrip("-"))
    return name, value


def _value(path: str, text: str) -> Any:
    if path in _TEXT_FIELDS or path.rpartition(".")[2] in ("item_id",):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
