# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""From the body of a request to what the log is to keep, in native code. The twin is `hot_events.HotEvents.entries`
with `contracts.common_events.check_common_event`; they say what is right.

One walk over the bytes checks an event and notes where its values lie; they are copied in the order of `EVENT_FIELDS`.
Only what is written in one way is known here, so that a copy is what a parser and a writer would make of it: texts of
plain characters without escapes, short numbers, times to the second or in three or six decimals, objects without
further ones. About all else nothing is said, and the twin looks at the body.
"""

import zlib

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy

from serving.native.pieces cimport Out, give_back, take_out

from feature_repo.contracts.common_events import COMMON_TYPES, COMMON_TYPES_WITHOUT_ITEM, FLAT_FIELDS, TEXTS
from feature_repo.contracts.events import EVENT_FIELDS, MAX_ID_BYTES
from feature_repo.contracts.keys import EVENT_PARTITIONS, partition_of
from feature_repo.contracts.times import EARLIEST_EVENT, to_micros
from serving.adapters.event_log import LogEntry


cdef extern from "Python.h":
    object PyUnicode_DecodeASCII(const char* data, Py_ssize_t size, const char* errors)


cdef enum:
    NO_FIELD = 0
    TEXT = 1
    KIND = 2
    MOMENT = 3
    NUMBER = 4
    COUNT = 5
    PRICE = 6
    FLAT = 7
    FIELDS = 20      # of an event
    KINDS = 64       # room for types
    MOST_KEYS = 32   # of an object in an event; each is held against all others
    DIGITS = 15      # that a double holds, whatever they are: as text it is those digits again

cdef struct Field:
    const char* name     # as it is written before a value: ,"name":
    Py_ssize_t size      # of the name alone
    int role

cdef struct Kind:
    const char* name
    Py_ssize_t size
    bint needs_item

cdef struct Span:
    const uint8_t* start
    Py_ssize_t size

cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end
    bint has_space       # whether there was white space since this was last set to False

assert len(EVENT_FIELDS) == FIELDS
assert len(COMMON_TYPES) <= KINDS

cdef Field _fields[FIELDS]
cdef Kind _kinds[KINDS]
cdef int _kind_count = 0
cdef uint32_t _crc[256]
cdef list _kept = []  # what the tables point into
cdef Py_ssize_t _max_id = MAX_ID_BYTES
cdef int64_t _earliest = to_micros(EARLIEST_EVENT)
cdef uint32_t _partitions = EVENT_PARTITIONS
cdef int EVENT_ID = EVENT_FIELDS.index("event_id"), EVENT_TYPE = EVENT_FIELDS.index("event_type")
cdef int USER_ID = EVENT_FIELDS.index("user_id"), ANONYMOUS_ID = EVENT_FIELDS.index("anonymous_id")
cdef int ITEM_ID = EVENT_FIELDS.index("item_id"), TIMESTAMP = EVENT_FIELDS.index("timestamp")


def _fill_tables():
    global _kind_count
    cdef uint32_t crc
    cdef int at
    cdef bytes text
    roles = {"event_type": KIND, "timestamp": MOMENT, "value": NUMBER, "quantity": COUNT, "price": PRICE}
    roles.update(dict.fromkeys(TEXTS, TEXT), **dict.fromkeys(FLAT_FIELDS, FLAT))
    for at, name in enumerate(EVENT_FIELDS):
        text = f',"{name}":'.encode()
        _kept.append(text)
        _fields[at].name = PyBytes_AS_STRING(text)
        _fields[at].size = len(name)
        _fields[at].role = roles.get(name, NO_FIELD)
    for kind in sorted(COMMON_TYPES):
        text = kind.encode()
        _kept.append(text)
        _kinds[_kind_count].name = PyBytes_AS_STRING(text)
        _kinds[_kind_count].size = len(kind)
        _kinds[_kind_count].needs_item = kind not in COMMON_TYPES_WITHOUT_ITEM
        _kind_count += 1
    for number in range(256):
        crc = number
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
        _crc[number] = crc


_fill_tables()


cdef uint32_t _partition(bint is_user, const uint8_t* name, Py_ssize_t size) noexcept:
    """`keys.partition_of` of a subject."""
    cdef uint32_t crc = 0xFFFFFFFF
    cdef Py_ssize_t at
    crc = _crc[(crc ^ <uint8_t>(117 if is_user else 97)) & 255] ^ (crc >> 8)  # u or a
    crc = _crc[(crc ^ 58) & 255] ^ (crc >> 8)  # :
    for at in range(size):
        crc = _crc[(crc ^ name[at]) & 255] ^ (crc >> 8)
    return (crc ^ 0xFFFFFFFF) % _partitions


# --- what a body is made of: each moves the cursor behind what it read, or says False ---------------------------------


cdef inline uint8_t _skip(Cursor* c) noexcept:
    """The next character that is no white space; 0 at the end. The cursor stands on it."""
    while c.at < c.end:
        if c.at[0] not in (32, 9, 10, 13):
            return c.at[0]
        c.has_space = True
        c.at += 1
    return 0


cdef inline bint _expect(Cursor* c, uint8_t character) noexcept:
    if _skip(c) != character:
        return False
    c.at += 1
    return True


cdef bint _plain(Cursor* c, Span* found) noexcept:
    """A text of ASCII without escapes; `found` is what stands between its quotes."""
    cdef const uint8_t* at
    if _skip(c) != 34:
        return False
    at = c.at + 1
    found.start = at
    while at < c.end and 32 <= at[0] < 128 and at[0] != 34 and at[0] != 92:
        at += 1
    if at >= c.end or at[0] != 34:
        return False
    found.size = at - found.start
    c.at = at + 1
    return True


cdef Py_ssize_t _character(const uint8_t* at, const uint8_t* end) noexcept:
    """Bytes of the UTF-8 character here that is not ASCII; 0 when it is none."""
    cdef uint8_t first = at[0]
    cdef uint8_t low = 0x80, high = 0xBF
    cdef Py_ssize_t size, n
    if 0xC2 <= first <= 0xDF:
        size = 2
    elif 0xE0 <= first <= 0xEF:
        size = 3
        if first == 0xE0:
            low = 0xA0
        elif first == 0xED:  # half characters
            high = 0x9F
    elif 0xF0 <= first <= 0xF4:
        size = 4
        if first == 0xF0:
            low = 0x90
        elif first == 0xF4:
            high = 0x8F
    else:
        return 0
    if end - at < size or not low <= at[1] <= high:
        return 0
    for n in range(2, size):
        if not 0x80 <= at[n] <= 0xBF:
            return 0
    return size


cdef bint _text(Cursor* c) noexcept:
    """A text without escapes, of any characters."""
    cdef const uint8_t* at = c.at + 1
    cdef Py_ssize_t size
    while at < c.end:
        if at[0] >= 128:
            size = _character(at, c.end)
            if not size:
                return False
            at += size
        elif at[0] == 34:
            c.at = at + 1
            return True
        elif at[0] < 32 or at[0] == 92:
            return False
        else:
            at += 1
    return False


cdef bint _number(Cursor* c, bint* is_whole) noexcept:
    """A number that is written as it would be written again."""
    cdef const uint8_t* at = c.at
    cdef const uint8_t* whole
    cdef const uint8_t* rest
    cdef bint is_negative = at < c.end and at[0] == 45
    cdef Py_ssize_t whole_size, rest_size
    if is_negative:
        at += 1
    whole = at
    while at < c.end and 48 <= at[0] <= 57:
        at += 1
    whole_size = at - whole
    if not 0 < whole_size <= 18 or (whole[0] == 48 and whole_size > 1):
        return False
    is_whole[0] = at >= c.end or at[0] != 46
    if is_whole[0]:
        if is_negative and whole[0] == 48:
            return False
    else:
        at += 1
        rest = at
        while at < c.end and 48 <= at[0] <= 57:
            at += 1
        rest_size = at - rest
        if rest_size == 0 or whole_size + rest_size > DIGITS:
            return False
        if (at - 1)[0] == 48 and (rest_size > 1 or is_negative):
            return False
        if whole[0] == 48 and rest_size > 3 and rest[0] == 48 and rest[1] == 48 and rest[2] == 48:
            return False  # small ones are written with an exponent
    if at < c.end and (at[0] == 101 or at[0] == 69):
        return False
    c.at = at
    return True


cdef bint _word(Cursor* c, const char* word, Py_ssize_t size) noexcept:
    if c.end - c.at < size or memcmp(c.at, word, size) != 0:
        return False
    c.at += size
    return True


cdef bint _flat(Cursor* c) noexcept:
    """An object of texts, numbers, true, false and null, no key of it twice."""
    cdef Span keys[MOST_KEYS]
    cdef Py_ssize_t count = 0, other
    cdef bint is_whole
    cdef uint8_t first
    c.at += 1
    if _skip(c) == 125:
        c.at += 1
        return True
    while True:
        if count == MOST_KEYS or not _plain(c, &keys[count]):
            return False
        for other in range(count):
            if keys[other].size == keys[count].size and not memcmp(
                keys[other].start, keys[count].start, keys[count].size
            ):
                return False
        count += 1
        if not _expect(c, 58):
            return False
        first = _skip(c)
        if first == 34:
            if not _text(c):
                return False
        elif first == 116:
            if not _word(c, "true", 4):
                return False
        elif first == 102:
            if not _word(c, "false", 5):
                return False
        elif first == 110:
            if not _word(c, "null", 4):
                return False
        elif not _number(c, &is_whole):
            return False
        first = _skip(c)
        c.at += 1
        if first == 125:
            return True
        if first != 44:
            return False


cdef inline int _two(const uint8_t* at) noexcept:
    """Two digits; a large number when they are none."""
    if 48 <= at[0] <= 57 and 48 <= at[1] <= 57:
        return (at[0] - 48) * 10 + at[1] - 48
    return 1000


cdef bint _moment(Span text, int64_t latest, int* micros) noexcept:
    """Whether it is a good time of UTC, written as 2024-03-01T09:30:00Z, with three or six decimals or with +00:00."""
    cdef const uint8_t* at = text.start
    cdef Py_ssize_t left = text.size - 19, n
    cdef int century, year, month, day, hour, minute, second, days
    cdef int64_t y, era, of_era, found
    if left < 1 or at[4] != 45 or at[7] != 45 or at[10] != 84 or at[13] != 58 or at[16] != 58:
        return False
    century, year, month, day = _two(at), _two(at + 2), _two(at + 5), _two(at + 8)
    hour, minute, second = _two(at + 11), _two(at + 14), _two(at + 17)
    if century > 99 or year > 99 or not 1 <= month <= 12 or hour > 23 or minute > 59 or second > 59:
        return False
    year += century * 100
    if month == 2:
        days = 29 if (year % 4 == 0 and year % 100 != 0) or year % 400 == 0 else 28
    else:
        days = 30 if month in (4, 6, 9, 11) else 31
    if not 1 <= day <= days:
        return False
    at += 19
    micros[0] = 0
    if at[0] == 46:
        n = 1
        while n < left and 48 <= at[n] <= 57:
            if n > 6:
                return False
            micros[0] = micros[0] * 10 + at[n] - 48
            n += 1
        if n == 4:
            micros[0] *= 1000
        elif n != 7:
            return False
        at += n
        left -= n
    if not (left == 1 and at[0] == 90) and not (left == 6 and not memcmp(at, "+00:00", 6)):
        return False
    # the civil calendar, with years that begin in March
    y = year - (month <= 2)
    era = y // 400
    of_era = y - era * 400
    days = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    found = days + of_era * 365 + of_era // 4 - of_era // 100 + era * 146097 - 719468
    found = (found * 86400 + hour * 3600 + minute * 60 + second) * 1000000 + micros[0]
    return _earliest <= found <= latest


cdef int _field_of(Span name, int expected) noexcept:
    """The number of a field; FIELDS when nobody knows it. Looks first where the fields would go on."""
    cdef int at, n
    for n in range(FIELDS):
        at = expected + n
        if at >= FIELDS:
            at -= FIELDS
        if _fields[at].size == name.size and not memcmp(_fields[at].name + 2, name.start, name.size):
            return at
    return FIELDS


cdef inline bint _is_good_kind(Span name, bint has_item) noexcept:
    cdef int at
    for at in range(_kind_count):
        if _kinds[at].size == name.size and not memcmp(_kinds[at].name, name.start, name.size):
            return has_item or not _kinds[at].needs_item
    return False


cdef bint _value(Cursor* c, int role, Span* value, bint* is_spaced) noexcept:
    """A value of a field, with its quotes where it has some."""
    cdef Span text
    cdef bint is_whole
    cdef const uint8_t* at
    _skip(c)
    value.start = c.at
    if role == FLAT:
        if c.at >= c.end or c.at[0] != 123:
            return False
        c.has_space = False
        if not _flat(c):
            return False
        is_spaced[0] = c.has_space
    elif role == NUMBER or role == COUNT or role == PRICE:
        if not _number(c, &is_whole) or (role != NUMBER and value.start[0] == 45):
            return False
        if role == COUNT:
            at = value.start
            if not is_whole or at[0] == 48 or c.at - at > 10:
                return False
            if c.at - at == 10 and memcmp(at, "2147483647", 10) > 0:
                return False
    elif role == NO_FIELD:
        return False
    elif not _plain(c, &text) or not 0 < text.size <= _max_id:
        return False
    value.size = c.at - value.start
    return True


cdef int _event(Cursor* c, int64_t latest, Out out, Taken* taken) except -1:
    """Write the event that begins here as the log keeps it: 1, or 0 when it is for the twin."""
    cdef Span slots[FIELDS]
    cdef bint spaced[FIELDS]
    cdef Span name, inner
    cdef int at, next_field = 0, micros = 0, digit
    cdef uint8_t found
    if not _expect(c, 123):
        return 0
    for at in range(FIELDS):
        slots[at].size = 0
        spaced[at] = False
    while True:
        if not _plain(c, &name):
            return 0
        at = _field_of(name, next_field)
        if at == FIELDS or slots[at].size or not _expect(c, 58):
            return 0
        if not _value(c, _fields[at].role, &slots[at], &spaced[at]):
            return 0
        next_field = at + 1
        found = _skip(c)
        c.at += 1
        if found == 125:
            break
        if found != 44:
            return 0
    if not slots[EVENT_ID].size or not slots[EVENT_TYPE].size or not slots[TIMESTAMP].size:
        return 0
    taken.is_user = slots[USER_ID].size != 0
    if not taken.is_user and not slots[ANONYMOUS_ID].size:
        return 0
    inner = _inner(slots[EVENT_TYPE])
    if not _is_good_kind(inner, slots[ITEM_ID].size != 0):
        return 0
    if not _moment(_inner(slots[TIMESTAMP]), latest, &micros):
        return 0
    inner = _inner(slots[USER_ID if taken.is_user else ANONYMOUS_ID])
    taken.partition = _partition(taken.is_user, inner.start, inner.size)
    taken.start = out.size
    for at in range(FIELDS):
        if not slots[at].size:
            continue
        out.put(_fields[at].name, _fields[at].size + 4)
        if at == EVENT_ID:
            taken.id_start, taken.id_size = out.size + 1, slots[at].size - 2
        elif at == (USER_ID if taken.is_user else ANONYMOUS_ID):
            taken.subject_start, taken.subject_size = out.size + 1, slots[at].size - 2
        if at == TIMESTAMP:
            out.put(<const char*>slots[at].start, 20)
            if micros:
                out.put_one(46)
                for digit in (100000, 10000, 1000, 100, 10, 1):
                    out.put_one(<char>(48 + micros // digit % 10))
            out.put(b'Z"', 2)
        elif spaced[at]:
            _put_closely(out, slots[at])
        else:
            out.put(<const char*>slots[at].start, slots[at].size)
    out.put_one(125)
    out.data[taken.start] = 123  # in place of the first comma
    taken.size = out.size - taken.start
    return 1


cdef inline Span _inner(Span text) noexcept:
    """What stands between the quotes."""
    cdef Span found
    found.start, found.size = text.start + 1, text.size - 2
    return found


cdef int _put_closely(Out out, Span flat) except -1:
    """A value without the white space between its parts; its texts have no escapes."""
    cdef Py_ssize_t at
    cdef bint is_text = False
    out.need(flat.size)
    for at in range(flat.size):
        if flat.start[at] == 34:
            is_text = not is_text
        if is_text or flat.start[at] not in (32, 9, 10, 13):
            out.data[out.size] = <char>flat.start[at]
            out.size += 1
    return 0


# --- a request --------------------------------------------------------------------------------------------------------


cdef class CommonEvents:
    """What the log is to keep of a request. A sequence of `LogEntry`; native code writes it without making them."""

    def __dealloc__(self):
        if self.events is not &self.one:
            PyMem_Free(self.events)

    def __len__(self):
        return self.count

    def __getitem__(self, Py_ssize_t number):
        cdef Taken* event
        cdef const char* text = PyBytes_AS_STRING(self.text)
        if not 0 <= number < self.count:
            raise IndexError(number)
        event = &self.events[number]
        return LogEntry(
            ("u:" if event.is_user else "a:")
            + PyUnicode_DecodeASCII(text + event.subject_start, event.subject_size, NULL),
            PyUnicode_DecodeASCII(text + event.id_start, event.id_size, NULL),
            f"{self.nonce}.{number}",
            PyBytes_FromStringAndSize(text + event.start, event.size),
            True,
        )

    @property
    def byte_count(self):
        """Of all events."""
        return PyBytes_GET_SIZE(self.text)


cdef class EventReader:
    """`max_events`, `max_written_bytes`: of a request; about larger ones nothing is said."""

    cdef Py_ssize_t max_events, max_written_bytes

    def __init__(self, Py_ssize_t max_events, Py_ssize_t max_written_bytes):
        self.max_events, self.max_written_bytes = max_events, max_written_bytes

    def read(self, bytes body, int64_t latest_micros, str nonce, ever_refused):
        """The events of a body, or None: the twin has to look at it. `ever_refused` is None when nobody ever did."""
        cdef Cursor c
        cdef CommonEvents found = CommonEvents.__new__(CommonEvents)
        cdef Out out
        cdef bint is_good
        c.at = <const uint8_t*>PyBytes_AS_STRING(body)
        c.end = c.at + PyBytes_GET_SIZE(body)
        found.nonce = nonce
        found.events = &found.one
        out = take_out()
        try:
            if not self._read(&c, latest_micros, out, found) or out.size > self.max_written_bytes:
                return None
            found.text = PyBytes_FromStringAndSize(out.data, out.size)
        finally:
            give_back(out)
        if ever_refused is not None and _has_refused(found, ever_refused):
            return None
        return found

    cdef bint _read(self, Cursor* c, int64_t latest, Out out, CommonEvents found) except -1:
        cdef uint8_t first = _skip(c)
        cdef const uint8_t* start = c.at
        cdef Span name
        cdef bint is_wrapped = False
        if first == 123:
            c.at += 1
            is_wrapped = _plain(c, &name) and name.size == 6 and not memcmp(name.start, "events", 6)
            if is_wrapped:
                if not _expect(c, 58):
                    return False
            else:
                c.at = start
                found.count = 1
                return _event(c, latest, out, &found.one) and _skip(c) == 0 and c.at == c.end
        if not self._read_list(c, latest, out, found) or (is_wrapped and not _expect(c, 125)):
            return False
        return _skip(c) == 0 and c.at == c.end

    cdef bint _read_list(self, Cursor* c, int64_t latest, Out out, CommonEvents found) except -1:
        cdef Py_ssize_t room = 1
        cdef uint8_t last
        if not _expect(c, 91):
            return False
        while found.count < self.max_events:
            if found.count == room:
                room = _grow(found, room)
            if not _event(c, latest, out, &found.events[found.count]):
                return False
            found.count += 1
            last = _skip(c)
            c.at += 1
            if last == 93:
                return True
            if last != 44:
                return False
        return False


cdef Py_ssize_t _grow(CommonEvents found, Py_ssize_t room) except -1:
    """Room for more events than `room`; how many."""
    cdef Py_ssize_t more = 32 if room == 1 else room * 2
    cdef Taken* events
    if found.events is &found.one:
        events = <Taken*>PyMem_Malloc(more * sizeof(Taken))
        if events:
            events[0] = found.one
    else:
        events = <Taken*>PyMem_Realloc(found.events, more * sizeof(Taken))
    if not events:
        raise MemoryError()
    found.events = events
    return more


cdef bint _has_refused(CommonEvents found, ever_refused) except -1:
    """Whether one of the users did."""
    cdef Py_ssize_t at
    cdef const char* text = PyBytes_AS_STRING(found.text)
    cdef Taken* event
    for at in range(found.count):
        event = &found.events[at]
        if event.is_user and ever_refused(
            PyUnicode_DecodeASCII(text + event.subject_start, event.subject_size, NULL)
        ):
            return True
    return False


def _check_partitions():
    cdef bytes text
    for name in ("", "1", "u-7", "x" * 256):
        text = name.encode()
        for is_user, subject in ((True, "u:" + name), (False, "a:" + name)):
            assert _partition(is_user, <const uint8_t*>PyBytes_AS_STRING(text), len(text)) == partition_of(subject)


_check_partitions()
