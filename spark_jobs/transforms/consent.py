"""Who said no to what. A consent that nobody gave or refused (null) allows."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812


def users_denying(users: DataFrame, purpose: str) -> DataFrame:
    """Users whose `consent_<purpose>` in bronze.users is false. Returns: user_id string, distinct."""
    return users.filter(~F.col(f"consent_{purpose}")).select("user_id").distinct()


def denying_in(users: pa.Table, purpose: str) -> pa.Array:
    """`users_denying` of Arrow's rows: user_ids."""
    return users.filter(pc.equal(users[f"consent_{purpose}"], False))["user_id"].drop_null().unique().cast(pa.string())


def users_who_changed(before: DataFrame, after: DataFrame, purposes: tuple[str, ...]) -> DataFrame:
    """Users whose effective consent for one of `purposes` differs between two versions of bronze.users.

    A user in only one version changed when the other says no. Returns: user_id string, distinct.
    """
    changed = None
    for purpose in purposes:
        old, new = users_denying(before, purpose), users_denying(after, purpose)
        difference = old.subtract(new).union(new.subtract(old))
        changed = difference if changed is None else changed.union(difference)
    assert changed is not None
    return changed.distinct()
