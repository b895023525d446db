"""What the filters of placements leave, as a part of `score_users`: placements.json in the run folder.

Reads    the placements' file (NIGHTJAR_SERVING_PLACEMENTS), the items of the run, gold.candidates of its as_of
Writes   placements.json; attribute_events shows it in metrics.html

A filter asks about the items as the night knows them: prices and stock change by day. A file that cannot be read, and a
filter that leaves too little, are warnings: the lists are right without them. Spark is asked only where a filter says
something of the items: `not in_cart(item)`, say, lets every item in as long as nobody asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.filter_language import parse_filter
from feature_repo.contracts.placement_shapes import read_shapes
from feature_repo.contracts.run import PLACEMENTS_FILE, Run
from spark_jobs.io.catalogue import in_run, read_items
from spark_jobs.io.delta import read_table
from spark_jobs.io.run_store import write_report
from spark_jobs.transforms.placement_reach import (
    Filter,
    answer_to_nobody,
    count_lists,
    passing_items,
    placement_lines,
    reach_by_number,
    reach_warnings,
)


def report_placements(
    session: Callable[[], SparkSession],
    environment: Environment,
    run: Run,
    numbers: pa.Table,
    eligible: NDArray[np.bool_],
) -> dict[str, Any]:
    """The report, written. `session`: called where Spark is needed; `numbers`: item_id and item_number; `eligible`: by
    item number, what may be published."""
    warnings: list[str] = []
    lines: list[dict[str, Any]] = []
    try:
        shapes = read_shapes(environment.placements)
    except DataError as error:
        warnings.append(f"placements were not looked at: {error}")
    else:
        filters = {
            name: Filter(shape.filter, shape.num_results) for name, shape in sorted(shapes.items()) if shape.filter
        }
        if filters:
            lines = _lines(session, environment, run, filters, numbers, eligible)
        warnings += reach_warnings(lines)
    for words in warnings:
        print(f"warning: {words}", flush=True)
    report = {"as_of": run.as_of, "placements": lines, "warnings": warnings}
    write_report(environment, run.run_key, PLACEMENTS_FILE, report)
    return report


def _lines(
    session: Callable[[], SparkSession],
    environment: Environment,
    run: Run,
    filters: dict[str, Filter],
    numbers: pa.Table,
    eligible: NDArray[np.bool_],
) -> list[dict[str, Any]]:
    said = [answer_to_nobody(parse_filter(one.text)) for one in filters.values()]
    reach = np.stack([eligible if answer else np.zeros_like(eligible) for answer in said])
    asked = [at for at, answer in enumerate(said) if answer is None]
    if asked:
        catalogue = read_items(session(), environment, in_run(run.pins), cut_off=run.cut_off)
        texts = [list(filters.values())[at].text for at in asked]
        passing = passing_items(catalogue, texts, now=run.cut_off).toArrow()
        known = passing.join(numbers.select(["item_id", "item_number"]), keys="item_id", join_type="inner")
        reach[asked] = reach_by_number(known, len(asked), eligible)
    narrow = [at for at in range(len(filters)) if (reach[at] != eligible).any()]
    counts: list[dict[str, Any]] = []
    if narrow:  # the others leave every list as it is
        lists = read_table(session(), environment, "gold.candidates").where(F.col("as_of") == F.lit(run.as_of_day))
        chosen = [list(filters.values())[at] for at in narrow]
        rows = count_lists(lists, chosen, reach[narrow]).collect()
        counts = [{**row.asDict(), "filter_number": narrow[row["filter_number"]]} for row in rows]
    return placement_lines(filters, reach, eligible, counts)
