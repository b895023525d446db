"""What the night before left of its lists and neighbours, at the versions that the run pinned.

Only the partition of the day before counts, never the run's own: a night that runs again finds what it found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import Run
from spark_jobs.io.light_delta import arrow_schema, open_table, stream_rows
from spark_jobs.transforms.candidates import Scoring
from spark_jobs.transforms.touched import Digests, MadeBy, Untouched, untouched

LISTS, NEIGHBOURS = "gold.candidates", "gold.item_neighbours"
_LISTS_AT_ONCE = 32_768


def day_before(run: Run) -> date:
    return run.as_of_day - timedelta(days=1)


def stored_rows(
    environment: Environment, run: Run, name: str, columns: Sequence[str], *, rows_at_once: int = 131_072
) -> Iterator[pa.RecordBatch]:
    """The rows of the day before, batch by batch; none where the run pinned no such table. Columns that the stored
    table does not have yet are null."""
    found = open_table(environment, name, run.pins.get(name, -1))
    if found is None:
        return
    wanted = pa.schema([arrow_schema(name).field(column) for column in columns])
    of_day = pc.field("as_of") == pa.scalar(day_before(run), pa.date32())
    yield from stream_rows(found, wanted, of_day, rows_at_once=rows_at_once)


def differences(environment: Environment, run: Run, tonight: MadeBy, numbers: pa.Table) -> list[str] | None:
    """How what made the lists of the day before differs from what makes tonight's, in words; None: there are no lists.

    `numbers` are all item numbers of now.
    """
    said: set[str | None] = set()
    rows = 0
    for batch in stored_rows(environment, run, LISTS, ["made_by"]):
        rows += batch.num_rows
        said.update(pc.unique(batch["made_by"]).to_pylist())
    if not rows:
        return None
    texts = sorted(text for text in said if text is not None)  # who was denied has no list that anything made
    found = [tonight.other_than(text, numbers) for text in texts] or [tonight.other_than(None, numbers)]
    return sorted({words for one in found for words in one})


def untouched_users(environment: Environment, run: Run, scoring: Scoring) -> Untouched:
    """Whose list of the day before still holds, of those who would be scored."""
    assert scoring.digests is not None
    stored = stored_rows(environment, run, LISTS, ["user_id", "item_numbers", "history_digest", "scored_as_of"])
    tonight = Digests(scoring.user_ids, scoring.digests)
    return untouched(stored, tonight, scoring.eligible, key="user_id", listed="item_numbers", as_of=run.as_of_day)


def kept_lists(environment: Environment, run: Run, users: NDArray[np.str_], made: str) -> Iterator[pa.RecordBatch]:
    """The rows of these users of the day before, as rows of the run: as_of and made_by are its own."""
    schema, names = arrow_schema(LISTS), pa.array(users.tolist(), pa.string())
    for batch in stored_rows(environment, run, LISTS, schema.names, rows_at_once=_LISTS_AT_ONCE):
        kept = batch.filter(pc.is_in(batch["user_id"], value_set=names))
        own = {"as_of": [run.as_of_day], "made_by": [made]}
        columns = [
            pa.array(own[field.name] * kept.num_rows, field.type) if field.name in own else kept[field.name]
            for field in schema
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def stored_neighbours(environment: Environment, run: Run, tonight: MadeBy, numbers: pa.Table) -> pa.Table:
    """The neighbours of the day before that were made as tonight's are."""
    columns = [name for name in arrow_schema(NEIGHBOURS).names if name != "as_of"]
    wanted = pa.schema([arrow_schema(NEIGHBOURS).field(column) for column in columns])
    rows = pa.Table.from_batches(stored_rows(environment, run, NEIGHBOURS, columns), wanted)
    alike = [text for text in pc.unique(rows["made_by"]).to_pylist() if not tonight.other_than(text, numbers)]
    return rows.filter(pc.is_in(rows["made_by"], value_set=pa.array(alike, pa.string())))
