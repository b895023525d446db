"""Changes of items and users through the API: checked by the rule table of `catalogue`, merged field by field.

A change says some fields of one record at one time. Of each field the newest word counts: the later `at_micros` (the
shop's `updated_at`, else the receipt), of two words of one instant the one that the log took later. So the result is
the same in whatever order changes come, and however often. PUT speaks of every field, also of those it leaves out; but
a consent is never given, refused or forgotten by silence.

Field names are columns of bronze.items or bronze.users; what has no column is `attributes.<name>`. The value null says
that the field is empty; `attributes` with null says that of all attributes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from feature_repo.contracts.catalogue import TIME_FIELDS, check_item, check_user
from feature_repo.contracts.catalogue import updated_at as said_updated_at
from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.events import CONSENT_PURPOSES, MAX_NESTING, Reason, Rejection, is_nested_deeper
from feature_repo.contracts.tables import table
from feature_repo.contracts.times import MAX_FUTURE_SKEW, format_timestamp, parse_timestamp, to_micros

ITEMS, USERS = "items", "users"
PUT, PATCH, DELETE = "put", "patch", "delete"
MAX_ATTRIBUTES = 200
"""Attributes of one change."""

ID_FIELDS: Mapping[str, str] = {ITEMS: "item_id", USERS: "user_id"}
TABLE_OF: Mapping[str, str] = {ITEMS: "bronze.items", USERS: "bronze.users"}
CHANGE_TABLE_OF: Mapping[str, str] = {ITEMS: "bronze.item_changes", USERS: "bronze.user_changes"}

_ATTRIBUTES, _ATTRIBUTE = "attributes", "attributes."
_CHECKS = {ITEMS: check_item, USERS: check_user}
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    kind: tuple(c for c in table(TABLE_OF[kind]).columns if c not in (ID_FIELDS[kind], _ATTRIBUTES, "source"))
    for kind in (ITEMS, USERS)
}
_TIME_COLUMNS = frozenset(TIME_FIELDS)
_TIMES = frozenset({"created_at", "expire_time", "attributes.available_time"})
_CONSENT = "consent_"
_NOT_SAID: Mapping[str, Any] = {"availability": "IN_STOCK", "is_hidden": False}
_SAID_BY_DELETE: Mapping[str, Mapping[str, Any]] = {
    ITEMS: {"is_hidden": True},
    USERS: {"region": None, "created_at": None, _ATTRIBUTES: None},
}
"""A deleted item is hidden and keeps its number; a deleted user's attributes are forgotten, the consents stay."""


