"""An API that takes events, in process, on stores in memory, at a fixed instant."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import httpx
from fastapi import FastAPI

from feature_repo.contracts.api_keys import ApiKey
from feature_repo.contracts.environment import Environment
from serving.adapters.memory_event_log import MemoryEventLog
from serving.adapters.online import MemoryOnlineStore
from serving.main import create_app
from serving.settings import ServingSettings

RECEIVED_MICROS = 1_709_902_800_000_000
"""2024-03-08T13:00:00Z"""


class FrontDoor:
    """The app, a client, and what the log was given."""

    def __init__(self, environment: Environment, *, keys: Sequence[ApiKey] = (), **settings: Any) -> None:
        """`keys`: those that there are, with `api_keys="on"`."""
        self.log = MemoryEventLog(tenant="default")
        self.now_micros = RECEIVED_MICROS
        numbers = itertools.count(1)
        self.app: FastAPI = create_app(
            environment,
            ServingSettings(**settings),
            store=MemoryOnlineStore(tenant="default"),
            log=self.log,
            wall_micros=lambda: self.now_micros,
            new_id=lambda: f"id{next(numbers)}",
        )
        self.app.state.services.ring.take(keys)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url="http://api"
        )

    def written(self) -> list[dict[str, Any]]:
        """The events in the streams, by id."""
        events = [json.loads(event) for stream in self.log.streams.values() for event, _ in stream]
        return sorted(events, key=lambda event: str(event["event_id"]))
