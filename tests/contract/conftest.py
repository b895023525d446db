"""Fixtures of the contract tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.consumer_world import MemoryWorld, RedisWorld, World


@pytest.fixture(params=["redis", "memory"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Both Redis roles as the consumer sees them: real, and as the twins in memory."""
    if request.param == "memory":
        yield MemoryWorld()
        return
    made = RedisWorld(request.getfixturevalue("redis_url"))
    yield made
    made.client.close()
