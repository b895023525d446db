"""Which answer brought which outcome: an Arrow semi-join of many answers with few events, then pandas frames.

Slot: one item of one decision. Times (`at`, `decided_at`) are microseconds since 1970 (UTC) as integers. The rules and
their reasons are in infra/docs/decisions.md; every function is pure, and equal rows in any order give equal results.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.events import EventType

_MICROSECOND = timedelta(microseconds=1)

ID_WINDOW = timedelta(days=7)
"""An event that names its recommendation counts this long after the decision (exclusive)."""

ID_CLOCK_SLACK = timedelta(hours=24)
"""... and so long before it: the id proves the order, the client's clock may be wrong."""

TOUCH_WINDOW = timedelta(hours=24)
"""An event that names none counts this long after the last decision that showed the item to the person (exclusive)."""

CLICK, CART, PURCHASE, REFUND = "click", "cart", "purchase", "refund"
OUTCOME_OF: Mapping[str, str] = {
    EventType.CLICK.value: CLICK, EventType.SELECT_ITEM.value: CLICK, EventType.ADD_TO_CART.value: CART,
    EventType.PURCHASE.value: PURCHASE, EventType.REFUND.value: REFUND,
}  # fmt: skip
"""Event type -> outcome. No other type is one."""

NO_CURRENCY = "XXX"
"""ISO 4217's code for no currency: the event named none."""

GROUP = ["metric_date", "placement", "model_version", "fallback_level", "arm"]
SLOT = ["recommendation_id", "item_id"]
SLOT_COLUMNS = [*SLOT, "subject_key", "decided_at", "position", *GROUP]
COUNTS = (
    "decisions", "impressions", "clicked_impressions", "converted_impressions", "clicks", "carts", "purchases",
    "refunds",
)  # fmt: skip


class Asked(NamedTuple):
    """Which slots some event can belong to, as `_pairs` of recommendation and item, and of subject and item."""

    by_id: pa.Array
    by_subject: pa.Array


def arm_name(experiment_ids: Collection[str] | None, arms: Collection[str] | None) -> str:
    """`experiment=arm` of all experiments a decision took part in, sorted, with commas; empty when in none."""
    pairs = zip(experiment_ids if experiment_ids is not None else (), arms if arms is not None else (), strict=True)
    return ",".join(sorted(f"{experiment}={arm}" for experiment, arm in pairs))


def explode_slots(decisions: pa.Table, asked: Asked | None = None) -> pd.DataFrame:
    """One row per item of each decision, `position` from 1; with `asked` only those that some event can belong to.

    Takes recommendation_id, subject_key, decided_at, item_ids (lists) and GROUP; returns SLOT_COLUMNS.
    """
    lists = decisions["item_ids"].combine_chunks()
    parents, items = pc.list_parent_indices(lists), pc.list_flatten(lists)
    starts = np.concatenate(([0], np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy())))
    positions = pa.array(np.arange(len(items)) - starts[parents.to_numpy()] + 1, pa.int64())
    if asked is not None:
        by_id = pc.is_in(_pairs(decisions["recommendation_id"].take(parents), items), asked.by_id)
        by_subject = pc.is_in(_pairs(decisions["subject_key"].take(parents), items), asked.by_subject)
        wanted = pc.or_(by_id, by_subject)
        parents, items, positions = (column.filter(wanted) for column in (parents, items, positions))
    slots = decisions.drop_columns(["item_ids"]).take(parents)
    slots = slots.append_column("item_id", items).append_column("position", positions)
    return slots.select(SLOT_COLUMNS).to_pandas()


def distinct_slots(slots: pd.DataFrame) -> pd.DataFrame:
    """A recommendation_id that came twice counts once, as it was first; an item counts once in a slate."""
    ordered = slots.sort_values([*SLOT, "decided_at", "position"], kind="stable")
    first = ordered.groupby("recommendation_id")["decided_at"].transform("min")
    return ordered[ordered["decided_at"] == first].drop_duplicates(SLOT).reset_index(drop=True)


