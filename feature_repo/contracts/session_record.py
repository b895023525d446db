"""The session record: what the speed layer knows of one subject, packed. Little-endian; the format is the first byte.

Session record v4
    header    <BBqqqI9H2BH  format=4, flags, consent time, first and last event time (us since 1970; 0: none), bytes of
              the names, then how many names, events, steps, cart changes, bought, dismissed, seen, interests, votes,
              type counts, last words, showings
    names     UTF-8, joined by NUL: item ids and words; rows below point at them by position
    event     <qBQIH  event time (us), type (index in EVENT_TYPE_ORDER), session hash, event hash, item
    step      <qBQI   the same without an item
    cart      <qBHIH  event time (us), 0 added / 1 removed, quantity (0: all), event hash, item
    bought, dismissed, seen  <qH  event time (us), item
    interest  <HHH    day since 1970, item, weight in halves
    vote      <BIBH   trend window, period, bucket within it, item
    count     <BI     event type, number
    word      <BqH    which (index in WORD_ORDER), event time (us), the word
    showing   <HHH    day since 1970, item, how often it was shown that day
    region    <H      of each vote in turn: the region that it went to; 65535: none
    Lists are sorted by time, oldest first; ties by item id.

    Size: at most 10,380 bytes and each name once (with a NUL), at most 1,015 names. With ids of 16 bytes a record has
    at most 28 kB, with the longest that are allowed (ids 256 bytes, regions 64) 262 kB; after ten events some 600.

Session record v3 (written where no vote has a region): the same without regions, format=3.

Session record v2 (read, no longer written): the same without showings, their number and the end of the header.

Session record v1 (read, no longer written; what it did not keep is empty)
    header  <BBqHHH format=1, flags, consent time (us since 1970), event count, bought count, dismissed count
    event   <qBQH   event time (us), event type, session hash, id length; then the id
    bought, dismissed  <qH  event time (us), id length; then the id

Golden files of all formats are kept in tests/golden for ever.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from feature_repo.contracts.errors import ContractError

FORMAT_V1, FORMAT_V2, FORMAT_V3, FORMAT_V4 = 1, 2, 3, 4

EVENT_TYPE_ORDER = (
    "view_item", "view_item_list", "select_item", "add_to_cart", "remove_from_cart", "add_to_wishlist", "view_cart",
    "begin_checkout", "purchase", "refund", "search", "impression", "click", "like", "dislike", "not_interested",
    "rating", "share", "watch", "page_view", "survey", "identify", "alias", "unmerge",
    "user_engagement",
)  # fmt: skip
"""Stored as an index: append, never reorder."""
_TYPE_INDEX = {name: i for i, name in enumerate(EVENT_TYPE_ORDER)}

WORD_ORDER = ("device", "channel", "referrer", "first_referrer", "language")
"""What a record keeps the last word of (of `first_referrer`: the first). Stored as an index: append, never reorder."""
_WORD_INDEX = {name: i for i, name in enumerate(WORD_ORDER)}

MAX_EVENTS = 50
MAX_STEPS = 30
MAX_CART_CHANGES = 64
MAX_MARKS = 200
"""Items bought, and as many dismissed."""
MAX_SEEN = 100
MAX_INTERESTS = 100
MAX_SHOWINGS = 200
MAX_COUNT = 2**32 - 1
MAX_WEIGHT = 2**16 - 1
NO_REGION = 2**16 - 1
"""Instead of a name: the vote went to no region."""


@lru_cache(maxsize=8192)
def session_hash(session_id: str | None) -> int:
    """64 bits that stand for a session id in a record; 0 when the client named no session."""
    if not session_id:
        return 0
    return int.from_bytes(hashlib.blake2b(session_id.encode("utf-8"), digest_size=8).digest(), "little") or 1


def event_hash(event_id: str) -> int:
    """32 bits that stand for an event id in a record; never 0, which stands for an unknown one."""
    return zlib.crc32(event_id.encode("utf-8", "surrogatepass")) or 1


class SessionEvent(NamedTuple):
    """One event on an item; as a step, one without (`item_id` is ""). `micros` is event time in microseconds since
    1970 (UTC)."""

    micros: int
    event_type: str
    session_hash: int
    item_id: str
    event_hash: int = 0


class CartChange(NamedTuple):
    """An item put into the cart or taken out. `quantity` 0 takes out all there is."""

    micros: int
    is_removal: bool
    quantity: int
    item_id: str
    event_hash: int = 0


class ItemMark(NamedTuple):
    """An item and the event time of the newest event that marked it (bought, dismissed)."""

    micros: int
    item_id: str


Votes = dict[tuple[int, int], dict[str, int]]
Regions = dict[tuple[int, int, str], str]


class Word(NamedTuple):
    """Something said about the subject, and when (event time, us)."""

    micros: int
    text: str


@dataclass(slots=True)
class SessionState:
    """What the speed layer knows of one subject. Lists are oldest first; ties by item id.

    events     the newest events that touched an item        steps  the newest events that touched none
    cart       the newest changes of the cart                counts  event type -> events so far
    seen       item shown or touched -> time of the newest event that did (us)
    interests  (day since 1970, item id) -> weight in halves (SESSION_VOTE_WEIGHTS x 2)
    votes      (trend window, period) -> item that the subject speaks for -> bucket within the period (`trend_record`)
    regions    (trend window, period, item id) -> region that the vote went to; only of votes that have one
    shown      (day since 1970, item id) -> how often it was shown that day, on whatever channel
    words      one of WORD_ORDER -> the word that holds      first_micros, last_micros  event times; 0 without an event
    """

    events: list[SessionEvent] = field(default_factory=list)
    bought: list[ItemMark] = field(default_factory=list)
    dismissed: list[ItemMark] = field(default_factory=list)
    flags: int = 0
    consent_micros: int = 0
    steps: list[SessionEvent] = field(default_factory=list)
    cart: list[CartChange] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    interests: dict[tuple[int, str], int] = field(default_factory=dict)
    votes: Votes = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    words: dict[str, Word] = field(default_factory=dict)
    first_micros: int = 0
    last_micros: int = 0
    shown: dict[tuple[int, str], int] = field(default_factory=dict)
    regions: Regions = field(default_factory=dict)


_HEADER = struct.Struct("<BBqqqI9H2BH")
_V2_HEADER = struct.Struct("<BBqqqI9H2B")
_EVENT = struct.Struct("<qBQIH")
_STEP = struct.Struct("<qBQI")
_CART = struct.Struct("<qBHIH")
_MARK = struct.Struct("<qH")
_INTEREST = struct.Struct("<HHH")
_VOTE = struct.Struct("<BIBH")
_COUNT = struct.Struct("<BI")
_WORD = struct.Struct("<BqH")
_SHOWING = struct.Struct("<HHH")
_REGION = struct.Struct("<H")
_ROWS = (_EVENT, _STEP, _CART, _MARK, _MARK, _MARK, _INTEREST, _VOTE, _COUNT, _WORD, _SHOWING)
_OF_VOTES = _ROWS.index(_VOTE)

ROW_FORMATS = tuple(one.format for one in (_HEADER, *_ROWS))
"""Of v3 and v4, the header's first: whoever reads rows in another way checks that these are the ones it knows."""

