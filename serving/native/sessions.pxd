"""The session of a record. Declarations; `sessions.pyx` says what each does."""

from libc.stdint cimport int64_t, uint16_t, uint64_t
from libc.string cimport memcpy

from serving.native.names cimport Names
from serving.native.votes cimport Votes


cdef enum:
    NAMES = 1024  # of a record that is read here; a whole one has fewer
    EVENTS = 64
    EVENT = 23    # bytes of a row: time q, type B at 8, session Q at 9, event I, item H at 21
    INTEREST = 6  # day H, item H, weight H
    SHOWING = 6   # day H, item H, times H
    CART = 17     # time q, removal B at 8, quantity H at 9, event I, item H at 15
    MARK = 10     # time q, item H at 8


cdef struct Sections:  # of a record: how many rows, where they begin, and the names that they lead to
    Py_ssize_t name_count, events, steps, cart, bought, dismissed, seen, interests, votes, counts, words, showings, regions
    const char* event_rows
    const char* step_rows
    const char* cart_rows
    const char* bought_rows
    const char* dismissed_rows
    const char* seen_rows
    const char* interest_rows
    const char* vote_rows
    const char* count_rows
    const char* word_rows
    const char* showing_rows
    const char* region_rows  # of each vote, in format 4
    const char* names[1024]
    Py_ssize_t sizes[1024]


cdef struct Heard:
    Py_ssize_t count  # of events
    int64_t newest    # event time of the last
    uint64_t digest   # as `session_digest` takes it


cdef int open_record(bytes record, Sections* told) except -1
cdef int check_names(const Sections* told, const char* first, Py_ssize_t rows, Py_ssize_t size) except -1
cdef int check_rest(const Sections* told) except -1
cdef Py_ssize_t pick(
    const Sections* told, object session_id, int64_t gap_micros, int64_t now_micros, Py_ssize_t* places
) except -1
cdef Py_ssize_t pick_last(const Sections* told, int64_t gap_micros, Py_ssize_t* places) except -1
cdef Heard told_of(const Sections* told, const Py_ssize_t* places, Py_ssize_t picked) except *
cdef int hear_events(Votes slate, const Sections* told, const Py_ssize_t* places, Py_ssize_t picked) except -1
cdef Heard hear_record(
    Votes slate, bytes record, object session_id, int64_t gap_micros, int deeds, int64_t bought_since
) except *
cdef uint64_t hash_of(object session_id) except? 1


cdef class Record:
    cdef bytes record
    cdef Names by_name
    cdef Sections told
    cdef int64_t numbers[1024]  # of the items, by name; -2: nobody asked

    cdef int open(self, bytes record, Names by_name) except -1
    cdef int64_t number(self, const char* place) except -2
    cdef int exclude_dismissed(self, Votes slate) except -1
    cdef int exclude_bought(self, Votes slate, int64_t since) except -1


cdef Record take_record()
cdef int give_back_record(Record record) except -1


cdef inline uint16_t two(const char* at) noexcept:
    cdef uint16_t number
    memcpy(&number, at, 2)
    return number


cdef inline int64_t eight(const char* at) noexcept:
    cdef int64_t number
    memcpy(&number, at, 8)
    return number
