"""What was shown and left alone. Declarations; `showings.pyx` says what each does."""

from libc.stdint cimport int64_t

from serving.native.sessions cimport Record


cdef dict left_alone(Record record, int64_t since_micros)
