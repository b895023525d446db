"""Imported by Python when it starts, where this folder is on PYTHONPATH; it acts in drivers of Spark alone.

Rows of a table that grows with the number of people or events can then be neither read nor written by the light engine
in that process: whoever tries gets an error, and the night fails.
"""

from __future__ import annotations

import os
from typing import Any

import deltalake

USER_SIZED = (
    "bronze/events", "bronze/users", "bronze/user_changes", "silver/", "gold/candidates",
    "gold/user_",
)  # fmt: skip


def _refuse(where: object) -> None:
    if any(name in str(where) for name in USER_SIZED):
        raise AssertionError(f"the driver of a cluster has its hands on the rows of {where}")


def _guard() -> None:
    dataset, write = deltalake.DeltaTable.to_pyarrow_dataset, deltalake.write_deltalake

    def to_pyarrow_dataset(table: deltalake.DeltaTable, *some: Any, **more: Any) -> Any:
        _refuse(table.table_uri)
        return dataset(table, *some, **more)

    def write_deltalake(where: Any, *some: Any, **more: Any) -> None:
        _refuse(getattr(where, "table_uri", where))
        write(where, *some, **more)

    deltalake.DeltaTable.to_pyarrow_dataset = to_pyarrow_dataset  # to_pyarrow_table asks it
    deltalake.write_deltalake = write_deltalake


if "PYSPARK_GATEWAY_PORT" in os.environ:  # set for the Python of a driver, not for that of an executor
    _guard()
