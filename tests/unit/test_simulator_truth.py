"""The simulator's truth: computed as it says, and learnable from the events alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from feature_repo.contracts.errors import DataError
from infra.simulator.config import ShopConfig
from infra.simulator.shop import simulate_shop
from infra.simulator.truth import Truth, expected_preference, load_truth, true_preference

WEIGHTS = {"view_item": 1.0, "add_to_wishlist": 3.0, "add_to_cart": 4.0, "purchase": 8.0}
TRUTH = Truth(
    user_ids=np.array(["u1", "u2"]),
    item_ids=np.array(["i1", "i2", "i3"]),
    user_factors=np.array([[1.0, 0.0], [2.0, -1.0]], np.float32),
    item_factors=np.array([[0.0, 5.0], [1.0, 1.0], [-2.0, 0.0]], np.float32),
)


def logistic(utility: float) -> float:
    return 1 / (1 + math.exp(-utility))


def test_preference_is_the_logistic_of_the_inner_product_in_the_order_asked() -> None:
    # u2: i1 = 2*0 - 1*5 = -5; i2 = 2 - 1 = 1; i3 = -4
    assert true_preference(TRUTH, "u2", ["i3", "i1", "i2"]) == pytest.approx([logistic(-4), logistic(-5), logistic(1)])
    assert true_preference(TRUTH, "u1", ["i1"]) == pytest.approx([0.5])


def test_expected_preference_is_a_mean_over_users_and_an_empty_slate_is_worth_nothing() -> None:
    # u1: mean of i2 (1) and i3 (-2); u2: empty
    mean = (logistic(1) + logistic(-2)) / 2
    assert expected_preference(TRUTH, {"u1": ["i2", "i3"], "u2": []}) == pytest.approx(mean / 2)
    with pytest.raises(DataError, match="at least one"):
        expected_preference(TRUTH, {})


def test_unknown_ids_are_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match="no user 'u11'; did you mean 'u1'"):
        true_preference(TRUTH, "u11", ["i1"])
    with pytest.raises(DataError, match="no item 'i22'; did you mean 'i2'"):
        true_preference(TRUTH, "u1", ["i1", "i22"])


def test_the_truth_survives_a_round_trip_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    TRUTH.save(tmp_path)
    loaded = load_truth(tmp_path)
    assert true_preference(loaded, "u2", ["i2"]) == pytest.approx([logistic(1)])
    (tmp_path / "truth.npz").write_bytes((tmp_path / "truth.npz").read_bytes()[:100])
    with pytest.raises(DataError, match="no truth in"):
        load_truth(tmp_path)


class Split:
    """The default shop, split seven days before its end: what was preferred before, what was new after."""

    def __init__(self, folder: Path) -> None:
        events = pd.concat([pd.read_parquet(p) for p in sorted((folder / "events").glob("*.parquet"))])
        events = events.drop_duplicates("event_id")
        events = events[events.event_type.isin(WEIGHTS) & events.user_id.notna()]
        cut = pd.Timestamp(ShopConfig().end_day, tz="UTC") - pd.Timedelta(days=7)
        self.truth = load_truth(folder)
        self.item_ids = list(self.truth.item_rows)
        events = events[events.user_id.isin(self.truth.user_rows)]  # crawlers with an account have no taste
        train, test = events[events.timestamp < cut], events[events.timestamp >= cut]
        self.users = sorted(set(train.user_id) & set(test.user_id))
        self.preference = self.matrix(train)
        self.targets = (self.matrix(test) > 0) & (self.preference == 0)
        has_target = self.targets.any(axis=1)
        self.test_users = np.flatnonzero(has_target)

    def matrix(self, events: pd.DataFrame) -> NDArray[np.float64]:
        dense = np.zeros((len(self.users), len(self.item_ids)))
        row = {u: r for r, u in enumerate(self.users)}
        known = events[events.user_id.isin(row)]
        columns = known.item_id.map(self.truth.item_rows)
        np.add.at(dense, (known.user_id.map(row), columns), known.event_type.map(WEIGHTS))
        return dense

    def measure(self, scores: NDArray[np.float64]) -> tuple[float, float]:
        """(recall@20 of new items, true preference of the first ten), over users with a new item in the test week."""
        scores = np.where(self.preference > 0, -np.inf, scores)
        top = np.argsort(-scores, axis=1, kind="stable")[:, :20]
        hits = np.take_along_axis(self.targets, top, axis=1).sum(axis=1) / np.maximum(self.targets.sum(axis=1), 1)
        slates = {self.users[r]: [self.item_ids[i] for i in top[r, :10]] for r in self.test_users}
        return float(hits[self.test_users].mean()), expected_preference(self.truth, slates)

    def popularity(self) -> NDArray[np.float64]:
        return np.tile(self.preference.sum(axis=0), (len(self.users), 1))

    def item_knn(self, preference: NDArray[np.float64]) -> NDArray[np.float64]:
        seen = np.log1p(preference)
        both = seen.T @ seen
        norms = np.sqrt(np.diag(both)) + 1e-9
        cosine = both / np.outer(norms, norms)
        np.fill_diagonal(cosine, 0)
        return np.log1p(self.preference) @ cosine


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("default_shop")
    simulate_shop(ShopConfig(), folder)
    return Split(folder)


def test_the_tastes_can_be_learnt_from_the_events_alone(split: Split) -> None:
    assert len(split.test_users) > 600
    popular_recall, popular_preference = split.measure(split.popularity())
    recall, preference = split.measure(split.item_knn(split.preference))
    assert recall > 1.8 * popular_recall
    assert preference > 1.4 * popular_preference


def test_shuffled_preferences_teach_nothing(split: Split) -> None:
    rng = np.random.default_rng(1)
    shuffled = np.array([rng.permutation(row) for row in split.preference])
    recall, preference = split.measure(split.item_knn(shuffled))
    popular_recall, popular_preference = split.measure(split.popularity())
    assert recall < 0.8 * popular_recall
    assert preference < popular_preference


def test_the_truth_itself_is_the_best_slate(split: Split) -> None:
    rows = [split.truth.user_rows[u] for u in split.users]
    utility = split.truth.user_factors[rows].astype(float) @ split.truth.item_factors.T.astype(float)
    _, best = split.measure(utility)
    _, learnt = split.measure(split.item_knn(split.preference))
    assert 0.65 < best < 0.95
    assert learnt < best
