"""JSON to bytes and back: orjson, and the contract's parser for what orjson refuses although it is JSON.

That is: lone surrogates in escapes. NaN and Infinity are not JSON and are refused; so is a number beyond any double,
which could only be kept as infinity.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from feature_repo.contracts.json_text import parse_json


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
    except orjson.JSONDecodeError:
        return parse_json(data)


def sorted_json(value: Any) -> str:
    """Compact JSON with sorted keys, as text. Raises TypeError on what JSON cannot say."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except orjson.JSONEncodeError:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
