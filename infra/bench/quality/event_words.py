"""Event types of public logs: what they are called here, and which of them counts as success."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from feature_repo.contracts.events import DEFAULT_PREFERENCE_WEIGHTS, EVENT_TYPE_ALIASES, EVENT_TYPES

WORDS: Mapping[str, str] = {
    "view": "view_item", "pv": "view_item", "pageview": "view_item", "click": "click", "cart": "add_to_cart",
    "addtocart": "add_to_cart", "fav": "add_to_wishlist", "favorite": "add_to_wishlist", "wishlist": "add_to_wishlist",
    "buy": "purchase", "bought": "purchase", "order": "purchase", "transaction": "purchase",
}  # fmt: skip
"""Names of event types that public logs use, beside the aliases of the event contract."""


def canonical_types(types: NDArray[np.object_]) -> list[str]:
    """Event types by their canonical names; a name that nobody knows stays as it is."""
    known = {alias.lower(): name for alias, name in EVENT_TYPE_ALIASES.items()} | dict(WORDS)
    known |= {name: name for name in EVENT_TYPES}
    by_name = {name: known.get(name, name) for name in set(types.tolist())}
    return [by_name[name] for name in types.tolist()]


def most_valued(types: NDArray[np.object_]) -> tuple[str, ...]:
    """The most valued types there are: purchases, or else carts ...; all of them where none is known."""
    worth = {name: DEFAULT_PREFERENCE_WEIGHTS.get(name, 0.0) for name in set(types.tolist())}
    best = max(worth.values())
    return tuple(sorted(name for name, value in worth.items() if value == best))
