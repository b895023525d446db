"""Places in order. Declarations; `order.pyx` says what each does."""

from libc.stdint cimport uint32_t

from serving.native.work cimport Work


cdef class Room:
    cdef void* data
    cdef Py_ssize_t size

    cdef void* of(self, Py_ssize_t size) except NULL


cdef int sort_places(
    uint32_t* places, Py_ssize_t count, const double* keys, uint32_t* spare, Work work, list item_ids
) except -1
