"""Filters (`contracts.filter_language`) as Spark Columns: the same rules as in a request, for whole tables.

They read the columns of bronze.items, with what that keeps in `attributes`. What a person has to do with an item comes
from the columns in_cart, in_session (boolean), bought_at and seen_at (timestamp); null is no.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from pyspark.sql import Column
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.filter_language import (
    ANY,
    ATTRIBUTE_PREFIX,
    FLAG,
    NUMBER,
    PATH,
    TAGS,
    TIME,
    Ago,
    All,
    AnyOf,
    Constant,
    Expression,
    IsMissing,
    Not,
    OneOf,
    Order,
    Value,
    field_type,
)
from feature_repo.contracts.filter_rules import PATH_SEPARATOR
from feature_repo.contracts.times import from_micros, to_micros

_IN_ATTRIBUTES = ("language", "group_id")
_NUMBER_TYPES = ("BIGINT", "DOUBLE", "FLOAT", "DECIMAL")


def filter_column(expression: Expression, *, now: datetime) -> Column:
    """Whether a row passes: never null. `now` is what ago("30d") counts back from (aware)."""
    match expression:
        case Constant(holds):
            return F.lit(holds)
        case Not(part):
            return ~filter_column(part, now=now)
        case All(parts):
            return _joined([filter_column(part, now=now) for part in parts], lambda a, b: a & b)
        case AnyOf(parts):
            return _joined([filter_column(part, now=now) for part in parts], lambda a, b: a | b)
        case OneOf(field, values):
            return F.coalesce(_one_of(field, values), F.lit(False))
        case Order(field, relation, bound):
            return F.coalesce(_ordered(field, relation, bound, now), F.lit(False))
        case IsMissing(field):
            return _is_missing(field)


def _joined(parts: list[Column], join: Callable[[Column, Column], Column]) -> Column:
    joined = parts[0]
    for part in parts[1:]:
        joined = join(joined, part)
    return joined


def _one_of(field: str, values: tuple[Value, ...]) -> Column:
    kind = field_type(field)
    if kind == TAGS:
        return _has_one(_entries("tags"), values)
    if kind == ANY:
        return _has_one(_entries(field.removeprefix(ATTRIBUTE_PREFIX)), values)
    if kind == FLAG:
        return F.col(field)
    if kind == PATH:
        path = F.col(field)
        lies = [(path == F.lit(v)) | path.startswith(F.lit(f"{v}{PATH_SEPARATOR}")) for v in values]
        return _joined(lies, lambda a, b: a | b)
    column = _number(field) if kind == NUMBER else _text(field)
    return _joined([column == F.lit(value) for value in values], lambda a, b: a | b)


def _ordered(field: str, relation: str, bound: float | int | Ago, now: datetime) -> Column:
    kind = field_type(field)
    if kind == TIME:
        micros = to_micros(now) - bound.micros if isinstance(bound, Ago) else int(bound)
        column, least = F.col(field), F.lit(from_micros(micros))
    elif kind == NUMBER:
        column, least = _number(field), F.lit(bound)
    else:  # a list has no order
        column, least = _as_number(_attribute(field.removeprefix(ATTRIBUTE_PREFIX))), F.lit(bound)
    match relation:
        case "<":
            return column < least
        case "<=":
            return column <= least
        case ">":
            return column > least
        case _:
            return column >= least


def _is_missing(field: str) -> Column:
    kind = field_type(field)
    if kind in (TAGS, ANY):
        value = _attribute("tags" if kind == TAGS else field.removeprefix(ATTRIBUTE_PREFIX))
        described = F.coalesce(_type_of(value), F.lit("VOID"))
        empty_text = (described == "STRING") & (F.try_variant_get(value, "$", "string") == "")
        empty_list = described.startswith("ARRAY") & (F.size(F.try_variant_get(value, "$", "array<variant>")) == 0)
        return (described == "VOID") | F.coalesce(empty_text, F.lit(False)) | F.coalesce(empty_list, F.lit(False))
    if kind == NUMBER:
        return _number(field).isNull()
    if kind in (TIME, FLAG):
        return F.col(field).isNull()
    return F.coalesce(_text(field) == "", F.lit(True))


def _text(field: str) -> Column:
    if field in _IN_ATTRIBUTES:
        value = _attribute(field)
        return F.when(_type_of(value) == "STRING", F.try_variant_get(value, "$", "string"))
    return F.col(field)


def _number(field: str) -> Column:
    """As a double; what is no finite number is null."""
    column = F.col(field).cast("double")
    return F.when(F.abs(column) < F.lit(float("inf")), column)


def _attribute(name: str) -> Column:
    """One attribute as a variant; null when there is none."""
    return F.try_variant_get(F.try_parse_json(F.col("attributes")), f"$['{name}']", "variant")


def _type_of(value: Column) -> Column:
    return F.schema_of_variant(value)


def _entries(name: str) -> Column:
    """An attribute as a list of variants: its entries, or itself."""
    value = _attribute(name)
    return F.when(_type_of(value).startswith("ARRAY"), F.try_variant_get(value, "$", "array<variant>")).otherwise(
        F.array(value)
    )


def _as_number(value: Column) -> Column:
    kind = _type_of(value)
    is_number = _joined([kind.startswith(name) for name in _NUMBER_TYPES], lambda a, b: a | b)
    return F.when(is_number, F.try_variant_get(value, "$", "double"))


def _has_one(entries: Column, values: tuple[Value, ...]) -> Column:
    def matches(entry: Column) -> Column:
        kind = _type_of(entry)
        if isinstance(values[0], bool):
            plain = F.when(kind == "BOOLEAN", F.try_variant_get(entry, "$", "boolean"))
        elif isinstance(values[0], str):
            plain = F.when(kind == "STRING", F.try_variant_get(entry, "$", "string"))
        else:
            plain = _as_number(entry)
        return F.coalesce(_joined([plain == F.lit(value) for value in values], lambda a, b: a | b), F.lit(False))

    return F.exists(entries, matches)
