"""What may not be in the slate, and the count of what each filter took out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from feature_repo.contracts.events import DISMISSING_TYPES
from feature_repo.contracts.packing import SessionEvent, SessionState
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.identify import BUYING_TYPES, TOUCHING_TYPES


class SlateFilter:
    """Decides once per item number whether it may be shown, and remembers why not.

    An item that several filters would take out is counted under the first of: excluded, bought, dismissed,
    seen_in_session, not_in_bundle / out_of_stock / hidden / expired / not_yet_available.
    """

    def __init__(self, catalogue: Catalogue, *, taken_out: Mapping[int, str], now_micros: int) -> None:
        self._catalogue = catalogue
        self._refusals = catalogue.refusals
        self._expire_micros = catalogue.expire_micros
        self._available_micros = catalogue.available_micros
        self._taken_out = taken_out
        self._now_micros = now_micros
        self._refused: dict[int, str] = {}

    def admits(self, item_number: int) -> bool:
        """True when the item may be shown. `item_number` >= 0."""
        if (
            item_number < len(self._refusals)
            and self._refusals[item_number] is None
            and item_number not in self._taken_out
            and item_number not in self._expire_micros
            and item_number not in self._available_micros
        ):
            return True
        refusal = self._taken_out.get(item_number) or self._catalogue.refusal(item_number, self._now_micros)
        if refusal is None:
            return True
        self._refused[item_number] = refusal
        return False

    def counts(self) -> dict[str, int]:
        """Filter -> number of distinct items it took out so far, by name."""
        return dict(sorted(Counter(self._refused.values()).items()))


def personal_exclusions(
    catalogue: Catalogue,
    *,
    state: SessionState,
    session: Sequence[SessionEvent],
    exclude_item_ids: Iterable[str] = (),
) -> dict[int, str]:
    """Item number -> the personal filter that takes it out.

    Bought and dismissed items leave whatever the session; items that the running session touched leave that session.
    Ids that the bundle does not know are of no consequence.
    """
    named: list[tuple[str, Iterable[str]]] = [
        ("seen_in_session", (e.item_id for e in session if e.event_type in TOUCHING_TYPES)),
        ("dismissed", (mark.item_id for mark in state.dismissed)),
        ("dismissed", (e.item_id for e in session if e.event_type in DISMISSING_TYPES)),
        ("bought", (mark.item_id for mark in state.bought)),
        ("bought", (e.item_id for e in session if e.event_type in BUYING_TYPES)),
        ("excluded", exclude_item_ids),
    ]
    exclusions: dict[int, str] = {}
    for name, item_ids in named:
        for item_id in item_ids:
            number = catalogue.numbers.get(item_id)
            if number is not None:
                exclusions[number] = name
    return exclusions
