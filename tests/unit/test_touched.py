"""What was touched between two nights: digests, reasons, decisions, beside a slow oracle with dictionaries."""

from __future__ import annotations

import random
from collections import Counter
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from spark_jobs.io.item_vectors import read_starts
from spark_jobs.io.light_delta import arrow_schema
from spark_jobs.io.night_before import differences, stored_neighbours
from spark_jobs.models.factory import fit_recipe
from spark_jobs.models.matrix import build_matrix, sort_interactions
from spark_jobs.models.recipes import default_recipe
from spark_jobs.transforms.bundle_files import neighbour_rows
from spark_jobs.transforms.item_neighbours import item_neighbours, neighbour_table
from spark_jobs.transforms.touched import (
    Digests,
    MadeBy,
    decide,
    history_digests,
    item_digests,
    made_by,
    numbering_digest,
    rescore_asked,
    untouched,
)
from tests.builders import make_run, utc, write_rows

Event = tuple[str, int, str, int]

AS_OF, DAY_BEFORE = date(2024, 3, 9), date(2024, 3, 8)

EVENTS: list[Event] = [
    ("u:ann", 3, "view_item", 10), ("u:ann", 3, "view_item", 10), ("u:ann", 1, "purchase", 20),
    ("u:bob", 3, "view_item", 10), ("u:bob", 1, "purchase", 20),  # as ann, but for the twice
    ("u:anna", 2, "view_item", 5), ("a:x", 2, "view_item", 5), ("u:éva", 0, "rating", 7),
]  # fmt: skip


def table_of(events: list[Event]) -> pa.Table:
    columns = list(zip(*events, strict=True))
    names = ("subject_key", "item_number", "event_type", "micros")
    types = (pa.string(), pa.int32(), pa.string(), pa.int64())
    return sort_interactions(pa.table({n: pa.array(list(c), t) for n, c, t in zip(names, columns, types, strict=True)}))


def digests_of(events: list[Event]) -> dict[str, str]:
    found = history_digests(table_of(events))
    assert found.keys.tolist() == sorted({e[0] for e in events})
    assert {len(d) for d in found.values.tolist()} == {16}
    return dict(zip(found.keys.tolist(), found.values.tolist(), strict=True))


# --- digests ---------------------------------------------------------------------------------------------------------


def test_a_digest_is_of_a_persons_events_and_of_nothing_else() -> None:
    before = digests_of(EVENTS)
    assert len(set(before.values())) == 5 - 1  # anna and the guest did the same
    assert before["u:anna"] == before["a:x"]
    shuffled = EVENTS[::-1]
    assert digests_of(shuffled) == before
    # others come and go, with event types that sort before and between those that were there
    assert digests_of([("a:0", 9, "add_to_cart", 1), *EVENTS, ("u:zed", 0, "share", 1)]).items() >= before.items()
    for changed in (
        ("u:ann", 3, "view_item", 11),  # another instant: a late event, a revised one
        ("u:ann", 2, "view_item", 10),
        ("u:ann", 3, "wishlist", 10),
    ):
        assert digests_of([*EVENTS[:1], changed, *EVENTS[2:]]) != before
        after = digests_of([*EVENTS[:1], changed, *EVENTS[2:]])
        assert {s for s in before if after[s] != before[s]} == {"u:ann"}
    assert digests_of(EVENTS[1:])["u:ann"] == before["u:bob"]  # as often counts


def test_digests_of_many_random_histories_against_sets() -> None:
    rng = random.Random(7)
    pool = [f"u:{n}" for n in range(12)]
    first = [
        (rng.choice(pool), rng.randrange(5), rng.choice(["view_item", "purchase"]), rng.randrange(4)) for _ in range(80)
    ]
    second = [e for e in first if rng.random() < 0.9] + [("u:3", 1, "share", 2)]
    a, b = (Counter(events) for events in (first, second))
    histories = [{s: Counter({e[1:]: n for e, n in c.items() if e[0] == s}) for s in pool} for c in (a, b)]
    before, after = digests_of(first), digests_of(second)
    same = {s for s in pool if histories[0][s] == histories[1][s] and histories[0][s]}
    assert 2 <= len(same) <= 10
    assert {s for s in pool if before.get(s) == after.get(s) and s in before} == same
    columns = [{i: Counter({e: n for e, n in c.items() if e[1] == i}) for i in range(5)} for c in (a, b)]
    items = [item_digests(table_of(events)) for events in (first, second)]
    same_items = {i for i in range(5) if columns[0][i] == columns[1][i]}
    found = {i for i in range(5) if items[0].of(np.array([i]))[0] == items[1].of(np.array([i]))[0]}
    assert found == same_items


