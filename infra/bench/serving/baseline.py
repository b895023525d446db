"""What one would write first: FastAPI, pydantic, redis-py and JSON.

`python -m infra.bench.serving.baseline PORT REDIS_URL FILE`; FILE is `BenchShop.write_catalogue`'s.
It answers the same requests with the same items in the same order, for the same reasons. Of what we promise beyond that
it does nothing: no consent, no identity, no stock, no versions, no metrics, no log of decisions, no answer when Redis
is down. `nightjar bench serving` measures it beside ours.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections import defaultdict
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import redis.asyncio
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field

from serving.pipeline.values import Tuning

Id = Annotated[str, Field(min_length=1, max_length=256)]

VOTE_WEIGHTS = {"view_item": 1.0, "select_item": 1.0, "add_to_cart": 2.0, "purchase": 1.0}
TUNING = Tuning()
WORDS = {"add_to_cart": "because you put {title} in your cart"}


class Context(BaseModel):
    category: str | None = None
    region: str | None = None


class Question(BaseModel):
    """The fields of a request that the load has."""

    user_id: Id | None = None
    anonymous_id: Id | None = None
    session_id: Id | None = None
    placement: Id = "default"
    num_results: int = Field(default=10, ge=1, le=100)
    context: Context = Context()
    exclude_item_ids: list[Id] = Field(default_factory=list, max_length=1000)


class Reason(BaseModel):
    item_id: str | None
    title: str | None
    text: str


class Attributes(BaseModel):
    title: str
    category: str
    price: float


class Item(BaseModel):
    item_id: str
    score: float
    rank: int
    source: str
    reasons: list[Reason]
    attributes: Attributes


class Slate(BaseModel):
    """The answer."""

    recommendation_id: str
    placement: str
    items: list[Item]
    fallback_level: str


class Catalogue:
    """The file that the bench writes, in memory."""

    def __init__(self, path: Path) -> None:
        document = json.loads(path.read_text())
        self.items: dict[str, dict[str, Any]] = document["items"]
        self.neighbours: dict[str, dict[str, float]] = document["neighbours"]
        self.popular: list[dict[str, Any]] = document["popular"]


class Vote(NamedTuple):
    """What one event says."""

    item_id: str
    event_type: str
    weight: float


def rank(
    question: Question, catalogue: Catalogue, candidates: list[dict[str, Any]], session: dict[str, Any], *, is_own: bool
) -> list[Item]:
    """The best items: the list's score plus the votes of the session, without what was excluded, seen or bought.

    Beside a list that is not the person's own the session is louder.
    """
    events = [event for event in session["events"] if event["session_id"] == question.session_id]
    taken_out = set(question.exclude_item_ids) | set(session["bought"]) | set(session["dismissed"])
    taken_out |= {event["item_id"] for event in events}
    said: list[Vote] = []
    for event in reversed(events):
        weight = VOTE_WEIGHTS.get(event["event_type"])
        if weight is not None and event["item_id"] in catalogue.neighbours:
            age = events[-1]["timestamp"] - event["timestamp"]
            decay = TUNING.position_decay ** len(said) * 0.5 ** (age / TUNING.half_life_seconds)
            said.append(Vote(event["item_id"], event["event_type"], weight * decay))
    sums: dict[str, float] = defaultdict(float)
    for vote in said:
        for item_id, similarity in catalogue.neighbours[vote.item_id].items():
            sums[item_id] += vote.weight * similarity
    allowed = {item_id: total for item_id, total in sums.items() if item_id not in taken_out}
    top = max(allowed.values(), default=1.0)
    votes = {item_id: total / top for item_id, total in allowed.items()}
    total = sum(vote.weight for vote in said)
    most = TUNING.session_weight if is_own else TUNING.session_weight_alone
    weight = most * total / (total + 1) if votes else 0.0
    best = candidates[0]["score"]
    rows = {row["item_id"]: row for row in candidates if row["item_id"] not in taken_out}
    bases = {item_id: max(row["score"] / best, 0.001) for item_id, row in rows.items()}
    scores = {
        item_id: (bases.get(item_id, 0.0) + weight * votes.get(item_id, 0.0)) / (1 + weight)
        for item_id in bases.keys() | votes.keys()
    }
    ordered = sorted(scores, key=lambda item_id: (-scores[item_id], item_id))[: question.num_results]
    usual = set(sorted(bases, key=lambda item_id: (-bases[item_id], item_id))[: question.num_results])
    items = []
    for place, item_id in enumerate(ordered, start=1):
        voted = weight * votes.get(item_id, 0.0)
        if voted > 0 and (item_id not in usual or voted > bases[item_id]):
            source, reasons = "session", session_reasons(item_id, said, catalogue)
        else:
            source, reasons = (
                ("als" if rows[item_id]["reasons"] else "popularity"),
                list_reasons(rows[item_id], catalogue),
            )
        items.append(
            Item(
                item_id=item_id,
                score=round(scores[item_id], 6),
                rank=place,
                source=source,
                reasons=reasons,
                attributes=Attributes(**catalogue.items[item_id]),
            )
        )
    return items


def session_reasons(item_id: str, said: list[Vote], catalogue: Catalogue) -> list[Reason]:
    """The two events that voted most."""
    loud = [(vote.weight * catalogue.neighbours[vote.item_id].get(item_id, 0.0), vote) for vote in said]
    loudest = sorted([one for one in loud if one[0] > 0], key=lambda one: (-one[0], one[1].item_id))[:2]
    reasons = []
    for _, vote in loudest:
        title = catalogue.items[vote.item_id]["title"]
        words = WORDS.get(vote.event_type, "because you viewed {title}")
        reasons.append(Reason(item_id=vote.item_id, title=title, text=words.format(title=title)))
    return reasons


def list_reasons(row: dict[str, Any], catalogue: Catalogue) -> list[Reason]:
    """The past items that spoke for it."""
    if not row["reasons"]:
        return [Reason(item_id=None, title=None, text="popular with everybody")]
    titles = [(item_id, catalogue.items[item_id]["title"]) for item_id in row["reasons"]]
    return [Reason(item_id=i, title=title, text=f"because of your interest in {title}") for i, title in titles]


def build(url: str, path: Path) -> FastAPI:
    """The application, on one Redis."""
    client = redis.asyncio.Redis.from_url(url)
    catalogue = Catalogue(path)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        yield
        await client.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/recommendations")
    async def recommend(question: Question) -> Slate:
        candidates, level = catalogue.popular, "popular"
        session: dict[str, Any] = {"events": [], "bought": [], "dismissed": []}
        subject = question.user_id or question.anonymous_id
        if subject is not None:
            stored, state = await client.mget(f"candidates:{subject}", f"session:{subject}")
            if stored is not None:
                candidates, level = json.loads(stored), "personal"
            if state is not None:
                session = json.loads(state)
        return Slate(
            recommendation_id=uuid.uuid4().hex,
            placement=question.placement,
            items=rank(question, catalogue, candidates, session, is_own=level == "personal"),
            fallback_level=level,
        )

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    return app


def main() -> None:
    """Serve until SIGTERM, with the same server settings as ours."""
    config = uvicorn.Config(
        build(sys.argv[2], Path(sys.argv[3])), host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop",
        http="httptools", access_log=False, log_level="warning", server_header=False, proxy_headers=False,
    )  # fmt: skip
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