_V1_HEADER = struct.Struct("<BBqHHH")
_V1_EVENT = struct.Struct("<qBQH")
_V1_MARK = struct.Struct("<qH")


def pack_session(state: SessionState) -> bytes:
    """The record of one subject, v4 or v3: equal states have equal bytes. Raises ContractError on an unknown event
    type, and on a number or name that does not fit."""
    names: dict[str, int] = {}
    place = names.setdefault  # of a name: where it was first asked for
    types = _TYPE_INDEX
    try:
        rows = [
            [_EVENT.pack(micros, types[kind], session, mark, place(item, len(names)))
             for micros, kind, session, item, mark in state.events],
            [_STEP.pack(micros, types[kind], session, mark) for micros, kind, session, _, mark in state.steps],
            [_CART.pack(micros, is_removal, quantity, mark, place(item, len(names)))
             for micros, is_removal, quantity, item, mark in state.cart],
            [_MARK.pack(micros, place(item, len(names))) for micros, item in state.bought],
            [_MARK.pack(micros, place(item, len(names))) for micros, item in state.dismissed],
            [_MARK.pack(micros, place(item, len(names)))
             for micros, item in sorted(zip(state.seen.values(), state.seen, strict=True))],
            [_INTEREST.pack(day, place(item, len(names)), weight)
             for (day, item), weight in sorted(state.interests.items())],
            [_VOTE.pack(*period, bucket, place(item, len(names)))
             for period, votes in sorted(state.votes.items()) for item, bucket in sorted(votes.items())],
            sorted(_COUNT.pack(types[kind], number) for kind, number in state.counts.items()),
            sorted([_WORD.pack(_WORD_INDEX[name], word.micros, place(word.text, len(names)))
                    for name, word in sorted(state.words.items())]),
            [_SHOWING.pack(day, place(item, len(names)), number)
             for (day, item), number in sorted(state.shown.items())],
        ]  # fmt: skip
        regions = _region_rows(state, place, names) if state.regions else []
        joined = "\0".join(names)
        if "" in names or joined.count("\0") != max(0, len(names) - 1):
            wrong = next(name for name in names if not name or "\0" in name)
            raise ContractError(f"a session record cannot name {wrong[:40]!r}: empty, or with a NUL")
        named = joined.encode("utf-8")
        header = _HEADER.pack(
            FORMAT_V4 if regions else FORMAT_V3, state.flags, state.consent_micros, state.first_micros,
            state.last_micros, len(named), len(names), *map(len, rows),
        )  # fmt: skip
    except KeyError as error:
        raise ContractError(f"event type {error.args[0]!r} has no number in the session record") from error
    except (struct.error, UnicodeEncodeError) as error:
        raise ContractError(f"a session record cannot hold this state: {error}") from error
    return b"".join([header, named, *chain.from_iterable(rows), *regions])


