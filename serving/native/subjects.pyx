# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""What an event does to a subject's session record, in native code. The twins are `speed.session_state.fold_event`,
`contracts.session_record.pack_session`, `contracts.bots.BotCounters` and `contracts.events.check_event`; they say what
is right.

Here is the common way of each: an event in order, a state whose rows are what they should be. Whatever else comes is
handed to the twin before anything was changed, which is right about it or raises what it raises.
"""

import zlib

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.datetime cimport (
    PyDateTime_Check, datetime_day, datetime_hour, datetime_microsecond, datetime_minute, datetime_month,
    datetime_second, datetime_tzinfo, datetime_year, import_datetime,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from datetime import UTC, datetime

from feature_repo.contracts.bots import (
    AGENT_FIELDS, BROWSING_NAMES, LEAST_STEP_MICROS, MAX_ITEMS, QUICK_MICROS, STEADY_SHARE_OF_STEP, VIEWING_TYPE,
    is_crawler_agent, user_agent_of,
)
from feature_repo.contracts.common_events import (
    COMMON_TYPES, COMMON_TYPES_WITHOUT_ITEM, FLAT_FIELDS, TEXTS, is_good_number,
)
from feature_repo.contracts.common_events import check_common_event as check_by_twin
from feature_repo.contracts.events import EVENT_FIELDS, MAX_ID_BYTES, MAX_ITEMS_PER_EVENT, EventType
from feature_repo.contracts.packing import FLAG_BOT
from feature_repo.contracts.regions import MAX_REGION_BYTES, REGION_FIELDS, voting_region
from feature_repo.contracts.session_record import (
    EVENT_TYPE_ORDER, FORMAT_V3, FORMAT_V4, MAX_COUNT, MAX_EVENTS, MAX_INTERESTS, MAX_SEEN, MAX_SHOWINGS, MAX_STEPS, MAX_WEIGHT,
    NO_REGION, WORD_ORDER, SessionEvent, Word, session_hash,
)
from feature_repo.contracts.session_record import pack_session as _twin_pack
from feature_repo.contracts.times import EARLIEST_EVENT, to_micros
from feature_repo.contracts.trend_record import MAX_VOTES, WINDOWS
from serving.speed import session_state as _twin
from serving.speed.session_state import DAY_MICROS, PLANS, VOTED_PERIODS

import_datetime()


cdef object _utc = UTC
cdef object _crc32 = zlib.crc32
cdef object _tuple_of = tuple.__new__
cdef object _session_hash = session_hash
cdef dict _plans = {
    kind: (plan.touches, plan.is_step, plan.sees, plan.shows, plan.halves)
    for kind, plan in PLANS.items()
    # the cart, purchases and dislikes are rare, and have lists of their own
    if plan.is_removal is None and not plan.buys and not plan.dismisses and kind != EventType.UNMERGE
}
cdef dict _types = {name: number for number, name in enumerate(EVENT_TYPE_ORDER)}
cdef dict _words = {name: number for number, name in enumerate(WORD_ORDER)}
cdef frozenset _browsing = BROWSING_NAMES
cdef str _viewing = VIEWING_TYPE.value
cdef tuple _agent_fields = tuple(AGENT_FIELDS)
cdef int64_t _day = DAY_MICROS
cdef Py_ssize_t _max_events = MAX_EVENTS, _max_steps = MAX_STEPS, _max_seen = MAX_SEEN
cdef Py_ssize_t _max_interests = MAX_INTERESTS, _max_showings = MAX_SHOWINGS, _max_votes = MAX_VOTES
cdef Py_ssize_t _voted_periods = VOTED_PERIODS, _max_region = MAX_REGION_BYTES
cdef int64_t _max_count = MAX_COUNT, _max_weight = MAX_WEIGHT
cdef int64_t _flag_bot = FLAG_BOT
cdef list _windows = [(int(w.number), int(w.seconds), int(w.bucket_seconds)) for w in WINDOWS]
cdef int64_t _quick = QUICK_MICROS, _least_step = LEAST_STEP_MICROS
cdef double _steady = STEADY_SHARE_OF_STEP
cdef Py_ssize_t _max_items = MAX_ITEMS

assert (FORMAT_V3, FORMAT_V4, NO_REGION) == (3, 4, 65535)
assert REGION_FIELDS == ("region", "country", "location.country")
assert list(_words) == ["device", "channel", "referrer", "first_referrer", "language"]


cdef class Odd(Exception):
    """The twin has to do it."""


# --- an event -----------------------------------------------------------------------------------------------------


cdef int64_t _micros_of(object moment) except? -1:
    """Microseconds since 1970 of an aware moment."""
    cdef int64_t year, month, day, era, of_era, days
    if not PyDateTime_Check(moment) or datetime_tzinfo(moment) is not _utc:
        return to_micros(moment)
    year, month, day = datetime_year(moment), datetime_month(moment), datetime_day(moment)
    # the civil calendar, with years that begin in March
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    days = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    days += of_era * 365 + of_era // 4 - of_era // 100 + era * 146097 - 719468
    return (
        (days * 86400 + datetime_hour(moment) * 3600 + datetime_minute(moment) * 60 + datetime_second(moment)) * 1000000
        + datetime_microsecond(moment)
    )


def micros_of(moment):
    """`contracts.times.to_micros`."""
    return _micros_of(moment)


def fold_event(state, event):
    """`speed.session_state.fold_event`."""
    cdef dict fields, seen, counts
    cdef list items, kept, steps
    cdef tuple plan
    cdef int64_t micros, flags, first
    cdef object kind, several, mark, session, at, consent
    if type(event) is not dict:
        return _twin.fold_event(state, event)
    fields = <dict>event
    kind = fields["event_type"]
    plan = <tuple>_plans.get(kind)
    several = fields.get("items")
    consent = fields.get("consent")
    if plan is None or consent or "channel" in fields or (several is not None and not several):
        return _twin.fold_event(state, event)
    micros = _micros_of(fields["timestamp"])
    if micros < 0:
        return _twin.fold_event(state, event)
    at = micros
    event_id = fields["event_id"]
    mark = _crc32(event_id.encode("utf-8", "surrogatepass")) or 1
    session = fields.get("session_id")
    session = _session_hash(session) if session else 0
    if several is None:
        item = fields.get("item_id")
        items = [] if item is None else [item]
    else:
        items = [line["item_id"] for line in several]

    if plan[0]:  # touches an item
        kept = state.events
        if kept and micros <= <int64_t>(<tuple>kept[len(kept) - 1])[0]:
            return _twin.fold_event(state, event)
        if len(items) > 1:
            return _twin.fold_event(state, event)
        for item in items:
            kept.append(_tuple_of(SessionEvent, (at, kind, session, item, mark)))
            if len(kept) > _max_events:
                del kept[0]
    elif plan[1]:  # is a step
        steps = state.steps
        if steps and micros <= <int64_t>(<tuple>steps[len(steps) - 1])[0]:
            return _twin.fold_event(state, event)
        steps.append(_tuple_of(SessionEvent, (at, kind, session, "", mark)))
        if len(steps) > _max_steps:
            del steps[0]
    flags = state.flags
    if items:
        if plan[2]:  # is seen
            seen = state.seen
            for item in items:
                before = seen.get(item)
                if before is None or <int64_t>before < micros:
                    seen[item] = at
            while len(seen) > _max_seen:
                del seen[min(zip(seen.values(), seen))[1]]
        if plan[3]:  # is shown
            _add_by_day(state.shown, micros, items, 1, _max_showings)
        if plan[4]:  # halves
            _add_by_day(state.interests, micros, items, plan[4], _max_interests)
            if not flags & _flag_bot:
                context = fields.get("context")
                _vote(state.votes, state.regions, micros, items, _region_of(context) if context else "")
    counts = state.counts
    before = counts.get(kind)
    counts[kind] = 1 if before is None else min(<int64_t>before + 1, _max_count)
    first = state.first_micros
    if not 0 < first <= micros:
        state.first_micros = min(first, micros) if first else at
    if micros > <int64_t>state.last_micros:
        state.last_micros = at
    context = fields.get("context")
    if context:
        _hear(state, at, micros, event, context)


cdef _add_by_day(dict sums, int64_t micros, list items, int64_t added, Py_ssize_t most):
    cdef object day = micros // _day, key, held
    for item in items:
        key = (day, item)
        held = sums.get(key)
        sums[key] = added if held is None else min(<int64_t>held + added, _max_weight)
    while len(sums) > most:
        del sums[min(sums)]


cdef object _region_of(object context):
    """`contracts.regions.voting_region`."""
    cdef object region
    if type(context) is dict:
        region = (<dict>context).get("region")
        if region is None:
            if "country" not in <dict>context and "location" not in <dict>context:
                return ""
        elif type(region) is str and 0 < len(<str>region) <= _max_region and (<str>region).isascii():
            if "\0" not in <str>region:
                return region
    return voting_region(context)


cdef _vote(dict votes, dict regions, int64_t micros, list items, str region):
    cdef int64_t seconds = micros // 1000000, length, bucket
    cdef dict here
    cdef tuple window
    cdef object key, held, number, vote
    cdef bint is_placed = bool(region), has_regions = bool(regions)
    for window in _windows:
        number = window[0]
        length = window[1]
        key = (number, seconds // length)
        found = votes.get(key)
        if found is None:
            known = [other for other in votes if other[0] == number]
            if len(known) >= _voted_periods:
                oldest = min(known)
                if key[1] < oldest[1]:
                    continue
                for item in votes.pop(oldest):
                    if has_regions:
                        regions.pop((*oldest, item), None)
            found = votes[key] = {}
        here = found
        bucket = seconds % length // <int64_t>window[2]
        for item in items:
            held = here.get(item)
            if held is None:
                here[item] = bucket
                if is_placed:
                    regions[(*key, item)] = region
                if len(here) > _max_votes:
                    silenced = max(here, key=_twin.vote_order)
                    del here[silenced]
                    if is_placed or has_regions:
                        regions.pop((*key, silenced), None)
            elif bucket < <int64_t>held:
                here[item] = bucket
                if has_regions:
                    regions.pop((*key, item), None)
                if is_placed:
                    regions[(*key, item)] = region
            elif is_placed and bucket == <int64_t>held:
                vote = (*key, item)
                regions[vote] = min(region, regions.get(vote, region))


cdef _hear(object state, object at, int64_t micros, object event, object context):
    """Device and language as plain words, which nearly all events have; about all else the twin listens."""
    cdef dict said, known
    cdef object device, language
    if type(context) is not dict:
        return _twin._hear_words(state, at, event)
    said = <dict>context
    device = said.get("device")
    language = said.get("language")
    if (
        (device is not None and type(device) is not str) or (language is not None and type(language) is not str)
        or "referrer" in said or "page" in said or "locale" in said
    ):
        return _twin._hear_words(state, at, event)
    known = state.words
    if device:
        _hear_word(known, "device", _twin._cut(device), at, micros)
    if language:
        _hear_word(known, "language", _twin._cut(language), at, micros)


cdef _hear_word(dict known, str name, str text, object at, int64_t micros):
    cdef object held
    if not text:
        return
    held = known.get(name)
    if held is None or <int64_t>(<tuple>held)[0] < micros or held < (at, text):
        known[name] = _tuple_of(Word, (at, text))


# --- a record -----------------------------------------------------------------------------------------------------


cdef inline char* _put(char* to, const void* value, Py_ssize_t size) noexcept:
    memcpy(to, value, size)
    return to + size


cdef inline char* _put8(char* to, uint8_t value) noexcept:
    to[0] = <char>value
    return to + 1


cdef inline char* _put16(char* to, uint16_t value) noexcept:
    return _put(to, &value, 2)


cdef inline char* _put32(char* to, uint32_t value) noexcept:
    return _put(to, &value, 4)


cdef inline char* _put64(char* to, int64_t value) noexcept:
    return _put(to, &value, 8)


cdef inline char* _putu64(char* to, uint64_t value) noexcept:
    return _put(to, &value, 8)


cdef inline uint16_t _place(dict names, object name) except? 65535:
    """Where the name is: where it was first asked for."""
    cdef object found = names.get(name)
    cdef Py_ssize_t count
    if found is None:
        count = len(names)
        if count >= 65535:
            raise Odd()
        names[name] = count
        return <uint16_t>count
    return <uint16_t><Py_ssize_t>found


cdef inline tuple _row(object row, Py_ssize_t size):
    if not isinstance(row, tuple) or len(<tuple>row) != size:
        raise Odd()
    return <tuple>row


def pack_session(state):
    """`contracts.session_record.pack_session`."""
    cdef char* rows = NULL
    try:
        rows = <char*>PyMem_Malloc(_room_of(state))
        if rows == NULL:
            raise MemoryError()
        return _packed(state, rows)
    except (Odd, OverflowError, TypeError, ValueError, KeyError, UnicodeEncodeError):
        return _twin_pack(state)  # which says what is wrong
    finally:
        PyMem_Free(rows)


cdef Py_ssize_t _room_of(object state) except -1:
    cdef Py_ssize_t voted = 0
    for votes in (<dict?>state.votes).values():
        voted += len(<dict?>votes)
    return (
        64 + 23 * len(<list?>state.events) + 21 * len(<list?>state.steps) + 17 * len(<list?>state.cart)
        + 10 * (len(<list?>state.bought) + len(<list?>state.dismissed) + len(<dict?>state.seen))
        + 6 * (len(<dict?>state.interests) + len(<dict?>state.shown)) + (8 + 2) * voted
        + 5 * len(<dict?>state.counts) + 11 * len(<dict?>state.words)
    )


cdef bytes _packed(object state, char* rows):
    cdef dict names = {}
    cdef char* to = rows
    cdef char head[128]
    cdef char* at = head
    cdef tuple row, key
    cdef Py_ssize_t voted = 0, named_bytes
    cdef list events = state.events, steps = state.steps, cart = state.cart, listed
    cdef dict votes = state.votes, bucket_of, counts = state.counts, words = state.words, sums, seen = state.seen
    cdef dict regions = state.regions
    cdef bint has_regions = bool(regions)
    cdef list voted_for = []
    for found in events:
        row = _row(found, 5)
        to = _put64(to, row[0])
        to = _put8(to, _types[row[1]])
        to = _putu64(to, row[2])
        to = _put32(to, row[4])
        to = _put16(to, _place(names, row[3]))
    for found in steps:
        row = _row(found, 5)
        to = _put64(to, row[0])
        to = _put8(to, _types[row[1]])
        to = _putu64(to, row[2])
        to = _put32(to, row[4])
    for found in cart:
        row = _row(found, 5)
        to = _put64(to, row[0])
        to = _put8(to, row[1])
        to = _put16(to, row[2])
        to = _put32(to, row[4])
        to = _put16(to, _place(names, row[3]))
    for listed in (state.bought, state.dismissed, sorted(zip(seen.values(), seen)) if seen else []):
        for found in listed:
            row = _row(found, 2)
            to = _put64(to, row[0])
            to = _put16(to, _place(names, row[1]))
    sums = state.interests
    for found in sorted(sums.items()):
        row = <tuple>found
        key = _row(row[0], 2)
        to = _put16(to, key[0])
        to = _put16(to, _place(names, key[1]))
        to = _put16(to, row[1])
    for period in sorted(votes):
        key = _row(period, 2)
        bucket_of = votes[period]
        for item in sorted(bucket_of):
            to = _put8(to, key[0])
            to = _put32(to, key[1])
            to = _put8(to, bucket_of[item])
            to = _put16(to, _place(names, item))
            voted += 1
            if has_regions:
                voted_for.append((*key, item))
    for found in sorted([(_types[kind], number) for kind, number in counts.items()]):
        to = _put8(to, (<tuple>found)[0])
        to = _put32(to, (<tuple>found)[1])
    listed = []
    for name in sorted(words):
        row = _row(words[name], 2)
        listed.append((_words[name], row[0], _place(names, row[1])))
    listed.sort()
    for found in listed:
        row = <tuple>found
        to = _put8(to, row[0])
        to = _put64(to, row[1])
        to = _put16(to, row[2])
    sums = state.shown
    if sums:
        for found in sorted(sums.items()):
            row = <tuple>found
            key = _row(row[0], 2)
            to = _put16(to, key[0])
            to = _put16(to, _place(names, key[1]))
            to = _put16(to, row[1])
    for vote in voted_for:
        region = regions.get(vote)
        to = _put16(to, 65535 if region is None else _place(names, region))

    cdef str joined = "\0".join(names)
    if "" in names or joined.count("\0") != max(0, len(names) - 1):
        raise Odd()
    cdef bytes named = joined.encode("utf-8")
    named_bytes = PyBytes_GET_SIZE(named)
    at = _put8(at, 4 if voted_for else 3)
    at = _put8(at, state.flags)
    at = _put64(at, state.consent_micros)
    at = _put64(at, state.first_micros)
    at = _put64(at, state.last_micros)
    at = _put32(at, named_bytes)
    at = _put16(at, len(names))
    at = _put16(at, len(events))
    at = _put16(at, len(steps))
    at = _put16(at, len(cart))
    at = _put16(at, len(<list>state.bought))
    at = _put16(at, len(<list>state.dismissed))
    at = _put16(at, len(seen))
    at = _put16(at, len(<dict>state.interests))
    at = _put16(at, voted)
    at = _put8(at, len(counts))
    at = _put8(at, len(words))
    at = _put16(at, len(sums))
    cdef Py_ssize_t head_bytes = at - head, row_bytes = to - rows
    cdef bytes whole = PyBytes_FromStringAndSize(NULL, head_bytes + named_bytes + row_bytes)
    cdef char* into = PyBytes_AS_STRING(whole)
    into = _put(into, head, head_bytes)
    into = _put(into, PyBytes_AS_STRING(named), named_bytes)
    _put(into, rows, row_bytes)
    return whole


# --- a subject's day ----------------------------------------------------------------------------------------------


cdef class BotCounters:
    """`contracts.bots.BotCounters`."""

    cdef readonly int64_t browsing, second_peak, minute_peak, hour_peak, gaps, quick_gaps, steps, steady_steps
    cdef readonly bint is_crawler
    cdef readonly set items
    cdef int64_t _second, _in_second, _minute, _in_minute, _hour, _in_hour, _last_view, _last_gap

    def __cinit__(self):
        self.items = set()
        self._second = self._minute = self._hour = self._last_view = self._last_gap = -1

    def add(self, event_type, int64_t micros, item_id, *, context=None):
        """Count one event, or one line of one."""
        cdef int64_t second, minute, hour
        if context and not self.is_crawler:
            if type(context) is not dict or _agent_fields[0] in <dict>context or _agent_fields[1] in <dict>context:
                agent = user_agent_of(context)
                self.is_crawler = agent is not None and is_crawler_agent(agent)
        if event_type not in _browsing:
            return
        self.browsing += 1
        second = _floor(micros, 1000000)
        if second == self._second:
            self._in_second += 1
            self._in_minute += 1
            self._in_hour += 1
        elif second > self._second:
            minute, hour = _floor(second, 60), _floor(second, 3600)
            self._in_second = 1
            self._in_minute = self._in_minute + 1 if minute == self._minute else 1
            self._in_hour = self._in_hour + 1 if hour == self._hour else 1
            self._second, self._minute, self._hour = second, minute, hour
        if self._in_second > self.second_peak:
            self.second_peak = self._in_second
        if self._in_minute > self.minute_peak:
            self.minute_peak = self._in_minute
        if self._in_hour > self.hour_peak:
            self.hour_peak = self._in_hour
        if event_type == _viewing:
            self._view(micros, item_id)

    cdef _view(self, int64_t micros, object item_id):
        cdef int64_t gap
        if item_id is not None and len(self.items) <= _max_items:
            self.items.add(hash(item_id))
        if self._last_view >= 0:
            gap = micros - self._last_view
            if gap < 0:
                return
            self.gaps += 1
            self.quick_gaps += gap < _quick
            if self._last_gap >= _least_step and gap >= _least_step:
                self.steps += 1
                self.steady_steps += abs(gap - self._last_gap) <= _steady * self._last_gap
            self._last_gap = gap
        self._last_view = micros


cdef inline int64_t _floor(int64_t value, int64_t by) noexcept:
    """Division as Python does it."""
    cdef int64_t found = value // by
    return found - (value % by < 0)


# --- an event from the log ----------------------------------------------------------------------------------------

cdef enum:
    TEXT = 1
    KIND = 2
    MOMENT = 3
    NUMBER = 4
    FLAT = 5
    LINES = 6

cdef dict _roles = {}  # of a field: what it may hold, and its place among the fields
for _number, _field in enumerate(EVENT_FIELDS):
    for _role, _fields in (
        (TEXT, TEXTS), (KIND, ("event_type",)), (MOMENT, ("timestamp",)), (NUMBER, ("value", "quantity", "price")),
        (FLAT, FLAT_FIELDS), (LINES, ("items",)),
    ):
        if _field in _fields:
            _roles[_field] = (_role, _number)
cdef frozenset _common_types = COMMON_TYPES
cdef frozenset _types_without_item = COMMON_TYPES_WITHOUT_ITEM
cdef object _earliest = EARLIEST_EVENT
cdef object _parse = datetime.fromisoformat
cdef Py_ssize_t _max_id = MAX_ID_BYTES, _max_lines = MAX_ITEMS_PER_EVENT


cdef inline bint _is_id(object value):
    cdef Py_ssize_t size
    if type(value) is not str:
        return False
    size = len(<str>value)
    return 0 < size <= _max_id and (<str>value).isascii() and "\0" not in <str>value


cdef bint _are_lines(object lines) except -1:
    if type(lines) is not list or not 0 < len(<list>lines) <= _max_lines:
        return False
    for line in <list>lines:
        if type(line) is not dict or len(<dict>line) != 1 or not _is_id((<dict>line).get("item_id")):
            return False
    return True


def check_common_event(event, *, latest):
    """`contracts.common_events.check_common_event`, and events with `items` that name an item each and say no more."""
    cdef Py_ssize_t last = -1, place
    cdef int role
    cdef bint has_item = False, has_subject = False, has_id = False
    cdef object kind = None, moment = None
    cdef dict good
    if type(event) is not dict:
        return None
    for field, value in (<dict>event).items():
        known = _roles.get(field)
        if known is None:
            return None
        role = (<tuple>known)[0]
        place = (<tuple>known)[1]
        if place < last:
            return check_by_twin(event, latest=latest)  # fields in another order
        last = place
        if role == TEXT:
            if not _is_id(value):
                return None
            if field == "item_id":
                has_item = True
            elif field == "event_id":
                has_id = True
            elif field == "user_id" or field == "anonymous_id":
                has_subject = True
        elif role == KIND:
            kind = value
        elif role == MOMENT:
            try:
                moment = _parse(value)
            except (TypeError, ValueError):
                return None
            if datetime_tzinfo(moment) is not _utc or not _earliest <= moment <= latest:
                return None
        elif role == NUMBER:
            if not is_good_number(field, value):
                return None
        elif role == FLAT:
            if type(value) is not dict:
                return None
            for inner in (<dict>value).values():
                if isinstance(inner, (dict, list)):
                    return None
        else:
            if not _are_lines(value):
                return None
            has_item = True
    if not (has_id and has_subject) or moment is None or type(kind) is not str:
        return None
    if kind not in (_common_types if has_item else _types_without_item):
        return None
    good = (<dict>event).copy()
    good["timestamp"] = moment
    return good
