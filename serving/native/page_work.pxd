"""What the places of a page share. Declarations; `page_work.pyx` says what each does."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from serving.native.answers cimport AnswerWriter
from serving.native.columns cimport Columns
from serving.native.pieces cimport Items, Out
from serving.native.sessions cimport Heard, Record
from serving.native.votes cimport Votes
from serving.native.work cimport Work


cdef struct Placed:  # what is to be written of a place
    Py_ssize_t count   # of its items
    bint is_personal
    Heard heard
    uint32_t numbers[1000]
    uint32_t sources[1000]


cdef class PageWork:
    cdef AnswerWriter writer
    cdef Columns columns
    cdef Items prepared
    cdef Record record
    cdef Work events       # what was heard, for all places
    cdef Heard heard
    cdef Out content, decision
    cdef object catalogue, request, started, segment, feature_micros, changes_micros, item_id
    cdef str name, subject, hashed
    cdef bytes candidates
    cdef const uint8_t* packed
    cdef Py_ssize_t own, count
    cdef int64_t now_micros, asked_micros
    cdef bint may_store
    cdef list taken        # ids that no further place may have
    cdef bint is_sorted    # whether they are
    cdef list numbers      # theirs
    cdef Placed placed     # the place that is being made
    cdef object asked      # its `Place`
    cdef tuple voted       # what trends, of the place that is being made
    cdef str answer_id, placement, level
    cdef object why_not
    cdef list scores
    cdef readonly list payloads, levels

    cdef int open(self, bint may_store, bytes candidates, bytes session) except -1
    cdef int take(self, object item_id) except -1
    cdef int exclude_taken(self, Votes slate) except -1
    cdef int hear(self, Votes slate) except -1
    cdef int exclude_known(self, Votes slate, object rules) except -1
    cdef int exclude_marks(self, Votes slate) except -1
    cdef int rung(self, str name, Py_ssize_t taken) except -1
    cdef int close_place(self, object policy, object propensities, object filtered, bytes more) except -1
    cdef int put_inputs(self, object policy) except -1


cdef bytes in_words(str words)
