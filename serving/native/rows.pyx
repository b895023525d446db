# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""A session record of format 3 as tables of fixed size, and back. The twins are `session_record.unpack_session` and
`pack_session`; they say what is right.

Read are records as `pack_session` writes them, in their order and with every name where it is first used: packed again,
they are the same bytes. Whatever else lies in the store is for the twin. There is one such record at a time.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from feature_repo.contracts.session_record import (
    EVENT_TYPE_ORDER, MAX_CART_CHANGES, MAX_EVENTS, MAX_INTERESTS, MAX_MARKS, MAX_SEEN, MAX_SHOWINGS, MAX_STEPS,
    ROW_FORMATS, WORD_ORDER,
)
from feature_repo.contracts.trend_record import MAX_VOTES
from serving.speed.session_state import VOTED_PERIODS


cdef extern from "Python.h":
    object PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)


cdef enum:
    HEADER = 52
    EVENT = 23
    STEP = 21
    CART = 17
    MARK = 10
    BY_DAY = 6
    VOTE = 8
    COUNT = 5
    WORD = 11

cdef Record _record
cdef uint16_t[SLOTS] _slot
cdef int[WORDS] _word_order  # in which words are given their names
cdef Py_ssize_t _kind_count = len(EVENT_TYPE_ORDER), _most_votes = 3 * VOTED_PERIODS * MAX_VOTES

assert (EVENTS, STEPS, CARTS, MARKS) == (MAX_EVENTS + 1, MAX_STEPS + 1, MAX_CART_CHANGES, MAX_MARKS)
assert (SEEN, INTERESTS, SHOWN, WORDS) == (MAX_SEEN + 1, MAX_INTERESTS + 1, MAX_SHOWINGS + 1, len(WORD_ORDER))
assert VOTES >= 3 * VOTED_PERIODS * MAX_VOTES + 1
assert len(EVENT_TYPE_ORDER) <= KINDS
assert NAMES - ROOM >= (
    MAX_EVENTS + MAX_CART_CHANGES + 2 * MAX_MARKS + MAX_SEEN + MAX_INTERESTS + MAX_SHOWINGS + len(WORD_ORDER)
    + 3 * VOTED_PERIODS * MAX_VOTES
)
assert ROW_FORMATS == (
    "<BBqqqI9H2BH", "<qBQIH", "<qBQI", "<qBHIH", "<qH", "<qH", "<qH", "<HHH", "<BIBH", "<BI", "<BqH", "<HHH",
)
for _at, _word in enumerate(sorted(WORD_ORDER)):
    _word_order[_at] = WORD_ORDER.index(_word)


# --- names ------------------------------------------------------------------------------------------------------------


cdef uint16_t name_of(const char* text, Py_ssize_t size) noexcept:
    """The number of a name, a new one if it has none yet."""
    cdef uint32_t at = 2166136261
    cdef Py_ssize_t n
    cdef Name* name
    for n in range(size):
        at = (at ^ <uint8_t>text[n]) * 16777619
    at = (at ^ at >> 15) & (SLOTS - 1)
    while _slot[at] != NOWHERE:
        name = &_record.name[_slot[at]]
        if name.size == size and memcmp(name.at, text, size) == 0:
            return _slot[at]
        at = (at + 1) & (SLOTS - 1)
    _slot[at] = <uint16_t>_record.names
    name = &_record.name[_record.names]
    name.at, name.size, name.place = text, size, NOWHERE
    _record.names += 1
    return _slot[at]


cdef int compare(uint16_t one, uint16_t other) noexcept:
    """As Python compares texts: UTF-8 has the order of what it stands for."""
    cdef Name* a = &_record.name[one]
    cdef Name* b = &_record.name[other]
    cdef int found = memcmp(a.at, b.at, min(a.size, b.size))
    if found:
        return found
    return (a.size > b.size) - (a.size < b.size)


