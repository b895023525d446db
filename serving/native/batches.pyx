# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""A batch of the consumer in native code: its events as they lie in the log, whom they are about, what they do to a
record, and the bytes that Redis is sent. The twins are `speed.entries.read_entries` and `by_session_key`,
`Applier._fold_subject`, `speed.bot_guard.BotGuard`, `speed.trends` and the commands of `speed.stores`; they say what is
right.

Here is the common way of each. An event or a subject that is odd is handed to the twin, as if nothing had been tried.
"""

from collections import OrderedDict

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from serving.native.borrowed cimport PyDict_GetItemWithError

import orjson

from feature_repo.contracts.bots import BROWSING_NAMES, LEAST_BUSY, is_bot
from feature_repo.contracts.keys import quoted, session_key
from feature_repo.contracts.packing import FLAG_BOT
from feature_repo.contracts.session_record import SessionState
from serving.native.opening import unpack_session
from serving.native.subjects import BotCounters, check_common_event, micros_of
from serving.speed.bot_guard import MAX_SUBJECTS, MICROS_PER_DAY
from serving.speed.entries import LoggedEvent, latest_of
from serving.speed.session_state import VOTING_TYPES
from serving.speed.trends import BUCKETS, Stand, VoteChange, expires_at


cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    void* PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)


cdef object _tuple_of = tuple.__new__
cdef object _loads = orjson.loads
cdef frozenset _browsing = BROWSING_NAMES, _voting = VOTING_TYPES
cdef int64_t _least_busy = LEAST_BUSY, _day_micros = MICROS_PER_DAY, _flag_bot = FLAG_BOT

assert LoggedEvent._fields == (
    "partition", "position", "number", "raw", "nonce", "event", "subject", "problem", "micros",
)
assert (Stand._fields, VoteChange._fields) == (
    ("votes", "regions"), ("window", "bucket", "region", "item_id", "is_withdrawn"),
)
cdef dict _buckets = BUCKETS, _none = {}
cdef enum:
    PARTITION = 0
    POSITION = 1
    NUMBER = 2
    NONCE = 4
    EVENT = 5
    SUBJECT = 6
    MICROS = 8


cdef inline object _of(object row, int field):
    return (<tuple>row)[field]


# --- what lies in the log -----------------------------------------------------------------------------------------


def read_entries(partition, entries, read_one):
    """`speed.entries.read_entries`; whatever is not plainly a common event is read by `read_one`."""
    cdef list found = []
    cdef Py_ssize_t number
    cdef object event, subject, latest
    for position, events in entries:
        try:
            latest = latest_of(position)[1]
        except Exception:
            latest = None  # the twin says what is wrong with it
        number = 0
        for raw, nonce in events:
            event = None
            if latest is not None:
                try:
                    event = check_common_event(_loads(raw), latest=latest)
                except Exception:
                    pass  # the twin says what is wrong with this event alone
            if event is None:
                found.append(read_one(partition, position, number, raw, nonce))
            else:
                subject = (<dict>event).get("user_id")
                subject = "a:" + (<dict>event)["anonymous_id"] if subject is None else "u:" + subject
                found.append(_tuple_of(LoggedEvent, (
                    partition, position, number, raw, nonce, event, subject, None, micros_of((<dict>event)["timestamp"]),
                )))
            number += 1
    return found


cdef bint[128] _plain
for _code in range(128):
    _plain[_code] = chr(_code).isalnum() or chr(_code) in "_.~-"


cdef bint _is_plain(object text, Py_ssize_t begin):
    """Whether a key may hold the text from `begin` on as it is (`contracts.keys.quoted`)."""
    cdef const uint8_t* at
    cdef Py_ssize_t size, n
    if type(text) is not str or not PyUnicode_IS_ASCII(text):
        return False
    at, size = <const uint8_t*>PyUnicode_DATA(text), PyUnicode_GET_LENGTH(text)
    for n in range(begin, size):
        if not _plain[at[n]]:
            return False
    return True


def by_session_key(live, tenant):
    """`speed.entries.by_session_key`."""
    cdef dict found = {}, keyed = {}
    cdef PyObject* some
    cdef str begin = session_key("u:", tenant)[:-3]
    for one in live:
        subject = _of(one, SUBJECT)
        some = PyDict_GetItemWithError(found, subject)
        if some is NULL:
            found[subject] = [one]
        else:
            (<list>some).append(one)
    for subject, events in found.items():
        keyed[begin + <str>subject + "}" if _is_plain(subject, 2) else session_key(subject, tenant)] = events
    return keyed


# --- bots ---------------------------------------------------------------------------------------------------------


cdef class Seen:
    """What one subject did on the newest day it was heard of; up to which entry and event in it that is counted."""


cdef class BotGuard:
    """`speed.bot_guard.BotGuard`."""

    def __init__(self, *, max_subjects=MAX_SUBJECTS):
        self._subjects = OrderedDict()
        self._renew = self._subjects.move_to_end
        self._max_subjects = max_subjects

    def judge(self, state, event, subject, *, micros, position):
        """`speed.bot_guard.BotGuard.judge`."""
        return self._judge(state, event, subject, micros, position >> 16, position & 65535)

    cdef bint _judge(self, object state, dict event, object subject, int64_t micros, int64_t position, int64_t number):
        cdef int64_t before = state.flags, flags = before
        cdef bint flagged = self.judged(&flags, state.last_micros, event, subject, micros, position, number)
        if flags != before:
            state.flags = flags
        return flagged

    cdef bint judged(
        self, int64_t* flags, int64_t last_micros, dict event, object subject, int64_t micros, int64_t position, int64_t number
    ):
        """`judge` of a subject with these flags, which it may change."""
        cdef int64_t day = days_of(micros)
        cdef Seen seen = self._see(subject, day)
        cdef object counters = seen.counters, context, kind
        cdef bint flagged
        if position > seen.position or (position == seen.position and number > seen.number):
            seen.position, seen.number = position, number
            if day == seen.day:
                context, kind = event.get("context"), event["event_type"]
                if kind in _browsing and "items" in event:
                    for line in event["items"] or (event,):
                        counters.add(kind, micros, line.get("item_id"), context=context)
                elif context or kind in _browsing:
                    counters.add(kind, micros, event.get("item_id"), context=context)
        flagged = day == seen.day and (counters.is_crawler or counters.browsing > _least_busy) and is_bot(counters)
        if flags[0] & _flag_bot:
            flagged = flagged or day <= days_of(last_micros)
            if not flagged:
                flags[0] &= ~_flag_bot
        elif flagged:
            flags[0] |= _flag_bot
        return flagged

    cdef Seen _see(self, object subject, int64_t day):
        cdef object held = self._subjects.get(subject)
        cdef Seen seen
        if held is None:
            seen = Seen.__new__(Seen)
            seen.day, seen.position, seen.number, seen.counters = day, -1, 0, BotCounters()
            self._subjects[subject] = seen
            if len(self._subjects) > self._max_subjects:
                self._subjects.popitem(last=False)
            return seen
        seen = <Seen>held
        self._renew(subject)
        if seen.day < day:
            seen.day, seen.counters = day, BotCounters()
        return seen


cdef int64_t days_of(int64_t micros) noexcept:
    """Division as Python does it."""
    cdef int64_t found = micros // _day_micros
    return found - (micros % _day_micros < 0)


# --- a subject ----------------------------------------------------------------------------------------------------


cdef class _Odd(Exception):
    """The twin has to do it."""


cdef int64_t position_of(object text) except -1:
    """`speed.positions.position_number`."""
    cdef const uint8_t* at
    cdef Py_ssize_t size, n = 0, dash
    cdef int64_t millis = 0, sequence = 0
    if type(text) is not str or not PyUnicode_IS_ASCII(text):
        raise _Odd()
    at, size = <const uint8_t*>PyUnicode_DATA(text), PyUnicode_GET_LENGTH(text)
    while n < size and 48 <= at[n] <= 57 and n < 14:
        millis = 10 * millis + at[n] - 48
        n += 1
    dash = n
    if not dash or dash >= size or at[dash] != 45:
        raise _Odd()
    n += 1
    while n < size and 48 <= at[n] <= 57 and n - dash < 9:
        sequence = 10 * sequence + at[n] - 48
        n += 1
    if n != size or n == dash + 1 or sequence >> 20 or millis >> 43:
        raise _Odd()
    return millis << 20 | sequence


def fold_subject(states, most_states, BotGuard guard, stand_of, fold_event, pack_session, key, record, list logged):
    """The first try of `Applier._fold_subject`: (votes before, None: they are unchanged; the state; the new record; of
    how many events it was a bot's); or the number of the event that failed, -1: the record is odd.

    Whoever fails leaves no state behind in `states`.
    """
    cdef object kept = states.pop(key, None), state, before = None
    cdef Py_ssize_t at = 0, of_bots = 0
    cdef int64_t position
    if record is None:
        state = SessionState()
    elif kept is not None and (<tuple>kept)[0] == record:
        state = (<tuple>kept)[1]
    else:
        try:
            state = unpack_session(record)
        except Exception:
            return -1
    for one in logged:
        if (<dict>_of(one, EVENT))["event_type"] in _voting:
            before = stand_of(state)
            break
    try:
        for one in logged:
            event = _of(one, EVENT)
            position = position_of(_of(one, POSITION))
            of_bots += guard._judge(state, event, _of(one, SUBJECT), _of(one, MICROS), position, _of(one, NUMBER))
            fold_event(state, event)
            at += 1
        at -= 1  # it fails with the last one
        packed = pack_session(state)
    except _Odd:
        return -1
    except Exception:
        return at
    states[key] = (packed, state)
    if len(states) > <Py_ssize_t>most_states:
        states.popitem(last=False)
    return before, state, packed, of_bots


# --- votes --------------------------------------------------------------------------------------------------------


def stand_of(state):
    """`speed.trends.stand_of`."""
    cdef dict copied = {}
    for period, votes in (<dict?>state.votes).items():
        copied[period] = (<dict?>votes).copy()
    return _tuple_of(Stand, (copied, (<dict?>state.regions).copy()))


def vote_changes(before, after, *, newest=0):
    """`speed.trends.vote_changes`."""
    cdef dict held_of = _of(before, 0), votes_of = _of(after, 0), held, votes
    cdef dict regions_before = _of(before, 1), regions_after = _of(after, 1)
    cdef list changes = []
    cdef PyObject* found
    cdef bint is_in_place = regions_before == regions_after
    for key, some in votes_of.items():
        votes = some
        found = PyDict_GetItemWithError(held_of, key)
        held = _none if found is NULL else <dict?>(<object>found)
        if is_in_place and held == votes:
            continue
        _see_votes(changes, held, votes, regions_before, regions_after, key, True, newest)
        _see_votes(changes, votes, held, regions_after, regions_before, key, False, newest)
    return changes


cdef _see_votes(
    list changes, dict one, dict other, dict regions, dict others, tuple key, object is_withdrawn, object newest
):
    """The votes of one side that are not on the other."""
    cdef object window = key[0], period = key[1], first = period * _buckets[window], bucket, region, last = None
    cdef bint has_moved, lasts = False
    for item, within in one.items():
        has_moved = other.get(item) != within
        region = regions.get((window, period, item)) if regions else None
        if not has_moved and (not region or others.get((window, period, item)) == region):
            continue
        bucket = first + within
        if bucket != last:
            last = bucket
            lasts = expires_at(window, bucket) > newest
        if not lasts:
            continue
        if has_moved:
            changes.append(_tuple_of(VoteChange, (window, bucket, "", item, is_withdrawn)))
        if region:
            changes.append(_tuple_of(VoteChange, (window, bucket, region, item, is_withdrawn)))


# --- what Redis is sent -------------------------------------------------------------------------------------------


cdef inline char* _put(char* to, const void* value, Py_ssize_t size) noexcept:
    memcpy(to, value, size)
    return to + size


cdef char* _put_digits(char* to, int64_t number) noexcept:
    """A number that is not negative, in decimal."""
    cdef char digits[20]
    cdef int count = 0
    while True:
        digits[count] = <char>(48 + number % 10)
        count += 1
        number //= 10
        if not number:
            break
    while count:
        count -= 1
        to[0] = digits[count]
        to += 1
    return to


cdef char* _put_size(char* to, char kind, int64_t size) noexcept:
    to[0] = kind
    return _put(_put_digits(to + 1, size), b"\r\n", 2)


cdef char* _put_text(char* to, const void* text, Py_ssize_t size) noexcept:
    to = _put(_put_size(to, b"$", size), text, size)
    return _put(to, b"\r\n", 2)


cdef char* _put_int(char* to, int64_t number) noexcept:
    cdef char digits[20]
    return _put_text(to, digits, _put_digits(digits, number) - digits)


cdef enum:
    AROUND = 32        # bytes around a text, at most
    AROUND_SET = 160   # ... around key and value of a SET


def packed_sets(list writes):
    """`speed.stores.set_commands`. Lifetimes are not negative."""
    cdef Py_ssize_t room = 0, size
    cdef const char* text
    cdef char* whole
    cdef char* to
    cdef tuple write
    for found in writes:
        write = <tuple>found
        PyUnicode_AsUTF8AndSize(write[0], &size)
        room += size + PyBytes_GET_SIZE(<bytes?>write[1]) + AROUND_SET
    whole = to = <char*>PyMem_Malloc(room + 1)
    if whole == NULL:
        raise MemoryError()
    try:
        for found in writes:
            write = <tuple>found
            text = PyUnicode_AsUTF8AndSize(write[0], &size)
            to = _put_size(to, b"*", 3 if write[2] is None and write[3] is None else 5)
            to = _put_text(to, b"SET", 3)
            to = _put_text(to, text, size)
            to = _put_text(to, PyBytes_AS_STRING(write[1]), PyBytes_GET_SIZE(write[1]))
            if write[3] is not None:
                to = _put_int(_put_text(to, b"EXAT", 4), _lifetime(write[3]))
            elif write[2] is not None:
                to = _put_int(_put_text(to, b"EX", 2), _lifetime(write[2]))
        return PyBytes_FromStringAndSize(whole, to - whole)
    finally:
        PyMem_Free(whole)


cdef int64_t _lifetime(object number) except -1:
    cdef int64_t found = number
    if found < 0:
        raise ValueError("a lifetime is not negative")
    return found


def packed_marks(list events, list places, str begin):
    """`speed.stores.marks_command`."""
    cdef Py_ssize_t room = 2 * AROUND, size, before
    cdef const char* text
    cdef const char* first = PyUnicode_AsUTF8AndSize(begin, &before)
    cdef char* whole
    cdef char* to
    cdef list ids = []
    for at in places:
        name = (<tuple>events[at])[1]
        if not _is_plain(name, 0):
            name = quoted(name)
        text = PyUnicode_AsUTF8AndSize(name, &size)
        room += before + size + AROUND
        ids.append(name)
    whole = to = <char*>PyMem_Malloc(room)
    if whole == NULL:
        raise MemoryError()
    try:
        to = _put_text(_put_size(to, b"*", len(ids) + 1), b"MGET", 4)
        for name in ids:
            text = PyUnicode_AsUTF8AndSize(name, &size)
            to = _put(_put(_put_size(to, b"$", before + size), first, before), text, size)
            to = _put(to, b"\r\n", 2)
        return PyBytes_FromStringAndSize(whole, to - whole)
    finally:
        PyMem_Free(whole)