def asked_slots(outcomes: pd.DataFrame, impressions: pd.DataFrame) -> Asked:
    """What these events can belong to; the columns are those of `credit_outcomes` and `seen_slots`."""
    named = pd.concat([outcomes[SLOT], impressions[SLOT]]).dropna()
    subjects = outcomes[["subject_key", "item_id"]].dropna()
    return Asked(_key_set(named["recommendation_id"], named["item_id"]), _key_set(*(subjects[c] for c in subjects)))


def _key_set(owners: pd.Series, items: pd.Series) -> pa.Array:
    return _pairs(pa.array(owners, pa.string()), pa.array(items, pa.string())).unique()


def _pairs(owners: pa.ChunkedArray | pa.Array, items: pa.Array) -> pa.ChunkedArray | pa.Array:
    """`owner NUL item`, null when either is: no id contains NUL."""
    return pc.binary_join_element_wise(owners, items, "\0")


def seen_slots(impressions: pd.DataFrame, slots: pd.DataFrame) -> pd.DataFrame:
    """One row per slot that a client says was seen, however often it says so.

    impressions  event_id, recommendation_id, item_id, seen_by (subject), at; those of an unknown decision, of an item
                 that is not in its slate, or outside of the id window are left out
    Returns SLOT_COLUMNS, seen_by and first_seen_at (of the earliest), deliveries.
    """
    named = impressions.dropna(subset=SLOT).merge(slots, on=SLOT, how="inner")
    named = named[_within_id_window(named)].sort_values(["at", "event_id"], kind="stable")
    told = named.groupby(SLOT, as_index=False).agg(
        seen_by=("seen_by", "first"), first_seen_at=("at", "first"), deliveries=("event_id", "nunique")
    )
    return told.merge(slots, on=SLOT, how="inner").sort_values(SLOT, ignore_index=True)


