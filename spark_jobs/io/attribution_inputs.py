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
    arm_name,
    explode_slots,
)

_TIMESTAMP = pa.timestamp("us", tz="UTC")
_ONE_DAY = timedelta(days=1)
_DECISION_COLUMNS = ("recommendation_id", "subject_key", "placement", "model_version", "fallback_level")


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
            **{name: pc.field(name) for name in (*_DECISION_COLUMNS[2:], "experiment_ids", "arms")},
            "metric_date": pc.field("decision_date"),
            "item_count": pc.list_value_length(pc.field("item_ids")),
        }
        wanted = pc.field("decision_date").isin(sorted(days)) & _before(cut_off)
        for batch in table.to_pyarrow_dataset().scanner(columns=dict(columns), filter=wanted).to_batches():
            rows = _with_arms(batch.to_pandas())
            parts.append(rows.groupby(key).size().rename("decisions").reset_index())
    stacked = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    return stacked.groupby(key, as_index=False)["decisions"].sum()


def read_slots(
    environment: Environment, version: int, first: date, last: date, cut_off: datetime, events: Interactions
) -> pd.DataFrame:
    """The slots that `events` can belong to: decisions they name, from ID_WINDOW before `first` on, and decisions for
    their subjects, until ID_WINDOW after `last` (a later touch takes an outcome away from an earlier one)."""
    ids = pd.concat([events.outcomes["recommendation_id"], events.impressions["recommendation_id"]]).dropna().unique()
    subjects = events.outcomes["subject_key"].dropna().unique()
    table = open_table(environment, "silver.decisions", version)
    parts = []
    if table is not None:
        columns = [*_DECISION_COLUMNS, "decided_at", "decision_date", "item_ids", "experiment_ids", "arms"]
        wanted = (
            (pc.field("decision_date") >= first - ID_WINDOW)
            & (pc.field("decision_date") <= last + _ONE_DAY + ID_WINDOW)
            & _before(cut_off)
            & (
                pc.field("recommendation_id").isin(pa.array(ids, pa.string()))
                | pc.field("subject_key").isin(pa.array(subjects, pa.string()))
            )
        )
        for batch in table.to_pyarrow_dataset().scanner(columns=columns, filter=wanted).to_batches():
            found = pa.table(batch)
            rows = _with_arms(found.drop_columns(["decided_at"]).to_pandas())
            at = found["decided_at"].cast(pa.int64()).to_pandas().to_numpy()
            parts.append(rows.rename(columns={"decision_date": "metric_date"}).assign(decided_at=at))
    if not parts:
        names = [*_DECISION_COLUMNS, "metric_date", "item_ids", "arm"]
        empty = pd.DataFrame({name: pd.Series(dtype=object) for name in names})
        parts = [empty.assign(decided_at=pd.Series(dtype="int64"))]
    return explode_slots(pd.concat(parts, ignore_index=True))


def _before(cut_off: datetime) -> pc.Expression:
    return pc.field("decided_at") < pa.scalar(cut_off, _TIMESTAMP)


def _with_arms(rows: pd.DataFrame) -> pd.DataFrame:
    arms = [arm_name(ids, arms) for ids, arms in zip(rows["experiment_ids"], rows["arms"], strict=True)]
    return rows.assign(arm=arms).drop(columns=["experiment_ids", "arms"])
