"""How far the filters of placements reach: which items of the catalogue pass, and what they leave of people's lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.filter_language import (
    PERSON_FIELDS,
    TIME,
    All,
    AnyOf,
    Constant,
    Expression,
    IsMissing,
    Not,
    parse_filter,
)
from spark_jobs.transforms.filter_columns import filter_column

LIST_COUNTS = "filter_number int, num_results int, lists long, short_lists long, empty_lists long"


class Filter(NamedTuple):
    """A filter of a placement whose slates have so many items."""

    text: str
    num_results: int


def answer_to_nobody(expression: Expression) -> bool | None:
    """Whether an expression lets every item in, or none, where nobody in particular asks: nothing is in a cart, bought
    or seen. None when it depends on the item."""
    match expression:
        case Constant(holds):
            return holds
        case Not(part):
            answer = answer_to_nobody(part)
            return None if answer is None else not answer
        case All(parts) | AnyOf(parts):
            decides = isinstance(expression, AnyOf)  # one such part decides, whatever the others say
            answers = {answer_to_nobody(part) for part in parts}
            return decides if decides in answers else None if None in answers else not decides
        case _:
            return isinstance(expression, IsMissing) if expression.field in PERSON_FIELDS else None


def passing_items(items: DataFrame, texts: Sequence[str], *, now: datetime) -> DataFrame:
    """Which filters let an item in, where nobody in particular asks: nothing is in a cart, bought or seen.

    Grain: one row per row of `items` (the columns of bronze.items). `now`: what ago("30d") counts back from, UTC.

    Returns:
        item_id string, passes_0, passes_1 ... boolean in the order of `texts`, never null.
    """
    for name, kind in PERSON_FIELDS.items():
        items = items.withColumn(name, F.lit(None).cast("timestamp" if kind == TIME else "boolean"))
    said = [filter_column(parse_filter(text), now=now).alias(f"passes_{at}") for at, text in enumerate(texts)]
    return items.select("item_id", *said)


def reach_by_number(passing: pa.Table, filter_count: int, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """By filter and item number: the item may be published, and passes. `passing`: item_number and `passing_items`."""
    reach = np.zeros((filter_count, len(eligible)), bool)
    numbers = passing["item_number"].to_numpy()
    for at in range(filter_count):
        reach[at, numbers] = passing[f"passes_{at}"].to_numpy()
    return reach & eligible


def count_lists(lists: DataFrame, filters: Sequence[Filter], reach: NDArray[np.bool_]) -> DataFrame:
    """What filters leave of lists, partly summed: add up the rows of a filter.

    lists  gold.candidates of one as_of. Empty lists, such as those of people who said no, are not counted
    reach  `reach_by_number` of the filters

    Returns:
        filter_number int (the place in `filters`), num_results int, lists long, short_lists long (with fewer passing
        items than a slate has), empty_lists long (with none).
    """
    sizes = [one.num_results for one in filters]

    def counted(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            column = batch.column(0)
            numbers = column.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
            ends = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))]).astype(int)
            is_list = np.diff(ends) > 0
            rows: list[dict[str, Any]] = []
            for at, size in enumerate(sizes):
                passed = np.concatenate([[0], np.cumsum(reach[at][numbers])])
                left = (passed[ends[1:]] - passed[ends[:-1]])[is_list]
                rows.append(
                    {
                        "filter_number": at,
                        "num_results": size,
                        "lists": len(left),
                        "short_lists": int((left < size).sum()),
                        "empty_lists": int((left == 0).sum()),
                    }
                )
            yield pa.RecordBatch.from_pylist(rows, schema=_COUNTS)

    has_items = F.size("item_numbers") > 0
    return lists.where(has_items).select("item_numbers").mapInArrow(counted, LIST_COUNTS)


_COUNTS = pa.schema(
    [("filter_number", pa.int32()), ("num_results", pa.int32())]
    + [(name, pa.int64()) for name in ("lists", "short_lists", "empty_lists")]
)


def placement_lines(
    filters: Mapping[str, Filter], reach: NDArray[np.bool_], eligible: NDArray[np.bool_], counts: Sequence[Any]
) -> list[dict[str, Any]]:
    """What a report says of each placement with a filter, by name. `counts`: rows of `count_lists`, of the filters in
    their order; of a filter that lets every item in there are none."""
    lines = []
    for at, (name, one) in enumerate(filters.items()):
        of_filter = [row for row in counts if row["filter_number"] == at]
        lines.append(
            {
                "placement": name,
                "filter": one.text,
                "num_results": one.num_results,
                "items": int(eligible.sum()),
                "items_left": int(reach[at].sum()),
                **{key: sum(row[key] for row in of_filter) for key in ("lists", "short_lists", "empty_lists")},
            }
        )
    return lines


def reach_warnings(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What somebody should look at: a filter that leaves fewer items than a slate has, or nothing of most lists."""
    found = []
    for line in lines:
        name, size = line["placement"], line["num_results"]
        if line["items_left"] < min(size, line["items"]):
            found.append(
                f"placement {name!r}: its filter leaves {line['items_left']:,} of {line['items']:,} items, "
                f"a slate has {size}"
            )
        elif 2 * line["empty_lists"] > line["lists"]:
            found.append(
                f"placement {name!r}: its filter leaves nothing of {line['empty_lists']:,} of {line['lists']:,} "
                "personal lists; those people are shown what is popular"
            )
    return found
