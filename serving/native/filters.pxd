"""What filters say of items. Declarations; `filters.pyx` says what each does."""

from libc.stdint cimport uint8_t, uint32_t


cdef enum:
    MOST_FILTERS = 4


cdef class Filters:
    cdef Py_ssize_t count
    cdef list asked
    cdef const uint8_t* known[MOST_FILTERS]
    cdef list apart

    cdef bint admit(self, uint32_t number) except -1


cdef Filters filters_of(object asked, Py_ssize_t size)
