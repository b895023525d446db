"""A catalogue as native code looks into it. Declarations; `columns.pyx` says what each is."""

from libc.stdint cimport int64_t, uint32_t

from serving.native.names cimport Names


cdef class Column:
    cdef Py_buffer view
    cdef bint is_open
    cdef Py_ssize_t size
    cdef const void* data


cdef class PopularRows:
    cdef Column numbers
    cdef Column scores
    cdef Column by_number

    cdef Py_ssize_t find(self, uint32_t number) noexcept


cdef class Columns:
    cdef Column offsets, neighbours, similarities
    cdef Column index_offsets, index_numbers, index_weights
    cdef Column refused
    cdef object refusals, neighbour_offsets, session_index
    cdef list item_ids, attributes
    cdef dict numbers, expire, available, of_sessions, of_interests
    cdef tuple reads, loudness
    cdef Names names
    cdef bint is_nameless

    cdef int64_t number_of(self, object item_id) except -2
    cdef bint are_of(self, object catalogue)
    cdef Names by_name(self)


cdef Column column(object values, str kind)
cdef PopularRows popular_rows(object rows)
cdef Columns columns_of(object catalogue)
