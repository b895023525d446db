"""The few events of many that decide when something was first and last said, in Arrow."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

MOMENT = "event_timestamp"


def first_and_last(events: pa.Table, names: Sequence[str]) -> pa.Table:
    """Of the events that say the same in `names`, the first and the last: `names` and event_timestamp.

    Who asks only for the smallest and the largest event_timestamp, alone or by any of `names`, gets the same answer
    from these rows. Those of parts, put together, may be asked again.
    """
    said = events.group_by(list(names)).aggregate([(MOMENT, "min"), (MOMENT, "max")])
    ends = [said.select(names).append_column(MOMENT, said[f"{MOMENT}_{end}"]) for end in ("min", "max")]
    return pa.concat_tables(ends)


def sightings(events: pa.Table, names: Sequence[str]) -> pa.Table:
    """`first_and_last` of the events that name both a user and a device: all that
    `identity.identity_edges` asks for."""
    both = pc.and_(pc.is_valid(events["user_id"]), pc.is_valid(events["anonymous_id"]))
    return first_and_last(events.filter(both), names)
