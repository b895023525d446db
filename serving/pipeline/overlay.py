"""What the shop has changed since the served version was built, laid over the catalogue of a serving process.

Changes come in the order of the log (`adapters.change_feed`). Of each item one record is kept, field by field the
newest word (`contracts.changes`); the versions held in memory are written to in place, so a request pays nothing for
it. A version that the night built knowing a change has it already, or something newer from an import: it is left alone.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain, islice

from feature_repo.contracts.changes import ITEMS, USERS, Change, RecordState, Stamp
from feature_repo.contracts.regions import voting_region
from serving.pipeline.arrivals import make_room, write_change
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.first_catalogue import MAX_FIRST_ITEMS, first_catalogue
from serving.pipeline.live_items import FIRST_FIELDS, WRITTEN_FIELDS, write_item

PERSONALIZE, STORE, TRAIN = "consent_personalize", "consent_store", "consent_train"
REGION = "region"
SERVED_FIELDS: Mapping[str, frozenset[str]] = {
    ITEMS: WRITTEN_FIELDS | FIRST_FIELDS,
    USERS: frozenset({PERSONALIZE, STORE, TRAIN, REGION}),
}
"""The fields of which serving keeps the value; of others it keeps when they were last spoken of."""

MAX_LATE_KEPT = 10_000
MAX_USERS_LATELY = 10_000
MAX_USERS_PLACED = 100_000
"""Users whose region a process knows: those of whom one was said last. 15 MB at most with ids of 16 bytes."""
MAX_UNKNOWN_ITEMS = 10_000
"""Changed items that no version held was built with: they are kept for the next one. Anybody who may write can name new
ones for ever, so there is a bound; what was forgotten is read again when a version comes (`wants_records`)."""
_ATTACHED_AT_ONCE = 100
FIRST_PAUSE_MICROS = 100
"""For each item of the catalogue before the first version, at least this long until it is put together anew. For 5,000
that is half a second, and putting them together takes 40 ms in which nobody else is answered."""


def ever_refused(state: RecordState) -> bool:
    """Whether the newest word on one of the served consents is a no."""
    return any((word := state.word(name)) is not None and word[0] is False for name in SERVED_FIELDS[USERS])


def region_of(state: RecordState) -> str | None:
    """The newest word on a user's region, where it is one that trends count."""
    word = state.word(REGION)
    return None if word is None else voting_region({REGION: word[0]}) or None


