"""Where the values come from: the gold Delta tables of this installation's lakehouse."""

from __future__ import annotations

import os

from feast import FileSource
from feast.data_format import DeltaFormat

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.tables import table, table_path


def gold_source(name: str) -> FileSource:
    """The Delta table `name` as a Feast source. Rows are stamped with the as_of of the run that made them."""
    env = Environment.from_mapping(os.environ)
    return FileSource(
        name=name.replace(".", "_"),
        path=table_path(env.lakehouse, name, tenant=env.tenant),
        file_format=DeltaFormat(),
        timestamp_field="feature_timestamp",
        description=table(name).grain,
    )
