"""Feast's views over the gold tables, as `contracts.feature_table` defines the features.

Feast applies `ttl` when training frames are joined and not to online reads: readers compare the view's own timestamp.
"""

from __future__ import annotations

from feast import FeatureView, Field
from feast.types import Float64, Int64, String

from feature_repo.contracts import feature_table
from feature_repo.definitions.entities import category, item, user
from feature_repo.definitions.sources import gold_source

_TYPES = {"bigint": Int64, "double": Float64, "string": String}
_ENTITIES = {"user_id": user, "item_id": item, "category": category}


def feast_view(name: str) -> FeatureView:
    """The Feast view of a view of the contract."""
    view = feature_table.feature_view(name)
    return FeatureView(
        name=view.name,
        entities=[_ENTITIES[key] for key in view.join_keys],
        ttl=view.fresh_for,
        source=gold_source(view.table),
        description=view.description,
        schema=[_field(feature) for feature in view.features],
    )


def _field(feature: feature_table.Feature) -> Field:
    words = f"{feature.description} Unit: {feature.unit}."
    if feature.null_means is not None:
        words += f" Null: {feature.null_means}."
    tags = {"unit": feature.unit} | ({} if feature.default is None else {"default": str(feature.default)})
    return Field(name=feature.name, dtype=_TYPES[feature.type], description=words, tags=tags)


user_features = feast_view("user_features")
item_features = feast_view("item_features")
user_category_features = feast_view("user_category_features")
