"""The Online Retail shop: its rules on a few lines worked out by hand, and the whole real file when it is there."""

from __future__ import annotations

import gzip
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from infra.importing import reading
from infra.importing.catalogue import import_users
from infra.importing.online_retail import SMALLEST_CATEGORY, categories_of, import_online_retail
from infra.importing.tables import find_table

REAL_FILE = Path(__file__).parents[2].parent / "shared" / "data" / "online-retail" / "online_retail.csv.gz"

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
LINES = (
    "100,22001,RED MUG,6,2011-01-10 08:26:00,2.50,17,United Kingdom\n"
    "101,22002,TEA POT,1,2011-07-10 08:26:00,9.00,18.0,France\n"  # summer time: 07:26 UTC
    "100,22001,RED MUG,6,2011-01-10 08:26:00,2.50,17,United Kingdom\n"  # an exact duplicate: kept, another line
    "100,POST,POSTAGE,1,2011-01-10 08:27:00,5.00,17,United Kingdom\n"
    "102,22001,mug,1,2011-02-01 09:00:00,3.50,,Germany\n"  # nobody: an anonymous event of its invoice
    "C103,22001, RED MUG ,-2,2011-02-02 09:00:00,9.00,17,Spain\n"  # a cancellation
    "104,22002,check,-5,2011-01-01 09:00:00,0,,France\n"  # quantity and price: the quantity is named
    "105,22002,,3,2011-01-01 09:00:00,0.0,,France\n"
    "A106,22002,TEA POT,1,2011-01-01 09:00:00,-11.5,,France\n"
    "C107,22003,LOST,-1,2011-03-01 09:00:00,4.00,17,Spain\n"  # never sold, only refunded
    "C107,22003,LOST,-1,2011-03-01 10:00:00,4.00,17,France\n"
    "108,22002,TEA POT,1,2011-13-01 09:00:00,9.00,19,France\n"  # no such month
    "109,22002,POT OF TEA,1,2011-02-09 09:00:00,7.00,20,France\n"
    "109,22002,POT OF TEA,two,2011-02-09 09:00:00,7.00,20,Austria\n"
    ",22002,POT OF TEA,1,2011-02-09 09:00:00,7.00,20,Austria\n"
    "110,22004,broken line\n"
    "C111,22001,RED MUG,0,2011-02-02 09:00:00,2.00,17,Spain\n"  # cancels nothing
)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "retail.csv.gz"
    path.write_bytes(gzip.compress((HEADER + LINES).encode()))
    return path


def rows(env: Environment, name: str, *keys: str) -> list[dict[str, Any]]:
    found = find_table(env, name)
    return [] if found is None else found.to_pyarrow_table().sort_by([(k, "ascending") for k in keys]).to_pylist()


def test_each_line_becomes_what_the_rules_say(small: Path, environment: Environment) -> None:
    _, _, report = import_online_retail(small, environment)
    assert (report.read, report.accepted, report.not_stored) == (17, 9, 0)
    assert report.quarantined == {
        "quantity_not_positive": 2, "price_not_positive": 2, "invalid_timestamp": 1, "invalid_quantity": 1,
        "missing_event_id": 1, "unreadable": 1,
    }  # fmt: skip
    assert report.notes == {
        "lines without customer (anonymous)": 5,  # the broken line has none either
        "lines of cancelled invoices (refund)": 4,
        "exact duplicate lines (kept)": 1,
    }
    fields = ("event_id", "event_type", "user_id", "anonymous_id", "session_id", "item_id", "quantity", "price")
    kept = rows(environment, "bronze.events_import", "source_position")
    assert [tuple(r[f] for f in fields) for r in kept] == [
        ("100:1", "purchase", "17", None, "100", "22001", 6, 2.5),
        ("101:1", "purchase", "18", None, "101", "22002", 1, 9.0),
        ("100:2", "purchase", "17", None, "100", "22001", 6, 2.5),
        ("100:3", "purchase", "17", None, "100", "POST", 1, 5.0),
        ("102:1", "purchase", None, "invoice-102", "102", "22001", 1, 3.5),
        ("C103:1", "refund", "17", None, "C103", "22001", 2, 9.0),
        ("C107:1", "refund", "17", None, "C107", "22003", 1, 4.0),
        ("C107:2", "refund", "17", None, "C107", "22003", 1, 4.0),
        ("109:1", "purchase", "20", None, "109", "22002", 1, 7.0),
    ]
    assert {r["currency"] for r in kept} == {"GBP"}
    assert [r["event_timestamp"].strftime("%m-%d %H:%M") for r in kept[:2]] == ["01-10 08:26", "07-10 07:26"]


