"""The memory of one slate. Declarations; `work.pyx` says what each does."""

from cpython.object cimport PyObject
from libc.stdint cimport int8_t, int32_t, int64_t, uint32_t

cdef enum:
    MOST = 1000  # of items in a slate


cdef struct Entry:
    uint32_t number
    int32_t ballot       # the last one that added to it
    int8_t is_refused    # -1: nobody has looked
    bint is_excluded
    bint is_silenced
    bint is_leading      # in the slate as it would be without votes
    uint32_t source
    uint32_t first
    uint32_t second
    double vote          # 0: none
    double base          # 0: no candidate
    double score


cdef struct Ballot:
    uint32_t number
    Py_ssize_t start
    Py_ssize_t count
    double weight
    PyObject* kind       # of its event; the session keeps it alive
    PyObject* reason     # once it was asked for; `Slates.kept` keeps it alive


cdef struct Event:
    int64_t micros
    int64_t number       # of its item; -1: the version does not know it
    PyObject* kind       # whoever heard the events keeps it alive
    double weight        # 0: it is no vote
    int deeds            # bits of `votes`


cdef class Work:
    cdef Entry* entries
    cdef uint32_t* table
    cdef Ballot* ballots
    cdef Event* events
    cdef double* heap
    cdef uint32_t* order
    cdef Py_ssize_t entry_count, entry_room, table_size, ballot_count, ballot_room, event_count, event_room

    cdef void clear(self) noexcept
    cdef Entry* find(self, uint32_t number) noexcept
    cdef Entry* enter(self, uint32_t number) except NULL
    cdef int grow(self) except -1
    cdef Ballot* ballot(self) except NULL
    cdef Event* event(self) except NULL


cdef Work take_work()
cdef int give_back(Work work) except -1


cdef inline void push(double* heap, Py_ssize_t* count, Py_ssize_t wanted, double value) noexcept:
    """Keep the `wanted` largest of what is pushed; heap[0] is the smallest of them."""
    cdef Py_ssize_t at, child
    cdef double other
    if count[0] < wanted:
        at = count[0]
        count[0] += 1
        while at > 0 and heap[(at - 1) >> 1] > value:
            heap[at] = heap[(at - 1) >> 1]
            at = (at - 1) >> 1
        heap[at] = value
        return
    if value <= heap[0]:
        return
    at = 0
    while True:
        child = 2 * at + 1
        if child >= wanted:
            break
        if child + 1 < wanted and heap[child + 1] < heap[child]:
            child += 1
        other = heap[child]
        if other >= value:
            break
        heap[at] = other
        at = child
    heap[at] = value
