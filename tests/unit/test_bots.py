"""Who is taken for a bot, and how little a bot moves: rules, the guard of the speed path, popularity."""

from __future__ import annotations

import csv
import gzip
import math
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from feature_repo.contracts import bots
from feature_repo.contracts.bots import BotCounters, BotRule, broken_bot_rules, is_crawler_agent
from feature_repo.contracts.events import DEFAULT_PREFERENCE_WEIGHTS
from feature_repo.contracts.packing import (
    FLAG_BOT,
    FLAG_PERSONALIZE_DENIED,
    SessionEvent,
    SessionState,
    pack_session,
    unpack_session,
)
from feature_repo.contracts.times import from_micros, to_micros
from serving.native import parts
from serving.speed.bot_guard import BotGuard
from serving.speed.session_state import fold_event
from spark_jobs.models.matrix import build_matrix
from spark_jobs.models.popularity import Popularity
from spark_jobs.models.recipes import RECIPES
from tests.conftest import ROOT

MARCH_8 = 1_709_856_000_000_000  # 2024-03-08T00:00:00Z in microseconds
SECOND, HOUR, DAY = 1_000_000, 3_600_000_000, 86_400_000_000


def broken(steps: list[tuple[float, str]], kind: str = "view_item") -> list[BotRule]:
    """The rules broken by events at these seconds of a day, on these items."""
    counters = BotCounters()
    for at, item in steps:
        counters.add(kind, MARCH_8 + round(at * SECOND), item)
    return broken_bot_rules(counters)


def uneven(count: int, shortest: float) -> list[tuple[float, str]]:
    """Views of one item at steps that never look alike: 1, 1.5, 2.25 times the shortest, and again."""
    at, found = 0.0, []
    for n in range(count):
        at += shortest * 1.5 ** (n % 3)
        found.append((at, "i"))
    return found


