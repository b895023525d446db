"""A batch of the consumer. Declarations; `batches.pyx` says what each does."""

from libc.stdint cimport int64_t


cdef class Seen:
    cdef int64_t day, position, number
    cdef object counters


cdef class BotGuard:
    cdef readonly object _subjects
    cdef object _renew
    cdef Py_ssize_t _max_subjects

    cdef bint _judge(self, object state, dict event, object subject, int64_t micros, int64_t position, int64_t number)
    cdef bint judged(
        self, int64_t* flags, int64_t last_micros, dict event, object subject, int64_t micros, int64_t position, int64_t number
    )
    cdef Seen _see(self, object subject, int64_t day)


cdef int64_t days_of(int64_t micros) noexcept
cdef int64_t position_of(object text) except -1
