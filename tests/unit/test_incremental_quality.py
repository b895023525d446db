"""Online Retail, night after night with about 1 % new events: kept lists beside lists that are all made anew.

    python -m pytest -m soak -s tests/unit/test_incremental_quality.py

prints the figures of infra/docs/incremental.md. Lists, neighbours and vectors are made by the night's own functions, in
this process; what Spark adds is held together in tests/spark/test_rescore.py.
"""

from __future__ import annotations

import csv
import gzip
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feature_repo.contracts.times import to_micros
from spark_jobs.evaluation.intervals import compare_paired, mean_interval
from spark_jobs.evaluation.metrics import ranking_metrics
from spark_jobs.io.light_delta import arrow_schema
from spark_jobs.models.als import Als, Sweep
from spark_jobs.models.factory import fit
from spark_jobs.models.matrix import sort_interactions
from spark_jobs.models.recipes import blend_recipe, default_recipe
from spark_jobs.models.training_data import TrainingData
from spark_jobs.models.warm_start import item_vectors
from spark_jobs.transforms.candidates import CANDIDATES_SCHEMA, Scoring, score_block
from spark_jobs.transforms.item_neighbours import Neighbours, item_neighbours, neighbour_table
from spark_jobs.transforms.touched import Digests, history_digests, item_digests, untouched

REAL_FILE = Path(__file__).parents[2].parent / "shared" / "data" / "online-retail" / "online_retail.csv.gz"
FIRST, NIGHTS = datetime(2011, 11, 15, tzinfo=UTC), 5
WINDOW = timedelta(days=7)

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not REAL_FILE.is_file(), reason=f"{REAL_FILE} is not there"),
]


def blend() -> dict[str, Any]:
    """As a night chooses them; without popularity's trend, which is the same for everybody."""
    weights = {"als": 0.3, "item_knn": 0.4, "rp3beta": 0.5, "popularity": 0.001}
    return blend_recipe({name: default_recipe(name) for name in weights}, dict.fromkeys(("<5", "5-20", ">20"), weights))


@dataclass
class Shop:
    """Every purchase of a known customer, by number."""

    interactions: pa.Table
    item_count: int
    eligible: Any = field(init=False)

    def __post_init__(self) -> None:
        self.eligible = np.ones(self.item_count, bool)

    def until(self, cut_off: datetime) -> TrainingData:
        known = self.interactions.filter(pc.less(self.interactions["micros"], to_micros(cut_off)))
        return TrainingData(known, item_count=self.item_count, cut_off=cut_off)


