"""What may not be in the slate, and the count of what each filter took out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from feature_repo.contracts.events import DISMISSING_TYPES
from feature_repo.contracts.packing import SessionEvent, SessionState
from serving.pipeline.catalogue import Catalogue, Refusals
from serving.pipeline.identify import BUYING_TYPES, TOUCHING_TYPES

DISMISSED, BOUGHT = "dismissed", "bought"


class SlateFilter:
    """Decides once per item number whether it may be shown, and remembers why not.

    An item that several filters would take out is counted under the first of: excluded, bought, dismissed,
    seen_in_session, not_in_bundle / out_of_stock / hidden / expired / not_yet_available.
    """

    def __init__(
        self, catalogue: Catalogue, *, taken_out: Mapping[int, str], now_micros: int, uncounted: str | None = None
    ) -> None:
        """`uncounted`: a filter that goes without saying, such as the item that was asked for."""
        self._uncounted = uncounted
        self._catalogue = catalogue
        self._refusals = catalogue.refusals
        self._expire_micros = catalogue.expire_micros
        self._available_micros = catalogue.available_micros
        self.taken_out = taken_out
        self.now_micros = now_micros
        self._refused: dict[int, str] = {}

    def admits(self, item_number: int) -> bool:
        """True when the item may be shown. `item_number` >= 0."""
        if (
            item_number < len(self._refusals)
            and self._refusals[item_number] is None
            and item_number not in self.taken_out
            and item_number not in self._expire_micros
            and item_number not in self._available_micros
        ):
            return True
        refusal = self.taken_out.get(item_number) or self._catalogue.refusal(item_number, self.now_micros)
        if refusal is None:
            return True
        self._refused[item_number] = refusal
        return False

    def refused(self, numbers: Mapping[int, Any]) -> list[int]:
        """Those of the items (all >= 0) that `admits` does not admit."""
        taken_out, refusals, size = self.taken_out, self._refusals, len(self._refusals)
        if self._expire_micros or self._available_micros or not isinstance(refusals, Refusals):
            return [n for n in numbers if not self.admits(n)]
        found = {*(numbers.keys() & taken_out.keys()), *(numbers.keys() & refusals.numbers)}
        if numbers and max(numbers) >= size:
            found.update(n for n in numbers if n >= size)
        for number in found:
            self.admits(number)  # counts it
        return list(found)

    def counts(self) -> dict[str, int]:
        """Filter -> number of distinct items it took out so far, by name."""
        if not self._refused:
            return {}
        found = Counter([refusal for refusal in self._refused.values() if refusal != self._uncounted])
        return dict(sorted(found.items()))


def refused_by(admits: Callable[[int], bool]) -> Callable[[Mapping[int, Any]], list[int]]:
    """`SlateFilter.refused` of another filter that knows one item at a time."""
    return lambda numbers: [number for number in numbers if not admits(number)]


def personal_exclusions(
    catalogue: Catalogue,
    *,
    state: SessionState,
    session: Sequence[SessionEvent],
    exclude_item_ids: Iterable[str] = (),
    keeps_bought: bool = False,
) -> dict[int, str]:
    """Item number -> the personal filter that takes it out.

    Bought and dismissed items leave whatever the session; items that the running session touched leave that session.
    Ids that the bundle does not know are of no consequence.
    """
    exclusions: dict[int, str] = {}
    number_of = catalogue.numbers.get
    for event in session:
        if event[1] in TOUCHING_TYPES and (number := number_of(event[3])) is not None:
            exclusions[number] = "seen_in_session"
    for name, marks, types in (
        (DISMISSED, state.dismissed, DISMISSING_TYPES),
        (BOUGHT, state.bought, BUYING_TYPES),
    ):
        if keeps_bought and name == BOUGHT:
            continue
        for _, item_id in marks:
            if (number := number_of(item_id)) is not None:
                exclusions[number] = name
        for event in session:
            if event[1] in types and (number := number_of(event[3])) is not None:
                exclusions[number] = name
    exclusions |= excluded_numbers(exclude_item_ids, catalogue)
    return exclusions


def excluded_numbers(item_ids: Iterable[str], catalogue: Catalogue) -> dict[int, str]:
    """Item number -> `excluded`, of the ids that the version knows."""
    found: dict[int | None, str] = dict.fromkeys(map(catalogue.numbers.get, item_ids), "excluded")
    found.pop(None, None)
    return found  # type: ignore[return-value]
