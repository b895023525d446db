"""The features: each with its window, its unit and what its absence means.

Windows end, exclusively, at the `feature_timestamp` of the row (the run's as_of): a value never sees what came after.
"""

from __future__ import annotations

from datetime import timedelta

from feast import FeatureView, Field
from feast.types import Float64, Int64, String

from feature_repo.definitions.entities import item, user
from feature_repo.definitions.sources import gold_source

FRESH_FOR = timedelta(days=3)
"""How old a value may be when training frames are joined. Feast does not apply this to online reads: readers compare
the view's own timestamp."""

user_features = FeatureView(
    name="user_features",
    entities=[user],
    ttl=FRESH_FOR,
    source=gold_source("gold.user_features"),
    description="What a known user did lately. Users without events before as_of, and bots, have no row.",
    schema=[
        Field(name="user_view_count_7d", dtype=Int64, description="Item views, clicks included, in 7 days."),
        Field(name="user_view_count_30d", dtype=Int64, description="The same in 30 days."),
        Field(name="user_cart_count_30d", dtype=Int64, description="Items put into the cart in 30 days."),
        Field(name="user_purchase_count_90d", dtype=Int64, description="Purchase lines in 90 days."),
        Field(
            name="user_purchase_value_90d",
            dtype=Float64,
            description="Price x quantity of purchases in 90 days, in the shop's currency; 0 without purchases.",
        ),
        Field(
            name="user_days_since_last_event",
            dtype=Float64,
            description="Days from the newest event to as_of, any age.",
        ),
        Field(name="user_session_count_30d", dtype=Int64, description="Sessions that started in 30 days."),
        Field(
            name="user_session_length_mean_30d",
            dtype=Float64,
            description="Mean seconds from first to last event of these sessions; null without sessions.",
        ),
        Field(name="user_distinct_item_count_30d", dtype=Int64, description="Different items touched in 30 days."),
        Field(
            name="user_top_category_90d",
            dtype=String,
            description="The category path of most preference events in 90 days, ties by alphabet; null without one. "
            "The segment rung of the fallback ladder reads it in the request.",
        ),
    ],
)

item_features = FeatureView(
    name="item_features",
    entities=[item],
    ttl=FRESH_FOR,
    source=gold_source("gold.item_features"),
    description="How an item did lately. Bots do not count.",
    schema=[
        Field(name="item_view_count_7d", dtype=Int64, description="Views, clicks included, in 7 days."),
        Field(name="item_view_count_30d", dtype=Int64, description="The same in 30 days."),
        Field(name="item_purchase_count_30d", dtype=Int64, description="Purchase lines in 30 days."),
        Field(name="item_subject_count_30d", dtype=Int64, description="Different subjects in 30 days."),
        Field(
            name="item_conversion_30d",
            dtype=Float64,
            description="Purchase lines per view in 30 days; null without views.",
        ),
        Field(
            name="item_price_mean_90d",
            dtype=Float64,
            description="Mean price on events in 90 days, in the shop's currency; null when no event carried a price.",
        ),
        Field(
            name="item_days_since_created",
            dtype=Float64,
            description="Days from the item's creation to as_of; null when the catalogue does not say.",
        ),
        Field(
            name="item_popularity_decayed",
            dtype=Float64,
            description="Preference events, each worth half as much every 7 days; all ages.",
        ),
    ],
)
