"""Uses what the night's jobs use of Spark and Delta, on a few rows: what runs here is in the class archive.

Submitted by infra/local/class_archive.py with one argument, a folder for its table. Its results mean nothing.
"""

from __future__ import annotations

import sys

from delta.tables import DeltaTable
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812


def main(folder: str) -> None:
    spark = SparkSession.builder.appName("class archive").getOrCreate()
    rows = [
        (f"e{n}", f"u{n % 7}", n % 5, float(n % 3), f"2025-01-0{n % 3 + 1}T00:00:0{n % 9}Z", [n], {"a": "b"})
        for n in range(60)
    ]
    events = spark.createDataFrame(
        rows, "id string, user string, item int, value double, at string, list array<int>, map map<string,string>"
    )
    events = events.withColumn("at", F.to_timestamp("at")).withColumn("day", F.to_date("at"))
    builder = DeltaTable.createIfNotExists(spark).location(folder).addColumns(events.schema)
    builder.property("delta.enableDeletionVectors", "false").partitionedBy("day").execute()
    for predicate in ("`day` < DATE'2026-01-01'", "`day` IN (DATE'2025-01-01', DATE'2025-01-02')"):
        written = events if "<" in predicate else events.filter(F.col("day") < F.lit("2025-01-03").cast("date"))
        writer = written.repartition("day").sortWithinPartitions("day").write.format("delta").mode("overwrite")
        writer.option("mergeSchema", "true").option("replaceWhere", predicate).save(folder)
    stored = spark.read.format("delta").option("versionAsOf", 1).load(folder).persist()
    DeltaTable.forPath(spark, folder).history(1).collect()
    by_user = Window.partitionBy("user").orderBy("at", "id")
    gap = F.unix_timestamp("at") - F.lag(F.unix_timestamp("at")).over(by_user)
    numbered = stored.withColumn("gap", gap).withColumn("row", F.row_number().over(by_user)).persist()
    sums = numbered.groupBy("user").agg(
        F.count(F.lit(1)).alias("events"), F.sum("value").alias("spent"), F.max("at").alias("last"),
        F.countDistinct("item").alias("items"), F.max_by("item", "at").alias("newest"),
        F.expr("percentile_approx(value, 0.5)").alias("middle"), F.collect_list(F.struct("at", "item")).alias("all"),
        F.sum(F.when(F.col("gap") > 1, F.col("value"))).alias("late"),
    )  # fmt: skip
    joined = numbered.join(F.broadcast(sums), on="user", how="left").join(
        numbered.filter("item = 1").select("user").distinct(), on="user", how="left_semi"
    )
    joined = joined.join(numbered.filter("item = 9").select("id"), on="id", how="left_anti").unionByName(joined)
    text = joined.select(
        F.coalesce(F.col("map")["a"], F.lit("")).alias("a"), F.xxhash64("id", "item").cast("decimal(38,0)").alias("h"),
        F.explode_outer("list").alias("n"), F.regexp_replace("id", "e", "x").alias("x"), F.to_json("map").alias("j"),
        F.col("user").rlike("^u[0-9]+$").alias("r"), F.date_format("at", "yyyy-MM").alias("m"),
        F.transform("list", lambda n: n + 1).alias("t"), F.array_sort("all").alias("s"),
    )  # fmt: skip
    text.groupBy("a", "m").agg(F.sum("h"), F.count("n"), F.first("s")).collect()
    text.orderBy("x").limit(5).toPandas()
    pairs = stored.select(F.abs(F.hash("user") % 1000).alias("user"), "item", "value")
    ALS(userCol="user", itemCol="item", ratingCol="value", implicitPrefs=True, rank=2, maxIter=2, seed=1).fit(pairs)
    numbered.select("item", "value").mapInArrow(lambda batches: batches, "item int, value double").toPandas()
    spark.createDataFrame(sums.collect(), sums.schema).createOrReplaceTempView("sums")
    spark.sql("SELECT count(*) FROM sums WHERE spent > (SELECT avg(spent) FROM sums)").collect()
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1])
