"""The compiled modules of this process, each None where its twin has to answer."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from serving.native import why_not

logger = logging.getLogger("nightjar.serving")


def _load(name: str) -> Any:
    if why_not is not None:
        return None
    try:
        return import_module(f"serving.native.{name}")
    except ImportError:
        logger.exception("native code cannot be loaded; Python answers")
        return None


slates = _load("slates")
answers = _load("answers")
arranged = _load("arranged")
questions = _load("questions")
reads = _load("reads")
ids = _load("ids")
subjects = _load("subjects")
writing = _load("writing")
records = _load("records")
ranking = _load("ranking")
given = _load("given")
pages = _load("pages")
ruled = _load("ruled")
chances = _load("chances")
shelving = _load("shelving")
decided = _load("decided")
opening = _load("opening")
trees = _load("trees")
