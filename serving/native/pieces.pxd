"""What answers and decisions are written of. Declarations; `pieces.pyx` says what each does."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy


cdef enum:
    REASONS = 65536  # places for reasons; a power of two


@cython.final
cdef class Out:
    cdef char* data
    cdef Py_ssize_t size, room

    cdef int grow(self, Py_ssize_t more) except -1

    cdef inline int need(self, Py_ssize_t more) except -1:
        """Room for so many bytes more."""
        return 0 if self.size + more <= self.room else self.grow(more)

    cdef inline int put(self, const char* data, Py_ssize_t size) except -1:
        self.need(size)
        memcpy(self.data + self.size, data, size)
        self.size += size
        return 0

    cdef inline int put_bytes(self, bytes data) except -1:
        return self.put(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cdef inline int put_one(self, char character) except -1:
        self.need(1)
        self.data[self.size] = character
        self.size += 1
        return 0

    cdef int put_int(self, int64_t number) except -1
    cdef int put_thousandths(self, int64_t number) except -1
    cdef int put_score(self, double score) except -1
    cdef int put_text(self, object text) except -1


cdef struct Written:
    PyObject* facts      # the item's attributes, of which this was made; a reference
    Py_ssize_t size      # of the text
    Py_ssize_t head      # of an item's text up to the score
    Py_ssize_t id_start, id_end
    char text[1]         # as long as it is: the item up to its score, then what comes behind its reasons; or a reason


cdef struct Said:
    PyObject* reason     # references, both
    PyObject* text


@cython.final
cdef class Items:
    cdef list attributes, item_ids
    cdef Written** written
    cdef Written** interests
    cdef Said* said
    cdef Py_ssize_t size, count

    cdef void forget(self) noexcept
    cdef int learn(self, Written** place, object facts, bytes text) except -1
    cdef Written* of(self, Py_ssize_t number) except NULL
    cdef Written* interest(self, Py_ssize_t number, object catalogue) except? NULL
    cdef Said* place_of(self, object reason) noexcept
    cdef void soon_item(self, Py_ssize_t number) noexcept
    cdef void soon_interest(self, Py_ssize_t number) noexcept


cdef Out take_out()
cdef int give_back(Out out) except -1
cdef Items items_of(object catalogue)
cdef bytes reason_text(Said* said, object reason)
cdef int put_reason(Out out, Said* said, object reason) except -1
cdef int put_age(Out out, object moment_micros, int64_t now_micros) except -1
cdef int put_item(Out out, Written* written, double score, Py_ssize_t rank, uint32_t source) except -1
