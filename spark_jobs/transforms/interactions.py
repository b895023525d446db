"""Interactions: the events that tell a preference and may be learned from."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.events import DEFAULT_PREFERENCE_WEIGHTS
from feature_repo.contracts.tables import table


def select_interactions(assigned: DataFrame, denied_users: DataFrame) -> DataFrame:
    """Rows of silver.interactions from events with sessions (`assign_sessions`, so bots are gone already).

    Grain: one row per event of a type in DEFAULT_PREFERENCE_WEIGHTS that names an item. Left out: events that say
    consent_train = false themselves, and every event of a user in `denied_users` (one column, user_id). A null consent
    denies nothing. Refunds are no interactions and do not take the purchase back: the person did choose the item.
    """
    is_preference = F.col("event_type").isin(sorted(str(kind) for kind in DEFAULT_PREFERENCE_WEIGHTS))
    may_train = F.coalesce(F.col("consent_train"), F.lit(True))
    chosen = assigned.filter(is_preference & F.col("item_id").isNotNull() & may_train)
    allowed = chosen.join(F.broadcast(denied_users.select("user_id").distinct()), on="user_id", how="left_anti")
    return allowed.select(*table("silver.interactions").columns)
