"""The session of a record. Declarations; `sessions.pyx` says what each does."""

from libc.stdint cimport int64_t, uint64_t

from serving.native.votes cimport Votes


cdef struct Heard:
    Py_ssize_t count  # of events
    int64_t newest    # event time of the last
    uint64_t digest   # as `session_digest` takes it


cdef Heard hear_record(Votes slate, bytes record, object session_id, int64_t gap_micros) except *
cdef uint64_t hash_of(object session_id) except? 1