cdef bint _read_names(const char* at, Py_ssize_t size, Py_ssize_t count) except -1:
    """Whether there are so many, each once."""
    cdef const char* end = at + size
    cdef const char* stop
    cdef Py_ssize_t n
    cdef uint8_t all_bits = 0
    memset(_slot, 255, sizeof(_slot))
    _record.names = 0
    if not count:
        return size == 0
    if count > NAMES - ROOM:
        return False
    for n in range(size):
        all_bits |= <uint8_t>at[n]
    if all_bits & 128:
        try:
            PyUnicode_DecodeUTF8(at, size, NULL)
        except UnicodeDecodeError:
            return False
    for n in range(count):
        stop = <const char*>memchr(at, 0, end - at)
        if (stop is NULL) != (n == count - 1):
            return False
        if stop is NULL:
            stop = end
        if stop == at or name_of(at, stop - at) != n:
            return False
        at = stop + 1
    return True


# --- a record as it is packed -------------------------------------------------------------------------------------------


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


cdef struct Reader:
    const char* at
    Py_ssize_t used      # names so far, which come in the order of their use
    bint is_good


cdef inline uint16_t _named(Reader* r, const char* at) noexcept:
    cdef uint16_t name = _u16(at)
    if name > r.used or name >= _record.names:
        r.is_good = False
        return 0
    if name == r.used:
        r.used += 1
    return name


cdef Record* opened(bytes record) except? NULL:
    """The record, None: an empty one; NULL for one that is for the twin."""
    if record is None:
        _empty()
        return &_record
    return &_record if _open(record) else NULL


cdef bint _open(bytes record) except -1:
    """Whether it is a record that would be packed again as it is."""
    cdef const char* at = PyBytes_AS_STRING(record)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(record), name_bytes
    cdef Record* to = &_record
    cdef Reader r
    if size < HEADER or at[0] != 3:
        return False
    to.flags = <uint8_t>at[1]
    to.consent, to.first, to.last, name_bytes = _i64(at + 2), _i64(at + 10), _i64(at + 18), _u32(at + 26)
    to.events, to.steps, to.carts = _u16(at + 32), _u16(at + 34), _u16(at + 36)
    to.bought, to.dismissed, to.seen = _u16(at + 38), _u16(at + 40), _u16(at + 42)
    to.interests, to.votes = _u16(at + 44), _u16(at + 46)
    to.counts, to.words, to.shown = <uint8_t>at[48], <uint8_t>at[49], _u16(at + 50)
    if size != (
        HEADER + name_bytes + EVENT * to.events + STEP * to.steps + CART * to.carts
        + MARK * (to.bought + to.dismissed + to.seen) + BY_DAY * (to.interests + to.shown) + VOTE * to.votes
        + COUNT * to.counts + WORD * to.words
    ):
        return False
    if (
        to.events >= EVENTS or to.steps >= STEPS or to.carts > CARTS or to.bought > MARKS or to.dismissed > MARKS
        or to.seen >= SEEN or to.interests >= INTERESTS or to.shown >= SHOWN or to.votes > _most_votes
        or to.counts > _kind_count or to.words > WORDS
    ):
        return False
    if not _read_names(at + HEADER, name_bytes, _u16(at + 30)):
        return False
    r.at, r.used, r.is_good = at + HEADER + name_bytes, 0, True
    _read_rows(&r)
    return r.is_good and r.used == to.names


cdef void _read_rows(Reader* r) noexcept:
    cdef Record* to = &_record
    cdef Py_ssize_t n
    cdef Change* change
    cdef Vote* vote
    cdef const char* words
    for n in range(to.events):
        _read_deed(r, &to.event[n])
        to.event[n].name = _named(r, r.at + 21)
        r.at += EVENT
    for n in range(to.steps):
        _read_deed(r, &to.step[n])
        r.at += STEP
    for n in range(to.carts):
        change = &to.cart[n]
        change.micros, change.is_removal, change.quantity = _i64(r.at), <uint8_t>r.at[8], _u16(r.at + 9)
        change.mark, change.name = _u32(r.at + 11), _named(r, r.at + 15)
        r.is_good = r.is_good and change.is_removal <= 1
        r.at += CART
    _read_marks(r, to.bought_at, to.bought)
    _read_marks(r, to.dismissed_at, to.dismissed)
    _read_marks(r, to.seen_at, to.seen)
    for n in range(to.seen - 1):
        r.is_good = r.is_good and marks_in_order(&to.seen_at[n], &to.seen_at[n + 1])
    if not _each_once(to.seen_at, to.seen):
        r.is_good = False
    _read_days(r, to.interest, to.interests)
    for n in range(to.votes):
        vote = &to.vote[n]
        vote.window, vote.period, vote.bucket = <uint8_t>r.at[0], _u32(r.at + 1), <uint8_t>r.at[5]
        vote.name, vote.number = _named(r, r.at + 6), <uint32_t>n
        r.is_good = r.is_good and vote.window < 3 and (n == 0 or vote_order(vote - 1, vote) < 0)
        r.at += VOTE
    memcpy(to.old_vote, to.vote, to.votes * sizeof(Vote))
    to.old_votes = to.votes
    for n in range(to.counts):
        to.count[n].kind, to.count[n].number = <uint8_t>r.at[0], _u32(r.at + 1)
        if to.count[n].kind >= _kind_count or (n and to.count[n - 1].kind >= to.count[n].kind):
            r.is_good = False
        r.at += COUNT
    words = r.at
    for n in range(to.words):
        to.word[n].which, to.word[n].micros = <uint8_t>r.at[0], _i64(r.at + 1)
        if to.word[n].which >= WORDS or (n and to.word[n - 1].which >= to.word[n].which):
            r.is_good = False
        r.at += WORD
    for which in _word_order:  # they were given their names in this order
        for n in range(to.words):
            if to.word[n].which == which:
                to.word[n].name = _named(r, words + WORD * n + 9)
    _read_days(r, to.showing, to.shown)


