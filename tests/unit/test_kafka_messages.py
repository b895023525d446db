"""A Kafka message as bronze rows: the rules of every other entrance, with the message's place."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.tables import table
from serving.speed.archive_rows import event_rows
from spark_jobs.io.light_delta import arrow_schema
from spark_jobs.jobs.stream_kafka import arguments_parser, batch_line, checkpoint_folder, source_options
from spark_jobs.transforms.kafka_messages import EVENTS, QUARANTINE, Message, arrow_columns, message_rows

RECEIVED = datetime(2024, 3, 1, 9, 30, tzinfo=UTC)
VIEW = {"event_id": "e1", "event_type": "view_item", "user_id": "u1", "item_id": "i7",
        "timestamp": "2024-03-01T09:29:58.5Z"}  # fmt: skip


def message(value: object, *, offset: int = 41) -> Message:
    raw = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    return Message(raw, "clicks", 3, offset, RECEIVED)


def test_an_event_is_a_row_with_its_place_in_the_topic() -> None:
    outcome, [row] = message_rows(message({**VIEW, "price": 3, "page_view_id": "p1", "colour": "red"}))
    assert outcome == "accepted"
    assert row == {
        **dict.fromkeys(table(EVENTS).columns),
        "event_id": "e1", "event_type": "view_item", "user_id": "u1", "item_id": "i7", "price": 3.0,
        "event_timestamp": datetime(2024, 3, 1, 9, 29, 58, 500_000, tzinfo=UTC), "received_at": RECEIVED,
        "properties": '{"colour": "red", "page_view_id": "p1"}', "event_date": RECEIVED.date(),
        "source": "kafka:clicks/3", "source_position": 41,
    }  # fmt: skip


def test_the_archiver_makes_the_same_row_of_the_same_event() -> None:
    event = {**VIEW, "event_type": "Product Added", "quantity": 2, "consent": {"train": False}, "items": [
        {"item_id": "i7", "price": 1.5}, {"item_id": "i8", "quantity": 1}]}  # fmt: skip
    position = f"{int(RECEIVED.timestamp() * 1000)}-0"
    archived, _ = event_rows(position, {b"event": json.dumps(event).encode()}, source="stream")
    _, streamed = message_rows(message(event))
    place = {"source", "source_position"}
    assert len(streamed) == 2
    assert [{k: v for k, v in row.items() if k not in place} for row in streamed] == [
        {k: v for k, v in row.items() if k not in place} for row in archived
    ]


@pytest.mark.parametrize(
    ("value", "reason", "field"),
    [
        (None, "unreadable", None),  # a tombstone
        (b"", "unreadable", None),
        (b'{"event_id": "e1", ', "unreadable", None),
        (b"\xff\xfe", "unreadable", None),
        (b'{"value": NaN}', "unreadable", None),
        (b'{"value": 1e999}', "unreadable", None),
        (b"[" * 100_000, "unreadable", None),  # deeper than the parser goes
        (b"[" * 201 + b"]" * 201, "nested_too_deeply", None),
        (b"[]", "unreadable", None),  # one message is one event
        ({**VIEW, "event_type": "view_itm"}, "unknown_event_type", "event_type"),
        ({**VIEW, "timestamp": "2024-03-02T09:30:01Z"}, "timestamp_in_future", "timestamp"),
        ({**VIEW, "user_id": "x\x00"}, "invalid_subject", "user_id"),
    ],
)
def test_a_bad_message_keeps_its_bytes_reason_and_place(value: object, reason: str, field: str | None) -> None:
    bad = message(value)
    outcome, [row] = message_rows(bad)
    assert outcome == "quarantined"
    assert list(row) == list(table(QUARANTINE).columns)
    assert (row["raw"], row["reason"], row["field"]) == (bad.value or b"", reason, field)
    assert (row["source"], row["source_position"], row["quarantined_at"]) == ("kafka:clicks/3", 41, RECEIVED)
    assert row["detail"]


def test_a_day_ahead_of_the_record_is_the_last_that_is_taken() -> None:
    outcome, [row] = message_rows(message({**VIEW, "timestamp": "2024-03-02T09:30:00Z"}))
    assert (outcome, row["event_date"].isoformat()) == ("accepted", "2024-03-02")


def test_a_wrong_clock_is_corrected_by_when_it_says_it_sent() -> None:
    sent = (RECEIVED - timedelta(minutes=7)).isoformat()  # that clock is seven minutes slow
    _, [row] = message_rows(message({**VIEW, "timestamp": "2024-03-01T09:20:00Z", "sent_at": sent}))
    assert row["event_timestamp"] == datetime(2024, 3, 1, 9, 27, tzinfo=UTC)
    assert json.loads(row["properties"])["original_timestamp"] == "2024-03-01T09:20:00Z"


@pytest.mark.parametrize(
    "event",
    [
        {**VIEW, "consent": {"store": False}},
        {"event_type": "nonsense", "consent": {"store": False}},  # valid or not
        {**VIEW, "user_id": "u5"},
    ],
)
def test_nothing_is_kept_of_who_does_not_allow_storing(event: dict[str, Any]) -> None:
    assert message_rows(message(event), refusing={"u5"}) == ("not_stored", [])


def test_both_tables_fit_side_by_side() -> None:
    schema = arrow_columns([arrow_schema(EVENTS), arrow_schema(QUARANTINE)])
    assert set(schema.names) == {"outcome", "message_count", *table(EVENTS).columns, *table(QUARANTINE).columns}


def test_a_batch_says_how_far_each_partition_is_behind() -> None:
    source: dict[str, Any] = {"endOffset": {"clicks": {"0": 10, "1": 4}}, "latestOffset": {"clicks": {"0": 25, "1": 4}}}
    progress = {"batchId": 7, "sources": [source], "durationMs": {"triggerExecution": 1250}}
    counts = {"accepted": 5, "quarantined": 2, "not_stored": 1, "rows": 9}
    assert batch_line(progress, counts) == {
        "batch": 7, "read": 8, "accepted": 5, "quarantined": 2, "not_stored": 1, "rows": 9, "seconds": 1.25,
        "offsets": {"clicks/0": 10, "clicks/1": 4}, "lag": {"clicks/0": 15, "clicks/1": 0},
    }  # fmt: skip
    source["latestOffset"] = None  # done again after a restart: nobody asked the broker
    assert batch_line(progress, counts)["lag"] == {"clicks/0": None, "clicks/1": None}


# --- arguments ---------------------------------------------------------------------------------------------------


def arguments(*more: str) -> argparse.Namespace:
    return arguments_parser().parse_args(["--bootstrap-servers", "b:9092", "--topic", "clicks", *more])


def test_options_of_the_source(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_text('# of the shop\nsecurity.protocol = SASL_SSL\nsasl.jaas.config=x required password="a=b";\n')
    given = arguments("--starting-offsets", "0=12,1=-2", "--properties-file", str(file))
    assert source_options(given) == {
        "subscribe": "clicks", "startingOffsets": '{"clicks": {"0": 12, "1": -2}}', "failOnDataLoss": "true",
        "kafka.isolation.level": "read_committed", "kafka.security.protocol": "SASL_SSL",
        "kafka.sasl.jaas.config": 'x required password="a=b";', "kafka.bootstrap.servers": "b:9092",
        "maxOffsetsPerTrigger": "100000",
    }  # fmt: skip
    free = source_options(arguments("--max-offsets-per-trigger", "0", "--skip-lost-offsets"))
    assert "maxOffsetsPerTrigger" not in free
    assert (free["failOnDataLoss"], free["startingOffsets"]) == ("false", "earliest")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--topic", "a b"], "a topic's name"),
        (["--topic", ".."], "a topic's name"),
        (["--trigger", "availableNow"], "available-now or a number of seconds"),
        (["--trigger", "0"], "above 0"),
        (["--starting-offsets", "newest"], "earliest, latest, or PARTITION=OFFSET"),
        (["--starting-offsets", "0=-3"], "PARTITION=OFFSET"),
        (["--properties-file", "/none/such"], "cannot be read"),
    ],
)
def test_a_wrong_argument_says_what_would_be_right(given: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        source_options(arguments(*given))


def test_a_properties_file_never_shows_its_values(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_text("\nsecret without a sign\n")
    with pytest.raises(DataError, match="line 2: expected name=value") as caught:
        source_options(arguments("--properties-file", str(file)))
    assert "secret" not in str(caught.value)


def test_the_checkpoint_lies_with_the_tables(environment: Any) -> None:
    assert checkpoint_folder(environment, "clicks") == f"{environment.lakehouse}/default/.kafka/clicks"