class Change(NamedTuple):
    """One checked change. Times are microseconds since 1970, UTC; times among `fields` are RFC 3339 texts."""

    kind: str
    record_id: str
    operation: str
    at_micros: int
    received_micros: int
    fields: Mapping[str, Any]

    def to_json(self) -> bytes:
        """ASCII JSON. Inverse: `from_json`."""
        return json.dumps(self._asdict(), separators=(",", ":")).encode("ascii")

    @classmethod
    def from_json(cls, text: str | bytes) -> Change:
        """Raises ContractError on text that is no change."""
        try:
            change = cls(**json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:
            raise ContractError(f"not a change: {error}") from error
        is_whole = (
            change.kind in ID_FIELDS
            and change.operation in (PUT, PATCH, DELETE)
            and isinstance(change.record_id, str)
            and isinstance(change.fields, dict)
            and all(_fits(name, value) for name, value in change.fields.items())
            and type(change.at_micros) is type(change.received_micros) is int
        )
        if not is_whole:
            raise ContractError(f"not a change: {str(text)[:80]!r}")
        return change


def check_change(
    kind: str, operation: str, record: object, *, received_at: datetime
) -> tuple[Change, None] | tuple[None, Rejection]:
    """The rule table of items or users (`catalogue.check_item`, `check_user`), applied to a change.

    PUT      the whole record: what it leaves out becomes empty
    PATCH    only what it names; null empties a field, and single names of `attributes` and `consent` are merged
    DELETE   `record` is {<id>, updated_at?}, or the id itself

    `updated_at` at most 24 hours after `received_at`: a later one would silence everybody else until then.
    """
    id_field = ID_FIELDS[kind]
    if operation == DELETE and isinstance(record, str):
        record = {id_field: record}
    if isinstance(record, Mapping) and is_nested_deeper(record, MAX_NESTING):
        detail = f"more than {MAX_NESTING} objects and lists inside one another"
        return None, Rejection(Reason.NESTED_TOO_DEEPLY, None, detail)
    if operation == DELETE and isinstance(record, Mapping):
        record = {name: record[name] for name in (id_field, "updated_at") if name in record}
    row, rejection = _CHECKS[kind](record)
    if row is None:
        assert rejection is not None
        return None, rejection
    assert isinstance(record, Mapping)
    stated = _stated(row) if record.get("updated_at") is not None else None
    if stated is not None and stated > received_at + MAX_FUTURE_SKEW:
        detail = f"updated_at lies more than 24 hours ahead: {format_timestamp(stated)}"
        return None, Rejection(Reason.TIMESTAMP_IN_FUTURE, "updated_at", detail)
    received = to_micros(received_at)
    at_micros = received if stated is None else to_micros(stated)
    if operation == DELETE:
        return Change(kind, row[id_field], operation, at_micros, received, dict(_SAID_BY_DELETE[kind])), None
    fields = _said(kind, operation, record, row)
    if sum(name.startswith(_ATTRIBUTE) for name in fields) > MAX_ATTRIBUTES:
        detail = f"attributes: at most {MAX_ATTRIBUTES} of them fit one change"
        return None, Rejection(Reason.INVALID_FIELD, _ATTRIBUTES, detail)
    wrong = next((name for name, value in fields.items() if not _fits(name, value)), None)
    if wrong is not None:
        detail = f"{wrong} is a time, got {str(fields[wrong])[:80]!r}"
        return None, Rejection(Reason.INVALID_TIMESTAMP, wrong, detail)
    return Change(kind, row[id_field], operation, at_micros, received, fields), None


def _stated(row: Mapping[str, Any]) -> datetime | None:
    """The `updated_at` of a row; None also when its attributes have something of that name that is no time."""
    try:
        return said_updated_at(row)
    except DataError:
        return None


def _fits(name: str, value: Any) -> bool:
    """Whether a field may have this value: a log may hold anything, and `attributes` are anybody's."""
    if value is None:
        return name not in _NOT_SAID
    if name in _TIMES:
        try:
            return isinstance(value, str) and bool(parse_timestamp(value))
        except DataError:
            return False
    if name.startswith(_ATTRIBUTE):
        return True
    if name == "is_hidden" or name.startswith(_CONSENT):
        return isinstance(value, bool)
    if name == "price":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if name == "available_quantity":
        return type(value) is int
    return isinstance(value, str) and name != _ATTRIBUTES


def _said(kind: str, operation: str, record: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """What the record says, as fields of a change; the checked `row` has the values."""
    named = set(record) | ({"category"} if "categories" in record else set())
    consent = record.get("consent", ())
    purposes = CONSENT_PURPOSES if consent is None else consent if isinstance(consent, Mapping) else ()
    named |= {_CONSENT + purpose for purpose in purposes}
    columns = _COLUMNS[kind]
    is_whole = operation == PUT
    fields = {c: _plain(row[c]) for c in columns if c in named or (is_whole and not c.startswith(_CONSENT))}
    if is_whole or (_ATTRIBUTES in record and record[_ATTRIBUTES] is None):
        fields[_ATTRIBUTES] = None
    said = json.loads(row[_ATTRIBUTES] or "{}")
    said.pop("updated_at", None)  # it is when the change was said, not what
    for name in named - {ID_FIELDS[kind], _ATTRIBUTES, "consent", "categories", "updated_at", *columns}:
        said.setdefault(name, None)  # it was named and came to nothing: null
    return fields | {_ATTRIBUTE + name: value for name, value in sorted(said.items())}


def _plain(value: Any) -> Any:
    return format_timestamp(value) if isinstance(value, datetime) else value


class Stamp(NamedTuple):
    """When a word was said, and where it stands in the log (`position`): a total order. The later one counts."""

    at_micros: int
    position: int


class Outcome(NamedTuple):
    """Names of a change's fields: those that took effect, and those of which something newer was known already."""

    taken: tuple[str, ...]
    late: tuple[str, ...]


class RecordState:
    """All that changes say of one record: of each field the newest word. Taking a change twice is taking it once.

    `keeps` says of which fields the value is wanted; of others only the time is kept. None: of all.
    """

    __slots__ = ("fields", "whole")

    def __init__(self) -> None:
        self.whole: Stamp | None = None
        """The newest PUT: older words of any field count no more."""
        self.fields: dict[str, tuple[Any, Stamp]] = {}

    def take(self, change: Change, position: int, *, keeps: frozenset[str] | None = None) -> Outcome:
        """Take one change in; `position` is its place in the log (`positions.position_number`)."""
        stamp = Stamp(change.at_micros, position)
        newer = {name for name in change.fields if self.said_at(name, before=stamp)}
        if change.operation == PUT and (self.whole is None or self.whole <= stamp):
            self.whole = stamp
        taken = tuple(name for name in change.fields if name not in newer)
        for name in taken:
            value = change.fields[name] if keeps is None or name in keeps else None
            if self.whole == stamp and value == _NOT_SAID.get(name) and not name.startswith(_CONSENT):
                self.fields.pop(name, None)  # the PUT as a whole says as much
            else:
                self.fields[name] = (value, stamp)
        self._forget_covered()
        return Outcome(taken, tuple(name for name in change.fields if name in newer))

    def said_at(self, name: str, *, before: Stamp) -> bool:
        """Whether something later than `before` is known of the field."""
        word = self.word(name)
        return word is not None and word[1] > before

    def word(self, name: str) -> tuple[Any, Stamp] | None:
        """The newest word on a field: (value, when); None when no change ever spoke of it."""
        found = self.fields.get(name)
        covers = [None if name.startswith(_CONSENT) else self.whole]
        if name.startswith(_ATTRIBUTE) and _ATTRIBUTES in self.fields:
            covers.append(self.fields[_ATTRIBUTES][1])
        newest = max((c for c in covers if c is not None), default=None)
        if newest is not None and (found is None or found[1] < newest):
            return (_NOT_SAID.get(name), newest)
        return found

    def put_value(self, name: str) -> Any:
        """The newest value of a field of a record that was put (`whole`): what its `word` says, for less. Words that
        were overtaken are not kept, so what is here counts, and of all else the PUT spoke."""
        found = self.fields.get(name)
        return _NOT_SAID.get(name) if found is None else found[0]

    def merge(self, other: RecordState) -> None:
        """Take in all that `other` knows; the same as taking its changes."""
        if other.whole is not None and (self.whole is None or self.whole < other.whole):
            self.whole = other.whole
        for name, (value, stamp) in other.fields.items():
            mine = self.fields.get(name)
            if mine is None or mine[1] < stamp:
                self.fields[name] = (value, stamp)
        self._forget_covered()

    def _forget_covered(self) -> None:
        """Drop words that a later PUT, or a later null of all attributes, has overtaken."""
        if self.whole is not None or _ATTRIBUTES in self.fields:
            for name in [n for n, (_, stamp) in self.fields.items() if self.said_at(n, before=stamp)]:
                del self.fields[name]

    def to_json(self) -> bytes:
        """ASCII JSON. Inverse: `from_json`."""
        fields = {name: [value, *stamp] for name, (value, stamp) in self.fields.items()}
        return json.dumps([self.whole, fields], separators=(",", ":")).encode("ascii")

    @classmethod
    def from_json(cls, text: str | bytes) -> RecordState:
        """Raises ContractError on text that is no record."""
        state = cls()
        try:
            whole, fields = json.loads(text)
            state.whole = None if whole is None else Stamp(*whole)
            state.fields = {name: (value, Stamp(at, position)) for name, (value, at, position) in fields.items()}
        except (TypeError, ValueError, AttributeError) as error:
            raise ContractError(f"not the record of a changed item or user: {error}") from error
        return state


def changed_row(
    kind: str, row: Mapping[str, Any] | None, changes: Iterable[tuple[Change, int]]
) -> dict[str, Any] | None:
    """A row of bronze.items or bronze.users with the changes (and their places in the log) of its record.

    An imported row speaks of every field at the time it says itself (`updated_at`), and before every change when it
    says none. None: there is no such record, because nothing but PATCH or DELETE ever named an item. A user exists as
    soon as anything is said of one, a refusal above all. `source` is the row's own, or `api`.
    """
    state = RecordState()
    exists = row is not None or kind == USERS
    record_id = None
    for change, position in changes:
        record_id = change.record_id
        exists = exists or change.operation == PUT
        state.take(change, position)
    if not exists:
        return None
    base = dict(row) if row is not None else {ID_FIELDS[kind]: record_id, **_NOT_SAID_OF[kind], "source": "api"}
    stated = _stated(base) if row is not None else None
    base_stamp = Stamp(to_micros(stated), -1) if stated is not None else Stamp(-(2**63), -1)
    said = json.loads(base.get(_ATTRIBUTES) or "{}")
    names = {_ATTRIBUTE + name for name in said} | {n for n in state.fields if n.startswith(_ATTRIBUTE)}
    for name in _COLUMNS[kind]:
        word = state.word(name)
        is_silent = name.startswith(_CONSENT) and base.get(name) is None
        if word is not None and (is_silent or word[1] > base_stamp):
            base[name] = _read(name, word[0])
    for name in names:
        word = state.word(name)
        if word is not None and word[1] > base_stamp:
            said[name.removeprefix(_ATTRIBUTE)] = word[0]
    kept = {name: value for name, value in said.items() if value is not None}
    base[_ATTRIBUTES] = json.dumps(kept, sort_keys=True) if kept else None
    return base


def merge_record(
    kind: str, record_id: str, row: Mapping[str, Any] | None, changes: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """One record with its changes (rows of the change table); None when there is none.

    Raises ContractError when a change's fields are no JSON object.
    """
    said = []
    for change in changes:
        try:
            fields = json.loads(change["fields"])
        except (TypeError, ValueError) as error:
            raise ContractError(f"the change of {record_id!r} at {change['source_position']}: {error}") from error
        moment = to_micros(change["changed_at"])
        said.append((Change(kind, record_id, change["operation"], moment, moment, fields), change["source_position"]))
    return changed_row(kind, row, said)


_NOT_SAID_OF: Mapping[str, Mapping[str, Any]] = {
    kind: {name: _NOT_SAID.get(name) for name in columns} for kind, columns in _COLUMNS.items()
}


def _read(column: str, value: Any) -> Any:
    if column not in _TIME_COLUMNS or value is None:
        return value
    try:
        return parse_timestamp(value)
    except DataError as error:
        raise ContractError(f"a change says {column}={value!r}: {error}") from error
