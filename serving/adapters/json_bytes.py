"""JSON to bytes and back: orjson, and the standard library for what orjson refuses although it is JSON.

That is: lone surrogates in escapes. NaN and Infinity are not JSON and are refused; so is a number beyond any double,
which could only be kept as infinity.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import orjson


def encode_json(value: Any) -> bytes:
    """Compact UTF-8 JSON. Raises TypeError on what JSON cannot say."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, separators=(",", ":")).encode("ascii")


def decode_json(data: bytes) -> Any:
    """Inverse of `encode_json`. Raises ValueError on bytes that are no JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
        except RecursionError:
            raise ValueError("nested too deeply") from error


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
