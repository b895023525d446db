"""What the session says. Declarations; `votes.pyx` says what each does."""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from serving.native.columns cimport Columns
from serving.native.filters cimport Filters
from serving.native.work cimport Entry, Event, Work


cdef enum:
    TOUCHES = 1    # what an event does to its item
    DISMISSES = 2
    BUYS = 4


cdef class Votes:
    cdef Columns columns
    cdef Work work
    cdef int64_t now_micros
    cdef bint has_times
    cdef Py_ssize_t wanted
    cdef double weight
    cdef Filters filters  # None: none

    cdef bint admits(self, Entry* entry) except -1
    cdef int exclude(self, object item_id, bint is_silenced) except -1
    cdef int exclude_number(self, int64_t number, bint is_silenced) except -1
    cdef int hear(self, list session) except -1
    cdef int exclude_events(self, int deeds) except -1
    cdef int exclude_ruled(self, object taken_out, list session, object dismissed) except -1
    cdef int exclude_all(self, list session, object state, object exclude_item_ids) except -1
    cdef int cast_ballots(self, list session, object tuning) except -1
    cdef int cast(self, object tuning) except -1
    cdef int count_votes(self) except -1


cdef int know_kind(Event* event, PyObject* kind) except -1
