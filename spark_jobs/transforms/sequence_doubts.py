"""Which events of a whole history could break a rule on sequences, told from arrays: `sequences.find_breaks` of
each rule finds among these alone what it finds in all of them. A test holds the two to each other.

An event is its place in the history; people, items and client ids are numbers, -1 for none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_repo.contracts.sequences import BACKWARDS_MICROS, SequenceRule

Mask = NDArray[np.bool_]
Places = NDArray[np.int64]


class Deeds(NamedTuple):
    """By event. `names_order` and `names_region`: properties that may name an order, or a region."""

    person: NDArray[np.int32]
    item: NDArray[np.int32]
    client_id: NDArray[np.int32]
    micros: NDArray[np.int64]
    is_purchase: Mask
    is_refund: Mask
    is_addition: Mask
    is_removal: Mask
    names_order: Mask
    names_region: Mask


def suspicious(deeds: Deeds) -> dict[SequenceRule, Places]:
    """The events that each rule must be asked about; rules that nothing can break are left out."""
    has_client = deeds.client_id >= 0
    found = {
        SequenceRule.REFUND_WITHOUT_PURCHASE: _without_first(deeds, deeds.is_refund, deeds.is_purchase),
        SequenceRule.REMOVAL_WITHOUT_ADDITION: _without_first(deeds, deeds.is_removal, deeds.is_addition),
        SequenceRule.ORDER_REPEATED: _several(deeds.person, deeds.item, deeds.is_purchase & deeds.names_order),
        SequenceRule.SESSION_IN_TWO_REGIONS: _several(deeds.person, deeds.client_id, has_client & deeds.names_region),
        SequenceRule.SESSION_TIME_BACKWARDS: _of_long_sessions(deeds),
    }
    return {rule: places for rule, places in found.items() if len(places)}


def _without_first(deeds: Deeds, later: Mask, earlier: Mask) -> Places:
    """Events of `later` whose person has none of `earlier` about the item at that instant or before."""
    asked, firsts = np.flatnonzero(later), np.flatnonzero(earlier & (deeds.item >= 0))
    if not len(asked):
        return asked
    width = int(deeds.item.max(initial=0)) + 1
    key, at = _pairs(deeds.person, deeds.item, width, firsts), deeds.micros[firsts]
    order = np.lexsort((at, key))
    key, at = key[order], at[order]
    wanted = _pairs(deeds.person, deeds.item, width, asked)
    place = np.searchsorted(key, wanted)
    place = np.minimum(place, max(0, len(key) - 1))
    if not len(key):
        return asked
    is_fine = (deeds.item[asked] >= 0) & (key[place] == wanted) & (at[place] <= deeds.micros[asked])
    return asked[~is_fine]


def _several(person: NDArray[np.int32], other: NDArray[np.int32], mask: Mask) -> Places:
    """Those of `mask` that share person and other with another one."""
    places = np.flatnonzero(mask)
    _, group, counts = np.unique(
        _pairs(person, other, int(other.max(initial=0)) + 2, places), return_inverse=True, return_counts=True
    )
    return places[counts[group] > 1]


def _of_long_sessions(deeds: Deeds) -> Places:
    """Events of client sessions that last longer than one may go back in time."""
    places = np.flatnonzero(deeds.client_id >= 0)
    if not len(places):
        return places
    width = int(deeds.client_id.max()) + 1
    keys = _pairs(deeds.person, deeds.client_id, width, places)
    order = np.argsort(keys)
    keys, micros = keys[order], deeds.micros[places[order]]
    is_new = np.ones(len(keys), bool)
    is_new[1:] = keys[1:] != keys[:-1]
    first = np.flatnonzero(is_new)
    span = np.maximum.reduceat(micros, first) - np.minimum.reduceat(micros, first)
    is_long = np.repeat(span > BACKWARDS_MICROS, np.diff(np.append(first, len(keys))))
    return np.sort(places[order[is_long]])


def _pairs(person: NDArray[np.int32], other: NDArray[np.int32], width: int, places: Places) -> NDArray[np.int64]:
    return person[places].astype(np.int64) * width + other[places] + (other[places] < 0) * (width - 1 - other[places])
