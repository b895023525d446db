"""Fixtures of the parity tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from feature_repo.contracts import environment as names

SET_FOR_FEAST = (names.HOME, names.LAKEHOUSE, names.TENANT, names.FEAST_REDIS)


@pytest.fixture(scope="module", autouse=True)
def _variables_are_put_back() -> Iterator[None]:
    """Feast's configuration reads variables of the process, and opening the store sets them; others have theirs."""
    before = {name: os.environ.get(name) for name in SET_FOR_FEAST}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
