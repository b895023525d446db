"""What attribution reads: decisions batch by batch, and of events only those that can matter. No JVM.

Memory grows with the outcomes and impressions of the days asked for, not with the number of answers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, datetime, timedelta
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.events import EventType
from spark_jobs.io.light_delta import open_table
from spark_jobs.transforms.attribution import (
    GROUP,
    ID_CLOCK_SLACK,
    ID_WINDOW,
    OUTCOME_OF,
    SLOT,
    SLOT_COLUMNS,
    arm_name,
    asked_slots,
    distinct_slots,
    explode_slots,
)

_TIMESTAMP = pa.timestamp("us", tz="UTC")
_ONE_DAY = timedelta(days=1)
_GROUP_COLUMNS = ("placement", "model_version", "fallback_level")
_ARM_COLUMNS = ("experiment_ids", "arms")
_DTYPES = {"decided_at": "int64", "position": "int64"}


class Interactions(NamedTuple):
    """Events as `transforms.attribution` wants them; the counts are of what came in the days read."""

    outcomes: pd.DataFrame
    impressions: pd.DataFrame


def read_interactions(environment: Environment, first: date, last: date, cut_off: datetime) -> Interactions:
    """Outcomes and impressions that can belong to decisions of `first` to `last`: of no bot, before `cut_off`."""
    types = [*OUTCOME_OF, EventType.IMPRESSION.value]
    columns = [
        "event_id", "event_type", "subject_key", "item_id", "recommendation_id", "event_timestamp", "quantity", "price",
        "currency",
    ]  # fmt: skip
    table = open_table(environment, "silver.events")
    if table is None:
        rows = pd.DataFrame({name: pd.Series(dtype=object) for name in columns})
        at = pd.Series(dtype="int64")
    else:
        wanted = (
            (pc.field("event_date") >= first - ID_CLOCK_SLACK)
            & (pc.field("event_date") <= last + _ONE_DAY + ID_WINDOW)
            & (pc.field("event_timestamp") < pa.scalar(cut_off, _TIMESTAMP))
            & pc.field("event_type").isin(types)
            & pc.field("item_id").is_valid()
            & ~pc.coalesce(pc.field("is_bot"), pc.scalar(False))
        )
        found = table.to_pyarrow_dataset().to_table(columns=columns, filter=wanted)
        at = found["event_timestamp"].cast(pa.int64()).to_pandas()
        rows = found.drop_columns(["event_timestamp"]).to_pandas()
    rows = rows.assign(at=at.to_numpy())
    is_impression = rows["event_type"] == EventType.IMPRESSION.value
    outcomes = rows[~is_impression]
    price, quantity = pd.to_numeric(outcomes["price"]), pd.to_numeric(outcomes["quantity"])
    outcomes = outcomes.assign(
        outcome=outcomes["event_type"].map(dict(OUTCOME_OF)), amount=price * quantity.fillna(1)
    )  # fmt: skip
    impressions = rows[is_impression].rename(columns={"subject_key": "seen_by"})
    kept = ["event_id", "outcome", "subject_key", "item_id", "recommendation_id", "at", "amount", "currency"]
    return Interactions(
        outcomes[kept].sort_values("event_id", ignore_index=True),
        impressions[["event_id", *SLOT, "seen_by", "at"]].reset_index(drop=True),
    )


def read_answers(environment: Environment, version: int, days: Collection[date], cut_off: datetime) -> pd.DataFrame:
    """GROUP, item_count, decisions: how many answers of so many items there were on `days`."""
    table = open_table(environment, "silver.decisions", version)
    key = [*GROUP, "item_count"]
    parts = [pd.DataFrame({name: pd.Series(dtype=object) for name in [*key, "decisions"]})]
    if table is not None:
        columns: Mapping[str, pc.Expression] = {
            **{name: pc.field(name) for name in (*_GROUP_COLUMNS, *_ARM_COLUMNS)},
            "metric_date": pc.field("decision_date"),
            "item_count": pc.list_value_length(pc.field("item_ids")),
        }
        wanted = pc.field("decision_date").isin(sorted(days)) & _before(cut_off)
        for batch in table.to_pyarrow_dataset().scanner(columns=dict(columns), filter=wanted).to_batches():
            counted = _with_arms(pa.table(batch)).group_by(key).aggregate([([], "count_all")])
            parts.append(counted.rename_columns([*key, "decisions"]).to_pandas())
    stacked = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    return stacked.groupby(key, as_index=False)["decisions"].sum()


def read_slots(
    environment: Environment, version: int, first: date, last: date, cut_off: datetime, events: Interactions
) -> pd.DataFrame:
    """The slots that `events` can belong to: decisions they name, from ID_WINDOW before `first` on, and decisions for
    their subjects, until ID_WINDOW after `last` (a later touch takes an outcome away from an earlier one)."""
    table = open_table(environment, "silver.decisions", version)
    names = ["recommendation_id", "subject_key", *_GROUP_COLUMNS, "item_ids"]
    asked = asked_slots(events.outcomes, events.impressions)
    parts = [pd.DataFrame({name: pd.Series(dtype=_DTYPES.get(name, object)) for name in SLOT_COLUMNS})]
    if table is not None:
        columns: Mapping[str, pc.Expression] = {
            **{name: pc.field(name) for name in (*names, *_ARM_COLUMNS)},
            "metric_date": pc.field("decision_date"),
            "decided_at": pc.field("decided_at").cast(pa.int64()),
        }
        wanted = (
            (pc.field("decision_date") >= first - ID_WINDOW)
            & (pc.field("decision_date") <= last + _ONE_DAY + ID_WINDOW)
            & _before(cut_off)
        )
        for batch in table.to_pyarrow_dataset().scanner(columns=dict(columns), filter=wanted).to_batches():
            parts.append(explode_slots(_with_arms(pa.table(batch)), asked))
    return distinct_slots(pd.concat([part for part in parts if len(part)] or parts, ignore_index=True))


def _before(cut_off: datetime) -> pc.Expression:
    return pc.field("decided_at") < pa.scalar(cut_off, _TIMESTAMP)


def _with_arms(rows: pa.Table) -> pa.Table:
    if pc.max(pc.list_value_length(rows["experiment_ids"])).as_py():
        pairs = zip(rows["experiment_ids"].to_pylist(), rows["arms"].to_pylist(), strict=True)
        arms = pa.array([arm_name(ids, arms) for ids, arms in pairs], pa.string())
    else:  # nobody is in an experiment
        arms = pa.array([""] * rows.num_rows, pa.string())
    return rows.drop_columns(list(_ARM_COLUMNS)).append_column("arm", arms)
