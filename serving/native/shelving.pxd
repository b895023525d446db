"""A list and what tops it up. Declarations; `shelving.pyx` says what each does."""

from libc.stdint cimport int64_t, uint32_t

from serving.native.columns cimport Columns, PopularRows
from serving.native.votes cimport Votes


cdef struct Rung:
    double top, last, ceiling, lowest
    uint32_t source
    bint whole
    Py_ssize_t before  # how many there were


cdef class Shelving(Votes):
    cdef list refused
    cdef Py_ssize_t count

    cdef int begin(self, Columns columns, Py_ssize_t wanted, int64_t now_micros) except -1
    cdef bint is_taken(self, Rung* rung, uint32_t number, double score) except -1
    cdef int climb(self, object rows, uint32_t source, bint whole, double* ceiling) except -1
    cdef Py_ssize_t climb_popular(self, PopularRows popular, uint32_t source, double* ceiling) except -1
    cdef Py_ssize_t climb_similar(
        self, const uint32_t* numbers, const float* scores, Py_ssize_t count, uint32_t source, double* ceiling
    ) except -1
    cdef Py_ssize_t climb_scored(
        self, const uint32_t* numbers, const double* scores, Py_ssize_t count, uint32_t source, bint whole,
        double* ceiling
    ) except -1
    cdef Py_ssize_t order(self) except -1
    cdef list items(self, object tell)


cdef Rung rung_of(double top, double last, uint32_t source, bint whole, double ceiling, Py_ssize_t before) except *
cdef double base_of(const Rung* rung, double score) noexcept
cdef int leave(const Rung* rung, Py_ssize_t count, double* ceiling) except -1
