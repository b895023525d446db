"""Which deliveries count: each of them marked, or, of a history too large to be kept, only the exceptions.

Nearly every delivery breaks no rule and came once. Where there are millions, the others are found in one pass and
kept; who wants the rest reads the stored columns that it needs again, which costs less than to keep all of them.
"""

from __future__ import annotations

from typing import NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from spark_jobs.transforms.events import (
    check_deliveries,
    first_deliveries,
    id_hash,
    rejection_reason,
    repeated_hashes,
    subject_key,
)

MOST_BROADCAST = 1_000_000
"""Exceptions up to which every reader gets all of them; more are brought together with what they are exceptions of."""


class Outcome(NamedTuple):
    """How many deliveries of a table ended in one way: `kept`, `duplicates`, `quarantined` (with its reason) or
    `withheld`."""

    table: str
    outcome: str
    reason: str | None
    deliveries: int


class SortedOut(NamedTuple):
    """Deliveries by what becomes of them.

    checked   every delivery, with broken_rule
    kept      one delivery of each event that counts, with subject_key
    rejected  those that break a rule, with broken_rule
    outcomes  where every delivery went
    """

    checked: DataFrame
    kept: DataFrame
    rejected: DataFrame
    outcomes: list[Outcome]


def of_marked(marked: DataFrame, in_scope: DataFrame) -> SortedOut:
    """From deliveries that carry their marks (`mark`) and are kept; `in_scope` are those that are derived."""
    return SortedOut(
        checked=marked,
        kept=counting(in_scope),
        rejected=in_scope.filter(F.col("broken_rule").isNotNull()),
        outcomes=_outcomes(in_scope),
    )


def of_doubtful(doubtful: DataFrame, denying: DataFrame) -> SortedOut:
    """The same of deliveries that are in doubt, all of their event_ids, and are kept; who asks knows of the others."""
    marked = with_withheld(first_deliveries(check_deliveries(doubtful)), denying)
    marked = marked.withColumn("subject_key", subject_key()).persist()
    return SortedOut(
        checked=marked,
        kept=counting(marked),
        rejected=marked.filter(F.col("broken_rule").isNotNull()),
        outcomes=_outcomes(marked),
    )


def by_exception(deliveries: DataFrame, denying: DataFrame) -> SortedOut:
    """The same of a whole history; `denying` are users (user_id) who do not allow storing.

    Only exceptions are kept: deliveries that break a rule, and all those whose event_id several have. Whether one is an
    exception follows from its event_id alone, so the others are told by that. The frames read the deliveries anew.
    """
    hashes = repeated_hashes(deliveries).persist()
    several = _small(hashes.withColumn("is_repeated", F.lit(True)), hashes.count())
    flagged = check_deliveries(deliveries).withColumn("id_hash", id_hash()).join(several, on="id_hash", how="left")
    is_exception = F.col("broken_rule").isNotNull() | F.col("is_repeated")
    found = flagged.filter(is_exception).select(*deliveries.columns, "broken_rule").persist()
    ids = found.filter(F.col("event_id").isNotNull()).select(id_hash().alias("id_hash")).distinct().persist()
    ordinary = deliveries.filter(F.col("event_id").isNotNull()).withColumn("id_hash", id_hash())
    ordinary = ordinary.join(_small(ids, ids.count()), on="id_hash", how="left_anti").select(*deliveries.columns)
    marked = with_withheld(first_deliveries(found), denying).persist()
    no_rule = F.lit(None).cast("int")
    single = with_withheld(ordinary.withColumns({"broken_rule": no_rule, "is_first": F.lit(True)}), denying)
    both = SortedOut(
        checked=ordinary.withColumn("broken_rule", no_rule).unionByName(found),
        kept=counting(single).unionByName(counting(marked).coalesce(1)),
        rejected=marked.filter(F.col("broken_rule").isNotNull()),
        outcomes=[*_outcomes(single), *_outcomes(marked)],
    )
    return both._replace(kept=both.kept.withColumn("subject_key", subject_key()))


def counting(marked: DataFrame) -> DataFrame:
    """Those that count: one delivery of each event whose user allows storing."""
    return marked.filter(F.col("is_first") & ~F.col("is_withheld"))


def mark(deliveries: DataFrame, repeated: DataFrame, denying: DataFrame) -> DataFrame:
    """Each delivery with broken_rule, is_first, is_withheld (its user does not allow storing) and subject_key.

    Only ids with several deliveries (`repeated`) are sorted out by a window; the rest needs no shuffle. Nothing may be
    filtered here: the optimizer would drag the rules through the filter, and take minutes.
    """
    single = check_deliveries(deliveries.join(repeated, on="event_id", how="left_anti"))
    several = check_deliveries(deliveries.join(repeated, on="event_id", how="left_semi"))
    checked = single.withColumn("is_first", F.col("broken_rule").isNull()).unionByName(first_deliveries(several))
    return with_withheld(checked, denying).withColumn("subject_key", subject_key())


def with_withheld(rows: DataFrame, denying: DataFrame) -> DataFrame:
    """`rows` with is_withheld: the user is one of `denying` (user_id)."""
    withheld = denying.withColumn("is_withheld", F.lit(True))
    joined = rows.join(F.broadcast(withheld), on="user_id", how="left")
    return joined.withColumn("is_withheld", F.coalesce(F.col("is_withheld"), F.lit(False)))


def _outcomes(marked: DataFrame) -> list[Outcome]:
    outcome = (
        F.when(F.col("broken_rule").isNotNull(), "quarantined")
        .when(~F.col("is_first"), "duplicates")
        .when(F.col("is_withheld"), "withheld")
        .otherwise("kept")
    )
    counts = marked.groupBy("table", outcome.alias("outcome"), rejection_reason().alias("reason")).count()
    return [Outcome(row["table"], row["outcome"], row["reason"], row["count"]) for row in counts.collect()]


def _small(frame: DataFrame, count: int) -> DataFrame:
    return F.broadcast(frame) if count <= MOST_BROADCAST else frame
