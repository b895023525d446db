"""The common slate. Declarations; `slates.pyx` says what each does."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from serving.native.columns cimport Columns, PopularRows
from serving.native.votes cimport Votes
from serving.native.work cimport Entry


cdef enum:
    ROW_BYTES = 17  # of a candidate: number u32, score f32, source u8, two reasons u32


cdef class Slates(Votes):
    cdef Py_ssize_t candidate_count
    cdef list rungs      # reports of those that were tried; None: nobody asks
    cdef str level       # the first that gave a candidate
    cdef list added      # popular lists that filters name; None: none

    cdef double within_reach(self) noexcept
    cdef int score(self, bint has_votes) except -1
    cdef Py_ssize_t order(self, bint by_base) except -1
    cdef bint is_before(self, Py_ssize_t one, Py_ssize_t other) except -1
    cdef Py_ssize_t climb(self, object rows, uint32_t source, double* ceiling, bint has_votes) except -1
    cdef Py_ssize_t climb_rows(
        self, const uint8_t* packed, Py_ssize_t count, PopularRows popular, uint32_t source, double* ceiling,
        bint has_votes
    ) except -1
    cdef int take(self, Entry* entry, double base, uint32_t source, const uint8_t* packed, Py_ssize_t at) except -1
    cdef int begin(self, Columns columns, Py_ssize_t wanted, int64_t now_micros) except -1
    cdef Py_ssize_t fill(
        self, object candidates, const uint8_t* packed, Py_ssize_t own, object segment, object request,
        object catalogue, object tuning
    ) except -1
    cdef int take_rungs(
        self, object candidates, const uint8_t* packed, Py_ssize_t own, object segment, object request,
        object catalogue, double* ceiling, bint has_votes
    ) except -1
    cdef bint is_full_by(self, str name, object rows, uint32_t source, double* ceiling, bint has_votes) except -1
    cdef bint is_full(self, str name, Py_ssize_t offered, Py_ssize_t taken) except -1