cdef void _read_deed(Reader* r, Deed* deed) noexcept:
    deed.micros, deed.kind = _i64(r.at), <uint8_t>r.at[8]
    deed.session, deed.mark = <uint64_t>_i64(r.at + 9), _u32(r.at + 17)
    r.is_good = r.is_good and deed.kind < _kind_count


cdef void _read_marks(Reader* r, Mark* marks, Py_ssize_t count) noexcept:
    cdef Py_ssize_t n
    for n in range(count):
        marks[n].micros, marks[n].name = _i64(r.at), _named(r, r.at + 8)
        r.at += MARK


cdef void _read_days(Reader* r, ByDay* rows, Py_ssize_t count) noexcept:
    cdef Py_ssize_t n
    for n in range(count):
        rows[n].day, rows[n].name, rows[n].number = _u16(r.at), _named(r, r.at + 2), _u16(r.at + 4)
        r.is_good = r.is_good and (n == 0 or day_order(&rows[n - 1], &rows[n]) < 0)
        r.at += BY_DAY


cdef bint _each_once(Mark* marks, Py_ssize_t count) noexcept:
    cdef uint8_t[NAMES] found
    cdef Py_ssize_t n
    memset(found, 0, _record.names)
    for n in range(count):
        if found[marks[n].name]:
            return False
        found[marks[n].name] = 1
    return True


cdef bint marks_in_order(Mark* one, Mark* other) noexcept:
    return one.micros < other.micros or (one.micros == other.micros and compare(one.name, other.name) < 0)


cdef int day_order(ByDay* one, ByDay* other) noexcept:
    if one.day != other.day:
        return 1 if one.day > other.day else -1
    return compare(one.name, other.name)


cdef int vote_order(Vote* one, Vote* other) noexcept:
    if one.window != other.window:
        return 1 if one.window > other.window else -1
    if one.period != other.period:
        return 1 if one.period > other.period else -1
    return compare(one.name, other.name)



cdef void _empty() noexcept:
    cdef Record* to = &_record
    to.consent = to.first = to.last = to.flags = 0
    to.names = to.events = to.steps = to.carts = to.bought = to.dismissed = to.seen = 0
    to.interests = to.shown = to.votes = to.old_votes = to.counts = to.words = 0
    memset(_slot, 255, sizeof(_slot))


# --- and back -----------------------------------------------------------------------------------------------------------


cdef uint16_t[NAMES] _used       # names in the order of their use
cdef Py_ssize_t _used_count = 0


cdef inline char* _put(char* to, const void* value, Py_ssize_t size) noexcept:
    memcpy(to, value, size)
    return to + size


cdef inline char* _put8(char* to, uint8_t value) noexcept:
    to[0] = <char>value
    return to + 1


cdef inline char* _put16(char* to, Py_ssize_t value) noexcept:
    cdef uint16_t short = <uint16_t>value
    return _put(to, &short, 2)


cdef inline char* _put_name(char* to, uint16_t name) noexcept:
    global _used_count
    cdef uint16_t place = _record.name[name].place
    if place == NOWHERE:
        place = _record.name[name].place = <uint16_t>_used_count
        _used[_used_count] = name
        _used_count += 1
    return _put16(to, place)


