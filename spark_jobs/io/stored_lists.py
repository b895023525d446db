"""The lists of one night on their way into Redis `online`: as they lie in gold.candidates, digested, packed and put.

They are read back from the table, not taken from where they were made: what is published is what the table says. Once
to digest them, because a version is named after what it holds, and once to write them. Without Spark: Arrow reads
and packs millions of rows a second in one process, and hands on a few thousand lists at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.publication import candidates_checksum
from spark_jobs.io.light_delta import arrow_schema, open_table, stream_rows
from spark_jobs.io.publication import NO_VERSION, Publication, candidates_digest
from spark_jobs.transforms.candidates import CANDIDATES_SCHEMA, pack_batch

LISTS_AT_ONCE = 2_000

_PACKED = CANDIDATES_SCHEMA.names[:8]
"""The columns that a record is made of."""


class Digested(NamedTuple):
    """What a manifest says of the lists."""

    user_count: int
    row_count: int
    checksum: str


class StoredLists:
    """The lists of `as_of`, of the table's newest version of now: what comes later is not seen."""

    def __init__(self, environment: Environment, as_of: date) -> None:
        self._table = open_table(environment, "gold.candidates")
        self._as_of = as_of

    def digest(self) -> Digested:
        """Count and digest them. Raises ContractError when the lists of a row differ in length."""
        users = rows = total = 0
        for batch in self._batches():
            users += batch.num_rows
            rows += len(batch["scores"].flatten())
            total += sum(candidates_digest(user_id, record) for user_id, record in pack_batch(NO_VERSION, batch))
        return Digested(users, rows, candidates_checksum([total]))

    def put(self, publication: Publication, version: str) -> int:
        """Write them under a version; how many. Raises DependencyError when Redis refuses or does not answer."""
        return sum(publication.put_records(version, pack_batch(version, batch)) for batch in self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        if self._table is None:
            return
        schema = arrow_schema("gold.candidates")
        wanted = pa.schema([schema.field(name) for name in _PACKED])
        of_day = pc.field("as_of") == pa.scalar(self._as_of, pa.date32())
        yield from stream_rows(self._table, wanted, of_day, rows_at_once=LISTS_AT_ONCE)
