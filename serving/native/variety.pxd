"""What stands beside what in a slate. Declarations; `variety.pyx` says what each does."""

from libc.stdint cimport int32_t, uint8_t, uint32_t

from serving.native.columns cimport Columns
from serving.native.shelves cimport Shelves
from serving.native.work cimport Work

cdef enum:
    MOST_PLACES = 512


cdef struct Near:
    uint32_t place        # of its entry
    int32_t category      # by its place among the categories of the near ones
    int32_t brand
    int32_t group
    int32_t heard         # the take of which a neighbour was looked at
    bint is_gone
    bint has_brand        # that of a place above
    bint has_group
    double worth
    double neighbour      # the largest similarity to a place above
    double value


cdef class Caps:
    cdef Shelves shelves
    cdef int32_t categories[MOST_PLACES]
    cdef int32_t brands[MOST_PLACES]
    cdef int32_t groups[MOST_PLACES]
    cdef Py_ssize_t count, most_category, most_brand, depth
    cdef bint by_group

    cdef bint refuses(self, uint32_t number) except -1
    cdef int take(self, uint32_t number) except -1


cdef class Diverse:
    cdef Shelves shelves
    cdef Columns columns
    cdef Work work
    cdef Near* near
    cdef int32_t* near_at       # by place of the entry; -1: not near
    cdef int32_t* categories    # those of the near ones
    cdef double* to_category
    cdef uint8_t* is_taken
    cdef Py_ssize_t count, category_count
    cdef Py_ssize_t best        # the next, where it is known; else -1
    cdef int32_t takes
    cdef double diversity

    cdef int begin(self, const double* keys) except -1
    cdef Py_ssize_t next(self) noexcept
    cdef int take(self, Py_ssize_t place) except -1
