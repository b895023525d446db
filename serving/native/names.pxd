"""Item numbers by the bytes of the ids. Declarations; `names.pyx` says what each does."""

from libc.stdint cimport int64_t, uint32_t


cdef struct Name:
    uint32_t mark    # of the id's hash
    uint32_t number  # one more; 0: nobody's place


cdef class Names:
    cdef Name* places
    cdef Py_ssize_t mask
    cdef list item_ids

    cdef int enter(self, Py_ssize_t number, object item_id) except -1
    cdef int64_t find(self, const char* name, Py_ssize_t size) except -2
    cdef void soon_name(self, const char* name, Py_ssize_t size) noexcept
