"""Events as the log is to keep them. Declarations; `intake.pyx` says what each does."""

cimport cython
from libc.stdint cimport uint32_t


cdef struct Taken:
    # places in the text of its `CommonEvents`
    Py_ssize_t start, size
    Py_ssize_t id_start, id_size
    Py_ssize_t subject_start, subject_size
    uint32_t partition
    bint is_user


@cython.final
cdef class CommonEvents:
    cdef bytes text
    cdef str nonce
    cdef Py_ssize_t count
    cdef Taken one
    cdef Taken* events
