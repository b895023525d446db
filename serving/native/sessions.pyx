# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""The session of a record, picked and heard where it lies. The twins are `pipeline.identify`, `contracts.session_record`
and `session_digest` of `api.decisions`.

A record that is not a whole one of the newest format, and one of a person who may not be known, is declined.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy

from serving.native.blake cimport blake2b_8
from serving.native.names cimport Names
from serving.native.votes cimport Votes, know_kind
from serving.native.work cimport Event

from feature_repo.contracts.packing import FLAG_BOT, FLAG_PERSONALIZE_DENIED
from feature_repo.contracts.session_record import EVENT_TYPE_ORDER, FORMAT_V3, ROW_FORMATS
from serving.native.columns import Declined
from serving.pipeline.identify import CLIENT_GAP_MICROS


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    object PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)


cdef enum:
    HEADER = 52
    EVENT = 23
    MARK = 10
    NAMES = 1024     # of a record that is read here; a whole one has fewer
    EVENTS = 64
    DIGESTED = 4096  # bytes of the items of a session

assert ROW_FORMATS == (
    "<BBqqqI9H2BH", "<qBQIH", "<qBQI", "<qBHIH", "<qH", "<qH", "<qH", "<HHH", "<BIBH", "<BI", "<BqH", "<HHH"
)
cdef tuple _TYPES = tuple(EVENT_TYPE_ORDER)
cdef Py_ssize_t _TYPE_COUNT = len(_TYPES)
cdef uint8_t _ANY_NO = FLAG_BOT | FLAG_PERSONALIZE_DENIED
cdef int64_t _CLIENT_GAP = CLIENT_GAP_MICROS


cdef inline uint16_t _two(const char* at) noexcept:
    cdef uint16_t number
    memcpy(&number, at, 2)
    return number


cdef inline int64_t _eight(const char* at) noexcept:
    cdef int64_t number
    memcpy(&number, at, 8)
    return number


cdef uint64_t hash_of(object session_id) except? 1:
    """`session_hash`."""
    cdef Py_ssize_t size
    cdef const char* said
    if not session_id:
        return 0
    said = PyUnicode_AsUTF8AndSize(session_id, &size)
    return blake2b_8(said, size) or 1


cdef Heard hear_record(Votes slate, bytes record, object session_id, int64_t gap_micros) except *:
    """What the record says is heard by the slate: the events of the session that asks, oldest first, and what was ever
    bought or dismissed. Raises Declined, UnicodeError."""
    cdef const char* data = PyBytes_AS_STRING(record)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(record), named, marks, end, at, place, name, part
    cdef Py_ssize_t name_count, events, bought, dismissed, picked = 0
    cdef uint32_t name_bytes
    cdef int64_t micros, after = 0, gap = _CLIENT_GAP
    cdef uint64_t hashed, wanted
    cdef const char* names[NAMES]
    cdef Py_ssize_t sizes[NAMES]
    cdef const char* start
    cdef const char* stop
    cdef const char* rows
    cdef Py_ssize_t places[EVENTS]
    cdef char digested[DIGESTED]
    cdef Event* event
    cdef Names by_name = slate.columns.by_name()
    cdef Heard heard
    heard.count = 0
    heard.newest = 0
    heard.digest = 0
    if size < HEADER or data[0] != FORMAT_V3 or <uint8_t>data[1] & _ANY_NO:
        raise Declined
    memcpy(&name_bytes, data + 26, 4)
    name_count, events = _two(data + 30), _two(data + 32)
    bought, dismissed = _two(data + 38), _two(data + 40)
    named = HEADER + <Py_ssize_t>name_bytes
    end = named + events * EVENT + _two(data + 34) * 21 + _two(data + 36) * 17
    marks = end
    end += (bought + dismissed + _two(data + 42)) * MARK + _two(data + 44) * 6 + _two(data + 46) * 8
    end += <uint8_t>data[48] * 5 + <uint8_t>data[49] * 11 + _two(data + 50) * 6
    if end != size or name_count > NAMES or events > EVENTS:
        raise Declined

    start, stop = data + HEADER, data + named
    for at in range(name_bytes):
        if <uint8_t>start[at] >= 128:
            PyUnicode_DecodeUTF8(start, name_bytes, NULL)
            break
    for at in range(name_count):
        names[at] = start
        rows = <const char*>memchr(start, 0, stop - start) if start < stop else NULL
        if rows is NULL:
            rows = stop
            if at != name_count - 1:
                raise Declined
        elif at == name_count - 1:
            raise Declined
        sizes[at] = rows - start
        start = rows + 1

    rows = data + named
    for at in range(events):
        if <uint8_t>rows[at * EVENT + 8] >= _TYPE_COUNT or _two(rows + at * EVENT + 21) >= name_count:
            raise Declined
    for at in range(bought + dismissed):
        if _two(data + marks + at * MARK + 8) >= name_count:
            raise Declined

    wanted = hash_of(session_id)
    if session_id is None and events:
        at = events - 1
        if slate.now_micros - _eight(rows + at * EVENT) > gap_micros:
            events = 0
        else:
            memcpy(&wanted, rows + at * EVENT + 9, 8)
            gap = _CLIENT_GAP if wanted else gap_micros
    for at in range(events - 1, -1, -1):
        memcpy(&hashed, rows + at * EVENT + 9, 8)
        if hashed != wanted:
            continue
        micros = _eight(rows + at * EVENT)
        if not -(1 << 62) < micros < (1 << 62):
            raise Declined
        if picked and after - micros >= gap:
            break
        after = micros
        places[picked] = at
        picked += 1

    for place in range(picked):
        name = _two(rows + places[place] * EVENT + 21)
        by_name.soon_name(names[name], sizes[name])
    part = 0
    for place in range(picked - 1, -1, -1):
        at = places[place]
        name = _two(rows + at * EVENT + 21)
        event = slate.work.event()
        event.micros = _eight(rows + at * EVENT)
        know_kind(event, <PyObject*>_TYPES[<uint8_t>rows[at * EVENT + 8]])
        event.number = -1
        if event.deeds or event.weight:
            event.number = by_name.find(names[name], sizes[name])
        if part + sizes[name] + 1 > DIGESTED:
            raise Declined
        if part:
            digested[part - 1] = 10
        memcpy(digested + part, names[name], sizes[name])
        part += sizes[name] + 1
    slate.exclude_events()
    for at in range(bought, bought + dismissed):
        name = _two(data + marks + at * MARK + 8)
        slate.exclude_number(by_name.find(names[name], sizes[name]), True)
    for at in range(bought):
        name = _two(data + marks + at * MARK + 8)
        slate.exclude_number(by_name.find(names[name], sizes[name]), False)
    heard.count = picked
    if picked:
        heard.newest = _eight(rows + places[0] * EVENT)
        heard.digest = blake2b_8(digested, part - 1)
    return heard
