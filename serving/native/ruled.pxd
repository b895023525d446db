"""A slate that a policy arranges. Declarations; `ruled.pyx` says what each does."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from serving.native.columns cimport Columns, PopularRows
from serving.native.order cimport Room
from serving.native.shelves cimport Shelves
from serving.native.variety cimport Diverse
from serving.native.votes cimport Votes


cdef class Ruled(Votes):
    cdef Shelves shelves
    cdef Py_ssize_t candidate_count
    cdef bint has_votes
    cdef str level   # the first rung that gave a candidate
    cdef list added  # popular lists that filters name; None: none

    cdef int begin(self, Columns columns, object catalogue, object filters, Py_ssize_t size, int64_t now_micros) except -1
    cdef int vote(self, object tuning, double most) except -1
    cdef Py_ssize_t climb(self, object rows, object source, Py_ssize_t wanted, double* ceiling) except -1
    cdef Py_ssize_t climb_rows(
        self, const uint8_t* packed, Py_ssize_t count, PopularRows popular, uint32_t origin, Py_ssize_t wanted,
        double* ceiling
    ) except -1
    cdef int take(
        self, uint32_t number, double score, double top, double last, const uint8_t* row, uint32_t origin,
        double ceiling, double* lowest
    ) except -1
    cdef int take_rungs(
        self, const uint8_t* packed, Py_ssize_t own, object segment, object request, object catalogue
    ) except -1
    cdef bint is_full_by(self, str name, object rows, uint32_t source, Py_ssize_t wanted, double* ceiling) except -1
    cdef bint is_full(self, str name, Py_ssize_t taken, Py_ssize_t wanted) except -1
    cdef Py_ssize_t score(self, bint has_votes, double least, uint32_t* ranked, double* keys) except -1
    cdef int lead(self, Py_ssize_t wanted) except -1
    cdef Py_ssize_t enter_untried(self, uint32_t* news) except -1
    cdef list place(
        self, Room room, object rules, Py_ssize_t depth, object rotation_seed, dict shown, object exploration_seed
    )


cdef Room take_room()
cdef int give_back_room(Room room) except -1
