"""The demo's story in steps: feed the shop, run the night, ask, click, ask again, undo. Every figure in it is measured.

Each step returns plain values; `screen` prints them, the end-to-end test checks them.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.times import format_timestamp
from infra.demo.shop_window import SLATE_SIZE, Cast, ShopWindow, choose_cast

CLICK_DEADLINE_SECONDS = 10.0
"""How long the demo waits for a click to change an answer before it says that it did not."""


@dataclass(slots=True)
class StepTimes:
    """Wall seconds by step, in the order in which the steps ran."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


@dataclass(frozen=True, slots=True)
class Check:
    """One claim of the demo: what it says, whether it held, and what was measured."""

    claim: str
    held: bool
    measured: str


class ApiClient:
    """The few calls of the demo, over HTTP like any other client's."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=10.0)

    def slate(self, user_id: str, session_id: str) -> dict[str, Any]:
        """The whole answer for one user in one session."""
        body = {"user_id": user_id, "session_id": session_id, "num_results": SLATE_SIZE, "placement": "default"}
        return self._post("/v1/recommendations", body)

    def click(self, user_id: str, session_id: str, item_id: str) -> float:
        """Post one click; the seconds until its durable acknowledgement. Raises DependencyError unless accepted."""
        event = {
            "event_id": f"demo-{uuid.uuid4().hex}",
            "event_type": "click",
            "user_id": user_id,
            "session_id": session_id,
            "item_id": item_id,
            "timestamp": format_timestamp(datetime.now(UTC)),
        }
        started = time.monotonic()
        answer = self._post("/v1/events", event)
        seconds = time.monotonic() - started
        if [r["status"] for r in answer["results"]] != ["accepted"]:
            raise DependencyError(f"the click on {item_id} was not accepted: {answer['results']}")
        return seconds

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._http.post(path, json=body)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise DependencyError(f"POST {path} failed: {error}; see `nightjar logs api`") from error
        return answer.json()


@dataclass(frozen=True, slots=True)
class Clicked:
    """A user before and after three clicks, a control user, and the same user in a new session."""

    cast: Cast
    before: dict[str, Any]
    after: dict[str, Any]
    undone: dict[str, Any]
    control_before: dict[str, Any]
    control_after: dict[str, Any]
    acknowledge_ms: list[float]
    answer_changed_ms: float | None

    @property
    def new_items(self) -> list[dict[str, Any]]:
        """Items of the second slate that were not in the first, in slate order."""
        old = {item["item_id"] for item in self.before["items"]}
        return [item for item in self.after["items"] if item["item_id"] not in old]

    @property
    def explained_items(self) -> list[dict[str, Any]]:
        """New items that name a clicked item among their reasons."""
        clicked = set(self.cast.clicks)
        return [i for i in self.new_items if clicked & {reason.get("item_id") for reason in i["reasons"]}]

    def checks(self) -> list[Check]:
        """The demo's claims about the clicks."""
        moved = (
            f"{len(self.new_items)} of {len(self.after['items'])} new, {len(self.explained_items)} name a clicked item"
        )
        return [
            Check(
                "three clicks change at least 3 of 10 items, each with its reason",
                len(self.explained_items) >= 3,
                moved,
            ),
            Check(
                "somebody who clicked nothing gets a byte-identical slate",
                slate_bytes(self.control_before) == slate_bytes(self.control_after),
                f"user {self.cast.control_user_id}, {len(slate_bytes(self.control_after))} bytes",
            ),
            Check(
                "a new session restores the first slate",
                slate_bytes(self.before) == slate_bytes(self.undone),
                f"{len(slate_bytes(self.undone))} bytes",
            ),
            Check(
                "the click reaches the next answer (HTTP, stream, consumer, Redis, answer)",
                self.answer_changed_ms is not None,
                "not seen" if self.answer_changed_ms is None else f"{self.answer_changed_ms:.0f} ms",
            ),
        ]


def slate_bytes(answer: dict[str, Any]) -> bytes:
    """What two answers are compared by: items with scores, order and reasons, without the answer's own id and times."""
    return json.dumps(answer["items"], sort_keys=True, ensure_ascii=False).encode()