@pytest.fixture(scope="module")
def shop() -> Shop:
    bought = []
    with gzip.open(REAL_FILE, "rt", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            if row["CustomerID"] and float(row["Quantity"]) > 0:
                moment = datetime.fromisoformat(row["InvoiceDate"]).replace(tzinfo=UTC)
                bought.append((to_micros(moment), f"u:{float(row['CustomerID']):.0f}", row["StockCode"]))
    assert len(bought) > 390_000
    bought.sort()
    numbers: dict[str, int] = {}
    for _, _, item in bought:
        numbers.setdefault(item, len(numbers))
    table = pa.table(
        {
            "subject_key": [subject for _, subject, _ in bought],
            "item_number": pa.array([numbers[item] for _, _, item in bought], pa.int32()),
            "event_type": ["purchase"] * len(bought),
            "micros": [moment for moment, _, _ in bought],
        }
    )
    return Shop(sort_interactions(table), len(numbers))


@dataclass
class Made:
    """What one night made, and the processor seconds that it took."""

    lists: pa.Table
    near: Neighbours
    digests: Digests
    vectors: dict[str, Any]
    scored: int
    seconds: dict[str, float]


def night(shop: Shop, recipe: dict[str, Any], cut_off: datetime, before: Made | None = None) -> Made:
    """Everything anew, or what was touched since the night `before`."""
    clock = {}

    def timed(name: str, began: float) -> None:
        clock[name] = time.process_time() - began

    as_of = cut_off.date()
    data = shop.until(cut_off)
    began = time.process_time()
    model, matrix = fit(recipe, data, starts=before.vectors if before else None)
    timed("fit", began)
    began = time.process_time()
    users = np.array([subject[2:] for subject in matrix.subjects.tolist()])
    scoring = Scoring(
        model=model, user_ids=users, rows=np.arange(len(users)), histories=matrix.preference, seen=matrix.preference,
        eligible=shop.eligible, as_of=as_of, digests=history_digests(data.interactions).of(matrix.subjects),
    )  # fmt: skip
    kept = users[:0]
    if before is not None:
        assert scoring.digests is not None
        tonight = Digests(users, scoring.digests)
        batches = before.lists.to_batches()
        kept = untouched(batches, tonight, shop.eligible, key="user_id", listed="item_numbers", as_of=as_of).keys
    timed("digests", began)
    began = time.process_time()
    scoring = scoring.without(kept)
    rows = [score_block(scoring, block) for block in range(scoring.block_count)]
    timed("lists", began)
    lists = pa.Table.from_batches(rows, CANDIDATES_SCHEMA)
    if before is not None:
        lists = pa.concat_tables([lists, before.lists.filter(pc.is_in(before.lists["user_id"], pa.array(kept)))])
    began = time.process_time()
    knn = default_recipe("item_knn")
    digests = item_digests(data.interactions)
    stored = arrow_schema("gold.item_neighbours").empty_table()
    if before is not None:
        stored = neighbour_table(before.near, before.digests, made_by="", as_of=as_of)
    near = item_neighbours(knn["params"], data.matrix(knn), shop.eligible, digests, stored, as_of=as_of)
    timed("neighbours", began)
    return Made(lists, near, digests, item_vectors(model, recipe), len(scoring.rows), clock)


def ndcg(shop: Shop, lists: pa.Table, cut_off: datetime) -> np.ndarray:
    """NDCG@20 of everybody who bought something new in the week after, in the order of their ids."""
    micros = shop.interactions["micros"]
    until = pc.less(micros, to_micros(cut_off + WINDOW))
    after = shop.interactions.filter(pc.and_(pc.greater_equal(micros, to_micros(cut_off)), until))
    had = shop.interactions.filter(pc.less(micros, to_micros(cut_off)))
    pairs = {
        name: {tuple(row.values()) for row in part.select(["subject_key", "item_number"]).to_pylist()}
        for name, part in (("after", after), ("had", had))
    }
    listed = dict(zip(lists["user_id"].to_pylist(), lists["item_numbers"].to_pylist(), strict=True))
    wanted: dict[str, set[int]] = {}
    for subject, item in pairs["after"] - pairs["had"]:
        if subject[2:] in listed:
            wanted.setdefault(subject[2:], set()).add(item)
    hits = np.zeros((len(wanted), 20), bool)
    for row, user in enumerate(sorted(wanted)):
        for place, item in enumerate(listed[user][:20]):
            hits[row, place] = item in wanted[user]
    counts = np.array([len(wanted[user]) for user in sorted(wanted)])
    return ranking_metrics(hits, counts, (20,))["ndcg_at_20"]


def overlap(a: dict[Any, list[int]], b: dict[Any, list[int]]) -> float:
    """Mean share of the first 20 that is the same."""
    shared = [len(set(a[key][:20]) & set(b[key][:20])) / max(1, len(b[key][:20])) for key in b]
    assert len(shared) > 1000
    return float(np.mean(shared))


def as_dict(lists: pa.Table) -> dict[str, list[int]]:
    return dict(zip(lists["user_id"].to_pylist(), lists["item_numbers"].to_pylist(), strict=True))


def near_dict(near: Neighbours) -> dict[int, list[int]]:
    return {number: [n for n, _ in row] for number, row in enumerate(near.rows) if row}


@pytest.mark.timeout(3600)
def test_touched_nights_are_as_good_as_full_ones(shop: Shop) -> None:
    recipe = blend()
    made = night(shop, recipe, FIRST)
    print(f"\n{FIRST.date()} all: {made.scored:,} lists, {_shown(made.seconds)}")
    for day in range(1, NIGHTS):
        cut_off = FIRST + timedelta(days=day)
        events = shop.until(cut_off).interactions.num_rows
        new = events - shop.until(cut_off - timedelta(days=1)).interactions.num_rows
        touched = history_digests(shop.until(cut_off).interactions)
        came = touched.values != history_digests(shop.until(cut_off - timedelta(days=1)).interactions).of(touched.keys)
        made = night(shop, recipe, cut_off, made)
        assert made.scored == came.sum()  # nobody else was scored
        full = night(shop, recipe, cut_off)
        a, b = ndcg(shop, made.lists, cut_off), ndcg(shop, full.lists, cut_off)
        compared, own = compare_paired(a, b).relative, mean_interval(b)
        assert compared is not None
        lists = overlap(as_dict(made.lists), as_dict(full.lists))
        near = overlap(near_dict(made.near), near_dict(full.near))
        print(
            f"{cut_off.date()} {new / events:.2%} new: {made.scored:,} of {full.scored:,} lists scored, "
            f"{made.near.kept:,} of {len(near_dict(full.near)):,} rows of neighbours kept\n"
            f"   NDCG@20 {a.mean():.4f}, all anew {own.mean:.4f} [{own.lower:.4f}, {own.upper:.4f}], {len(a)} people; "
            f"relative {compared.mean:+.2%} [{compared.lower:+.2%}, {compared.upper:+.2%}]; "
            f"overlap@20 lists {lists:.3f}, neighbours {near:.3f}\n"
            f"   touched: {_shown(made.seconds)}; all: {_shown(full.seconds)}",
            flush=True,
        )
        assert made.scored < 0.05 * full.scored
        assert own.lower <= a.mean() <= own.upper
        assert compared.lower > -0.1
        assert (lists > 0.8, near > 0.9) == (True, True)


def test_a_warm_start_needs_a_quarter_of_the_sweeps(shop: Shop) -> None:
    recipe = default_recipe("als")
    before = fit(recipe, shop.until(FIRST)).model
    assert isinstance(before, Als)
    matrix = shop.until(FIRST + timedelta(days=1)).matrix(recipe)
    losses: dict[str, list[float]] = {"cold": [], "warm": []}

    def watch(name: str) -> Any:
        def after_sweep(sweep: Sweep) -> None:
            losses[name].append(sweep.loss)

        return after_sweep

    cold, warm = Als(recipe["params"]), Als(recipe["params"])
    cold.fit(matrix, watch("cold"))
    warm.fit(matrix, watch("warm"), before.item_factors)
    print(f"\ncold {losses['cold'][-1]:.6f} after {len(losses['cold'])} sweeps, warm {losses['warm']}")
    assert (len(losses["cold"]), len(losses["warm"])) == (12, 3)
    assert losses["warm"][-1] <= losses["cold"][-1]


def _shown(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