class CatalogueOverlay:
    """Belongs to one event loop. Items: one record each of those that a version knows, and of the last 10,000 others.
    Users: those who once refused something, for good, and the last 10,000 others, so that a late change can be told
    that it is. Of the last 100,000 of whom a region was said, the region.

    position       up to here in the log everything is in
    heard_micros   when the log last confirmed that there is nothing more; None: never
    wants_records  a version came after items had been forgotten: the compacted records are to be merged once more
    """

    def __init__(self, *, room: int = 0) -> None:
        """`room`: items beyond its own that each version takes in (`arrivals`)."""
        self._room = room
        self.position = -1
        self.heard_micros: int | None = None
        self.wants_records = False
        self._has_forgotten = False
        self._items: dict[str, RecordState] = {}
        self._unknown: OrderedDict[str, RecordState] = OrderedDict()
        self._refusing: dict[str, RecordState] = {}
        self._lately: OrderedDict[str, RecordState] = OrderedDict()
        self._regions: OrderedDict[str, str] = OrderedDict()
        self._late: OrderedDict[int, tuple[str, ...]] = OrderedDict()
        self._catalogues: list[Catalogue] = []
        self._first: Catalogue | None = None
        self._is_first_behind = True

    async def attach(self, catalogue: Catalogue) -> None:
        """Bring a version up to date, and keep it so until `detach`. Other tasks get their turn in between."""
        if self._room:
            make_room(catalogue, self._room)
        self._catalogues.append(catalogue)
        self.wants_records = self._has_forgotten
        for item_id in [item_id for item_id in self._unknown if item_id in catalogue.numbers]:
            self._items[item_id] = self._unknown.pop(item_id)
        self._forget()
        for count, (item_id, state) in enumerate([*self._items.items(), *self._unknown.items()], start=1):
            write_change(catalogue, item_id, state)
            if count % _ATTACHED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def detach(self, catalogue: Catalogue) -> None:
        """The version is not held any more."""
        self._catalogues = [other for other in self._catalogues if other is not catalogue]

    def first(self, now_micros: int) -> Catalogue:
        """The shop as the items API was told of it, for as long as there is no version (`first_catalogue`); of more
        than MAX_FIRST_ITEMS items those of which something was said last. Stock, price and validity are as of now; a
        new item is in it after FIRST_PAUSE_MICROS for each of the others at most."""
        held = self._first
        if held is not None and not self._is_first_behind:
            return held
        if held is None or not 0 <= now_micros - held.as_of_micros < FIRST_PAUSE_MICROS * len(held.item_ids):
            newest = chain(reversed(self._unknown.items()), reversed(self._items.items()))
            self._first = held = first_catalogue(dict(islice(newest, MAX_FIRST_ITEMS)), now_micros=now_micros)
            self._is_first_behind = False
        return held

    def leave_first(self) -> None:
        """A version is served: nobody asks for `first` any more."""
        self._first = None

    def take(self, change: Change, position: int) -> None:
        """The next change of the log. One that is in already changes nothing."""
        if position <= self.position:
            return
        state = self._state(change.kind, change.record_id)
        outcome = state.take(change, position, keeps=SERVED_FIELDS[change.kind])
        if outcome.late:
            self._late[position] = outcome.late
            if len(self._late) > MAX_LATE_KEPT:
                self._late.popitem(last=False)
        self._keep(change.kind, change.record_id, state)
        self.position = position

    def merge(self, kind: str, record_id: str, state: RecordState) -> None:
        """A record as somebody else has compacted it."""
        mine = self._state(kind, record_id)
        mine.merge(state)
        self._keep(kind, record_id, mine)

    def late_fields(self, change: Change, position: int) -> tuple[str, ...]:
        """The fields of a change of which something newer was known when it came. Until the change has come here:
        those that are newer now."""
        if position <= self.position:
            return self._late.get(position, ())
        state = self._known(change.kind, change.record_id)
        stamp = Stamp(change.at_micros, position)
        return tuple(name for name in change.fields if state is not None and state.said_at(name, before=stamp))

    def refuses_personalization(self, user_id: str | None) -> bool:
        """Whether the newest word of this user, through the API, on personalization or on storing is a no."""
        if user_id not in self._refusing:
            return False
        return self._refuses(user_id, PERSONALIZE) or self._refuses(user_id, STORE)

    def refuses_storing(self, user_id: str | None) -> bool:
        """The same of storing alone."""
        return self._refuses(user_id, STORE)

    def refuses_training(self, user_id: str | None) -> bool:
        """The same of training alone."""
        return self._refuses(user_id, TRAIN)

    def region_of(self, user_id: str | None) -> str | None:
        """The region that the shop gave this user; None when it gave none, or so many others one since."""
        return None if user_id is None else self._regions.get(user_id)

    @property
    def refusing(self) -> Mapping[str, RecordState]:
        """Whoever refused any of it at any time, by user; a view that grows."""
        return self._refusing

    def ever_refused(self, user_id: str | None) -> bool:
        """Whether this user refused any of it at any time; who did not refuses nothing now."""
        return user_id in self._refusing

    def _refuses(self, user_id: str | None, name: str) -> bool:
        state = self._refusing.get(user_id) if user_id is not None else None
        word = state.word(name) if state is not None else None
        return word is not None and word[0] is False

    def _known(self, kind: str, record_id: str) -> RecordState | None:
        if kind == ITEMS:
            return self._items.get(record_id) or self._unknown.get(record_id)
        return self._refusing.get(record_id) or self._lately.get(record_id)

    def _state(self, kind: str, record_id: str) -> RecordState:
        return self._known(kind, record_id) or RecordState()

    def _keep(self, kind: str, record_id: str, state: RecordState) -> None:
        if kind == ITEMS:
            is_known = record_id in self._items or any(one.is_built(record_id) for one in self._catalogues)
            self._unknown.pop(record_id, None)
            (self._items if is_known else self._unknown)[record_id] = state
            if self._catalogues:  # before the first version comes nobody can say what is unknown
                self._forget()
            for catalogue in self._catalogues:
                write_change(catalogue, record_id, state)
            if self._first is not None:
                write_item(self._first, record_id, state)
            self._is_first_behind = True
            return
        self._place(record_id, state)
        if record_id in self._refusing or ever_refused(state):
            self._lately.pop(record_id, None)
            self._refusing[record_id] = state
        else:
            self._lately[record_id] = state
            self._lately.move_to_end(record_id)
            if len(self._lately) > MAX_USERS_LATELY:
                self._lately.popitem(last=False)

    def _place(self, user_id: str, state: RecordState) -> None:
        if state.word(REGION) is None:
            return  # nothing was said of it
        self._regions.pop(user_id, None)
        region = region_of(state)
        if region is not None:
            self._regions[user_id] = sys.intern(region)
            if len(self._regions) > MAX_USERS_PLACED:
                self._regions.popitem(last=False)

    def _forget(self) -> None:
        while len(self._unknown) > MAX_UNKNOWN_ITEMS:
            self._unknown.popitem(last=False)
            self._has_forgotten = True


def names_of(late: Sequence[str]) -> list[str]:
    """Fields as their senders call them, without `attributes.`; half a character, which JSON can say, becomes `?`."""
    return [name.removeprefix("attributes.").encode("utf-8", "replace").decode("utf-8") for name in late]