def credit_outcomes(outcomes: pd.DataFrame, slots: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """The outcomes that a slot brought, each once.

    1. An outcome that names a recommendation with that item in it, within the id window: that slot.
    2. Else the last decision that showed the item to the same subject within TOUCH_WINDOW before it. Of two at one
       instant the one with an impression, then the smaller recommendation_id.
    3. A refund follows the subject's last credited purchase of the item, while that slot's ID_WINDOW lasts. What it
       names itself is not asked: a refund is of a purchase.

    outcomes  event_id, outcome, subject_key, item_id, recommendation_id, at, amount (null unknown), currency
    Returns the columns of `outcomes` (recommendation_id: of the slot), `by` (id, touch or purchase) and those of the
    slot, sorted by event_id.
    """
    is_refund = outcomes["outcome"] == REFUND
    forward = outcomes[~is_refund]
    by_id = forward.dropna(subset=SLOT).merge(_of_slot(slots), on=SLOT, how="inner")
    by_id = by_id[_within_id_window(by_id)].assign(by="id")

    rest = forward[~forward["event_id"].isin(by_id["event_id"])]
    by_touch = _last_before(
        rest.drop(columns="recommendation_id"), _touches(slots, seen), "decided_at", TOUCH_WINDOW
    ).assign(by="touch")
    credited = _stacked([by_id, by_touch])

    purchases = credited[credited["outcome"] == PURCHASE].sort_values(["at", "event_id"], kind="stable")
    purchases = purchases[[*SLOT, "subject_key", "decided_at", "position", *GROUP, "at"]]
    refunds = _last_before(
        outcomes[is_refund].drop(columns="recommendation_id"),
        purchases.rename(columns={"at": "bought_at"}),
        "bought_at",
        None,
    )
    refunds = refunds[refunds["at"] < refunds["decided_at"] + _micros(ID_WINDOW)]
    refunds = refunds.drop(columns="bought_at").assign(by="purchase")
    return _stacked([credited, refunds]).sort_values("event_id", ignore_index=True)


def daily_metrics(answers: pd.DataFrame, seen: pd.DataFrame, credited: pd.DataFrame) -> pd.DataFrame:
    """The counts of every place of the slates: GROUP, position, COUNTS, currencies, revenues, refunded.

    answers   GROUP, item_count (of the slate), decisions: how many answers there were
    Position 0 stands for answers without an item, so the decisions at positions 0 and 1 are all of them. `currencies`
    is sorted; `revenues` and `refunded` go with it. Only groups in `answers` have rows.
    """
    key = [*GROUP, "position"]
    rows = [_places(answers).set_index(key)["decisions"]]
    clicked, bought = (_slots_of(credited, outcome) for outcome in (CLICK, PURCHASE))
    pairs = pd.MultiIndex.from_frame(seen[SLOT])
    flags = seen.assign(clicked_impressions=pairs.isin(clicked), converted_impressions=pairs.isin(bought))
    by_place = flags.groupby(key)
    rows += [by_place.size().rename("impressions")]
    rows += [by_place[name].sum() for name in ("clicked_impressions", "converted_impressions")]
    for name, outcome in (("clicks", CLICK), ("carts", CART), ("purchases", PURCHASE), ("refunds", REFUND)):
        rows.append(credited[credited["outcome"] == outcome].groupby(key).size().rename(name))
    counts = pd.concat(rows, axis=1).loc[rows[0].index].fillna(0).astype("int64")
    money = _money(credited, key)
    lists = [money.get(place, ([], [], [])) for place in counts.index]
    found = counts.reset_index()
    for number, name in enumerate(("currencies", "revenues", "refunded")):
        found[name] = [one[number] for one in lists]
    return found.sort_values(key, ignore_index=True)


def _places(answers: pd.DataFrame) -> pd.DataFrame:
    """From answers by slate size to answers by position: a slate of three has positions 1, 2 and 3."""
    places = [list(range(1, count + 1)) or [0] for count in answers["item_count"]]
    exploded = answers.assign(position=places).explode("position")
    exploded["position"] = exploded["position"].astype("int64")
    return exploded.groupby([*GROUP, "position"], as_index=False)["decisions"].sum()


def _slots_of(credited: pd.DataFrame, outcome: str) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(credited.loc[credited["outcome"] == outcome, SLOT].drop_duplicates())


def _money(credited: pd.DataFrame, key: list[str]) -> dict[Any, tuple[list[str], list[float], list[float]]]:
    """Place -> currencies, what was paid, what was paid back."""
    paid = credited[credited["outcome"].isin([PURCHASE, REFUND]) & credited["amount"].notna()]
    sums = (
        paid.assign(currency=paid["currency"].fillna(NO_CURRENCY))
        .groupby([*key, "currency", "outcome"])["amount"]
        .sum()
        .round(6)
        .unstack("outcome")
        .reindex(columns=[PURCHASE, REFUND])
        .fillna(0.0)
    )
    found: dict[Any, tuple[list[str], list[float], list[float]]] = {}
    for (*place, currency), paid_in, paid_back in sums.itertuples(name=None):
        currencies, revenues, refunded = found.setdefault(tuple(place), ([], [], []))
        currencies.append(currency)
        revenues.append(paid_in)
        refunded.append(paid_back)
    return found


def _touches(slots: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Slots of somebody, the one that wins a tie last."""
    named = slots[slots["subject_key"].notna()]
    is_seen = pd.MultiIndex.from_frame(named[SLOT]).isin(pd.MultiIndex.from_frame(seen[SLOT]))
    ranked = named.assign(is_seen=is_seen).sort_values(
        ["decided_at", "is_seen", "recommendation_id"], ascending=[True, True, False], kind="stable"
    )
    return ranked.drop(columns="is_seen")


def _last_before(events: pd.DataFrame, marks: pd.DataFrame, when: str, window: timedelta | None) -> pd.DataFrame:
    """Each event with the last of `marks` (sorted by `when`) of its subject and item, at its instant or before, less
    than `window` ago; events without one are left out."""
    own = ["subject_key", "item_id"]
    tolerance = None if window is None else _micros(window) - 1
    found = pd.merge_asof(
        events.sort_values("at", kind="stable"), marks, left_on="at", right_on=when, by=own, tolerance=tolerance
    )
    return found[found["recommendation_id"].notna()]


def _within_id_window(named: pd.DataFrame) -> pd.Series:
    after = named["at"] - named["decided_at"]
    return (after >= -_micros(ID_CLOCK_SLACK)) & (after < _micros(ID_WINDOW))


def _of_slot(slots: pd.DataFrame) -> pd.DataFrame:
    """Slots without their subject: an outcome keeps its own."""
    return slots.drop(columns="subject_key")


def _stacked(frames: list[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0].iloc[:0]


def _micros(span: timedelta) -> int:
    return span // _MICROSECOND
