"""The Delta tables: where they lie, their columns, how they are partitioned, who writes them.

Types are Spark's simple type strings; timestamps are UTC microseconds. Every table has exactly one writing process.
Table features are pinned so that Spark and the light reader both read: no deletion vectors, no row tracking.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from feature_repo.contracts.errors import ContractError, nearest
from feature_repo.contracts.feature_table import FEATURE_VIEWS
from feature_repo.contracts.keys import check_tenant

TABLE_PROPERTIES: Mapping[str, str] = {
    "delta.enableDeletionVectors": "false",
    "delta.enableRowTracking": "false",
    "delta.checkpointPolicy": "classic",
    "delta.logRetentionDuration": "interval 30 days",
    "delta.deletedFileRetentionDuration": "interval 30 days",
}


class TableSpec(NamedTuple):
    """`name` is `<layer>.<table>`; `columns` maps name to type, in order; `grain` says what one row is.

    `volatile` columns hold run ids and processing times: they are left out when two runs are compared.
    `ranged` columns are those whose smallest and largest values the log keeps for each file; empty: all. Only tables
    that are made anew take it up.
    """

    name: str
    grain: str
    writer: str
    columns: Mapping[str, str]
    partition_by: tuple[str, ...] = ()
    volatile: tuple[str, ...] = ()
    ranged: tuple[str, ...] = ()

    @property
    def properties(self) -> dict[str, str]:
        """What the stored table is told when it is made."""
        own = {"delta.dataSkippingStatsColumns": ",".join(self.ranged)} if self.ranged else {}
        return {**TABLE_PROPERTIES, **own}


_EVENT_COLUMNS: Mapping[str, str] = {
    "event_id": "string", "event_type": "string", "user_id": "string", "anonymous_id": "string",
    "session_id": "string", "item_id": "string", "event_timestamp": "timestamp", "received_at": "timestamp",
    "quantity": "int", "price": "double", "value": "double", "currency": "string", "recommendation_id": "string",
    "placement": "string", "channel": "string", "consent_train": "boolean", "consent_personalize": "boolean",
    "properties": "string", "source": "string", "source_position": "bigint", "event_date": "date",
}  # fmt: skip
"""`properties` is JSON text. consent_* is null when the event did not say. `source` is a file name, a stream
partition (and `#<number>` of the event in an entry of several) or `kafka:<topic>/<partition>`, and `source_position`
the line, stream position or offset in it: (source, source_position) names one delivery.
`event_date` is the UTC day of `event_timestamp`."""

_BY_SUBJECT = ("subject_key",)
"""What large tables are laid out by. The ranges of their other columns cover every file, and cost a fifth of writing."""

_QUARANTINE_COLUMNS: Mapping[str, str] = {
    "raw": "binary", "reason": "string", "field": "string", "detail": "string", "source": "string",
    "source_position": "bigint", "quarantined_at": "timestamp",
}  # fmt: skip


def _change_columns(id_field: str) -> Mapping[str, str]:
    return {
        id_field: "string", "operation": "string", "fields": "string", "changed_at": "timestamp",
        "received_at": "timestamp", "source": "string", "source_position": "bigint",
    }  # fmt: skip


# Of lists and neighbours: `history_digest` names the interactions they were made from, `made_by` says what else made them
# (`transforms.touched`), `scored_as_of` the night that did; later nights may have copied them. `shares` of a list are packed
# (`contracts.list_shares`); null: nobody told. `cold_as_of` of a vector is the night whose fit began from nothing; `recipe`
# is a `recipe_id`.
_TABLES = (
    TableSpec("bronze.events", "one delivery of one event", "archiver", _EVENT_COLUMNS, ("event_date",), ("received_at",)),
    TableSpec("bronze.events_import", "one imported event line", "importer", _EVENT_COLUMNS, ("event_date",), ("received_at",)),
    TableSpec("bronze.events_kafka", "one delivery of one event in a Kafka topic", "stream_kafka", _EVENT_COLUMNS, ("event_date",), ("received_at",)),
    TableSpec("bronze.quarantine", "one rejected event of the API", "archiver", _QUARANTINE_COLUMNS, (), ("quarantined_at",)),
    TableSpec("bronze.quarantine_import", "one rejected import line", "importer", _QUARANTINE_COLUMNS, (), ("quarantined_at",)),
    TableSpec("bronze.quarantine_kafka", "one rejected Kafka message", "stream_kafka", _QUARANTINE_COLUMNS, (), ("quarantined_at",)),
    TableSpec("bronze.quarantine_replays", "one attempt to mend one quarantined event", "importer", {
        "quarantine_id": "string", "quarantine_table": "string", "source": "string", "source_position": "bigint",
        "event_id": "string", "subject_key": "string", "outcome": "string", "reason": "string", "detail": "string",
        "repair": "string", "replayed_at": "timestamp",
    }, (), ("replayed_at",)),
    TableSpec("bronze.items", "one item, as last imported", "importer", {
        "item_id": "string", "title": "string", "category": "string", "brand": "string", "price": "double",
        "currency": "string", "availability": "string", "available_quantity": "int", "created_at": "timestamp",
        "expire_time": "timestamp", "is_hidden": "boolean", "url": "string", "image_url": "string", "attributes": "string",
        "source": "string",
    }),
    TableSpec("bronze.users", "one user, as last imported", "importer", {
        "user_id": "string", "region": "string", "consent_store": "boolean", "consent_train": "boolean",
        "consent_personalize": "boolean", "consent_share": "boolean", "attributes": "string",
        "created_at": "timestamp", "source": "string",
    }),
    TableSpec("bronze.item_changes", "one change of one item through the API", "archiver", _change_columns("item_id")),
    TableSpec("bronze.user_changes", "one change of one user through the API", "archiver", _change_columns("user_id")),
    TableSpec("silver.events", "one event (event_id is unique)", "refine_events",
              {**_EVENT_COLUMNS, "subject_key": "string", "is_bot": "boolean"}, ("event_date",), ("received_at",), _BY_SUBJECT),
    TableSpec("silver.quarantine", "one bronze event that the nightly gate refused", "refine_events",
              {**_QUARANTINE_COLUMNS, "event_date": "date"}, ("event_date",), ("quarantined_at",)),
    TableSpec("silver.quality_flags", "one rule on sequences (`contracts.sequences`) that one event breaks", "refine_events", {
        "event_id": "string", "subject_key": "string", "rule": "string", "event_date": "date",
    }, ("event_date",)),
    TableSpec("silver.interactions", "one event that tells a preference (item known, train allowed, no bot)", "refine_events", {
        "event_id": "string", "subject_key": "string", "user_id": "string", "item_id": "string", "event_type": "string",
        "event_timestamp": "timestamp", "quantity": "int", "price": "double", "session_key": "string",
        "event_date": "date",
    }, ("event_date",), (), _BY_SUBJECT),
    TableSpec("silver.sessions", "one session of one subject", "refine_events", {
        "session_key": "string", "subject_key": "string", "user_id": "string", "session_id": "string",
        "started_at": "timestamp", "ended_at": "timestamp", "event_count": "bigint", "item_count": "bigint",
        "duration_seconds": "double", "has_purchase": "boolean", "session_date": "date",
    }, ("session_date",), (), _BY_SUBJECT),
    TableSpec("silver.identity_edges", "one edge: an anonymous_id and a user_id that were seen together", "refine_events", {
        "anonymous_id": "string", "user_id": "string", "subject_key": "string", "is_alias": "boolean",
        "first_seen_at": "timestamp", "last_seen_at": "timestamp", "undone_at": "timestamp", "event_date": "date",
    }),
    TableSpec("silver.decisions", "one answer: what was shown to whom, from what (recommendation_id is unique)", "archiver", {
        "recommendation_id": "string", "decided_at": "timestamp", "kind": "string", "placement": "string",
        "subject_key": "string", "session_hash": "string", "model_version": "string", "fallback_level": "string",
        "fallback_reason": "string", "degraded_reasons": "array<string>", "item_ids": "array<string>",
        "item_numbers": "array<int>", "scores": "array<float>", "sources": "array<string>",
        "rule_ids": "array<array<string>>", "propensities": "array<double>", "experiment_ids": "array<string>",
        "arms": "array<string>", "inputs": "string", "source": "string", "source_position": "bigint",
        "decision_date": "date",
    }, ("decision_date",), ("source", "source_position")),
    TableSpec("silver.impressions", "one item of one decision that the client says was seen", "attribute_events", {
        "recommendation_id": "string", "item_id": "string", "position": "int", "placement": "string",
        "model_version": "string", "subject_key": "string", "first_seen_at": "timestamp", "deliveries": "bigint",
        "decision_date": "date",
    }, ("decision_date",)),
    TableSpec("gold.item_ids", "one item; numbers are appended, never reused", "build_features", {
        "item_id": "string", "item_number": "int", "first_as_of": "date",
    }),
    *(TableSpec(view.table, view.row, "build_features", view.columns(), ("as_of",)) for view in FEATURE_VIEWS.values()),
    TableSpec("gold.evaluations", "one metric of one model on one slice at one as_of", "train_models", {
        "model": "string", "slice": "string", "metric": "string", "k": "int", "value": "double", "user_count": "bigint",
        "as_of": "date", "run_key": "string",
    }, ("as_of",), ("run_key",)),
    TableSpec("gold.candidates", "one user's ranked candidates at one as_of", "score_users", {
        "user_id": "string", "item_numbers": "array<int>", "scores": "array<float>", "sources": "array<int>",
        "first_reasons": "array<int>", "second_reasons": "array<int>", "allows_personalize": "boolean", "shares": "binary",
        "history_digest": "string", "made_by": "string", "scored_as_of": "date", "as_of": "date",
    }, ("as_of",)),
    TableSpec("gold.item_neighbours", "one item's neighbours at one as_of", "score_users", {
        "item_number": "int", "neighbour_numbers": "array<int>", "similarities": "array<float>",
        "history_digest": "string", "made_by": "string", "scored_as_of": "date", "as_of": "date",
    }, ("as_of",)),
    TableSpec("gold.item_factors", "one item's vector in one factorization at one as_of", "score_users", {
        "recipe": "string", "item_number": "int", "vector": "array<float>", "cold_as_of": "date", "as_of": "date",
    }, ("as_of",)),
    TableSpec("gold.session_index", "what one item leads to in sessions, at one as_of", "score_users", {
        "item_number": "int", "next_numbers": "array<int>", "weights": "array<float>", "as_of": "date",
    }, ("as_of",)),
    TableSpec("gold.metrics_daily", "one place of the slates of one day, placement, version, fallback level and arm", "attribute_events", {
        "metric_date": "date", "placement": "string", "model_version": "string", "fallback_level": "string", "arm": "string",
        "position": "int", "decisions": "bigint", "impressions": "bigint", "clicked_impressions": "bigint",
        "converted_impressions": "bigint", "clicks": "bigint", "carts": "bigint", "purchases": "bigint", "refunds": "bigint",
        "currencies": "array<string>", "revenues": "array<double>", "refunded": "array<double>", "is_complete": "boolean",
        "as_of": "date",
    }, ("metric_date",)),
)  # fmt: skip

TABLES: Mapping[str, TableSpec] = {t.name: t for t in _TABLES}

LIGHT_WRITERS = frozenset({"archiver", "importer", "attribute_events"})
"""Writers without a JVM: Spark reads their tables, and never compacts or vacuums them."""

OWN_UPKEEP = LIGHT_WRITERS | {"stream_kafka"}
"""Writers that compact and vacuum their tables themselves: the job maintain_tables leaves those alone."""


def table(name: str) -> TableSpec:
    """The spec of `<layer>.<table>`. Raises ContractError naming the nearest table."""
    if name not in TABLES:
        raise ContractError(f"no table {name!r}{nearest(name, TABLES)}")
    return TABLES[name]


def table_path(lakehouse: str, name: str, *, tenant: str = "default") -> str:
    """`<lakehouse>/<tenant>/<layer>/<table>`; the lakehouse may be a local folder or an object-store URL."""
    layer, _, short = table(name).name.partition(".")
    return "/".join((lakehouse.rstrip("/"), check_tenant(tenant), layer, short))
