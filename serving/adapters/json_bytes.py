"""JSON to bytes and back: orjson, and the standard library for what orjson refuses although it is JSON.

That is: lone surrogates in escapes, and integers beyond 64 bits. NaN and Infinity are not JSON and are refused.
"""

from __future__ import annotations

import json
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
            return json.loads(data, parse_constant=_refuse_constant)
        except RecursionError:
            raise ValueError("nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
