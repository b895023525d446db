"""How the columns of somebody else's file become ours: `field=column`, or a constant as `field=:value`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.events import CONSENT_PURPOSES, EVENT_FIELDS

CONSENT_COLUMNS = tuple(f"consent_{purpose}" for purpose in CONSENT_PURPOSES)
"""Flat columns for consent{}; a file may have either."""
EVENT_COLUMNS = (*EVENT_FIELDS, *CONSENT_COLUMNS)


@dataclass(frozen=True)
class ColumnMap:
    """`columns`: our field -> their column. `constants`: our field -> one value for every line.

    A mapped column loses its old name; a mapped field hides a column that already had that name.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, pairs: Sequence[str], known: Sequence[str] = EVENT_COLUMNS) -> ColumnMap:
        """From `field=column` and `field=:value` texts. Raises DataError naming the pair and the nearest field."""
        columns: dict[str, str] = {}
        constants: dict[str, str] = {}
        for pair in pairs:
            name, equals, target = pair.partition("=")
            if not equals or not target or target == ":":
                raise DataError(f"a mapping is field=column or field=:value, got {pair!r}", field=pair)
            if name not in known:
                raise DataError(f"cannot map to an unknown field {name!r}{nearest(name, known)}", field=name)
            if name in columns or name in constants:
                raise DataError(f"the field {name!r} is mapped twice", field=name)
            if target.startswith(":"):
                constants[name] = target[1:]
            else:
                columns[name] = target
        return cls(columns, constants)

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
        """The table with our names. Constants are text columns."""
        if not self.columns and not self.constants:
            return table
        theirs = {column: name for name, column in self.columns.items()}
        taken = set(self.columns) | set(self.constants)
        arrays = {theirs[name]: table[name] for name in table.column_names if name in theirs}
        arrays |= {n: table[n] for n in table.column_names if n not in theirs and n not in taken}
        arrays |= {name: pa.array([value] * table.num_rows, pa.string()) for name, value in self.constants.items()}
        return pa.table(arrays)

    def apply_to_object(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object with our names; a mapped column that this object lacks stays absent."""
        if not self.columns and not self.constants:
            return dict(record)
        theirs = {column: name for name, column in self.columns.items()}
        taken = set(self.columns) | set(self.constants)
        renamed = {theirs[k]: v for k, v in record.items() if k in theirs}
        return {**{k: v for k, v in record.items() if k not in theirs and k not in taken}, **renamed, **self.constants}


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown
