"""What lies in a person's cart, from the changes that were heard of."""

from __future__ import annotations

from collections.abc import Mapping

from feature_repo.contracts.session_record import SessionState


def cart_contents(state: SessionState) -> Mapping[str, int]:
    """Item id -> quantity, by item id; only what is in the cart.

    The changes (the newest 64) in the order of their event times; at one instant an item is put in before it is taken
    out. Buying an item empties the cart of what was put in until then.
    """
    bought = {mark.item_id: mark.micros for mark in state.bought}
    contents: dict[str, int] = {}
    for change in state.cart:
        if change.micros <= bought.get(change.item_id, -1):
            continue
        held = contents.get(change.item_id, 0)
        if not change.is_removal:
            contents[change.item_id] = held + change.quantity
        else:
            contents[change.item_id] = max(0, held - change.quantity) if change.quantity else 0
    return {item_id: quantity for item_id, quantity in sorted(contents.items()) if quantity}