cdef char* _put_marks(char* to, Mark* marks, Py_ssize_t count) noexcept:
    cdef Py_ssize_t n
    for n in range(count):
        to = _put_name(_put(to, &marks[n].micros, 8), marks[n].name)
    return to


cdef char* _put_days(char* to, ByDay* rows, Py_ssize_t count) noexcept:
    cdef Py_ssize_t n
    for n in range(count):
        to = _put16(_put_name(_put16(to, rows[n].day), rows[n].name), rows[n].number)
    return to


cdef char* _put_deed(char* to, Deed* deed) noexcept:
    to = _put8(_put(to, &deed.micros, 8), deed.kind)
    return _put(_put(to, &deed.session, 8), &deed.mark, 4)


cdef enum:
    ROWS_BYTES = 16_384  # of all rows together, at most: 10,380 of a full record, and what comes before the oldest goes
assert ROWS_BYTES > (
    EVENT * EVENTS + STEP * STEPS + CART * CARTS + MARK * (2 * MARKS + SEEN) + BY_DAY * (INTERESTS + SHOWN) + VOTE * VOTES
    + COUNT * KINDS + WORD * WORDS
)


cdef bytes packed():
    """The record as `pack_session` writes it."""
    global _used_count
    cdef char[ROWS_BYTES] rows
    cdef char* at = rows
    cdef Record* of = &_record
    cdef Py_ssize_t n, name_bytes = 0, size
    cdef Name* name
    cdef Change* change
    cdef char* words
    cdef bytes whole
    _used_count = 0
    for n in range(of.names):
        of.name[n].place = NOWHERE
    for n in range(of.events):
        at = _put_name(_put_deed(at, &of.event[n]), of.event[n].name)
    for n in range(of.steps):
        at = _put_deed(at, &of.step[n])
    for n in range(of.carts):
        change = &of.cart[n]
        at = _put16(_put8(_put(at, &change.micros, 8), change.is_removal), change.quantity)
        at = _put_name(_put(at, &change.mark, 4), change.name)
    at = _put_marks(at, of.bought_at, of.bought)
    at = _put_marks(at, of.dismissed_at, of.dismissed)
    at = _put_marks(at, of.seen_at, of.seen)
    at = _put_days(at, of.interest, of.interests)
    for n in range(of.votes):
        at = _put(_put8(at, of.vote[n].window), &of.vote[n].period, 4)
        at = _put_name(_put8(at, of.vote[n].bucket), of.vote[n].name)
    for n in range(of.counts):
        at = _put(_put8(at, of.count[n].kind), &of.count[n].number, 4)
    words = at
    for which in _word_order:
        for n in range(of.words):
            if of.word[n].which == which:
                at = _put(_put8(words + WORD * n, of.word[n].which), &of.word[n].micros, 8)
                _put_name(at, of.word[n].name)
    at = _put_days(words + WORD * of.words, of.showing, of.shown)
    for n in range(_used_count):
        name_bytes += of.name[_used[n]].size + (n > 0)
    size = at - rows
    whole = PyBytes_FromStringAndSize(NULL, HEADER + name_bytes + size)
    at = _put_header(PyBytes_AS_STRING(whole), name_bytes)
    for n in range(_used_count):
        if n:
            at = _put8(at, 0)
        name = &of.name[_used[n]]
        at = _put(at, name.at, name.size)
    _put(at, rows, size)
    return whole


cdef char* _put_header(char* to, Py_ssize_t name_bytes) noexcept:
    cdef Record* of = &_record
    cdef uint32_t bytes_of_names = <uint32_t>name_bytes
    to = _put8(_put8(to, 3), of.flags)
    to = _put(_put(_put(to, &of.consent, 8), &of.first, 8), &of.last, 8)
    to = _put16(_put(to, &bytes_of_names, 4), _used_count)
    to = _put16(_put16(_put16(to, of.events), of.steps), of.carts)
    to = _put16(_put16(_put16(to, of.bought), of.dismissed), of.seen)
    to = _put16(_put16(to, of.interests), of.votes)
    to = _put8(_put8(to, <uint8_t>of.counts), <uint8_t>of.words)
    return _put16(to, of.shown)