def test_an_item_is_touched_by_an_event_about_it_and_not_by_its_peoples_others() -> None:
    before = item_digests(table_of(EVENTS))
    assert before.keys.tolist() == [0, 1, 2, 3]
    after = item_digests(table_of([*EVENTS, ("u:ann", 2, "view_item", 30)]))
    assert (before.values != after.values).tolist() == [False, False, True, False]
    other = [e if e[0] != "u:éva" else ("u:eva", *e[1:]) for e in EVENTS]  # somebody else did the same
    assert (before.values != item_digests(table_of(other)).values).tolist() == [True, False, False, False]
    assert before.of(np.array([7, 2])).tolist() == ["", before.values[2]]


# --- what may be kept ------------------------------------------------------------------------------------------------


def stored_list(user: str, items: list[int] | None, digest: str | None, scored: date = DAY_BEFORE) -> dict[str, Any]:
    return {"user_id": user, "item_numbers": items, "history_digest": digest, "scored_as_of": scored}


STORED = [
    stored_list("ann", [0, 2], "a"),
    stored_list("bob", [0], "changed"),
    stored_list("cid", [2, 1], "c"),  # 1 may not be shown any more
    stored_list("dan", [0, 9], "d"),  # 9 is a number that nobody knows
    stored_list("eve", [], None),  # denied then, and not now
    stored_list("fay", [0], "f"),  # denied or gone now: not asked for
    stored_list("gus", [0], "g", date(2024, 3, 2)),  # a week old
    stored_list("hal", [0], "h", date(2024, 3, 3)),  # a day younger
    stored_list("ian", [], "i"),  # an empty list is one
    stored_list("jim", [], None),  # denied then and now
    stored_list("annabel", [0], "a"),  # a longer name than any that is asked for
]
TONIGHT = {"ann": "a", "bob": "b", "cid": "c", "dan": "d", "eve": "e", "gus": "g", "hal": "h", "ian": "i", "new": "n"}


def test_which_lists_may_be_kept() -> None:
    schema = pa.schema(
        [("user_id", pa.string()), ("item_numbers", pa.list_(pa.int32())), ("history_digest", pa.string()),
         ("scored_as_of", pa.date32())]
    )  # fmt: skip
    tonight = Digests(np.array(list(TONIGHT)), np.array(list(TONIGHT.values())))
    batches = pa.Table.from_pylist(STORED, schema).to_batches(max_chunksize=4)
    assert len(batches) == 3
    eligible = np.array([True, False, True])
    found = untouched(batches, tonight, eligible, key="user_id", listed="item_numbers", as_of=AS_OF)
    assert found.keys.tolist() == ["ann", "hal", "ian"]
    assert found.touched == {"new": 2, "history": 1, "eligible": 2, "age": 1}  # new: eve and new
    assert len(found.keys) + sum(found.touched.values()) == len(TONIGHT)
    nothing = untouched([], tonight, eligible, key="user_id", listed="item_numbers", as_of=AS_OF)
    assert (nothing.keys.tolist(), nothing.touched["new"]) == ([], len(TONIGHT))


# --- what else makes a list ------------------------------------------------------------------------------------------


def numbers_of(*ids: str, first: int = 0) -> pa.Table:
    return pa.table({"item_id": list(ids), "item_number": pa.array(range(first, first + len(ids)), pa.int32())})


def test_numbers_that_came_are_no_other_numbers() -> None:
    few, more = numbers_of("x", "y"), numbers_of("x", "y", "z").take(pa.array([2, 0, 1]))
    assert numbering_digest(few, 2) == numbering_digest(more, 2) != numbering_digest(more, 3)
    assert numbering_digest(numbers_of("y", "x"), 2) != numbering_digest(few, 2)
    assert numbering_digest(numbers_of("x1y"), 1) != numbering_digest(few, 2)


