"""JSON of long columns, read in pieces: the parser has the interpreter for as long as a piece takes, not the file."""

from __future__ import annotations

import re
from typing import Any

import orjson

from serving.adapters.pace import Pace

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_VALUE = rb"\s*+(?:" + _STRING + rb"|\[(?:[^\"\[\]{}]++|" + _STRING + rb")*+\]|[^\s,\"\[\]{}]++)\s*+"
"""A text, a number, a word, or an array of such."""
_SOME_VALUES = re.compile(rb"(?:" + _VALUE + rb",){1,256}+", re.DOTALL)
_LAST_VALUE = re.compile(_VALUE + rb"\]", re.DOTALL)
_NO_VALUE = re.compile(rb"\s*+\]")
_KEY = re.compile(rb"\s*+(" + _STRING + rb")\s*+:\s*+", re.DOTALL)
_NEXT = re.compile(rb"\s*+([,}])\s*+")
_EMPTY = re.compile(rb"\s*+\}\s*+")


class _OtherwiseError(Exception):
    """The text has another form; the parser will say which, or read it."""


def read_columns(data: bytes, pace: Pace) -> Any:
    """What `orjson.loads` gives. In pieces of 256 values, with rests between them, where the text is an object of
    arrays, or of objects of arrays; whole where it is anything else. Raises as `orjson.loads`."""
    if pace.is_hurried:
        return orjson.loads(data)
    try:
        start = data.index(b"{") + 1
        if data[: start - 1].strip():
            raise _OtherwiseError
        found, end = _read_object(data, start, pace)
        if end != len(data):
            raise _OtherwiseError
    except (_OtherwiseError, ValueError):
        return orjson.loads(data)
    return found


def _read_object(data: bytes, at: int, pace: Pace) -> tuple[dict[str, Any], int]:
    """The object whose first key is at `at`, and where it has ended."""
    found: dict[str, Any] = {}
    if empty := _EMPTY.match(data, at):
        return found, empty.end()
    while key := _KEY.match(data, at):
        read = {b"[": _read_array, b"{": _read_object}.get(data[key.end() : key.end() + 1])
        if read is None:
            break
        found[orjson.loads(key[1])], at = read(data, key.end() + 1, pace)
        following = _NEXT.match(data, at)
        if following is None:
            break
        at = following.end()
        if following[1] == b"}":
            return found, at
    raise _OtherwiseError


def _read_array(data: bytes, at: int, pace: Pace) -> tuple[list[Any], int]:
    """The array whose first value is at `at`, and where it has ended."""
    if empty := _NO_VALUE.match(data, at):
        return [], empty.end()
    found: list[Any] = []
    while some := _SOME_VALUES.match(data, at):
        found += orjson.loads(b"[" + data[at : some.end() - 1] + b"]")
        at = some.end()
        pace.breathe()
    last = _LAST_VALUE.match(data, at)
    if last is None:
        raise _OtherwiseError
    found += orjson.loads(b"[" + data[at : last.end()])
    return found, last.end()