def _region_rows(state: SessionState, place: Callable[[str, int], int], names: Sized) -> list[bytes]:
    """One for each vote, in the order of the votes."""
    found = [
        state.regions.get((*period, item)) for period, votes in sorted(state.votes.items()) for item in sorted(votes)
    ]
    return [_REGION.pack(NO_REGION if region is None else place(region, len(names))) for region in found]


def unpack_session(record: bytes) -> SessionState:
    """Inverse of `pack_session`; reads v1 to v3 too. Raises ContractError when the record is not a whole one."""
    form = record[0] if record else FORMAT_V3
    if not FORMAT_V1 <= form <= FORMAT_V4:
        raise ContractError(f"session record format {form}, expected {FORMAT_V1} to {FORMAT_V4}")
    try:
        if form == FORMAT_V1:
            return _unpack_v1(record)
        return _unpack_rows(record, _V2_HEADER if form == FORMAT_V2 else _HEADER)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ContractError(f"a session record of {len(record)} bytes is cut short or damaged") from error


class OpenedSession(SessionState):
    """A v3 or v4 record of which only what every request needs was unpacked; the rest comes when it is asked for.

    Where the rest turns out damaged, all of it counts as empty.
    """

    __slots__ = ("_record",)

    _record: bytes

    def __getattr__(self, name: str) -> Any:
        # only for slots that hold nothing yet
        if name not in _LATER:
            raise AttributeError(name)
        try:
            whole = unpack_session(self._record)
        except ContractError:
            whole = SessionState()
        for later in _LATER:
            setattr(self, later, getattr(whole, later))
        return getattr(self, name)


_LATER = ("steps", "cart", "seen", "interests", "votes", "counts", "words", "shown", "regions")


def read_session(record: bytes) -> SessionState:
    """`unpack_session` for those who rarely look beyond events, bought, dismissed and flags: the other fields are
    unpacked when they are first asked for. Raises ContractError as it does, but for damage within those others."""
    if not record or record[0] < FORMAT_V3:
        return unpack_session(record)
    try:
        (
            form, flags, consent, first, last, name_bytes, name_count,
            events, steps, cart, bought, dismissed, seen, interests, votes, counts, words, showings,
        ) = _HEADER.unpack_from(record)  # fmt: skip
        at = _HEADER.size + name_bytes
        names = record[_HEADER.size : at].decode("utf-8").split("\0") if name_count else []
        of_marks = at + events * _EVENT.size + steps * _STEP.size + cart * _CART.size
        of_rest = of_marks + (bought + dismissed) * _MARK.size
        end = of_rest + seen * _MARK.size + interests * _INTEREST.size + votes * _VOTE.size
        end += counts * _COUNT.size + words * _WORD.size + showings * _SHOWING.size
        end += votes * _REGION.size if form == FORMAT_V4 else 0
        if len(names) != name_count or len(record) != end or form > FORMAT_V4:
            return unpack_session(record)  # says what is wrong
        types = EVENT_TYPE_ORDER
        state = OpenedSession.__new__(OpenedSession)
        state._record = record
        state.flags, state.consent_micros, state.first_micros, state.last_micros = flags, consent, first, last
        made = tuple.__new__  # what SessionEvent's own constructor does, without the call
        state.events = (
            [
                made(SessionEvent, (micros, types[kind], session, names[item], mark))
                for micros, kind, session, mark, item in _EVENT.iter_unpack(record[at : at + events * _EVENT.size])
            ]
            if events
            else []
        )
        state.bought = state.dismissed = []
        if of_rest > of_marks:
            marks = [made(ItemMark, (at, names[item])) for at, item in _MARK.iter_unpack(record[of_marks:of_rest])]
            state.bought, state.dismissed = marks[:bought], marks[bought:]
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ContractError(f"a session record of {len(record)} bytes is cut short or damaged") from error
    return state


