"""Waiting for what another process does, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """What `condition` gives as soon as that is true of anything; the test fails when it never is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    pytest.fail(f"not within {seconds:.0f} s: {what}")
