"""One API for all tests of clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.served import ServedApi


@pytest.fixture(scope="session")
def _served_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApi]:
    api = ServedApi(tmp_path_factory.mktemp("served"))
    yield api
    api.stop()


@pytest.fixture
def api(_served_api: ServedApi) -> ServedApi:
    """The API, as if nobody had sent anything to it yet."""
    _served_api.begin()
    return _served_api
