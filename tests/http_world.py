"""An API on twins with sixty items on three shelves, and how tests talk to it over HTTP."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
from fastapi import FastAPI

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import candidates_key, pointer_key, session_key
from feature_repo.contracts.packing import (
    PackedCandidate,
    SessionEvent,
    SessionState,
    Source,
    pack_candidates,
    pack_session,
    session_hash,
)
from serving.adapters.decision_log import MemoryDecisionLog
from serving.adapters.memory_event_log import MemoryEventLog
from serving.adapters.online import MemoryOnlineStore
from serving.api import schemas
from serving.main import create_app
from serving.settings import ServingSettings
from tests.serving_builders import TENANT, Shop

SECOND = 1_000_000
NOW = 1_709_902_800 * SECOND  # 2024-03-08T13:00:00Z
SHELVES = ("Home > Kitchen", "Garden", "Toys")
ITEMS = [f"i{number:02d}" for number in range(60)]


def shelf_of(item: str) -> str:
    return SHELVES[int(item[1:]) // 20]


def shop(model: str = "als") -> Shop:
    """Sixty items on three shelves; an item's neighbours are the ten that follow it on its shelf."""
    near = {
        item: [
            (other, 1.0 / (1 + n)) for n, other in enumerate(ITEMS[i + 1 : i + 11]) if shelf_of(other) == shelf_of(item)
        ]
        for i, item in enumerate(ITEMS)
    }
    return Shop(
        {item: {"title": f"Item {item}", "category": shelf_of(item), "price": 2.5} for item in ITEMS},
        neighbours=near,
        popular=[(item, 100.0 - n) for n, item in enumerate(ITEMS[::-1])],
        by_category={name: [(i, 50.0) for i in ITEMS if shelf_of(i) == name] for name in SHELVES},
        static=[("i00", 1.0)],
        model=model,
    )


class Installation:
    """An app on twins, with what the night would have written for user u1: thirty items, all but toys."""

    def __init__(self, environment: Environment, **settings: Any) -> None:
        self.environment = environment
        self.store = MemoryOnlineStore(tenant=TENANT)
        self.log = MemoryEventLog(tenant=TENANT)
        self.decisions = MemoryDecisionLog()
        self.now = NOW
        numbers, ticks = itertools.count(1), itertools.count(step=1_000_000)
        self.app: FastAPI = create_app(
            environment,
            ServingSettings(max_events=3, max_body_bytes=5000, **settings),
            store=self.store,
            log=self.log,
            decisions=self.decisions,
            wall_micros=lambda: self.now,
            timer=lambda: next(ticks),
            new_id=lambda: f"id{next(numbers)}",
        )
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url="http://api"
        )

    def publish(self, published: Shop, **options: int) -> str:
        """Bundle, candidates and pointer of a version."""
        version = published.write(self.environment.publications)
        rows = [PackedCandidate(published.numbers[i], 3.0 - n / 10, Source.ALS, 5) for n, i in enumerate(ITEMS[10:40])]
        self.store.strings[candidates_key(version, "u1")] = pack_candidates(version, rows, **options)
        self.store.strings[pointer_key()] = version.encode()
        return version

    def remember(self, *clicked: str, session_id: str = "s1", subject: str = "u:u1", **state: Any) -> None:
        """A session record: clicks one minute apart, the last one a minute ago."""
        ago = [(len(clicked) - n) * 60 for n in range(len(clicked))]
        events = [
            SessionEvent(NOW - seconds * SECOND, "view_item", session_hash(session_id), item)
            for seconds, item in zip(ago, clicked, strict=True)
        ]
        self.store.strings[session_key(subject)] = pack_session(SessionState(events=events, **state))

    async def ask(self, **question: Any) -> dict[str, Any]:
        response = await self.client.post("/v1/recommendations", json=question)
        assert response.status_code == 200, response.text
        return dict(response.json())


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def problem_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["status"] == status
    schemas.Problem.model_validate(body)
    return dict(body)


def click(event_id: str | None, item: str = "i41", **more: Any) -> dict[str, Any]:
    event = {"event_type": "view_item", "user_id": "u1", "item_id": item, "timestamp": "2024-03-08T12:59:00Z", **more}
    return event if event_id is None else {"event_id": event_id, **event}


async def metric(api: Installation, sample: str) -> float:
    text = (await api.client.get("/metrics")).text
    values = [float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(sample)]
    return sum(values)
