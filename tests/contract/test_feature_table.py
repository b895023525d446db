"""The one table of features, and what follows from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.feature_table import FEATURE_VIEWS, feature_view, features
from feature_repo.contracts.tables import TABLES
from feature_repo.features_page import render_page

ROOT = Path(__file__).parents[2]
NAME = re.compile(r'"((?:user|item)_[a-z_]+(?:_\d+d)?)"')
ENTITIES = {"user_id": "user", "item_id": "item", "category": "category"}
SPINE = (
    "user_view_count_7d", "user_view_count_30d", "user_cart_count_30d", "user_purchase_count_90d",
    "user_purchase_value_90d", "user_days_since_last_event", "user_session_count_30d", "user_session_length_mean_30d",
    "user_distinct_item_count_30d", "user_top_category_90d", "item_view_count_7d", "item_view_count_30d",
    "item_purchase_count_30d", "item_subject_count_30d", "item_conversion_30d", "item_price_mean_90d",
    "item_days_since_created", "item_popularity_decayed",
)  # fmt: skip
"""Names that are stored since the first release: they stay."""


def test_names_say_grain_and_window() -> None:
    everything = features()
    assert len(everything) == sum(len(view.features) for view in FEATURE_VIEWS.values()) == 59
    assert set(SPINE) <= set(everything)
    for name, feature in everything.items():
        prefix = feature.grain + "_"
        assert name.startswith(prefix), name
        assert (feature.grain == "user_category") == name.startswith("user_category_")
        window = re.search(r"_(\d+)d$", name)
        assert (None if window is None else int(window[1])) == feature.window, name
        assert feature.unit, name
        assert feature.description.endswith("."), name


def test_what_is_never_null_is_a_number() -> None:
    counts = [feature for feature in features().values() if feature.type == "bigint"]
    assert len(counts) > 25
    for feature in counts:
        assert (feature.null_means, feature.default) == (None, 0), feature.name
    for feature in features().values():
        if feature.type == "string":
            assert feature.default is None


def test_tables_have_the_features_and_no_other_column() -> None:
    assert len(FEATURE_VIEWS) == 3
    for view in FEATURE_VIEWS.values():
        spec = TABLES[view.table]
        assert list(spec.columns) == [
            *view.join_keys, "feature_timestamp", *(feature.name for feature in view.features), "as_of",
        ]  # fmt: skip
        assert (spec.partition_by, spec.writer) == (("as_of",), "build_features")


def test_every_defined_feature_is_computed_and_no_other() -> None:
    found: set[str] = set()
    for module in ("user_features", "item_features"):
        found |= set(NAME.findall((ROOT / "spark_jobs/transforms" / f"{module}.py").read_text()))
    other = {"user_id", "item_id", "item_count", "user_features", "item_features"}
    assert found - other == set(features())


def test_feast_has_the_features_with_their_words(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTJAR_HOME", str(tmp_path))
    from feature_repo import repo

    assert len(FEATURE_VIEWS) == 3
    for name, view in FEATURE_VIEWS.items():
        feast_view = getattr(repo, name)
        assert {field.name for field in feast_view.features} == {feature.name for feature in view.features}
        assert (feast_view.ttl, feast_view.entities) == (view.fresh_for, [ENTITIES[key] for key in view.join_keys])
        words = {field.name: field.description for field in feast_view.features}
        for feature in view.features:
            assert words[feature.name].startswith(feature.description)


def test_the_page_is_current() -> None:
    page = (ROOT / "infra/docs/features.md").read_text(encoding="utf-8")
    assert page == render_page(), "python -m feature_repo.features_page > infra/docs/features.md"
    assert all(f"`{name}`" in page for name in features())


def test_an_unknown_view_gets_a_hint() -> None:
    with pytest.raises(ContractError, match="did you mean 'item_features'"):
        feature_view("items_features")
