"""A history in memory against the rules said slowly: whose each event is, its session, what may be learned from it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.bots import BotCounters, broken_bot_rules
from feature_repo.contracts.times import to_micros
from spark_jobs.jobs.refine_in_memory import with_current_names
from spark_jobs.transforms.consent import denying_in
from spark_jobs.transforms.whole_history import (
    People,
    Sessions,
    interaction_rows,
    more_than_once,
    session_days,
    session_rows,
    short_hashes,
    split_sessions,
    subject_keys,
    suspects,
    whose,
)
from tests.builders import utc

NOON = to_micros(utc("2024-03-01T12:00:00"))
MINUTE = timedelta(minutes=1) // timedelta(microseconds=1)
DAY = 24 * 60 * MINUTE
NEVER, ALWAYS = -(2**63), 2**63 - 1

Event = tuple[str, str | None, int, str | None, bool, bool]
"""Subject, client's session id, us, item, whether it is a purchase, whether it counts."""


def stretch_table(rows: Sequence[tuple[str, str, int, int]]) -> pa.Table:
    names = ("anonymous_id", "owner_id", "from_micros", "until_micros")
    kinds = (pa.string(), pa.string(), pa.int64(), pa.int64())
    columns = list(zip(*rows, strict=True)) or [()] * 4
    return pa.table([pa.array(c, k) for c, k in zip(columns, kinds, strict=True)], names=names)


def people_of(events: Sequence[tuple[str, int]], stretches: Sequence[Any], names: dict[str, str] | None) -> list[str]:
    subjects = pa.array([subject for subject, _ in events]).dictionary_encode()
    micros = np.array([moment for _, moment in events], np.int64)
    table = pa.table({"user_id": list(names), "current_user_id": list(names.values())}) if names is not None else None
    found = whose(subjects, micros, stretch_table(stretches), table)
    return found.keys.take(pa.array(found.number)).to_pylist()


def test_an_event_of_a_device_is_its_owners_while_a_stretch_lasts() -> None:
    stretches = [("d", "ann", NEVER, 10), ("d", "bob", 20, 30), ("e", "eve", 15, ALWAYS), ("unseen", "zoe", 0, 99)]
    events = [("a:d", 0), ("a:d", 10), ("a:d", 11), ("a:d", 19), ("a:d", 20), ("a:d", 30), ("a:d", 31), ("a:e", 14),
              ("a:e", 15), ("u:d", 25), ("a:f", 25), ("u:ann", 25)]  # fmt: skip
    assert people_of(events, stretches, None) == [
        "u:ann", "u:ann", "a:d", "a:d", "u:bob", "u:bob", "a:d", "a:e", "u:eve", "u:d", "a:f", "u:ann",
    ]  # fmt: skip


def test_a_former_name_and_an_owner_under_one_are_called_as_now() -> None:
    events = [("u:old", 5), ("a:d", 5), ("u:new", 5), ("a:old", 5), ("u:other", 5), ("u:she", 5)]
    found = people_of(events, [("d", "old", NEVER, ALWAYS)], {"old": "new", "nobody": "else", "she": "unmet so far"})
    assert found == ["u:new", "u:new", "u:new", "a:old", "u:other", "u:unmet so far"]


@pytest.mark.parametrize("seed", range(5))
def test_stretches_at_random(seed: int) -> None:
    chance = random.Random(seed)
    stretches = []
    for device in "abc":
        ends = sorted(chance.sample(range(100), 6))
        stretches += [(device, f"{device}{n}", ends[n], ends[n + 1] - 1) for n in (0, 2, 4)]
    events = [(f"{chance.choice('aau')}:{chance.choice('abcd')}", chance.randrange(-5, 110)) for _ in range(200)]

    def owner(subject: str, moment: int) -> str:
        for device, user, begin, end in stretches:
            if subject == f"a:{device}" and begin <= moment <= end:
                return f"u:{user}"
        return subject

    assert people_of(events, stretches, None) == [owner(*event) for event in events]


def arrays(events: Sequence[Event]) -> tuple[People, pa.Array, Sessions]:
    subject, client, micros, item, bought, counts = (list(column) for column in zip(*events, strict=True))
    who = pa.array(subject).dictionary_encode()
    ids, items = (pa.array(column, pa.string()).dictionary_encode() for column in (client, item))
    numbers = [np.asarray(w.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int32) for w in (who, ids, items)]
    people = People(who.dictionary, numbers[0])
    sessions = split_sessions(
        people, client_id=numbers[1], client_ids=ids.dictionary, micros=np.array(micros, np.int64), item=numbers[2],
        is_purchase=np.array(bought), counts=np.array(counts),
    )  # fmt: skip
    return people, ids.dictionary, sessions


