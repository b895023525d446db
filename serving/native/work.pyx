# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""The memory of one slate, used again and again: what is known of each item, and the ballots of the session."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport uint32_t
from libc.string cimport memset


cdef class Work:
    """The memory of one slate. Entries are found by item number; a table of places into them is filled to a half."""

    def __cinit__(self):
        self.entry_room, self.table_size, self.ballot_room, self.event_room = 512, 1024, 64, 64
        self.entries = <Entry*>PyMem_Malloc(self.entry_room * sizeof(Entry))
        self.table = <uint32_t*>PyMem_Malloc(self.table_size * sizeof(uint32_t))
        self.ballots = <Ballot*>PyMem_Malloc(self.ballot_room * sizeof(Ballot))
        self.events = <Event*>PyMem_Malloc(self.event_room * sizeof(Event))
        self.heap = <double*>PyMem_Malloc(MOST * sizeof(double))
        self.order = <uint32_t*>PyMem_Malloc(MOST * sizeof(uint32_t))
        if not (self.entries and self.table and self.ballots and self.events and self.heap and self.order):
            raise MemoryError()

    def __dealloc__(self):
        PyMem_Free(self.entries)
        PyMem_Free(self.table)
        PyMem_Free(self.ballots)
        PyMem_Free(self.events)
        PyMem_Free(self.heap)
        PyMem_Free(self.order)

    cdef void clear(self) noexcept:
        self.entry_count = self.ballot_count = self.event_count = 0
        memset(self.table, 0, self.table_size * sizeof(uint32_t))

    cdef Entry* find(self, uint32_t number) noexcept:
        """The entry of an item, or NULL."""
        cdef Py_ssize_t mask = self.table_size - 1
        cdef Py_ssize_t at = (number * <uint32_t>2654435769) & mask
        while self.table[at]:
            if self.entries[self.table[at] - 1].number == number:
                return &self.entries[self.table[at] - 1]
            at = (at + 1) & mask
        return NULL

    cdef Entry* enter(self, uint32_t number) except NULL:
        """The entry of an item, made if there is none. Entries may move: pointers from before are worth nothing."""
        cdef Py_ssize_t mask = self.table_size - 1
        cdef Py_ssize_t at = (number * <uint32_t>2654435769) & mask
        cdef Entry* made
        while self.table[at]:
            if self.entries[self.table[at] - 1].number == number:
                return &self.entries[self.table[at] - 1]
            at = (at + 1) & mask
        if self.entry_count == self.entry_room:
            self.grow()
            mask = self.table_size - 1
            at = (number * <uint32_t>2654435769) & mask
            while self.table[at]:
                at = (at + 1) & mask
        made = &self.entries[self.entry_count]
        self.entry_count += 1
        self.table[at] = <uint32_t>self.entry_count
        made.number = number
        made.ballot = -1
        made.is_refused = -1
        made.is_excluded = made.is_silenced = made.is_leading = False
        made.vote = made.base = 0.0
        return made

    cdef int grow(self) except -1:
        cdef Entry* entries = <Entry*>PyMem_Realloc(self.entries, 2 * self.entry_room * sizeof(Entry))
        cdef uint32_t* table
        cdef Py_ssize_t mask, at, place
        if not entries:
            raise MemoryError()
        self.entries = entries
        table = <uint32_t*>PyMem_Realloc(self.table, 2 * self.table_size * sizeof(uint32_t))
        if not table:
            raise MemoryError()
        self.table = table
        self.entry_room *= 2
        self.table_size *= 2
        memset(self.table, 0, self.table_size * sizeof(uint32_t))
        mask = self.table_size - 1
        for place in range(self.entry_count):
            at = (self.entries[place].number * <uint32_t>2654435769) & mask
            while self.table[at]:
                at = (at + 1) & mask
            self.table[at] = <uint32_t>(place + 1)
        return 0

    cdef Ballot* ballot(self) except NULL:
        """Room for one more."""
        cdef Ballot* ballots
        if self.ballot_count == self.ballot_room:
            ballots = <Ballot*>PyMem_Realloc(self.ballots, 2 * self.ballot_room * sizeof(Ballot))
            if not ballots:
                raise MemoryError()
            self.ballots = ballots
            self.ballot_room *= 2
        self.ballot_count += 1
        return &self.ballots[self.ballot_count - 1]

    cdef Event* event(self) except NULL:
        """Room for one more."""
        cdef Event* events
        if self.event_count == self.event_room:
            events = <Event*>PyMem_Realloc(self.events, 2 * self.event_room * sizeof(Event))
            if not events:
                raise MemoryError()
            self.events = events
            self.event_room *= 2
        self.event_count += 1
        return &self.events[self.event_count - 1]


cdef list _free = []


cdef Work take_work():
    """Memory that nobody uses, empty."""
    cdef Work work = _free.pop() if _free else Work()
    work.clear()
    return work


cdef int give_back(Work work) except -1:
    """Nobody looks into it any more."""
    _free.append(work)
    return 0
