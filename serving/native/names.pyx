# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Item numbers by the bytes of the ids, for records that are read without making strings of them."""

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from serving.native.borrowed cimport soon


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef inline uint64_t _hash(const char* name, Py_ssize_t size) noexcept:
    """FNV-1a."""
    cdef uint64_t found = <uint64_t>14695981039346656037
    cdef Py_ssize_t at
    for at in range(size):
        found = (found ^ <uint8_t>name[at]) * <uint64_t>1099511628211
    return found ^ (found >> 32)


cdef class Names:
    """Of one catalogue. The table is filled to a half at most; what is found is compared with the id itself."""

    def __cinit__(self, list item_ids, dict numbers):
        """Raises ValueError where an id has two numbers. An id that is no UTF-8 is in no record."""
        cdef Py_ssize_t room = 16, number, known = 0
        cdef object item_id
        self.item_ids = item_ids
        while room < 2 * len(item_ids):  # with those that are still to come (`pipeline.arrivals`)
            room *= 2
        self.mask = room - 1
        self.places = <Name*>PyMem_Calloc(room, sizeof(Name))
        if not self.places:
            raise MemoryError()
        for number in range(len(item_ids)):
            item_id = item_ids[number]
            if item_id is None:
                continue
            known += 1
            if known > len(numbers):
                break
            self.enter(number, item_id)
        if known != len(numbers):
            raise ValueError("an id has two numbers")

    def __dealloc__(self):
        PyMem_Free(self.places)

    cdef int enter(self, Py_ssize_t number, object item_id) except -1:
        """One more item; each number once."""
        cdef Py_ssize_t size, at
        cdef const char* name
        cdef uint64_t hashed
        try:
            name = PyUnicode_AsUTF8AndSize(item_id, &size)
        except UnicodeEncodeError:
            return 0
        hashed = _hash(name, size)
        at = hashed & self.mask
        while self.places[at].number:
            at = (at + 1) & self.mask
        self.places[at].mark = <uint32_t>(hashed >> 32)
        self.places[at].number = <uint32_t>(number + 1)
        return 0

    cdef void soon_name(self, const char* name, Py_ssize_t size) noexcept:
        """Let the memory begin to bring the place of an id."""
        soon(&self.places[_hash(name, size) & self.mask])

    cdef int64_t find(self, const char* name, Py_ssize_t size) except -2:
        """The number of an id; -1: nobody has it."""
        cdef uint64_t hashed = _hash(name, size)
        cdef uint32_t mark = <uint32_t>(hashed >> 32)
        cdef Py_ssize_t at = hashed & self.mask, known_size
        cdef const char* known
        while self.places[at].number:
            if self.places[at].mark == mark:
                known = PyUnicode_AsUTF8AndSize(self.item_ids[self.places[at].number - 1], &known_size)
                if known_size == size and memcmp(known, name, size) == 0:
                    return <int64_t>self.places[at].number - 1
            at = (at + 1) & self.mask
        return -1
