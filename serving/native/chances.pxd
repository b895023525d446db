"""What is left to chance. Declarations; `chances.pyx` says what each does."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef int leave_to_chance(
    uint32_t* slate, Py_ssize_t count, list spares, list untried, list propensities, double share,
    double untried_share, str seed
) except -1
cdef uint64_t day_seed(str subject, int64_t now_micros) except? 1