class TestRules:
    def test_twenty_in_a_second_are_allowed_and_twenty_one_are_not(self) -> None:
        assert broken([(10.0 + n / 100, "i") for n in range(20)]) == []
        assert broken([(10.0 + n / 100, "i") for n in range(21)]) == [BotRule.PER_SECOND]
        # 21 within a second's length, but over two seconds of the clock
        assert broken([(9.5 + n / 22, "i") for n in range(21)]) == []

    def test_a_fast_minute_needs_a_long_day(self) -> None:
        fast = [(60 + n * 1.9, "i") for n in range(31)]  # 31 in one minute
        slow = uneven(170, 60.0)
        assert len(fast + slow) == 201
        assert broken(fast + [(at + 600, i) for at, i in slow]) == [BotRule.PER_MINUTE]
        assert broken(fast + [(at + 600, i) for at, i in slow[:-1]]) == []
        assert broken(fast[:-1] + [(at + 600, i) for at, i in uneven(171, 60.0)]) == []

    def test_an_hour_and_a_day(self) -> None:
        hour = uneven(601, 3.0)  # a step is 4.75 s on average: 2,856 s
        assert hour[-1][0] < 3600
        assert broken(hour) == [BotRule.PER_HOUR]
        assert broken(hour[:-1]) == []
        day = uneven(2001, 9.0)
        assert broken(day) == [BotRule.PER_DAY]
        assert broken(day[:-1]) == []

    def test_views_without_a_look(self) -> None:
        quick, looked = [(n * 0.9, "i") for n in range(91)], [(1000 + n * 7.0**1.5 * (n + 1), "i") for n in range(10)]
        assert broken(quick + looked) == [BotRule.NO_DWELL]  # 90 of 100 steps
        assert broken(quick[1:] + looked + [(90_000 / 2, "i")]) == []  # 89 of 100

    def test_a_sweep_counts_different_items(self) -> None:
        steps = uneven(1001, 20.0)
        assert broken([(at, f"i{n}") for n, (at, _) in enumerate(steps)]) == [BotRule.SWEEP]
        assert broken([(at, f"i{n % 1000}") for n, (at, _) in enumerate(steps)]) == []

    def test_a_steady_rhythm(self) -> None:
        assert broken([(n * 5.0, "i") for n in range(102)]) == [BotRule.RHYTHM]  # 101 steps, 100 pairs
        assert broken([(n * 5.0, "i") for n in range(101)]) == []
        assert broken([(n * 1.4, "i") for n in range(102)]) == []  # below 1.5 s whole seconds look alike
        wobbly = [(n * 5.0 + (0.3 if n % 2 else 0.0), "i") for n in range(150)]  # 5.3, 4.7, 5.3: 12 % apart
        assert broken(wobbly) == []

    def test_a_pair_with_one_short_step_says_nothing(self) -> None:
        counters, at = BotCounters(), MARCH_8
        for n in range(40):  # 1.48 s and 1.52 s in turn: alike, but one of each pair is too short
            counters.add("view_item", at, "i")
            at += 1_480_000 if n % 2 else 1_520_000
        assert (counters.gaps, counters.steps) == (39, 0)

    def test_what_comes_in_bulk_from_people_proves_nothing(self) -> None:
        order = [(1.0, f"i{n}") for n in range(1500)]
        assert broken(order, "purchase") == broken(order, "impression") == broken(order, "view_item_list") == []

    def test_two_views_and_their_page_views_are_two_looks(self) -> None:
        counters = BotCounters()
        for n, (at, _) in enumerate(uneven(120, 10.0)):
            for kind in ("page_view", "view_item"):
                counters.add(kind, MARCH_8 + round(at * SECOND), f"i{n}")
        assert (counters.browsing, counters.gaps, counters.quick_gaps) == (240, 119, 0)
        assert broken_bot_rules(counters) == []

    @pytest.mark.parametrize(
        ("agent", "is_crawler"),
        [
            ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", True),
            ("Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; bingbot/2.0) Chrome/116.0", True),
            ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 HeadlessChrome/120.0.0.0 Safari/537.36", True),
            ("python-requests/2.31.0", True),
            ("Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/120.0.0.0 Safari/537.36", False),
            ("Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) Version/17.2 Mobile/15E148 Safari/604.1", False),
            ("Mozilla/5.0 (Linux; Android 12; CUBOT) AppleWebKit/537.36 Chrome/119.0 Mobile Safari/537.36", False),
        ],
    )
    def test_crawlers_say_so(self, agent: str, is_crawler: bool) -> None:
        assert is_crawler_agent(agent) is is_crawler
        for name in ("user_agent", "userAgent"):
            counters = BotCounters()
            counters.add("purchase", MARCH_8, "i", context={name: agent})
            counters.add("purchase", MARCH_8, "i", context={name: "Mozilla/5.0"})
            assert broken_bot_rules(counters) == ([BotRule.CRAWLER_AGENT] if is_crawler else [])

    def test_a_context_that_is_nothing_of_ours_says_nothing(self) -> None:
        counters = BotCounters()
        for context in ({"user_agent": 7}, {"user_agent": {"name": "curl/8"}}, {}, None):
            counters.add("view_item", MARCH_8, "i", context=context)
        assert broken_bot_rules(counters) == []


def view(at: float, item: str = "i1", **more: Any) -> dict[str, Any]:
    moment = from_micros(MARCH_8 + round(at * SECOND))
    return {"event_id": "e", "event_type": "view_item", "user_id": "u", "item_id": item, "timestamp": moment, **more}


def judge(guard: BotGuard, state: SessionState, event: dict[str, Any], position: int, subject: str = "u:u") -> bool:
    return guard.judge(state, event, subject, micros=to_micros(event["timestamp"]), position=position)


native = pytest.mark.skipif(parts.batches is None, reason="serving/native is not compiled (make setup)")


