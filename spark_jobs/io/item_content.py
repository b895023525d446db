"""What the catalogue says of the items that have a number, as models read it."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from feature_repo.contracts.environment import Environment
from spark_jobs.io.light_delta import read_table
from spark_jobs.models.item_content import ITEM_COLUMNS, ItemContent, read_content


def load_content(
    environment: Environment, versions: Mapping[str, int], numbers: pa.Table, *, item_count: int
) -> ItemContent:
    """From `bronze.items` at its version (not named: nothing is said), as imported: changes over HTTP are left aside.

    `numbers` has the columns item_id and item_number.
    """
    rows = read_table(environment, "bronze.items", versions.get("bronze.items", -1), list(ITEM_COLUMNS))
    known = dict(zip(numbers["item_id"].to_pylist(), numbers["item_number"].to_pylist(), strict=True))
    return read_content(rows, known, item_count=item_count)
