"""The shop of `nightjar bench serving`: one set of lists, neighbours and sessions, in our form and in the baseline's.

Everything follows from numbers and a seed, so both sides have the same to work with.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import redis

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import DEFAULT_TENANT, candidates_key, pointer_key, session_key
from feature_repo.contracts.packing import (
    PackedCandidate,
    SessionEvent,
    SessionState,
    Source,
    pack_candidates,
    pack_session,
    session_hash,
)
from feature_repo.contracts.publication import (
    ITEMS_FILE,
    MANIFEST_FILE,
    NEIGHBOURS_FILE,
    POPULAR_FILE,
    SESSION_INDEX_FILE,
    Manifest,
    pack_neighbours,
)
from serving.pipeline.placements import Placement
from spark_jobs.models.recipes import default_sequence_recipe
from spark_jobs.models.sequences import Sequences, make_sequences
from spark_jobs.models.session_transitions import ItemLists
from spark_jobs.transforms.session_index import fit_session_index, session_index_bytes

_AS_OF = "2024-03-08"
_RECIPE = default_sequence_recipe("session_transitions")
_PAST_LENGTH = 6
_SHOWN_SECONDS_AGO = 72_000
_DAY_MICROS = 86_400_000_000
_BATCH = 500
_KINDS = ("view_item", "view_item", "view_item", "select_item", "add_to_cart")


class Candidate(NamedTuple):
    """One row of a person's list."""

    item_number: int
    score: float
    reason: int


class Click(NamedTuple):
    """One event of a session, `seconds_ago` before it is written."""

    event_type: str
    item_number: int
    seconds_ago: int


def _float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