def test_how_lists_were_made_otherwise_is_said() -> None:
    numbers, recipe = numbers_of("x", "y"), default_recipe("als")
    yesterday = made_by(recipe, "100 long", numbers, item_count=2)
    later = numbers_of("x", "y", "z")
    tonight = made_by(recipe, "100 long", later, item_count=3)
    assert tonight.other_than(yesterday.to_json(), later) == []
    assert made_by(recipe, "50 long", later, item_count=3).other_than(yesterday.to_json(), later) == [
        "rules was 100 long, is 50 long"
    ]
    other = made_by({**recipe, "half_life_days": 9.0}, "100 long", later, item_count=3)
    assert [words.split()[0] for words in other.other_than(yesterday.to_json(), later)] == ["recipe"]
    anew = numbers_of("y", "x", "z")
    assert tonight.other_than(yesterday.to_json(), anew) == ["items have other numbers now"]
    for nothing in (None, "", "[]", "{}", '{"recipe": 1}'):
        assert tonight.other_than(nothing, later) == ["they do not say what made them"]
    newer = MadeBy(tonight.recipe, tonight.rules, tonight.items, tonight.numbering, format=2)
    assert newer.other_than(tonight.to_json(), later) == ["format was 1, is 2"]


@pytest.mark.parametrize(
    ("asked", "differences", "people", "rescore", "why"),
    [
        ("all", [], 10**6, "all", "as asked"),
        ("touched", [], 3, "touched", "as asked"),
        ("touched", None, 10**6, "all", "no lists of 2024-03-08"),
        ("touched", ["a was b"], 10**6, "all", "made otherwise: a was b"),
        ("auto", [], 99_999, "all", "99,999 people"),
        ("auto", [], 100_000, "touched", "100,000 people"),
        ("auto", None, 100_000, "all", "no lists"),
    ],
)
def test_decisions(asked: str, differences: list[str] | None, people: int, rescore: str, why: str) -> None:
    found = decide(asked, differences, day=DAY_BEFORE, people=people)
    assert found.rescore == rescore
    assert why in found.why


def test_an_unknown_manner_is_refused() -> None:
    assert rescore_asked({}) == rescore_asked({"rescore": None}) == "auto"
    assert rescore_asked({"rescore": "touched"}) == "touched"
    with pytest.raises(DataError, match="did you mean 'touched'"):
        rescore_asked({"rescore": "touch"})


# --- what the night before left, in real tables ----------------------------------------------------------------------


def test_only_the_day_before_counts_and_only_at_the_pinned_version(environment: Environment) -> None:
    numbers, name = numbers_of("x", "y"), "gold.candidates"
    tonight = made_by(default_recipe("als"), "100 long", numbers, item_count=2)
    said = {"user_id": "ann", "made_by": tonight.to_json()}

    def found(version: int) -> list[str] | None:
        run = make_run(environment, AS_OF, pins={name: version})
        return differences(environment, run, tonight, numbers)

    assert found(-1) is None
    write_rows(environment, name, [{**said, "as_of": AS_OF}, {**said, "as_of": date(2024, 3, 7)}])
    assert found(0) is None
    write_rows(environment, name, [{**said, "as_of": DAY_BEFORE}, {"user_id": "denied", "as_of": DAY_BEFORE}])
    assert (found(0), found(1)) == (None, [])
    assert (
        differences(environment, make_run(environment, AS_OF), tonight, numbers) is None
    )  # pinned before there was one
    write_rows(environment, name, [{"user_id": "bob", "made_by": "{}", "as_of": DAY_BEFORE}])
    assert found(2) == ["they do not say what made them"]
    assert found(1) == []


def test_lists_of_before_the_columns_say_nothing(environment: Environment) -> None:
    write_rows(environment, "gold.candidates", [{"user_id": "ann", "as_of": DAY_BEFORE}])
    run = make_run(environment, AS_OF, pins={"gold.candidates": 0})
    tonight = made_by(default_recipe("als"), "", numbers_of("x"), item_count=1)
    assert differences(environment, run, tonight, numbers_of("x")) == ["they do not say what made them"]