def test_quarantined_lines_keep_their_bytes_and_say_which_rule(small: Path, environment: Environment) -> None:
    import_online_retail(small, environment)
    kept = rows(environment, "bronze.quarantine_import", "source_position")
    assert [(r["source_position"], r["reason"], r["field"]) for r in kept] == [
        (7, "quantity_not_positive", "Quantity"),
        (8, "price_not_positive", "UnitPrice"),
        (9, "price_not_positive", "UnitPrice"),
        (12, "invalid_timestamp", "InvoiceDate"),
        (14, "invalid_quantity", "quantity"),
        (15, "missing_event_id", "InvoiceNo"),
        (16, "unreadable", None),
        (17, "quantity_not_positive", "Quantity"),
    ]
    assert [r["raw"] for r in kept] == [LINES.splitlines()[r["source_position"] - 1].encode() for r in kept]


def test_the_catalogue_is_derived_from_the_lines(small: Path, environment: Environment) -> None:
    _, report, _ = import_online_retail(small, environment)
    items = rows(environment, "bronze.items", "item_id")
    assert [(r["item_id"], r["title"], r["price"], r["created_at"], r["is_hidden"]) for r in items] == [
        # prices 2.50, 2.50, 3.50: the refund at 9.00 does not count
        ("22001", "RED MUG", 2.5, datetime(2011, 1, 10, 8, 26, tzinfo=UTC), False),
        # TEA POT and POT OF TEA: three each with the refused lines, so the alphabet decides; prices 9, 7;
        # lines that were refused are no sale: the first one is of February
        ("22002", "POT OF TEA", 8.0, datetime(2011, 2, 9, 9, 0, tzinfo=UTC), False),
        ("22003", "LOST", 4.0, datetime(2011, 3, 1, 9, 0, tzinfo=UTC), False),
        ("POST", "POSTAGE", 5.0, datetime(2011, 1, 10, 8, 27, tzinfo=UTC), True),
    ]
    assert {r["currency"] for r in items} == {"GBP"}
    assert report.notes == {"no goods (hidden)": 1, "category Other": 4}


def test_users_have_their_most_frequent_country_and_keep_the_consent_they_gave(
    small: Path, environment: Environment, tmp_path: Path
) -> None:
    (tmp_path / "users.jsonl").write_text('{"user_id": "17", "consent": {"train": false}, "region": "old"}\n')
    import_users(tmp_path / "users.jsonl", environment)
    import_online_retail(small, environment)
    users = rows(environment, "bronze.users", "user_id")
    # 17: three in the United Kingdom, three in Spain (so the alphabet decides), one in France; 20: Austria twice
    assert [(r["user_id"], r["region"], r["consent_train"]) for r in users] == [
        ("17", "Spain", False),
        ("18", "France", None),
        ("19", "France", None),
        ("20", "Austria", None),
    ]
    assert users[0]["created_at"] == datetime(2011, 1, 10, 8, 26, tzinfo=UTC)
    assert users[2]["created_at"] is None  # its only line has no time


def test_who_refuses_storage_is_only_counted(small: Path, environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "users.jsonl").write_text('{"user_id": "17", "consent": {"store": false}}\n')
    import_users(tmp_path / "users.jsonl", environment)
    _, _, report = import_online_retail(small, environment)
    assert (report.read, report.accepted, report.not_stored) == (17, 3, 7)
    refused = rows(environment, "bronze.users", "user_id")[0]
    assert (refused["user_id"], refused["region"], refused["created_at"]) == ("17", None, None)


def test_importing_again_changes_nothing(small: Path, environment: Environment) -> None:
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    first = import_online_retail(small, environment, received_at=moment)
    names = (("bronze.events_import", "source_position"), ("bronze.quarantine_import", "source_position"),
             ("bronze.items", "item_id"), ("bronze.users", "user_id"))  # fmt: skip
    before = [rows(environment, *name) for name in names]
    assert [len(found) for found in before] == [9, 8, 4, 4]
    assert import_online_retail(small, environment, received_at=moment) == first
    assert [rows(environment, *name) for name in names] == before


