"""Answers and decisions in one call. Declarations; `answers.pyx` says what each does."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from serving.native.columns cimport Columns
from serving.native.pieces cimport Items, Out
from serving.native.sessions cimport Heard
from serving.native.slates cimport Slates
from serving.native.votes cimport Votes


cdef enum:
    HEADER = 12  # of candidates: format u8, flags u8, rows u16, days i32, hash u32


cdef class AnswerWriter:
    cdef object tuning, timer, refuses_storing
    cdef str digest
    cdef int64_t gap_micros
    cdef str version
    cdef int32_t days
    cdef uint32_t version_hash

    cdef tuple written(
        self, Slates slate, Out out, object question, object request, object started, object catalogue,
        bytes candidates, bytes session, object segment, object feature_micros, object changes_micros
    )
    cdef int decide(
        self, Out out, object question, object catalogue, object level, object reason, Items prepared,
        const uint32_t* numbers, const uint32_t* sources, list scores, object propensities, const Heard* heard
    ) except -1
    cdef Py_ssize_t rows_of(self, bytes candidates, object catalogue) except -1
    cdef int put_inputs(self, Out out, object request, bint may_store, const Heard* heard) except -1


cdef bint is_answered_here(object request, Columns columns, object catalogue)
cdef bint is_told_by_records(object policy)
cdef list passing(object policy, object catalogue, object now_micros, bint is_nobody)
cdef int deeds_of(object rules) except -1
cdef bytes policy_text(object policy)
cdef int put_slate(
    Votes slate, Out out, Items prepared, Py_ssize_t count, object catalogue, object request, object segment,
    uint32_t* numbers, uint32_t* sources, list scores, bint with_reasons
) except -1
cdef str hex_of(uint64_t number, bint is_little)
cdef object why_not_personal(str level, object request, bytes candidates)
