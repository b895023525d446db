"""What is new, for whom. Declarations; `fresh.pyx` says what each does."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from serving.native.sessions cimport Record
from serving.native.shelves cimport Shelves
from serving.native.shelving cimport Shelving


cdef class Fresh:  # the newest items of a catalogue, in order
    cdef Shelves shelves
    cdef Py_ssize_t count
    cdef uint32_t* numbers
    cdef int64_t* micros
    cdef double* freshness
    cdef int32_t* categories


cdef Py_ssize_t shelve_fresh(
    Shelving shelf, object catalogue, dict interests, object category, double oldest, double* ceiling
) except -1
cdef dict interests_of(
    Record record, const uint8_t* packed, Py_ssize_t own, object segment, object catalogue, int64_t now_micros
)
cdef dict named_interests(dict interests, object catalogue)
cdef double interest(Shelves shelves, int32_t category, dict interests) except -1
