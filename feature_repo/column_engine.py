"""Materialization by columns: the rows of a view on their way into Redis without an object for every value.

Feast's own engine makes a protobuf message of each value, and each message into bytes: most of the time of a
materialization. Here a column becomes bytes at once, and a row is one command. What lies in Redis is the same, byte by
byte (infra/adr/0006 has the layout); a test holds the two together. Anything but texts, whole numbers and doubles by
keys that are texts, into a single Redis, takes Feast's way.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.online_stores.helpers import _mmh3
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig, RedisType
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel

ROWS_AT_ONCE = 1_000
"""In one write to the socket: whoever asks the store meanwhile waits for them."""
_TEXT = 2
"""feast.types.ValueType.STRING"""


class ColumnComputeEngineConfig(FeastConfigBaseModel):
    """Nothing to configure."""

    type: Literal["feature_repo.column_engine.ColumnComputeEngine"] = "feature_repo.column_engine.ColumnComputeEngine"


class ColumnComputeEngine(LocalComputeEngine):
    """Feast's local engine, but for the way of plain rows into Redis."""

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **options: Any
    ) -> LocalMaterializationJob:
        rows = self._plain_rows(task)
        if rows is None:
            return super()._materialize_one(registry, task, **options)
        job_id = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
        try:
            self._write(task.feature_view, rows)
        except Exception as error:
            return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.ERROR, error=error)
        return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.SUCCEEDED)

    def _plain_rows(self, task: MaterializationTask) -> pa.Table | None:
        """The newest row of each entity within the task's time; None of what goes Feast's way."""
        view, config, store = task.feature_view, self.repo_config, self.repo_config.online_store
        source = getattr(view, "batch_source", None)
        is_plain = (
            type(view) is FeatureView
            and view.online
            and isinstance(self.online_store, RedisOnlineStore)
            and isinstance(store, RedisOnlineStoreConfig)
            and store.redis_type == RedisType.redis
            and bool(store.skip_dedup)
            and not store.key_ttl_seconds
            and config.entity_key_serialization_version == 3
        )
        if not is_plain or source is None or source.field_mapping:
            return None
        rows: pa.Table = self.offline_store.pull_latest_from_table_or_query(
            config=config,
            data_source=source,
            join_key_columns=list(view.join_keys),
            feature_name_columns=[feature.name for feature in view.features],
            timestamp_field=source.timestamp_field,
            created_timestamp_column=source.created_timestamp_column,
            start_date=task.start_time,
            end_date=task.end_time,
        ).to_arrow()
        types = {name: rows.schema.field(name).type for name in rows.column_names}
        features = [types[feature.name] for feature in view.features]
        keys_are_texts = all(pa.types.is_string(types[key]) for key in view.join_keys)
        return rows if keys_are_texts and all(map(_is_known, features)) else None

    def _write(self, view: FeatureView, rows: pa.Table) -> None:
        assert isinstance(self.online_store, RedisOnlineStore)  # as `_plain_rows` has found
        pool = self.online_store._get_client(self.repo_config.online_store).connection_pool
        for batch in rows.to_batches(max_chunksize=ROWS_AT_ONCE):
            commands = list(hset_commands(view, batch, project=self.repo_config.project))
            connection = pool.get_connection()
            try:
                connection.send_packed_command([b"".join(commands)])
                for _ in commands:
                    connection.read_response()
            except BaseException:
                connection.disconnect()  # answers that nobody has read would be taken for those of the next question
                raise
            finally:
                pool.release(connection)


def hset_commands(view: FeatureView, batch: pa.RecordBatch, *, project: str) -> Iterator[bytes]:
    """For each row the command that writes its features and its time stamp, as Redis reads it."""
    assert view.batch_source is not None
    names = [feature.name for feature in view.features]
    stamps = [_bulk(_timestamp(nanos)) for nanos in _nanos(batch[view.batch_source.timestamp_field])]
    parts = [_bulk(f"_ts:{view.name}".encode()), stamps]
    for name in names:
        parts += [_bulk(_mmh3(f"{view.name}:{name}")), [_bulk(value) for value in value_bytes(batch[name])]]
    head = b"*%d\r\n$4\r\nHSET\r\n" % (2 + 2 * (1 + len(names)))
    keys = [_bulk(key) for key in entity_keys(view.join_keys, batch, project=project)]
    columns = [[part] * batch.num_rows if isinstance(part, bytes) else part for part in parts]
    for key, *fields in zip(keys, *columns, strict=True):
        yield b"".join((head, key, *fields))


def entity_keys(join_keys: Sequence[str], batch: pa.RecordBatch, *, project: str) -> Iterator[bytes]:
    """The key of each row in Redis."""
    names = sorted(join_keys)
    head = struct.pack("<I", len(names)) + b"".join(_named(name.encode()) for name in names)
    columns = [[_named(text.encode()) for text in batch[name].to_pylist()] for name in names]
    for values in zip(*columns, strict=True):
        yield b"".join((head, *values, project.encode()))


def value_bytes(column: pa.Array) -> list[bytes]:
    """Each value as the bytes of a `feast.types.Value`; none of null, nor of NaN, which Feast takes for null."""
    values = column.to_pylist()
    if pa.types.is_string(column.type):
        return [b"" if v is None else _text(v.encode()) for v in values]
    if pa.types.is_floating(column.type):
        double = struct.Struct("<Bd").pack
        return [b"" if v is None or math.isnan(v) else double(0x29, v) for v in values]
    made: dict[int | None, bytes] = {None: b""}
    for value in set(values) - {None}:
        made[value] = b"\x20" + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    return [made[value] for value in values]


def _is_known(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_int64(kind) or pa.types.is_float64(kind))


def _nanos(column: pa.Array) -> list[int]:
    found: list[int] = pc.cast(pc.cast(column, pa.timestamp("ns", tz="UTC")), pa.int64()).to_pylist()
    return found


def _timestamp(nanos: int) -> bytes:
    """The bytes of a `google.protobuf.Timestamp`."""
    seconds, rest = divmod(nanos, 1_000_000_000)
    found = b"\x08" + _varint(seconds & 0xFFFF_FFFF_FFFF_FFFF) if seconds else b""
    return found + (b"\x10" + _varint(rest) if rest else b"")


def _text(value: bytes) -> bytes:
    return b"\x12" + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _named(text: bytes) -> bytes:
    return struct.pack("<II", _TEXT, len(text)) + text


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)
