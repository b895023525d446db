"""Native slates are those of their twin in Python, to the last bit; and what was cut short or garbled reads nowhere."""

from __future__ import annotations

import itertools
import random
import struct
from array import array
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from feature_repo.contracts.changes import ITEMS, PATCH, check_change
from feature_repo.contracts.packing import (
    CANDIDATE_ROW,
    CandidateRows,
    ItemMark,
    SessionEvent,
    SessionState,
    Source,
    session_hash,
)
from feature_repo.contracts.times import from_micros
from serving.native import parts
from serving.pipeline import slate as pipeline
from serving.pipeline.catalogue import Catalogue, RankedList
from serving.pipeline.overlay import CatalogueOverlay
from serving.pipeline.session_index import SessionIndex
from serving.pipeline.values import Person, Slate, SlateRequest, Tuning
from tests.serving_builders import Shop

pytestmark = pytest.mark.skipif(parts.slates is None, reason="serving/native is not compiled (make setup)")

SECOND = 1_000_000
NOW = 1_709_900_000 * SECOND
KINDS = (
    "view_item", "view_item", "select_item", "add_to_cart", "purchase", "not_interested", "rating", "remove_from_cart"
)  # fmt: skip
CATEGORIES = ("A", "A > B", "A > B > C", "D")


def shop(drawn: random.Random) -> Shop:
    """Few different numbers, so that there are ties everywhere; rows that end early; items that may not be shown."""
    names = [f"n{number:02d}" for number in range(drawn.choice([12, 60, 90]))]
    drawn.shuffle(names)

    def rows(count: int, *, some: tuple[float, ...] = (0.9, 0.5, 0.3, 0.3, 0.1)) -> list[tuple[str, float]]:
        picked = drawn.sample(names, min(count, len(names)))
        return sorted([(name, drawn.choice(some)) for name in picked], key=lambda row: -row[1])

    facts: dict[str, dict[str, Any]] = {}
    for name in names:
        facts[name] = {"title": drawn.choice([name.upper(), "Tie", None]), "category": drawn.choice(CATEGORIES)}
        match drawn.randrange(12):
            case 0:
                facts[name]["availability"] = "OUT_OF_STOCK"
            case 1:
                facts[name]["is_hidden"] = True
            case 2:
                facts[name]["expire_time"] = drawn.choice(["2024-03-08T12:13:20Z", "2024-03-08T12:13:21Z"])
    lists: tuple[tuple[float, ...], ...] = ((9.0, 3.0, 1.0, 1e-9), (2.0, 1.0, 0.0), (1.0, -1.0, -3.0), (0.0,), (5.0,))
    near = {name: rows(drawn.randrange(13)) for name in drawn.sample(names, len(names) * 3 // 4)}
    leads = {
        name: rows(drawn.randrange(13), some=(4.0, 2.0, 1.0, 0.5)) for name in drawn.sample(names, len(names) // 2)
    }
    return Shop(
        facts,
        neighbours=near,
        popular=rows(drawn.choice([0, 5, 60]), some=drawn.choice(lists)),
        by_category={name: rows(drawn.choice([0, 3, 30]), some=drawn.choice(lists)) for name in ("A", "A > B")},
        by_region={"DE": rows(drawn.choice([0, 4, 30]), some=drawn.choice(lists))},
        static=rows(drawn.choice([0, len(names)]), some=(1.0,)),
        first_number=drawn.choice([0, 1, 7]),
        leads_to=leads if drawn.random() < 0.5 else None,
        session_params={"reads": drawn.choice([[9] * 5, [2, 12, 1]]), "place_decay": drawn.choice([2.0, 0.7])},
    )


def record(drawn: random.Random, numbers: range, last: int) -> CandidateRows | None:
    """A person's list: mostly as the night writes them, at times with anything in it."""
    kind = drawn.randrange(8)
    if kind == 0:
        return None
    count = drawn.choice([0, 1, 7, 40])
    somewhere = (
        [drawn.choice(numbers) for _ in range(count)] if kind == 1 else drawn.sample(numbers, min(count, len(numbers)))
    )
    some = drawn.choice([(3.0, 2.0, 1.5, 1.0, 0.5, 0.001), (1.0, 0.0, -1.0), (1.0,), (0.0,)])
    scores = sorted([drawn.choice(some) for _ in somewhere], reverse=True)
    if kind == 2:
        odd = [float("nan"), float("inf"), -float("inf"), 0.0, 7.0]
        scores = [drawn.choice(odd) if drawn.random() < 0.2 else score for score in scores]
    if kind == 3:
        somewhere = [drawn.choice([number, number + last, 2**32 - 1]) for number in somewhere]
    sources = (1, 2, 3, 4, 9, 99 if kind == 4 else 3)
    packed = b"".join(
        CANDIDATE_ROW.pack(
            number, score, drawn.choice(sources), *(drawn.choice([1, 3, 8, last, 2**32 - 1]) for _ in "ab")
        )
        for number, score in zip(somewhere, scores, strict=True)
    )
    return CandidateRows(b"\0" * 12 + packed, len(somewhere))


def question(drawn: random.Random, numbers: dict[str, int]) -> tuple[SlateRequest, Person, Tuning, int]:
    names = [*numbers, "unknown"]
    hashed = session_hash("s1")

    def events(count: int) -> list[SessionEvent]:
        found = [
            SessionEvent(NOW - drawn.randrange(4000) * SECOND, drawn.choice(KINDS), hashed, drawn.choice(names))
            for _ in range(count)
        ]
        return found if drawn.random() < 0.1 else sorted(found, key=lambda event: event.micros)

    def marks(most: int) -> list[ItemMark]:
        return [ItemMark(at, drawn.choice(names)) for at in range(drawn.randrange(most))]

    last = max(numbers.values())
    person = Person(
        candidates=record(drawn, range(last + 1), last + 1),
        session=SessionState(events(drawn.choice([0, 1, 5, 9, 70])), marks(3), marks(3)),
        segment=drawn.choice([None, "A", "A > B", "D"]),
    )
    request = SlateRequest(
        drawn.choice([1, 2, 5, 10, 50]),
        drawn.choice([None, "u1"]),
        session_id=drawn.choice(["s1", "s1", None]),
        category=drawn.choice([None, "A > B > C", "D"]),
        region=(region := drawn.choice([None, "DE", "FR"])),
        region_of_user=region == "FR",
        recent_events=tuple(events(drawn.choice([0, 0, 3]))),
        exclude_item_ids=frozenset(drawn.sample(names, drawn.choice([0, 0, 3]))),
        personalize=drawn.choice([None, None, None, False]),
    )
    tuning = Tuning(
        session_weight=drawn.choice([4.0, 0.0, 0.3]),
        session_weight_alone=drawn.choice([10_000.0, 1.0]),
        session_events=drawn.choice([20, 2]),
        half_life_seconds=drawn.choice([1800.0, 7.0]),
    )
    return request, person, tuning, NOW + drawn.choice([0, SECOND])


class Both:
    """Answers both ways and counts those that native code gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.native_answers = 0

    def ask(self, request: SlateRequest, person: Person, catalogue: Catalogue, tuning: Tuning, now: int) -> Slate | str:
        """The one slate that both give, or the name of the error that both raise."""
        with self._patch.context() as patch:
            patch.setattr(parts, "slates", None)
            plain = _outcome(request, person, catalogue, tuning, now)
        compiled = parts.slates
        assert compiled is not None
        found: list[Any] = []

        def choose(*given: Any) -> Any:
            found.append(compiled.choose(*given))
            return found[-1]

        with self._patch.context() as patch:
            counted = ModuleType("counted")
            counted.choose = choose  # type: ignore[attr-defined]
            patch.setattr(parts, "slates", counted)
            fast = _outcome(request, person, catalogue, tuning, now)
        self.native_answers += found != [] and found[-1] is not None
        assert repr(fast) == repr(plain)  # floats to the last digit, NaN beside NaN
        return fast


def _outcome(request: SlateRequest, person: Person, catalogue: Catalogue, tuning: Tuning, now: int) -> Slate | str:
    try:
        found = pipeline.build_slate(request, person, catalogue, tuning, now_micros=now, timer=lambda: 0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if len(found.items) == request.num_results:  # which rungs looked at how many is told of short slates only
        assert found.filtered == {}
    return found


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Both:
    return Both(monkeypatch)


def test_random_questions_get_the_same_slates(tmp_path: Path, both: Both) -> None:
    drawn = random.Random(20240308)
    asked = 0
    sources: set[Source] = set()
    for at in range(24):
        sold = shop(drawn)
        catalogue = sold.catalogue(tmp_path / str(at))
        for _ in range(60):
            found = both.ask(*_with(catalogue, question(drawn, sold.numbers)))
            sources |= {item.source for item in found.items} if isinstance(found, Slate) else set()
            asked += 1
    assert asked == 1440
    assert both.native_answers > 600  # the others are short, or odd
    assert sources >= {Source.SESSION, Source.ALS, Source.SEGMENT, Source.CATEGORY, Source.REGION, Source.POPULARITY}


def _with(
    catalogue: Catalogue, drawn: tuple[SlateRequest, Person, Tuning, int]
) -> tuple[SlateRequest, Person, Catalogue, Tuning, int]:
    request, person, tuning, now = drawn
    return request, person, catalogue, tuning, now


def test_what_the_shop_changes_is_known_to_the_next_slate(tmp_path: Path, both: Both) -> None:
    items = {f"i{number}": {"title": f"Item {number}"} for number in range(6)}
    catalogue = Shop(
        items,
        neighbours={"i0": [("i1", 0.9), ("i2", 0.8)]},
        popular=[(name, 9.0 - at) for at, name in enumerate(items)],
    ).catalogue(tmp_path)
    overlay = CatalogueOverlay()
    overlay._catalogues.append(catalogue)
    events = [SessionEvent(NOW, "view_item", 0, "i0")]
    positions = itertools.count()

    def shown(now: int = NOW) -> list[tuple[str, str | None]]:
        before = both.native_answers
        request = SlateRequest(2, "u1", recent_events=events)
        found = both.ask(request, Person(), catalogue, Tuning(), now)
        assert both.native_answers == before + 1
        assert isinstance(found, Slate)
        return [(item.item_id, item.reasons[0].text) for item in found.items]

    def change(**fields: Any) -> None:
        found, _ = check_change(ITEMS, PATCH, {"item_id": "i1", **fields}, received_at=from_micros(NOW))
        assert found is not None
        overlay.take(found, next(positions))

    said = "because you viewed Item 0"
    assert shown() == [("i1", said), ("i2", said)]
    change(available_quantity=0)
    assert shown() == [("i2", said), ("i3", "popular with everybody")]
    change(available_quantity=7)
    assert shown() == [("i1", said), ("i2", said)]
    change(expire_time="2024-03-08T12:13:21Z")
    assert shown() == [("i1", said), ("i2", said)]
    assert shown(NOW + SECOND) == [("i2", said), ("i3", "popular with everybody")]
    change(expire_time=None, attributes={"available_time": "2024-03-08T12:13:21Z"})
    assert shown() == [("i2", said), ("i3", "popular with everybody")]
    assert shown(NOW + SECOND) == [("i1", said), ("i2", said)]
    renamed, _ = check_change(ITEMS, PATCH, {"item_id": "i0", "title": "Pot"}, received_at=from_micros(NOW))
    assert renamed is not None
    overlay.take(renamed, next(positions))
    assert shown(NOW + SECOND) == [("i1", "because you viewed Pot"), ("i2", "because you viewed Pot")]


class TestHostile:
    """No number in a record or a map leads outside of it; the twin's slices have that by themselves."""

    def catalogue(self, folder: Path, drawn: random.Random) -> tuple[Catalogue, dict[str, int]]:
        sold = shop(drawn)
        return sold.catalogue(folder), sold.numbers

    def test_garbled_neighbours(self, tmp_path: Path, both: Both) -> None:
        drawn = random.Random(7)
        for at in range(12):
            catalogue, numbers = self.catalogue(tmp_path / str(at), drawn)
            size, entries = len(catalogue.neighbour_offsets), len(catalogue.neighbour_numbers)
            wild = array("I", [drawn.choice([0, 5, entries, entries + 9, 2**32 - 1]) for _ in range(size)])
            near = array("I", [drawn.choice([3, 5, 2**32 - 1, 2**31]) for _ in range(entries)])
            alike = array("f", [drawn.choice([0.5, float("nan"), -1.0, float("inf"), 1e38]) for _ in range(entries)])
            for offsets, others, similarities in (
                (wild, catalogue.neighbour_numbers, catalogue.similarities),
                (wild, array("I", list(catalogue.neighbour_numbers)[: entries // 2]), catalogue.similarities),
                (catalogue.neighbour_offsets, near, catalogue.similarities),
                (catalogue.neighbour_offsets, catalogue.neighbour_numbers, alike),
                (array("I"), array("I"), array("f")),
            ):
                broken = replace(
                    catalogue, neighbour_offsets=offsets, neighbour_numbers=others, similarities=similarities,
                    session_index=None, remembered={},
                )  # fmt: skip
                for _ in range(12):
                    both.ask(*_with(broken, question(drawn, numbers)))
        assert both.native_answers > 100

    def test_garbled_session_index(self, tmp_path: Path, both: Both) -> None:
        drawn = random.Random(8)
        recipe = {"params": {"reads": [9, 9, 9], "place_decay": 2.0}}
        for at in range(12):
            catalogue, numbers = self.catalogue(tmp_path / str(at), drawn)
            size = len(catalogue.item_ids) + drawn.choice([-3, 0, 1])
            columns = (
                array("I", [drawn.choice([0, 3, 30, 31, 2**32 - 1]) for _ in range(size)]),
                array("I", [drawn.choice([1, 5, 7, 8, 2**32 - 1]) for _ in range(30)]),
                array("f", [drawn.choice([1.0, 2.0, float("nan")]) for _ in range(30)]),
            )
            views = [memoryview(column) for column in columns]
            broken = replace(catalogue, session_index=SessionIndex(recipe, *views), remembered={})  # type: ignore[arg-type]
            for _ in range(30):
                both.ask(*_with(broken, question(drawn, numbers)))
        assert both.native_answers > 50

    def test_a_short_record(self, tmp_path: Path) -> None:
        """`open_candidates` refuses one; whoever made it otherwise gets no slate from beyond it."""
        drawn = random.Random(9)
        catalogue, _ = self.catalogue(tmp_path, drawn)
        row = CANDIDATE_ROW.pack(9, 1.0, 3, 1, 1)
        short = CandidateRows(b"\0" * 12 + row * 3 + row[:-1], 40)
        assert parts.slates is not None
        state = SessionState([], [], [])
        request = SlateRequest(1, "u1")
        found = parts.slates.choose(request, Person(short, session=state), [], catalogue, Tuning(), NOW)
        assert found is None

    def test_garbled_records(self, tmp_path: Path, both: Both) -> None:
        drawn = random.Random(10)
        catalogue, numbers = self.catalogue(tmp_path, drawn)
        for _ in range(300):
            request, person, tuning, now = question(drawn, numbers)
            count = drawn.randrange(60)
            body = bytearray(b"".join(struct.pack("<IfBII", at % 20, 1 / (1 + at), 3, 1, 2) for at in range(count)))
            for _ in range(drawn.randrange(1 + len(body) // 4)):
                body[drawn.randrange(len(body))] = drawn.randrange(256)
            person.candidates = CandidateRows(bytes(12) + bytes(body), count)
            both.ask(request, person, catalogue, tuning, now)
        assert both.native_answers > 50


def test_a_list_of_another_kind_is_left_to_the_twin(tmp_path: Path, both: Both) -> None:
    names = [f"i{number}" for number in range(4)]
    catalogue = Shop({name: {} for name in names}, popular=[(name, 1.0) for name in names]).catalogue(tmp_path)
    asked = SlateRequest(2)
    found = both.ask(asked, Person(), catalogue, Tuning(), NOW)
    assert isinstance(found, Slate)
    assert [item.item_id for item in found.items] == ["i0", "i1"]
    assert both.native_answers == 1
    for strange in ([(0, 1.0), (1, 1.0)], RankedList([(-1, 1.0)]), RankedList([(2**32, 1.0), (1, 1.0), (2, 1.0)])):
        both.ask(asked, Person(), replace(catalogue, popular=strange, remembered={}), Tuning(), NOW)
    assert both.native_answers == 1
