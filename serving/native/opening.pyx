# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""A whole session record as the consumer changes it, in native code. The twin is `contracts.session_record.unpack_session`;
it says what is right. A record of another format, and one that is damaged, is for the twin, which says what is wrong.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from feature_repo.contracts.session_record import (
    EVENT_TYPE_ORDER, FORMAT_V3, FORMAT_V4, NO_REGION, ROW_FORMATS, WORD_ORDER, CartChange, ItemMark, SessionEvent, SessionState, Word,
)
from feature_repo.contracts.session_record import unpack_session as _twin


cdef extern from "Python.h":
    object PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)


cdef class _Odd(Exception):
    """The twin has to look at it."""


cdef object _tuple_of = tuple.__new__
cdef tuple _types = tuple(EVENT_TYPE_ORDER), _words = tuple(WORD_ORDER)
cdef Py_ssize_t _type_count = len(EVENT_TYPE_ORDER), _word_count = len(WORD_ORDER)
cdef enum:
    HEADER = 52
    EVENT = 23
    STEP = 21
    CART = 17
    MARK = 10
    INTEREST = 6
    VOTE = 8
    COUNT = 5
    WORD = 11
    REGION = 2

assert (FORMAT_V3, FORMAT_V4, NO_REGION) == (3, 4, 65535)
assert ROW_FORMATS == (
    "<BBqqqI9H2BH", "<qBQIH", "<qBQI", "<qBHIH", "<qH", "<qH", "<qH", "<HHH", "<BIBH", "<BI", "<BqH", "<HHH",
)


cdef inline uint16_t _u16(const char* at) noexcept:
    cdef uint16_t found
    memcpy(&found, at, 2)
    return found


cdef inline uint32_t _u32(const char* at) noexcept:
    cdef uint32_t found
    memcpy(&found, at, 4)
    return found


cdef inline int64_t _i64(const char* at) noexcept:
    cdef int64_t found
    memcpy(&found, at, 8)
    return found


cdef inline uint64_t _u64(const char* at) noexcept:
    return <uint64_t>_i64(at)


cdef inline object _name(list names, const char* at):
    cdef uint16_t number = _u16(at)
    if number >= len(names):
        raise _Odd
    return names[number]


cdef inline object _type(const char* at):
    if <uint8_t>at[0] >= _type_count:
        raise _Odd
    return _types[<uint8_t>at[0]]


def unpack_session(record):
    """`contracts.session_record.unpack_session`."""
    try:
        return _unpacked(record)
    except (_Odd, TypeError, UnicodeDecodeError):
        return _twin(record)


cdef list _marks(const char* at, Py_ssize_t count, list names):
    return [_tuple_of(ItemMark, (_i64(at + MARK * n), _name(names, at + MARK * n + 8))) for n in range(count)]


cdef dict _by_day(const char* at, Py_ssize_t count, list names):
    cdef dict found = {}
    for _ in range(count):
        found[(_u16(at), _name(names, at + 2))] = _u16(at + 4)
        at += INTEREST
    return found


cdef object _unpacked(bytes record):
    cdef const char* at = PyBytes_AS_STRING(record)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(record), n
    cdef uint8_t flags, counts, words
    cdef uint16_t name_count, events, steps, cart, bought, dismissed, seen, interests, voted, showings
    cdef uint32_t name_bytes
    cdef int64_t consent, first, last
    cdef list names, marked, dismissals, event_rows = [], step_rows = [], cart_rows = []
    cdef dict seen_at = {}, votes = {}, of_period = {}, numbers = {}, said = {}, regions = {}, by_interest
    cdef const char* placed = NULL
    cdef object period, last_period = None
    if size < HEADER or not 3 <= at[0] <= 4:
        raise _Odd
    flags = <uint8_t>at[1]
    consent, first, last, name_bytes = _i64(at + 2), _i64(at + 10), _i64(at + 18), _u32(at + 26)
    name_count, events, steps, cart = _u16(at + 30), _u16(at + 32), _u16(at + 34), _u16(at + 36)
    bought, dismissed, seen = _u16(at + 38), _u16(at + 40), _u16(at + 42)
    interests, voted = _u16(at + 44), _u16(at + 46)
    counts, words, showings = <uint8_t>at[48], <uint8_t>at[49], _u16(at + 50)
    if at[0] == 4:
        placed = at + size - REGION * voted
    if size != (
        HEADER + <Py_ssize_t>name_bytes + EVENT * events + STEP * steps + CART * cart
        + MARK * (bought + dismissed + seen) + INTEREST * (interests + showings) + VOTE * voted + COUNT * counts
        + WORD * words + (0 if placed is NULL else REGION * voted)
    ):
        raise _Odd
    at += HEADER
    names = PyUnicode_DecodeUTF8(at, name_bytes, NULL).split("\0") if name_count else []
    if len(names) != name_count:
        raise _Odd
    at += name_bytes
    for n in range(events):
        event_rows.append(
            _tuple_of(
                SessionEvent, (_i64(at), _type(at + 8), _u64(at + 9), _name(names, at + 21), _u32(at + 17))
            )
        )
        at += EVENT
    for n in range(steps):
        step_rows.append(_tuple_of(SessionEvent, (_i64(at), _type(at + 8), _u64(at + 9), "", _u32(at + 17))))
        at += STEP
    for n in range(cart):
        cart_rows.append(
            _tuple_of(CartChange, (_i64(at), at[8] != 0, _u16(at + 9), _name(names, at + 15), _u32(at + 11)))
        )
        at += CART
    marked = _marks(at, bought, names)
    at += MARK * bought
    dismissals = _marks(at, dismissed, names)
    at += MARK * dismissed
    for n in range(seen):
        seen_at[_name(names, at + 8)] = _i64(at)
        at += MARK
    by_interest = _by_day(at, interests, names)
    at += INTEREST * interests
    for n in range(voted):  # those of a period lie together
        period = (<uint8_t>at[0], _u32(at + 1))
        if period != last_period:
            last_period = period
            of_period = votes.setdefault(period, {})
        item = _name(names, at + 6)
        of_period[item] = <uint8_t>at[5]
        if placed is not NULL:
            if _u16(placed) != 65535:
                regions[(<uint8_t>at[0], _u32(at + 1), item)] = _name(names, placed)
            placed += REGION
        at += VOTE
    for n in range(counts):
        numbers[_type(at)] = _u32(at + 1)
        at += COUNT
    for n in range(words):
        if <uint8_t>at[0] >= _word_count:
            raise _Odd
        said[_words[<uint8_t>at[0]]] = _tuple_of(Word, (_i64(at + 1), _name(names, at + 9)))
        at += WORD
    return SessionState(
        event_rows, marked, dismissals, flags, consent, step_rows, cart_rows, seen_at, by_interest, votes, numbers, said,
        first, last, _by_day(at, showings, names), regions,
    )
