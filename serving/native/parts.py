"""The compiled modules of this process, each None where its twin has to answer.

A part is loaded when it is first asked for: native code imports pieces of the pipeline, which asks for native code.
Whoever serves loads all of them as it starts (`load_all`), so that no request waits for it.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from serving.native import PARTS, why_not

logger = logging.getLogger("nightjar.serving")


def _load(name: str) -> Any:
    if why_not is not None:
        return None
    try:
        return import_module(f"serving.native.{name}")
    except ImportError:
        logger.exception("native code cannot be loaded; Python answers")
        return None


def __getattr__(name: str) -> Any:
    if name not in PARTS:
        raise AttributeError(f"serving.native.parts has no {name!r}; the parts are {', '.join(PARTS)}")
    globals()[name] = _load(name)
    return globals()[name]


def load_all() -> None:
    """Loads what was not asked for yet."""
    for name in PARTS:
        if name not in globals():
            __getattr__(name)
