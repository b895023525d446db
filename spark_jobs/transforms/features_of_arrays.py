"""Features of a whole history in memory: what `feature_facts`, `user_features` and `item_features` say of frames, said
of arrays. A test holds the two to each other.

Some fifty bytes an event are held. People, items, categories, client ids, channels and devices are numbers, -1 for
none. Doubles have NaN where a feature is null.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts.events import CLIENT_SESSION_GAP, DEFAULT_PREFERENCE_WEIGHTS, EventType
from feature_repo.contracts.tables import table
from spark_jobs.transforms.feature_facts import VIEW_TYPES
from spark_jobs.transforms.item_features import POPULARITY_HALF_LIFE_DAYS
from spark_jobs.transforms.sums import (
    NEVER,
    Floats,
    Integers,
    Mask,
    count,
    distinct,
    latest,
    medians,
    most_frequent,
    numbered,
    ratio,
    sum_units,
    to_units,
)
from spark_jobs.transforms.user_features import NIGHT_HOURS
from spark_jobs.transforms.whole_history import Micros, Numbers, People, split_sessions

MONEY_DIGITS, WEIGHT_DIGITS = 6, 12
_APP = "app"
_DAY_MICROS = 86_400_000_000
_HOUR_MICROS = 3_600_000_000
_OF_90_DAYS = 91
_WEEKEND = (2, 3)
"""1 January 1970 was a Thursday: Saturday and Sunday are these days of a week that begins then."""


class Shelf(NamedTuple):
    """The catalogue, by its own order of items. `category` is the number of each item's in `categories`, which are
    sorted; `created` (us) is NEVER where nobody knows, `stock` NaN."""

    item_ids: pa.StringArray
    category: Numbers
    categories: pa.StringArray
    price: Floats
    created: Micros
    stock: Floats


class Facts(NamedTuple):
    """The events before `end` (us) that count: no bot's, no operator's unmerge. By event unless said otherwise.

    people     of all events, by number: their subject_keys; is_allowed, of each: a user who does not deny
    item       the number in `item_ids`; category and category_price are those of the item
    kind       the number in `kinds`
    price      NaN where none is told; amount: what a purchase line cost, in units of 10^-6, where has_amount
    channel    in `channels`; device: in `devices`, which are sorted; told of the last 30 days
    """

    end: int
    people: pa.StringArray
    is_allowed: Mask
    item_ids: pa.StringArray
    categories: pa.StringArray
    kinds: list[str | None]
    channels: pa.StringArray
    devices: pa.StringArray
    person: Numbers
    client_id: Numbers
    item: Numbers
    category: Numbers
    category_price: Floats
    kind: Numbers
    micros: Micros
    price: Floats
    quantity: Integers
    amount: Integers
    has_amount: Mask
    channel: Numbers
    device: Numbers

    def within(self, days: int) -> Mask:
        """In the window of `days` before the end."""
        return self.micros >= self.end - days * _DAY_MICROS

    def of(self, *kinds: str) -> Mask:
        """Events of these types."""
        return np.array([kind in kinds for kind in self.kinds], bool)[self.kind]

    def rows(self, places: NDArray[np.int64]) -> Facts:
        """Some of the events."""
        names = self._fields[self._fields.index("person") :]
        return self._replace(**{name: getattr(self, name)[places] for name in names})

    def days_until(self, moments: Micros) -> Floats:
        """Days (fractional) to the end; NaN for NEVER."""
        return np.where(moments == NEVER, np.nan, (self.end - moments) / float(_DAY_MICROS))


def shelf_of(items: pa.Table) -> Shelf:
    """From the columns item_id, category, price, created_at and available_quantity of the items."""
    words = items["category"].combine_chunks().cast(pa.string())
    categories = pc.unique(words.drop_null())
    categories = categories.take(pc.sort_indices(categories))
    created = items["created_at"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return Shelf(
        items["item_id"].combine_chunks().cast(pa.string()),
        places_in(words, categories),
        categories,
        floats(items["price"]),
        pc.fill_null(created, NEVER).to_numpy(),
        floats(items["available_quantity"].cast(pa.float64())),
    )


def of_items(shelf: Shelf, item_ids: pa.StringArray, end: int) -> tuple[Numbers, Floats]:
    """(the category of each item, NaN or the median catalogue price of its category's items created before `end`)."""
    counts = (shelf.category >= 0) & (shelf.created < end) & ~np.isnan(shelf.price)
    middle = medians(shelf.price[counts], shelf.category[counts], len(shelf.categories))
    place = places_in(item_ids, shelf.item_ids)
    category = np.append(shelf.category, np.int32(-1))[place]
    return category, np.append(middle, np.nan)[category]


def user_rows(facts: Facts) -> tuple[pa.Table, pa.Table]:
    """(gold.user_features, gold.user_category_features), as_of excepted."""
    past = facts.rows(np.flatnonzero(facts.is_allowed[facts.person]))
    users = distinct(past.person.astype(np.int64), len(facts.people))
    number = np.full(len(facts.people), -1, np.int32)
    number[users] = np.arange(len(users), dtype=np.int32)
    user = number[past.person]
    user_ids = pc.utf8_slice_codeunits(facts.people.take(pa.array(users)), 2)
    values = {
        **_what_users_did(past, user, len(users)),
        **_whens_of_users(past, user, len(users)),
        **_tastes(past, user, len(users)),
        **_sessions_of_users(past, user, len(users)),
    }
    rows = _rows("gold.user_features", facts.end, {"user_id": user_ids, **values})
    return rows, _user_category_rows(past, user, user_ids)


def _what_users_did(past: Facts, user: Numbers, size: int) -> dict[str, NDArray[np.generic]]:
    in_7, in_30, in_90 = (past.within(days) for days in (7, 30, 90))
    viewed, bought, carted = _viewed(past), past.of(EventType.PURCHASE), past.of(EventType.ADD_TO_CART)
    purchases = count(user, bought & in_90, size)
    paid = bought & in_90 & past.has_amount
    width = len(past.item_ids)

    def items(mask: Mask) -> Integers:
        some = mask & (past.item >= 0)
        return distinct(user[some].astype(np.int64) * width + past.item[some], size * width)

    put, taken = items(carted & in_30), items(bought & in_30)
    left = np.setdiff1d(put, taken, assume_unique=True)
    return {
        "user_view_count_7d": count(user, viewed & in_7, size),
        "user_view_count_30d": count(user, viewed & in_30, size),
        "user_cart_count_30d": count(user, carted & in_30, size),
        "user_purchase_count_90d": purchases,
        "user_purchase_value_90d": sum_units(past.amount[paid], user[paid], size, MONEY_DIGITS),
        "user_distinct_item_count_30d": _by_first(items(in_30), width, size),
        "user_refund_share_90d": ratio(count(user, past.of(EventType.REFUND) & in_90, size), purchases),
        "user_cart_abandonment_30d": ratio(_by_first(left, width, size), _by_first(put, width, size)),
        "user_search_count_30d": count(user, past.of(EventType.SEARCH) & in_30, size),
    }


def _whens_of_users(past: Facts, user: Numbers, size: int) -> dict[str, NDArray[np.generic]]:
    in_30, in_365, bought = past.within(30), past.within(365), past.of(EventType.PURCHASE)
    day = past.micros // _DAY_MICROS
    end_day = past.end // _DAY_MICROS

    def days(mask: Mask, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(user, days before the end) of each different day of the last `length`, sorted."""
        keys = distinct(user[mask].astype(np.int64) * (length + 1) + end_day - day[mask], size * (length + 1))
        return keys // (length + 1), keys % (length + 1)

    buyer, ago = days(bought & in_365, 365)
    recent = np.bincount(buyer[ago <= 90], minlength=size)
    newest, oldest = np.full(size, 1000), np.full(size, -1)
    np.minimum.at(newest, buyer, ago)
    np.maximum.at(oldest, buyer, ago)
    paid = bought & past.within(90) & past.has_amount
    hour = past.micros // _HOUR_MICROS % 24
    at_night = (hour >= NIGHT_HOURS[0]) | (hour < NIGHT_HOURS[1])
    events = count(user, in_30, size)
    return {
        "user_days_since_last_event": past.days_until(latest(past.micros, user, size)),
        "user_days_since_first_event": past.days_until(-latest(-past.micros, user, size)),
        "user_days_since_last_purchase": past.days_until(latest(past.micros[bought], user[bought], size)),
        "user_active_day_count_30d": np.bincount(days(in_30, 30)[0], minlength=size),
        "user_purchase_day_count_90d": recent,
        "user_days_between_purchases_365d": ratio(
            oldest - newest, np.maximum(np.bincount(buyer, minlength=size) - 1, 0)
        ),
        "user_purchase_day_value_mean_90d": ratio(sum_units(past.amount[paid], user[paid], size, MONEY_DIGITS), recent),
        "user_night_share_30d": ratio(count(user, at_night & in_30, size), events),
        "user_weekend_share_30d": ratio(count(user, np.isin(day % 7, _WEEKEND) & in_30, size), events),
    }


def _tastes(past: Facts, user: Numbers, size: int) -> dict[str, NDArray[np.generic] | pa.Array]:
    in_30, in_90 = past.within(30), past.within(90)
    shows_price = _viewed(past) | past.of(EventType.ADD_TO_CART, EventType.PURCHASE)
    priced = shows_price & in_90 & (past.category_price > 0) & ~np.isnan(past.price)
    tells = past.of(*DEFAULT_PREFERENCE_WEIGHTS) & in_90 & (past.category >= 0)
    categories = max(1, len(past.categories))
    keys = distinct(user[tells].astype(np.int64) * categories + past.category[tells], size * categories)
    has_device, has_channel = in_30 & (past.device >= 0), in_30 & (past.channel >= 0)
    is_app = np.array([channel == _APP for channel in [*past.channels.to_pylist(), None]], bool)[past.channel]
    return {
        "user_top_category_90d": _words(
            past.categories, most_frequent(past.category[tells], user[tells], categories, size)
        ),
        "user_price_ratio_median_90d": medians(past.price[priced] / past.category_price[priced], user[priced], size),
        "user_distinct_category_count_90d": _by_first(keys, categories, size),
        "user_app_share_30d": ratio(count(user, is_app & in_30, size), count(user, has_channel, size)),
        "user_top_device_30d": _words(
            past.devices, most_frequent(past.device[has_device], user[has_device], len(past.devices), size)
        ),
    }


def _sessions_of_users(past: Facts, user: Numbers, size: int) -> dict[str, NDArray[np.generic]]:
    """Sessions of the last 30 days, as `user_features` makes them: a day more is read, so that what continues an older
    session is not taken for the start of a new one."""
    start = past.end - 30 * _DAY_MICROS
    some = past.micros >= start - CLIENT_SESSION_GAP // timedelta(microseconds=1)
    sessions = split_sessions(
        People(past.people, user[some]), client_id=past.client_id[some], client_ids=None, micros=past.micros[some],
        item=past.item[some], is_purchase=past.of(EventType.PURCHASE)[some], counts=np.ones(some.sum(), bool),
    )  # fmt: skip
    begun = sessions.started >= start
    of = sessions.person[begun]
    counts = np.bincount(of, minlength=size)
    lengths = sum_units((sessions.ended - sessions.started)[begun], of, size, MONEY_DIGITS)
    items = np.bincount(of, weights=sessions.item_count[begun], minlength=size)
    return {
        "user_session_count_30d": counts,
        "user_session_length_mean_30d": ratio(lengths, counts),
        "user_session_item_count_mean_30d": ratio(items, counts),
        "user_session_purchase_share_30d": ratio(count(of, sessions.has_purchase[begun], size), counts),
    }


def _user_category_rows(past: Facts, user: Numbers, user_ids: pa.Array) -> pa.Table:
    some = np.flatnonzero((past.category >= 0) & past.of(*DEFAULT_PREFERENCE_WEIGHTS) & past.within(90))
    recent, user = past.rows(some), user[some]
    width = max(1, len(past.categories))
    pairs = user.astype(np.int64) * width + recent.category
    keys, group = numbered(pairs, len(user_ids) * width)
    size, of = len(keys), keys // width
    in_30, viewed, bought = recent.within(30), _viewed(recent), recent.of(EventType.PURCHASE)
    paid = bought & recent.has_amount
    events = np.bincount(group, minlength=size)
    carted = recent.of(EventType.ADD_TO_CART)
    values = {
        "user_id": user_ids.take(pa.array(of)),
        "category": _words(past.categories, keys % width),
        "user_category_view_count_30d": count(group, viewed & in_30, size),
        "user_category_view_count_90d": count(group, viewed, size),
        "user_category_cart_count_30d": count(group, carted & in_30, size),
        "user_category_purchase_count_30d": count(group, bought & in_30, size),
        "user_category_purchase_count_90d": count(group, bought, size),
        "user_category_purchase_value_90d": sum_units(recent.amount[paid], group[paid], size, MONEY_DIGITS),
        "user_category_event_share_90d": events / np.bincount(of, weights=events, minlength=len(user_ids))[of],
        "user_category_days_since_last_event_90d": past.days_until(latest(recent.micros, group, size)),
    }
    return _rows("gold.user_category_features", past.end, values)


def item_rows(facts: Facts, shelf: Shelf) -> pa.Table:
    """gold.item_features, as_of excepted: of the items of the shelf created before the end, and of those that an event
    names."""
    named = facts.rows(np.flatnonzero(facts.item >= 0))
    met = facts.item_ids.take(pa.array(distinct(named.item.astype(np.int64), len(facts.item_ids))))
    known = shelf.item_ids.filter(pa.array(shelf.created < facts.end))
    item_ids = pa.concat_arrays([known, met.filter(pc.invert(pc.is_in(met, value_set=known)))])
    number = places_in(facts.item_ids, item_ids)
    item = number[named.item]
    place = places_in(item_ids, shelf.item_ids.filter(pa.array(shelf.created < facts.end)))
    is_known = shelf.created < facts.end
    created = np.append(shelf.created[is_known], NEVER)[place]
    stock = np.append(shelf.stock[is_known], np.nan)[place]
    values = {
        **_what_happened(named, item, len(item_ids), stock),
        **_people_of_items(named, item, len(item_ids)),
        "item_days_since_created": facts.days_until(created),
    }
    return _rows("gold.item_features", facts.end, {"item_id": item_ids, **values})


def _what_happened(named: Facts, item: Numbers, size: int, stock: Floats) -> dict[str, NDArray[np.generic]]:
    viewed, bought = _viewed(named), named.of(EventType.PURCHASE)
    carted, in_7, in_30, in_90 = named.of(EventType.ADD_TO_CART), *(named.within(days) for days in (7, 30, 90))
    found: dict[str, NDArray[np.generic]] = {}
    for word, mask in (("view", viewed), ("cart", carted), ("purchase", bought)):
        for days in (1, 7, 30):
            found[f"item_{word}_count_{days}d"] = count(item, mask & named.within(days), size)
    sold, paid = bought & in_30, bought & in_30 & named.has_amount
    pieces = np.bincount(item[sold], weights=named.quantity[sold], minlength=size).astype(np.int64)
    views_7, views_30 = found["item_view_count_7d"], found["item_view_count_30d"]
    lines = count(item, bought & in_90, size)
    return found | {
        "item_unit_count_30d": pieces,
        "item_purchase_value_30d": sum_units(named.amount[paid], item[paid], size, MONEY_DIGITS),
        "item_popularity_decayed": _popularity(named, item, size),
        "item_conversion_30d": ratio(found["item_purchase_count_30d"], views_30),
        **_prices(named, item, size, in_7, in_90),
        "item_view_trend_30d": ratio(views_7 * 30, views_30 * 7),
        "item_cart_rate_30d": ratio(found["item_cart_count_30d"], views_30),
        "item_refund_share_90d": ratio(count(item, named.of(EventType.REFUND) & in_90, size), lines),
        "item_days_since_last_purchase": named.days_until(latest(named.micros[bought], item[bought], size)),
        "item_stock_cover_30d": ratio(stock * 30, pieces),
    }


def _popularity(named: Facts, item: Numbers, size: int) -> Floats:
    weights = {str(kind): float(weight) for kind, weight in DEFAULT_PREFERENCE_WEIGHTS.items()}
    weight = np.array([weights.get(str(kind), 0.0) for kind in named.kinds], np.float64)[named.kind]
    some = np.flatnonzero(weight)
    decayed = weight[some] * 0.5 ** (named.days_until(named.micros[some]) / POPULARITY_HALF_LIFE_DAYS)
    units = np.rint(decayed * 10.0**WEIGHT_DIGITS).astype(np.int64)
    return sum_units(units, item[some], size, WEIGHT_DIGITS)


def _prices(named: Facts, item: Numbers, size: int, in_7: Mask, in_90: Mask) -> dict[str, NDArray[np.generic]]:
    recent = np.flatnonzero(in_90)
    price, has_price = to_units(named.price[recent], MONEY_DIGITS)
    of, is_new = item[recent], in_7[recent]

    def mean(mask: Mask) -> Floats:
        return ratio(sum_units(price[mask], of[mask], size, MONEY_DIGITS), count(of, mask, size))

    change = ratio(mean(has_price & is_new), mean(has_price & ~is_new)) - 1
    return {"item_price_mean_90d": mean(has_price), "item_price_change_90d": change}


def _people_of_items(named: Facts, item: Numbers, size: int) -> dict[str, NDArray[np.generic]]:
    width = len(named.people)

    def pairs(mask: Mask) -> Integers:
        return item[mask].astype(np.int64) * width + named.person[mask]

    bought = named.of(EventType.PURCHASE) & named.within(90)
    buyers, number = np.unique(pairs(bought), return_inverse=True)
    ago = named.end // _DAY_MICROS - named.micros[bought] // _DAY_MICROS
    days = distinct(number * _OF_90_DAYS + ago, len(buyers) * _OF_90_DAYS) // _OF_90_DAYS
    again = np.bincount(days, minlength=len(buyers)) > 1
    of = buyers // max(width, 1)
    buyer_count = np.bincount(of, minlength=size)
    return {
        "item_subject_count_30d": _by_first(np.unique(pairs(named.within(30))), width, size),
        "item_buyer_count_90d": buyer_count,
        "item_repeat_buyer_share_90d": ratio(np.bincount(of[again], minlength=size), buyer_count),
    }


def places_in(texts: pa.Array, among: pa.StringArray) -> Numbers:
    """The place of each text in `among`; -1 for null and for what is not there."""
    found = pc.fill_null(pc.index_in(texts, value_set=among, skip_nulls=True), -1)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int32)


def floats(values: pa.ChunkedArray | pa.Array) -> Floats:
    """The numbers, NaN for null."""
    return np.asarray(pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False), np.float64)


def _viewed(facts: Facts) -> Mask:
    return facts.of(*VIEW_TYPES)


def _by_first(keys: Integers, width: int, size: int) -> Integers:
    """How many of the different keys `first * width + second` each first has."""
    return np.bincount(keys // max(width, 1), minlength=size)


def _words(texts: pa.StringArray, places: NDArray[np.int64]) -> pa.Array:
    return texts.take(pa.array(places, mask=places < 0))


def _rows(name: str, end: int, values: Mapping[str, NDArray[np.generic] | pa.Array]) -> pa.Table:
    columns: Collection[str] = [
        column for column in table(name).columns if column not in ("feature_timestamp", "as_of")
    ]
    arrays = {column: _column(values[column]) for column in columns}
    moment = pa.repeat(pa.scalar(end).cast(pa.timestamp("us", tz="UTC")), len(next(iter(arrays.values()))))
    return pa.table({**arrays, "feature_timestamp": moment})


def _column(values: NDArray[np.generic] | pa.Array) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, from_pandas=True)
