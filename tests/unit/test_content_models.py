"""The models that read the catalogue, worked out by hand on seven gifts, one of which nobody ever had."""

from __future__ import annotations

import json
from dataclasses import replace
from math import log, log2, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.packing import Source
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.factory import build_model, load_model
from spark_jobs.models.item_content import ItemContent, describe, read_content
from spark_jobs.models.linear import linear_terms

TYPES = {
    "item_id": pa.string(), "title": pa.string(), "category": pa.string(), "brand": pa.string(), "price": pa.float64(),
    "currency": pa.string(), "attributes": pa.string(),
}  # fmt: skip


def item(item_id: str, **said: Any) -> dict[str, Any]:
    attributes = said.pop("attributes", None)
    row: dict[str, Any] = dict.fromkeys(TYPES) | {"item_id": item_id, **said}
    return row | {"attributes": None if attributes is None else json.dumps(attributes)}


GIFTS = [
    item("lamp", title="Red Lamp", category="Home > Light", brand="Aro", price=10.0, currency="GBP"),
    item("lantern", title="red lantern", category="Home > Light", brand="aro ", price=13.0, currency="GBP"),
    item("vase", title="Blue vase 12", category="Home > Glass", price=20.0, currency="GBP"),
    item("mug", title="Blue Mug", category="Kitchen", price=10.0, currency="EUR", attributes={"tags": ["gift", "tea"]}),
    item("card", title="", attributes={"tags": ["gift"], "updated_at": "2024-01-01T00:00:00Z", "eco": True, "n": 3}),
    item("new", title="Red lamp", category="Home > Light"),
    item("void"),
]
NUMBERS = {"lamp": 0, "lantern": 1, "vase": 2, "mug": 3, "card": 4, "new": 5, "void": 6}
COUNT = len(NUMBERS)
LIKED = np.array([[3, 0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [0, 7, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0]], float)


def content_of(rows: list[dict[str, Any]], numbers: dict[str, int] = NUMBERS) -> ItemContent:
    return read_content(pa.Table.from_pylist(rows, pa.schema(TYPES)), numbers, item_count=len(numbers))


def matrix_of(dense: np.ndarray, content: ItemContent | None) -> InteractionMatrix:
    preference = sparse.csr_matrix(dense.astype(np.float32))
    subjects = np.array([f"u:{n}" for n in range(len(dense))])
    return InteractionMatrix(subjects, preference, np.zeros(preference.nnz, np.int64), content)


def fitted(name: str, content: ItemContent, dense: np.ndarray = LIKED, **params: Any) -> Model:
    model = build_model(name, params)
    model.fit(matrix_of(dense, content))
    return model


def only(**weights: float) -> dict[str, float]:
    return {**dict.fromkeys(("text", "category", "brand", "price", "tags", "embedding"), 0.0), **weights}


class TestWhatIsSaid:
    def test_terms_of_each_kind(self) -> None:
        assert sorted(describe(GIFTS[0]).terms) == [
            ("brand", "aro"), ("category", "home"), ("category", "home > light"), ("price", "GBP 6"),
            ("text", "lamp"), ("text", "red"),
        ]  # fmt: skip
        assert sorted(describe(GIFTS[3]).terms) == [
            ("category", "kitchen"), ("price", "EUR 6"), ("tags", "tags=gift"), ("tags", "tags=tea"),
            ("text", "blue"), ("text", "mug"),
        ]  # fmt: skip
        assert sorted(describe(GIFTS[4]).terms) == [("tags", "eco=true"), ("tags", "tags=gift")]
        assert list(describe(GIFTS[6]).terms) == []

    def test_prices_share_a_band_of_half_an_octave(self) -> None:
        bands = [next(iter(describe(item("x", price=p)).terms), None) for p in (8.0, 11.3, 11.4, 0.0, -1.0, 1e-3)]
        assert bands == [("price", " 6"), ("price", " 6"), ("price", " 7"), None, None, ("price", " -20")]

    def test_a_long_attribute_is_a_text_and_a_broken_one_is_nothing(self) -> None:
        long = "A hand made lamp of recycled glass, made to last for a long time"
        found = sorted(describe(item("x", attributes={"description": long})).terms)
        assert ("text", "recycled") in found
        assert {kind for kind, _ in found} == {"text"}
        assert list(describe({**item("x"), "attributes": "{broken"}).terms) == []
        assert list(describe({**item("x"), "attributes": "[1]"}).terms) == []

    def test_the_last_row_of_an_item_counts_and_unknown_items_do_not(self) -> None:
        content = content_of([item("a", title="old"), item("b", title="new"), item("a", title="new")], {"a": 0})
        assert content.terms.toarray().tolist() == [[1.0]]

    def test_a_word_said_twice_is_said(self) -> None:
        assert content_of([item("a", title="red Red")], {"a": 0}).terms.toarray().tolist() == [[1.0]]

    def test_embeddings_of_the_usual_width_have_length_one(self) -> None:
        given = [[3.0, 4.0], [0, 2], [1.0, 2.0, 3.0], [0.0, 0.0], ["1", "2"], [float("inf"), 1.0], [True, False]]
        rows = [item(name, attributes={"embedding": v}) for name, v in zip(NUMBERS, given, strict=True)]
        content = content_of(rows)
        expected = [[0.6, 0.8], [0, 1], *[[0, 0]] * 5]
        np.testing.assert_allclose(content.vectors, expected)
        assert content.described_count == 2
        assert content.terms.nnz == 0

    def test_the_top_category_of_each_item(self) -> None:
        content = content_of(GIFTS)
        assert content.described_count == 6
        assert content.tops[[0, 1, 2, 5]].tolist() == [content.tops[0]] * 4
        assert content.tops[3] not in (-1, content.tops[0])
        assert content.tops[[4, 6]].tolist() == [-1, -1]


class TestContent:
    def test_likeness_of_titles_by_hand(self) -> None:
        """7 items; red is said of 3, lamp and blue of 2, lantern, vase, 12 and mug of 1 each."""
        red, lamp, lantern, blue, mug = log(7 / 3), log(7 / 2), log(7), log(7 / 2), log(7)
        alike = np.zeros((COUNT, COUNT))
        alike[0, 1] = alike[5, 1] = red**2 / sqrt(red**2 + lamp**2) / sqrt(red**2 + lantern**2)
        alike[0, 5] = 1.0
        alike[2, 3] = blue**2 / sqrt(blue**2 + 2 * mug**2) / sqrt(blue**2 + mug**2)
        alike = np.maximum(alike, alike.T)
        model = fitted("content", content_of(GIFTS), **only(text=2.0), popular_power=0.0, neighbours=COUNT)
        histories = sparse.csr_matrix(np.eye(COUNT, dtype=np.float32) * 3)
        np.testing.assert_allclose(model.score_block(histories), 2 * alike, atol=1e-6)
        assert model.similar(5, 2) == [(0, pytest.approx(1.0)), (1, pytest.approx(alike[5, 1]))]
        assert model.similar(6, 2) == []

    def test_kinds_add_up_by_their_weights_and_a_kind_nobody_has_does_not_count(self) -> None:
        content = content_of(GIFTS)
        eye = sparse.csr_matrix(np.eye(COUNT, dtype=np.float32))
        kinds = {"text": 1.0, "category": 2.0, "brand": 0.5, "price": 0.25, "tags": 1.5}
        parts = {k: fitted("content", content, **only(**{k: 1.0}), popular_power=0.0).score_block(eye) for k in kinds}
        assert len(parts) == 5
        expected = sum((weight * parts[kind] * (1.0) for kind, weight in kinds.items()), np.zeros((COUNT, COUNT)))
        together = fitted("content", content, **only(**kinds), popular_power=0.0, neighbours=COUNT).score_block(eye)
        np.testing.assert_allclose(together, expected / 5.25, atol=1e-6)
        with_nobodys = fitted("content", content, **only(**kinds, embedding=9.0), popular_power=0.0, neighbours=COUNT)
        np.testing.assert_allclose(with_nobodys.score_block(eye), together)
        assert together[0, 3] == 0.0, "ten pounds are not ten euros"
        assert together[3, 4] > 0.0, "both are tagged as gifts"

    def test_what_many_have_comes_first_among_those_alike(self) -> None:
        """The lamp is as like the new lamp as can be; two have it, two have the lantern, nobody the new one."""
        model = fitted("content", content_of(GIFTS), **only(category=1.0), popular_power=1.0, neighbours=COUNT)
        scores = model.score_block(sparse.csr_matrix(np.eye(COUNT, dtype=np.float32)[[0]]))[0]
        assert scores[1] == pytest.approx(3 * scores[5])
        assert scores[0] == 0.0
        assert [number for number, _ in model.similar(0, 3)] == [1, 5, 2]

    def test_each_item_keeps_its_best_and_of_equal_ones_the_first(self) -> None:
        model: Any = fitted("content", content_of(GIFTS), **only(category=1.0), popular_power=0.0, neighbours=1)
        kept = model.links.toarray()
        assert [int(row.argmax()) if row.any() else None for row in kept] == [1, 0, 0, None, None, 0, None]

    def test_a_term_of_nearly_everything_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("spark_jobs.models.content.COMMON_COUNT", 2)
        model: Any = fitted("content", content_of(GIFTS), **only(text=1.0), popular_power=0.0, neighbours=COUNT)
        assert model.links[0, 1] == 0.0, "they share nothing but red"
        assert model.links[0, 5] == pytest.approx(1.0)

    def test_embeddings_by_their_cosine_negative_ones_never(self) -> None:
        given = {"lamp": [1, 0], "lantern": [3, 4], "vase": [-1, 0], "mug": [0, 5]}
        rows = [item(name, attributes={"embedding": vector}) for name, vector in given.items()]
        model: Any = fitted("content", content_of(rows), **only(embedding=0.5), popular_power=0.0, neighbours=COUNT)
        expected = np.zeros((COUNT, COUNT))
        expected[0, 1] = expected[1, 0] = 0.6
        expected[1, 3] = expected[3, 1] = 0.8
        np.testing.assert_allclose(model.links.toarray(), expected, atol=1e-6)

    def test_its_terms_are_its_score_and_it_is_the_same_from_disk(self, tmp_path: Path) -> None:
        model = fitted("content", content_of(GIFTS), neighbours=COUNT)
        history = sparse.csr_matrix(LIKED[[0]].astype(np.float32))
        scores = model.score_block(history)
        terms = model.terms(history, 0, range(COUNT))
        np.testing.assert_allclose(terms.values.sum(axis=1), scores[0], rtol=1e-5)
        np.testing.assert_allclose(terms.values, linear_terms(model.score_block, history, range(COUNT)), rtol=1e-5)
        assert model.explain(history, 0, [1, 4]) == [(0, None), (3, None)]
        model.save(tmp_path / "content")
        again = load_model(tmp_path / "content")
        assert again.name == "content"
        assert again.source == Source.CONTENT == 9
        np.testing.assert_array_equal(again.score_block(history), scores)

    def test_without_a_catalogue_it_says_so(self) -> None:
        for name in ("content", "segment_popularity"):
            with pytest.raises(DataError, match=f"{name} has .*nobody described the items"):
                build_model(name, {}).fit(matrix_of(LIKED, None))


class TestSegmentPopularity:
    def test_by_hand(self) -> None:
        """Home was preferred 3+1, 1+7 capped at 2 each: lamp 2+1, lantern 1+2, vase 1; the mug is all of Kitchen."""
        model = fitted("segment_popularity", content_of(GIFTS), subject_cap=2.0)
        home = np.array([3, 3, 1, 0, 0, 0, 0]) / 7
        kitchen = np.array([0, 0, 0, 1, 0, 0, 0])
        scores = model.score_block(sparse.csr_matrix(LIKED.astype(np.float32)))
        expected = [
            log2(4) * home + log2(2) * kitchen,
            2 * log2(2) * home,
            (log2(8) + log2(2)) * home,
            np.zeros(COUNT),
        ]
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
        history = sparse.csr_matrix(LIKED[[0]].astype(np.float32))
        assert model.explain(history, 0, [1, 3, 4]) == [(0, None), (3, None), (None, None)]

    def test_a_shop_without_categories_scores_nothing(self, tmp_path: Path) -> None:
        model = fitted("segment_popularity", content_of([item("lamp", title="Red")]), subject_cap=8.0)
        histories = sparse.csr_matrix(LIKED.astype(np.float32))
        assert not model.score_block(histories).any()
        model.save(tmp_path / "s")
        assert not load_model(tmp_path / "s").score_block(histories).any()

    def test_items_alone_in_their_categories(self) -> None:
        rows = [item(name, category=name) for name in NUMBERS]
        model = fitted("segment_popularity", content_of(rows), subject_cap=8.0)
        found = model.score_block(sparse.csr_matrix(LIKED.astype(np.float32)))
        np.testing.assert_allclose(found, np.where(LIKED > 0, np.log2(1 + LIKED), 0), rtol=1e-6)


def test_the_content_travels_with_the_matrix() -> None:
    content = content_of(GIFTS)
    assert replace(matrix_of(LIKED, None), content=content).content is content
