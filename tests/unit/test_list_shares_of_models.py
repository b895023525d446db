"""What the parts of a blend have of the items of lists: by hand, by taking parts out, and as lists and records tell
it."""

from __future__ import annotations

import copy
from datetime import date

import numpy as np
import pytest

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.list_shares import read_shares
from feature_repo.contracts.packing import open_candidates
from spark_jobs.models.blend_model import Blend
from spark_jobs.models.factory import fit
from spark_jobs.models.list_shares import blend_shares, keeps_shares, shares_of_one
from spark_jobs.models.recipes import blend_recipe
from spark_jobs.models.training_data import TrainingData
from spark_jobs.transforms.candidates import Scoring, pack_batch, score_block
from tests.unit.test_blend_model import CUT_OFF, ITEMS, PARTS, SLICES, planted, recipe_of

VERSION = "2024-03-29-1a2b3c4d"


def values(**parts: list[list[float]]) -> dict[str, np.ndarray]:
    return {name: np.array(rows, np.float32) for name, rows in parts.items()}


def told(packed: bytes | None, count: int) -> list[dict[str, float]]:
    assert packed is not None
    return [dict(read_shares(packed, place)) for place in range(count)]


def test_shares_by_hand() -> None:
    """als speaks for 3, 1 and -2, the rules of sequences for 1, 0 and 0.5; the third list place is empty in the second
    list, and nothing speaks for its second."""
    found = blend_shares(
        values(als=[[3.0, 1.0, -2.0], [0.5, -1.0, 9.0]], rules=[[1.0, 0.0, 0.5], [1.5, np.nan, 9.0]]),
        {"als": "als", "rules": "sequential_rules"},
        np.array([3, 2]),
    )
    first, second = found
    # of three shares of 1 each als has .75 + 1 + 0, the rules .25 + 0 + 1: als comes first
    assert first == bytes([2, 5, 10]) + bytes([188, 250, 0])  # 187.5 of 250, rounded to the even one
    assert told(first, 3) == [{"als": 0.752, "sequential_rules": 0.248}, {"als": 1.0}, {"sequential_rules": 1.0}]
    # the rules have .75 of the first item, als .25; of the second nobody anything
    assert second == bytes([2, 10, 5]) + bytes([188, 255])
    assert told(second, 2) == [{"sequential_rules": 0.752, "als": 0.248}, {}]


def test_a_list_has_room_to_say_that_nothing_speaks_for_an_item() -> None:
    one, nobody = blend_shares(values(als=[[1.0, -1.0], [-1.0, -1.0]]), {"als": "als"}, np.array([2, 2]))
    assert one == bytes([2, 5, 0, 250, 255])
    assert told(one, 2) == [{"als": 1.0}, {}]
    assert nobody is None
    whole, empty = blend_shares(values(als=[[1.0, 2.0], [1.0, 1.0]]), {"als": "als"}, np.array([2, 0]))
    assert whole == bytes([1, 5])
    assert empty is None
    assert blend_shares({}, {}, np.array([2, 2])) == [None, None]


def test_of_five_parts_the_largest_three_are_told_and_recipes_of_one_model_are_one() -> None:
    """als .4 and .1 by two recipes, ease .2, content .16, rp3beta .08, popularity .06."""
    parts = {"als": 0.4, "als more": 0.1, "ease": 0.2, "content": 0.16, "rp3beta": 0.08, "popularity": 0.06}
    (packed,) = blend_shares(
        {name: np.array([[value]], np.float32) for name, value in parts.items()},
        {name: name.removesuffix(" more") for name in parts},
        np.array([1]),
    )
    assert told(packed, 1) == [{"als": 0.5, "ease": 0.2, "content": 0.16, "other": 0.14}]
    four = {"als": 0.4, "ease": 0.2, "content": 0.16, "rp3beta": 0.24}
    arrays = {name: np.array([[value]], np.float32) for name, value in four.items()}
    (packed,) = blend_shares(arrays, {name: name for name in four}, np.array([1]))
    assert told(packed, 1) == [four]


def test_shares_sum_to_one_and_are_near_whatever_there_is() -> None:
    drawn = np.random.default_rng(3)
    parts = {name: drawn.normal(size=(40, 25)).astype(np.float32) for name in ("als", "ease", "content", "popularity")}
    counts = drawn.integers(0, 26, 40)
    compared = 0
    for at, packed in enumerate(blend_shares(parts, {name: name for name in parts}, counts)):
        for place, found in enumerate(told(packed, counts[at]) if packed else []):
            speaking = {name: float(v[at, place]) for name, v in parts.items() if v[at, place] > 0}
            total = sum(speaking.values())
            assert sum(found.values()) == pytest.approx(1 if speaking else 0)
            for name, value in speaking.items():
                assert found.get(name, 0.0) == pytest.approx(value / total, abs=1 / 250)
                compared += 1
    assert compared > 700


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return TrainingData(planted(), item_count=ITEMS, cut_off=CUT_OFF)


