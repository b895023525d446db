"""JSON as every entrance reads it."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def parse_json(text: bytes | str) -> Any:
    """The document. Lone surrogates in escapes are taken.

    Raises ValueError on what is no JSON: NaN and Infinity too, and a number beyond any double, which could only be kept
    as infinity; and on nesting that Python's parser cannot follow (hundreds of levels).
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