def test_invoices_and_positions_run_across_batches(
    small: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH_ROWS", 2)
    import_online_retail(small, environment)
    kept = rows(environment, "bronze.events_import", "source_position")
    assert [r["event_id"] for r in kept][:4] == ["100:1", "101:1", "100:2", "100:3"]
    bad = rows(environment, "bronze.quarantine_import", "source_position")
    assert [r["raw"] for r in bad] == [LINES.splitlines()[r["source_position"] - 1].encode() for r in bad]
    assert len(bad) == 8


def test_the_hour_that_comes_twice_and_the_one_that_never_comes(tmp_path: Path, environment: Environment) -> None:
    lines = (
        "1,22001,A,1,2011-10-30 01:30:00,1,7,UK\n"  # twice: winter time is meant
        "2,22001,A,1,2011-03-27 01:30:00,1,7,UK\n"  # never: the next moment that was
        "3,22001,A,1,12/1/2010 8:26,1,7,UK\n"  # how spreadsheets write 1 December
    )
    (tmp_path / "r.csv").write_text(HEADER + lines)
    import_online_retail(tmp_path / "r.csv", environment)
    kept = rows(environment, "bronze.events_import", "source_position")
    assert [r["event_timestamp"].strftime("%Y-%m-%d %H:%M") for r in kept] == [
        "2011-10-30 01:30", "2011-03-27 01:00", "2010-12-01 08:26",
    ]  # fmt: skip


def test_categories_are_last_shared_nouns() -> None:
    enough = SMALLEST_CATEGORY
    titles = pd.Series(
        [f"BLUE MUG {n}" for n in range(enough - 1)]
        + ["MUGS RETROSPOT", "HEART MUG DESIGN", "MUG TREE", None, "12 X", "PINK"]
        + [f"LUNCH BAG No {n}" for n in range(enough - 1)]
    )
    found = categories_of(titles).tolist()
    # A tree names one title, so MUG TREE falls back on its mug; bags are one too few
    assert found[: enough + 2] == ["Mug"] * (enough + 2)
    assert found[enough + 2 : enough + 5] == ["Other"] * 3
    assert Counter(found) == {"Mug": enough + 2, "Other": 3 + enough - 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", HEADER.replace("UnitPrice", "Price"), "no column 'UnitPrice'; it has .*; did you mean 'Price'"),
        ("r.csv", HEADER, "has a header but no lines"),
        ("r.jsonl", "{}\n", r"online-retail is one \.csv or \.csv\.gz file"),
        ("r.xlsx", "PK", r"cannot import r\.xlsx"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    name: str, content: str, message: str, tmp_path: Path, environment: Environment
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        import_online_retail(tmp_path / name, environment)
    assert rows(environment, "bronze.users", "user_id") == []
    assert rows(environment, "bronze.events_import", "event_id") == []


@pytest.mark.skipif(not REAL_FILE.is_file(), reason=f"needs the Online Retail file at {REAL_FILE}")
def test_the_real_file_is_accounted_for_to_the_line(environment: Environment) -> None:
    users, items, events = import_online_retail(REAL_FILE, environment)
    assert events.read == 541_909
    assert events.quarantined == {"quantity_not_positive": 1_336, "price_not_positive": 1_181}
    assert events.accepted == 541_909 - 1_336 - 1_181 == events.rows_written
    assert list(events.notes.values()) == [135_080, 9_288, 5_268]
    assert events.repeated == 0
    assert (users.accepted, items.accepted) == (4_372, 3_938)

    kept = find_table(environment, "bronze.events_import").to_pyarrow_table()
    assert kept.num_rows == events.accepted
    assert pc.count_distinct(kept["event_id"]).as_py() == events.accepted
    assert pc.sum(pc.equal(kept["event_type"], "refund")).as_py() == 9_288
    assert set(kept["item_id"].unique().to_pylist()) == {
        r["item_id"] for r in rows(environment, "bronze.items", "item_id")
    }
    by_id = {r["item_id"]: r for r in rows(environment, "bronze.items", "item_id")}
    assert by_id["85123A"]["title"] == "WHITE HANGING HEART T-LIGHT HOLDER"
    assert by_id["85123A"]["category"] == "Holder"
    sizes = Counter(r["category"] for r in by_id.values())
    assert min(sizes.values()) >= SMALLEST_CATEGORY
    assert sizes["Other"] < 0.3 * len(by_id)
