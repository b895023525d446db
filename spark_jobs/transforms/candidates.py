"""From a fitted model to every user's ranked list, and from lists to packed records.

The kernels take arrays and give Arrow batches, so that one code runs in an executor's `mapInArrow` and in a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.events import EventType
from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED, NO_REASON, pack_candidates_header
from spark_jobs.evaluation.split import INTERACTED, NONE
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.blend_model import Blend
from spark_jobs.models.block_reasons import PairTerms, block_reasons, model_reasons
from spark_jobs.models.list_shares import blend_shares, shares_of_one
from spark_jobs.models.matrix import build_matrix
from spark_jobs.models.ranker import Ranker
from spark_jobs.models.ranking import mask_items, top_items
from spark_jobs.transforms.record_checks import PACKED_ROW

if TYPE_CHECKING:
    from datetime import datetime

    from pyspark.sql import DataFrame

CANDIDATES_PER_USER = 100
EXPLAINED_PER_USER = 50
"""Only the head of a list gets reasons: they cost more than the scores, and a slate rarely reaches further down."""

CELLS_PER_BLOCK = 4_000_000
MOST_USERS_PER_BLOCK = 256

CANDIDATES_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_numbers", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float32())),
        ("sources", pa.list_(pa.int32())),
        ("first_reasons", pa.list_(pa.int32())),
        ("second_reasons", pa.list_(pa.int32())),
        ("allows_personalize", pa.bool_()),
        ("shares", pa.binary()),
        ("history_digest", pa.string()),
        ("made_by", pa.string()),
        ("scored_as_of", pa.date32()),
        ("as_of", pa.date32()),
    ]
)
"""gold.candidates in Arrow. Reasons are null where there is none, shares (`contracts.list_shares`) where nobody
told; a list of nobody's history has no digest."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """All that scoring needs, plain arrays, sent to executors once.

    user_ids  the users to score, in the order of `rows`
    rows      their rows in `histories` and in the fitted model
    histories what each subject of the model preferred (CSR over item numbers)
    seen      what a subject must not be offered again, same shape; only its pattern counts
    eligible  by item number: may it be published at all
    digests   of the users' histories, aligned with `user_ids`; None: nobody will ask
    made_by   all else that decides the lists, as text (`touched.MadeBy`)
    shares    whether lists tell what each part of the model has of each item
    """

    model: Model
    user_ids: NDArray[np.str_]
    rows: NDArray[np.int64]
    histories: sparse.csr_matrix
    seen: sparse.csr_matrix
    eligible: NDArray[np.bool_]
    as_of: date
    per_user: int = CANDIDATES_PER_USER
    explained: int = EXPLAINED_PER_USER
    digests: NDArray[np.str_] | None = None
    made_by: str | None = None
    shares: bool = True

    @property
    def users_per_block(self) -> int:
        """Fixed by the number of items alone: the same run is cut into the same blocks on any machine."""
        return max(1, min(MOST_USERS_PER_BLOCK, CELLS_PER_BLOCK // max(1, len(self.eligible))))

    @property
    def block_count(self) -> int:
        return -(-len(self.rows) // self.users_per_block)

    def without(self, users: NDArray[np.str_]) -> Scoring:
        """The same for all but these."""
        rest = ~np.isin(self.user_ids, users)
        digests = self.digests[rest] if self.digests is not None else None
        return replace(self, user_ids=self.user_ids[rest], rows=self.rows[rest], digests=digests)


def seen_items(matrix: InteractionMatrix, interactions: pa.Table, policy: str, cut_off: datetime) -> sparse.csr_matrix:
    """What each row of `matrix` must not be offered again, by policy; only the pattern counts."""
    if policy == INTERACTED:
        return matrix.preference
    if policy == NONE:
        return sparse.csr_matrix(matrix.preference.shape, dtype=np.float32)
    bought = build_matrix(
        interactions, item_count=matrix.item_count, weights={EventType.PURCHASE.value: 1.0}, half_life_days=None,
        cut_off=cut_off,
    )  # fmt: skip
    known = np.isin(bought.subjects, matrix.subjects)
    rows = np.searchsorted(matrix.subjects, bought.subjects[known])
    pairs = bought.preference[np.flatnonzero(known)].tocoo()
    return sparse.csr_matrix((pairs.data, (rows[pairs.row], pairs.col)), shape=matrix.preference.shape)


def score_block(scoring: Scoring, block: int) -> pa.RecordBatch:
    """The candidates of one block of users (`CANDIDATES_SCHEMA`, one row a user, in the order of `scoring.rows`).

    A list holds at most `per_user` items, best first, ties by item number. Left out: seen and ineligible items, and
    items that the model says nothing about (a score of exactly zero, or none). A list may be empty. The source of an
    item is the model's, of a blend that of the part that speaks most for it, of a ranker that of its first stage. The
    first `explained` items name the one or two items of the history that spoke most for them. With `shares` the list
    tells what each part has of each item: of a model that is no blend all, of a ranker those of its first stage.
    """
    part = slice(block * scoring.users_per_block, (block + 1) * scoring.users_per_block)
    rows, user_ids = scoring.rows[part], scoring.user_ids[part]
    histories = scoring.histories[rows]
    model = scoring.model
    told_by = who_brought(model)
    said = told_by.score_parts(histories, rows) if isinstance(told_by, Blend) else None
    scores = said.scores if said is not None and told_by is model else model.score_block(histories, rows)
    silence_zeros(model, scores)
    scores[:, ~scoring.eligible] = -np.inf
    mask_items(scores, scoring.seen[rows])
    numbers, values = top_items(scores, scoring.per_user)
    kept = np.isfinite(values)
    counts = kept.sum(axis=1)
    first, second = (np.full(kept.shape, -1, np.int64) for _ in range(2))
    told_counts = np.minimum(counts, scoring.explained)
    head = slice(0, scoring.explained)
    if said is not None and isinstance(told_by, Blend):
        first[:, head], second[:, head] = block_reasons(told_by, said, rows, numbers[:, head], told_counts)
    elif isinstance(told_by, PairTerms):
        first[:, head], second[:, head] = model_reasons(told_by, histories, numbers[:, head], told_counts)
    else:
        for at in np.flatnonzero(told_counts):
            told = int(told_counts[at])
            reasons = told_by.explain(histories[at], int(rows[at]), numbers[at, :told].tolist())
            first[at, :told] = [-1 if a is None else a for a, _ in reasons]
            second[at, :told] = [-1 if b is None else b for _, b in reasons]
    sources = np.full(numbers.shape, model.source, np.int32)
    shares: list[bytes | None] = [shares_of_one(told_by.name, count) or None for count in counts.tolist()]
    if said is not None and isinstance(told_by, Blend):
        by_part = told_by.listed_values(said, numbers)
        sources = told_by.sources_of(by_part, numbers.shape)
        shares = blend_shares(by_part, told_by.model_names(), counts) if scoring.shares else []
    offsets = np.r_[0, np.cumsum(counts)].astype(np.int32)

    def lists(flat: pa.Array) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(offsets), flat)

    def reasons_of(chosen: NDArray[np.int64]) -> pa.Array:
        return pa.array(chosen.astype(np.int32), mask=chosen < 0)

    return pa.RecordBatch.from_arrays(
        [
            pa.array(user_ids.tolist(), pa.string()),
            lists(pa.array(numbers[kept])),
            lists(pa.array(values[kept])),
            lists(pa.array(sources[kept])),
            lists(reasons_of(first[kept])),
            lists(reasons_of(second[kept])),
            pa.array(np.ones(len(rows), bool)),
            pa.array(shares if scoring.shares else [None] * len(rows), pa.binary()),
            pa.array([None] * len(rows) if scoring.digests is None else scoring.digests[part].tolist(), pa.string()),
            pa.array([scoring.made_by] * len(rows), pa.string()),
            pa.array([scoring.as_of] * len(rows), pa.date32()),
            pa.array([scoring.as_of] * len(rows), pa.date32()),
        ],
        schema=CANDIDATES_SCHEMA,
    )


def who_brought(model: Model) -> Model:
    """The model that brings the items: of a ranker its first stage."""
    return model.first if isinstance(model, Ranker) and model.first is not None else model


def silence_zeros(model: Model, scores: NDArray[np.float32]) -> None:
    """Set to -inf, in place, what the model says nothing about. The sum of a blend has no such zero: what it knows
    nothing of is -inf already."""
    if not isinstance(who_brought(model), Blend):
        np.putmask(scores, scores == 0, -np.inf)  # in half of the time of an assignment


def denied_candidates(user_ids: list[str], as_of: date) -> pa.Table:
    """The rows of those who said no to personalization: an empty list, so that serving knows without asking anyone."""
    empty = pa.array([[] for _ in user_ids], pa.list_(pa.int32()))
    return pa.table(
        {
            "user_id": pa.array(user_ids, pa.string()),
            "item_numbers": empty,
            "scores": empty.cast(pa.list_(pa.float32())),
            "sources": empty,
            "first_reasons": empty,
            "second_reasons": empty,
            "allows_personalize": pa.array([False] * len(user_ids), pa.bool_()),
            "shares": pa.nulls(len(user_ids), pa.binary()),
            "history_digest": pa.nulls(len(user_ids), pa.string()),
            "made_by": pa.nulls(len(user_ids), pa.string()),
            "scored_as_of": pa.array([as_of] * len(user_ids), pa.date32()),
            "as_of": pa.array([as_of] * len(user_ids), pa.date32()),
        },
        schema=CANDIDATES_SCHEMA,
    )


def denied_users(users: DataFrame, events: DataFrame, *, cut_off: datetime) -> DataFrame:
    """Who does not allow personalization, as known at `cut_off`.

    Grain: one row per user_id. A user is denied when bronze.users says so (`consent_personalize` false; it carries no
    time), or when the newest event before `cut_off` that says anything says no (ties: a no wins).

    Returns:
        user_id string.
    """
    from pyspark.sql import functions as F  # noqa: N812

    registered = users.filter(~F.col("consent_personalize")).select("user_id")
    said = events.filter(
        F.col("user_id").isNotNull()
        & F.col("consent_personalize").isNotNull()
        & (F.col("event_timestamp") < F.lit(cut_off))
    )
    newest = said.groupBy("user_id").agg(
        F.max(F.struct("event_timestamp", (~F.col("consent_personalize")).alias("denies"))).alias("last")
    )
    by_event = newest.filter(F.col("last.denies")).select("user_id")
    return registered.unionByName(by_event).filter(F.col("user_id").isNotNull()).distinct()


def denied_in(users: pa.Table, said: pa.Table, *, cut_off: datetime) -> list[str]:
    """`denied_users` of Arrow's rows, sorted: `users` with user_id and consent_personalize, `said` the events that say
    anything, with event_timestamp besides."""
    registered = users.filter(pc.equal(users["consent_personalize"], False))["user_id"]
    said = said.filter(
        pc.and_(
            pc.and_(pc.is_valid(said["user_id"]), pc.is_valid(said["consent_personalize"])),
            pc.less(said["event_timestamp"], pa.scalar(cut_off, said["event_timestamp"].type)),
        )
    )
    found = set(registered.drop_null().to_pylist())
    if said.num_rows:
        people = said["user_id"].combine_chunks().dictionary_encode()
        denies = ~np.asarray(said["consent_personalize"].combine_chunks().cast(pa.uint8())).astype(bool)
        micros = np.asarray(said["event_timestamp"].combine_chunks().cast(pa.int64()))
        last = np.full(len(people.dictionary), np.iinfo(np.int64).min)
        np.maximum.at(last, np.asarray(people.indices), micros * 2 + denies)  # of one instant a no is the larger
        found |= set(people.dictionary.filter(pa.array((last & 1).astype(bool))).to_pylist())
    return sorted(found)


def pack_batch(version: str, batch: pa.RecordBatch) -> Iterator[tuple[str, bytes]]:
    """(user_id, packed record) of each row of gold.candidates; the bytes are those of `packing.pack_candidates`.

    Raises ContractError when the lists of a row differ in length or hold a null score, or its shares are of another
    number of rows.
    """
    lengths = pc.list_value_length(batch["item_numbers"])
    for name in ("scores", "sources", "first_reasons", "second_reasons"):
        if not pc.list_value_length(batch[name]).equals(lengths):
            raise ContractError(f"gold.candidates: {name} and item_numbers differ in length in the same row")
    flat = {name: batch[name].flatten() for name in CANDIDATES_SCHEMA.names[1:6]}
    packed = np.empty(len(flat["scores"]), PACKED_ROW)
    for target, name in (("item_number", "item_numbers"), ("score", "scores"), ("source", "sources")):
        if flat[name].null_count:
            raise ContractError(f"gold.candidates: {flat[name].null_count} nulls in {name}")
        packed[target] = flat[name].to_numpy()
    for target, name in (("first", "first_reasons"), ("second", "second_reasons")):
        packed[target] = pc.fill_null(flat[name].cast(pa.int64()), NO_REASON).to_numpy()
    body, at = packed.tobytes(), 0
    columns = (batch["user_id"], lengths, batch["allows_personalize"], batch["shares"])
    for user_id, count, allows, told in zip(*(column.to_pylist() for column in columns), strict=True):
        end, shares = at + count * PACKED_ROW.itemsize, told or b""
        header = pack_candidates_header(version, count, flags=0 if allows else FLAG_PERSONALIZE_DENIED, shares=shares)
        yield user_id, header + body[at:end] + shares
        at = end
