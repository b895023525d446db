"""Items of a bundle: those of every format that was ever written are read, for ever."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.filter_language import parse_filter
from feature_repo.contracts.publication import ITEMS_FILE
from feature_repo.contracts.times import parse_timestamp, to_micros
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.item_facts import TextColumn
from serving.pipeline.item_filters import MAX_BOUND_FILTERS, item_filter, matching_numbers
from tests.serving_builders import Shop

GOLDEN = Path(__file__).parents[1] / "golden"


def load(items: bytes, publications: Path) -> Catalogue:
    """A version of two items (numbers 1 and 2) with this items.json."""
    shop = Shop({"a": {}, "b": {}}, first_number=1, static=[("a", 1.0)])
    shop.files[ITEMS_FILE] = items
    files = {**shop.manifest.files, ITEMS_FILE: hashlib.sha256(items).hexdigest()}
    shop.manifest = replace(shop.manifest, files=files)
    shop.version = shop.manifest.version()
    return shop.catalogue(publications)


def passing(catalogue: Catalogue, text: str) -> list[str]:
    admits = item_filter(text, catalogue, now_micros=0)
    return [item_id for number, item_id in enumerate(catalogue.item_ids) if item_id is not None and admits(number)]


def test_a_bundle_with_facts(tmp_path: Path) -> None:
    found = load((GOLDEN / "items_v1_facts.json").read_bytes(), tmp_path)
    facts = found.facts
    assert (facts.brand, facts.group_id, facts.language) == (
        [None, "Acme", None], [None, "g", None], [None, "de", None]
    )  # fmt: skip
    assert (facts.tags, facts.currency) == ([(), ("gift",), ()], [None, "GBP", "GBP"])
    assert facts.created_micros == [None, to_micros(parse_timestamp("2024-03-01T10:00:00Z")), None]
    assert [facts.url[n] for n in range(3)] == [None, "https://shop.example/a", None]
    assert (facts.attribute(1, "colour"), facts.attribute(1, "size"), facts.attribute(2, "colour")) == (
        "blau", None, None
    )  # fmt: skip
    assert {name: {value: list(n) for value, n in members.items()} for name, members in facts.members.items()} == {
        "category": {"Home": [1], "Home > Kitchen": [1]}, "brand": {"Acme": [1]}, "tag": {"gift": [1]},
        "group_id": {"g": [1]},
    }  # fmt: skip
    assert passing(found, 'brand == "Acme" and tag == "gift" and attributes.colour == "blau"') == ["a"]
    assert passing(found, "brand is null") == ["b"]


def test_a_bundle_from_before_there_were_facts(tmp_path: Path) -> None:
    found = load((GOLDEN / "items_v1.json").read_bytes(), tmp_path)
    assert found.attributes[1] == {"title": "Löffel", "category": "Home > Kitchen", "price": 1.5}
    assert passing(found, 'brand == "Acme" or tag == "gift" or attributes.colour is not null') == []
    assert passing(found, 'category == "Home" and price < 2 and created_at < "2024-03-02"') == ["a"]
    assert list(matching_numbers(parse_filter('brand == "Acme"'), found)) == []
    assert list(matching_numbers(parse_filter('category == "Home"'), found)) == [1]
    assert list(matching_numbers(parse_filter("price < 3"), found)) == [2, 1]


def test_a_time_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="does not follow its format"):
        load((GOLDEN / "items_v1.json").read_bytes().replace(b"2024-03-01T10:00:00Z", b"yesterday"), tmp_path)


def test_few_filters_are_kept_ready(tmp_path: Path) -> None:
    found = load((GOLDEN / "items_v1.json").read_bytes(), tmp_path)
    for price in range(MAX_BOUND_FILTERS + 10):
        assert passing(found, f"price < {price}") == (["a"] if price > 1.5 else [])
    assert len(found.bound_filters) == MAX_BOUND_FILTERS
    assert passing(found, 'created_at > ago("1d") or in_cart(item)') == ["a"]
    assert len(found.bound_filters) == MAX_BOUND_FILTERS


def test_texts_in_one_piece() -> None:
    column = TextColumn(["", None, "ä", "x" * 1000, "\ud800"])
    assert [column[n] for n in range(len(column))] == [None, None, "ä", "x" * 1000, "\ud800"]
