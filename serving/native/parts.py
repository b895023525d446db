"""The compiled modules of this process, each None where its twin has to answer."""

from __future__ import annotations

import logging
from typing import Any

from serving.native import why_not

logger = logging.getLogger("nightjar.serving")

slates: Any = None

if why_not is None:
    try:
        from serving.native import slates as _slates

        slates = _slates
    except ImportError:
        logger.exception("native code cannot be loaded; Python answers")
