"""Native code for the models of the night: an optional extra. Each part has a twin in scipy that gives the same bits.

`products` is the compiled module, or None: then the twin answers, and `why_not` says why. So it is where nothing was
compiled (there was no C compiler), where what was compiled is not the source that lies here, and where
NIGHTJAR_PURE_PYTHON=1 forbids it.
"""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

from feature_repo.contracts.native_code import why_no_native_code

PARTS = ("products",)
why_not: str | None = why_no_native_code(Path(__file__).parent, PARTS)


def _load(name: str) -> Any:
    if why_not is not None:
        return None
    try:
        return import_module(f"spark_jobs.native.{name}")
    except ImportError:
        logging.getLogger("nightjar.spark_jobs").exception("native code cannot be loaded; scipy answers")
        return None


products = _load("products")
