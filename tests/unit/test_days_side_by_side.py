"""Days of a large history worked on side by side: the same rows in the same order, however many are at once."""

from __future__ import annotations

from collections import Counter
from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import Run
from spark_jobs.jobs import deliveries_in_memory
from spark_jobs.jobs.deliveries_in_memory import files_before, sorted_apart, threads_for
from spark_jobs.jobs.refine_in_memory import Kept, by_kept_days
from spark_jobs.models import threads
from tests.builders import EventRow, make_run, write_bronze_events

AS_OF = date(2024, 3, 8)
COLUMNS = ("event_id", "user_id", "anonymous_id", "item_id")


@pytest.fixture
def run(environment: Environment) -> Run:
    """Six days, the first with two events and each later one with two more; some ids come twice, on other days too."""
    for name, part in (("bronze.events", 0), ("bronze.events_import", 1)):
        rows: list[EventRow] = []
        for day in range(1, 7):
            for n in range(day):
                moment = f"2024-03-0{day}T0{n}:00:00"
                rows.append((f"{day} {n} {part}", "ann", "view_item", moment, f"i{n}"))
                if n == 2:
                    rows.append((f"{day} 0 0", "bob", "view_item", moment, "again"))
        rows.append(("withheld", "denier", "view_item", "2024-03-05T10:00:00", "i9"))
        write_bronze_events(environment, rows, name=name)
    return make_run(environment, AS_OF, pins={"bronze.events": 0, "bronze.events_import": 0})


def kept_of(environment: Environment, run: Run) -> Kept:
    files: dict[date, list[Any]] = {}
    for name, file in files_before(environment, run):
        assert file.day is not None
        files.setdefault(file.day, []).append((name, file))
    first = next(iter(files.values()))[0][1]
    nobody = pa.schema([*first.schema]).empty_table()
    return Kept(files, {date(2024, 3, 4): pa.array(["4 1 0"])}, nobody, pa.array(["denier"]))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_is_sorted_apart_is_the_same(
    environment: Environment, run: Run, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(deliveries_in_memory, "thread_count", lambda: count)
    found = sorted_apart(environment, run)
    assert found is not None
    said = [table.select(["event_id", "item_id", "table", "event_date"]).to_pylist() for table in found]
    ids = Counter(row["event_id"] for rows in said for row in rows)
    # `d 0 0` of the days with three events and more: once as it was, and once again from each of the two tables
    assert ids == {**{f"{day} 0 0": 3 for day in range(3, 7)}, "withheld": 2}
    monkeypatch.setattr(deliveries_in_memory, "thread_count", lambda: 1)
    alone = sorted_apart(environment, run)
    assert alone is not None
    assert all(one.equals(other) for one, other in zip(found, alone, strict=True))


@pytest.mark.parametrize("count", [1, 3])
def test_days_come_in_their_order_with_their_own_counts(
    environment: Environment, run: Run, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(deliveries_in_memory, "thread_count", lambda: count)
    monkeypatch.setattr(threads, "thread_count", lambda: count)
    found = list(by_kept_days(kept_of(environment, run), COLUMNS, lambda day, rows, counts: (day, rows, counts)))
    assert [day.day for day, _, _ in found] == [1, 2, 3, 4, 5, 6]
    day, rows, counts = found[3]
    ids = rows["event_id"].to_pylist()
    assert (ids[:2], len(ids)) == (["4 0 0", "4 2 0"], 9)  # without the exception 4 1 0
    assert set(rows["subject_key"].to_pylist()) == {"u:ann", "u:bob"}
    assert counts == {
        ("bronze.events", "kept"): 4, ("bronze.events", "withheld"): 0,
        ("bronze.events_import", "kept"): 5, ("bronze.events_import", "withheld"): 0,
    }  # fmt: skip
    assert found[4][2]["bronze.events", "withheld"] == 1
    assert day == date(2024, 3, 4)


def test_large_days_are_worked_on_one_by_one(
    environment: Environment, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries_in_memory, "thread_count", lambda: 8)
    files = [file for _, file in files_before(environment, run)]
    assert threads_for([]) == 2
    assert threads_for(files) == 2
    # the sixth day: six events and one repeated, in each of two tables
    monkeypatch.setattr(deliveries_in_memory, "MOST_SIDE_BY_SIDE", 14)
    assert threads_for(files) == 2
    monkeypatch.setattr(deliveries_in_memory, "MOST_SIDE_BY_SIDE", 13)
    assert threads_for(files) == 1
    monkeypatch.setattr(deliveries_in_memory, "thread_count", lambda: 1)
    assert threads_for(files[:1]) == 1
