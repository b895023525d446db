"""What each part of a blend has of what speaks for the items of lists, packed for their records
(`contracts.list_shares`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.list_shares import MAX_PARTS, UNIT, UNTOLD, ListPart, part_number

KEPT, NONE = SHARES = ("kept", "none")
"""Values of the run parameter `shares`."""


def keeps_shares(params: Mapping[str, Any]) -> bool:
    """The run's `shares`: whether lists tell what each part has of each item. Raises DataError naming the nearest
    value."""
    asked = str(params.get("shares") or KEPT)
    if asked not in SHARES:
        raise DataError(f"shares is one of {', '.join(SHARES)}; got {asked!r}{nearest(asked, SHARES)}", field="shares")
    return asked == KEPT


def shares_of_one(model: str, count: int) -> bytes:
    """Of `count` items that one model alone brought."""
    return bytes((1, part_number(model))) if count else b""


def blend_shares(
    values: Mapping[str, NDArray[np.float32]], models: Mapping[str, str], counts: NDArray[np.integer]
) -> list[bytes | None]:
    """One packed table a list; None of a list for whose items nothing speaks.

    values  by part: what it adds to the score of each listed item (people x places); NaN adds nothing
    models  by part: the model that it is a recipe of; parts of one model are one
    counts  how many places of each list are filled

    Parts stand in the order of what they have of the whole list, ties by number. Shares are rounded so that they sum to
    the whole, each by less than 1/250.
    """
    if not values:
        return [None] * len(counts)
    numbers = sorted({part_number(models[name]) for name in values})
    people, places = next(iter(values.values())).shape
    speaking = np.zeros((people, len(numbers), places), np.float32)
    listed = np.arange(places) < np.asarray(counts)[:, None]
    for name, value in values.items():
        place = numbers.index(part_number(models[name]))
        speaking[:, place] += np.where(listed & (value > 0), value, np.float32(0))
    total = speaking.sum(axis=1, keepdims=True)
    is_told = total[:, 0] > 0
    shares = np.divide(speaking, total, out=np.zeros_like(speaking), where=total > 0)
    of_list = shares.sum(axis=2)
    order = np.argsort(-of_list, axis=1, kind="stable")
    ahead = np.cumsum(np.take_along_axis(shares, order[:, :, None], axis=1)[:, :MAX_PARTS], axis=1)
    marks = np.rint(np.minimum(ahead, 1) * UNIT).astype(np.uint8)
    rows = np.diff(marks, axis=1, prepend=np.zeros((people, 1, places), np.uint8))
    rows = np.where(is_told[:, None], rows, np.uint8(UNTOLD)).transpose(0, 2, 1)
    in_order, speaks = np.array(numbers)[order], (of_list > 0).sum(axis=1)
    found: list[bytes | None] = []
    for at, count in enumerate(np.asarray(counts).tolist()):
        parts, told = in_order[at].tolist(), int(speaks[at])
        if told > MAX_PARTS:
            parts, told = [*parts[: MAX_PARTS - 1], int(ListPart.OTHER)], MAX_PARTS
        elif told == 1 and not is_told[at, :count].all():
            parts, told = [parts[0], int(ListPart.OTHER)], 2  # room for those for which nothing speaks
        packed = bytes((told, *parts[:told])) + rows[at, :count, : told - 1].tobytes() if told else None
        found.append(packed)
    return found
