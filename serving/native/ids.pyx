# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Ids in native code: 12 hex digits of the milliseconds since 1970, 20 random ones; and such an id with a number. The
twin is `serving.ids`."""

import os
import time

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy


cdef extern from "Python.h":
    object PyUnicode_FromKindAndData(int kind, const void* buffer, Py_ssize_t size)


cdef enum:
    RANDOM = 10    # bytes of an id
    DRAWN = 512    # ids whose bytes are drawn at once

cdef const char* _HEX = b"0123456789abcdef"


cdef class Ids:
    """For one thread. `urandom` and `time_ns` are those of the system."""

    cdef bytes drawn
    cdef Py_ssize_t left
    cdef object urandom, time_ns

    def __init__(self, urandom=os.urandom, time_ns=time.time_ns):
        self.urandom, self.time_ns, self.left = urandom, time_ns, 0

    def new(self):
        """32 hex digits that nobody has seen before."""
        cdef char digits[32]
        cdef int64_t millis = <int64_t>self.time_ns() // 1000000
        cdef const char* drawn
        cdef int at
        if not self.left:
            self.drawn = self.urandom(RANDOM * DRAWN)
            if len(self.drawn) != RANDOM * DRAWN:
                raise ValueError("the system gave fewer random bytes than it was asked for")
            self.left = DRAWN
        self.left -= 1
        drawn = PyBytes_AS_STRING(self.drawn) + self.left * RANDOM
        for at in range(12):
            digits[at] = _HEX[(millis >> (44 - 4 * at)) & 15]
        for at in range(RANDOM):
            digits[12 + 2 * at] = _HEX[(<unsigned char>drawn[at]) >> 4]
            digits[13 + 2 * at] = _HEX[(<unsigned char>drawn[at]) & 15]
        return PyUnicode_FromKindAndData(1, digits, 32)


cdef class Numbered:
    """`serving.ids.Numbered`."""

    cdef char digits[32]
    cdef Py_ssize_t size   # of what comes before the number
    cdef uint64_t count

    def __init__(self, new_id):
        cdef bytes prefix = new_id()[-20:].encode("ascii")
        self.size = len(prefix)
        memcpy(self.digits, PyBytes_AS_STRING(prefix), self.size)
        self.count = 0

    def __call__(self):
        cdef int at
        self.count += 1
        for at in range(12):
            self.digits[self.size + 11 - at] = _HEX[(self.count >> (4 * at)) & 15]
        return PyUnicode_FromKindAndData(1, self.digits, self.size + 12)