def _unpack_rows(record: bytes, header: struct.Struct) -> SessionState:
    """v4, v3, and v2 by its own header, which counts no showings."""
    form, flags, consent, first, last, name_bytes, name_count, *counts = header.unpack_from(record)
    counts += [0] * (len(_ROWS) - len(counts))
    at = header.size + name_bytes
    names = record[header.size : at].decode("utf-8").split("\0") if name_count else []
    if len(names) != name_count:
        raise ContractError(
            f"a session record is cut short or damaged: {name_count} names promised, {len(names)} found"
        )
    sections: list[Iterable[tuple[int, ...]]] = []
    for count, row in zip(counts, _ROWS, strict=True):
        end = at + count * row.size
        sections.append(row.iter_unpack(record[at:end]) if count else ())
        at = end
    of_votes = record[at:]
    if form == FORMAT_V4:
        at += counts[_OF_VOTES] * _REGION.size
    if len(record) != at:
        raise ContractError(f"a session record of these counts ends at byte {at}, got {len(record)} bytes")
    events, steps, cart, bought, dismissed, seen, interests, voted, numbers, words, showings = sections
    types = EVENT_TYPE_ORDER
    made = tuple.__new__  # what a NamedTuple's own constructor does, without the call
    votes: Votes = {}
    of_period: dict[str, int] = {}
    last_period = None
    placed = [place for (place,) in _REGION.iter_unpack(of_votes)]
    regions: Regions = {}
    for number, (window, period, bucket, item) in enumerate(voted):  # those of a period lie together
        if (window, period) != last_period:
            last_period = (window, period)
            of_period = votes.setdefault(last_period, {})
        of_period[names[item]] = bucket
        if placed and placed[number] != NO_REGION:
            regions[window, period, names[item]] = names[placed[number]]
    return SessionState(
        [
            made(SessionEvent, (micros, types[kind], session, names[item], mark))
            for micros, kind, session, mark, item in events
        ],
        [made(ItemMark, (micros, names[item])) for micros, item in bought],
        [made(ItemMark, (micros, names[item])) for micros, item in dismissed],
        flags,
        consent,
        [made(SessionEvent, (micros, types[kind], session, "", mark)) for micros, kind, session, mark in steps],
        [
            made(CartChange, (micros, bool(out), quantity, names[item], mark))
            for micros, out, quantity, mark, item in cart
        ],
        {names[item]: micros for micros, item in seen},
        {(day, names[item]): weight for day, item, weight in interests},
        votes,
        {types[kind]: number for kind, number in numbers},
        {WORD_ORDER[which]: made(Word, (micros, names[text])) for which, micros, text in words},
        first,
        last,
        {(day, names[item]): number for day, item, number in showings},
        regions,
    )


def _unpack_v1(record: bytes) -> SessionState:
    _, flags, consent_micros, events, bought, dismissed = _V1_HEADER.unpack_from(record)
    state = SessionState(flags=flags, consent_micros=consent_micros)
    at = _V1_HEADER.size
    for _ in range(events):
        micros, type_index, hashed, size = _V1_EVENT.unpack_from(record, at)
        at += _V1_EVENT.size
        item_id = record[at : at + size].decode("utf-8")
        state.events.append(SessionEvent(micros, EVENT_TYPE_ORDER[type_index], hashed, item_id))
        at += size
    for marks, count in ((state.bought, bought), (state.dismissed, dismissed)):
        for _ in range(count):
            micros, size = _V1_MARK.unpack_from(record, at)
            at += _V1_MARK.size
            marks.append(ItemMark(micros, record[at : at + size].decode("utf-8")))
            at += size
    if at != len(record):
        raise ContractError(f"a session record ends at byte {at}, got {len(record)} bytes")
    return state