class TestGuard:
    kind: type[BotGuard]

    @pytest.fixture(autouse=True, params=["python", pytest.param("native", marks=native)])
    def of_both_kinds(self, request: pytest.FixtureRequest) -> None:
        self.kind = BotGuard if request.param == "python" else parts.batches.BotGuard

    def run(self, guard: BotGuard, events: list[dict[str, Any]], *, first: int = 0) -> tuple[SessionState, list[bool]]:
        """The state and the verdicts after these events of one subject, applied as the consumer does."""
        state, verdicts = SessionState(), []
        for position, event in enumerate(events, first):
            is_bot = judge(guard, state, event, position)
            fold_event(state, event)
            verdicts.append(is_bot)
        return state, verdicts

    def test_of_ten_thousand_events_in_a_second_twenty_pass(self) -> None:
        state, verdicts = self.run(self.kind(), [view(1 + n / 10_000) for n in range(10_000)])
        assert (verdicts.count(False), verdicts[:20]) == (20, [False] * 20)
        assert unpack_session(pack_session(state)).flags == FLAG_BOT

    def test_who_is_flagged_moves_no_trend(self) -> None:
        state, _ = self.run(self.kind(), [view(1 + n / 10_000, f"i{n // 10}") for n in range(100)])
        assert len(state.votes) == 3
        for votes in state.votes.values():
            assert set(votes) == {"i0", "i1"}

    def test_backdated_events_do_not_help(self) -> None:
        """A second of 10,000 events of which only every thirtieth says that it is of today."""
        events = [view((n % 30) * -86_400 + n / 10_000) for n in range(10_000)]
        _, verdicts = self.run(self.kind(), events)
        assert verdicts.count(False) == 20 * 30  # whatever comes late is of a subject that is flagged today

    def test_the_flag_ends_with_the_day(self) -> None:
        guard = self.kind()
        state, _ = self.run(guard, [view(1 + n / 100) for n in range(30)])
        assert state.flags == FLAG_BOT
        is_bot = judge(guard, state, view(86_400 + 5), 31)
        assert (state.flags, is_bot) == (0, False)

    def test_a_new_process_keeps_the_flag_of_the_day_and_the_consent(self) -> None:
        state, _ = self.run(self.kind(), [view(1 + n / 100) for n in range(30)])
        state.flags |= FLAG_PERSONALIZE_DENIED
        assert judge(self.kind(), state, view(50_000), 7)
        assert state.flags == FLAG_BOT | FLAG_PERSONALIZE_DENIED
        assert not judge(self.kind(), state, view(86_400), 8)
        assert state.flags == FLAG_PERSONALIZE_DENIED

    def test_judging_an_entry_again_counts_it_once(self) -> None:
        guard = self.kind()
        for _ in range(3):
            _, verdicts = self.run(guard, [view(1 + n / 100) for n in range(20)])
        assert verdicts == [False] * 20

    def test_subjects_may_be_judged_one_after_another(self) -> None:
        """A batch is applied subject by subject, so positions go back between two of them."""
        guard = self.kind()
        for subject, first in (("u:a", 100), ("u:b", 0)):
            state = SessionState()
            verdicts = [judge(guard, state, view(1 + n / 100), first + n, subject) for n in range(30)]
            assert verdicts == [False] * 20 + [True] * 10, subject

    def test_a_list_of_lines_counts_line_by_line(self) -> None:
        event = view(1, items=[{"item_id": f"i{n}"} for n in range(21)])
        del event["item_id"]
        assert judge(self.kind(), SessionState(), event, 1)

    def test_the_one_heard_of_longest_ago_is_forgotten(self) -> None:
        guard = self.kind(max_subjects=2)
        for position, subject in enumerate(["u:a", "u:b", "u:a", "u:c"]):
            judge(guard, SessionState(), view(1), position, subject)
        assert list(guard._subjects) == ["u:a", "u:c"]


PEOPLE, ITEMS = 5_000, 500


def shop() -> pd.DataFrame:
    """30 days of people: ten views and one purchase each, of items by a law of the marketplace (1 / rank)."""
    rng = np.random.default_rng(5)
    share = 1 / np.arange(1, ITEMS + 1)
    rows = PEOPLE * 11
    return pd.DataFrame(
        {
            "subject_key": np.repeat([f"u:{n}" for n in range(PEOPLE)], 11),
            "item_number": rng.choice(ITEMS, rows, p=share / share.sum()).astype(np.int32),
            "event_type": (["view_item"] * 10 + ["purchase"]) * PEOPLE,
            "micros": MARCH_8 - rng.integers(1, 30 * DAY, rows),
        }
    )


def popularity(events: pd.DataFrame) -> np.ndarray[Any, Any]:
    recipe = RECIPES["popularity"]
    matrix = build_matrix(
        events, item_count=ITEMS, weights=DEFAULT_PREFERENCE_WEIGHTS, half_life_days=recipe["half_life_days"],
        cut_off=from_micros(MARCH_8),
    )  # fmt: skip
    model = Popularity(recipe["params"])
    model.fit(matrix)
    return model.item_scores.astype(np.float64)


