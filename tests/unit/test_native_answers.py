"""An answer and its decision, written by native code in one call, are the bytes of the way through all steps."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.list_shares import pack_shares
from feature_repo.contracts.packing import (
    FLAG_BOT,
    FLAG_PERSONALIZE_DENIED,
    CandidateRows,
    ItemMark,
    PackedCandidate,
    SessionEvent,
    SessionState,
    Source,
    pack_candidates,
    pack_candidates_header,
    pack_session,
    session_hash,
)
from serving.adapters.decision_log import MemoryDecisionLog
from serving.adapters.memory_event_log import MemoryEventLog
from serving.adapters.online import MemoryOnlineStore, OnlineRecords
from serving.api.answering import Question, SlateAnswers
from serving.main import create_app
from serving.native import described, parts
from serving.pipeline.catalogue import MAX_REMEMBERED, Catalogue
from serving.pipeline.values import SlateRequest
from serving.settings import ServingSettings
from tests.serving_builders import TENANT, Shop
from tests.unit.test_native_slates import NOW, SECOND, question, shop

pytestmark = pytest.mark.skipif(parts.answers is None, reason=f"serving answers from {described()}")

SEGMENTS = (None, b"\x12\x01A", b"\x12\x05A > B", b"\x12\x04Toys", b"broken\xff")
TIMES = (b"\x08\x80\xa4\xa8\xaf\x06", b"\x08\x01", b"\xff")  # of 2024-03-08, of long ago, of never


class BothWays:
    """Answers of one server, at once and step by step. `at_once` counts those that native code gave."""

    def __init__(self, environment: Environment) -> None:
        self.decisions = MemoryDecisionLog()
        app = create_app(
            environment, ServingSettings(feature_lag_seconds=10 * 86_400), store=MemoryOnlineStore(tenant=TENANT),
            log=MemoryEventLog(tenant=TENANT), decisions=self.decisions, wall_micros=lambda: NOW, timer=lambda: 7_000,
            new_id=lambda: "id1",
        )  # fmt: skip
        self.services = app.state.services
        self.overlay = self.services.overlay
        self.answers = SlateAnswers(self.services)
        self.recommender = self.services.recommender
        self.at_once = 0

    def ask(self, asked: Question, catalogue: Catalogue, records: OnlineRecords) -> bytes | None:
        """What native code gives, after it was compared with what the steps give."""

        def by_steps() -> bytes:
            asker = self.recommender.lone_asker(asked.slate, catalogue, records, [])
            return self.answers._build(asked, 5_000, asker)

        return self.compared(self.answers._write_at_once(asked, 5_000, catalogue, records), by_steps)

    def compared(self, fast: bytes | None, by_steps: Callable[[], bytes]) -> bytes | None:
        """`fast`, whose decision was logged last, after it was compared with what `by_steps` answers and logs."""
        payload = self.decisions.payloads.pop() if fast is not None else b""
        try:
            plain = by_steps()
        except (ContractError, KeyError, ValueError, OverflowError, ZeroDivisionError):
            assert fast is None
            return None
        if fast is not None:
            assert fast == plain
            assert payload == self.decisions.payloads[-1]
            self.at_once += 1
        self.decisions.payloads.clear()
        return fast


@pytest.fixture
def both(environment: Environment) -> BothWays:
    return BothWays(environment)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    names = [*(f"i{at:02d}" for at in range(30)), "ü ser/1", "日本", 'quo"te']
    near = {name: [(names[(at + step) % 33], 1.0 / step) for step in range(1, 9)] for at, name in enumerate(names)}
    popular = [(name, 50.0 - at) for at, name in enumerate(names)]
    return Shop({name: {"title": name.upper()} for name in names}, neighbours=near, popular=popular).catalogue(tmp_path)


def asking(request: SlateRequest, *, may_store: bool = True) -> Question:
    return Question(request, "id1", 'a"b', may_store, NOW - 3 * SECOND)


def packed(catalogue: Catalogue, rows: CandidateRows | None, flags: int = 0, *, parts: int = 0) -> bytes | None:
    """`parts` 0: as it was before lists told shares."""
    if rows is None:
        return None
    told = pack_shares(range(parts), [(250, *[0] * (parts - 1))] * len(rows)) if parts else b""
    return pack_candidates_header(catalogue.version, len(rows), flags=flags, shares=told) + bytes(rows.packed) + told


def session(*clicks: tuple[int, str], hashed: int = 0, **more: Any) -> bytes:
    """`clicks`: seconds ago and item."""
    return pack_session(
        SessionState([SessionEvent(NOW - ago * SECOND, "view_item", hashed, item) for ago, item in clicks], **more)
    )


def test_random_questions_get_the_same_bytes(tmp_path: Path, both: BothWays) -> None:
    drawn = random.Random(20240309)
    given = 0
    for at in range(40):
        sold = shop(drawn)
        catalogue = sold.catalogue(tmp_path / str(at))
        for _ in range(50):
            request, person, _, _ = question(drawn, sold.numbers)
            if drawn.random() < 0.8:
                request.recent_events = ()
            if drawn.random() < 0.3:
                request.anonymous_id = "a1"
            records = OnlineRecords(
                catalogue.version,
                packed(
                    catalogue,
                    person.candidates,
                    drawn.choice([0] * 9 + [FLAG_PERSONALIZE_DENIED]),  # type: ignore[arg-type]
                    parts=given % 5,
                ),
                drawn.choice([None, pack_session(replace(person.session, flags=drawn.choice([0] * 9 + [FLAG_BOT])))]),
                drawn.choice(SEGMENTS),
                drawn.choice(TIMES),
            )
            both.ask(asking(request, may_store=drawn.random() < 0.9), catalogue, records)
            given += 1
    assert given == 2_000
    assert both.at_once > 250  # the others are short, odd, or somebody's who said no


@pytest.mark.parametrize(
    ("clicks", "session_id", "heard"),
    [
        (((90, "i01"), (60, "i02"), (30, "i01")), None, 3),
        (((90, "ü ser/1"), (60, "日本"), (30, 'quo"te'), (20, "left the shop")), None, 4),
        (((4000, "i01"), (30, "i02")), None, 1),  # a pause ended the session of the first
        (((4000, "i01"), (1801, "i02")), None, 0),  # nobody is there any more
        (((60, "i02"),), "another", 0),
        ((), None, 0),
    ],
)
def test_the_session_that_asks_is_heard(
    both: BothWays, catalogue: Catalogue, clicks: tuple[tuple[int, str], ...], session_id: str | None, heard: int
) -> None:
    request = SlateRequest(5, "u1", session_id=session_id)
    answer = both.ask(asking(request), catalogue, OnlineRecords(catalogue.version, None, session(*clicks)))
    assert answer is not None
    assert (b'"session":null' in answer) is (heard == 0)


def test_a_named_session_is_heard_however_old(both: BothWays, catalogue: Catalogue) -> None:
    hashed = session_hash("s1")
    clicks = ((90_000, "i01"), (3_000, "i02"), (2_900, "i03"))  # a day's pause, then three quarters of an hour ago
    record = session(*clicks, hashed=hashed)
    answer = both.ask(
        asking(SlateRequest(5, "u1", session_id="s1")), catalogue, OnlineRecords(catalogue.version, None, record)
    )
    assert answer is not None
    assert b'"session":2897.0' in answer


def test_what_was_bought_or_dismissed_is_not_shown(both: BothWays, catalogue: Catalogue) -> None:
    record = session(bought=[ItemMark(1, "i00"), ItemMark(1, "日本")], dismissed=[ItemMark(2, "i01")])
    answer = both.ask(asking(SlateRequest(30, "u1")), catalogue, OnlineRecords(catalogue.version, None, record))
    assert answer is not None
    for item in ("i00", "i01", "日本"):
        assert f'"item_id":"{item}"'.encode() not in answer


def test_a_record_that_is_cut_short_or_garbled_is_left_to_the_steps(both: BothWays, catalogue: Catalogue) -> None:
    whole = session((90, "i01"), (60, "ü ser/1"), bought=[ItemMark(1, "i05")], seen={"i07": 4})
    request, version = SlateRequest(5, "u1"), catalogue.version
    assert both.ask(asking(request), catalogue, OnlineRecords(version, None, whole)) is not None
    for size in range(len(whole)):
        assert both.ask(asking(request), catalogue, OnlineRecords(version, None, whole[:size])) is None
    drawn = random.Random(5)
    for _ in range(400):
        garbled = bytearray(whole)
        for _ in range(drawn.choice([1, 1, 3])):
            garbled[drawn.randrange(len(garbled))] = drawn.choice([0, 1, 3, 128, 255])
        both.ask(asking(request), catalogue, OnlineRecords(version, None, bytes(garbled)))
    rows = [PackedCandidate(n, 0.5, Source.ALS) for n in (3, 4)]
    for told in (b"", pack_shares([5], [(250,)] * 2), pack_shares([5, 4, 0], [(100, 100, 50), None])):
        list_of = pack_candidates(version, rows, shares=told)
        assert both.ask(asking(request), catalogue, OnlineRecords(version, list_of)) is not None
        for size in range(len(list_of)):
            assert both.ask(asking(request), catalogue, OnlineRecords(version, list_of[:size])) is None
        for wrong in (list_of + b"\0", bytes([3]) + list_of[1:], bytes([3 - list_of[0]]) + list_of[1:]):
            assert both.ask(asking(request), catalogue, OnlineRecords(version, wrong)) is None


@pytest.mark.parametrize(
    ("request_", "records"),
    [
        (SlateRequest(5, "u1", personalize=False), {}),
        (SlateRequest(5, "u1", explain=True), {}),
        (SlateRequest(5, "u1"), {"session": session(flags=FLAG_PERSONALIZE_DENIED)}),
        (SlateRequest(5, "u1"), {"session": session(flags=FLAG_BOT)}),
        (SlateRequest(5, "u1"), {"candidates": pack_candidates_header("2024-03-07-0000beef", 0)}),
        (SlateRequest(5, "u1"), {"segment": b"broken\xff", "segment_time": TIMES[0]}),
        (SlateRequest(5, "u1"), {"segment": b"\x12\x01A", "segment_time": TIMES[1]}),
    ],
)
def test_a_no_and_what_has_to_be_told_are_left_to_the_steps(
    both: BothWays, catalogue: Catalogue, request_: SlateRequest, records: dict[str, bytes]
) -> None:
    assert both.ask(asking(request_), catalogue, OnlineRecords(catalogue.version, **records)) is None  # type: ignore[arg-type]


def test_a_dry_run_and_other_attributes_are_left_to_the_steps(both: BothWays, catalogue: Catalogue) -> None:
    asked, records = asking(SlateRequest(5)), OnlineRecords(catalogue.version)
    assert both.ask(asked, catalogue, records) is not None
    for odd in (asked._replace(is_dry_run=True), asked._replace(include=("brand",))):
        assert both.answers._write_at_once(odd, 0, catalogue, records) is None
    assert both.decisions.payloads == []


def test_the_newest_title_is_named(both: BothWays, catalogue: Catalogue) -> None:
    rows = [(3, 0.9), (4, 0.8)]
    listed = pack_candidates(catalogue.version, [PackedCandidate(n, s, Source.ALS, 7, None) for n, s in rows])
    asked, records = asking(SlateRequest(2, "u1")), OnlineRecords(catalogue.version, listed)
    before = both.ask(asked, catalogue, records)
    assert before is not None
    assert before.count(b"because of your interest in I07") == 2
    catalogue.attributes[7] = {"title": "New", "category": None, "price": 2}
    after = both.ask(asked, catalogue, records)
    assert after is not None
    assert after.count(b"because of your interest in New") == 2


def test_what_is_remembered_may_be_forgotten_while_it_is_written(both: BothWays, tmp_path: Path) -> None:
    """More texts than are remembered, of items and of reasons: an item's own may go while its reasons are written."""
    count = 34_000
    assert 2 * count > MAX_REMEMBERED
    big = Shop({f"x{at}": {"title": "y"} for at in range(count)}, popular=[("x0", 1.0)]).catalogue(tmp_path / "big")
    for start in range(0, count, 1_000):
        rows = [
            PackedCandidate(start + at, 2_000.0 - at, Source.ALS, count - 1 - start - at, None) for at in range(1_000)
        ]
        asked = asking(SlateRequest(1_000, "u1"))
        records = OnlineRecords(big.version, pack_candidates(big.version, rows))
        if start in (0, 32_000, 33_000):
            assert both.ask(asked, big, records) is not None
        else:
            assert both.answers._write_at_once(asked, 0, big, records) is not None


@pytest.mark.parametrize("name", ["", "s1", "x" * 127, "y" * 128, "z" * 129, "ü" * 200])
def test_a_session_is_named_by_the_same_hash(both: BothWays, catalogue: Catalogue, name: str) -> None:
    """By the decision: the session's hash, and the digest of its items."""
    hashed = session_hash(name)
    record = session(*((99 - at, "i" + name[:90] + str(at)) for at in range(4)), hashed=hashed)
    asked = asking(SlateRequest(3, "u1", session_id=name))
    assert both.ask(asked, catalogue, OnlineRecords(catalogue.version, None, record)) is not None
    both.answers._write_at_once(asked, 0, catalogue, OnlineRecords(catalogue.version, None, record))
    payload = both.decisions.payloads.pop()
    assert f'"session":"{hashed:016x}"'.encode() in payload
    items = "\n".join("i" + name[:90] + str(at) for at in range(4))
    digest = hashlib.blake2b(items.encode(), digest_size=8).hexdigest()
    assert f'"digest":"{digest}"'.encode() in payload