def told(people: People, ids: pa.Array, sessions: Sessions) -> list[dict[str, Any]]:
    found = []
    for day, some in session_days(sessions):
        rows = session_rows(sessions, people, ids, some).to_pylist()
        assert all(to_micros(row["started_at"]) // DAY == day for row in rows)
        found += rows
    return found


def slow_sessions(events: Sequence[Event]) -> list[dict[str, Any]]:
    """One event after the other."""
    groups = defaultdict(list)
    for subject, client, at, item, bought, counts in events:
        if counts:
            groups[subject, client].append((at, item, bought))
    found = []
    for (subject, client), rows in groups.items():
        rows.sort(key=lambda row: row[0])
        gap = 30 * MINUTE if client is None else DAY
        sessions = [[rows[0]]]
        for row in rows[1:]:
            if row[0] - sessions[-1][-1][0] >= gap:
                sessions.append([])
            sessions[-1].append(row)
        for one in sessions:
            text = "\0".join((subject, client or "", str(one[0][0])))
            found.append(
                {
                    "session_key": sha256(text.encode()).hexdigest()[:32], "subject_key": subject,
                    "user_id": subject[2:] if subject[0] == "u" else None, "session_id": client,
                    "started": one[0][0], "ended": one[-1][0], "event_count": len(one),
                    "item_count": len({item for _, item, _ in one if item is not None}),
                    "duration_seconds": (one[-1][0] - one[0][0]) / 1e6, "has_purchase": any(row[2] for row in one),
                }
            )  # fmt: skip
    return found


@pytest.mark.parametrize("seed", range(5))
def test_sessions_at_random(seed: int) -> None:
    chance = random.Random(seed)
    steps = (0, 1, 29 * MINUTE, 30 * MINUTE - 1, 30 * MINUTE, DAY - 1, DAY, 3 * DAY)
    events, at = [], NOON
    for _ in range(400):
        at += chance.choice(steps)
        who, client = chance.choice(("u:é", "u:b", "a:b")), chance.choice((None, None, "s", "t"))
        item = chance.choice((None, "i1", "i2", "i3"))
        events.append((who, client, at, item, chance.random() < 0.1, chance.random() < 0.9))
    chance.shuffle(events)
    rows = told(*arrays(events))
    for row in rows:
        row |= {"started": to_micros(row.pop("started_at")), "ended": to_micros(row.pop("ended_at"))}
    expected = slow_sessions(events)

    def by_key(row: dict[str, Any]) -> str:
        return str(row["session_key"])

    assert len(expected) > 100
    assert sorted(rows, key=by_key) == sorted(expected, key=by_key)


def test_an_event_that_does_not_count_is_in_no_session() -> None:
    events: list[Event] = [("u:a", None, NOON, "i", False, True), ("u:a", None, NOON + 20 * MINUTE, "i", True, False),
              ("u:a", None, NOON + 40 * MINUTE, "i", False, True)]  # fmt: skip
    people, ids, sessions = arrays(events)
    assert sessions.of_event.tolist() == [0, -1, 1]  # it bridges no pause either
    assert [(row["event_count"], row["has_purchase"]) for row in told(people, ids, sessions)] == [(1, False)] * 2


def test_of_no_event_there_is_no_session() -> None:
    people, ids, sessions = arrays([("u:a", None, NOON, "i", False, False)])
    assert (told(people, ids, sessions), sessions.of_event.tolist()) == ([], [-1])


def test_interactions_are_what_may_be_learned_from() -> None:
    events: list[Event] = [("u:a", None, NOON + n, "i", False, n != 7) for n in range(9)]
    events[5] = ("u:denier", None, NOON, "i", False, True)
    events[8] = ("a:x", None, NOON, "i", False, True)
    people, _, sessions = arrays(events)
    rows = pa.table(
        {
            "event_id": [f"e{n}" for n in range(9)],
            "event_type": ["view_item", "search", "purchase", "view_item", *["view_item"] * 5],
            "item_id": pa.array(["i1", "i1", None, "i1", "i1", "i1", "i1", "i1", "i2"]),
            "event_timestamp": pa.array([NOON] * 9).cast(pa.timestamp("us", tz="UTC")),
            "quantity": pa.array([3] + [None] * 8, pa.int32()), "price": pa.array([2.5] + [None] * 8, pa.float64()),
            "consent_train": [True, None, None, False, None, None, None, None, None],
        }
    )  # fmt: skip
    found = interaction_rows(
        rows, people.number, sessions.of_event, people=people, sessions=sessions,
        is_denied=np.array([key == "u:denier" for key in people.keys.to_pylist()]), untold=pa.array(["e6"]),
    )  # fmt: skip
    # e1 is a search, e2 names no item, e3 says no, e5's person does, e6 breaks a rule, e7 is a bot's
    assert found["event_id"].to_pylist() == ["e0", "e4", "e8"]
    assert found["subject_key"].to_pylist() == ["u:a", "u:a", "a:x"]
    assert found["user_id"].to_pylist() == ["a", "a", None]
    assert (found["quantity"][0].as_py(), found["price"][0].as_py()) == (3, 2.5)
    keys = found["session_key"].to_pylist()
    assert keys[0] == keys[1] == sha256(f"u:a\0\0{NOON}".encode()).hexdigest()[:32] != keys[2]


def test_subjects_are_users_before_devices() -> None:
    found = subject_keys(pa.chunked_array([["a", None, "c"]]), pa.chunked_array([["x", "y", None]]))
    assert found.to_pylist() == ["u:a", "a:y", "u:c"]


AGENTS = {
    "crawler": '{"context": {"user_agent": "Nice-Bot/1.0"}}', "phone": '{"context": {"userAgent": "CUBOT Bot; x"}}',
    "hidden": r'{"context": {"user_agent": "nice\u0062ot/"}}', "letters": '{"context": {"user_agent": "spıder"}}',
    "plain": '{"context": {"user_agent": "Mozilla/5.0"}}', "elsewhere": '{"note": "a bot/ of mine"}', "none": None,
}  # fmt: skip


def test_a_no_holds_under_the_name_that_somebody_has_now() -> None:
    users = pa.table(
        {"user_id": ["old", "ann", "yes", "silent", "twice"], "consent_train": [False, False, True, None, False]}
    )
    refused = denying_in(users, "train")
    assert refused.to_pylist() == ["old", "ann", "twice"]
    names = pa.table({"user_id": ["old", "yes", "twice"], "current_user_id": ["new", "other", "ann"]})
    assert with_current_names(refused, names).to_pylist() == ["old", "ann", "twice", "new"]
    assert with_current_names(refused, None).to_pylist() == ["old", "ann", "twice"]
    assert denying_in(users.slice(2, 2), "train").to_pylist() == []


def browsed(rows: Sequence[tuple[str, str, int, str | None]]) -> pa.Table:
    """Events of one day: subject, type, us since noon, properties."""
    subjects, kinds, moments, texts = zip(*rows, strict=True)
    moment = pa.array([NOON + micros for micros in moments]).cast(pa.timestamp("us", tz="UTC"))
    columns = [pa.array(subjects, pa.string()), pa.array(kinds, pa.string()), moment, pa.array(texts, pa.string())]
    names = ["subject_key", "event_type", "event_timestamp", "properties"]
    return pa.table([pa.chunked_array([column]) for column in columns], names=names)


def test_suspects_are_fast_or_long_at_it_or_may_name_a_crawler() -> None:
    second = 1_000_000
    rows: list[tuple[str, str, int, str | None]] = []
    rows += [("fast", "view_item", n * 10_000, None) for n in range(21)] + [("fast", "purchase", 0, None)]
    rows += [("two seconds", "view_item", second // 2 + n * 25_000, None) for n in range(40)]  # 20 in each
    rows += [("busy", "view_item", n * MINUTE, None) for n in range(100)]
    rows += [("long at it", "search", n * MINUTE, None) for n in range(101)]
    rows += [("calm", "search", 0, None)] * 20 + [("buyer", "purchase", 0, None)] * 150
    rows += [(who, "purchase", 0, text) for who, text in AGENTS.items()]
    found = suspects(browsed(rows)).to_pylist()
    assert [row["subject_key"] for row in found] == [
        *["fast"] * 21, *["long at it"] * 101, "crawler", "phone", "hidden", "letters",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_whoever_breaks_a_rule_on_browsing_is_a_suspect(seed: int) -> None:
    chance = random.Random(seed)
    rows: list[tuple[str, str, int, str | None]] = []
    counters: dict[str, BotCounters] = defaultdict(BotCounters)
    for n in range(60):
        count = chance.choice([19, 20, 21, 22, 99, 100, 101, 102, 103, 199, 201, 650, 1001])
        step, spread = (
            chance.choice([0, 30_000, 45_000, 50_000, 900_000, 1_500_000, 7_000_000]),
            chance.choice([0, 0.5]),
        )
        kind = chance.choice(["view_item", "view_item", "search"])
        moments = sorted(int(k * step * (1 + chance.uniform(0, spread))) for k in range(count))
        rows += [(f"{n}", kind, micros, None) for micros in moments]
        for k, micros in enumerate(moments):
            counters[f"{n}"].add(kind, NOON + micros, f"i{k}")
    bots = {subject for subject, counted in counters.items() if broken_bot_rules(counted)}
    assert 5 < len(bots) < 55
    assert bots <= set(suspects(browsed(rows))["subject_key"].to_pylist())


def test_nobody_browses_on_a_day() -> None:
    assert suspects(browsed([("buyer", "purchase", 0, None)] * 30)).num_rows == 0


def test_texts_that_come_more_than_once_have_hashes_that_do() -> None:
    texts = [f"e{n % 700}" if n < 1000 else f"x{n}" for n in range(5000)] + [None, None, "", "é"]
    parts = [short_hashes(pa.array(texts[:900])), short_hashes(pa.array(texts[900:]))]
    several = more_than_once(np.concatenate(parts))
    found = {text for text, number in zip(texts, np.concatenate(parts), strict=True) if number in several}
    assert found == {None, *(f"e{n}" for n in range(300))}
    assert more_than_once(np.empty(0, np.uint64)).tolist() == []
