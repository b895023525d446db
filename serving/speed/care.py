"""After an owner's death at work: which event killed it, in few deaths, and without delivering a batch one by one.

The first death says that one of the events that may have been under way is to blame. Those are delivered again in small
groups, each noted before (`delivering_key`) and no longer while a store is waited for. A group that kills its owner too
is delivered event by event, each noted. Whoever kills a third owner is known by name, and is buried unread.

    ""                         an owner is at work, nothing is suspected
    "<position> 2"             a small group that ends here is delivered, for the second time
    "<position> 3 <place>..."  of that group, these events were delivered alone; the last one just now
    "<position> 2 <place>..."  of that group, these killed their owners; nothing is delivered just now
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from serving.speed.entries import Entry, first_entries
from serving.speed.positions import position_number

GROUP_EVENTS = 64
"""Events of a small group, or one entry."""


@dataclass(slots=True)
class Care:
    """Of one partition: so many events are still to be delivered in small groups. Those up to `suspect` killed an owner
    as a group, and the places in `guilty` alone."""

    events_left: int
    suspect: str | None = None
    guilty: tuple[str, ...] = ()

    @classmethod
    def after(cls, note: str, *, events: int) -> Care:
        """What the last owner's note asks for, when it may have had so many events under way."""
        position, _, rest = note.partition(" ")
        return cls(events, position or None, tuple(rest.split()[1:]))

    def first_of(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """The small group that comes next, at least one entry."""
        if self._is_behind(entries[0].position):
            self.suspect, self.guilty = None, ()
        if self.suspect is not None:
            entries = [entry for entry in entries if not self._is_behind(entry.position)]
        return first_entries(entries, GROUP_EVENTS)

    def is_over(self, entries: Sequence[Entry]) -> bool:
        """Whether no more care is needed once these have been applied."""
        self.events_left -= sum(len(entry.events) for entry in entries)
        return self.events_left <= 0 and (self.suspect is None or self._is_behind(entries[-1].position, equal=True))

    def _is_behind(self, position: str, *, equal: bool = False) -> bool:
        if self.suspect is None:
            return False
        return position_number(position) + equal > position_number(self.suspect)


class Watch:
    """Notes what is delivered, so that a death is laid at its door; nothing in a batch that needs no care."""

    def __init__(
        self, care: Care | None = None, note: Callable[[str], None] = lambda _: None, *, end: str = ""
    ) -> None:
        """`note` keeps the words of one partition, `end` is the position of the group's last entry."""
        self._care = care
        self._note = note
        self._end = end

    @property
    def is_close(self) -> bool:
        """Whether events are delivered one by one."""
        return self._care is not None and self._care.suspect is not None

    def is_guilty(self, place: str) -> bool:
        """Whether the event killed three owners."""
        return self._care is not None and place in self._care.guilty

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While events are delivered, and no store is waited for. Who dies in here leaves a note."""
        care = self._care
        if care is not None and care.suspect is None:
            self._note(f"{self._end} 2")
        yield
        if care is not None:
            self._note("" if care.suspect is None else " ".join([care.suspect, "2", *care.guilty]))

    def before(self, place: str) -> None:
        """This event is about to be delivered, alone."""
        if self._care is not None and self._care.suspect is not None:
            self._note(" ".join([self._care.suspect, "3", *self._care.guilty, place]))
