"""Every feature, defined once: the columns of the gold tables, Feast's fields and the page of features follow from here.

A name is `<grain>_<measure>[_<window>]`. Windows are half-open and end at the `feature_timestamp` of the row, the run's
as_of (00:00 UTC): a value never sees what came after. Bots count nowhere. How a value is computed is said in
`spark_jobs/transforms`; a test holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from feature_repo.contracts.errors import ContractError, nearest

Grain = Literal["user", "item", "user_category"]
FeatureType = Literal["bigint", "double", "string"]


class Feature(NamedTuple):
    """One feature.

    type        a Spark type; bigint, double or string
    window      days before the feature_timestamp that count; None for all ages
    unit        what one of it is
    null_means  when a row has no value; None: it always has one
    default     what a reader who needs a number takes where there is no value or no row; None: there is no honest one
    """

    name: str
    grain: Grain
    type: FeatureType
    window: int | None
    unit: str
    null_means: str | None
    default: int | float | None
    description: str


class FeatureView(NamedTuple):
    """The features of one grain: a Delta table, and the Feast view of the same short name.

    join_keys  what one row is about, in the order of the table's columns
    fresh_for  how old a value may be: behind the instant asked for in training frames, behind the served version online
    """

    name: str
    table: str
    join_keys: tuple[str, ...]
    fresh_for: timedelta
    row: str
    description: str
    features: tuple[Feature, ...]

    def columns(self) -> dict[str, str]:
        """Column -> type of the Delta table, in order."""
        keys = dict.fromkeys(self.join_keys, "string")
        values = {feature.name: feature.type for feature in self.features}
        return {**keys, "feature_timestamp": "timestamp", **values, "as_of": "date"}


_NO_PURCHASES, _NO_VIEWS, _NO_EVENTS = "no purchase in the window", "no view in the window", "no event in the window"
_ALWAYS = None


def _of(grain: Grain) -> Callable[..., Feature]:
    """A maker of features of one grain: (name, type, window, unit, null_means, default, description)."""

    def make(name: str, *columns: Any) -> Feature:
        return Feature(name, grain, *columns)

    return make


_user, _item, _user_category = _of("user"), _of("item"), _of("user_category")

_USER_FEATURES = (
    _user("user_view_count_7d", "bigint", 7, "events", _ALWAYS, 0, "Item views: view_item, select_item and click."),
    _user("user_view_count_30d", "bigint", 30, "events", _ALWAYS, 0, "The same in 30 days."),
    _user("user_cart_count_30d", "bigint", 30, "events", _ALWAYS, 0, "Items put into the cart."),
    _user("user_purchase_count_90d", "bigint", 90, "order lines", _ALWAYS, 0, "Purchase lines."),
    _user("user_purchase_value_90d", "double", 90, "the shop's currency", _ALWAYS, 0.0,
          "Price x quantity (1 when absent) of purchases, or their value when they have no price. Refunds are not taken off, currencies are not converted."),
    _user("user_days_since_last_event", "double", None, "days", _ALWAYS, None, "From the newest event of any type and age."),
    _user("user_session_count_30d", "bigint", 30, "sessions", _ALWAYS, 0, "Sessions that began in the window, cut off at as_of."),
    _user("user_session_length_mean_30d", "double", 30, "seconds", "no session in the window", None,
          "Mean time from first to last event of these sessions; 0 for sessions of one event."),
    _user("user_distinct_item_count_30d", "bigint", 30, "items", _ALWAYS, 0, "Different items in events of any type."),
    _user("user_top_category_90d", "string", 90, "category path", "no preference event on an item with a category", None,
          "Category of most preference events, ties by alphabet. The segment rung of the fallback ladder reads it in the request."),
    _user("user_days_since_first_event", "double", None, "days", _ALWAYS, 0.0, "How long the user has been known: from the oldest event."),
    _user("user_days_since_last_purchase", "double", None, "days", "never bought", None, "Recency of buying, any age."),
    _user("user_active_day_count_30d", "bigint", 30, "days", _ALWAYS, 0, "UTC days with an event of any type."),
    _user("user_purchase_day_count_90d", "bigint", 90, "days", _ALWAYS, 0, "Frequency: UTC days with a purchase; several order lines of a day are one."),
    _user("user_days_between_purchases_365d", "double", 365, "days", "fewer than two purchase days in the window", None,
          "Mean distance between neighbouring purchase days."),
    _user("user_purchase_day_value_mean_90d", "double", 90, "the shop's currency", _NO_PURCHASES, 0.0, "user_purchase_value_90d per purchase day."),
    _user("user_refund_share_90d", "double", 90, "ratio", _NO_PURCHASES, 0.0,
          "Refund lines per purchase line; above 1 when older purchases came back."),
    _user("user_cart_abandonment_30d", "double", 30, "share, 0 to 1", "nothing put into the cart", None,
          "Items put into the cart and not bought in the window, per item put into the cart; an item counts once."),
    _user("user_search_count_30d", "bigint", 30, "events", _ALWAYS, 0, "Searches."),
    _user("user_price_ratio_median_90d", "double", 90, "ratio", "no priced event on an item of a category with prices", 1.0,
          "Price band: median over views, carts and purchases of the price seen against the median catalogue price of the item's category. Below 1: the cheaper half."),
    _user("user_distinct_category_count_90d", "bigint", 90, "categories", _ALWAYS, 0, "Different categories of preference events."),
    _user("user_night_share_30d", "double", 30, "share, 0 to 1", _NO_EVENTS, None, "Events from 22:00 to 06:00 UTC."),
    _user("user_weekend_share_30d", "double", 30, "share, 0 to 1", _NO_EVENTS, None, "Events on Saturday and Sunday (UTC)."),
    _user("user_app_share_30d", "double", 30, "share, 0 to 1", "no event that names its channel", None, "Events of channel `app` among those that name a channel."),
    _user("user_top_device_30d", "string", 30, "device", "no event that names a device or a channel", None,
          "Device of most events: `properties.device`, or the channel where it is absent; ties by alphabet."),
    _user("user_session_item_count_mean_30d", "double", 30, "items", "no session in the window", None, "Mean number of different items in a session."),
    _user("user_session_purchase_share_30d", "double", 30, "share, 0 to 1", "no session in the window", None, "Sessions with a purchase."),
)  # fmt: skip

_ITEM_FEATURES = (
    _item("item_view_count_7d", "bigint", 7, "events", _ALWAYS, 0, "Views: view_item, select_item and click."),
    _item("item_view_count_30d", "bigint", 30, "events", _ALWAYS, 0, "The same in 30 days."),
    _item("item_purchase_count_30d", "bigint", 30, "order lines", _ALWAYS, 0, "Purchase lines."),
    _item("item_subject_count_30d", "bigint", 30, "subjects", _ALWAYS, 0, "Different users and anonymous visitors with an event of any type."),
    _item("item_conversion_30d", "double", 30, "ratio", _NO_VIEWS, None, "Purchase lines per view; above 1 when people buy without viewing."),
    _item("item_price_mean_90d", "double", 90, "the shop's currency", "no event with a price in the window", None,
          "Mean price on events that carry one, each once whatever its quantity."),
    _item("item_days_since_created", "double", None, "days", "the catalogue does not say", None, "Freshness: from the item's creation."),
    _item("item_popularity_decayed", "double", None, "weight", _ALWAYS, 0.0, "Preference weights of all events, halved for every 7 days of age."),
    _item("item_view_count_1d", "bigint", 1, "events", _ALWAYS, 0, "Views of the last day."),
    _item("item_cart_count_1d", "bigint", 1, "events", _ALWAYS, 0, "Times put into a cart on the last day."),
    _item("item_cart_count_7d", "bigint", 7, "events", _ALWAYS, 0, "The same in 7 days."),
    _item("item_cart_count_30d", "bigint", 30, "events", _ALWAYS, 0, "The same in 30 days."),
    _item("item_purchase_count_1d", "bigint", 1, "order lines", _ALWAYS, 0, "Purchase lines of the last day."),
    _item("item_purchase_count_7d", "bigint", 7, "order lines", _ALWAYS, 0, "The same in 7 days."),
    _item("item_unit_count_30d", "bigint", 30, "pieces", _ALWAYS, 0, "Pieces bought: quantity (1 when absent) of purchase lines."),
    _item("item_purchase_value_30d", "double", 30, "the shop's currency", _ALWAYS, 0.0, "What purchases brought in; counted like user_purchase_value_90d."),
    _item("item_view_trend_30d", "double", 30, "ratio", _NO_VIEWS, 1.0, "Views a day in the last 7 days against views a day in 30: above 1 it rises, at most 30/7."),
    _item("item_cart_rate_30d", "double", 30, "ratio", _NO_VIEWS, None, "Times put into a cart per view."),
    _item("item_refund_share_90d", "double", 90, "ratio", _NO_PURCHASES, 0.0, "Refund lines per purchase line; above 1 when older purchases came back."),
    _item("item_price_change_90d", "double", 90, "ratio", "no price in the last 7 days, or none in the 83 before", 0.0,
          "Mean price of the last 7 days against that of the 83 days before, less 1: -0.2 is a fifth cheaper."),
    _item("item_days_since_last_purchase", "double", None, "days", "never bought", None, "From the newest purchase of any age."),
    _item("item_stock_cover_30d", "double", 30, "days", "stock unknown, or nothing sold in the window", None,
          "How long the catalogue's available quantity lasts at the window's sales a day."),
    _item("item_buyer_count_90d", "bigint", 90, "subjects", _ALWAYS, 0, "Different users and anonymous visitors who bought it."),
    _item("item_repeat_buyer_share_90d", "double", 90, "share, 0 to 1", _NO_PURCHASES, 0.0, "Buyers who bought it on two or more UTC days, among its buyers."),
)  # fmt: skip

_USER_CATEGORY_FEATURES = (
    _user_category("user_category_view_count_30d", "bigint", 30, "events", _ALWAYS, 0, "Views of items of the category."),
    _user_category("user_category_view_count_90d", "bigint", 90, "events", _ALWAYS, 0, "The same in 90 days."),
    _user_category("user_category_cart_count_30d", "bigint", 30, "events", _ALWAYS, 0, "Items of it put into the cart."),
    _user_category("user_category_purchase_count_30d", "bigint", 30, "order lines", _ALWAYS, 0, "Purchase lines."),
    _user_category("user_category_purchase_count_90d", "bigint", 90, "order lines", _ALWAYS, 0, "The same in 90 days."),
    _user_category("user_category_purchase_value_90d", "double", 90, "the shop's currency", _ALWAYS, 0.0,
                   "What these purchases cost; counted like user_purchase_value_90d."),
    _user_category("user_category_event_share_90d", "double", 90, "share, 0 to 1", _ALWAYS, 0.0,
                   "Share of the user's preference events (on items with a category) that are on this one; a user's shares sum to 1."),
    _user_category("user_category_days_since_last_event_90d", "double", 90, "days", _ALWAYS, None, "From the newest preference event on the category."),
)  # fmt: skip

_FRESH_FOR = timedelta(days=3)

FEATURE_VIEWS: Mapping[str, FeatureView] = {
    view.name: view
    for view in (
        FeatureView(
            "user_features", "gold.user_features", ("user_id",), _FRESH_FOR, "one user at one as_of",
            "What a known user did lately. Users without an event before as_of, bots, and users who do not allow "
            "personalization have no row.", _USER_FEATURES,
        ),
        FeatureView(
            "item_features", "gold.item_features", ("item_id",), _FRESH_FOR, "one item at one as_of",
            "How an item did lately. Items created at or after as_of have no row.", _ITEM_FEATURES,
        ),
        FeatureView(
            "user_category_features", "gold.user_category_features", ("user_id", "category"), _FRESH_FOR,
            "one user and one category at one as_of",
            "What a known user did in one category (the full path). Only categories of the user's preference events of "
            "90 days have a row; who has no row in user_features has none here.", _USER_CATEGORY_FEATURES,
        ),
    )
}  # fmt: skip
"""By name. A preference event is one of a type with a default preference weight."""


def feature_view(name: str) -> FeatureView:
    """The view of this name. Raises ContractError naming the nearest one."""
    if name not in FEATURE_VIEWS:
        raise ContractError(f"no feature view {name!r}{nearest(name, FEATURE_VIEWS)}")
    return FEATURE_VIEWS[name]


def features() -> dict[str, Feature]:
    """Every feature by name."""
    return {feature.name: feature for view in FEATURE_VIEWS.values() for feature in view.features}