def moved(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> float:
    """The part of all popularity that went elsewhere: half the sum of differences of shares."""
    return float(np.abs(before / before.sum() - after / after.sum()).sum() / 2)


class TestPopularity:
    def test_a_minute_of_ten_thousand_events_a_second_on_one_item_moves_under_a_thousandth(self) -> None:
        """Even when no rule flagged the subject: what one subject adds to an item ends at one purchase."""
        people = shop()
        count = 600_000
        attack = pd.DataFrame(
            {
                "subject_key": "u:bot", "item_number": np.full(count, 400, np.int32), "event_type": "purchase",
                "micros": MARCH_8 - 60 * SECOND + np.arange(count) * 100,
            }
        )  # fmt: skip
        before, after = popularity(people), popularity(pd.concat([people, attack]))
        assert after[400] - before[400] == pytest.approx(8.0, abs=1e-3)
        assert 0 < moved(before, after) < 0.001

    def test_what_passes_the_guard_moves_under_a_thousandth(self) -> None:
        """Trends count what is not flagged: twenty of ten thousand events, whatever their items."""
        trends = Counter(shop()["item_number"].tolist())
        before = np.array([trends[n] for n in range(ITEMS)], float)
        guard, state, passed = BotGuard(), SessionState(), []
        for n in range(10_000):
            is_bot = judge(guard, state, view(1 + n / 10_000), n, "u:bot")
            passed += [] if is_bot else [400]
        after = before.copy()
        after[400] += len(passed)
        assert len(passed) == bots.MAX_PER_SECOND
        assert 0 < moved(before, after) < 0.001


DATA = ROOT.parent / "shared" / "data"


def real_views() -> dict[str, list[tuple[str, int, str, str]]]:
    """Logs of real shops as (subject, micros, type, item), oldest first."""
    kinds = {"view": "view_item", "cart": "add_to_cart", "buy": "purchase"}
    with gzip.open(DATA / "retailrocket-events" / "train_events.csv.gz", "rt") as file:
        rocket = [
            (row["user"], int(float(row["time"])) * SECOND, kinds[row["event"]], row["item"])
            for row in csv.DictReader(file)
        ]
    choose = []
    for part in ("train_full", "test"):
        with gzip.open(DATA / "yoochoose-100k" / f"yoochoose-clicks-100k_{part}.txt.gz", "rt") as file:
            choose += [
                (row["SessionId"], math.floor(float(row["Time"]) * SECOND), "view_item", row["ItemId"])
                for row in csv.DictReader(file, delimiter="\t")
            ]
    with gzip.open(DATA / "online-retail" / "online_retail.csv.gz", "rt", encoding="utf-8", errors="replace") as file:
        retail = [
            (
                row["CustomerID"] or "invoice-" + row["InvoiceNo"],
                int(datetime.fromisoformat(row["InvoiceDate"]).replace(tzinfo=UTC).timestamp()) * SECOND,
                "purchase",
                row["StockCode"],
            )
            for row in csv.DictReader(file)
        ]
    return {"retailrocket": rocket, "yoochoose": choose, "online retail": retail}


@pytest.mark.skipif(not Path(DATA, "retailrocket-events").is_dir(), reason="no ../shared/data")
@pytest.mark.soak
def test_nobody_in_the_logs_of_real_shops_is_taken_for_a_bot() -> None:
    found = {}
    logs = real_views()
    for name, rows in logs.items():
        days: dict[tuple[str, int], BotCounters] = {}
        for subject, micros, kind, item in sorted(rows, key=lambda row: row[1]):
            days.setdefault((subject, micros // DAY), BotCounters()).add(kind, micros, item)
        found[name] = (len(days), sum(bool(broken_bot_rules(counters)) for counters in days.values()))
    assert {name: len(rows) for name, rows in logs.items()} == {
        "retailrocket": 97_381, "yoochoose": 83_846, "online retail": 541_909,
    }  # fmt: skip
    assert found == {"retailrocket": (8_167, 0), "yoochoose": (21_215, 0), "online retail": (23_006, 0)}


def test_a_session_record_keeps_both_flags() -> None:
    state = SessionState([SessionEvent(MARCH_8, "view_item", 0, "i")], flags=FLAG_BOT)
    fold_event(state, view(1, consent={"personalize": False}))
    assert unpack_session(pack_session(state)).flags == FLAG_BOT | FLAG_PERSONALIZE_DENIED
