"""The order of given items. Declarations; `ranking.pyx` says what each does."""

from libc.stdint cimport int64_t, uint8_t

from serving.native.votes cimport Votes
from serving.native.work cimport Entry


cdef enum:
    ROW_BYTES = 17  # of a candidate: number u32, score f32, source u8, two reasons u32
    NOTHING = 0     # what is known of a given item
    LISTED = 1
    POPULAR = 2


cdef class Ranking(Votes):
    cdef int begin(self, int64_t now_micros) except -1
    cdef Py_ssize_t enter_given(self, object item_ids, object excluded, list refused, dict unknown) except -1
    cdef int silence(self, list session, object dismissed) except -1
    cdef Py_ssize_t look_up_list(self, object candidates, double* lowest) except -1
    cdef Py_ssize_t look_up_rows(self, const uint8_t* packed, Py_ssize_t count, double* lowest) except -1
    cdef Py_ssize_t look_up_popularity(self, Py_ssize_t count, object popularity, double lowest) except -1
    cdef bint weigh(self, object tuning) except -1
    cdef bint is_of_session(self, Entry* entry, bint has_votes) noexcept
    cdef int arrange(self, Py_ssize_t count, bint has_votes, bint has_silenced) except -1
    cdef list items(self, Py_ssize_t count, bint has_votes)
