"""What one would write first: FastAPI, pydantic and redis-py. `python -m infra.bench.events.baseline PORT REDIS_URL`.

It takes the same events, marks and keeps them in the same way and gives the same answers to good ones; its Redis need
not fsync. `nightjar bench ingest` measures it beside ours.
"""

from __future__ import annotations

import sys
import uuid
from typing import Annotated, Any, Literal

import redis.asyncio
import uvicorn
from fastapi import FastAPI
from pydantic import AwareDatetime, BaseModel, Field, RootModel, model_validator

from feature_repo.contracts.events import ITEM_REQUIRED, EventType, subject_key
from feature_repo.contracts.keys import dedup_key, partition_of, stream_key

Id = Annotated[str, Field(min_length=1, max_length=256)]
_ITEM_REQUIRED = frozenset(kind.value for kind in ITEM_REQUIRED)


class Event(BaseModel):
    """The event's fields that the load has, and some."""

    event_id: Id
    event_type: EventType
    timestamp: AwareDatetime
    user_id: Id | None = None
    anonymous_id: Id | None = None
    session_id: Id | None = None
    item_id: Id | None = None
    value: float | None = None
    quantity: int | None = Field(None, gt=0)
    price: float | None = Field(None, ge=0)
    currency: Id | None = None
    properties: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Event:
        if self.user_id is None and self.anonymous_id is None:
            raise ValueError("user_id or anonymous_id is required")
        if self.item_id is None and self.event_type in _ITEM_REQUIRED:
            raise ValueError("item_id is required")
        return self


class Events(RootModel[Event | list[Event]]):
    """One event or several."""


class Result(BaseModel):
    """What became of one."""

    index: int
    event_id: str
    status: Literal["accepted", "duplicate"]


class Results(BaseModel):
    """The answer."""

    results: list[Result]


def build(url: str) -> FastAPI:
    """The application, on one Redis."""
    app = FastAPI()
    client = redis.asyncio.Redis.from_url(url)

    @app.post("/v1/events", status_code=202)
    async def post_events(body: Events) -> Results:
        events = body.root if isinstance(body.root, list) else [body.root]
        async with client.pipeline(transaction=True) as pipe:
            for event in events:
                partition = partition_of(subject_key(event.user_id, event.anonymous_id))
                nonce = uuid.uuid4().hex
                pipe.set(dedup_key(partition, event.event_id), nonce, nx=True, ex=86_400)
                fields: Any = {"event": event.model_dump_json(exclude_none=True), "nonce": nonce}
                pipe.xadd(stream_key(partition), fields)
            replies = await pipe.execute()
        return Results(
            results=[
                Result(index=n, event_id=event.event_id, status="accepted" if replies[2 * n] else "duplicate")
                for n, event in enumerate(events)
            ]
        )

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    return app


def main() -> None:
    """Serve until SIGTERM, with the same server settings as ours."""
    config = uvicorn.Config(
        build(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False,
        log_level="warning", server_header=False, proxy_headers=False,
    )  # fmt: skip
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