class BenchShop:
    """`people` with a list of `candidates` items each, `items` with `neighbours` each.

    Of the usual mix it also has past sessions, from which the night's model learns its session index, products with
    `variants`, `brands`, and `showings` that people left alone.
    """

    def __init__(self, mix: dict[str, Any], *, people: int | None = None, items: int | None = None) -> None:
        self.people = people or int(mix["people"])
        self.items = items or int(mix["items"])
        self.candidates, self.neighbours = int(mix["candidates"]), int(mix["neighbours"])
        self.session_events = int(mix["session_events"])
        self.past_sessions = int(mix.get("past_sessions", 0)) * self.items // int(mix["items"])
        self.variants, self.brands = int(mix.get("variants", 0)), int(mix.get("brands", 0))
        self.showings = int(mix.get("showings", 0))
        # Scores fall along a list, and differ; what we store has the precision of a packed row.
        self._scores = [_float32(0.99**rank) for rank in range(self.candidates)]
        self._similarities = [_float32(0.9 / (1 + 0.37 * rank)) for rank in range(self.neighbours)]

    def candidates_of(self, person: int) -> list[Candidate]:
        """Best first. Half of it lies around the person's taste, half anywhere."""
        drawn = random.Random(person)  # noqa: S311
        home = person * 37 % self.items
        numbers: dict[int, None] = {}
        while len(numbers) < self.candidates:
            near = drawn.random() < 0.5
            numbers[(home + drawn.randrange(400)) % self.items if near else drawn.randrange(self.items)] = None
        reason = (home + 3) % self.items
        return [Candidate(number, score, reason) for number, score in zip(numbers, self._scores, strict=True)]

    def neighbours_of(self, number: int) -> list[tuple[int, float]]:
        """(number, similarity), best first."""
        drawn = random.Random(-number - 1)  # noqa: S311
        found: dict[int, None] = {}
        while len(found) < self.neighbours:
            other = (number + drawn.randrange(1, 300)) % self.items
            if other != number:
                found[other] = None
        return list(zip(found, self._similarities, strict=True))

    def session_of(self, person: int) -> list[Click]:
        """Oldest first, 40 seconds apart, around the person's taste."""
        drawn = random.Random(f"session {person}")  # noqa: S311
        home = person * 37 % self.items
        return [
            Click(_KINDS[at % len(_KINDS)], (home + drawn.randrange(300)) % self.items, 40 * (self.session_events - at))
            for at in range(self.session_events)
        ]

    def popular(self) -> list[tuple[int, float]]:
        """As long as a person's list, best first."""
        return [(number * 7 % self.items, 1000.0 - number) for number in range(self.candidates)]

    def shown_to(self, person: int) -> list[tuple[int, int]]:
        """(item number, how often) of what was shown to them yesterday and left alone: every fourth of their list."""
        if not self.showings:
            return []
        touched = {click.item_number for click in self.session_of(person)}
        rows = self.candidates_of(person)[: 4 * self.showings : 4]
        return [(row.item_number, 1 + at % 2) for at, row in enumerate(rows) if row.item_number not in touched]

    @cached_property
    def session_lists(self) -> ItemLists | None:
        """What each item leads to, as the night's session model learns it of the past sessions; None without any."""
        if not self.past_sessions:
            return None
        return fit_session_index(_RECIPE, self._past(), np.ones(self.items, bool))

    def _past(self) -> Sequences:
        """Sessions around a taste each, like those that are running."""
        drawn = np.random.default_rng(5)
        homes = drawn.integers(self.items, size=(self.past_sessions, 1))
        steps = drawn.integers(300, size=(self.past_sessions, _PAST_LENGTH))
        return make_sequences(list((homes + steps) % self.items), item_count=self.items)

    def facts(self, number: int) -> dict[str, Any]:
        """Title, category and price of an item; its id is `i<number>`."""
        return {"title": f"Item number {number}", "category": f"C{number % 10}", "price": float(number % 90 + 10)}

    def group(self, number: int) -> str | None:
        """The product of which an item is a variant; its variants are neighbours in number."""
        return f"g{number // self.variants}" if self.variants else None

    def brand(self, number: int) -> str | None:
        return f"b{number * 7 % self.brands}" if self.brands else None

    def publish(self, environment: Environment, online: redis.Redis, *, now_micros: int) -> str:
        """Bundle, candidates, sessions and pointer, as a night and the consumer write them; the version."""
        version = self.write_bundle(environment).version()
        for some in _batches(self.people):
            with online.pipeline(transaction=False) as pipe:
                for person in some:
                    rows = [PackedCandidate(n, s, Source.ALS, reason) for n, s, reason in self.candidates_of(person)]
                    pipe.set(candidates_key(version, f"u{person}"), pack_candidates(version, rows))
                pipe.execute()
        self.put_sessions(online, now_micros=now_micros)
        online.set(pointer_key(), version)
        return version

    def write_bundle(self, environment: Environment, *, as_of: str = _AS_OF) -> Manifest:
        """Items, neighbours and popular lists on disk; the manifest."""
        numbers = range(self.items)
        facts = [self.facts(number) for number in numbers]
        popular = [list(row) for row in self.popular()]
        columns: dict[str, list[Any]] = {
            "item_number": list(numbers),
            "item_id": [f"i{number}" for number in numbers],
            **{name: [one[name] for one in facts] for name in ("title", "category", "price")},
            "currency": ["GBP"] * self.items,
            "availability": ["IN_STOCK"] * self.items,
            "is_hidden": [False] * self.items,
            **{name: [None] * self.items for name in ("available_quantity", "created_at", "url", "image_url")},
        }
        if self.variants:
            columns["group_id"] = [self.group(number) for number in numbers]
            columns["brand"] = [self.brand(number) for number in numbers]
        lists = {"all": popular, "by_category": {}, "by_region": {}, "static": popular[:50]}
        files = {
            ITEMS_FILE: json.dumps(columns).encode(),
            NEIGHBOURS_FILE: pack_neighbours([self.neighbours_of(number) for number in numbers]),
            POPULAR_FILE: json.dumps(lists).encode(),
        }
        if self.session_lists is not None:
            files[SESSION_INDEX_FILE] = session_index_bytes(
                _RECIPE, self.session_lists, session_count=self.past_sessions
            )
        manifest = Manifest(
            as_of=as_of, model="bench", recipe={}, user_count=self.people, item_count=self.items,
            candidates_checksum="0" * 16, last_event_at=None,
            files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        )  # fmt: skip
        folder = Path(environment.publications) / DEFAULT_TENANT / manifest.version()
        folder.mkdir(parents=True)
        for name, data in {**files, MANIFEST_FILE: manifest.to_json().encode()}.items():
            (folder / name).write_bytes(data)
        return manifest

    def put_sessions(self, online: redis.Redis, *, now_micros: int) -> None:
        """A session for everybody, as a user and as a visitor."""
        for some in _batches(self.people):
            with online.pipeline(transaction=False) as pipe:
                for person in some:
                    record = pack_session(self._state(person, now_micros))
                    pipe.set(session_key(f"u:u{person}"), record)
                    pipe.set(session_key(f"a:a{person}"), record)
                pipe.execute()

    def _state(self, person: int, now_micros: int) -> SessionState:
        hashed = session_hash(f"s{person}")
        events = [
            SessionEvent(now_micros - click.seconds_ago * 1_000_000, click.event_type, hashed, f"i{click.item_number}")
            for click in self.session_of(person)
        ]
        day = now_micros // _DAY_MICROS
        shown_micros = now_micros - _SHOWN_SECONDS_AGO * 1_000_000
        shown = [(f"i{number}", times) for number, times in self.shown_to(person)]
        return SessionState(
            events=events,
            seen={item_id: shown_micros for item_id, _ in shown} | {event.item_id: event.micros for event in events},
            shown={(shown_micros // _DAY_MICROS, item_id): times for item_id, times in shown},
            interests={(day, event.item_id): 2 for event in events},
            counts={"view_item": len(events)},
            first_micros=events[0].micros,
            last_micros=events[-1].micros,
        )

    def publish_plain(self, online: redis.Redis, *, now_micros: int) -> None:
        """The same for the baseline: JSON under plain keys."""
        for some in _batches(self.people):
            with online.pipeline(transaction=False) as pipe:
                for person in some:
                    rows = [
                        {"item_id": f"i{n}", "score": s, "reasons": [f"i{reason}"]}
                        for n, s, reason in self.candidates_of(person)
                    ]
                    pipe.set(f"candidates:u{person}", json.dumps(rows))
                    events = [
                        {"event_type": c.event_type, "item_id": f"i{c.item_number}", "session_id": f"s{person}",
                         "timestamp": now_micros // 1_000_000 - c.seconds_ago}
                        for c in self.session_of(person)
                    ]  # fmt: skip
                    shown_at = now_micros / 1_000_000 - _SHOWN_SECONDS_AGO
                    shown = {f"i{n}": {"last": shown_at, "times": times} for n, times in self.shown_to(person)}
                    session = json.dumps({"events": events, "bought": [], "dismissed": [], "shown": shown})
                    pipe.set(f"session:u{person}", session)
                    pipe.set(f"session:a{person}", session)
                pipe.execute()

    def write_catalogue(self, path: Path, placements: Mapping[str, Placement]) -> None:
        """Items, neighbours, the popular list, what items lead to and the rules of placements as one JSON file: what
        the baseline keeps in memory."""
        lists, leads_to = self.session_lists, None
        if lists is not None:
            rows = {f"i{n}": zip(*(part.tolist() for part in lists.of(n)), strict=True) for n in range(self.items)}
            leads_to = {
                **{name: _RECIPE["params"][name] for name in ("reads", "place_decay")},
                "rows": {item_id: {f"i{other}": weight for other, weight in row} for item_id, row in rows.items()},
            }
        document = {
            "items": {f"i{n}": self.facts(n) for n in range(self.items)},
            "groups": {f"i{n}": self.group(n) for n in range(self.items)},
            "brands": {f"i{n}": self.brand(n) for n in range(self.items)},
            "leads_to": leads_to,
            "placements": {name: asdict(placement.rules) for name, placement in placements.items()},
            "neighbours": {f"i{n}": {f"i{o}": s for o, s in self.neighbours_of(n)} for n in range(self.items)},
            "popular": [{"item_id": f"i{n}", "score": s, "reasons": []} for n, s in self.popular()],
        }
        path.write_text(json.dumps(document))


def _batches(count: int) -> Iterator[range]:
    for start in range(0, count, _BATCH):
        yield range(start, min(count, start + _BATCH))
