"""Who asks: the person behind a device or a former name, and everything that person did on any device.

Pure: edges and session states come in as values. The rule of ownership is `contracts.identity`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from feature_repo.contracts.identity import MAX_ALIAS_HOPS, Edge, current_name, stretches
from feature_repo.contracts.packing import FLAG_BOT, FLAG_PERSONALIZE_DENIED, ItemMark, SessionEvent, SessionState

MAX_DEVICES = 8
"""Devices of one person whose sessions join: those seen last."""
MAX_FORMER_NAMES = 4
_NOT_JOINED = FLAG_PERSONALIZE_DENIED | FLAG_BOT
MAX_READS = 3 + MAX_ALIAS_HOPS
"""Reads that a cold answer may take: the device, its user, that user's devices, and a step for each alias."""

Edges = Mapping[str, Edge]
"""The edges of one subject by the subject at their other end (`keys.edges_key`)."""


class Identity(NamedTuple):
    """Who asks. `asked` is the subject that the request names.

    user_id   the user under the current name, None when the device is nobody's
    subjects  `asked`, then whose records may count as this person's: the user, former names, devices
    decided_by  all whose edges decide who this is, subjects and others on the way
    """

    asked: str
    user_id: str | None
    subjects: tuple[str, ...]
    decided_by: tuple[str, ...] = ()

    @property
    def primary(self) -> str:
        """Whose session record the others join."""
        return self.asked if self.user_id is None else "u:" + self.user_id


def stranger(asked: str) -> Identity:
    """What is known before anything is read: the subject alone."""
    return Identity(asked, asked[2:] if asked.startswith("u:") else None, (asked,), (asked,))


def person_of(asked: str, edges: Mapping[str, Edges], *, now_micros: int) -> Identity:
    """Who `asked` is at `now_micros`. `edges` has an entry for every subject that was read, also for one without any.

    What was not read counts as having no edges: the answer is sure once everybody in `decided_by` was read.
    """
    decided_by: dict[str, None] = {}

    def of(subject: str) -> Edges:
        decided_by[subject] = None
        return edges.get(subject, {})

    def called_now(user_id: str) -> str:
        return current_name(user_id, lambda name: _users(of("u:" + name), renaming=True))

    user_id: str | None
    if asked.startswith("u:"):
        user_id = asked[2:]
    else:
        user_id = _owner(of(asked), now_micros)
    if user_id is None:
        return Identity(asked, None, (asked,), tuple(decided_by))
    user_id = called_now(user_id)
    names, devices = _names_and_devices(user_id, of, called_now)
    of_person = ["u:" + name for name in names] + devices
    for subject in of_person:
        of(subject)
    others = tuple(subject for subject in of_person if subject != asked)
    return Identity(asked, user_id, (asked, *others), tuple(decided_by))


def _names_and_devices(
    user_id: str, of: Callable[[str], Edges], called_now: Callable[[str], str]
) -> tuple[list[str], list[str]]:
    """The user's names, the current one first, and the devices that were seen with one of them, the newest first."""
    names = [user_id]
    seen_at: dict[str, int] = {}
    for name in names:
        for peer, edge in of("u:" + name).items():
            if not peer.startswith("a:") or not edge.is_live:
                continue
            seen_at[peer] = max(edge.last_micros, seen_at.get(peer, edge.last_micros))
            former = peer[2:]
            has_room = len(names) <= MAX_FORMER_NAMES
            if edge.renames and has_room and former not in names and called_now(former) == user_id:
                names.append(former)
    devices = sorted(seen_at, key=lambda subject: (-seen_at[subject], subject))
    return names, devices[:MAX_DEVICES]


def _users(edges: Edges, *, renaming: bool = False) -> list[str]:
    return [peer[2:] for peer, edge in edges.items() if peer.startswith("u:") and (edge.renames or not renaming)]


def _of_users(edges: Edges) -> dict[str, Edge]:
    return {peer[2:]: edge for peer, edge in edges.items() if peer.startswith("u:")}


def _owner(edges: Edges, micros: int) -> str | None:
    for start, end, user_id in stretches(_of_users(edges)):
        if start <= micros <= end:
            return user_id
    return None


def join_sessions(person: Identity, edges: Mapping[str, Edges], sessions: Mapping[str, SessionState]) -> SessionState:
    """The person's record: that of the user, with what devices and former names add to it.

    Of a device only what lies in a stretch that is this person's joins: on a shared tablet the other's clicks do not.
    A device whose own record says no to personalization, or that it behaves like a bot, adds nothing, unless it is the
    one that asks: then that holds for the answer. What the user's own record says holds on all devices.
    Lists stay sorted by time; an item marked twice keeps its newest time.
    """
    own = sessions.get(person.primary, SessionState())
    asked = sessions.get(person.asked, SessionState())
    if person.user_id is None or person.subjects == (person.primary,):
        return own
    if asked.flags & _NOT_JOINED:
        return replace(own, flags=own.flags | asked.flags & _NOT_JOINED)
    names = {subject[2:] for subject in person.subjects if subject.startswith("u:")} | {person.user_id}
    events: list[SessionEvent] = list(own.events)
    bought, dismissed = list(own.bought), list(own.dismissed)
    for subject in person.subjects:
        state = sessions.get(subject)
        if state is None or subject == person.primary or state.flags & _NOT_JOINED:
            continue
        spans = None if subject.startswith("u:") else _spans(edges.get(subject, {}), names)
        events += [event for event in state.events if _within(spans, event.micros)]
        bought += [mark for mark in state.bought if _within(spans, mark.micros)]
        dismissed += [mark for mark in state.dismissed if _within(spans, mark.micros)]
    return replace(
        own,
        events=sorted(events, key=lambda event: (event.micros, event.item_id)),
        bought=_newest(bought),
        dismissed=_newest(dismissed),
    )


def _spans(edges: Edges, names: Iterable[str]) -> list[tuple[int, int]]:
    return [(start, end) for start, end, user_id in stretches(_of_users(edges)) if user_id in names]


def _within(spans: list[tuple[int, int]] | None, micros: int) -> bool:
    return spans is None or any(start <= micros <= end for start, end in spans)


def _newest(marks: Iterable[ItemMark]) -> list[ItemMark]:
    newest: dict[str, int] = {}
    for mark in marks:
        newest[mark.item_id] = max(mark.micros, newest.get(mark.item_id, mark.micros))
    return sorted(ItemMark(micros, item_id) for item_id, micros in newest.items())
