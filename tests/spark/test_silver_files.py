"""What Spark's writers are told about Parquet, seen in the files: many are open at once, and hold what they have."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.tables import table, table_path
from spark_jobs.io.delta import frame_of, overwrite_partitions

pytestmark = pytest.mark.spark
ROWS = 27_000


def test_files_of_silver_are_written_with_small_pages_and_dictionaries(
    spark: SparkSession, environment: Environment
) -> None:
    """9,000 session keys of 32 characters, each three times, are more than a dictionary of 256 KB holds and less than
    one of Parquet's usual megabyte. Of event ids there is none, even where a few come again and again."""
    key = F.lpad(F.floor(F.col("id") / 3).cast("string"), 32, "0")
    own = {"event_id": (F.col("id") % 3).cast("string"), "session_key": key, "item_id": F.lit("i"), "price": F.rand(7),
           "event_date": F.lit("2024-03-01").cast("date")}  # fmt: skip
    columns = table("silver.interactions").columns
    frame = spark.range(ROWS).coalesce(1).select(
        *(own.get(name, F.lit(None)).cast(kind).alias(name) for name, kind in columns.items())
    )  # fmt: skip
    overwrite_partitions(frame, environment, "silver.interactions", None, as_it_lies=True)
    [path] = Path(table_path(environment.lakehouse, "silver.interactions")).rglob("event_date=*/*.parquet")
    group = pq.ParquetFile(path).metadata.row_group(0)
    found = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    dictionaries = {name: sorted({e for e in column.encodings if "DICT" in e}) for name, column in found.items()}
    assert {column.compression for column in found.values()} == {"SNAPPY"}
    assert (dictionaries["event_id"], found["event_id"].has_dictionary_page) == ([], False)
    assert dictionaries["item_id"] == ["PLAIN_DICTIONARY"]
    assert ("PLAIN" in found["item_id"].encodings, "PLAIN" in found["session_key"].encodings) == (False, True)


def test_rows_of_arrow_in_many_pieces_are_all_in_the_frame(spark: SparkSession) -> None:
    """Of a table that begins with many empty pieces PySpark makes an empty frame, without a word."""
    piece = pa.table({"n": pa.array([1, 2, 3], pa.int64())})
    rows = pa.concat_tables([*[piece.slice(0, 0)] * 25, piece, *[piece.slice(0, 0)] * 25, piece])
    assert sorted(row["n"] for row in frame_of(spark, rows).collect()) == [1, 1, 2, 2, 3, 3]
