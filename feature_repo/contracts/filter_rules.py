"""What a filter says of one item, in plain Python. `spark_jobs.transforms.filter_columns` says the same in Spark.

A filter is bound once to where the facts are (one reader per field), and then asked item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from feature_repo.contracts.filter_language import (
    ANY,
    NUMBER,
    PATH,
    TAGS,
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

PATH_SEPARATOR = " > "

Key = TypeVar("Key")
Reader = Callable[[Key], Any]
"""The value of a field by item. None or empty for what is not there. Texts and words are str, numbers finite int or
float, times microseconds since 1970, tags a collection of str, flags bool; attributes as their JSON says."""


def bind_filter(
    expression: Expression, reader: Callable[[str], Reader[Key]], *, now_micros: int
) -> Callable[[Key], bool]:
    """The filter as a function of the item. `reader(field)` is asked once for each test, here.

    now_micros  what ago("30d") counts back from. A filter for which `depends_on_request` is false may be kept.
    """
    match expression:
        case Constant(holds):
            return lambda _: holds
        case Not(part):
            denied = bind_filter(part, reader, now_micros=now_micros)
            return lambda key: not denied(key)
        case All(parts):
            return _every([bind_filter(part, reader, now_micros=now_micros) for part in parts])
        case AnyOf(parts):
            return _some([bind_filter(part, reader, now_micros=now_micros) for part in parts])
        case OneOf(field, values):
            return _one_of(field_type(field), values, reader(field))
        case Order(field, relation, bound):
            least = now_micros - bound.micros if isinstance(bound, Ago) else bound
            return _ordered(field_type(field), relation, least, reader(field))
        case IsMissing(field):
            read = reader(field)
            return lambda key: _is_missing(read(key))


def _every(parts: list[Callable[[Key], bool]]) -> Callable[[Key], bool]:
    if len(parts) == 2:  # the usual number; `all` would make a generator for each item
        first, second = parts
        return lambda key: first(key) and second(key)
    return lambda key: all(part(key) for part in parts)


def _some(parts: list[Callable[[Key], bool]]) -> Callable[[Key], bool]:
    return lambda key: any(part(key) for part in parts)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | frozenset) and not value)


def _one_of(kind: str, values: tuple[Value, ...], read: Reader[Key]) -> Callable[[Key], bool]:
    wanted = frozenset(values)
    if kind == PATH:
        return lambda key: _lies_within(read(key), wanted)
    if kind == TAGS:
        return lambda key: not wanted.isdisjoint(read(key) or ())
    if kind == ANY:
        plain = _PLAIN[type(values[0])]
        return lambda key: any(plain(entry) in wanted for entry in _entries(read(key)))
    return lambda key: read(key) in wanted


def _lies_within(path: str | None, wanted: Collection[Value]) -> bool:
    """Whether a category path or one above it is wanted."""
    if not path:
        return False
    if path in wanted:
        return True
    end = path.find(PATH_SEPARATOR)
    while end >= 0:
        if path[:end] in wanted:
            return True
        end = path.find(PATH_SEPARATOR, end + 1)
    return False


def _entries(value: Any) -> Collection[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _number(value: Any) -> float | None:
    """A number of JSON as a double; None for what is none, or is beyond any."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


_PLAIN: dict[type, Callable[[Any], Any]] = {
    float: _number,
    str: lambda value: value if isinstance(value, str) else None,
    bool: lambda value: value if isinstance(value, bool) else None,
}


def _ordered(kind: str, relation: str, bound: float | int, read: Reader[Key]) -> Callable[[Key], bool]:
    if kind == ANY:
        return _ordered(NUMBER, relation, bound, lambda key: _number(read(key)))
    match relation:
        case "<":
            return lambda key: (value := read(key)) is not None and value < bound
        case "<=":
            return lambda key: (value := read(key)) is not None and value <= bound
        case ">":
            return lambda key: (value := read(key)) is not None and value > bound
        case _:
            return lambda key: (value := read(key)) is not None and value >= bound