def click_through(env: Environment, api_url: str, window: ShopWindow, as_of: str) -> Clicked:
    """Play the clicks. Session ids are new each time, so an earlier demo leaves no trace in this one."""
    api = ApiClient(api_url)
    first, second = f"demo-{uuid.uuid4().hex[:12]}", f"demo-{uuid.uuid4().hex[:12]}"
    cast = choose_cast(env, window, as_of, lambda user_id: _personal_slate(api, user_id, first))
    before, control_before = api.slate(cast.user_id, first), api.slate(cast.control_user_id, first)
    acknowledge_ms, changed_ms = [], None
    for position, item_id in enumerate(cast.clicks):
        posted = time.monotonic()
        acknowledge_ms.append(api.click(cast.user_id, first, item_id) * 1000)
        if position == 0:
            changed_ms = _until_changed(api, cast.user_id, first, slate_bytes(before), posted)
    after = _settled(api, cast, first)
    return Clicked(
        cast=cast,
        before=before,
        after=after,
        undone=api.slate(cast.user_id, second),
        control_before=control_before,
        control_after=api.slate(cast.control_user_id, first),
        acknowledge_ms=acknowledge_ms,
        answer_changed_ms=changed_ms,
    )


def _personal_slate(api: ApiClient, user_id: str, session_id: str) -> list[str]:
    """The items of the user's own slate; none when the answer is everybody's: clicks of who refuses move nothing."""
    answer = api.slate(user_id, session_id)
    return [item["item_id"] for item in answer["items"]] if answer["fallback_level"] == "personal" else []


def _until_changed(api: ApiClient, user_id: str, session_id: str, old: bytes, posted: float) -> float | None:
    """Milliseconds from the post of a click to the first answer that differs; None when none does in time."""
    while time.monotonic() - posted < CLICK_DEADLINE_SECONDS:
        if slate_bytes(api.slate(user_id, session_id)) != old:
            return (time.monotonic() - posted) * 1000
        time.sleep(0.002)
    return None


def _settled(api: ApiClient, cast: Cast, session_id: str) -> dict[str, Any]:
    """The answer once the last click counts: when two answers 100 ms apart agree, or at the deadline."""
    deadline = time.monotonic() + CLICK_DEADLINE_SECONDS
    answer = api.slate(cast.user_id, session_id)
    while time.monotonic() < deadline:
        time.sleep(0.1)
        again = api.slate(cast.user_id, session_id)
        if slate_bytes(again) == slate_bytes(answer):
            return again
        answer = again
    return answer


@dataclass(frozen=True, slots=True)
class TruthFound:
    """Mean true preference of what was recommended and of what is popular, over the same users and slate size.

    `ceiling` is the mean of the best possible slate among items new to the user. The simulator's own units.
    """

    users: int
    recommended: float
    popular: float
    ceiling: float

    def check(self) -> Check:
        """Well above popularity: at least a fifth of the way from popularity's slate to the best possible one."""
        share = (self.recommended - self.popular) / (self.ceiling - self.popular)
        measured = (
            f"{self.recommended:.3f} against {self.popular:.3f}, ceiling {self.ceiling:.3f}: {share:.0%} of the way"
        )
        return Check("the simulator's true preferences are found, well above popularity", share >= 0.2, measured)


def compare_with_truth(env: Environment, window: ShopWindow, as_of: str, shop: Path, *, users: int = 200) -> TruthFound:
    """Expected true preference of the published top 10 against popularity's top 10, both without items already seen.

    Grain: the first `users` users by id that have candidates. Ties in the ceiling do not matter (means of values).
    """
    import numpy as np
    from deltalake import DeltaTable

    from feature_repo.contracts.tables import table_path
    from feature_repo.contracts.times import parse_as_of
    from infra.demo.shop_window import user_histories
    from infra.simulator.truth import load_truth, true_preference

    truth = load_truth(shop)
    table = DeltaTable(table_path(env.lakehouse, "gold.candidates", tenant=env.tenant))
    rows = table.to_pyarrow_table(
        columns=["user_id", "item_numbers"], filters=[("as_of", "=", parse_as_of(as_of))]
    ).to_pylist()
    histories = user_histories(env, as_of)
    offered = [i for i in window.items if window.is_offered(i)]
    sums = np.zeros(3)
    counted = 0
    for row in sorted(rows, key=lambda r: r["user_id"]):
        seen = {r["item_id"] for r in histories.get(row["user_id"], ())}
        ranked = [window.number_to_id[n] for n in row["item_numbers"] if n in window.number_to_id]
        slate = [i for i in ranked if window.is_offered(i) and i not in seen][:SLATE_SIZE]
        popular = [i for i in window.popular if window.is_offered(i) and i not in seen][:SLATE_SIZE]
        if len(slate) < SLATE_SIZE or len(popular) < SLATE_SIZE:
            continue
        unseen = [i for i in offered if i not in seen]
        best = np.sort(true_preference(truth, row["user_id"], unseen))[-SLATE_SIZE:]
        sums += [
            true_preference(truth, row["user_id"], slate).mean(),
            true_preference(truth, row["user_id"], popular).mean(),
            best.mean(),
        ]
        counted += 1
        if counted == users:
            break
    if not counted:
        raise DependencyError("no user has a full slate to compare with the simulator's truth")
    return TruthFound(counted, *(sums / counted).tolist())
