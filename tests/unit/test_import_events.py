"""Events from files: mapping, values, quarantine, consent, repeats; and nothing written when a file cannot be used."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError, DependencyError
from feature_repo.contracts.tables import table, table_path
from infra.importing import events as events_module
from infra.importing import reading
from infra.importing.catalogue import import_users
from infra.importing.events import import_events
from infra.importing.mapping import ColumnMap
from infra.importing.report import ImportReport
from infra.importing.tables import find_table

RECEIVED = datetime(2024, 3, 8, 12, tzinfo=UTC)
VIEW = {
    "event_id": "e1",
    "event_type": "view_item",
    "user_id": "u1",
    "item_id": "i1",
    "timestamp": "2024-03-08T10:00:00Z",
}


def rows(env: Environment, name: str) -> list[dict[str, Any]]:
    """All rows of a table by source and position; [] when it does not exist."""
    found = find_table(env, name)
    if found is None:
        return []
    key = [("source", "ascending"), ("source_position", "ascending")]
    return found.to_pyarrow_table().sort_by(key).to_pylist()


def good(env: Environment) -> list[dict[str, Any]]:
    return rows(env, "bronze.events_import")


def bad(env: Environment) -> list[dict[str, Any]]:
    return rows(env, "bronze.quarantine_import")


def write_lines(path: Path, *events: object) -> Path:
    path.write_text("".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in events))
    return path


def test_a_json_line_becomes_a_row_with_every_column(tmp_path: Path, environment: Environment) -> None:
    event = {
        **VIEW, "event_type": "purchase-complete", "anonymous_id": "d1", "session_id": "s1", "quantity": 2, "price": 3,
        "value": 6.5, "currency": "EUR", "recommendation_id": "r1", "placement": "home", "channel": "app",
        "timestamp": "2024-03-08T00:30:00+01:00", "page_view_id": "p1", "context": {"ip": "x"}, "colour": "red",
        "properties": {"size": "M", "page_view_id": "mine"}, "consent": {"train": False, "share": True},
    }  # fmt: skip
    report = import_events(write_lines(tmp_path / "a.jsonl", event), environment, received_at=RECEIVED)
    assert (report.read, report.accepted, report.rows_written) == (1, 1, 1)
    (row,) = good(environment)
    assert list(row) == list(table("bronze.events_import").columns)
    assert json.loads(row.pop("properties")) == {
        "colour": "red", "size": "M", "context": {"ip": "x"}, "page_view_id": "p1", "consent": {"share": True},
    }  # fmt: skip
    assert row == {
        "event_id": "e1", "event_type": "purchase", "user_id": "u1", "anonymous_id": "d1", "session_id": "s1",
        "item_id": "i1", "event_timestamp": datetime(2024, 3, 7, 23, 30, tzinfo=UTC), "received_at": RECEIVED,
        "quantity": 2, "price": 3.0, "value": 6.5, "currency": "EUR", "recommendation_id": "r1", "placement": "home",
        "channel": "app", "consent_train": False, "consent_personalize": None, "source": "a.jsonl",
        "source_position": 1, "event_date": date(2024, 3, 7),
    }  # fmt: skip


def test_a_csv_with_other_names_is_mapped_and_its_cells_are_understood(
    tmp_path: Path, environment: Environment
) -> None:
    text = (
        "\ufeffid,ts,who,sku,n,paid,note\r\n"
        '7,2024-03-08 09:00:00,ann,"a ""b"", c",2,1.50,\r\n'
        "\r\n"
        '8,1709895600,bob,s2,3.0,,"two\nlines"\r\n'
        "9,1709895600123,,s2,1,1e1,\r\n"
        "10,2024-03-08T09:00:00Z,ann,s2,zwei,-1,\r\n"
        "11,2024-03-08T09:00:00Z,ann\r\n"
    )
    path = tmp_path / "shop.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    pairs = ["event_id=id", "timestamp=ts", "user_id=who", "item_id=sku", "quantity=n", "price=paid"]
    mapping = ColumnMap.parse([*pairs, "event_type=:purchase", "channel=:web"])
    report = import_events(path, environment, mapping, received_at=RECEIVED)

    assert (report.read, report.accepted) == (5, 2)
    assert report.quarantined == {"missing_subject": 1, "invalid_quantity": 1, "unreadable": 1}
    fields = ("event_id", "item_id", "quantity", "price", "properties", "channel")
    assert [(r["event_timestamp"].hour, *(r[f] for f in fields)) for r in good(environment)] == [
        (9, "7", 'a "b", c', 2, 1.5, None, "web"),
        (11, "8", "s2", 3, None, '{"note": "two\\nlines"}', "web"),
    ]
    assert [(r["source_position"], r["reason"], r["field"], r["raw"]) for r in bad(environment)] == [
        (3, "missing_subject", "user_id", b"9,1709895600123,,s2,1,1e1,"),
        (4, "invalid_quantity", "quantity", b"10,2024-03-08T09:00:00Z,ann,s2,zwei,-1,"),
        (5, "unreadable", None, b"11,2024-03-08T09:00:00Z,ann"),
    ]
    assert "3 values, the header has 7 columns" in bad(environment)[2]["detail"]


def test_the_raw_bytes_of_a_record_over_two_lines_and_of_no_utf_8_are_kept(
    tmp_path: Path, environment: Environment
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"event_id,event_type,user_id,item_id,timestamp\n"
        b'e1,"view\nitem",u1,i1,2024-03-08T09:00:00Z\n'
        b"e2,view_item,u\xe9,i1,2024-03-08T09:00:00Z\n"
        b"e3,view_item,u\xc3\xa9,i1,2024-03-08T09:00:00Z\n"
    )
    import_events(path, environment, received_at=RECEIVED)
    assert [(r["reason"], r["raw"]) for r in bad(environment)] == [
        ("unknown_event_type", b'e1,"view\nitem",u1,i1,2024-03-08T09:00:00Z'),
        ("unreadable", b"e2,view_item,u\xe9,i1,2024-03-08T09:00:00Z"),
    ]
    assert [(r["user_id"], r["source_position"]) for r in good(environment)] == [("u\u00e9", 3)]


def test_parquet_columns_of_other_types_are_understood(tmp_path: Path, environment: Environment) -> None:
    naive = datetime(2024, 3, 8, 9, 0, 0, 123456)  # noqa: DTZ001 - a column without a zone is UTC
    columns = {
        "event_id": pa.array([1, 2, None], pa.int64()),
        "event_type": pa.array(["View", "View", "search"]).dictionary_encode(),
        "user_id": pa.array(["a", "b", "c"], pa.large_string()),
        "item_id": pa.array([7, 8, None], pa.int32()),
        "timestamp": pa.array([naive, naive, naive], pa.timestamp("ns")),
        "quantity": pa.array([2.0, 2.5, None], pa.float64()),
        "context": pa.array([{"a": 1, "b": None}, None, None]),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    report = import_events(tmp_path / "a.parquet", environment, received_at=RECEIVED)
    assert (report.accepted, report.quarantined) == (2, {"invalid_quantity": 1})
    first, second = good(environment)
    assert (first["event_id"], first["item_id"], first["quantity"]) == ("1", "7", 2)
    assert first["event_timestamp"] == naive.replace(tzinfo=UTC)
    assert first["properties"] == '{"context": {"a": 1}}'
    (rejected,) = bad(environment)
    assert json.loads(rejected["raw"])["quantity"] == 2.5

    twin = {"event_type": "search", "user_id": "c", "timestamp": "2024-03-08T09:00:00.123456Z"}
    import_events(write_lines(tmp_path / "twin.jsonl", twin), environment, received_at=RECEIVED)
    assert good(environment)[-1]["event_id"] == second["event_id"]  # a derived id does not depend on the format


def test_a_basket_is_one_line_and_several_rows(tmp_path: Path, environment: Environment) -> None:
    lines = [{"item_id": "i1", "quantity": 2}, {"item_id": "i2", "price": 4}]
    basket = {**VIEW, "event_type": "purchase", "items": lines}
    report = import_events(write_lines(tmp_path / "a.jsonl", basket, VIEW), environment, received_at=RECEIVED)
    assert (report.read, report.accepted, report.rows_written) == (2, 2, 3)
    assert sorted((r["event_id"], r["item_id"], r["source_position"]) for r in good(environment)) == [
        ("e1", "i1", 2),
        ("e1:0", "i1", 1),
        ("e1:1", "i2", 1),
    ]


def test_positions_run_on_across_batches(
    tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH_ROWS", 2)
    events = [{**VIEW, "event_id": f"e{n}", "price": -1.0 if n == 4 else 1.0} for n in range(1, 6)]
    folder = tmp_path / "in"
    folder.mkdir()
    write_lines(folder / "a.jsonl", *events[:3], "", *events[3:])  # the empty line is nothing, but it has a number
    pq.write_table(pa.Table.from_pylist(events), folder / "b.parquet")
    report = import_events(folder, environment, received_at=RECEIVED)
    assert (report.read, report.accepted, report.repeated) == (10, 8, 4)
    assert [(r["source_position"], r["event_id"]) for r in good(environment)] == [
        (1, "e1"), (2, "e2"), (3, "e3"), (6, "e5"), (1, "e1"), (2, "e2"), (3, "e3"), (5, "e5"),
    ]  # fmt: skip
    assert [(r["source_position"], json.loads(r["raw"])["event_id"]) for r in bad(environment)] == [
        (5, "e4"),
        (4, "e4"),
    ]


def test_importing_again_replaces_and_other_files_stay(tmp_path: Path, environment: Environment) -> None:
    folder = tmp_path / "o'brien"
    folder.mkdir()
    write_lines(folder / "a.jsonl", VIEW, "{broken", {**VIEW, "event_id": "e2"})
    write_lines(folder / "b.jsonl", {**VIEW, "event_id": "e3"}, {**VIEW, "event_id": "e3"})
    first = import_events(folder, environment, received_at=RECEIVED)
    assert first.sources == ("o'brien/a.jsonl", "o'brien/b.jsonl")
    assert (first.accepted, first.repeated) == (4, 1)
    before = good(environment), bad(environment)
    assert import_events(folder, environment, received_at=RECEIVED) == first
    assert (good(environment), bad(environment)) == before

    (folder / "b.jsonl").unlink()
    write_lines(folder / "a.jsonl", {**VIEW, "event_id": "e9"})
    import_events(folder, environment, received_at=RECEIVED)
    assert [r["event_id"] for r in good(environment)] == ["e9", "e3", "e3"]
    assert bad(environment) == []

    write_lines(folder / "a.jsonl", "{broken")
    report = import_events(folder, environment, received_at=RECEIVED)
    assert (report.accepted, report.rows_written) == (0, 0)
    assert [r["event_id"] for r in good(environment)] == ["e3", "e3"]


def test_who_refuses_storage_is_only_counted_also_in_quarantine(tmp_path: Path, environment: Environment) -> None:
    users = write_lines(
        tmp_path / "users.jsonl",
        {"user_id": "no", "consent": {"store": False}},
        {"user_id": "yes", "consent": {"store": True}},
        {"user_id": "unasked"},
    )
    import_users(users, environment)
    lines = (
        {**VIEW, "user_id": "no"},
        {**VIEW, "user_id": "no", "price": -1},  # broken, and still not ours to keep
        {**VIEW, "user_id": "yes", "consent": {"store": False}},
        {**VIEW, "user_id": "yes"},
        {**VIEW, "user_id": "unasked", "consent": {"store": True}},
    )
    report = import_events(write_lines(tmp_path / "a.jsonl", *lines), environment, received_at=RECEIVED)
    assert (report.read, report.accepted, report.not_stored, report.quarantined) == (5, 2, 3, {})

    header = "event_id,event_type,user_id,item_id,timestamp,price,consent_store"
    cells = (("no", "1", ""), ("no", "-1", ""), ("yes", "1", "False"), ("yes", "1", "true"), ("unasked", "-1", "0"))
    said = [f"e1,view_item,{user},i1,2024-03-08T09:00:00Z,{price},{store}" for user, price, store in cells]
    report = import_events(write_lines(tmp_path / "b.csv", header, *said), environment, received_at=RECEIVED)
    assert (report.read, report.accepted, report.not_stored, report.quarantined) == (5, 1, 4, {})
    assert [r["user_id"] for r in good(environment)] == ["yes", "unasked", "yes"]
    assert bad(environment) == []


def test_times_after_the_receipt_are_quarantined(tmp_path: Path, environment: Environment) -> None:
    path = write_lines(
        tmp_path / "a.csv",
        "event_id,event_type,user_id,item_id,timestamp",
        "e1,view_item,u1,i1,2024-03-09T12:00:00Z",  # 24 h after the receipt: the last instant allowed
        "e2,view_item,u1,i1,2024-03-09T12:00:00.001Z",
    )
    report = import_events(path, environment, received_at=RECEIVED)
    assert (report.accepted, report.quarantined) == (1, {"timestamp_in_future": 1})


def test_a_crash_between_the_two_tables_is_healed_by_importing_again(
    tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl", VIEW, "{broken")
    real = events_module.replace_sources

    def dies_before_quarantine(env: Environment, name: str, *rest: Any) -> None:
        if name == "bronze.quarantine_import":
            raise DependencyError("power cut")
        real(env, name, *rest)

    monkeypatch.setattr(events_module, "replace_sources", dies_before_quarantine)
    with pytest.raises(DependencyError):
        import_events(path, environment, received_at=RECEIVED)
    assert (len(good(environment)), len(bad(environment))) == (1, 0)
    monkeypatch.setattr(events_module, "replace_sources", real)
    import_events(path, environment, received_at=RECEIVED)
    assert (len(good(environment)), len(bad(environment))) == (1, 1)


def not_parquet(folder: Path) -> Path:
    return write_lines(folder / "a.parquet", "x")


def half_a_gzip(folder: Path) -> Path:
    (folder / "a.csv.gz").write_bytes(gzip.compress(b"a,b\n" * 99)[:-9])
    return folder / "a.csv.gz"


def empty_folder(folder: Path) -> Path:
    (folder / "none").mkdir()
    return folder / "none"


def second_file_lacks_columns(folder: Path) -> Path:
    write_lines(folder / "z.csv", "a,b")
    return folder


def second_file_is_damaged(folder: Path) -> Path:
    """A Parquet file with garbage in its middle: it opens, and breaks when it is read."""
    text, same = pa.array([f"{n:0100d}" for n in range(3_000)]), pa.array(["x"] * 3_000)
    columns = {"event_id": text, "event_type": same, "user_id": same, "timestamp": same}
    path = folder / "z.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=1_500, compression="gzip", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[100:600] = bytes(500)
    path.write_bytes(bytes(content))
    return folder


def csv_with_header(header: str) -> Any:
    return lambda folder: write_lines(folder / "a.csv", header)


BROKEN_INPUTS: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "no such file": (lambda f: f / "evnts.jsonl", (), r"no file .*evnts\.jsonl; did you mean 'events\.jsonl'"),
    "extension": (lambda f: write_lines(f / "a.json"), (), r"cannot import a\.json: expected one of \.csv, \.jsonl"),
    "gz of what": (lambda f: write_lines(f / "a.parquet.gz"), (), r"cannot import a\.parquet\.gz"),
    "no parquet": (not_parquet, (), r"a\.parquet cannot be read as Parquet"),
    "no gzip": (lambda f: write_lines(f / "a.csv.gz", "x"), (), r"a\.csv\.gz cannot be read"),
    "half a gzip": (half_a_gzip, (), r"a\.csv\.gz cannot be read"),
    "empty csv": (lambda f: write_lines(f / "a.csv"), (), r"a\.csv is empty; expected a header"),
    "column twice": (csv_with_header("user_id,user_id"), (), "has the column 'user_id' twice"),
    "mapped column": (
        csv_with_header("user_id,event_type,time"),
        ("timestamp=tmie",),
        r"a\.csv has no column 'tmie' \(mapped to timestamp\); it has user_id, .*; did you mean 'time'",
    ),
    "mapped key": (
        lambda f: write_lines(f / "a.jsonl", VIEW),
        ("user_id=usr_id",),
        "no column 'usr_id' .*; did you mean 'user_id'",
    ),
    "required column": (
        csv_with_header("user_id,event_type,tmestamp"),
        (),
        "no column for timestamp; it has .*; did you mean 'tmestamp'.*--map timestamp=COLUMN",
    ),
    "no subject": (csv_with_header("who,event_type,timestamp"), (), "no column for user_id or anonymous_id"),
    "empty folder": (empty_folder, (), "holds no file to import"),
    "second file": (second_file_lacks_columns, (), r"z\.csv has no column for event_type"),
    "damaged halfway": (second_file_is_damaged, (), r"z\.parquet is damaged"),
}


@pytest.mark.parametrize("case", BROKEN_INPUTS)
def test_input_that_cannot_be_used_is_named_and_nothing_is_written(
    case: str, tmp_path: Path, environment: Environment
) -> None:
    make, pairs, message = BROKEN_INPUTS[case]
    folder = tmp_path / "in"
    folder.mkdir()
    write_lines(folder / "events.jsonl", VIEW)
    path = make(folder)
    with pytest.raises(DataError, match=message):
        import_events(path, environment, ColumnMap.parse(pairs), received_at=RECEIVED)
    assert good(environment) == []
    assert bad(environment) == []


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["timestamp"], "field=column or field=:value, got 'timestamp'"),
        (["timestamp="], "got 'timestamp='"),
        (["event_type=:"], "got 'event_type=:'"),
        (["tiemstamp=ts"], "unknown field 'tiemstamp'; did you mean 'timestamp'"),
        (["user_id=a", "user_id=:b"], "'user_id' is mapped twice"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_refused(pairs: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ColumnMap.parse(pairs)


def test_a_mapped_column_loses_its_name_and_a_mapped_field_hides_a_column() -> None:
    mapping = ColumnMap.parse(["user_id=item_id", "item_id=:i0"])
    record = {"user_id": "hidden", "item_id": "becomes the user", "x": 1}
    assert mapping.apply_to_object(record) == {"user_id": "becomes the user", "item_id": "i0", "x": 1}
    columns = pa.table({name: [value] for name, value in record.items()})
    assert mapping.apply_to_table(columns).to_pylist() == [mapping.apply_to_object(record)]
    both = ColumnMap.parse(["user_id=x", "session_id=x"])  # one column, two fields
    assert both.apply_to_object({"x": "1"}) == {"user_id": "1", "session_id": "1"}
    assert both.apply_to_table(pa.table({"x": ["1"]})).to_pylist() == [{"user_id": "1", "session_id": "1"}]


def test_a_report_that_does_not_add_up_does_not_exist() -> None:
    with pytest.raises(ContractError, match="read 5 lines but accounts for 4"):
        ImportReport("events", ("a",), read=5, accepted=2, quarantined={"unreadable": 1}, not_stored=1)


def test_the_tables_have_the_schema_the_partitions_and_the_properties_of_the_contract(
    tmp_path: Path, environment: Environment
) -> None:
    import_events(write_lines(tmp_path / "a.jsonl", VIEW, "{"), environment, received_at=RECEIVED)
    delta = DeltaTable(table_path(environment.lakehouse, "bronze.events_import"))
    assert delta.metadata().partition_columns == ["event_date"]
    assert delta.metadata().configuration["delta.enableDeletionVectors"] == "false"
    assert delta.protocol().min_reader_version == 1
    kinds = {f.name: f.type.type for f in delta.schema().fields}
    spark = {"int": "integer", "bigint": "long"}
    assert kinds == {c: spark.get(k, k) for c, k in table("bronze.events_import").columns.items()}
