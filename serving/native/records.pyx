# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Session records in native code. The twin is `contracts.session_record.read_session`, whose format this reads.

Only a whole record of the formats that are written is read here, each row held against the length of the record first; anything
else goes to the twin, which says what is wrong with it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from feature_repo.contracts.session_record import EVENT_TYPE_ORDER, FORMAT_V3, FORMAT_V4, ItemMark, SessionEvent, ROW_FORMATS
from feature_repo.contracts.session_record import OpenedSession, read_session as _twin


cdef extern from "Python.h":
    object PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)


cdef enum:
    HEADER = 52
    EVENT = 23
    MARK = 10

assert (FORMAT_V3, FORMAT_V4) == (3, 4)
assert ROW_FORMATS == (
    "<BBqqqI9H2BH", "<qBQIH", "<qBQI", "<qBHIH", "<qH", "<qH", "<qH", "<HHH", "<BIBH", "<BI", "<BqH", "<HHH"
)
cdef tuple _TYPES = tuple(EVENT_TYPE_ORDER)
cdef Py_ssize_t _TYPE_COUNT = len(_TYPES)
cdef object _tuple_of = tuple.__new__
cdef object _opened = OpenedSession.__new__


cdef inline uint16_t _two(const char* at) noexcept:
    cdef uint16_t number
    memcpy(&number, at, 2)
    return number


cdef inline int64_t _eight(const char* at) noexcept:
    cdef int64_t number
    memcpy(&number, at, 8)
    return number


cdef list _marks(const char* rows, Py_ssize_t count, list names):
    cdef Py_ssize_t at, name
    cdef list marks = []
    for at in range(count):
        name = _two(rows + at * MARK + 8)
        if name >= len(names):
            return None
        marks.append(_tuple_of(ItemMark, (_eight(rows + at * MARK), names[name])))
    return marks


cdef object _read(bytes record):
    """The state, or None where the twin has to look."""
    cdef const char* data = PyBytes_AS_STRING(record)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(record), named, at, end, kind, name, place
    cdef Py_ssize_t name_count, events, bought, dismissed
    cdef uint32_t name_bytes, mark
    cdef uint64_t session
    cdef list names, found
    if size < HEADER or not 3 <= data[0] <= 4:
        return None
    memcpy(&name_bytes, data + 26, 4)
    name_count, events = _two(data + 30), _two(data + 32)
    bought, dismissed = _two(data + 38), _two(data + 40)
    named = HEADER + <Py_ssize_t>name_bytes
    end = named + events * EVENT + _two(data + 34) * 21 + _two(data + 36) * 17
    at = end
    end += (bought + dismissed + _two(data + 42)) * MARK + _two(data + 44) * 6 + _two(data + 46) * 8
    end += <uint8_t>data[48] * 5 + <uint8_t>data[49] * 11 + _two(data + 50) * 6
    end += _two(data + 46) * 2 if data[0] == 4 else 0  # the regions of the votes
    if end != size:
        return None
    names = PyUnicode_DecodeUTF8(data + HEADER, name_bytes, NULL).split("\0") if name_count else []
    if len(names) != name_count:
        return None
    state = _opened(OpenedSession)
    state._record = record
    state.flags = <uint8_t>data[1]
    state.consent_micros = _eight(data + 2)
    state.first_micros = _eight(data + 10)
    state.last_micros = _eight(data + 18)
    found = []
    for place in range(events):
        kind = <uint8_t>data[named + 8]
        name = _two(data + named + 21)
        if kind >= _TYPE_COUNT or name >= name_count:
            return None
        memcpy(&session, data + named + 9, 8)
        memcpy(&mark, data + named + 17, 4)
        found.append(_tuple_of(SessionEvent, (_eight(data + named), _TYPES[kind], session, names[name], mark)))
        named += EVENT
    state.events = found
    state.bought = _marks(data + at, bought, names)
    state.dismissed = _marks(data + at + bought * MARK, dismissed, names)
    return None if state.bought is None or state.dismissed is None else state


def read_session(object record):
    """`session_record.read_session`."""
    if type(record) is bytes:
        try:
            found = _read(record)
        except UnicodeDecodeError:
            found = None
        if found is not None:
            return found
    return _twin(record)
