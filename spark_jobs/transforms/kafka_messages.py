"""Kafka messages to bronze rows: one message is one event as JSON, judged by the rules of every other entrance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.bronze import bronze_row
from feature_repo.contracts.clocks import corrected_for_skew
from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.events import MAX_NESTING, Reason, Rejection, check_event, expand_items, is_nested_deeper
from feature_repo.contracts.json_text import parse_json
from feature_repo.contracts.tables import table

EVENTS, QUARANTINE = "bronze.events_kafka", "bronze.quarantine_kafka"

ACCEPTED, QUARANTINED, NOT_STORED = OUTCOMES = ("accepted", "quarantined", "not_stored")
"""What becomes of a message; the last: its person does not allow storing, so it is counted and nothing of it kept."""

_MAX_DEPTH = 200
"""As deep as a request body may nest (`max_body_nesting`)."""

_COLUMNS: Mapping[str, str] = {
    "outcome": "string", "message_count": "int", **table(EVENTS).columns,
    **{name: kind for name, kind in table(QUARANTINE).columns.items() if name not in table(EVENTS).columns},
}  # fmt: skip
CHECKED_SCHEMA = ", ".join(f"`{name}` {kind}" for name, kind in _COLUMNS.items())
"""Rows of both tables side by side; what is not the row's is null. `message_count` is 1 on a message's first row, 0 on
the others, so its sum counts messages."""


class Message(NamedTuple):
    """One record of a topic. `timestamp` is the record's own (the broker's, or the producer's when the topic says
    CreateTime), aware: for us the instant of receipt, because a second reading must find the same."""

    value: bytes | None
    topic: str
    partition: int
    offset: int
    timestamp: datetime

    @property
    def source(self) -> str:
        return f"kafka:{self.topic}/{self.partition}"


def message_rows(message: Message, *, refusing: Collection[str] = ()) -> tuple[str, list[dict[str, Any]]]:
    """(outcome, rows): rows of bronze.events_kafka when accepted, one of bronze.quarantine_kafka when quarantined.

    One row per line of `items`, as everywhere. `refusing`: user ids that do not allow storing.
    A message without a value (a tombstone) is quarantined as unreadable.
    """
    event = _parsed(message.value)
    if _refuses_storing(event, refusing):
        return NOT_STORED, []
    good, rejection = _checked(event, message.timestamp)
    if rejection is not None:
        return QUARANTINED, [_quarantine_row(message, rejection)]
    assert good is not None
    rows = [
        bronze_row(line, received_at=message.timestamp, source=message.source, source_position=message.offset)
        for line in expand_items(good)
    ]
    return ACCEPTED, rows


def check_messages(messages: DataFrame, *, schema: pa.Schema, refusing: Collection[str] = ()) -> DataFrame:
    """Each message of Spark's Kafka source (value, topic, partition, offset, timestamp) as its rows, CHECKED_SCHEMA.

    Grain: one row per row that a table gets, and one for a message that is not stored. Order is not defined.
    `schema` is CHECKED_SCHEMA in Arrow's types.
    """
    columns = messages.select("value", "topic", "partition", "offset", "timestamp")
    return columns.mapInArrow(_check_batches(schema, frozenset(refusing)), CHECKED_SCHEMA)


def rows_for(checked: DataFrame, name: str) -> DataFrame:
    """The rows of one of the two tables, with its columns."""
    outcome = {EVENTS: ACCEPTED, QUARANTINE: QUARANTINED}[name]
    return checked.filter(F.col("outcome") == outcome).select(*table(name).columns)


def count_messages(checked: DataFrame) -> dict[str, int]:
    """Messages by outcome (all of OUTCOMES), and under `rows` the rows that bronze.events_kafka gets."""
    found = checked.groupBy("outcome").agg(F.sum("message_count").alias("messages"), F.count(F.lit(1)).alias("rows"))
    by_outcome = {row["outcome"]: row for row in found.collect()}
    counts = {outcome: int(by_outcome[outcome]["messages"]) if outcome in by_outcome else 0 for outcome in OUTCOMES}
    return {**counts, "rows": int(by_outcome[ACCEPTED]["rows"]) if ACCEPTED in by_outcome else 0}


def arrow_columns(arrow_schemas: Iterable[pa.Schema]) -> pa.Schema:
    """CHECKED_SCHEMA in Arrow's types, from those of the two tables."""
    types = {"outcome": pa.string(), "message_count": pa.int32()}
    for schema in arrow_schemas:
        types |= {field.name: field.type for field in schema}
    if types.keys() != _COLUMNS.keys():
        raise ContractError(f"columns of Kafka rows differ: {sorted(types.keys() ^ _COLUMNS.keys())}")
    return pa.schema([pa.field(name, types[name]) for name in _COLUMNS])


def _check_batches(
    schema: pa.Schema, refusing: frozenset[str]
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def check(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows: list[dict[str, Any]] = []
            for record in batch.to_pylist():
                outcome, found = message_rows(Message(**record), refusing=refusing)
                for number, row in enumerate(found or [{}]):
                    rows.append({**row, "outcome": outcome, "message_count": int(number == 0)})
            yield pa.RecordBatch.from_pylist(rows, schema=schema)

    return check


def _parsed(value: bytes | None) -> Any:
    """The document of a message, or the Rejection of one that cannot be read."""
    if value is None:
        return Rejection(Reason.UNREADABLE, None, "the message has no value")
    try:
        document = parse_json(value)
    except ValueError as error:
        return Rejection(Reason.UNREADABLE, None, f"not JSON: {str(error)[:200]}")
    if is_nested_deeper(document, _MAX_DEPTH):
        detail = f"the message nests more than {MAX_NESTING} objects and lists inside one another"
        return Rejection(Reason.NESTED_TOO_DEEPLY, None, detail)
    return document


def _checked(event: Any, received_at: datetime) -> tuple[dict[str, Any], None] | tuple[None, Rejection]:
    if isinstance(event, Rejection):
        return None, event
    if isinstance(event, Mapping) and "sent_at" in event:
        event = corrected_for_skew(event, received_at=received_at)
    return check_event(event, received_at=received_at)


def _refuses_storing(event: Any, refusing: Collection[str]) -> bool:
    """The message says so itself, valid or not, or is of a user who said so before."""
    if not isinstance(event, Mapping):
        return False
    consent, user_id = event.get("consent"), event.get("user_id")
    return (isinstance(consent, Mapping) and consent.get("store") is False) or (
        isinstance(user_id, str) and user_id in refusing
    )


def _quarantine_row(message: Message, rejection: Rejection) -> dict[str, Any]:
    return {
        "raw": message.value or b"",
        "reason": rejection.reason.value,
        "field": rejection.field,
        "detail": rejection.detail,
        "source": message.source,
        "source_position": message.offset,
        "quarantined_at": message.timestamp,
    }
