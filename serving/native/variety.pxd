"""What stands beside what in a slate. Declarations; `variety.pyx` says what each does."""

from libc.stdint cimport int32_t, uint32_t

from serving.native.columns cimport Columns
from serving.native.shelves cimport Shelves
from serving.native.work cimport Work

cdef enum:
    MOST_PLACES = 512


cdef struct Near:
    uint32_t place        # of its entry
    int32_t category      # -1: nobody asked, nor for brand and group
    int32_t brand
    int32_t group
    int32_t heard         # the take of which a neighbour was looked at
    int32_t categories_seen, places_seen  # of those that were taken, how many it was held against
    bint has_brand        # that of a place above
    bint has_group
    double to_category    # the largest likeness to a category of a place above
    double worth
    double neighbour      # the largest similarity to a place above
    double value          # when it was last valued


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
    cdef int32_t* heap          # places among the near ones; the next is on top
    cdef int32_t* categories    # of the places above, each once
    cdef int32_t* brands        # of each place above; -1: none
    cdef int32_t* groups
    cdef Py_ssize_t count, waiting, category_count
    cdef int32_t takes
    cdef double diversity

    cdef int begin(self, const double* keys) except -1
    cdef void sink(self, Py_ssize_t at) noexcept
    cdef bint is_before(self, int32_t one, int32_t other) noexcept
    cdef double likeness(self, Near* one) except -1.0
    cdef Py_ssize_t next(self) except -2
    cdef int take(self, Py_ssize_t place) except -1
