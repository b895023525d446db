"""Answers and decisions around their items. Declarations; `writing.pyx` says what each does."""

from libc.stdint cimport int64_t, uint32_t

from serving.native.pieces cimport Items, Out


cdef int open_answer(Out out, object recommendation_id, object placement) except -1
cdef int close_answer(
    Out out, object catalogue, int64_t took_micros, object level, object reason, object degraded, int64_t now_micros,
    object feature_micros, object session_micros, object changes_micros
) except -1
cdef int open_decision(
    Out out, object catalogue, object recommendation_id, object kind, object placement, object subject, object session,
    object level, object reason, object degraded, int64_t now_micros
) except -1
cdef int close_decision(
    Out out, Items prepared, const uint32_t* numbers, const uint32_t* sources, list scores, object propensities
) except -1
