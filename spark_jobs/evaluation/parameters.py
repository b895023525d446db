"""Run parameters, as they come from a form or a command line, into a dataclass with types and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from feature_repo.contracts.errors import DataError

Options = TypeVar("Options")

_KINDS = {bool: "a bool", int: "an int", float: "a float", str: "a text", tuple: "a list of words"}
_WORDS = {"true": True, "false": False}


def read_parameters(kind: type[Options], params: Mapping[str, Any]) -> Options:
    """An instance of the dataclass `kind` from those of `params` that it has fields for; the others are not its own.

    None and "" mean the default. Texts are read as the type of the default. Raises DataError naming the parameter, the
    value seen and the type wanted.
    """
    given = {}
    for field in fields(kind):  # type: ignore[arg-type]
        value = params.get(field.name)
        if value is not None and value != "":
            given[field.name] = _read(field.name, value, type(field.default))
    return kind(**given)


def _read(name: str, value: Any, wanted: type) -> Any:
    error = DataError(f"parameter {name} must be {_KINDS[wanted]}, got {value!r}", field=name)
    if wanted is bool:
        found = value if isinstance(value, bool) else _WORDS.get(str(value).lower())
        if found is None:
            raise error
        return found
    if wanted is tuple:
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else tuple(value)
    if isinstance(value, bool):
        raise error
    try:
        number = wanted(value)
    except (TypeError, ValueError) as refused:
        raise error from refused
    if wanted is int and isinstance(value, float) and value != number:
        raise error
    return number