def test_vectors_of_a_week_old_chain_are_left(environment: Environment) -> None:
    name = "gold.item_factors"
    rows = [
        {"recipe": "r1", "item_number": 2, "vector": [1.0, 2.0], "cold_as_of": date(2024, 3, 3), "as_of": DAY_BEFORE},
        {"recipe": "r1", "item_number": 0, "vector": [0.5, 0.0], "cold_as_of": date(2024, 3, 3), "as_of": DAY_BEFORE},
        {"recipe": "r1", "item_number": 7, "vector": [9.0, 9.0], "cold_as_of": date(2024, 3, 3), "as_of": DAY_BEFORE},
        {"recipe": "r2", "item_number": 0, "vector": [1.0], "cold_as_of": date(2024, 3, 2), "as_of": DAY_BEFORE},
        {"recipe": "r3", "item_number": 0, "vector": [1.0], "cold_as_of": DAY_BEFORE, "as_of": AS_OF},
    ]
    write_rows(environment, name, rows)
    starts = read_starts(environment, make_run(environment, AS_OF, pins={name: 0}), item_count=4)
    assert {recipe: vectors.tolist() for recipe, vectors in starts.vectors.items()} == {
        "r1": [[0.5, 0.0], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0]]
    }
    assert starts.cold_as_of == {"r1": date(2024, 3, 3)}
    assert read_starts(environment, make_run(environment, AS_OF), item_count=4).vectors == {}


# --- neighbours ------------------------------------------------------------------------------------------------------


def shop_events(seed: int = 3) -> list[Event]:
    rng = random.Random(seed)
    return [
        (f"u:{rng.randrange(30)}", rng.randrange(12), rng.choice(["view_item", "purchase"]), 1_709_000_000_000_000 + n)
        for n in range(200)
    ]


def test_neighbours_of_touched_items_are_made_and_the_others_kept(environment: Environment) -> None:
    recipe, numbers = default_recipe("item_knn"), numbers_of(*(f"i{n}" for n in range(12)))
    made = made_by(recipe, "50 long", numbers, item_count=12)
    eligible = np.ones(12, bool)
    none = arrow_schema("gold.item_neighbours").empty_table()

    def matrix(events: list[Event], day: str) -> Any:
        return build_matrix(
            table_of(events), item_count=12, weights=recipe["weights"], half_life_days=30.0, cut_off=utc(day)
        )

    events = shop_events()
    digests = item_digests(table_of(events))
    first = item_neighbours(recipe["params"], matrix(events, "2024-03-08"), eligible, digests, none, as_of=DAY_BEFORE)
    full = fit_recipe(recipe, table_of(events), item_count=12, cut_off=utc("2024-03-08")).model
    assert [list(row) for row in first.rows] == neighbour_rows(full, eligible)
    assert (first.kept, first.touched["new"]) == (0, 12)
    rows = neighbour_table(first, digests, made_by=made.to_json(), as_of=DAY_BEFORE).to_pylist()
    assert len(rows) == 12
    write_rows(environment, "gold.item_neighbours", rows)
    run = make_run(environment, AS_OF, pins={"gold.item_neighbours": 0})
    stored = stored_neighbours(environment, run, made, numbers)
    assert stored.num_rows == 12
    otherwise = made_by(recipe, "20 long", numbers, item_count=12)
    assert stored_neighbours(environment, run, otherwise, numbers).num_rows == 0

    later = [*events, ("u:new", 4, "purchase", 1_709_500_000_000_000), ("u:1", 7, "view_item", 1_709_500_000_000_001)]
    table, now = item_digests(table_of(later)), matrix(later, "2024-03-09")
    second = item_neighbours(recipe["params"], now, eligible, table, stored, as_of=AS_OF)
    anew = fit_recipe(recipe, table_of(later), item_count=12, cut_off=utc("2024-03-09")).model
    expected = neighbour_rows(anew, eligible)
    assert [n for n in range(12) if second.scored_as_of[n] == AS_OF] == [4, 7]
    for number in range(12):
        wanted = expected[number] if number in (4, 7) else first.rows[number]
        assert list(second.rows[number]) == list(wanted)
    assert (second.kept, second.touched) == (10, {"new": 0, "history": 2, "eligible": 0, "age": 0})

    eligible[5] = False
    third = item_neighbours(recipe["params"], now, eligible, table, stored, as_of=AS_OF)
    naming = {n for n in range(12) if n not in (4, 7) and 5 in [other for other, _ in first.rows[n]]}
    assert naming
    assert third.touched["eligible"] == len(naming)
    assert not any(5 in [other for other, _ in row] for row in third.rows)
