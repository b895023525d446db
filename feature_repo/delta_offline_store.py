"""Feast's offline store on Delta tables, without a JVM.

Feast's own file store lists the Parquet files of a folder. A Delta folder also holds the files that a later commit
replaced: after a rerun of a night it would serve old rows beside new ones, and rows that were deleted. This store asks
the Delta log which files count, and reads only those whose time range is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from feast import FeatureView, FileSource, RepoConfig
from feast.data_format import DeltaFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskRetrievalJob
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _get_requested_feature_views_to_features_dict

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.object_store import ObjectStore

_INSTANT = "datetime64[ns, UTC]"


class DeltaOfflineStoreConfig(FeastConfigBaseModel):
    """Nothing to configure: paths come with the sources, credentials of object stores from the environment."""

    type: Literal["feature_repo.delta_offline_store.DeltaOfflineStore"] = (
        "feature_repo.delta_offline_store.DeltaOfflineStore"
    )


class DeltaRetrievalJob(DaskRetrievalJob):
    """A lazy read whose result is an Arrow table."""

    def __init__(
        self, evaluate: Callable[[], pa.Table], *, full_feature_names: bool, config: RepoConfig, **other: Any
    ) -> None:
        super().__init__(evaluate, full_feature_names, repo_path=str(config.repo_path), **other)

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:  # noqa: ARG002
        return self.evaluation_function().to_pandas()

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        return self.evaluation_function()


class DeltaOfflineStore(DaskOfflineStore):
    """For `FileSource`s with `DeltaFormat`; any other source raises DataError."""

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """The newest row of each entity with a time stamp in [start_date, end_date]."""
        order = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]

        def evaluate() -> pa.Table:
            columns = [*join_key_columns, *order, *feature_name_columns]
            rows = _read(config, data_source, columns, timestamp_field, start_date, end_date)
            stamps = rows.select([*join_key_columns, *order]).to_pandas().sort_values(order, kind="stable")
            newest = stamps.drop_duplicates(join_key_columns, keep="last").index.sort_values()
            return rows.take(pa.array(newest, pa.int64()))

        return DeltaRetrievalJob(evaluate, full_feature_names=False, config=config)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row with a time stamp in [start_date, end_date]."""
        columns = [*join_key_columns, timestamp_field, *feature_name_columns]
        columns += [created_timestamp_column] if created_timestamp_column else []
        return DeltaRetrievalJob(
            lambda: _read(config, data_source, columns, timestamp_field, start_date, end_date),
            full_feature_names=False,
            config=config,
        )

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
        registry: BaseRegistry,  # noqa: ARG004
        project: str,  # noqa: ARG004
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,  # noqa: ARG004
        **kwargs: Any,  # noqa: ARG004
    ) -> RetrievalJob:
        """Point-in-time join: for each entity row the newest features at or before its instant, not older than the ttl.

        Rows keep their order; an entity that was not known then has nulls. Only a pandas frame of entities is taken.
        """
        moment = DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
        if not isinstance(entity_df, pd.DataFrame) or moment not in entity_df.columns:
            raise DataError(
                f"historical features need a pandas DataFrame of entities with a column {moment}, "
                f"got {type(entity_df).__name__}",
                field="entity_df",
            )
        wanted, _ = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, [])
        moments = pd.to_datetime(entity_df[moment], utc=True).astype(_INSTANT)

        def evaluate() -> pa.Table:
            rows = entity_df.assign(**{moment: moments})
            for view, features in wanted.items():
                rows = _join_as_of(config, rows, view, features, full_feature_names)
            return pa.Table.from_pandas(rows, preserve_index=False)

        metadata = RetrievalMetadata(
            features=feature_refs,
            keys=[column for column in entity_df.columns if column != moment],
            min_event_timestamp=moments.min(),
            max_event_timestamp=moments.max(),
        )
        return DeltaRetrievalJob(evaluate, full_feature_names=full_feature_names, config=config, metadata=metadata)


def _join_as_of(
    config: RepoConfig, rows: pd.DataFrame, view: FeatureView, features: Sequence[str], full_feature_names: bool
) -> pd.DataFrame:
    source, moment = view.batch_source, DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
    assert source is not None
    stamp = source.timestamp_field
    keys = {column.name: view.projection.join_key_map.get(column.name, column.name) for column in view.entity_columns}
    names = {name: f"{view.projection.name_to_use()}__{name}" if full_feature_names else name for name in features}
    earliest = rows[moment].min() - view.ttl if view.ttl else None
    facts = _read(config, source, [*keys, stamp, *features], stamp, earliest, rows[moment].max()).to_pandas()
    facts = facts.rename(columns={**keys, **names}).astype({stamp: _INSTANT})
    joined = pd.merge_asof(
        rows.assign(_row=range(len(rows))).sort_values(moment, kind="stable"),
        facts.sort_values(stamp, kind="stable"),
        left_on=moment,
        right_on=stamp,
        by=list(keys.values()),
        tolerance=view.ttl or None,
    )
    return joined.sort_values("_row").drop(columns=["_row", stamp]).reset_index(drop=True)


def _read(
    config: RepoConfig,
    source: DataSource,
    columns: Sequence[str],
    timestamp_field: str,
    start: datetime | None,
    end: datetime | None,
) -> pa.Table:
    """Rows of the newest Delta version with a time stamp in [start, end]."""
    if not isinstance(source, FileSource) or not isinstance(source.file_format, DeltaFormat):
        raise DataError(f"the offline store reads Delta tables, source {source.name!r} is not one", field="source")
    stamp = pc.field(timestamp_field)
    condition = pc.scalar(True)
    if start is not None:
        condition &= stamp >= _instant(start)
    if end is not None:
        condition &= stamp <= _instant(end)
    uri = FileSource.get_uri_for_file_path(config.repo_path, source.file_options.uri)
    store = ObjectStore.of(uri, os.environ)
    table = DeltaTable(uri, storage_options=None if store is None else store.light_options())
    wanted = list(dict.fromkeys(columns))
    stored = {field.name for field in table.schema().fields}
    rows = table.to_pyarrow_table(columns=[name for name in wanted if name in stored], filters=condition)
    for name in wanted:
        if name not in stored:  # defined since the last night: its values come with the next one
            rows = rows.append_column(name, pa.nulls(rows.num_rows))
    return rows.select(wanted)


def _instant(moment: datetime) -> pa.Scalar:
    """Feast gives aware and naive datetimes; naive ones are UTC."""
    stamp = pd.Timestamp(moment)
    aware = stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")
    return pa.scalar(aware.to_pydatetime(), pa.timestamp("us", tz="UTC"))
