"""What one would write first: FastAPI, pydantic, redis-py and JSON.

`python -m infra.bench.serving.baseline PORT REDIS_URL FILE`; FILE is `BenchShop.write_catalogue`'s.
It answers the same requests with the same items in the same order, for the same reasons. Of what we promise beyond that
it does nothing: no consent, no identity, no stock, no versions, no metrics, no log of decisions, no answer when Redis
is down. `nightjar bench serving` measures it beside ours.
"""

from __future__ import annotations

import json
import math
import sys
import time
import uuid
from collections import defaultdict
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import redis.asyncio
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field

from infra.bench.serving.baseline_rules import Shelves, arrange, has_places_to_give
from serving.pipeline.values import Tuning

Id = Annotated[str, Field(min_length=1, max_length=256)]

VOTE_WEIGHTS = {"view_item": 1.0, "select_item": 1.0, "add_to_cart": 2.0, "purchase": 1.0}
TUNING = Tuning()
WORDS = {"add_to_cart": "because you put {title} in your cart"}


class Context(BaseModel):
    category: str | None = None
    region: str | None = None


class Question(BaseModel):
    """The fields of a request that the load has. Whoever brings a `recommendation_id` gets the draws of that answer."""

    recommendation_id: Id | None = None
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
        self.placements: dict[str, dict[str, Any]] = document["placements"]
        self.leads_to: dict[str, dict[str, float]] | None = None
        self.reads: list[int] = []
        if (found := document["leads_to"]) is not None:
            self.leads_to, self.reads = found["rows"], found["reads"]
            self.loudness = [math.exp(-step / found["place_decay"]) for step in range(len(self.reads))]
        self.shelves = Shelves(self.items, document["groups"], document["brands"], self.neighbours)


class Vote(NamedTuple):
    """What one event says: the items that it speaks for, and how much for each."""

    item_id: str
    event_type: str
    weight: float
    row: dict[str, float]


def votes_of(events: list[dict[str, Any]], catalogue: Catalogue) -> list[Vote]:
    """The latest events first, by the session index or, where there is none, by item neighbours.

    By the index consecutive events on one item are one place, whose loudest event speaks, and an item that comes again
    speaks from its latest place alone.
    """
    said: list[Vote] = []
    heard: set[str] = set()
    step, latest, is_repeat = -1, None, False
    for event in reversed(events):
        item_id, weight = event["item_id"], VOTE_WEIGHTS.get(event["event_type"])
        if weight is None or item_id not in catalogue.items:
            continue
        fading = 0.5 ** ((events[-1]["timestamp"] - event["timestamp"]) / TUNING.half_life_seconds)
        if catalogue.leads_to is None:
            row = catalogue.neighbours[item_id]
            said.append(Vote(item_id, event["event_type"], weight * (TUNING.position_decay ** len(said) * fading), row))
            continue
        if item_id != latest:
            step, latest, is_repeat = step + 1, item_id, item_id in heard
            if step == len(catalogue.reads):
                break
            heard.add(item_id)
        if is_repeat:
            continue
        loudness = weight * catalogue.loudness[step] * fading
        if said and said[-1].item_id == item_id:
            if loudness > said[-1].weight:
                said[-1] = said[-1]._replace(event_type=event["event_type"], weight=loudness)
            continue
        row = dict(islice(catalogue.leads_to[item_id].items(), catalogue.reads[step]))
        if row:
            said.append(Vote(item_id, event["event_type"], loudness, row))
    return said


def rank(
    question: Question,
    catalogue: Catalogue,
    candidates: list[dict[str, Any]],
    session: dict[str, Any],
    *,
    is_own: bool,
    recommendation_id: str,
    now: float,
) -> list[Item]:
    """The best items by the rules of the placement: the list's score plus the votes of the session, without what was
    excluded, seen or bought.

    Beside a list that is not the person's own the session is louder. `now`: seconds since 1970 UTC.
    """
    rules = catalogue.placements.get(question.placement) or catalogue.placements["default"]
    events = [event for event in session["events"] if event["session_id"] == question.session_id]
    taken_out = set(question.exclude_item_ids) | set(session["bought"]) | set(session["dismissed"])
    taken_out |= {event["item_id"] for event in events}
    said = votes_of(events, catalogue)
    sums: dict[str, float] = defaultdict(float)
    for vote in said:
        for item_id, similarity in vote.row.items():
            sums[item_id] += vote.weight * similarity
    allowed = {item_id: total for item_id, total in sums.items() if item_id not in taken_out}
    top = max(allowed.values(), default=1.0)
    votes = {item_id: total / top for item_id, total in allowed.items()}
    total = sum([vote.weight for vote in said])
    most = TUNING.session_weight if is_own else TUNING.session_weight_alone
    weight = most * total / (total + 1) if votes else 0.0
    best = candidates[0]["score"]
    rows = {row["item_id"]: row for row in candidates if row["item_id"] not in taken_out}
    has_rules = has_places_to_give(rules)
    if has_rules and not is_own:  # of a list for everybody some more than places
        rows = dict(islice(rows.items(), max(3 * question.num_results, question.num_results + 20)))
    bases = {item_id: max(row["score"] / best, 0.001) for item_id, row in rows.items()}
    scores = {
        item_id: (bases.get(item_id, 0.0) + weight * votes.get(item_id, 0.0)) / (1 + weight)
        for item_id in bases.keys() | votes.keys()
    }
    ordered = sorted(scores, key=lambda item_id: (-scores[item_id], item_id))
    if has_rules:
        subject = f"u:{question.user_id}" if question.user_id else f"a:{question.anonymous_id}"
        chosen = arrange(
            ordered, scores, rules, catalogue.shelves, size=question.num_results, subject=subject,
            shown=session.get("shown", {}), recommendation_id=recommendation_id, now=now,
        )  # fmt: skip
    else:
        chosen = ordered[: question.num_results]
    usual = set(sorted(bases, key=lambda item_id: (-bases[item_id], item_id))[: question.num_results])
    items = []
    for place, item_id in enumerate(chosen, start=1):
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
    loud = [(vote.weight * vote.row.get(item_id, 0.0), vote) for vote in said]
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
        recommendation_id = question.recommendation_id or uuid.uuid4().hex
        items = rank(
            question, catalogue, candidates, session, is_own=level == "personal", recommendation_id=recommendation_id,
            now=time.time(),
        )  # fmt: skip
        return Slate(
            recommendation_id=recommendation_id, placement=question.placement, items=items, fallback_level=level
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