def scoring_of(model, matrix, **more) -> Scoring:
    people = np.array([subject[2:] for subject in matrix.subjects])
    return Scoring(
        model=model, user_ids=people, rows=np.arange(48), histories=matrix.preference, seen=matrix.preference,
        eligible=np.ones(ITEMS, bool), as_of=date(2024, 3, 29), per_user=15, explained=5, **more,
    )  # fmt: skip


def without(model: Blend, part: str) -> Blend:
    """The same fitted parts; this one says nothing any more."""
    other = copy.copy(model)
    weights = {key: {**by_part, part: 0.0} for key, by_part in model.params["weights"].items()}
    other.params = {**model.params, "weights": weights}
    return other


def test_the_score_falls_by_the_share_of_the_part_that_is_taken_out(data: TrainingData) -> None:
    """Of items that no part speaks against; of the others what speaks for them falls by it."""
    weights = {"als": 1.0, "item_knn": 0.7, "popularity": 0.4, "sequential_rules": 0.3}
    recipe = blend_recipe({name: recipe_of(name) for name in PARTS}, dict.fromkeys(SLICES, weights))
    model, matrix = fit(recipe, data)
    assert isinstance(model, Blend)
    people = np.arange(48)
    whole = model.score_block(matrix.preference, people)
    fewer = {part: without(model, part).score_block(matrix.preference, people) for part in weights}
    batch = score_block(scoring_of(model, matrix), 0)
    plain, all_for_it = 0, 0
    for row, found in enumerate(batch.to_pylist()):
        for place, number in enumerate(found["item_numbers"]):
            shares = dict(read_shares(found["shares"], place))
            falls = {part: float(whole[row, number] - fewer[part][row, number]) for part in weights}
            for_it = sum(fall for fall in falls.values() if fall > 0)
            assert bool(shares) == (for_it > 0)
            for part, fall in falls.items() if for_it > 0 else ():
                assert shares.get(part, 0.0) == pytest.approx(max(fall, 0) / for_it, abs=0.006), (row, number, part)
            if min(falls.values()) >= 0:
                all_for_it += 1
                for part, share in shares.items():
                    expected = float(whole[row, number]) * (1 - share)
                    assert fewer[part][row, number] == pytest.approx(expected, abs=0.006 * for_it + 1e-4)
            plain += 1
    assert plain > 500
    assert all_for_it > 50


def test_records_have_the_shares_of_lists(data: TrainingData) -> None:
    weights = {"als": 1.0, "ease": 0.7, "popularity": 0.001}
    recipe = blend_recipe({name: recipe_of(name) for name in PARTS}, {key: dict(weights) for key in SLICES})
    model, matrix = fit(recipe, data)
    batch = score_block(scoring_of(model, matrix), 0)
    silent = score_block(scoring_of(model, matrix, shares=False), 0)
    assert silent["shares"].null_count == 48
    assert silent.drop_columns(["shares"]).equals(batch.drop_columns(["shares"]))
    compared = 0
    for (user, record), (_, plain), row in zip(
        pack_batch(VERSION, batch), pack_batch(VERSION, silent), batch.to_pylist(), strict=True
    ):
        assert user == row["user_id"]
        assert (record[0], plain[0]) == (2, 1)
        assert record[1:] == plain[1:] + row["shares"]
        rows, _ = open_candidates(record, VERSION)
        for place, (number, shares) in enumerate(rows.shares_of(set(row["item_numbers"])).items()):
            assert number == row["item_numbers"][place]
            assert shares == read_shares(row["shares"], place)
            compared += 1
    assert compared > 500


def test_a_model_that_is_no_blend_has_all_of_its_list(data: TrainingData) -> None:
    model, matrix = fit(recipe_of("item_knn"), data)
    batch = score_block(scoring_of(model, matrix), 0)
    assert set(batch["shares"].to_pylist()) == {bytes([1, 4])}
    assert score_block(scoring_of(model, matrix, shares=False), 0)["shares"].null_count == 48
    assert shares_of_one("als", 0) == b""


def test_a_run_may_ask_for_lists_without_shares() -> None:
    assert keeps_shares({}) is keeps_shares({"shares": "kept"}) is True
    assert keeps_shares({"shares": "none"}) is False
    with pytest.raises(DataError, match=r"kept, none; got 'kept!'.*'kept'"):
        keeps_shares({"shares": "kept!"})
